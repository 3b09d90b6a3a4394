"""Data terms with values of voxels in place of weights: two other ways in which Gaussians support a voxel.

Gaussians have no weights here (those given are ignored): ``G(x) = sum_i e_i(x)``. The volume's value p_j at voxel j is
the factor, and its position x_j stands in the exponent. `Neighbourhood` sums over the voxels near the predicted one,
`Ellipsoid` over those inside of the ellipsoids that contain it::

    neighbourhood:  q(x) = sum_{j: |x_j - x| <= radius} p_j G(x_j)
    ellipsoid:      q(x) = sum_i 1_i(x) A_i,    A_i = sum_j 1_i(x_j) p_j e_i(x_j),    1_i(x) = [|W_i^T (x - mu_i)| < k]

Outside of the grid there is nothing. Normalised, q is divided by the same sum with 1 in place of p_j: then the p_j are
averaged with weights that sum to one, and q is 0 where no Gaussian is near.

Steps are whitened ones ``(omega, a, B)`` (see `napari_gsvolume.operators.gaussian_sum`); omega changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property

import torch
from scipy.fft import next_fast_len
from scipy.special import gammainc
from torch import Tensor

from ..errors import InputError
from ..kernels import gather, gather_flat, splat_flat
from ..kernels.constants import SUPPORT
from .gaussian_sum import Gaussians, jvp, predict, symmetric, upper, vjp
from .support_blocks import OwnBlocks, outer, shape_blocks

NORMALISED_SIGMA = 0.5
"""Normalised, first radii in mean distances between Gaussians: the total support does not matter then."""
_LEAST_SUPPORT = math.exp(-(SUPPORT**2) / 2) / 2  # a sum of cut Gaussians is zero or twice this at least
_LEAST_CONTRAST = 0.02  # relative to the data range; p counts as at least this much, where blocks would be singular
_ROUND = 0.1  # an ellipsoid's own block has rank one or two; so much of its mean eigenvalue is added in every direction


class Neighbourhood:
    """Data term in which the Gaussians at the surrounding voxels support a voxel.

    Parameters
    ----------
    values : Tensor
        p, a grid of D axes; zero where the background is.
    radius : float
        Radius of the neighbourhood, in voxels. Below 1, each voxel is its only neighbour.
    normalised : bool
        True to normalise the weights of the supporting voxels to sum 1.
    """

    def __init__(self, values: Tensor, radius: float, normalised: bool) -> None:
        self.values, self.normalised = values, normalised
        self.ball = Ball(radius, values.shape, values.device)

    def predict(self, gaussians: Gaussians) -> Tensor:
        """Return q at every voxel."""
        return self.linearise(gaussians).prediction

    def linearise(self, gaussians: Gaussians) -> LinearisedNeighbourhood:
        """Return q, linearised at these Gaussians."""
        return LinearisedNeighbourhood(self, gaussians)

    def initial_sigma(self, n_voxels: int, count: int, ndim: int) -> float:
        """Return the radius at which `count` round Gaussians give a total support ``sum_N G`` of about one.

        ``count (2 pi)^(D/2) sigma^D |N| / n_voxels = 1``. Many Gaussians or a large neighbourhood make it less than a
        voxel. Normalised: `NORMALISED_SIGMA`.
        """
        if self.normalised:
            return NORMALISED_SIGMA * float((n_voxels / count) ** (1 / ndim))
        return float((n_voxels / (count * self.ball.size)) ** (1 / ndim) / math.sqrt(2 * math.pi))


class LinearisedNeighbourhood:
    """`Neighbourhood` linearised: with ``T = sum_N G``, ``dq = sum_N p dG`` or ``(sum_N p dG - q sum_N dG) / T``."""

    def __init__(self, term: Neighbourhood, gaussians: Gaussians) -> None:
        self.values, self.ball, self.normalised = term.values, term.ball, term.normalised
        self.gaussians = gaussians._replace(weights=torch.ones_like(gaussians.weights))

    @cached_property
    def _sums(self) -> tuple[Tensor, Tensor]:
        """Return q and, normalised, 1 / T (zero where T is)."""
        G = predict(self.gaussians, self.values.shape)
        sums = self.ball.sum(self.values * G)
        if not self.normalised:
            return sums, torch.empty(0)
        inverse = _inverse(self.ball.sum(G), _LEAST_SUPPORT)
        return sums * inverse, inverse

    @property
    def prediction(self) -> Tensor:
        """Return q at every voxel."""
        return self._sums[0].float()

    def jvp(self, step: Tensor) -> Tensor:
        """Return the Jacobian-vector product J step, with a whitened step ``(N, K)``, at every voxel."""
        dG = jvp(self.gaussians, _without_omega(step), self.values.shape)
        change = self.ball.sum(self.values * dG)
        if self.normalised:
            q, inverse = self._sums
            change = (change - q * self.ball.sum(dG)) * inverse
        return change.float()

    def vjp(self, grid: Tensor) -> Tensor:
        """Return the vector-Jacobian product J^T grid, ``(N, K)``."""
        if self.normalised:
            q, inverse = self._sums
            scaled = grid * inverse
            pulled = self.values * self.ball.sum(scaled) - self.ball.sum(q * scaled)
        else:
            pulled = self.values * self.ball.sum(grid)
        return _without_omega(vjp(self.gaussians, pulled.float()))

    @cached_property
    def blocks(self) -> OwnBlocks:
        """Approximate block diagonal of ``J^T J``.

        A block is ``sum_x (sum_{j in N(x)} s_j(x) de_i(x_j))^2``, with ``s_j(x) = p_j``, or ``(p_j - q(x)) / T(x)``
        if normalised. What of s varies at random within a Gaussian adds up as squares, ``sum_j de_i(x_j)^2 sum_x
        s_j(x)^2``; a constant part ``p`` as the square of ``p sum_N de_i``, a smoother Gaussian (see `shape_blocks`).
        Normalised, there is no constant part: the weighted mean of ``p_j - q`` is zero.
        """
        factors, n = self.gaussians.factors, self.ball.size

        def energy(grid: Tensor) -> Tensor:
            """Return ``sum_j grid_j e_i(x_j)^2``, (N, 1, 1): e^2 is a Gaussian too."""
            return gather(self.gaussians.means, math.sqrt(2) * factors, grid.float())[:, :1, None].double()

        if self.normalised:
            q, inverse = self._sums
            each, first, second = (self.ball.sum(t) for t in (inverse**2, q * inverse**2, q**2 * inverse**2))
            squares = (self.values**2 * each - 2 * self.values * first + second).clamp_min(0)
            return OwnBlocks(energy(squares + _LEAST_CONTRAST**2 * each) * shape_blocks(factors, 0))
        size = energy(torch.ones_like(self.values))
        mean = energy(self.values) / size.clamp_min(1e-12)
        constant = size * mean**2
        varying = (energy(self.values**2) - constant).clamp_min(0) + _LEAST_CONTRAST**2 * size
        smooth = shape_blocks(factors, self.ball.variance)
        return OwnBlocks(n**2 * constant * smooth + n * varying * shape_blocks(factors, 0))


class Ellipsoid:
    """Data term in which the voxels of the same ellipsoids support a voxel.

    Parameters
    ----------
    values : Tensor
        p, a grid of D axes; zero where the background is.
    k : float
        Radius of the ellipsoids in standard deviations, at most `SUPPORT`.
    normalised : bool
    """

    def __init__(self, values: Tensor, k: float, normalised: bool) -> None:
        if not 0 < k <= SUPPORT:
            raise InputError(f"The ellipsoids' radius has to be positive and at most {SUPPORT} sigma; got {k:g}.")
        self.values, self.k, self.normalised = values, k, normalised

    def predict(self, gaussians: Gaussians) -> Tensor:
        """Return q at every voxel."""
        return self.linearise(gaussians).prediction

    def linearise(self, gaussians: Gaussians) -> LinearisedEllipsoid:
        """Return q, linearised at these Gaussians."""
        return LinearisedEllipsoid(self, gaussians)

    def initial_sigma(self, n_voxels: int, count: int, ndim: int) -> float:
        """Return the radius at which `count` round Gaussians give a total support ``sum_i 1_i M_i`` of about one.

        ``count / n_voxels * |ball of radius k sigma| * (2 pi)^(D/2) sigma^D c = 1``, where c is the part of a Gaussian
        within k sigma. Normalised: `NORMALISED_SIGMA`.
        """
        if self.normalised:
            return NORMALISED_SIGMA * float((n_voxels / count) ** (1 / ndim))
        ball = math.pi ** (ndim / 2) / math.gamma(ndim / 2 + 1) * self.k**ndim
        mass = (2 * math.pi) ** (ndim / 2) * float(gammainc(ndim / 2, self.k**2 / 2))
        return float((n_voxels / (count * ball * mass)) ** (1 / (2 * ndim)))


class LinearisedEllipsoid:
    """`Ellipsoid` linearised, with M_i as A_i is, but for 1 in place of p_j, and ``T = sum_i 1_i M_i``.

    ``dq = sum_i 1_i dA_i``, or ``sum_i 1_i (dA_i - q dM_i) / T``. Which voxels are inside (1_i) is constant almost
    everywhere, so it is not differentiated: this is the slope of q between the jumps where an ellipsoid's surface
    passes a voxel, and it knows nothing of the jumps.
    """

    def __init__(self, term: Ellipsoid, gaussians: Gaussians) -> None:
        self.k, self.normalised, self.shape = term.k, term.normalised, term.values.shape
        self.means, self.factors = gaussians.means, gaussians.factors
        self._A = self._moments(term.values)  # (N, K): A_i, and its derivative with (a, B)
        self._M = self._moments(torch.ones_like(term.values)) if self.normalised else None

    def _moments(self, grid: Tensor) -> Tensor:
        """Return ``sum_j 1_i(x_j) grid_j e_i(x_j) (1, y, upper triangle of the gradient of y^T B y / 2)``, (N, K)."""
        ndim = grid.ndim
        moments = gather(self.means, self.factors, grid, support=self.k)
        linear = (self.factors.mT @ moments[:, 1 : ndim + 1, None])[:, :, 0]
        Q = self.factors.mT @ symmetric(moments[:, ndim + 1 :], ndim) @ self.factors
        # An entry off the diagonal stands for two.
        return torch.cat([moments[:, :1], linear, upper(Q - torch.diag_embed(Q.diagonal(dim1=1, dim2=2)) / 2)], 1)

    def _spread(self, amounts: Tensor) -> Tensor:
        return splat_flat(self.means, self.factors, amounts, self.shape, self.k)

    def _collect(self, grid: Tensor) -> Tensor:
        return gather_flat(self.means, self.factors, grid, self.k)[:, None]

    @cached_property
    def _sums(self) -> tuple[Tensor, Tensor]:
        """Return q and, normalised, 1 / T (zero where T is)."""
        sums = self._spread(self._A[:, 0])
        if self._M is None:
            return sums, torch.empty(0)
        inverse = _inverse(self._spread(self._M[:, 0]), 0)
        return sums * inverse, inverse

    @property
    def prediction(self) -> Tensor:
        """Return q at every voxel."""
        return self._sums[0].clone()

    def jvp(self, step: Tensor) -> Tensor:
        """Return the Jacobian-vector product J step, with a whitened step ``(N, K)``, at every voxel."""
        step = _without_omega(step)
        change = self._spread((self._A * step).sum(1))
        if self._M is None:
            return change
        q, inverse = self._sums
        return (change - q * self._spread((self._M * step).sum(1))) * inverse

    def vjp(self, grid: Tensor) -> Tensor:
        """Return the vector-Jacobian product J^T grid, ``(N, K)``."""
        if self._M is None:
            return _without_omega(self._A * self._collect(grid))
        q, inverse = self._sums
        scaled = grid * inverse
        return _without_omega(self._A * self._collect(scaled) - self._M * self._collect(q * scaled))

    @cached_property
    def blocks(self) -> OwnBlocks:
        """The block diagonal of ``J^T J``, of rank one (normalised: two), plus `_ROUND` times its mean eigenvalue."""
        A = self._A[:, 1:].double()
        if self._M is None:
            ones = torch.ones(self.shape, device=A.device)
            own = self._collect(ones)[:, :, None] * outer(A, A)
        else:
            q, inverse = self._sums
            M = self._M[:, 1:].double()
            # The sum over x of (A - q M) (A - q M)^T / T^2, about the mean of q so that rounding leaves it positive.
            each, first, second = (self._collect(t).double() for t in (inverse**2, q * inverse**2, (q * inverse) ** 2))
            mean = first / each.clamp_min(1e-30)  # (N, 1)
            varying = (second - mean * first).clamp_min(0)
            centred = A - mean * M
            own = each[:, :, None] * outer(centred, centred) + varying[:, :, None] * outer(M, M)
        mean_eigenvalue = own.diagonal(dim1=1, dim2=2).mean(1, keepdim=True)
        return OwnBlocks(own + _ROUND * torch.diag_embed(mean_eigenvalue.expand(-1, own.shape[-1])))


class Ball:
    """Sums over the voxels within `radius` of each voxel of a grid, zeros around it; its own transpose.

    By FFT, which takes the same time for every radius. In float64: a float32 FFT's rounding errors are relative to the
    largest sums of the grid, and normalised the small ones count as much.

    Attributes
    ----------
    size : int
        The number of voxels within the radius, those that no grid of this shape holds left out.
    variance : float
        The mean squared offset along an axis.
    """

    def __init__(self, radius: float, shape: Sequence[int], device: torch.device | str = "cpu") -> None:
        if not (radius >= 0 and math.isfinite(radius)):
            raise InputError(f"The neighbourhood's radius has to be a number of voxels from 0 on; got {radius:g}.")
        self.shape = tuple(shape)
        reach = [min(int(radius), n - 1) for n in shape]
        offsets = torch.meshgrid(*(torch.arange(-r, r + 1) for r in reach), indexing="ij")
        squares = torch.stack(offsets).square().sum(0)
        inside = squares <= radius**2
        self.size = int(inside.sum())
        self.variance = float(squares[inside].sum()) / (self.size * len(self.shape))
        # Padded by the reach once: what wraps around an end lands in the padding.
        self._padded = [next_fast_len(n + r, real=True) for n, r in zip(shape, reach, strict=True)]
        kernel = torch.zeros(self._padded, dtype=torch.float64)
        kernel[tuple(o[inside] for o in offsets)] = 1  # around the origin, negative offsets at the far ends
        self._spectrum = torch.fft.rfftn(kernel.to(device)).real.clone()  # real, the ball being symmetric

    def sum(self, grid: Tensor) -> Tensor:
        """Return the sums, float64."""
        spectrum = torch.fft.rfftn(grid.double(), self._padded).mul_(self._spectrum)
        sums: Tensor = torch.fft.irfftn(spectrum, self._padded)
        return sums[tuple(slice(n) for n in self.shape)].contiguous()


def _inverse(sums: Tensor, least: float) -> Tensor:
    """Return one over `sums`, zero where they are not above `least`."""
    inverse: Tensor = torch.where(sums > least, 1 / sums, 0.0)
    return inverse


def _without_omega(step: Tensor) -> Tensor:
    return torch.cat([torch.zeros_like(step[:, :1]), step[:, 1:]], 1)
