"""The protocol of long runs: steps, budgets and previews."""

from __future__ import annotations

from typing import NamedTuple


class Budget(NamedTuple):
    """How many iterations and seconds something may take; one of them is given."""

    iterations: int | None
    seconds: float | None

    def progress(self, iteration: int, seconds: float) -> float:
        """Return how much of it is used up: of whichever there is less left; more than 1 where it is overdrawn."""
        shares = [] if self.iterations is None else [iteration / self.iterations]
        if self.seconds is not None:
            shares.append(seconds / self.seconds)
        return max(shares)

    def ending(self, iteration: int, progress: float, stopped: bool) -> str:
        """Return why it ends now, or nothing if it goes on."""
        if stopped:
            return "Stopped."
        if progress < 1:
            return ""
        return "All iterations are done." if iteration == self.iterations else "The time is over."
