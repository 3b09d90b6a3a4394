"""Background runs of the fit and compare widgets: fits with previews, at a pace that the viewer can follow. No Qt."""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ....ablation import AblationStep, CaseResult, ablate_steps
from ....fitting import FitResult, FitSettings, FitStep, fit_steps
from ....progress import Budget, Step, mapped
from ...layers.conversion import SourceVolume
from ..shared.worker import PreviewThrottle

_STEP_INTERVAL = 0.2  # seconds between two steps of a study


@dataclass(frozen=True, eq=False)
class Preview(Step):
    """Step of the fits of one or several volumes, with what the viewer shows of it.

    Attributes
    ----------
    fraction : float
        Fraction of all volumes that is done.
    message : str
        Current activity of the fit.
    index, count : int
        Position of the current volume, from 0, and the number of volumes.
    source : SourceVolume
        Volume that is being fitted.
    fit : FitStep
        State of the fit.
    density, residual : ndarray or None
        Sum of the Gaussians, and source minus this sum, on the voxels of the source; None without a new picture.
    result : FitResult or None
        Result of the fit, in the last preview of a volume.
    """

    index: int
    count: int
    source: SourceVolume
    fit: FitStep
    density: NDArray[np.float32] | None = field(default=None, repr=False)
    residual: NDArray[np.float32] | None = field(default=None, repr=False)
    result: FitResult | None = None


def fit_previews(
    sources: Sequence[SourceVolume], settings: FitSettings, throttle: PreviewThrottle, *, budget: Budget
) -> Generator[Preview, None, list[FitResult]]:
    """Fit one volume after another, and yield what to show; return the results.

    The last two previews of a volume have its final density: the first comes at once, the second one with the result
    as soon as its metrics are computed.
    """
    results: list[FitResult] = []
    for index, source in enumerate(sources):
        volume = np.asarray(source.array)
        last: FitStep | None = None

        def preview(
            step: FitStep,
            result: FitResult | None = None,
            index: int = index,
            source: SourceVolume = source,
            volume: NDArray[np.generic] = volume,
        ) -> Preview:
            density = step.reconstruction()
            fraction = (index + (1.0 if result else step.fraction)) / len(sources)
            residual = np.asarray(volume, np.float32) - density
            return Preview(fraction, step.message, index, len(sources), source, step, density, residual, result)

        steps = fit_steps(volume, grid=source.grid, budget=budget, **settings.model_dump())
        while True:
            try:
                step = next(steps)
            except StopIteration as end:
                result: FitResult = end.value
                break
            last = step
            if not step.iteration:
                yield Preview(index / len(sources), step.message, index, len(sources), source, step)
            elif step.is_last or throttle.due():
                throttle.sent()
                yield preview(step)
        assert last is not None  # a fit yields at least once
        results.append(result)
        yield preview(last, result)
        if budget.stop():
            break
    return results


def ablation_previews(
    source: SourceVolume, study: str, settings: dict[str, Any], *, budget: Budget
) -> Generator[AblationStep, None, list[CaseResult]]:
    """Run a study on a volume: yield the result of each case and, a few times a second, the current state."""
    due = 0.0

    def throttled(step: AblationStep) -> AblationStep | None:
        nonlocal due
        if step.result is None and time.perf_counter() < due:
            return None
        due = time.perf_counter() + _STEP_INTERVAL
        return step

    steps = ablate_steps(np.asarray(source.array), study, grid=source.grid, budget=budget, **settings)
    return (yield from mapped(steps, throttled))
