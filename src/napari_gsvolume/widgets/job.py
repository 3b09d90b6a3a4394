"""What runs beside the viewer: a fit whose steps become previews, at a pace a viewer can follow. No Qt here."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ..fitting import FitResult, FitSettings, FitStep, fit_steps
from ..layers import SourceVolume

_SHORTEST_PAUSE = 0.5
_SHARE_OF_TIME = 0.1
"""Previews may take this share of the fit's time."""


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


def run(sources: Sequence[SourceVolume], settings: FitSettings, stop: Callable[[], bool]) -> Iterator[Preview]:
    """Fit one volume after another and yield what to show.

    The last two previews of a volume have its final density: the first comes at once, the other with the result when its
    metrics are computed.
    """
    for index, source in enumerate(sources):
        volume = np.asarray(source.array)
        shown = cost = 0.0
        step = None

        def preview(step: FitStep, result: FitResult | None = None, i: int = index, s: SourceVolume = source,
                    volume: NDArray[np.generic] = volume) -> Preview:  # fmt: skip
            density = step.reconstruction()
            return Preview(i, len(sources), s, step, density, np.asarray(volume, np.float32) - density, result)

        for step in fit_steps(volume, grid=source.grid, stop=stop, **settings.model_dump()):
            now = time.perf_counter()
            if step.iteration and now - shown > max(_SHORTEST_PAUSE, cost / _SHARE_OF_TIME):
                picture = preview(step)
                shown = time.perf_counter()
                cost = shown - now
                yield picture
            elif not step.iteration:
                yield Preview(index, len(sources), source, step)
        assert step is not None  # a fit yields at least once
        yield preview(step)
        yield preview(step, step.result())
        if stop():
            return
