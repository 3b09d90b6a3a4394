"""What a volume is to be recovered from, and on which voxels: arrays that may not be loaded yet."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from pydantic import BaseModel, Field

from ..errors import InputError
from ..fitting.target import check_volume
from ..grid import Grid
from ..tomography.presets import spread_angles
from ..tomography.scan import Beam, Scan, ScanError, circular_scan
from ..types import Float32Array
from ..units import mm_per_unit
from .measurements import Measurement, ProjectionMeasurements, SliceMeasurements
from .run import Recovery
from .settings import ReconstructSettings


class OrbitSettings(BaseModel):
    """An orbit around z that is typed in; any other geometry is better said in a file."""

    beam: Beam = Field("parallel", description="Rays are parallel, or come from a point: as a fan a row, or as a cone")
    arc: float = Field(180.0, gt=0, le=360, description="Degrees over which the views are evenly spread")
    source_to_axis: float | None = Field(None, gt=0, description="From the source of a fan or cone to the axis, mm")
    source_to_detector: float | None = Field(None, gt=0, description="From the source to the detector, mm")
    pixel_size: float = Field(1.0, gt=0, description="Distance of the detector's pixels, mm")
    offset: float = Field(0.0, description="Of the detector's middle from the middle ray, along its rows, mm")
    voxel_size: float | None = Field(None, gt=0, description="Of the volume, mm; what a pixel sees if not given")
    width: int | None = Field(
        None, ge=1, le=4096, description="Voxels along y and x; as many as the detector sees if not given"
    )
    height: int | None = Field(None, ge=1, le=4096, description="Voxels along z; likewise")

    def scan(self, stack: Sequence[int]) -> Scan:
        """Return the geometry of a stack of so many views, rows and columns."""
        views, nv, nu = stack
        distances: dict[str, float] = {}
        magnification = 1.0
        if self.beam != "parallel":
            if self.source_to_axis is None or self.source_to_detector is None:
                raise ScanError(f"A {self.beam} needs the distances from its source to the axis and to the detector.")
            distances = {"source_to_axis": self.source_to_axis, "source_to_detector": self.source_to_detector}
            magnification = self.source_to_detector / self.source_to_axis
        voxel = self.pixel_size / magnification if self.voxel_size is None else self.voxel_size
        seen = self.pixel_size / magnification / voxel
        upright = seen * magnification if self.beam == "fan" else seen  # rows of a fan stay as far apart as they are
        width, height = self.width or max(1, round(nu * seen)), self.height or max(1, round(nv * upright))
        return circular_scan(
            (height, width, width), voxel, spread_angles(views, self.arc), self.beam, pixels=(nu, nv),
            pixel_size=(self.pixel_size, self.pixel_size), offset=(self.offset, 0.0), **distances,
        )  # fmt: skip


@dataclass(frozen=True, eq=False)
class SliceStack:
    """Slices of a volume along one of its axes.

    Attributes
    ----------
    array : array_like, (Z, Y, X)
        NaN was not measured.
    grid : Grid
        Where they are in the world.
    axis : int or None
        Along which they are stacked; None: the one along which the most slices have no NaN.
    every : int
        The first slice and every so many-th from there on are known, the others only to compare with.
    thickness : float
        Of the slices: full width at half maximum of their profile, mm.
    """

    array: ArrayLike
    grid: Grid
    axis: int | None = 0
    every: int = 1
    thickness: float = 0.0

    def measured(self, grid: Grid) -> SliceMeasurements:
        """Return the known slices as a measurement of the volume on `grid`."""
        if self.grid.units != grid.units:
            a, b = (", ".join(g.units) for g in (self.grid, grid))
            raise InputError(f"One stack of slices is in units {a}, the volume in {b}; give all layers the same.")
        array = np.array(self.array, np.float32)
        axis = _of_whole_slices(array) if self.axis is None else self.axis
        slices = np.moveaxis(array, axis, 0)
        unknown = np.arange(len(slices)) % self.every != 0
        if len(slices) - unknown.sum() < 2:
            raise InputError(f"Of {len(slices)} slices only {len(slices) - unknown.sum()} would be known; keep more.")
        slices[unknown] = np.nan
        order = [axis, *(other for other in range(3) if other != axis)]
        turned = Grid(slices.shape, self.grid.affine[:, [*order, 3]], self.grid.units)
        return SliceMeasurements(slices, turned, grid, thickness=self.thickness / mm_per_unit(grid.units[0]))


@dataclass(frozen=True, eq=False)
class Problem:
    """Measurements of a volume, and what else is known of it.

    Attributes
    ----------
    grid : Grid
        The voxels to recover.
    projections : (array_like, Scan), optional
        X-rays, ``(K, V, U)``, in intensity times mm, and their geometry.
    stacks : sequence of SliceStack
    truth, support : array_like, optional
        Of the grid's shape: the true volume, to compare with; where the volume may differ from 0.
    """

    grid: Grid
    projections: tuple[ArrayLike, Scan] | None = None
    stacks: Sequence[SliceStack] = ()
    truth: ArrayLike | None = None
    support: ArrayLike | None = None

    def check(self) -> None:
        """Raise a MemoryError if there are more voxels than can be recovered here; nothing is loaded for that."""
        check_volume(np.broadcast_to(np.float32(0), self.grid.shape))

    def recovery(self, settings: ReconstructSettings) -> Recovery:
        """Load the measurements; raise ValueError, in one sentence, if they do not go together."""
        measurements: list[Measurement] = [stack.measured(self.grid) for stack in self.stacks]
        if self.projections is not None:
            images, scan = self.projections
            measurements.append(ProjectionMeasurements(images, scan.of_grid(self.grid)))
        support = None if self.support is None else np.asarray(self.support) != 0
        return Recovery(measurements, self.grid, truth=self.truth, support=support, **settings.model_dump())


def reprojected(recovery: Recovery, volume: Float32Array) -> Float32Array | None:
    """Return the projections of a volume as those of a recovery were taken; None if it has none."""
    for measurement, again in zip(recovery.measurements, recovery.measured_again(volume), strict=True):
        if isinstance(measurement, ProjectionMeasurements):
            return measurement.in_units(again)
    return None


def isotropic_grid(grid: Grid, axis: int) -> Grid:
    """Return the grid over the same extent that is as fine along an axis as across it."""
    size = grid.voxel_size
    finer = [1.0] * 3
    finer[axis] = max(float(size[axis] / np.delete(size, axis).min()), 1.0)
    return grid.resampled(finer)


def _of_whole_slices(array: Float32Array) -> int:
    finite = np.isfinite(array)
    return int(np.argmax([finite.all(across).mean() for across in ((1, 2), (0, 2), (0, 1))]))


def slice_axis(grid: Grid) -> int:
    """Return the axis along which voxels are furthest apart: the one that slices are stacked along."""
    return int(grid.voxel_size.argmax())


def limits_of(volume: Float32Array) -> tuple[float, float]:
    """Return contrast limits that a few extreme voxels do not reach."""
    low, high = (float(v) for v in np.percentile(volume, (0.5, 99.8)))
    low = 0.0 if 0 <= low < 0.2 * high else low
    return low, high if high > low else low + max(math.ulp(low), 1e-6)
