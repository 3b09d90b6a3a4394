"""Inputs of a reconstruction: projections, stacks of slices, and the voxel grid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from ..errors import InputError
from ..fitting.target import check_volume
from ..grid import Grid
from ..tomography.projections import Projections
from ..tomography.scan import Scan, grid_of_scan
from ..types import Float32Array
from ..units import mm_per_unit
from .measurements import Measurement, ProjectionMeasurements, SliceMeasurements


@dataclass(frozen=True, eq=False)
class SliceStack:
    """Stack of slices of a volume along one of its axes.

    Parameters
    ----------
    array : array_like, (Z, Y, X)
        Intensities; NaN marks unknown voxels.
    grid : Grid
        Grid of the stack.
    axis : int or None
        Array axis along which slices are stacked; None for the axis with the most slices free of NaN.
    every : int
        Slice spacing k: one slice in k is known, from the first on; the other slices are ignored.
    thickness : float
        Slice thickness, mm: full width at half maximum of the Gaussian slice profile; 0 for samples.

    Examples
    --------
    >>> from napari_gsvolume import phantoms
    >>> from napari_gsvolume.reconstruction import SliceStack
    >>> volume, grid = phantoms.vessel_phantom(16)
    >>> stack = SliceStack(volume, grid, every=4, thickness=2.0)
    >>> stack.measurements(grid).values.shape
    torch.Size([1024])
    """

    array: ArrayLike
    grid: Grid
    axis: int | None = 0
    every: int = 1
    thickness: float = 0.0

    def measurements(self, grid: Grid) -> SliceMeasurements:
        """Return the known slices as measurements of the volume on a grid in the same world.

        Raises
        ------
        ValueError
            If units differ, or fewer than two slices are known.
        """
        if self.grid.units != grid.units:
            a, b = (", ".join(g.units) for g in (self.grid, grid))
            raise InputError(f"One stack of slices is in units {a}, the volume in {b}; give all layers the same.")
        array = np.array(self.array, np.float32)
        axis = _most_complete_axis(array) if self.axis is None else self.axis
        slices = np.moveaxis(array, axis, 0)
        unknown = np.arange(len(slices)) % self.every != 0
        if len(slices) - unknown.sum() < 2:
            raise InputError(
                f"Only {len(slices) - unknown.sum()} of {len(slices)} slices would be known; reduce the slice spacing."
            )
        slices[unknown] = np.nan
        order = [axis, *(other for other in range(3) if other != axis)]
        permuted = Grid(slices.shape, self.grid.affine[:, [*order, 3]], self.grid.units)
        return SliceMeasurements(slices, permuted, grid, thickness=self.thickness / mm_per_unit(grid.units[0]))

    def reconstruction_grid(self) -> Grid:
        """Return the default grid of a reconstruction: isotropic voxels if all slices are known, else the own grid."""
        if self.axis is None or self.every > 1:
            return self.grid
        return isotropic_grid(self.grid, self.axis)


MeasurementInput = ArrayLike | Projections | SliceStack | Measurement
"""Input of `reconstruct`: an array of line integrals, projections, a stack of slices, or a linear measurement."""


@dataclass(frozen=True, eq=False)
class Problem:
    """Checked inputs of a reconstruction.

    Attributes
    ----------
    measurements : list of Measurement
        Linear measurements; at least one.
    grid : Grid
        Voxel grid of the reconstruction, 3D.
    truth : ndarray, (Z, Y, X), optional
        True volume, for comparison.
    support : Tensor of bool, (Z, Y, X), optional
        Mask of the voxels that may differ from zero.
    """

    measurements: list[Measurement]
    grid: Grid
    truth: Float32Array | None
    support: Tensor | None


def build_problem(
    measurements: MeasurementInput | Sequence[MeasurementInput],
    *,
    scan: Scan | None = None,
    grid: Grid | None = None,
    truth: ArrayLike | None = None,
    support: ArrayLike | None = None,
) -> Problem:
    """Check the inputs of `reconstruct` and return them as linear measurements on one grid.

    Raises
    ------
    ValueError
        If inputs are missing or do not match.
    MemoryError
        If the grid has more voxels than the memory can take.
    """
    inputs = _as_list(measurements)
    if not inputs:
        raise InputError("There is nothing to reconstruct a volume from: give projections or slices.")
    grid = _default_grid(inputs, scan) if grid is None else grid
    if grid.ndim != 3:
        raise InputError(f"A volume has three axes; this grid has {grid.ndim}.")
    for name, array in (("true volume", truth), ("support", support)):
        if array is not None and np.shape(array) != grid.shape:
            raise InputError(f"The {name} is of shape {np.shape(array)}, the volume of {grid.shape}.")
    check_volume(np.broadcast_to(np.float32(0), grid.shape))  # the size, before anything is computed
    return Problem(
        [_measurement(one, scan, grid) for one in inputs],
        grid,
        None if truth is None else np.asarray(truth, np.float32),
        None if support is None else torch.from_numpy(np.asarray(support, bool)),
    )


def _as_list(measurements: MeasurementInput | Sequence[MeasurementInput]) -> list[MeasurementInput]:
    """Return the measurements as a list; a nested list of numbers is one array."""
    if not isinstance(measurements, list | tuple):
        return [measurements]  # type: ignore[list-item]
    if not measurements or any(isinstance(one, _KINDS) or np.ndim(one) == 3 for one in measurements):
        return list(measurements)
    return [np.asarray(measurements)]


_KINDS = (Projections, SliceStack, Measurement)


def _default_grid(inputs: Sequence[MeasurementInput], scan: Scan | None) -> Grid:
    for one in inputs:
        if isinstance(one, SliceStack):
            return one.reconstruction_grid()
        if isinstance(one, SliceMeasurements):
            return one.volume_grid
    scans = [one.scan for one in inputs if isinstance(one, Projections | ProjectionMeasurements)]
    if not scans and scan is None:
        raise InputError(_NO_SCAN)
    return grid_of_scan(scans[0] if scan is None else scan)


_NO_SCAN = "Projections in an array need their acquisition geometry: give scan=..., a Scan, or a Projections object."


def _measurement(one: MeasurementInput, scan: Scan | None, grid: Grid) -> Measurement:
    """Return one input as a linear measurement of a volume on the grid."""
    if isinstance(one, SliceStack):
        return one.measurements(grid)
    if isinstance(one, Projections):
        if one.kind != "xray":
            raise InputError(
                f"A volume is reconstructed from line integrals; these projections are of kind {one.kind}."
            )
        return ProjectionMeasurements(one.images, one.scan.of_grid(grid))
    if isinstance(one, Measurement):
        if isinstance(one, ProjectionMeasurements) and one.scan.shape != grid.shape:
            raise InputError(f"The scan is of a volume of shape {one.scan.shape}, the grid has {grid.shape}.")
        return one
    if scan is None:
        raise InputError(_NO_SCAN)
    return ProjectionMeasurements(one, scan.of_grid(grid))


def isotropic_grid(grid: Grid, axis: int) -> Grid:
    """Return the grid over the same extent with the voxel size along an axis reduced to that across the axis.

    Examples
    --------
    >>> import numpy as np
    >>> from napari_gsvolume import Grid
    >>> from napari_gsvolume.reconstruction import isotropic_grid
    >>> isotropic_grid(Grid((4, 16, 16), np.diag([4.0, 1, 1, 1])), axis=0).shape
    (16, 16, 16)
    """
    size = grid.voxel_size
    factors = [1.0] * 3
    factors[axis] = max(float(size[axis] / np.delete(size, axis).min()), 1.0)
    return grid.resampled(factors)


def slice_axis(grid: Grid) -> int:
    """Return the axis with the largest voxel spacing, along which slices are stacked as a rule."""
    return int(grid.voxel_size.argmax())


def _most_complete_axis(array: Float32Array) -> int:
    finite = np.isfinite(array)
    return int(np.argmax([finite.all(across).mean() for across in ((1, 2), (0, 2), (0, 1))]))
