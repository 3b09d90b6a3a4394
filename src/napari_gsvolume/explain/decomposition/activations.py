"""The activations of a model's layers, taken by forward hooks as it runs, and decomposed without being held."""

from __future__ import annotations

import difflib
import math
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..models.forward import Batch, Inputs, RefusedError, batches, call, first_tensor, hooked, tensors, undisturbed
from .components import Decomposition, Places, check_modes
from .sampling import BUDGET, CaptureStep, Pieces, Run, Samples, two_passes

Integers = NDArray[np.int64]

# Where features are in what these give. For others see _Layouts.
_LAST: tuple[type[nn.Module], ...] = (
    *(nn.Linear, nn.Bilinear, nn.LayerNorm, nn.RMSNorm, nn.Embedding, nn.EmbeddingBag),
    *(nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerDecoderLayer, nn.RNNBase),
)
_FIRST: tuple[type[nn.Module], ...] = (nn.modules.conv._ConvNd, nn.modules.batchnorm._NormBase, nn.GroupNorm)


def activations(
    model: nn.Module, inputs: Inputs, layers: Sequence[str] | None = None, k: int = 16, **more: Any
) -> dict[str, Decomposition]:
    """Decompose the activations A = U S V^T of layers of a model: samples are positions, features are channels.

    Rows are streamed (see `streaming`); of them nothing is held but `budget` bytes. Where that is not enough for the
    scores, the inputs are gone through twice. The model is in evaluation mode meanwhile, without gradients, and
    afterwards as it was.

    Parameters
    ----------
    model : nn.Module
    inputs : Tensor, tuple, dict, or iterable of these
        What the model is called with: one tensor, a tuple of arguments, a dict of keyword arguments, or several such
        batches.
    layers : sequence of str, optional
        Names as in ``model.named_modules()``. When omitted, all modules that have parameters of their own and are
        called.
    k : int
        How many modes. Layers that have fewer give what they have; a layer that is always 0 has none.
    centre : bool
        Whether to take the mean over samples away first: principal components. Not by default, as A = U S V^T.
    max_samples : int, optional
        At most so many positions of each layer, drawn evenly from all of them by the seed alone, however the inputs
        are batched.
    seed : int
        For that, and for models that draw random numbers.
    features_axis : int or dict of str to int, optional
        Which axis of a layer's output the features are along. When omitted: the last one of Linear, LayerNorm,
        Embedding, attention and recurrent modules; 1 of convolutions and BatchNorm, InstanceNorm, GroupNorm. Of other
        modules (activation functions, blocks) as in the last of these called before the output, if that had as many
        axes and features; else the last of three axes, and 1 otherwise.
    output : callable, optional
        Takes the tensor out of what a layer gives. When omitted, the first in it, of tuples, dicts and dataclasses too.
    budget : int
        Bytes of activations to keep at most.

    Returns
    -------
    dict of str to Decomposition
        By layer, in the order asked for. ``places`` says where each sample lies.

    Raises
    ------
    ValueError
        If there is no such layer, it is not called, gives no tensor of real finite numbers or other features from one
        batch to the next; if the model cannot be called with the inputs; if these are none, or are needed twice and can
        be had only once; if `k` or `max_samples` is below 1.
    """
    for step in activation_steps(model, inputs, layers, k, **more):
        last = step
    assert last.result is not None
    return last.result


def activation_steps(
    model: nn.Module,
    inputs: Inputs,
    layers: Sequence[str] | None = None,
    k: int = 16,
    *,
    centre: bool = False,
    max_samples: int | None = None,
    seed: int = 0,
    features_axis: int | Mapping[str, int] | None = None,
    output: Callable[[Any], Tensor] | None = None,
    budget: int = BUDGET,
) -> Iterator[CaptureStep]:
    """Yield a step after each batch of `activations`; the last one has the result."""
    check_modes(k)
    if max_samples is not None and max_samples < 1:
        raise ValueError(f"At least one sample is needed; max_samples is {max_samples}.")
    modules = chosen(model, layers)
    taken = {name: Samples(name, k, centre, max_samples, seed) for name in modules}
    run = _runner(model, inputs, modules, taken, seed=seed, features_axis=features_axis, output=output)
    yield from two_passes(inputs, taken, run, budget, layers is None)


def captured(
    model: nn.Module,
    inputs: Inputs,
    layers: Sequence[str] | None,
    max_samples: int,
    seed: int = 0,
    *,
    features_axis: int | Mapping[str, int] | None = None,
    output: Callable[[Any], Tensor] | None = None,
) -> dict[str, tuple[NDArray[Any], Places]]:
    """Return activations (samples, features) themselves, and where the samples lie; parameters as of `activations`."""
    if max_samples < 1:
        raise ValueError(f"At least one sample is needed; max_samples is {max_samples}.")
    modules = chosen(model, layers)
    taken = {name: Samples(name, 1, False, max_samples, seed) for name in modules}
    run = _runner(model, inputs, modules, taken, seed=seed, features_axis=features_axis, output=output)
    for _ in run(taken, Samples.take):
        pass
    return {name: layer.matrix() for name, layer in taken.items() if layer.samples or layers is not None}


def passes(
    model: nn.Module,
    inputs: Inputs,
    modules: Mapping[str, nn.Module],
    take: Callable[[str, Pieces], None],
    seed: int = 0,
    *,
    features_axis: int | Mapping[str, int] | None = None,
    output: Callable[[Any], Tensor] | None = None,
) -> Iterator[None]:
    """Call the model with each batch, and `take` with what each of its modules gives; yield after each batch.

    Parameters are as of `activations`, but for `modules`, by their names.
    """
    axes = features_axis if isinstance(features_axis, Mapping) else dict.fromkeys(modules, features_axis)
    first = 0
    for number, batch in enumerate(batches(inputs)):
        now = Call(batch, first)

        def hook(name: str, now: Call = now) -> Callable[..., None]:
            def see(layer: nn.Module, _: Any, given: Any) -> None:
                take(name, now.pieces(name, layer, given, axes.get(name), output))

            return see

        typed = dict.fromkeys(typed_modules(model), now.note)
        hooks = {module: hook(name) for name, module in modules.items()}
        # Whoever consumes the steps may do anything between them: the model is itself then.
        with undisturbed(model, seed + number), torch.no_grad(), hooked(typed), hooked(hooks):
            call(model, batch)
        first += now.count
        yield


def _runner(
    model: nn.Module, inputs: Inputs, modules: Mapping[str, nn.Module], taken: Mapping[str, Samples], **more: Any
) -> Run:
    """Return what makes `passes` with the samples of the layers of some names."""

    def run(names: Collection[str], take: Callable[[Samples, Pieces], None]) -> Iterator[None]:
        some = {name: modules[name] for name in names}
        return passes(model, inputs, some, lambda name, pieces: take(taken[name], pieces), **more)

    return run


def chosen(model: nn.Module, layers: Sequence[str] | None) -> dict[str, nn.Module]:
    """Return modules by their names; without names those with parameters of their own.

    Raises
    ------
    ValueError
        If there is no such module.
    """
    modules = dict(model.named_modules())
    if layers is None:
        return {
            name: module
            for name, module in modules.items()
            if any(True for _ in module.parameters(recurse=False)) and "parametrizations" not in name.split(".")
        }
    names = [layers] if isinstance(layers, str) else list(layers)
    for name in names:
        if name not in modules:
            near = difflib.get_close_matches(name, modules, 3, 0.4) or [n for n in modules if n][:3]
            raise ValueError(f"The model has no layer {name!r}; near names are {', '.join(map(repr, near))}.")
    return {name: modules[name] for name in names}


def typed_modules(model: nn.Module) -> list[nn.Module]:
    """Return the modules whose layout is known: what `Call.note` is to see."""
    return [module for module in model.modules() if isinstance(module, (*_LAST, *_FIRST))]


class Call:
    """One call of the model."""

    def __init__(self, batch: Batch, first_input: int) -> None:
        self.given = [tensor for tensor in tensors(batch) if tensor.ndim]
        self.first_input = first_input
        self.count = len(self.given[0]) if self.given else 1
        self._layout: tuple[int, int, int] | None = None  # axes, which of them features are along, how many
        self._parts: Counter[str] = Counter()

    def note(self, module: nn.Module, _: Any, given: Any) -> None:
        """Remember the layout of what a module gave whose layout is known."""
        tensor = next(tensors(given), None)
        if tensor is not None and tensor.ndim > 1:
            axis = 1 if isinstance(module, _FIRST) else tensor.ndim - 1
            self._layout = tensor.ndim, axis, tensor.shape[axis]

    def pieces(
        self, name: str, module: nn.Module, given: Any, axis: int | None, output: Callable[[Any], Tensor] | None
    ) -> Pieces:
        """Return what a layer gave, features last."""
        rows = self.features_last(name, module, given, axis, output).detach()
        grid = tuple(rows.shape[1:-1])
        rows = rows.reshape(len(rows), -1, rows.shape[-1])
        return Pieces(rows, grid, self._strides(grid), *self.numbers(name, len(rows)))

    def features_last(
        self, name: str, module: nn.Module, given: Any, axis: int | None, output: Callable[[Any], Tensor] | None
    ) -> Tensor:
        """Return the tensor that a layer gave, a view (pieces, *grid, features) through which gradients flow."""
        tensor = first_tensor(given, f"The layer {name!r}") if output is None else output(given)
        if tensor.ndim == 0 or tensor.is_complex() or tensor.numel() == 0:
            raise RefusedError(
                f"The layer {name!r} gives {tensor.dtype} of shape {tuple(tensor.shape)}, no activations."
            )
        if tensor.ndim == 1:
            tensor = tensor[None]
        if tensor.ndim == 3 and not getattr(module, "batch_first", True):
            tensor = tensor.transpose(0, 1)
        return tensor.movedim(self.axis(name, module, tensor, axis), -1)

    def numbers(self, name: str, pieces: int) -> tuple[Integers, Integers]:
        """Return which input each of so many pieces from a layer is of, and which part of what there is for it."""
        each = pieces // self.count if pieces % self.count == 0 else 0
        numbers = np.arange(pieces)
        inputs = self.first_input + numbers // each if each else np.full(pieces, -1)
        parts = self._parts[name] + (numbers % each if each else numbers)
        self._parts[name] += each or pieces
        return inputs, parts

    def axis(self, name: str, module: nn.Module, tensor: Tensor, axis: int | None) -> int:
        """Return the axis of a layer's tensor that features are along: the one given, or by what ran so far."""
        if axis is not None:
            if axis % tensor.ndim == 0 or not -tensor.ndim <= axis < tensor.ndim:
                raise RefusedError(
                    f"The layer {name!r} gives the shape {tuple(tensor.shape)}, whose features cannot be along the "
                    f"axis {axis}."
                )
            return axis
        if isinstance(module, _LAST):
            return -1
        if isinstance(module, _FIRST):
            return 1
        if self._layout is not None:
            axes, along, features = self._layout
            if axes == tensor.ndim and features == tensor.shape[along]:
                return along
        return -1 if tensor.ndim == 3 else 1

    def _strides(self, grid: tuple[int, ...]) -> tuple[float, ...]:
        for tensor in self.given:
            shape = tuple(tensor.shape)
            tokens = not tensor.is_floating_point() or (len(shape) == 3 and shape[1:2] == grid)
            extents = shape[1 : 1 + len(grid)] if tokens else shape[2:]
            if len(extents) == len(grid):
                return tuple(n / m for n, m in zip(extents, grid, strict=True))
        return (math.nan,) * len(grid)
