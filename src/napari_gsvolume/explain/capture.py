"""The activations of a model's layers, taken by forward hooks as it runs, and decomposed without being held."""

from __future__ import annotations

import difflib
import math
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from .decomposition import Decomposition, Places, check_modes, decomposition
from .forward import Batch, Inputs, RefusedError, batches, call, first_tensor, hooked, tensors, undisturbed
from .streaming import Scores, StreamingSVD

Integers = NDArray[np.int64]

BUDGET = 2**30  # bytes of activations that are kept for the scores, of all layers together

# Where features are in what these give. For others see _Layouts.
_LAST: tuple[type[nn.Module], ...] = (
    *(nn.Linear, nn.Bilinear, nn.LayerNorm, nn.RMSNorm, nn.Embedding, nn.EmbeddingBag),
    *(nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerDecoderLayer, nn.RNNBase),
)
_FIRST: tuple[type[nn.Module], ...] = (nn.modules.conv._ConvNd, nn.modules.batchnorm._NormBase, nn.GroupNorm)


@dataclass(frozen=True, eq=False)
class CaptureStep:
    """How far a capture is.

    Attributes
    ----------
    batch : int
        Batches done, those of the second pass too.
    message : str
    result : dict of str to Decomposition, or None
        By layer; with the last step.
    """

    batch: int
    message: str
    result: dict[str, Decomposition] | None = field(default=None, repr=False)


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
    axes = features_axis if isinstance(features_axis, Mapping) else dict.fromkeys(modules, features_axis)
    taken = {name: _Layer(name, k, centre, max_samples, seed) for name in modules}

    def run(names: Collection[str], take: Callable[[_Layer, _Pieces], None]) -> Iterator[None]:
        first = 0
        for number, batch in enumerate(batches(inputs)):
            now = _Call(batch, first)

            def hook(name: str, now: _Call = now) -> Callable[..., None]:
                def see(module: nn.Module, _: Any, given: Any) -> None:
                    take(taken[name], now.pieces(name, module, given, axes.get(name), output))

                return see

            typed = dict.fromkeys(_modules_of(model, (*_LAST, *_FIRST)), now.note)
            hooks = {modules[name]: hook(name) for name in names}
            # Whoever consumes the steps may do anything between them: the model is itself then.
            with undisturbed(model, seed + number), torch.no_grad(), hooked(typed), hooked(hooks):
                call(model, batch)
            first += now.count
            yield

    done = 0
    for _ in run(taken, _Layer.take):
        while sum(layer.kept_bytes for layer in taken.values()) > budget:
            max(taken.values(), key=lambda layer: layer.kept_bytes).drop()
        done += 1
        yield CaptureStep(done, "Running the model")
    if done == 0:
        raise ValueError("There are no inputs to run the model with.")
    if layers is None:
        taken = {name: layer for name, layer in taken.items() if layer.samples}
    for layer in taken.values():
        layer.decompose()
    again = [name for name, layer in taken.items() if not layer.complete]
    if again:
        if iter(batches(inputs)) is inputs:
            raise ValueError(
                f"The activations take more than {budget / 2**20:.0f} MiB, so the inputs are needed twice; give a list "
                "of them, or a larger budget, or fewer samples with max_samples=."
            )
        for _ in run(again, _Layer.score):
            done += 1
            yield CaptureStep(done, "Running the model again for the scores")
    yield CaptureStep(done, "Done", {name: layer.result() for name, layer in taken.items()})


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


def _modules_of(model: nn.Module, kinds: tuple[type[nn.Module], ...]) -> list[nn.Module]:
    return [module for module in model.modules() if isinstance(module, kinds)]


@dataclass(frozen=True, eq=False)
class _Pieces:
    """What a layer gave in one go."""

    rows: Tensor  # (pieces, positions, features)
    grid: tuple[int, ...]  # of the positions
    strides: tuple[float, ...]
    inputs: Integers  # (pieces,)
    parts: Integers  # (pieces,)


class _Call:
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
    ) -> _Pieces:
        """Return what a layer gave, features last."""
        tensor = first_tensor(given, f"The layer {name!r}") if output is None else output(given)
        tensor = tensor.detach()
        if tensor.ndim == 0 or tensor.is_complex() or tensor.numel() == 0:
            raise RefusedError(
                f"The layer {name!r} gives {tensor.dtype} of shape {tuple(tensor.shape)}, no activations."
            )
        if tensor.ndim == 1:
            tensor = tensor[None]
        if tensor.ndim == 3 and not getattr(module, "batch_first", True):
            tensor = tensor.transpose(0, 1)
        rows = tensor.movedim(self._axis(name, module, tensor, axis), -1)
        pieces, grid = len(rows), tuple(rows.shape[1:-1])
        each = pieces // self.count if pieces % self.count == 0 else 0
        numbers = np.arange(pieces)
        inputs = self.first_input + numbers // each if each else np.full(pieces, -1)
        parts = self._parts[name] + (numbers % each if each else numbers)
        self._parts[name] += each or pieces
        return _Pieces(rows.reshape(pieces, -1, rows.shape[-1]), grid, self._strides(grid), inputs, parts)

    def _axis(self, name: str, module: nn.Module, tensor: Tensor, axis: int | None) -> int:
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


class _Layer:
    """What is known of a layer's activations while they pass."""

    def __init__(self, name: str, k: int, centre: bool, max_samples: int | None, seed: int) -> None:
        self.name, self.centre, self.seed = name, centre, seed
        self.samples = 0
        self._svd = StreamingSVD(k, centre=centre)
        self._tables: list[_Pieces] = []  # without their rows
        self._chosen = None if max_samples is None else _Chosen(max_samples)
        self._kept: list[NDArray[Any]] | None = [] if max_samples is None else None
        self._scores: Scores | None = None

    @property
    def kept_bytes(self) -> int:
        """Bytes of the activations that are kept, and need not be."""
        return sum(rows.nbytes for rows in self._kept or ())

    def drop(self) -> None:
        """Keep no activations."""
        self._kept = None

    def take(self, pieces: _Pieces) -> None:
        """Take in what the layer gave."""
        self._check(pieces)
        first = sum(len(table.inputs) for table in self._tables)
        self._tables.append(replace(pieces, rows=torch.empty(0, pieces.rows.shape[-1])))
        count, positions, _ = pieces.rows.shape
        self.samples += count * positions
        if self._chosen is not None:
            whose = np.where(pieces.inputs < 0, self.samples, pieces.inputs)
            self._chosen.take(pieces.rows, _priorities(self.seed, whose, pieces.parts, positions), first)
            return
        rows = _numbers(pieces.rows.flatten(0, 1))
        self._svd.update(rows)
        if self._kept is not None:
            self._kept.append(rows)

    def decompose(self) -> None:
        """Decompose all that was taken in, and score what was kept."""
        if self.samples == 0:
            raise ValueError(f"The layer {self.name!r} is never called by the model, so it has no activations.")
        if self._chosen is not None:
            self._kept = [self._chosen.rows()]
            self._svd.update(self._kept[0])
        self._spectrum, self._V, self._mean = self._svd.result()
        self._scores = Scores(self._spectrum, self._V, self._mean, self._svd.rows)
        for rows in self._kept or ():
            self._scores.update(rows)

    @property
    def complete(self) -> bool:
        """Whether all samples have their scores."""
        return self._kept is not None

    def score(self, pieces: _Pieces) -> None:
        """Score what the layer gave again."""
        assert self._scores is not None
        self._scores.update(_numbers(pieces.rows.flatten(0, 1)))

    def result(self) -> Decomposition:
        """Return the decomposition."""
        assert self._scores is not None
        return decomposition(
            self._spectrum,
            self._V,
            self._scores.result(),
            self._svd.total,
            layer=self.name,
            mean=self._mean if self.centre else None,
            places=self._places(),
            missed=self._svd.missed,
        )

    def _places(self) -> Places:
        tables = self._tables
        sizes = [len(t.inputs) for t in tables]
        if self._chosen is None:
            each = np.repeat([math.prod(t.grid) for t in tables], sizes)  # positions of each piece
            piece = np.repeat(np.arange(len(each)), each)
            position = np.arange(len(piece)) - np.repeat(np.cumsum(each) - each, each)
        else:
            piece, position = self._chosen.piece, self._chosen.position
        d = len(tables[0].grid)
        return Places(
            piece,
            position,
            np.concatenate([t.inputs for t in tables]),
            np.concatenate([t.parts for t in tables]),
            np.repeat(np.array([t.grid for t in tables], dtype=np.int64).reshape(len(tables), d), sizes, 0),
            np.repeat(np.array([t.strides for t in tables], dtype=np.float64).reshape(len(tables), d), sizes, 0),
        )

    def _check(self, pieces: _Pieces) -> None:
        features = pieces.rows.shape[-1]
        if self._tables:
            before = self._tables[0]
            if features != before.rows.shape[-1] or len(pieces.grid) != len(before.grid):
                raise RefusedError(
                    f"The layer {self.name!r} gives {features} features on a grid of {len(pieces.grid)} axes, after "
                    f"{before.rows.shape[-1]} on {len(before.grid)}; say which axis they are along with features_axis=."
                )
        if not bool(torch.isfinite(pieces.rows).all()):
            bad = ~torch.isfinite(pieces.rows).flatten(1).all(1).cpu().numpy()
            raise RefusedError(
                f"The layer {self.name!r} gives NaN or infinite activations, first for the input "
                f"{pieces.inputs[bad].min()}."
            )


class _Chosen:
    """The samples of lowest priority numbers: so many, drawn evenly from all, whatever the order they come in."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._limit = np.iinfo(np.uint64).max  # no sample above it can be among the chosen ones
        self._parts: list[tuple[NDArray[np.uint64], Integers, Integers, NDArray[Any]]] = []
        self.piece = self.position = np.empty(0, dtype=np.int64)

    def take(self, rows: Tensor, priorities: NDArray[np.uint64], first: int) -> None:
        """Take in rows (pieces, positions, features) whose pieces are numbered from `first`."""
        piece, position = np.nonzero(priorities <= self._limit)
        if len(piece) == 0:
            return
        where = [torch.from_numpy(i).to(rows.device) for i in (piece, position)]
        self._parts.append((priorities[piece, position], first + piece, position, _numbers(rows[where[0], where[1]])))
        if sum(len(part[0]) for part in self._parts) > 2 * self._most:
            self._prune()

    def rows(self) -> NDArray[Any]:
        """Return the chosen samples in the order of their places, which `piece` and `position` then are."""
        self._prune()
        [(_, piece, position, rows)] = self._parts
        order = np.lexsort((position, piece))
        self.piece, self.position = piece[order], position[order]
        self._parts = []
        return np.asarray(rows[order])

    def _prune(self) -> None:
        columns = [np.concatenate(column) for column in zip(*self._parts, strict=True)]
        if len(columns[0]) > self._most:
            least = np.argpartition(columns[0], self._most - 1)[: self._most]
            columns = [column[least] for column in columns]
            self._limit = columns[0].max()
        self._parts = [(columns[0], columns[1], columns[2], columns[3])]


def _priorities(seed: int, inputs: Integers, parts: Integers, positions: int) -> NDArray[np.uint64]:
    """Return random numbers that depend on the seed and the place of a sample alone, (pieces, positions)."""

    def mixed(x: NDArray[np.uint64]) -> NDArray[np.uint64]:  # SplitMix64 (Steele, Lea & Flood 2014)
        x = x + np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))

    start = mixed(np.array([seed % 2**64], dtype=np.uint64))
    pieces = mixed(mixed(start ^ inputs.astype(np.uint64)) ^ parts.astype(np.uint64))
    return mixed(pieces[:, None] ^ np.arange(positions, dtype=np.uint64))


def _numbers(rows: Tensor) -> NDArray[Any]:
    """Return rows as an array of float32, or float64 where they are: a copy, as modules may work in place."""
    kind = rows.dtype if rows.dtype == torch.float64 else torch.float32
    return np.array(rows.to("cpu", kind).numpy())
