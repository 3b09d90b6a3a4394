"""The Jacobian of a network, and its first singular values and vectors without ever making it.

It is used through products alone, J v by forward and J^T u by reverse mode (torch.func), a block of vectors at a time.
Block power iteration finds its dominant subspace, from the span of all blocks so far, (J^T J)^i X, instead of the last
one: the randomised block Krylov method (C. Musco & C. Musco, "Randomized block Krylov methods for stronger and faster
approximate singular value decomposition", NeurIPS 2015), which needs far fewer products where values lie close, as
those of convolutions do. The basis is orthonormal in float64, and Rayleigh-Ritz works on J times it, not on its
square: products in float32 cost a part of 1e-7 of the *first* value, and no digits are lost to squaring.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ...errors import InputError
from ...types import Float64Array
from ..models.forward import (
    Batch,
    Inputs,
    RefusedError,
    call_model,
    evaluation_mode,
    find_tensor,
    forward_hooks,
    iterate_batches,
    iterate_tensors,
    map_tensors,
)
from ..models.outputs import select_modules
from .components import Components, build_components, check_modes, count_significant
from .streaming_svd import Scores, StreamingSVD

Products = Callable[[Tensor], Tensor]  # (b, ...) to (b, ...)

_PROBES = 32  # for the energy beyond the modes
_WIDTH = 4  # of a block: few, for a high power of J^T J after as many products; more than one, for equal values
_BASIS_BYTES = 2**29  # of the basis and its products, at most; then it begins anew from the best of it
_ROUNDING = 20  # times eps of the dtype and the first value: what products are wrong by


@dataclass(frozen=True, eq=False)
class _Map:
    """A network as a function of one tensor, at a point."""

    function: Callable[[Tensor], Tensor]
    point: Tensor
    shape: torch.Size  # of the result


def jacobian(
    model: nn.Module,
    inputs: Batch,
    k: int = 8,
    *,
    layer: str | None = None,
    by: str | None = None,
    output: Callable[[Any], Tensor] | None = None,
    tolerance: float = 1e-4,
    seed: int = 0,
    products: int = 2000,
) -> Components:
    """Return the first k modes of the Jacobian J = U S V^T of what a network computes, at given inputs.

    Rows of J are the elements of the output, columns those of the input, both of the call as given: of a batch the
    samples' Jacobians are the blocks of one matrix. Give one sample for its own. A unit change of the input along
    ``concepts[:, i]`` changes the output by ``values[i]`` along ``scores[:, i]``, to first order.

    Parameters
    ----------
    model : nn.Module
    inputs : Tensor, tuple or dict
        What the model is called with, once. The first tensor of real numbers in it is what is differentiated by; others
        are constants.
    k : int
        How many modes.
    layer : str, optional
        Differentiate what this layer gives (in its last call) instead of the output.
    by : str, optional
        Differentiate by what this layer gives (in its first call) instead of the input. Embeddings, for models whose
        inputs are integers.
    output : callable, optional
        Takes the tensor out of what the model, or the layer, gives. When omitted, the first in it, of tuples, dicts and
        dataclasses too.
    tolerance : float
        Of the values, relative. It ends when each value s is certain to it, as the residual ``|J^T u - s v|`` bounds
        the error of s; or when the residual is below its root, as the error is about the residual squared, and the last
        fifth of all products has changed s by less than a third of it.
    seed : int
        Of the first block.
    products : int
        How many vectors to multiply by at most. ``missed``, the bound by the residuals, says what is then open.

    Returns
    -------
    Components
        ``concepts`` (input elements, k) and ``scores`` (output elements, k), whose tensors are ``column(i)`` and
        ``column(i, "scores")``. ``energy`` is relative to the squared Frobenius norm of J, ``total``, of which the part
        beyond the modes is estimated from 32 random vectors (Hutchinson), unless the basis spans all of J.

    Raises
    ------
    ValueError
        If the model cannot be called so, there is no such layer, nothing depends on the tensor, the inputs have no
        real numbers, or what comes out is not finite; if `k` is below 1.
    """
    check_modes(k)
    with _differentiable(model, seed):
        of = _map(model, inputs, layer, by, output)
        forward, backward = _products(of)
        return _krylov(of, forward, backward, k, tolerance, seed, products, layer or "")


def gradients(
    model: nn.Module,
    inputs: Inputs,
    of: Callable[[Any], Tensor],
    k: int = 16,
    *,
    by: str | None = None,
    centre: bool = False,
    seed: int = 0,
) -> Components:
    """Decompose the gradients of a number that is made of the output, one row a sample: A = U S V^T.

    Uncentred, the columns of V are the active subspace (P. Constantine, "Active subspaces", SIAM 2015): the directions
    of the input along which that number changes most, over all samples.

    Parameters
    ----------
    model : nn.Module
        It must treat the samples of a batch by themselves, as in evaluation mode nearly all do.
    inputs : Tensor, tuple, dict, or iterable of these
        As of `activations`; the first axis of the first tensor of real numbers in each is that of the samples.
    of : callable
        From what the model gives to one number a sample, (B,), or their sum. A loss, say, or a logit:
        ``lambda logits: logits[:, 3]``.
    k, centre : int, bool
        As of `activations`.
    by : str, optional
        Differentiate by what this layer gives instead of the input.
    seed : int
        For models that draw random numbers.

    Returns
    -------
    Components
        ``concepts`` (elements of one sample, k), whose tensors are ``column(i)``; ``scores`` (samples, k).

    Raises
    ------
    ValueError
        As of `jacobian`; or if `of` gives no such numbers, or the inputs can be had only once.
    """
    check_modes(k)
    if iter(iterate_batches(inputs)) is inputs:
        raise InputError("The inputs are needed twice; give a list of them.")
    shape: tuple[int, ...] = ()

    def rows() -> Iterator[NDArray[Any]]:
        nonlocal shape
        for number, batch in enumerate(iterate_batches(inputs)):
            with evaluation_mode(model, seed + number):
                gradient = _gradient(model, batch, of, by)
            shape = tuple(gradient.shape[1:])
            if not bool(torch.isfinite(gradient).all()):
                raise InputError(f"The gradients of batch {number} are NaN or infinite.")
            yield gradient.flatten(1).cpu().double().numpy()

    svd = StreamingSVD(k, centre=centre)
    for block in rows():
        svd.update(block)
    spectrum, V, mean = svd.result()
    scores = Scores(spectrum, V, mean, svd.rows)
    for block in rows():
        scores.update(block)
    more = {"mean": mean if centre else None, "missed": svd.missed, "feature_shape": shape}
    return build_components(spectrum, V, scores.result(), svd.total, layer=by or "", **more)


def _gradient(model: nn.Module, batch: Batch, of: Callable[[Any], Tensor], by: str | None) -> Tensor:
    with torch.no_grad():
        point, run = _source(model, batch, by)
    point = point.detach().requires_grad_()
    with torch.enable_grad():
        given = of(run(point))
        if not isinstance(given, Tensor) or given.ndim > 1 or (given.ndim == 1 and len(given) != len(point)):
            raise InputError(
                f"One number a sample is differentiated; `of` gives {_shape(given)} of {len(point)} samples."
            )
        if not given.requires_grad:
            raise InputError("What `of` gives does not depend on what it is differentiated by.")
        [gradient] = torch.autograd.grad(given.sum(), point, allow_unused=True)
    if gradient is None:
        raise InputError("What `of` gives does not depend on what it is differentiated by.")
    return gradient


def _shape(given: Any) -> str:
    return f"the shape {tuple(given.shape)}" if isinstance(given, Tensor) else type(given).__name__


@contextmanager
def _differentiable(model: nn.Module, seed: int) -> Iterator[None]:
    """Within, the model is undisturbed, and its attention is one that can be differentiated forward."""
    with evaluation_mode(model, seed), torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        yield


def _source(model: nn.Module, batch: Batch, by: str | None) -> tuple[Tensor, Callable[[Tensor], Any]]:
    """Return what is differentiated by, and the call of the model as a function of it."""
    if by is not None:
        [(name, module)] = select_modules(model, [by]).items()
        found: list[Tensor] = []

        def see(_: nn.Module, __: Any, given: Any) -> None:
            if not found:
                found.append(find_tensor(given, f"The layer {name!r}").detach().clone())

        with forward_hooks({module: see}):
            call_model(model, batch)
        if not found:
            raise InputError(f"The layer {name!r} is never called by the model.")

        def run_by(point: Tensor) -> Any:
            rest = [point]

            def put(_: nn.Module, __: Any, given: Any) -> Any:
                return _with_first(given, rest.pop().clone(), lambda t: True) if rest else given

            with forward_hooks({module: put}):
                return call_model(model, batch)

        return found[0], run_by
    for tensor in iterate_tensors(batch):
        if tensor.is_floating_point():
            return tensor.detach(), lambda point: call_model(
                model, _with_first(batch, point.clone(), lambda t: t.is_floating_point())
            )
    raise InputError(
        "The inputs have no tensor of real numbers to differentiate by; name a layer, as the embedding, with by=."
    )


def _map(
    model: nn.Module, batch: Batch, layer: str | None, by: str | None, output: Callable[[Any], Tensor] | None
) -> _Map:
    """Return the function that is differentiated, at its point."""
    point, run = _source(model, batch, by)
    module = None if layer is None else select_modules(model, [layer])[layer]

    def taken(given: Any) -> Tensor:
        whose = "The model" if layer is None else f"The layer {layer!r}"
        return find_tensor(given, whose) if output is None else output(given)

    def function(x: Tensor) -> Tensor:
        if module is None:
            return taken(run(x))
        seen: list[Tensor] = []
        # A copy, as the next module may work in place.
        with forward_hooks({module: lambda _, __, given: seen.append(taken(given).clone())}):
            run(x)
        if not seen:
            raise RefusedError(f"The layer {layer!r} is never called by the model.")
        return seen[-1]

    result = function(point)
    if not result.is_floating_point() or result.numel() == 0:
        raise InputError(
            f"Real numbers are differentiated; here {result.dtype} of shape {tuple(result.shape)} come out."
        )
    if not bool(torch.isfinite(result).all()):
        raise InputError("What comes out for these inputs is NaN or infinite, so it has no derivative.")
    return _Map(function, point, result.shape)


def _with_first(thing: Any, tensor: Tensor, counts: Callable[[Tensor], bool]) -> Any:
    """Return a copy of a thing whose first tensor that counts is another one."""
    done = False

    def change(part: Tensor) -> Tensor:
        nonlocal done
        if done or not counts(part):
            return part
        done = True
        return tensor

    return map_tensors(thing, change)


def _products(of: _Map) -> tuple[Products, Products]:
    """Return V (b, *input) -> J V (b, *output), and U -> J^T U; by loops or without forward mode where it must be."""
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


def _krylov(
    of: _Map, forward: Products, backward: Products, k: int, tolerance: float, seed: int, products: int, layer: str
) -> Components:
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
            raise InputError("What comes out does not depend on what it is differentiated by: the Jacobian is 0 here.")
        # J v = s u by construction; what is left of J^T u - s v bounds the error of s, though it is about its root.
        residuals = np.linalg.norm(Z[:, :p] @ (Y[:, :kept] / s[:kept]) - Q[:, :p] @ (Y[:, :kept] * s[:kept]), axis=0)
        before = grown[max(count for count in grown if count <= 0.8 * used)]
        grown[used] = np.pad(s[:k], (0, max(0, k - len(s))))
        still = (grown[used] - before)[:kept] <= 0.3 * tolerance * s[:kept]
        certain = residuals <= np.maximum(tolerance * s[:kept], rounding * s[0])
        if over or (kept == k and (certain | (still & (residuals <= math.sqrt(tolerance) * s[:kept]))).all()):
            break
        if full:  # thick restart: J^T J of what is kept lies in it and the next block
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
    """Return an orthonormal basis of what the columns have beyond the orthonormal Q, if it is longer than `least`."""
    for _ in range(2):
        columns = columns - Q @ (Q.T @ columns)
    U, s, _ = np.linalg.svd(columns, full_matrices=False)
    fresh = U[:, s > max(least, 1e-14 * s[:1].max(initial=0.0))]
    again = fresh - Q @ (Q.T @ fresh)
    return np.asarray(np.linalg.qr(again)[0])
