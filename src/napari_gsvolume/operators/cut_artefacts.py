"""Visibility of the surfaces at which ellipsoids are cut in the residual.

A sum over the ellipsoids that contain a voxel jumps where a voxel's neighbour is in another set of ellipsoids. Such
pairs of neighbours are found exactly, and the residual's differences across them compared with those elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from ..kernels import splat_flat
from .gaussian_sum import Gaussians

CONTROLS = (0.8, 1.2)
"""Radii, relative to k, of the control surfaces, where nothing is cut."""


@dataclass(frozen=True)
class SurfaceArtefact:
    """Steps of the residual on the surfaces of ellipsoids, relative to those elsewhere.

    A ratio is nan where there is nothing to compare: no pair of voxels on a surface, none off it, or no steps at all;
    it is infinite if there are steps on surfaces only.

    Attributes
    ----------
    on_surface, elsewhere : float
        Mean squared difference of the residual between neighbouring voxels with and without a surface between them.
    ratio : float
        ``on_surface / elsewhere``.
    control_ratio : float
        The mean of that ratio for the ellipsoids at `CONTROLS` times the radius. Gaussians gather where the volume has
        edges, where the residual is steep anyway.
    excess : float
        ``ratio / control_ratio``: about 1 if the cuts do not show.
    share : float
        Fraction of the pairs of neighbouring voxels with a surface between them.
    """

    on_surface: float
    elsewhere: float
    ratio: float
    control_ratio: float
    excess: float
    share: float


def cut_surfaces(gaussians: Gaussians, shape: Sequence[int], k: float) -> list[NDArray[np.bool_]]:
    """Return where an ellipsoid contains just one of two neighbouring voxels.

    Parameters
    ----------
    gaussians : Gaussians
        Gaussians; their weights are ignored.
    shape : sequence of int
        Shape of the grid, D axes.
    k : float
        Radius of the ellipsoids in standard deviations.

    Returns
    -------
    list of ndarray, bool
        For each axis, the pairs of neighbours along it: `shape`, one shorter along that axis.
    """
    # Every Gaussian gets a random number of 64 bits. Integer sums of them, modulo 2^64, are exact: voxels in the same
    # ellipsoids have the same sum, and others the same one with a probability of 2^-64.
    limits = np.iinfo(np.int64)
    names = np.random.default_rng(0).integers(limits.min, limits.max, len(gaussians.means), endpoint=True)
    amounts = torch.from_numpy(names).to(gaussians.means.device)
    sums = splat_flat(gaussians.means, gaussians.factors, amounts, shape, k).cpu().numpy()
    pairs = (_pairs(sums, axis) for axis in range(sums.ndim))
    return [one != other for one, other in pairs]


def surface_artefact(residual: ArrayLike, gaussians: Gaussians, k: float) -> SurfaceArtefact:
    """Measure how much the surfaces of the ellipsoids of radius k show in a residual.

    Parameters
    ----------
    residual : array_like or Tensor
        Target minus prediction, a grid of D axes.
    gaussians : Gaussians
    k : float
        Radius of the ellipsoids in standard deviations.

    Returns
    -------
    SurfaceArtefact
    """
    energies = _energies(np.asarray(residual))
    on_surface, elsewhere, share = _compare(energies, cut_surfaces(gaussians, np.shape(residual), k))
    ratio = _ratio(on_surface, elsewhere)
    controls = (cut_surfaces(gaussians, np.shape(residual), factor * k) for factor in CONTROLS)
    control_ratio = sum(_ratio(*_compare(energies, surfaces)[:2]) for surfaces in controls) / len(CONTROLS)
    return SurfaceArtefact(on_surface, elsewhere, ratio, control_ratio, _ratio(ratio, control_ratio), share)


def artefact_map(residual: ArrayLike, gaussians: Gaussians, k: float) -> NDArray[np.float32]:
    """Return where the surfaces show: the residual's squared steps across them, 0 away from them.

    Parameters
    ----------
    residual, gaussians, k
        As in `surface_artefact`.

    Returns
    -------
    ndarray, the residual's shape, float32
        Each squared step is shared equally by the two voxels beside it, so that the map sums up to all of them.
    """
    grid = np.asarray(residual)
    shown = np.zeros(grid.shape)
    surfaces = cut_surfaces(gaussians, grid.shape, k)
    for axis, (energy, surface) in enumerate(zip(_energies(grid), surfaces, strict=True)):
        for side in _pairs(shown, axis):
            side += energy * surface / 2
    return shown.astype(np.float32)


def _pairs(grid: NDArray[Any], axis: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return views of the first and the second voxels of all pairs of neighbours along an axis."""
    moved = np.moveaxis(grid, axis, 0)
    return np.moveaxis(moved[:-1], 0, axis), np.moveaxis(moved[1:], 0, axis)


def _energies(residual: NDArray[Any]) -> list[NDArray[np.float64]]:
    """Return the squared differences of neighbours along each axis."""
    return [np.diff(residual.astype(np.float64), axis=axis) ** 2 for axis in range(residual.ndim)]


def _compare(energies: list[NDArray[np.float64]], surfaces: list[NDArray[np.bool_]]) -> tuple[float, float, float]:
    """Return the mean energies on surfaces and elsewhere (nan where there are no pairs), and the share of the first."""
    pairs = list(zip(energies, surfaces, strict=True))
    on = sum(float(energy[surface].sum()) for energy, surface in pairs)
    off = sum(float(energy[~surface].sum()) for energy, surface in pairs)
    n_on, n = sum(int(surface.sum()) for surface in surfaces), sum(surface.size for surface in surfaces)
    return _ratio(on, n_on), _ratio(off, n - n_on), _ratio(n_on, n)


def _ratio(above: float, below: float) -> float:
    """Return the quotient of numbers that are not negative; nan for 0 / 0, infinite over 0."""
    if below == 0:
        return math.nan if above == 0 or math.isnan(above) else math.inf
    return above / below
