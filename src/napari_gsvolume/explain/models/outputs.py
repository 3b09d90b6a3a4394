"""Outputs of layers: selection of layers and layout of their tensors."""

from __future__ import annotations

import difflib
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor, nn

from ...errors import InputError
from ...types import IntArray
from .forward import Batch, RefusedError, find_tensor, iterate_tensors

# Where features are in what these give. For others see _Layouts.
_LAST: tuple[type[nn.Module], ...] = (
    *(nn.Linear, nn.Bilinear, nn.LayerNorm, nn.RMSNorm, nn.Embedding, nn.EmbeddingBag),
    *(nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerDecoderLayer, nn.RNNBase),
)
_FIRST: tuple[type[nn.Module], ...] = (nn.modules.conv._ConvNd, nn.modules.batchnorm._NormBase, nn.GroupNorm)


@dataclass(frozen=True, eq=False)
class LayerOutput:
    """What a layer gave in one go."""

    rows: Tensor  # (pieces, positions, features)
    grid: tuple[int, ...]  # of the positions
    strides: tuple[float, ...]
    inputs: IntArray  # (pieces,)
    parts: IntArray  # (pieces,)
    positions: IntArray | None = None  # which of the grid; all when None

    @property
    def taken(self) -> IntArray:
        """Which positions of the grid the rows are at."""
        return np.arange(math.prod(self.grid)) if self.positions is None else self.positions


def select_modules(model: nn.Module, layers: Sequence[str] | None) -> dict[str, nn.Module]:
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
            raise InputError(f"The model has no layer {name!r}; near names are {', '.join(map(repr, near))}.")
    return {name: modules[name] for name in names}


def typed_modules(model: nn.Module) -> list[nn.Module]:
    """Return the modules whose layout is known: what `ForwardCall.note` is to see."""
    return [module for module in model.modules() if isinstance(module, (*_LAST, *_FIRST))]


class ForwardCall:
    """One call of the model."""

    def __init__(self, batch: Batch, first_input: int) -> None:
        self.given = [tensor for tensor in iterate_tensors(batch) if tensor.ndim]
        self.first_input = first_input
        self.count = len(self.given[0]) if self.given else 1
        self._layout: tuple[int, int, int] | None = None  # axes, which of them features are along, how many
        self._parts: Counter[str] = Counter()

    def note(self, module: nn.Module, _: Any, given: Any) -> None:
        """Remember the layout of what a module gave whose layout is known."""
        tensor = next(iterate_tensors(given), None)
        if tensor is not None and tensor.ndim > 1:
            axis = 1 if isinstance(module, _FIRST) else tensor.ndim - 1
            self._layout = tensor.ndim, axis, tensor.shape[axis]

    def pieces(
        self, name: str, module: nn.Module, given: Any, axis: int | None, output: Callable[[Any], Tensor] | None
    ) -> LayerOutput:
        """Return what a layer gave, features last."""
        rows = self.features_last(name, module, given, axis, output).detach()
        grid = tuple(rows.shape[1:-1])
        rows = rows.reshape(len(rows), -1, rows.shape[-1])
        return LayerOutput(rows, grid, self._strides(grid), *self.numbers(name, len(rows)))

    def features_last(
        self, name: str, module: nn.Module, given: Any, axis: int | None, output: Callable[[Any], Tensor] | None
    ) -> Tensor:
        """Return the tensor that a layer gave, a view (pieces, *grid, features) through which gradients flow."""
        tensor = find_tensor(given, f"The layer {name!r}") if output is None else output(given)
        if tensor.ndim == 0 or tensor.is_complex() or tensor.numel() == 0:
            raise RefusedError(
                f"The layer {name!r} gives {tensor.dtype} of shape {tuple(tensor.shape)}, no activations."
            )
        if tensor.ndim == 1:
            tensor = tensor[None]
        if tensor.ndim == 3 and not getattr(module, "batch_first", True):
            tensor = tensor.transpose(0, 1)
        return tensor.movedim(self.axis(name, module, tensor, axis), -1)

    def numbers(self, name: str, pieces: int) -> tuple[IntArray, IntArray]:
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
