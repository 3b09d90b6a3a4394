"""Outputs of layers: selection of layers and layout of their tensors."""

from __future__ import annotations

import difflib
import fnmatch
import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor, nn

from ...errors import InputError
from ...types import IntArray
from .forward import Batch, RefusedError, find_tensor, iterate_tensors

# Modules whose axis of features is known; of others see `ForwardCall.axis`.
_LAST: tuple[type[nn.Module], ...] = (
    *(nn.Linear, nn.Bilinear, nn.LayerNorm, nn.RMSNorm, nn.Embedding, nn.EmbeddingBag),
    *(nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerDecoderLayer, nn.RNNBase),
)
_FIRST: tuple[type[nn.Module], ...] = (nn.modules.conv._ConvNd, nn.modules.batchnorm._NormBase, nn.GroupNorm)

_NEVER_CALLED = (nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)


@dataclass(frozen=True, eq=False)
class LayerOutput:
    """Output of a layer in one call, features last.

    Attributes
    ----------
    rows : Tensor, (pieces, positions, features)
        Activations; a piece is the output for one input.
    grid : tuple of int
        Shape of the grid of positions.
    strides : tuple of float
        Extent of the input over that of the grid.
    inputs, parts : ndarray of int, (pieces,)
        Numbers of the inputs, and of the parts where a layer has several outputs for an input.
    positions : ndarray of int, optional
        Sampled positions of the grid, in C order; all if omitted.
    """

    rows: Tensor
    grid: tuple[int, ...]
    strides: tuple[float, ...]
    inputs: IntArray
    parts: IntArray
    positions: IntArray | None = None

    @property
    def sampled_positions(self) -> IntArray:
        """Positions of the grid, in C order, that the rows are sampled at."""
        return np.arange(math.prod(self.grid)) if self.positions is None else self.positions


def select_modules(model: nn.Module, layers: Sequence[str] | str | None) -> dict[str, nn.Module]:
    """Return modules by name; all that have parameters of their own if no layers are given.

    Raises
    ------
    InputError
        If there is no such module; the message has similar names.
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
            raise InputError(f"The model has no layer {name!r}; near names are {', '.join(map(repr, near))}.")
    return {name: modules[name] for name in names}


def match_layers(model: nn.Module, patterns: Iterable[str]) -> list[str] | None:
    """Return the names of the layers that match patterns such as ``body.*``; None if there are no patterns.

    Raises
    ------
    InputError
        If a pattern matches no layer.
    """
    called = [name for name, module in model.named_modules() if name and not isinstance(module, _NEVER_CALLED)]
    found: dict[str, None] = {}
    for pattern in patterns:
        matching = fnmatch.filter(called, pattern) if any(c in pattern for c in "*?[") else []
        found |= dict.fromkeys(matching or select_modules(model, [pattern]))
    return list(found) or None


def layer_label(layer: str) -> str:
    """Return the name of a layer for people: "(model)" for the model itself, which has the name ""."""
    return layer or "(model)"


def typed_modules(model: nn.Module) -> list[nn.Module]:
    """Return the modules with a known axis of features: those for `ForwardCall.record`."""
    return [module for module in model.modules() if isinstance(module, (*_LAST, *_FIRST))]


class ForwardCall:
    """One call of the model: counts its inputs, and finds the axis of features of its layers."""

    def __init__(self, batch: Batch, first_input: int) -> None:
        self.given = [tensor for tensor in iterate_tensors(batch) if tensor.ndim]
        self.first_input = first_input
        self.count = len(self.given[0]) if self.given else 1
        self._layout: tuple[int, int, int] | None = None  # number of axes, axis of features, features
        self._parts: Counter[str] = Counter()

    def record(self, module: nn.Module, _: Any, given: Any) -> None:
        """Record the layout of the output of a typed module, for layers without one of their own."""
        tensor = next(iterate_tensors(given), None)
        if tensor is not None and tensor.ndim > 1:
            axis = 1 if isinstance(module, _FIRST) else tensor.ndim - 1
            self._layout = tensor.ndim, axis, tensor.shape[axis]

    def pieces(
        self, name: str, module: nn.Module, given: Any, axis: int | None, output: Callable[[Any], Tensor] | None
    ) -> LayerOutput:
        """Return the output of a layer, features last."""
        rows = self.features_last(name, module, given, axis, output).detach()
        grid = tuple(rows.shape[1:-1])
        rows = rows.reshape(len(rows), -1, rows.shape[-1])
        return LayerOutput(rows, grid, self._strides(grid), *self.numbers(name, len(rows)))

    def features_last(
        self, name: str, module: nn.Module, given: Any, axis: int | None, output: Callable[[Any], Tensor] | None
    ) -> Tensor:
        """Return the output of a layer as a view (pieces, *grid, features); gradients flow through it."""
        tensor = find_tensor(given, f"The layer {name!r}") if output is None else output(given)
        if tensor.ndim == 0 or tensor.is_complex() or tensor.numel() == 0:
            raise RefusedError(
                f"The layer {name!r} returns {tensor.dtype} of shape {tuple(tensor.shape)}, which are no activations."
            )
        if tensor.ndim == 1:
            tensor = tensor[None]
        if tensor.ndim == 3 and not getattr(module, "batch_first", True):
            tensor = tensor.transpose(0, 1)
        return tensor.movedim(self.axis(name, module, tensor, axis), -1)

    def numbers(self, name: str, pieces: int) -> tuple[IntArray, IntArray]:
        """Return the input and the part of each piece, both (pieces,); -1 for an output of the whole batch."""
        each = pieces // self.count if pieces % self.count == 0 else 0
        numbers = np.arange(pieces)
        inputs = self.first_input + numbers // each if each else np.full(pieces, -1)
        parts = self._parts[name] + (numbers % each if each else numbers)
        self._parts[name] += each or pieces
        return inputs, parts

    def axis(self, name: str, module: nn.Module, tensor: Tensor, axis: int | None) -> int:
        """Return the axis of features of the output of a layer: the one given, or by the layers that ran before."""
        if axis is not None:
            if axis % tensor.ndim == 0 or not -tensor.ndim <= axis < tensor.ndim:
                raise RefusedError(
                    f"The output of the layer {name!r} has the shape {tuple(tensor.shape)}; its features cannot be "
                    f"along the axis {axis}."
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
