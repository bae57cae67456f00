"""What a conversation may use and has used: turns, tokens and money. Those of an agent called as a tool count for its callers too."""

from dataclasses import dataclass
from decimal import Decimal

from dalang_api.contract import LimitSettings, ModelReply, SummaryReply
from dalang_api.v1alpha1.conditions import Reason


class RunFailed(Exception):
    """The run ends without an answer, for a reason the user is told."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


class LimitReached(RunFailed):
    """A budget is used up: the run ends, or only the agent called as a tool whose budget it is."""

    def __init__(self, budget: "Budget", reason: Reason, message: str) -> None:
        super().__init__(reason, message)
        self.budget = budget


@dataclass
class Budget:
    """Limits, and what was used of them; `parent` is the caller's."""

    limits: LimitSettings
    parent: "Budget | None" = None
    turns: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost_usd: Decimal = Decimal(0)
    is_priced: bool = True
    """Whether the price of every call is known; if not, the cost is not."""

    def begin_turn(self) -> None:
        """Count a turn that is about to begin, here and for all callers.

        Raises:
            LimitReached: A budget of this conversation or of a caller is used up.
        """
        for budget in self._chain():
            budget.check_turns()
        self.check_spending()
        for budget in self._chain():
            budget.turns += 1

    def take_back_turn(self) -> None:
        """Count a turn no longer, here and for all callers: no model was called in it."""
        for budget in self._chain():
            budget.turns -= 1

    def check_turns(self) -> None:
        """Check the turns of this conversation alone.

        Raises:
            LimitReached: They are used up.
        """
        limit = self.limits.max_turns
        if limit is not None and self.turns >= limit:
            words = f"No answer after limits.maxTurns = {limit} model calls; raise the limit or narrow the task"
            raise LimitReached(self, Reason.MAX_TURNS, words)

    def check_spending(self) -> None:
        """Check tokens and money, here and for all callers.

        Raises:
            LimitReached: A budget of this conversation or of a caller is used up.
        """
        for budget in self._chain():
            limits, tokens, cost = budget.limits, budget.tokens(), budget.cost_usd
            used = f"in {budget.turns} model calls"
            if limits.max_tokens is not None and tokens >= limits.max_tokens:
                words = f"limits.maxTokens = {limits.max_tokens} is used up: {tokens} tokens {used}"
                raise LimitReached(budget, Reason.TOKEN_BUDGET, words)
            if limits.max_cost_usd is not None and cost >= Decimal(limits.max_cost_usd):
                words = f"limits.maxCostUSD = {limits.max_cost_usd} is used up: {cost} {used}"
                raise LimitReached(budget, Reason.COST_BUDGET, words)

    def charge(self, reply: ModelReply | SummaryReply) -> None:
        """Count what a model call used, here and for all callers."""
        for budget in self._chain():
            budget.input_tokens += reply.input_tokens
            budget.output_tokens += reply.output_tokens
            if reply.cost_usd is None:
                budget.is_priced = False
            else:
                budget.cost_usd += Decimal(reply.cost_usd)

    def add(self, other: "Budget") -> None:
        """Count what another conversation has used as well."""
        self.input_tokens += other.input_tokens
        self.output_tokens += other.output_tokens
        self.cost_usd += other.cost_usd
        self.is_priced = self.is_priced and other.is_priced

    def tokens_left(self) -> int | None:
        """Return the fewest tokens that any of the budgets leaves; None where none limits them."""
        left = [
            budget.limits.max_tokens - budget.tokens()
            for budget in self._chain()
            if budget.limits.max_tokens is not None
        ]
        return min(left, default=None)

    def cost_left(self) -> Decimal | None:
        """Return the least money that any of the budgets leaves; None where none limits it."""
        left = [
            Decimal(budget.limits.max_cost_usd) - budget.cost_usd
            for budget in self._chain()
            if budget.limits.max_cost_usd is not None
        ]
        return min(left, default=None)

    def tokens(self) -> int:
        """Return the tokens used, sent and received."""
        return self.input_tokens + self.output_tokens

    def _chain(self) -> "list[Budget]":
        return [self, *(self.parent._chain() if self.parent else ())]
