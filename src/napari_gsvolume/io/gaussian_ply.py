"""Export of Gaussians to PLY files for viewers of 3D Gaussian Splatting, in the convention of the original program."""

from __future__ import annotations

import os

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..gaussians import GaussianVolume
from ..grid import Grid
from .ply import ply_path, write_vertices

_PROPERTIES = (
    *("x", "y", "z", "nx", "ny", "nz", "f_dc_0", "f_dc_1", "f_dc_2", "opacity"),
    *("scale_0", "scale_1", "scale_2", "rot_0", "rot_1", "rot_2", "rot_3"),
)
_SH_C0 = 0.28209479177387814  # the constant spherical harmonic, 1 / (2 sqrt(pi))
_OPACITIES = (1 / 255, 0.99)  # rasterisers skip splats below the first; at 1 the logit is infinite
_NEGATIVE = (0.15, 0.35, 1.0)  # red, green, blue of negative Gaussians, distinct from all greys


def write_ply(path: str | os.PathLike[str], gaussians: GaussianVolume) -> None:
    """Write 3D Gaussians for viewers of 3D Gaussian Splatting; an existing file is replaced in one step, or not at all.

    Positions, widths and rotations are those of the Gaussians, in world units, in the order (x, y, z).
    Viewers do not show the volume itself: they blend splats by opacity instead of adding them, so that densities
    saturate and negative Gaussians do not subtract. Therefore

    - opacity is the height of a Gaussian over that of the largest, ``|w| / max |w|``, within [1 / 255, 0.99];
    - a positive Gaussian is grey by the intensity ``background + w``, from black at the smallest to white at the
      largest of the background and the values of the volume at the centres of all Gaussians;
    - a negative one is blue, and covers what lies behind it like any other.

    The grid, its units, the background and the metadata are not stored; `GaussianVolume.save` keeps them.

    Parameters
    ----------
    path : str or path-like
        Path ending in ``.ply``.
    gaussians : GaussianVolume
        3D Gaussians, at least one.

    Raises
    ------
    ValueError
        If the file's name ends otherwise, or there is no Gaussian, or they are 2D, or one is infinitely wide or thin.
    OSError
        If the folder does not exist or cannot be written to (FileNotFoundError, PermissionError, ...).

    Notes
    -----
    Binary little endian, one element ``vertex`` of float32: ``x y z``, ``nx ny nz`` (zero, as the first program writes
    them), ``f_dc_0..2`` with colour = 0.5 + 0.28209479 f_dc, ``opacity`` as logit, ``scale_0..2`` as natural logarithms
    of standard deviations, ``rot_0..3`` a unit quaternion (w, x, y, z) whose matrix has the principal axes as columns.
    There are no ``f_rest``: colours do not depend on the direction of view (``sh_degree`` 0).
    """
    path = ply_path(path)
    if gaussians.ndim != 3:
        raise InputError(f"A PLY file of splats holds Gaussians in 3D; these are {gaussians.ndim}D.")
    if not len(gaussians):
        raise InputError("There are no Gaussians to write to a PLY file, and viewers need one at least.")

    world = gaussians.on_grid(Grid(gaussians.grid.shape))  # index coordinates of a unit grid are those of the world
    with np.errstate(divide="ignore", over="ignore"):  # refused below
        scales, quaternions = world.scales_and_quaternions()
        log_scales = np.log(scales)
    if not np.isfinite(log_scales).all():
        raise InputError("A Gaussian is infinitely wide or thin, which a PLY file of splats cannot hold.")
    colours, opacities = _appearance(gaussians)

    table = np.zeros((len(gaussians), len(_PROPERTIES)), np.float32)
    table[:, 0:3] = world.means.detach().cpu().numpy()[:, ::-1]
    table[:, 6:9] = (colours - 0.5) / _SH_C0
    table[:, 9] = np.log(opacities) - np.log1p(-opacities)
    table[:, 10:13] = log_scales
    table[:, 13:17] = quaternions
    write_vertices(path, _PROPERTIES, table)


def _appearance(gaussians: GaussianVolume) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return red, green, blue in [0, 1], ``(N, 3)``, and opacities, ``(N,)``."""
    weights = gaussians.weights.detach().cpu().double().numpy()
    heights = abs(weights)
    opacities = np.clip(heights / (heights.max() or 1), *_OPACITIES)
    # The values at the centres give about the range of all voxels, at a fraction of their number.
    values = gaussians.evaluate(gaussians.means.detach().cpu().numpy())
    low, high = min(gaussians.background, values.min()), max(gaussians.background, values.max())
    grey = np.clip((gaussians.background + weights - low) / ((high - low) or 1), 0, 1)
    colours = np.where(weights[:, None] < 0, _NEGATIVE, grey[:, None])
    return colours, opacities
