"""What a recovery tells the viewer while it runs beside it. No Qt here."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from ....reconstruction.problem import Floats, Problem, reprojected
from ....reconstruction.reconstruct import Recovered, RecoverStep, Recovery
from ....reconstruction.settings import RecoverSettings
from ..fit.worker import Pace, beside_the_viewer


@dataclass(frozen=True, eq=False)
class Sight:
    """What to show now.

    Attributes
    ----------
    volume : ndarray or None
        What is recovered so far; None where only the progress is news.
    reprojected, residual : ndarray or None
        Its projections, and those measured minus these; None if there are none.
    result : Recovered or None
        Present at the end.
    """

    step: RecoverStep
    volume: Floats | None = field(default=None, repr=False)
    reprojected: Floats | None = field(default=None, repr=False)
    residual: Floats | None = field(default=None, repr=False)
    result: Recovered | None = None


def run_recovery(problem: Problem, settings: RecoverSettings, pace: Pace, stop: Callable[[], bool]) -> Iterator[Sight]:
    """Recover a volume and yield what to show; the last has the result."""
    yield from beside_the_viewer(_sights(problem, settings, pace, stop))


def _sights(problem: Problem, settings: RecoverSettings, pace: Pace, stop: Callable[[], bool]) -> Iterator[Sight]:
    recovery = problem.recovery(settings)
    for step in recovery.steps(stop):
        if pace.due():
            pace.sent()
            yield _sight(problem, recovery, step)
        else:
            yield Sight(step)
    yield _sight(problem, recovery, step, recovery.result(step))


def _sight(problem: Problem, recovery: Recovery, step: RecoverStep, result: Recovered | None = None) -> Sight:
    volume = step.volume() if result is None else result.reconstruction
    again = reprojected(recovery, volume)
    residual = None
    if again is not None and problem.projections is not None:
        residual = np.asarray(problem.projections[0], np.float32) - again
    return Sight(step, volume, again, residual, result)
