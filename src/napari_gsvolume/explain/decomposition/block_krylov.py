"""Singular values and vectors of a Jacobian from products with it: the randomised block Krylov method.

Jacobians are used through products alone, J v by forward and J^T u by reverse mode (torch.func), a block of vectors at
a time. Block power iteration finds the dominant subspace, from the span of all blocks so far, (J^T J)^i X, instead of
the last one [1]_, which needs far fewer products where values lie close, as those of convolutions do. The basis is
orthonormal in float64, and Rayleigh-Ritz works on J times it, not on its square: products in float32 cost a relative
1e-7 of the *first* value, and no digits are lost to squaring.

References
----------
.. [1] C. Musco & C. Musco, "Randomized block Krylov methods for stronger and faster approximate singular value
   decomposition", NeurIPS 2015.
.. [2] N. Halko, P. G. Martinsson & J. A. Tropp, "Finding structure with randomness: probabilistic algorithms for
   constructing approximate matrix decompositions", SIAM Review 53, 2011.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from ...errors import InputError
from ...types import Float64Array
from .components import Components, build_components, count_significant

Products = Callable[[Tensor], Tensor]  # (b, ...) to (b, ...)

_PROBES = 32  # for the energy beyond the modes
_WIDTH = 4  # of a block: few, for a high power of J^T J after as many products; more than one, for equal values
_BASIS_BYTES = 2**29  # largest size of the basis and its products; beyond, the iteration restarts from the best of it
_ROUNDING = 20  # times eps of the dtype and the first value: rounding error of products


@dataclass(frozen=True, eq=False)
class DifferentiableMap:
    """A network as a function of one tensor, at a point."""

    function: Callable[[Tensor], Tensor]
    point: Tensor
    shape: torch.Size  # of the output


def jacobian_products(of: DifferentiableMap) -> tuple[Products, Products]:
    """Return V (b, *input) -> J V (b, *output), and U -> J^T U; by loops or without forward mode where necessary."""
    pull = torch.func.vjp(of.function, of.point)[1]

    def forward_one(v: Tensor) -> Tensor:
        pushed: Tensor = torch.func.jvp(of.function, (of.point,), (v,))[1]
        return pushed

    def twice_backward(v: Tensor) -> Tensor:  # u -> J^T u is linear, and J v its own product
        zero = torch.zeros(of.shape, dtype=of.point.dtype, device=of.point.device)
        pull_back = torch.func.vjp(lambda u: torch.func.vjp(of.function, of.point)[1](u)[0], zero)[1]
        pushed: Tensor = pull_back(v)[0]
        return pushed

    def backward_one(u: Tensor) -> Tensor:
        pulled: Tensor = pull(u)[0]
        return pulled

    def probed(ways: list[Products], shape: torch.Size) -> Products:
        probe = torch.zeros(2, *shape, dtype=of.point.dtype, device=of.point.device)
        for way in ways[:-1]:
            try:
                way(probe)
            except (RuntimeError, ValueError, NotImplementedError):
                continue
            return way
        return ways[-1]

    def loop(one: Products) -> Products:
        return lambda block: torch.stack([one(v) for v in block])

    mapped = partial(torch.vmap, randomness="same")
    forward = probed(
        [mapped(forward_one), loop(forward_one), mapped(twice_backward), loop(twice_backward)], of.point.shape
    )
    return forward, probed([mapped(backward_one), loop(backward_one)], of.shape)


def krylov_components(
    of: DifferentiableMap,
    forward: Products,
    backward: Products,
    k: int,
    tolerance: float,
    seed: int,
    products: int,
    layer: str,
) -> Components:
    """Return the first k modes of a Jacobian; see `jacobian`."""
    n, m = of.point.numel(), math.prod(of.shape)
    rng = np.random.default_rng(seed)
    kind, device = of.point.dtype, of.point.device
    rounding = _ROUNDING * torch.finfo(kind).eps

    def applied(product: Products, columns: Float64Array, shape: torch.Size) -> Float64Array:
        """Return the product of columns (elements, b), as columns."""
        block = torch.from_numpy(np.ascontiguousarray(columns.T)).to(device, kind)
        result = product(block.reshape(-1, *shape)).flatten(1).double().cpu().numpy().T
        if not np.isfinite(result).all():
            raise InputError("The derivative is NaN or infinite at these inputs.")
        return np.asarray(result)

    most = max(4 * k + 4 * _WIDTH, min(_BASIS_BYTES // (8 * (2 * n + m)), n))
    Q, W, Z = (np.empty((rows, min(most, n) + _WIDTH), order="F") for rows in (n, m, n))  # basis, J Q, J^T J Q
    gram = np.empty((0, 0))
    block = _new_directions(rng.standard_normal((n, min(_WIDTH, n, m))), Q[:, :0], 0.0)
    used, checked, grown = 0, 0, {0: np.zeros(k)}
    p = 0
    while True:
        q, p = p, p + block.shape[1]
        Q[:, q:p] = block
        W[:, q:p] = applied(forward, block, of.point.shape)
        Z[:, q:p] = applied(backward, W[:, q:p], of.shape)
        used += p - q
        cross = W[:, :p].T @ W[:, q:p]
        gram = np.block([[gram, cross[:q]], [cross[:q].T, cross[q:]]])
        block = _new_directions(Z[:, q:p], Q[:, :p], rounding * math.sqrt(gram.diagonal().max()) ** 2)
        full = p + block.shape[1] > most
        over = block.shape[1] == 0 or used >= products
        if not (over or full or used >= max(1.1 * checked, 2 * k)):
            continue
        checked = used
        squares, Y = np.linalg.eigh((gram + gram.T) / 2)
        s, Y = np.sqrt(np.maximum(squares[::-1], 0)), Y[:, ::-1]
        kept = count_significant(s, k)
        if kept == 0:
            raise InputError(
                "The output does not depend on the tensor it is differentiated by: the Jacobian is 0 here."
            )
        # J v = s u by construction; the residual J^T u - s v bounds the error of s, though that is about its square.
        residuals = np.linalg.norm(Z[:, :p] @ (Y[:, :kept] / s[:kept]) - Q[:, :p] @ (Y[:, :kept] * s[:kept]), axis=0)
        before = grown[max(count for count in grown if count <= 0.8 * used)]
        grown[used] = np.pad(s[:k], (0, max(0, k - len(s))))
        still = (grown[used] - before)[:kept] <= 0.3 * tolerance * s[:kept]
        certain = residuals <= np.maximum(tolerance * s[:kept], rounding * s[0])
        if over or (kept == k and (certain | (still & (residuals <= math.sqrt(tolerance) * s[:kept]))).all()):
            break
        if full:  # thick restart: J^T J of the kept basis lies in it and the next block
            p = 2 * k + _WIDTH
            for basis in (Q, W, Z):
                basis[:, :p] = basis[:, : len(Y)] @ Y[:, :p]
            gram = np.diag(s[:p] ** 2)
    U, values, Vh = np.linalg.svd(W[:, :p] @ Y[:, :kept], full_matrices=False)
    V = Q[:, :p] @ (Y[:, :kept] @ Vh.T)
    spectrum = np.concatenate([values, s[kept:][s[kept:] > rounding * s[0]]])
    total = float(np.square(spectrum).sum())
    if block.shape[1]:  # there is more of J
        probes = rng.choice([-1.0, 1.0], (n, _PROBES))
        pushed = applied(forward, probes - V @ (V.T @ probes), of.point.shape)
        spectrum, total = values, float(np.square(values).sum() + np.square(pushed).sum() / _PROBES)
    worst = float(residuals.max())
    return build_components(
        spectrum,
        V,
        U,
        total,
        layer=layer,
        missed=float((2 * values * worst + worst**2).max()),
        feature_shape=tuple(of.point.shape),
        sample_shape=tuple(of.shape),
    )


def _new_directions(columns: Float64Array, Q: Float64Array, least: float) -> Float64Array:
    """Return an orthonormal basis of the part of the columns that is orthogonal to Q and longer than `least`."""
    for _ in range(2):
        columns = columns - Q @ (Q.T @ columns)
    U, s, _ = np.linalg.svd(columns, full_matrices=False)
    fresh = U[:, s > max(least, 1e-14 * s[:1].max(initial=0.0))]
    again = fresh - Q @ (Q.T @ fresh)
    return np.asarray(np.linalg.qr(again)[0])
