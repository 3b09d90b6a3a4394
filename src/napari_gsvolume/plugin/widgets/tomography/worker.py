"""Background work of the tomography widgets."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ....gaussians import GaussianVolume
from ....reconstruction.problem import Problem, reprojected
from ....reconstruction.run import ReconstructionResult, ReconstructStep, Recovery
from ....reconstruction.settings import ReconstructSettings
from ....tomography.beer_lambert import hounsfield_to_attenuation
from ....tomography.noise import OPTICAL_DEPTH, add_noise
from ....tomography.projections import Projections, project
from ....tomography.scan import Mode, Scan
from ....types import Float32Array
from ...layers.conversion import SourceVolume
from ..shared.worker import PreviewThrottle, run_in_background

Volume = GaussianVolume | NDArray[Any]
_VIEWS_OF_A_RUN = 25  # into how many parts a scan is cut, for the bar to move and Stop to be heard


@dataclass(frozen=True, eq=False)
class ProjectionProgress:
    """How many views of how many are projected; with the last one all of them, if it was not stopped."""

    done: int
    count: int
    projections: Projections | None = None


@dataclass(frozen=True)
class ProjectionPostprocessing:
    """Processing of voxels before and of views after projection; see `napari_gsvolume.tomography.projections`."""

    hounsfield: bool = False
    photons: float | None = None
    sigma: float | None = None
    depth: float = OPTICAL_DEPTH

    def before(self, volume: Volume) -> Volume:
        """Return attenuation of Hounsfield units."""
        return hounsfield_to_attenuation(volume) if self.hounsfield else volume

    def after(self, projections: Projections) -> Projections:
        """Return the views with noise."""
        if self.photons is None and self.sigma is None:
            return projections
        depth = None if self.hounsfield else self.depth
        images = add_noise(projections.images, self.photons, self.sigma, depth=depth)
        return replace(projections, images=images)


def run_projection(
    source: SourceVolume | GaussianVolume,
    scan: Scan,
    mode: Mode,
    finish: ProjectionPostprocessing,
    stop: Callable[[], bool],
) -> Iterator[ProjectionProgress]:
    """Project voxels or Gaussians, a few views at a time."""
    yield from run_in_background(_taken(source, scan, mode, finish, stop))


def _taken(
    source: SourceVolume | GaussianVolume,
    scan: Scan,
    mode: Mode,
    finish: ProjectionPostprocessing,
    stop: Callable[[], bool],
) -> Iterator[ProjectionProgress]:
    count = len(scan)
    volume: Volume = source if isinstance(source, GaussianVolume) else np.asarray(source.array)
    volume = finish.before(volume)
    if isinstance(volume, GaussianVolume) and mode != "xray":
        volume = volume.sample()  # once, not for every few views
    images = []
    for views in np.array_split(np.arange(count), min(count, _VIEWS_OF_A_RUN)):
        if stop():
            return
        yield ProjectionProgress(int(views[0]), count)
        images.append(project(volume, scan.select(views), mode).images)
    yield ProjectionProgress(count, count, finish.after(Projections(np.concatenate(images), scan, mode)))


@dataclass(frozen=True, eq=False)
class Sight:
    """What to show now.

    Attributes
    ----------
    volume : ndarray or None
        What is recovered so far; None where only the progress is news.
    reprojected, residual : ndarray or None
        Its projections, and those measured minus these; None if there are none.
    result : ReconstructionResult or None
        Present at the end.
    """

    step: ReconstructStep
    volume: Float32Array | None = field(default=None, repr=False)
    reprojected: Float32Array | None = field(default=None, repr=False)
    residual: Float32Array | None = field(default=None, repr=False)
    result: ReconstructionResult | None = None


def run_recovery(
    problem: Problem, settings: ReconstructSettings, pace: PreviewThrottle, stop: Callable[[], bool]
) -> Iterator[Sight]:
    """Recover a volume and yield what to show; the last has the result."""
    yield from run_in_background(_sights(problem, settings, pace, stop))


def _sights(
    problem: Problem, settings: ReconstructSettings, pace: PreviewThrottle, stop: Callable[[], bool]
) -> Iterator[Sight]:
    recovery = problem.recovery(settings)
    for step in recovery.steps(stop):
        if pace.due():
            pace.sent()
            yield _sight(problem, recovery, step)
        else:
            yield Sight(step)
    yield _sight(problem, recovery, step, recovery.result(step))


def _sight(
    problem: Problem, recovery: Recovery, step: ReconstructStep, result: ReconstructionResult | None = None
) -> Sight:
    volume = step.volume() if result is None else result.reconstruction
    again = reprojected(recovery, volume)
    residual = None
    if again is not None and problem.projections is not None:
        residual = np.asarray(problem.projections[0], np.float32) - again
    return Sight(step, volume, again, residual, result)
