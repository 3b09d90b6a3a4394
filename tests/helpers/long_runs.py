"""Long runs consumed by tests."""

from collections.abc import Generator
from typing import TypeVar

StepT = TypeVar("StepT")
ResultT = TypeVar("ResultT")


def collect(steps: Generator[StepT, None, ResultT]) -> tuple[list[StepT], ResultT]:
    """Return the steps of a long run, and its result."""
    found = []
    while True:
        try:
            found.append(next(steps))
        except StopIteration as end:
            return found, end.value
