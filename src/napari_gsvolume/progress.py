"""The protocol of long runs.

A long run is a generator function ``X_steps(...) -> Generator[Step, None, Result]``: it yields a `Step` now and then,
and its return value is the result. A loop, a progress bar and a widget consume the same generator; ``yield from``
composes runs, `rescaled` gives each its share of the bar, and `finish` runs one to its end. A `Budget` limits a run; a
run that is stopped returns the best it has reached.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass, replace
from typing import TypeVar

Stop = Callable[[], bool]
NumberT = TypeVar("NumberT", int, float)
ResultT = TypeVar("ResultT")


def never() -> bool:
    """Return False: the stop request of a run that nobody stops."""
    return False


@dataclass(frozen=True)
class Budget:
    """Limits of a long run.

    Attributes
    ----------
    iterations : int, optional
        Largest number of iterations.
    time_limit : float, optional
        Largest number of seconds.
    stop : callable
        Stop request: asked between the parts of an iteration, also from other threads; once it returns True, the run
        returns the best it has reached.
    """

    iterations: int | None = None
    time_limit: float | None = None
    stop: Stop = never

    def limited(self, iterations: int | None = None, time_limit: float | None = None) -> Budget:
        """Return a budget with the tighter of these limits and its own."""
        return Budget(_tighter(self.iterations, iterations), _tighter(self.time_limit, time_limit), self.stop)

    def fraction(self, iteration: int, seconds: float) -> float:
        """Return the larger of the used fractions of iterations and time; above 1 where one is exceeded."""
        used = [0.0]
        if self.iterations is not None:
            used.append(iteration / self.iterations)
        if self.time_limit is not None:
            used.append(seconds / self.time_limit)
        return max(used)

    def reason_to_end(self, iteration: int, fraction: float) -> str:
        """Return why a run ends now; an empty string if it goes on."""
        if self.stop():
            return "Stopped."
        if fraction < 1:
            return ""
        return "All iterations are done." if iteration == self.iterations else "The time limit is reached."


@dataclass(frozen=True, eq=False)
class Step:
    """State of a long run.

    Attributes
    ----------
    fraction : float
        Fraction of the run that is done, 0 to 1.
    message : str
        Current activity, or the reason why the run ended.
    """

    fraction: float
    message: str

    @property
    def summary(self) -> str:
        """Short figures beside a progress bar: count, quality, time."""
        return ""

    @property
    def has_result(self) -> bool:
        """True if a run that is stopped now returns something worth keeping."""
        return True


def _tighter(limit: NumberT | None, other: NumberT | None) -> NumberT | None:
    return min((one for one in (limit, other) if one is not None), default=None)


StepT = TypeVar("StepT", bound=Step)
NewStepT = TypeVar("NewStepT", bound=Step)


def finish(steps: Generator[Step, None, ResultT]) -> ResultT:
    """Run a generator of steps to its end and return its result."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]


def rescaled(steps: Generator[StepT, None, ResultT], start: float, end: float) -> Generator[StepT, None, ResultT]:
    """Yield the steps of one part of a longer run, with their fractions mapped from [0, 1] to [start, end].

    Examples
    --------
    >>> from napari_gsvolume.progress import Step, finish, rescaled
    >>> def half():
    ...     yield Step(0.5, "Working")
    ...     return "result"
    >>> [step.fraction for step in rescaled(half(), 0.5, 1.0)]
    [0.75]
    """
    with closing(steps):  # a consumer that closes this generator ends the part, too
        while True:
            try:
                step = next(steps)
            except StopIteration as done:
                return done.value  # type: ignore[no-any-return]
            yield replace(step, fraction=start + (end - start) * step.fraction)


def mapped(
    steps: Generator[StepT, None, ResultT], function: Callable[[StepT], NewStepT | None]
) -> Generator[NewStepT, None, ResultT]:
    """Yield ``function(step)`` for each step of a run, except where it is None, and return the result of the run.

    Examples
    --------
    >>> from napari_gsvolume.progress import Step, mapped
    >>> def run():
    ...     yield Step(0.0, "Starting")
    ...     yield Step(0.5, "Working")
    ...     return "result"
    >>> [step.message for step in mapped(run(), lambda step: step if step.fraction else None)]
    ['Working']
    """
    with closing(steps):
        while True:
            try:
                step = next(steps)
            except StopIteration as done:
                return done.value  # type: ignore[no-any-return]
            new = function(step)
            if new is not None:
                yield new
