"""What was measured of a volume, as linear maps from its voxels: projections, and slices of any orientation.

Volumes are relative here: intensities over the volume's `unit`, lengths over its smallest voxel side, so that numbers
like the strength of a prior mean the same for all.
"""

from __future__ import annotations

import math
import warnings
from typing import Protocol

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
from ..tomography.voxel_projector import STEP, back_project, project
from .noise_estimation import estimated_variance

FWHM = 2 * math.sqrt(2 * math.log(2))
"""Full width at half maximum of a Gaussian of standard deviation one."""
LEAST_DEVIATION = 1e-3
"""Of the largest line integral; projections are trusted no better: rays through voxels are approximations, too."""
LEAST_SLICE_DEVIATION = 0.005
"""Of the span of the intensities of slices."""
_LEAST_REACH = 0.5
"""Voxels of slices count if so much of their profile lies in the volume."""
TRUST = 0.03
"""Part of a variance that counts, or the prior would smooth away what noise only covers; 0.01 to 0.3 are as good."""


class Measurement(Protocol):
    """A linear map of a relative volume, what was measured of it, and how sure that is."""

    values: Tensor

    @property
    def precision(self) -> Tensor | float:
        """One over the variance of each value."""

    def unit(self) -> float:
        """Return about the largest intensity of the volume."""

    def scale(self, unit: float) -> None:
        """Make the values relative to an intensity."""

    def start(self) -> Tensor | None:
        """Return a relative volume to begin with, if this is good for more than least squares are."""

    def forward(self, volume: Tensor) -> Tensor:
        """Return what would be measured of a volume of shape (Z, Y, X)."""

    def adjoint(self, values: Tensor) -> Tensor:
        """Return the transpose of `forward` applied to values."""


class Projected:
    """X-ray projections.

    Parameters
    ----------
    images : array_like, (K, V, U)
        Line integrals, intensity times mm.
    scan : Scan
    variance : array_like, optional
        Of the images' noise, likewise; estimated from the images if not given.

    Raises
    ------
    ValueError
        If the images do not fit the scan, are not finite, or are the same everywhere.
    """

    def __init__(self, images: ArrayLike, scan: Scan, variance: ArrayLike | None = None) -> None:
        array = np.asarray(images, np.float64)
        expected = scan.image_shape
        if array.shape != expected:
            raise InputError(
                f"The geometry is of {expected[0]} views of {expected[2]} x {expected[1]} pixels; the projections are "
                f"{' x '.join(map(str, array.shape))} (views, v, u)."
            )
        bad = int((~np.isfinite(array)).sum())
        if bad:
            raise InputError(f"{bad:,} pixels of the projections are NaN or infinite; mend them first.")
        if not array.max() > array.min():
            raise InputError("The projections are the same everywhere: there is nothing to recover.")
        self.scan, self._images = scan, array
        self._side = float(scan.voxel_size.min())
        self._map = _planes(scan)
        self._variance = estimated_variance(array) if variance is None else np.broadcast_to(variance, expected)
        self.scale(1.0)

    def unit(self) -> float:
        """Return about the largest intensity: that of a volume constant in the rays' middle third."""
        chord = self.scan.voxel_size * self.scan.shape
        return float(np.quantile(np.abs(self._images), 0.98)) / (float(np.median(chord)) / 2)

    def scale(self, unit: float) -> None:
        """Make the values relative to an intensity."""
        self._factor = factor = 1 / (unit * self._side)
        self.values = torch.from_numpy((self._images * factor).astype(np.float32))
        least = LEAST_DEVIATION * np.abs(self._images).max()
        variance = factor**2 * TRUST * np.maximum(self._variance, least**2)
        self.precision = torch.from_numpy((1 / variance).astype(np.float32))

    def start(self) -> None:
        """Return None: few projections alone suggest nothing."""

    def in_units(self, values: Tensor) -> NDArray[np.float32]:
        """Return relative values as line integrals, intensity times mm, like those measured."""
        return np.asarray((values / self._factor).numpy(), np.float32)

    def forward(self, volume: Tensor) -> Tensor:
        """Return the projections of a relative volume, ``(K, V, U)``."""
        if self._map is None:
            return torch.from_numpy(project(volume.numpy(), self.scan, step=2 * STEP)) / self._side
        matrix, _, rows = self._map
        planes = volume.flatten(1).T if rows is None else (rows @ volume.flatten(1)).T  # (YX, V)
        images = matrix @ planes.contiguous()  # (K U, V)
        return images.reshape(len(self.scan), -1, images.shape[1]).transpose(1, 2) / self._side

    def adjoint(self, values: Tensor) -> Tensor:
        """Return the back-projection of images, ``(Z, Y, X)``."""
        if self._map is None:
            return torch.from_numpy(back_project(values.numpy(), self.scan, step=2 * STEP)) / self._side
        _, matrix, rows = self._map
        planes = (matrix @ values.transpose(1, 2).reshape(-1, values.shape[1]).contiguous()).T
        return (planes if rows is None else rows.T @ planes).reshape(self.scan.shape) / self._side


def _planes(scan: Scan) -> tuple[Tensor, Tensor, Tensor | None] | None:
    """Return a sparse matrix that projects a plane z to all views, its transpose, and how rows of pixels mix planes.

    That is all there is to a parallel beam across z, the same for each plane and many times as fast as rays one by one;
    None for any other. Rows are None where every row of pixels sees just one plane.
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
        step = STEP * scan.voxel_size.min()
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


class Sliced:
    """Slices: samples of the volume, or of it blurred along the normal of thick slices.

    Parameters
    ----------
    slices : array_like, (Z, Y, X)
        A stack of slices, along its first axis. NaN was not measured.
    grid : Grid
        Where they are in the world.
    volume_grid : Grid
        Of the volume to recover.
    thickness : float
        Full width at half maximum of the slice profile, a Gaussian, in world units; 0 for samples.
    variance : float
        Of the noise.
    """

    def __init__(
        self, slices: ArrayLike, grid: Grid, volume_grid: Grid, *, thickness: float = 0.0, variance: float = 0.0
    ) -> None:
        array = np.asarray(slices, np.float64)
        if array.shape != grid.shape or array.ndim != 3:
            raise InputError(f"The slices are of shape {array.shape}, their grid of {grid.shape}; both have 3 axes.")
        known = np.isfinite(array)
        if not known.any():
            raise InputError("Not a single voxel of the slices is finite: there is nothing to recover.")
        self._slices, self._known, self._grid, self._volume_grid = array, known, grid, volume_grid
        matrix = _profile_matrix(np.argwhere(known), grid, volume_grid, thickness)
        # What lies outside of the volume says nothing of it; at its faces, only the part of a profile inside counts.
        reach = np.asarray(matrix.sum(1)).ravel()
        inside = reach >= _LEAST_REACH
        if not inside.any():
            raise InputError("No voxel of the slices lies in the volume that is to be recovered.")
        matrix = scipy.sparse.csr_matrix(scipy.sparse.diags(1 / reach[inside]) @ matrix[inside])
        self._measured, self._variance = array[known][inside], variance
        self._matrix, self._adjoint_matrix = _sparse(matrix), _sparse(matrix.T.tocsr())
        self.scale(1.0)

    def unit(self) -> float:
        """Return the span of the measured intensities."""
        return float(np.ptp(self._measured)) or 1.0

    def scale(self, unit: float) -> None:
        """Make the values relative to an intensity."""
        self._unit = unit
        self.values = torch.from_numpy((self._measured / unit).astype(np.float32))
        self.precision = 1 / (TRUST * self._variance / unit**2 + LEAST_SLICE_DEVIATION**2)

    def start(self) -> Tensor | None:
        """Return the cubic spline through the whole slices there are; None if there are fewer than two."""
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
        """Return the measured voxels of a relative volume, ``(M,)``."""
        return (self._matrix @ volume.reshape(-1, 1))[:, 0]

    def adjoint(self, values: Tensor) -> Tensor:
        """Return the transpose, ``(Z, Y, X)``."""
        return (self._adjoint_matrix @ values[:, None]).reshape(self._volume_grid.shape)


def _profile_matrix(
    places: NDArray[np.intp], grid: Grid, volume_grid: Grid, thickness: float
) -> scipy.sparse.csr_matrix[np.float64]:
    """Return how voxels at `places` of a stack (M, 3) are made up of those of the volume."""
    to_volume = np.linalg.solve(volume_grid.affine, grid.affine)
    A, shift = to_volume[:-1, :-1], to_volume[:-1, -1]
    # The profile runs along the normal of the slices, which is across their rows and columns in the world.
    across = np.cross(grid.affine[:-1, 1], grid.affine[:-1, 2])
    normal = np.linalg.solve(volume_grid.affine[:-1, :-1], across / np.linalg.norm(across))  # voxels a world unit
    weights, offsets = np.ones(1), np.zeros(1)
    if thickness > 0:
        sigma = thickness / FWHM
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
    """Return the matrix that sums the multilinear interpolant of a grid over points ``(R, S, D)``, zeros around it.

    Each of the S points of a row counts with its share.
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
    """Return a sparse matrix of torch's, whose products use all cores."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "Sparse CSR tensor support is in beta state", "invariant checks are disabled"
        return torch.sparse_csr_tensor(
            torch.from_numpy(matrix.indptr.astype(np.int64)), torch.from_numpy(matrix.indices.astype(np.int64)),
            torch.from_numpy(matrix.data.astype(np.float32)), size=matrix.shape,
        )  # fmt: skip
