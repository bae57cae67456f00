"""The delay before something that died is started again: parts of the control plane, and containers."""

from dataclasses import dataclass

FIRST_DELAY_SECONDS = 0.5
LAST_DELAY_SECONDS = 30.0
STEADY_SECONDS = 60.0
"""What ran this long starts again as if it had never died before."""


@dataclass
class Backoff:
    """Doubles from half a second to thirty; much quicker than Kubernetes' 10 s to 5 min, for a person is waiting."""

    failures: int = 0

    def ran_for(self, seconds: float) -> None:
        """Note how long the last run lasted."""
        if seconds >= STEADY_SECONDS:
            self.failures = 0

    def next_delay(self) -> float:
        """Return the seconds to wait now, and count the failure."""
        delay = min(FIRST_DELAY_SECONDS * 2.0**self.failures, LAST_DELAY_SECONDS)
        self.failures = min(self.failures + 1, 10)
        return delay
