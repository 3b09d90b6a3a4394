"""Singular value decomposition of the Jacobian of a network, and of gradients over many inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ...errors import InputError
from ..models.explained_model import ExplainedModel, Model
from ..models.forward import Batch, Inputs, RefusedError, find_tensor, iterate_tensors, map_tensors
from .block_krylov import DifferentiableMap, jacobian_products, krylov_components
from .components import Components, build_components, check_modes
from .streaming_svd import Scores, StreamingSVD


def jacobian(
    model: Model,
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
    """Return the first k modes of the Jacobian J = U S V^T of a network at given inputs, without forming J.

    Rows of J are the elements of the output, columns those of the input, both of the call as given: the Jacobians of
    the samples of a batch are the blocks of one matrix. Give one sample for its own. A unit change of the input along
    ``concepts[:, i]`` changes the output by ``values[i]`` along ``scores[:, i]``, to first order.

    Parameters
    ----------
    model : nn.Module or ExplainedModel
    inputs : Tensor, tuple or dict
        Arguments of one call of the model. The first tensor of real numbers in it is differentiated by; others are
        constants.
    k : int
        Number of modes.
    layer : str, optional
        Layer that is differentiated (in its last call) instead of the output.
    by : str, optional
        Layer that is differentiated by (in its first call) instead of the input, such as the embedding of models of
        integers.
    output : callable, optional
        Selects the tensor in the output of the model or the layer. The first one if omitted, in tuples, dicts and
        dataclasses too.
    tolerance : float
        Relative tolerance of the values. The iteration ends when each value s is certain to it, as the residual
        ``|J^T u - s v|`` bounds the error of s; or when the residual is below its root, as the error is about the
        residual squared, and the last fifth of all products has changed s by less than a third of it.
    seed : int
        Seed of the first block.
    products : int
        Largest number of products with vectors. ``missed``, the bound by the residuals, holds the remaining error.

    Returns
    -------
    Components
        ``concepts`` (input elements, k) and ``scores`` (output elements, k); as tensors, ``column(i)`` and
        ``column(i, "scores")``. ``energy`` is relative to the squared Frobenius norm of J, ``total``; the part beyond
        the modes is estimated from 32 random vectors (Hutchinson), unless the basis spans all of J.

    Raises
    ------
    InputError
        If the model cannot be called so, there is no such layer, nothing depends on the tensor, the inputs have no
        real numbers, or the output is not finite; if `k` is below 1.

    References
    ----------
    .. [1] C. Musco & C. Musco, "Randomized block Krylov methods for stronger and faster approximate singular value
       decomposition", NeurIPS 2015.
    .. [2] N. Halko, P. G. Martinsson & J. A. Tropp, "Finding structure with randomness: probabilistic algorithms for
       constructing approximate matrix decompositions", SIAM Review 53, 2011.

    Examples
    --------
    >>> import torch
    >>> from napari_gsvolume import explain
    >>> network = torch.nn.Conv2d(1, 1, 1, bias=False)
    >>> _ = torch.nn.init.constant_(network.weight, 3.0)
    >>> explain.jacobian(network, torch.randn(1, 1, 4, 4), k=1).values.round(4)
    array([3.])
    """
    check_modes(k)
    explained = ExplainedModel.of(model)
    with _differentiable(explained, seed):
        function = _function(explained, inputs, layer, by, output)
        forward, backward = jacobian_products(function)
        return krylov_components(function, forward, backward, k, tolerance, seed, products, layer or "")


def gradients(
    model: Model,
    inputs: Inputs,
    target: Callable[[Any], Tensor],
    k: int = 16,
    *,
    by: str | None = None,
    centre: bool = False,
    seed: int = 0,
) -> Components:
    """Decompose the gradients of a scalar target over many inputs, one row per sample: A = U S V^T.

    Uncentred, the columns of V are the active subspace [1]_: the directions of the input along which the target changes
    most, over all samples.

    Parameters
    ----------
    model : nn.Module or ExplainedModel
        It must treat the samples of a batch independently, as nearly all do in evaluation mode.
    inputs : Tensor, tuple, dict, or iterable of these
        As in `activations`; samples are along the first axis of the first tensor of real numbers in each batch.
    target : callable
        Maps the output of the model to one number per sample, (B,), or to their sum: a loss, or a logit,
        ``lambda logits: logits[:, 3]``.
    k, centre : int, bool
        As in `activations`.
    by : str, optional
        Layer that is differentiated by instead of the input.
    seed : int
        Seed of models that draw random numbers.

    Returns
    -------
    Components
        ``concepts`` (elements of one sample, k), as tensors ``column(i)``; ``scores`` (samples, k).

    Raises
    ------
    InputError
        As in `jacobian`; or if `target` returns no such numbers, or the inputs are a generator.

    References
    ----------
    .. [1] P. Constantine, "Active subspaces", SIAM 2015.
    """
    check_modes(k)
    explained = ExplainedModel.of(model)
    if iter(explained.batches(inputs)) is inputs:
        raise InputError("The inputs are needed twice; give a list of them.")
    shape: tuple[int, ...] = ()

    def rows() -> Iterator[NDArray[Any]]:
        nonlocal shape
        for number, batch in enumerate(explained.batches(inputs)):
            with explained.evaluation(seed + number):
                gradient = _gradient(explained, batch, target, by)
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
    options = {"mean": mean if centre else None, "missed": svd.missed, "feature_shape": shape}
    return build_components(spectrum, V, scores.result(), svd.total, layer=by or "", **options)


def _gradient(explained: ExplainedModel, batch: Batch, target: Callable[[Any], Tensor], by: str | None) -> Tensor:
    with torch.no_grad():
        point, run = _source(explained, batch, by)
    point = point.detach().requires_grad_()
    with torch.enable_grad():
        given = target(run(point))
        if not isinstance(given, Tensor) or given.ndim > 1 or (given.ndim == 1 and len(given) != len(point)):
            raise InputError(
                f"The target has one number per sample; it returns {_shape(given)} for {len(point)} samples."
            )
        if not given.requires_grad:
            raise InputError("The target does not depend on the tensor it is differentiated by.")
        [gradient] = torch.autograd.grad(given.sum(), point, allow_unused=True)
    if gradient is None:
        raise InputError("The target does not depend on the tensor it is differentiated by.")
    return gradient


def _shape(given: Any) -> str:
    return f"the shape {tuple(given.shape)}" if isinstance(given, Tensor) else type(given).__name__


@contextmanager
def _differentiable(explained: ExplainedModel, seed: int) -> Iterator[None]:
    """Context in which the model is in evaluation mode, and its attention supports forward differentiation."""
    with explained.evaluation(seed), torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        yield


def _source(explained: ExplainedModel, batch: Batch, by: str | None) -> tuple[Tensor, Callable[[Tensor], Any]]:
    """Return the tensor that is differentiated by, and the call of the model as a function of it."""
    if by is not None:
        [(name, module)] = explained.modules([by]).items()
        found: list[Tensor] = []

        def record(_: nn.Module, __: Any, given: Any) -> None:
            if not found:
                found.append(find_tensor(given, f"The layer {name!r}").detach().clone())

        with explained.hooks({module: record}):
            explained.call(batch)
        if not found:
            raise InputError(f"The layer {name!r} is never called by the model.")

        def run_by(point: Tensor) -> Any:
            rest = [point]

            def replace(_: nn.Module, __: Any, given: Any) -> Any:
                return _with_first(given, rest.pop().clone(), lambda t: True) if rest else given

            with explained.hooks({module: replace}):
                return explained.call(batch)

        return found[0], run_by
    for tensor in iterate_tensors(batch):
        if tensor.is_floating_point():
            return tensor.detach(), lambda point: explained.call(
                _with_first(batch, point.clone(), lambda t: t.is_floating_point())
            )
    raise InputError(
        "The inputs have no tensor of real numbers to differentiate by; name a layer, as the embedding, with by=."
    )


def _function(
    explained: ExplainedModel,
    batch: Batch,
    layer: str | None,
    by: str | None,
    output: Callable[[Any], Tensor] | None,
) -> DifferentiableMap:
    """Return the function that is differentiated, and the point."""
    point, run = _source(explained, batch, by)
    module = None if layer is None else explained.modules([layer])[layer]

    def selected(given: Any) -> Tensor:
        owner = "The model" if layer is None else f"The layer {layer!r}"
        return find_tensor(given, owner) if output is None else output(given)

    def function(x: Tensor) -> Tensor:
        if module is None:
            return selected(run(x))
        seen: list[Tensor] = []
        # A copy, as the next module may work in place.
        with explained.hooks({module: lambda _, __, given: seen.append(selected(given).clone())}):
            run(x)
        if not seen:
            raise RefusedError(f"The layer {layer!r} is never called by the model.")
        return seen[-1]

    result = function(point)
    if not result.is_floating_point() or result.numel() == 0:
        raise InputError(
            f"Only real outputs can be differentiated; this is {result.dtype} of shape {tuple(result.shape)}."
        )
    if not bool(torch.isfinite(result).all()):
        raise InputError("The output for these inputs is NaN or infinite, so it has no derivative.")
    return DifferentiableMap(function, point, result.shape)


def _with_first(thing: Any, tensor: Tensor, counts: Callable[[Tensor], bool]) -> Any:
    """Return a copy of a nested structure with the first tensor that counts replaced."""
    done = False

    def change(part: Tensor) -> Tensor:
        nonlocal done
        if done or not counts(part):
            return part
        done = True
        return tensor

    return map_tensors(thing, change)
