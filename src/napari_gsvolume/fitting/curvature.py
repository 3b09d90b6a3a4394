"""Curvature of the data term: the blocks of single Gaussians, and all of ``J^T J``.

In whitened coordinates (see `napari_gsvolume.operators.gaussian_sum`) a Gaussian's own block of ``J^T J`` is, but for
the factor ``c = int e^2 = pi^(D/2) / |det W|`` and powers of its weight, the same for all: omega-omega 1; a-a w^2/2;
off-diagonal B w^2/4; omega-B_ii w/4; B_ii-B_ii 3w^2/16; B_ii-B_jj w^2/16.
The diagonal of B splits into its trace, which couples with omega in a 2x2 matrix, and the rest, which couples with
nothing; so the block inverts in closed form.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from ..kernels import n_monomials
from ..operators.gaussian_sum import Gaussians, jvp, self_overlap, triangle, vjp
from ..operators.small_matrices import orthogonalised

WEIGHT_FLOOR = 0.02
"""Lower bound of weights in the blocks, relative to the data range: it regularises new Gaussians of weight 0."""
COARSEST_SPACING = 4.0
THINNEST = 0.6
"""Smallest radius that the lattice of the curvature resolves, in its spacings; half of the Gaussians are no thinner."""


class Blocks(Protocol):
    """Symmetric positive definite matrix with one block per Gaussian."""

    @property
    def diagonal(self) -> Tensor:
        """The diagonal, ``(N, K)``."""

    def times(self, step: Tensor) -> Tensor:
        """Return the blocks times a step ``(N, K)``."""

    def solve(self, gradient: Tensor) -> Tensor:
        """Return the inverse blocks times a gradient ``(N, K)``."""


class GaussianBlocks:
    """Block diagonal of ``J^T J``, with one block per Gaussian, and its inverse."""

    def __init__(self, gaussians: Gaussians) -> None:
        self.ndim = gaussians.means.shape[1]
        self.overlap = self_overlap(gaussians)[:, None]  # c, (N, 1)
        sign = torch.where(gaussians.weights < 0, -1.0, 1.0)
        self.weight = (sign * gaussians.weights.abs().clamp_min(WEIGHT_FLOOR))[:, None]
        self._squared_axes = [1 + self.ndim + k for k, (i, j) in enumerate(triangle(self.ndim)) if i == j]

    @property
    def diagonal(self) -> Tensor:
        """The diagonal, ``(N, K)``."""
        D, w = self.ndim, self.weight
        diagonal = (w * w / 4).repeat(1, n_monomials(D))
        diagonal[:, 0] = 1
        diagonal[:, 1 : D + 1] *= 2
        for column in self._squared_axes:
            diagonal[:, column] *= 3 / 4
        scaled: Tensor = self.overlap * diagonal
        return scaled

    def times(self, step: Tensor) -> Tensor:
        """Return the blocks times a step ``(N, K)``."""
        return self._apply(step, inverse=False)

    def solve(self, gradient: Tensor) -> Tensor:
        """Return the inverse blocks times a gradient ``(N, K)``."""
        return self._apply(gradient, inverse=True)

    def _apply(self, v: Tensor, *, inverse: bool) -> Tensor:
        D, w = self.ndim, self.weight
        power = -1 if inverse else 1
        out: Tensor = torch.empty_like(v)
        out[:, 1 : D + 1] = v[:, 1 : D + 1] * (w * w / 2) ** power
        out[:, D + 1 :] = v[:, D + 1 :] * (w * w / 4) ** power
        # The diagonal of B along its unit trace direction, and the rest.
        omega, diagonal = v[:, :1], torch.stack([v[:, column] for column in self._squared_axes], 1)
        trace = diagonal.sum(1, keepdim=True) / math.sqrt(D)
        rest = (diagonal - trace / math.sqrt(D)) * (w * w / 8) ** power
        # Trace and omega share the 2x2 matrix ((1, coupling), (coupling, stiffness)).
        coupling, stiffness = w * math.sqrt(D) / 4, w * w * (D + 2) / 16
        if inverse:
            determinant = stiffness - coupling**2  # w^2 / 8
            new_omega = (stiffness * omega - coupling * trace) / determinant
            new_trace = (trace - coupling * omega) / determinant
        else:
            new_omega = omega + coupling * trace
            new_trace = coupling * omega + stiffness * trace
        out[:, :1] = new_omega
        for column, entry in zip(self._squared_axes, (rest + new_trace / math.sqrt(D)).unbind(1), strict=True):
            out[:, column] = entry
        out *= self.overlap**power
        return out


class Curvature:
    """``J^T J`` by quadrature on a lattice, possibly coarser than the voxels.

    Products of Gaussians are smooth: a lattice of spacing ``radius / THINNEST`` integrates them well enough, at a
    fraction of the cost of the voxels. The curvature only shapes the step (gradient and loss are always exact), so that
    an error of 10 to 30 % is harmless while steps are long. Gaussians too thin for the lattice are thickened to
    `THINNEST` spacings, with an amplitude that keeps their own block.

    Parameters
    ----------
    gaussians : Gaussians
    shape : sequence of int
        Shape of the grid of voxels.
    exact : bool
        True to use the voxels themselves as lattice.
    """

    def __init__(self, gaussians: Gaussians, shape: Sequence[int], *, exact: bool) -> None:
        self.shape, self.gaussians = tuple(shape), gaussians
        self.amplitude = gaussians.weights.new_ones(len(gaussians.weights), 1)
        if exact or not len(gaussians.weights):
            return
        columns, V = orthogonalised(gaussians.factors)  # W V = U diag(s)
        s = columns.norm(dim=1)  # inverse radii, (N, D)
        spacing = min(float((1 / s.amax(1)).median()) / THINNEST, COARSEST_SPACING)
        if spacing <= 1:
            return
        self.shape = tuple(math.ceil(n / spacing) for n in shape)
        spacings = [n / m for n, m in zip(shape, self.shape, strict=True)]
        thickened = (1 / (THINNEST * spacing * s)).clamp_max(1)  # the part of s that is left
        factors, means = (columns * thickened[:, None]) @ V.mT, gaussians.means + 0.5
        for axis, along in enumerate(spacings):
            factors[:, axis] *= along
            means[:, axis] /= along
        self.gaussians = Gaussians(means - 0.5, factors, gaussians.weights)
        # Per Gaussian: the amplitude that keeps int e^2, times the square root of the lattice's cell volume.
        self.amplitude = (thickened.prod(1) * math.prod(spacings)).sqrt()[:, None]

    def times(self, step: Tensor) -> Tensor:
        """Return ``J^T J`` times a step ``(N, K)``."""
        change = jvp(self.gaussians, self.amplitude * step, self.shape)
        curved: Tensor = self.amplitude * vjp(self.gaussians, change)
        return curved
