"""Model of a volume: a sum of weighted Gaussians."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from .errors import InputError
from .grid import Grid
from .kernels import n_monomials, splat
from .kernels.constants import SUPPORT


@dataclass(frozen=True, eq=False)
class GaussianVolume:
    """Volume as a sum of Gaussians, ``f(x) = background + sum_i w_i exp(-|W_i^T (x - mu_i)|^2 / 2)``.

    The function is defined at all real index coordinates; each Gaussian is cut off at `SUPPORT` standard deviations.
    Objects are immutable: operations return new ones.

    Parameters
    ----------
    means : Tensor, (N, D), float32
        Centres ``mu`` in index coordinates of the grid (array axis order (z, y, x), voxel centres at integers).
    factors : Tensor, (N, D, D), float32
        Factors ``W`` of the precisions ``W W^T`` (inverse covariances), 1 / voxel.
    weights : Tensor, (N,), float32
        Height of each Gaussian, in the intensities of the volume; possibly negative.
    grid : Grid
        Grid of the voxels that the Gaussians were fitted to, with D axes (2 or 3).
    background : float
        Value outside of all Gaussians, in the intensities of the volume.
    metadata : dict
        Origin of the Gaussians (settings, metrics), ready for JSON.

    Raises
    ------
    InputError
        If the shapes do not fit each other or a number is not finite; a ValueError.

    See Also
    --------
    fit : Fit Gaussians to a volume.
    load, save : Read and write files.

    Examples
    --------
    >>> import torch
    >>> import napari_gsvolume as gsv
    >>> gaussians = gsv.GaussianVolume(
    ...     torch.tensor([[4.0, 4.0]]), torch.eye(2)[None] / 2, torch.ones(1), gsv.Grid((9, 9))
    ... )
    >>> [f"{value:.3f}" for value in gaussians.evaluate([[4, 4], [4, 6]])]
    ['1.000', '0.607']
    >>> gaussians.sample(scale=2).shape
    (18, 18)
    """

    means: Tensor
    factors: Tensor
    weights: Tensor
    grid: Grid
    background: float = 0.0
    metadata: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        n, ndim = torch.as_tensor(self.weights).numel(), self.grid.ndim
        for name, shape in (("means", (n, ndim)), ("factors", (n, ndim, ndim)), ("weights", (n,))):
            tensor = torch.as_tensor(getattr(self, name), dtype=torch.float32)
            if tensor.shape != shape:
                raise InputError(f"{n} Gaussians in {ndim}D need {name} of shape {shape}; got {tuple(tensor.shape)}.")
            if not torch.isfinite(tensor).all():
                raise InputError(f"The {name} of the Gaussians hold NaN or infinite numbers.")
            object.__setattr__(self, name, tensor)
        if not np.isfinite(self.background):
            raise InputError(f"The background must be finite; got {self.background}.")

    def __len__(self) -> int:
        return len(self.weights)

    def select(self, index: Tensor) -> GaussianVolume:
        """Return the Gaussians at an index (a mask or positions), with the same grid and metadata."""
        return replace(self, means=self.means[index], factors=self.factors[index], weights=self.weights[index])

    @property
    def ndim(self) -> int:
        """Number of axes, 2 or 3."""
        return self.grid.ndim

    @property
    def covariances(self) -> Tensor:
        """Covariance of each Gaussian in squared voxels, ``(N, D, D)``."""
        inverse: Tensor = torch.linalg.inv(self.factors)
        return inverse.mT @ inverse

    def scales_and_quaternions(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return the principal standard deviations and rotations of the Gaussians.

        Returns
        -------
        scales : ndarray, (N, 3)
            Standard deviations along the principal axes, in voxels, largest first.
        quaternions : ndarray, (N, 4)
            Unit quaternions (w, x, y, z), w >= 0, in the convention of 3D Gaussian Splatting: the rotation matrix acts
            on (x, y, z) vectors, and its columns are the principal axes in the order of the scales.

        Raises
        ------
        InputError
            If the Gaussians are not 3D.
        """
        if self.ndim != 3:
            raise InputError(f"Quaternions describe rotations in 3D; these Gaussians are {self.ndim}D.")
        from scipy.spatial.transform import Rotation

        if not len(self):
            return np.zeros((0, 3), np.float32), np.zeros((0, 4), np.float32)
        # W^T = U diag(s) V^T: precision V diag(s^2) V^T. Singular values come largest first, scales are their inverses.
        _, s, Vt = torch.linalg.svd(self.factors.double().mT)
        axes = Vt.mT.flip(-1).flip(-2).numpy()  # (N, 3, 3), columns by falling scale, rows (x, y, z)
        axes = axes * np.where(np.linalg.det(axes) < 0, -1, 1)[:, None, None]  # a rotation, not a reflection
        quaternions = Rotation.from_matrix(axes).as_quat(canonical=True, scalar_first=True)
        return (1 / s.flip(-1)).numpy().astype(np.float32), quaternions.astype(np.float32)

    @classmethod
    def from_scales_and_quaternions(
        cls, means: ArrayLike, scales: ArrayLike, quaternions: ArrayLike, weights: ArrayLike, grid: Grid, **others: Any
    ) -> GaussianVolume:
        """Return 3D Gaussians of `means` ``(N, 3)`` (z, y, x) and the output of `scales_and_quaternions`."""
        from scipy.spatial.transform import Rotation

        sigma = np.asarray(scales, np.float64).reshape(-1, 3)
        if not (sigma > 0).all():
            raise InputError("The scales of Gaussians must be positive.")
        wxyz = np.asarray(quaternions, np.float64).reshape(-1, 4)
        axes = Rotation.from_quat(wxyz, scalar_first=True).as_matrix()[:, ::-1] if len(wxyz) else np.zeros((0, 3, 3))
        return cls(_tensor(means), _tensor(axes / sigma[:, None, :]), _tensor(weights), grid, **others)

    def evaluate(self, points: ArrayLike) -> NDArray[np.float32]:
        """Return f at arbitrary points.

        Parameters
        ----------
        points : array_like, (..., D)
            Index coordinates in array axis order; real numbers, inside or outside of the grid.

        Returns
        -------
        ndarray, (...), float32
            Values in the intensities of the volume.

        Raises
        ------
        InputError
            If the last axis is not D long or a point is not finite.
        """
        from .kernels.points import evaluate

        x = np.asarray(points, dtype=np.float64)
        if x.ndim == 0 or x.shape[-1] != self.ndim:
            raise InputError(f"Points of a {self.ndim}D volume have shape (..., {self.ndim}); got {x.shape}.")
        if not np.isfinite(x).all():
            raise InputError("A point holds NaN or infinite coordinates.")
        means, factors, weights = (t.detach().cpu().double().numpy() for t in (self.means, self.factors, self.weights))
        values = evaluate(means, factors, weights, x.reshape(-1, self.ndim))
        return (values + self.background).reshape(x.shape[:-1]).astype(np.float32)

    def sample(self, grid: Grid | None = None, *, scale: float | Sequence[float] | None = None) -> NDArray[np.float32]:
        """Return f at the voxel centres of a grid.

        Parameters
        ----------
        grid : Grid, optional
            Grid in the same world, in any position and orientation; by default the grid of the Gaussians.
        scale : float or D floats, optional
            Factor on the number of voxels of the own grid along each axis (see `Grid.resampled`).

        Returns
        -------
        ndarray, float32
            Values in the intensities of the volume, in the shape of the grid.

        Raises
        ------
        InputError
            If both `grid` and `scale` are given, or the grid has another number of axes.
        """
        if grid is not None and scale is not None:
            raise InputError("Give a grid or a scale, not both.")
        target = grid if grid is not None else self.grid if scale is None else self.grid.resampled(scale)
        model = self if target == self.grid else self.on_grid(target)
        coefficients = model.weights.new_zeros(len(model), n_monomials(model.ndim))
        coefficients[:, 0] = model.weights
        values = splat(model.means, model.factors, coefficients, target.shape)
        values += self.background
        return values.detach().cpu().numpy()

    def on_grid(self, grid: Grid) -> GaussianVolume:
        """Return the same function of world coordinates, in the index coordinates of another grid."""
        if grid.ndim != self.ndim:
            raise InputError(f"{self.ndim}D Gaussians cannot be put on a {grid.ndim}D grid.")
        new_to_old = np.linalg.solve(self.grid.affine, grid.affine)
        A, shift = new_to_old[:-1, :-1], new_to_old[:-1, -1]
        # x_old = A x_new + shift, so W^T (x_old - mu_old) = (A^T W)^T (x_new - mu_new).
        means = (self.means.double().cpu().numpy() - shift) @ np.linalg.inv(A).T
        factors = A.T @ self.factors.double().cpu().numpy()
        device = self.means.device
        return replace(self, means=_tensor(means).to(device), factors=_tensor(factors).to(device), grid=grid)

    def save(self, path: str | Path) -> None:
        """Write the Gaussians to a file; the suffix decides the format (docs/formats.md).

        Parameters
        ----------
        path : str or Path
            Path ending in ``.safetensors`` (lossless), ``.gsv`` (small, quantised), or ``.ply`` (export for viewers of
            Gaussian splats, which `load` does not read).

        Raises
        ------
        InputError
            If the name ends otherwise, or the Gaussians cannot be written in this format.
        OSError
            If the file cannot be written.
        """
        from .io.gaussians import write_gaussians

        write_gaussians(path, self)

    @classmethod
    def load(cls, path: str | Path) -> GaussianVolume:
        """Read a ``.safetensors`` or ``.gsv`` file of Gaussians.

        Raises
        ------
        FileNotFoundError
            If there is no such file.
        napari_gsvolume.errors.FileFormatError
            If the file is damaged, or was written by another program.
        """
        from .io.gaussians import read_gaussians

        return read_gaussians(path)


def _tensor(values: Any) -> Tensor:
    return torch.as_tensor(values, dtype=torch.float32).clone()


__all__ = ["SUPPORT", "GaussianVolume"]
