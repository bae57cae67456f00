"""A thread: an append-only list of messages with a running digest, and what of it a model call has to carry."""

from dalang_api import contract
from dalang_api.contract import Message, TextPart

CORRECTOR = "dalang"
"""Sender of what the run itself tells an agent, such as to answer again."""


class Thread:
    """What was said in one conversation of a run, in order."""

    def __init__(self, name: str, messages: list[Message]) -> None:
        self.name = name
        self.messages: list[Message] = []
        self._digests = [contract.EMPTY_DIGEST]
        self._sizes: list[int] = []
        self._known = 0
        for message in messages:
            self.append(message)

    def append(self, message: Message) -> None:
        """Add a message."""
        self.messages.append(message)
        self._sizes.append(_size(message))
        self._digests.append(contract.extend_digest(self._digests[-1], message))

    def tell(self, words: str) -> None:
        """Add a message of the run's own to the agent."""
        self.append(Message(role="user", parts=[TextPart(text=words)], sender=CORRECTOR))

    def append_reply(self, message: Message) -> None:
        """Add a model's reply. The worker that made it has cached all up to here, so it need not be sent again."""
        self.append(message)
        self._known = len(self.messages)

    def prefix(self) -> tuple[int, str, list[Message] | None]:
        """Return `count`, `digest` and `tail` of the next model call (see `contract.ModelCall`)."""
        if sum(self._sizes[self._known :]) > contract.TAIL_MAX_BYTES:
            return len(self.messages), self._digests[-1], None
        return self._known, self._digests[self._known], self.messages[self._known :]

    def page(self, start: int, count: int) -> list[Message]:
        """Return up to `count` messages from `start` on, as many as fit a query's answer, but at least one."""
        page: list[Message] = []
        size = 0
        for message, message_size in zip(
            self.messages[start : start + count], self._sizes[start : start + count], strict=True
        ):
            size += message_size
            if page and size > contract.PAGE_MAX_BYTES:
                break
            page.append(message)
        return page


def _size(message: Message) -> int:
    """Bytes of the message in a payload; its words alone would be up to half as many (quotes, newlines)."""
    return len(message.model_dump_json(exclude_none=True).encode())
