"""Background work of the tomography widgets: projections and reconstructions, with previews."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ....gaussians import GaussianVolume
from ....grid import Grid
from ....progress import Budget, Step
from ....reconstruction import (
    Measurement,
    ProjectionMeasurements,
    ReconstructionResult,
    ReconstructSettings,
    ReconstructStep,
    Reprojection,
    SliceStack,
    reconstruct_steps,
)
from ....tomography.beer_lambert import hounsfield_to_attenuation
from ....tomography.noise import OPTICAL_DEPTH, add_noise
from ....tomography.projections import Projections, ProjectStep, project_steps
from ....tomography.scan import Mode, Scan
from ....types import Float32Array
from ...layers.conversion import SourceVolume
from ..shared.worker import PreviewThrottle

Volume = GaussianVolume | NDArray[Any]


@dataclass(frozen=True)
class ProjectionPostprocessing:
    """Conversion of the volume before a projection, and noise after it.

    Attributes
    ----------
    hounsfield : bool
        Convert Hounsfield units to attenuation, 1 / mm.
    photons, sigma, depth : float, optional
        Noise, as in `napari_gsvolume.tomography.add_noise`.
    """

    hounsfield: bool = False
    photons: float | None = None
    sigma: float | None = None
    depth: float = OPTICAL_DEPTH

    def to_attenuation(self, volume: Volume) -> Volume:
        """Return the volume to project."""
        return hounsfield_to_attenuation(volume) if self.hounsfield else volume

    def with_noise(self, projections: Projections) -> Projections:
        """Return projections with noise."""
        if self.photons is None and self.sigma is None:
            return projections
        depth = None if self.hounsfield else self.depth
        images = add_noise(projections.images, self.photons, self.sigma, depth=depth)
        return replace(projections, images=images)


def project_layer_steps(
    source: SourceVolume | GaussianVolume,
    scan: Scan,
    mode: Mode,
    postprocessing: ProjectionPostprocessing,
    *,
    budget: Budget,
) -> Generator[ProjectStep, None, Projections | None]:
    """Project voxels or Gaussians; return None if the run is stopped."""
    volume: Volume = source if isinstance(source, GaussianVolume) else np.asarray(source.array)
    projections = yield from project_steps(
        postprocessing.to_attenuation(volume), scan, mode, device="auto", budget=budget
    )
    return postprocessing.with_noise(projections) if len(projections.scan) == len(scan) else None


@dataclass(frozen=True, eq=False)
class ReconstructionRequest:
    """Reconstruction to run, and its appearance in the viewer.

    Attributes
    ----------
    grid : Grid
        Voxel grid of the reconstruction.
    stacks : sequence of SliceStack
        Stacks of slices.
    projections : (array_like, Scan), optional
        Line integrals, ``(K, V, U)``, in intensity times mm, and their geometry; the array is loaded by the run.
    truth, support : array_like, optional
        True volume, and mask of the voxels that may differ from zero, both on the grid.
    views : SourceVolume, optional
        Layer of the projections.
    limits : tuple of float, optional
        Contrast limits of the reconstruction; chosen from its intensities if omitted.
    """

    grid: Grid
    stacks: Sequence[SliceStack] = ()
    projections: tuple[ArrayLike, Scan] | None = None
    truth: ArrayLike | None = None
    support: ArrayLike | None = None
    views: SourceVolume | None = None
    limits: tuple[float, float] | None = None

    def steps(
        self, settings: ReconstructSettings, budget: Budget
    ) -> Generator[ReconstructStep, None, ReconstructionResult]:
        """Load the measurements and return the steps of the reconstruction."""
        measurements: list[Measurement] = [stack.measurements(self.grid) for stack in self.stacks]
        if self.projections is not None:
            images, scan = self.projections
            measurements.append(ProjectionMeasurements(images, scan.of_grid(self.grid)))
        return reconstruct_steps(
            measurements,
            grid=self.grid,
            truth=self.truth,
            support=self.support,
            budget=budget,
            **settings.model_dump(),
        )


@dataclass(frozen=True, eq=False)
class Preview(Step):
    """Step of a reconstruction with what the viewer shows of it.

    Attributes
    ----------
    step : ReconstructStep
        State of the reconstruction.
    volume : ndarray, (Z, Y, X), optional
        Current volume; None for steps between two previews.
    reprojection : Reprojection, optional
        Projections of the current volume; None without projections.
    """

    step: ReconstructStep
    volume: Float32Array | None = field(default=None, repr=False)
    reprojection: Reprojection | None = field(default=None, repr=False)


def preview_steps(
    request: ReconstructionRequest, settings: ReconstructSettings, throttle: PreviewThrottle, *, budget: Budget
) -> Generator[Preview, None, ReconstructionResult]:
    """Reconstruct a volume, with a preview as often as the viewer can draw one."""
    with closing(request.steps(settings, budget)) as steps:
        while True:
            try:
                step = next(steps)
            except StopIteration as end:
                result: ReconstructionResult = end.value
                return result
            if throttle.due():
                throttle.sent()
                yield Preview(step.fraction, step.message, step, step.volume(), step.reproject())
            else:
                yield Preview(step.fraction, step.message, step)
