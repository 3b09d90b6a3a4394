"""Linear measurements of a volume: projections, and slices of any orientation, each with its adjoint.

Volumes are normalized: intensities are relative to a unit, lengths to the smallest side of a voxel, so that parameters
such as the noise level of a denoiser do not depend on the data.
"""

from __future__ import annotations

import math
import warnings
from typing import Protocol, runtime_checkable

import numpy as np
import scipy.sparse
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.interpolate import make_interp_spline
from scipy.ndimage import map_coordinates
from torch import Tensor

from ..errors import InputError
from ..grid import Grid
from ..tomography.scan import Scan
from ..tomography.voxel_projector import RAY_STEP, back_project, project_voxels
from .noise_estimation import estimate_variance

FWHM_PER_SIGMA = 2 * math.sqrt(2 * math.log(2))
"""Full width at half maximum of a Gaussian of standard deviation one."""
MIN_RELATIVE_DEVIATION = 1e-3
"""Smallest standard deviation of projections, relative to the largest line integral: error of the ray casting."""
MIN_RELATIVE_SLICE_DEVIATION = 0.005
"""Standard deviation of slices without noise, relative to their range of intensities."""
_MIN_PROFILE_FRACTION = 0.5
"""Smallest fraction of the slice profile of a voxel inside the volume, below which the voxel is ignored."""
VARIANCE_SCALE = 0.03
"""Factor on the noise variance, against over-smoothing by the prior; results are similar from 0.01 to 0.3."""


@runtime_checkable
class Measurement(Protocol):
    """Linear measurement of a normalized volume, with its values and their precision.

    Attributes
    ----------
    values : Tensor
        Measured values, relative to the unit of intensity.
    """

    values: Tensor

    @property
    def precision(self) -> Tensor | float:
        """Inverse variance of each value."""

    def intensity_scale(self) -> float:
        """Return an estimate of the largest intensity of the volume."""

    def normalize(self, unit: float) -> None:
        """Make the values relative to a unit of intensity."""

    def initial_volume(self) -> Tensor | None:
        """Return a normalized volume to start from; None if a least squares solution is as good."""

    def forward(self, volume: Tensor) -> Tensor:
        """Return the predicted values of a normalized volume (Z, Y, X)."""

    def adjoint(self, values: Tensor) -> Tensor:
        """Return the transpose of `forward` applied to values."""


class ProjectionMeasurements:
    """X-ray projections as a linear measurement.

    Parameters
    ----------
    images : array_like, (K, V, U)
        Line integrals, intensity times mm.
    scan : Scan
        Acquisition geometry.
    variance : array_like, (K, V, U), optional
        Noise variance of the images, (intensity times mm) squared; estimated from the images if omitted.

    Raises
    ------
    ValueError
        If the images do not match the scan, are not finite, or are constant.

    Examples
    --------
    >>> from napari_gsvolume import phantoms
    >>> from napari_gsvolume.reconstruction import ProjectionMeasurements
    >>> from napari_gsvolume.tomography import preset_scan, project
    >>> volume, _ = phantoms.vessel_phantom(16)
    >>> projections = project(volume, preset_scan("circle", volume.shape, 1.0, views=4))
    >>> ProjectionMeasurements(projections.images, projections.scan, variance=0.01).values.shape
    torch.Size([4, 16, 23])
    """

    def __init__(self, images: ArrayLike, scan: Scan, variance: ArrayLike | None = None) -> None:
        array = np.asarray(images, np.float64)
        expected = scan.image_shape
        if array.shape != expected:
            raise InputError(
                f"The geometry has {expected[0]} views of {expected[2]} x {expected[1]} pixels; the projections are "
                f"{' x '.join(map(str, array.shape))} (views, v, u)."
            )
        bad = int((~np.isfinite(array)).sum())
        if bad:
            raise InputError(f"{bad:,} pixels of the projections are NaN or infinite; fix or mask them first.")
        if not array.max() > array.min():
            raise InputError("The projections are the same everywhere: there is nothing to reconstruct.")
        self.scan, self._images = scan, array
        self._side = float(scan.voxel_size.min())
        self._matrices = _slicewise_matrices(scan)
        self._variance = estimate_variance(array) if variance is None else np.broadcast_to(variance, expected)
        self.normalize(1.0)

    @property
    def images(self) -> NDArray[np.float32]:
        """Measured line integrals, intensity times mm, ``(K, V, U)``."""
        return np.asarray(self._images, np.float32)

    def intensity_scale(self) -> float:
        """Return an estimate of the largest intensity: that of an object half as long as the volume along each ray."""
        chord = self.scan.voxel_size * self.scan.shape
        return float(np.quantile(np.abs(self._images), 0.98)) / (float(np.median(chord)) / 2)

    def normalize(self, unit: float) -> None:
        """Make the values relative to a unit of intensity."""
        self._factor = factor = 1 / (unit * self._side)
        self.values = torch.from_numpy((self._images * factor).astype(np.float32))
        least = MIN_RELATIVE_DEVIATION * np.abs(self._images).max()
        variance = factor**2 * VARIANCE_SCALE * np.maximum(self._variance, least**2)
        self.precision = torch.from_numpy((1 / variance).astype(np.float32))

    def initial_volume(self) -> None:
        """Return None: a least squares solution is as good as any other."""

    def line_integrals(self, values: Tensor) -> NDArray[np.float32]:
        """Return relative values as line integrals, intensity times mm."""
        return np.asarray((values / self._factor).numpy(), np.float32)

    def forward(self, volume: Tensor) -> Tensor:
        """Return the projections of a normalized volume, ``(K, V, U)``."""
        if self._matrices is None:
            return torch.from_numpy(project_voxels(volume.numpy(), self.scan, step=2 * RAY_STEP)) / self._side
        matrix, _, rows = self._matrices
        planes = volume.flatten(1).T if rows is None else (rows @ volume.flatten(1)).T  # (YX, V)
        images = matrix @ planes.contiguous()  # (K U, V)
        return images.reshape(len(self.scan), -1, images.shape[1]).transpose(1, 2) / self._side

    def adjoint(self, values: Tensor) -> Tensor:
        """Return the back-projection of images, ``(Z, Y, X)``."""
        if self._matrices is None:
            return torch.from_numpy(back_project(values.numpy(), self.scan, step=2 * RAY_STEP)) / self._side
        _, matrix, rows = self._matrices
        planes = (matrix @ values.transpose(1, 2).reshape(-1, values.shape[1]).contiguous()).T
        return (planes if rows is None else rows.T @ planes).reshape(self.scan.shape) / self._side


def _slicewise_matrices(scan: Scan) -> tuple[Tensor, Tensor, Tensor | None] | None:
    """Return the sparse system matrix of a plane z, its transpose, and the matrix from planes to detector rows.

    A parallel beam perpendicular to z has the same system matrix for every plane, from the plane to its sinogram, which
    is many times as fast as ray casting; None for any other scan. The last matrix is None where every detector row
    sees exactly one plane.
    """
    across = np.abs(scan.sources[:, 0]).max() < 1e-9 and np.abs(scan.u[:, 0]).max() < 1e-9
    upright = np.abs(scan.v[:, 1:]).max() < 1e-9
    level = np.ptp(scan.v[:, 0]) < 1e-9 and np.ptp(scan.centres[:, 0]) < 1e-9
    if scan.beam != "parallel" or not (across and upright and level):
        return None
    nz, ny, nx = scan.shape
    blocks = []
    for k in range(len(scan)):
        way = scan.sources[k, 1:] / np.linalg.norm(scan.sources[k, 1:])
        offsets = np.arange(scan.pixels[0]) - (scan.pixels[0] - 1) / 2
        pixels = scan.centres[k, 1:] + offsets[:, None] * scan.u[k, 1:]  # (U, 2), mm
        reach = float(np.hypot(ny * scan.voxel_size[1], nx * scan.voxel_size[2])) / 2 + scan.voxel_size.max()
        step = RAY_STEP * scan.voxel_size.min()
        along = (np.arange(math.ceil(2 * reach / step)) + 0.5) * step - reach
        start = pixels - (pixels @ way)[:, None] * way
        points = start[:, None] + along[:, None] * way  # (U, S, 2)
        index = points / scan.voxel_size[1:] + (np.array([ny, nx]) - 1) / 2
        blocks.append(step * _linear_weights(index, (ny, nx)))
    matrix = scipy.sparse.vstack(blocks, format="csr")
    places = (scan.centres[0, 0] + (np.arange(scan.pixels[1]) - (scan.pixels[1] - 1) / 2) * scan.v[0, 0]) / (
        scan.voxel_size[0]
    ) + (nz - 1) / 2
    rows = _linear_weights(places[:, None, None], (nz,)).toarray()
    same = rows.shape[0] == rows.shape[1] and np.allclose(rows, np.eye(nz))
    return _sparse(matrix), _sparse(matrix.T.tocsr()), None if same else torch.from_numpy(rows.astype(np.float32))


class SliceMeasurements:
    """Slices as a linear measurement: samples of the volume, blurred by the slice profile along the slice normal.

    Parameters
    ----------
    slices : array_like, (Z, Y, X)
        Stack of slices along the first axis. NaN marks unknown voxels.
    grid : Grid
        Grid of the stack.
    volume_grid : Grid
        Grid of the volume to reconstruct, in the same world.
    thickness : float
        Full width at half maximum of the Gaussian slice profile, in world units; 0 for samples.
    variance : float
        Noise variance of the intensities.

    Raises
    ------
    ValueError
        If slices and grid have different shapes, no voxel is finite, or no voxel lies in the volume.

    Examples
    --------
    >>> import numpy as np
    >>> from napari_gsvolume import Grid
    >>> from napari_gsvolume.reconstruction import SliceMeasurements
    >>> stack = Grid((2, 8, 8), np.diag([4.0, 1, 1, 1]))
    >>> SliceMeasurements(np.ones((2, 8, 8)), stack, Grid((8, 8, 8)), thickness=4.0).values.shape
    torch.Size([128])
    """

    def __init__(
        self, slices: ArrayLike, grid: Grid, volume_grid: Grid, *, thickness: float = 0.0, variance: float = 0.0
    ) -> None:
        array = np.asarray(slices, np.float64)
        if array.shape != grid.shape or array.ndim != 3:
            raise InputError(f"The slices have shape {array.shape}, their grid has {grid.shape}; both need 3 axes.")
        known = np.isfinite(array)
        if not known.any():
            raise InputError("No voxel of the slices is finite: there is nothing to reconstruct.")
        self._slices, self._known, self._grid, self._volume_grid = array, known, grid, volume_grid
        matrix = _profile_matrix(np.argwhere(known), grid, volume_grid, thickness)
        # Voxels outside of the volume carry no information; at its faces the profile is normalized to its part inside.
        reach = np.asarray(matrix.sum(1)).ravel()
        inside = reach >= _MIN_PROFILE_FRACTION
        if not inside.any():
            raise InputError("No voxel of the slices lies in the volume to reconstruct.")
        matrix = scipy.sparse.csr_matrix(scipy.sparse.diags(1 / reach[inside]) @ matrix[inside])
        self._measured, self._variance = array[known][inside], variance
        self._matrix, self._adjoint_matrix = _sparse(matrix), _sparse(matrix.T.tocsr())
        self.normalize(1.0)

    @property
    def volume_grid(self) -> Grid:
        """Grid of the volume to reconstruct."""
        return self._volume_grid

    def intensity_scale(self) -> float:
        """Return the range of the measured intensities."""
        return float(np.ptp(self._measured)) or 1.0

    def normalize(self, unit: float) -> None:
        """Make the values relative to a unit of intensity."""
        self._unit = unit
        self.values = torch.from_numpy((self._measured / unit).astype(np.float32))
        self.precision = 1 / (VARIANCE_SCALE * self._variance / unit**2 + MIN_RELATIVE_SLICE_DEVIATION**2)

    def initial_volume(self) -> Tensor | None:
        """Return the cubic spline through the complete slices; None if there are fewer than two."""
        whole = np.flatnonzero(self._known.all((1, 2)))
        if len(whole) < 2:
            return None
        along = np.arange(whole[0], whole[-1] + 1)
        spline = make_interp_spline(whole, self._slices[whole], k=min(3, len(whole) - 1), axis=0)
        stack = np.clip(spline(along), self._measured.min(), self._measured.max())
        to_slices = np.linalg.solve(self._grid.affine, self._volume_grid.affine)
        places = to_slices[:-1, :-1] @ np.indices(self._volume_grid.shape).reshape(3, -1) + to_slices[:-1, -1:]
        places[0] -= whole[0]
        values = map_coordinates(stack, places, order=1, mode="nearest")
        return torch.from_numpy((values.reshape(self._volume_grid.shape) / self._unit).astype(np.float32))

    def forward(self, volume: Tensor) -> Tensor:
        """Return the predicted voxels of the slices of a normalized volume, ``(M,)``."""
        return (self._matrix @ volume.reshape(-1, 1))[:, 0]

    def adjoint(self, values: Tensor) -> Tensor:
        """Return the transpose, ``(Z, Y, X)``."""
        return (self._adjoint_matrix @ values[:, None]).reshape(self._volume_grid.shape)


def _profile_matrix(
    places: NDArray[np.intp], grid: Grid, volume_grid: Grid, thickness: float
) -> scipy.sparse.csr_matrix[np.float64]:
    """Return the matrix from voxels of the volume to voxels of a stack, at index positions `places` (M, 3)."""
    to_volume = np.linalg.solve(volume_grid.affine, grid.affine)
    A, shift = to_volume[:-1, :-1], to_volume[:-1, -1]
    # The profile runs along the slice normal, perpendicular to rows and columns in the world.
    across = np.cross(grid.affine[:-1, 1], grid.affine[:-1, 2])
    normal = np.linalg.solve(volume_grid.affine[:-1, :-1], across / np.linalg.norm(across))  # voxels per world unit
    weights, offsets = np.ones(1), np.zeros(1)
    if thickness > 0:
        sigma = thickness / FWHM_PER_SIGMA
        count = 2 * math.ceil(2.5 * sigma * float(np.linalg.norm(normal)) / 0.5) + 1  # every half a voxel
        t = np.linspace(-2.5, 2.5, count)
        weights, offsets = np.exp(-t * t / 2), t * sigma
        weights /= weights.sum()
    centres = places @ A.T + shift  # (M, 3)
    points = centres[:, None] + offsets[:, None] * normal  # (M, S, 3)
    return _linear_weights(points, volume_grid.shape, weights)


def _linear_weights(
    points: NDArray[np.float64], shape: tuple[int, ...], shares: NDArray[np.float64] | float = 1.0
) -> scipy.sparse.csr_matrix[np.float64]:
    """Return the matrix that sums the multilinear interpolant of a zero-padded grid over points ``(R, S, D)``.

    The S points of a row are weighted by `shares`.
    """
    rows, _, ndim = points.shape
    low = np.floor(points).astype(np.int64)
    rest = points - low
    row = np.repeat(np.arange(rows), points.shape[1])
    parts = []
    for corner in np.ndindex(*(2,) * ndim):
        index = (low + corner).reshape(-1, ndim)
        weight = (np.where(corner, rest, 1 - rest).prod(-1) * shares).ravel()
        inside = ((index >= 0) & (index < shape)).all(1) & (weight > 0)
        columns = np.ravel_multi_index(tuple(index[inside].T), shape)
        parts.append((weight[inside], row[inside], columns))
    weights, at, columns = (np.concatenate(part) for part in zip(*parts, strict=True))
    return scipy.sparse.coo_matrix((weights, (at, columns)), (rows, math.prod(shape))).tocsr()


def _sparse(matrix: scipy.sparse.csr_matrix[np.float64]) -> Tensor:
    """Return a sparse matrix of torch, which multiplies on all cores."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "Sparse CSR tensor support is in beta state", "invariant checks are disabled"
        return torch.sparse_csr_tensor(
            torch.from_numpy(matrix.indptr.astype(np.int64)),
            torch.from_numpy(matrix.indices.astype(np.int64)),
            torch.from_numpy(matrix.data.astype(np.float32)),
            size=matrix.shape,
        )
