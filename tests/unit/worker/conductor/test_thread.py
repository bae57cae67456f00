"""Threads: what a model call has to carry, and what fits a query's answer."""

import pytest
from dalang_api import contract
from dalang_api.contract import EMPTY_DIGEST, Message, TextPart, ToolResultPart, extend_digest
from dalang_worker.conductor.thread import Thread


def user(text: str = "hello") -> Message:
    return Message(role="user", parts=[TextPart(text=text)])


def assistant(text: str = "hi") -> Message:
    return Message(role="assistant", parts=[TextPart(text=text)], sender="support")


def results(size: int, letter: str = "x") -> Message:
    return Message(role="tool", parts=[ToolResultPart(call_id="call_1_0", tool="say", output=letter * size)])


def digest(*messages: Message) -> str:
    running = EMPTY_DIGEST
    for message in messages:
        running = extend_digest(running, message)
    return running


def thread(*messages: Message) -> Thread:
    """A thread whose assistant's messages are replies of this run."""
    made = Thread("main", [])
    for message in messages:
        (made.append_reply if message.role == "assistant" else made.append)(message)
    return made


class TestPrefix:
    @pytest.mark.parametrize(
        ("messages", "known"),
        [
            pytest.param([user()], 0, id="at first all is sent"),
            pytest.param([user(), user("more")], 0, id="all that the run began with"),
            pytest.param([user(), assistant(), results(5)], 2, id="after a reply what came since"),
            pytest.param([user(), assistant(), results(5), assistant(), results(6)], 4, id="only since the last reply"),
            pytest.param([user(), assistant()], 2, id="nothing if nothing came since"),
        ],
    )
    def test_carries_what_no_worker_has_seen(self, messages: list[Message], known: int) -> None:
        assert thread(*messages).prefix() == (known, digest(*messages[:known]), messages[known:])

    def test_of_messages_that_a_run_begins_with_a_reply_is_nothing_known(self) -> None:
        began = [user(), assistant(), user("again")]
        assert Thread("main", began).prefix() == (0, EMPTY_DIGEST, began)

    def test_leaves_a_long_tail_out_and_names_all(self) -> None:
        said = [user(), assistant(), results(contract.TAIL_MAX_BYTES)]
        assert thread(*said).prefix() == (3, digest(*said), None)

    @pytest.mark.parametrize(
        ("letter", "is_left_out"),
        [pytest.param("x", False, id="plain text"), pytest.param('"', True, id="text that takes twice its size")],
    )
    def test_measures_a_tail_as_it_is_written(self, letter: str, is_left_out: bool) -> None:
        _, _, tail = thread(user(), assistant(), results(contract.TAIL_MAX_BYTES * 3 // 4, letter)).prefix()
        assert (tail is None) is is_left_out

    def test_of_one_thread_is_not_changed_by_what_is_said_later(self) -> None:
        growing = thread(user(), assistant())
        before = growing.prefix()
        growing.append(results(5))
        assert before == (2, digest(user(), assistant()), [])


class TestPage:
    SAID = [user(str(number)) for number in range(10)]

    @pytest.mark.parametrize(
        ("start", "count", "expected"),
        [
            pytest.param(0, 10, SAID, id="all"),
            pytest.param(0, 3, SAID[:3], id="the beginning"),
            pytest.param(4, 3, SAID[4:7], id="the middle"),
            pytest.param(8, 5, SAID[8:], id="no more than there is"),
            pytest.param(10, 5, [], id="nothing after the end"),
        ],
    )
    def test_holds_the_messages_asked_for(self, start: int, count: int, expected: list[Message]) -> None:
        assert Thread("main", self.SAID).page(start, count) == expected

    @pytest.mark.parametrize(
        ("size", "length"),
        [
            pytest.param(contract.PAGE_MAX_BYTES // 4, 3, id="as many as fit"),
            pytest.param(contract.PAGE_MAX_BYTES * 2, 1, id="at least one"),
        ],
    )
    def test_is_bounded_in_bytes(self, size: int, length: int) -> None:
        said = [results(size) for _ in range(5)]
        assert Thread("main", said).page(1, 4) == said[1 : 1 + length]

    def test_after_page_all_of_a_thread_is_read(self) -> None:
        said = [results(contract.PAGE_MAX_BYTES // 3, letter) for letter in "abcdefg"]
        whole = Thread("main", said)
        read: list[Message] = []
        while len(read) < len(said):
            read += whole.page(len(read), len(said) - len(read))
        assert read == said
