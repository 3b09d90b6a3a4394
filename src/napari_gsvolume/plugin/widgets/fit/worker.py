"""What runs beside the viewer: fits whose steps become news, at a pace a viewer can follow. No Qt here."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ....ablation import AblationStep, ablate_steps
from ....fitting import FitResult, FitSettings, FitStep, fit_steps
from ...layers.conversion import SourceVolume
from ..shared.worker import PreviewThrottle, run_in_background

_NEWS_EVERY = 0.2


@dataclass(frozen=True, eq=False)
class Preview:
    """What to show now.

    Attributes
    ----------
    index, count : int
        Which of how many volumes is being fitted.
    step : FitStep
        The fit's state.
    density, residual : ndarray or None
        f, and source - f, on the source's voxels; None where only the progress is news.
    result : FitResult or None
        Present once the volume is finished.
    """

    index: int
    count: int
    source: SourceVolume
    step: FitStep
    density: NDArray[np.float32] | None = field(default=None, repr=False)
    residual: NDArray[np.float32] | None = field(default=None, repr=False)
    result: FitResult | None = None

    @property
    def progress(self) -> float:
        """The share of all volumes that is done."""
        return (self.index + (1.0 if self.result else self.step.progress)) / self.count


def run(
    sources: Sequence[SourceVolume], settings: FitSettings, pace: PreviewThrottle, stop: Callable[[], bool]
) -> Iterator[Preview]:
    """Fit one volume after another and yield what to show.

    The last two previews of a volume have its final density: the first comes at once, the other with the result when
    its metrics are computed.
    """
    yield from run_in_background(_previews(sources, settings, pace, stop))


def run_study(
    source: SourceVolume, study: str, settings: dict[str, Any], stop: Callable[[], bool]
) -> Iterator[AblationStep]:
    """Run a study on a volume; yield the outcome of each case and, a few times a second, where it stands.

    A case that is stopped has no outcome: it would not be comparable with the others.
    """
    yield from run_in_background(_study(source, study, settings, stop))


def _study(
    source: SourceVolume, study: str, settings: dict[str, Any], stop: Callable[[], bool]
) -> Iterator[AblationStep]:
    due = 0.0
    for at in ablate_steps(np.asarray(source.array), study, grid=source.grid, stop=stop, **settings):
        if at.outcome is not None or time.perf_counter() >= due:
            due = time.perf_counter() + _NEWS_EVERY
            yield at


def _previews(
    sources: Sequence[SourceVolume], settings: FitSettings, pace: PreviewThrottle, stop: Callable[[], bool]
) -> Iterator[Preview]:
    for index, source in enumerate(sources):
        volume = np.asarray(source.array)
        step = None

        def preview(step: FitStep, result: FitResult | None = None, i: int = index, s: SourceVolume = source,
                    volume: NDArray[np.generic] = volume) -> Preview:  # fmt: skip
            density = step.reconstruction()
            return Preview(i, len(sources), s, step, density, np.asarray(volume, np.float32) - density, result)

        for step in fit_steps(volume, grid=source.grid, stop=stop, **settings.model_dump()):
            if not step.iteration:
                yield Preview(index, len(sources), source, step)
            elif pace.due():
                pace.sent()
                yield preview(step)
        assert step is not None  # a fit yields at least once
        yield preview(step)
        yield preview(step, step.result())
        if stop():
            return
