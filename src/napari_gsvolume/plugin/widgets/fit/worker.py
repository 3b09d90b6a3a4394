"""What runs beside the viewer: fits whose steps become news, at a pace a viewer can follow. No Qt here."""

from __future__ import annotations

import math
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ....ablation import StudyStep, study_steps
from ....fitting import FitResult, FitSettings, FitStep, fit_steps
from ....gaussians import GaussianVolume
from ....tomography.projections import DEPTH, Projections, hounsfield_to_attenuation, project, with_noise
from ....tomography.scan import Mode, Scan
from ...layers.conversion import SourceVolume

News = TypeVar("News")
Volume = GaussianVolume | NDArray[Any]
_VIEWS_OF_A_RUN = 25  # into how many parts a scan is cut, for the bar to move and Stop to be heard
_SHORTEST_PAUSE = 0.5
_NEWS_EVERY = 0.2
_PAUSE_PER_COST = 4.0


class FitFailedError(Exception):
    """A fit ended in a way that nobody foresaw."""


class Pace:
    """Lets previews through no faster than the viewer draws them, and gives most of the time to the fit.

    `sent` and `due` are called where the fit runs, `drawn` where the viewer does.
    """

    def __init__(self) -> None:
        self._began = 0.0
        self._next = 0.0

    def due(self) -> bool:
        """Whether another preview is welcome."""
        return time.perf_counter() >= self._next

    def sent(self) -> None:
        """Note that a preview is being made: the next one waits until it is drawn."""
        self._began, self._next = time.perf_counter(), math.inf

    def drawn(self) -> None:
        """Note that the last preview is on the screen."""
        now = time.perf_counter()
        self._next = now + max(_SHORTEST_PAUSE, _PAUSE_PER_COST * (now - self._began))


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


def _let_the_viewer_go_first() -> None:
    """Lower this thread's priority, and that of the kernels' threads it will start, where the system can (Linux)."""
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)


def run(
    sources: Sequence[SourceVolume], settings: FitSettings, pace: Pace, stop: Callable[[], bool]
) -> Iterator[Preview]:
    """Fit one volume after another and yield what to show.

    The last two previews of a volume have its final density: the first comes at once, the other with the result when
    its metrics are computed.
    """
    yield from beside_the_viewer(_previews(sources, settings, pace, stop))


def run_study(
    source: SourceVolume, study: str, settings: dict[str, Any], stop: Callable[[], bool]
) -> Iterator[StudyStep]:
    """Run a study on a volume; yield the outcome of each case and, a few times a second, where it stands.

    A case that is stopped has no outcome: it would not be comparable with the others.
    """
    yield from beside_the_viewer(_study(source, study, settings, stop))


@dataclass(frozen=True, eq=False)
class Taken:
    """How many views of how many are projected; with the last one all of them, if it was not stopped."""

    done: int
    count: int
    projections: Projections | None = None


@dataclass(frozen=True)
class Finish:
    """Processing of voxels before and of views after projection; see `napari_gsvolume.tomography.projections`."""

    hounsfield: bool = False
    photons: float | None = None
    sigma: float | None = None
    depth: float = DEPTH

    def before(self, volume: Volume) -> Volume:
        """Return attenuation of Hounsfield units."""
        return hounsfield_to_attenuation(volume) if self.hounsfield else volume

    def after(self, projections: Projections) -> Projections:
        """Return the views with noise."""
        if self.photons is None and self.sigma is None:
            return projections
        depth = None if self.hounsfield else self.depth
        images = with_noise(projections.images, self.photons, self.sigma, depth=depth)
        return replace(projections, images=images)


def run_projection(
    source: SourceVolume | GaussianVolume, scan: Scan, mode: Mode, finish: Finish, stop: Callable[[], bool]
) -> Iterator[Taken]:
    """Project voxels or Gaussians, a few views at a time."""
    yield from beside_the_viewer(_taken(source, scan, mode, finish, stop))


def _taken(
    source: SourceVolume | GaussianVolume, scan: Scan, mode: Mode, finish: Finish, stop: Callable[[], bool]
) -> Iterator[Taken]:
    count = len(scan)
    volume: Volume = source if isinstance(source, GaussianVolume) else np.asarray(source.array)
    volume = finish.before(volume)
    if isinstance(volume, GaussianVolume) and mode != "xray":
        volume = volume.sample()  # once, not for every few views
    images = []
    for views in np.array_split(np.arange(count), min(count, _VIEWS_OF_A_RUN)):
        if stop():
            return
        yield Taken(int(views[0]), count)
        images.append(project(volume, scan.select(views), mode).images)
    yield Taken(count, count, finish.after(Projections(np.concatenate(images), scan, mode)))


def beside_the_viewer(news: Iterator[News]) -> Iterator[News]:
    """Pass news on from a thread of low priority; raise what goes wrong as something that the viewer gets to see."""
    _let_the_viewer_go_first()
    try:
        yield from news
    except RuntimeError as error:
        # superqt takes a RuntimeError for that of a worker deleted by Qt, and does not report it.
        raise FitFailedError(str(error)) from error


def _study(source: SourceVolume, study: str, settings: dict[str, Any], stop: Callable[[], bool]) -> Iterator[StudyStep]:
    due = 0.0
    for at in study_steps(np.asarray(source.array), study, grid=source.grid, stop=stop, **settings):
        if at.outcome is not None or time.perf_counter() >= due:
            due = time.perf_counter() + _NEWS_EVERY
            yield at


def _previews(
    sources: Sequence[SourceVolume], settings: FitSettings, pace: Pace, stop: Callable[[], bool]
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
