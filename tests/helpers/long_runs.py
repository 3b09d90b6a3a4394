"""Long runs in tests."""

from collections.abc import Generator
from typing import TypeVar

from napari_gsvolume.progress import Step, finish, mapped

StepT = TypeVar("StepT", bound=Step)
ResultT = TypeVar("ResultT")


def collect(steps: Generator[StepT, None, ResultT]) -> tuple[list[StepT], ResultT]:
    """Return all steps of a run, and its result."""
    seen: list[StepT] = []

    def keep(step: StepT) -> StepT:
        seen.append(step)
        return step

    result = finish(mapped(steps, keep))
    return seen, result
