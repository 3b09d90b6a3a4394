"""The rows that a layer gives, one block after the other: decomposed as they pass, kept as far as a budget goes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...errors import InputError
from ...types import IntArray
from ..models.forward import Inputs, RefusedError, iterate_batches
from ..models.outputs import LayerOutput
from .components import Components, SampleLocations, build_components
from .streaming_svd import Scores, StreamingSVD

BUDGET = 2**30  # bytes of activations that are kept for the scores, of all layers together


class Samples:
    """What is known of a layer's activations while they pass."""

    def __init__(self, name: str, k: int, centre: bool, max_samples: int | None, seed: int) -> None:
        self.name, self.centre, self.seed = name, centre, seed
        self.samples = 0
        self._svd = StreamingSVD(k, centre=centre)
        self._tables: list[LayerOutput] = []  # without their rows
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

    def take(self, pieces: LayerOutput) -> None:
        """Take in what the layer gave."""
        self._check(pieces)
        first = sum(len(table.inputs) for table in self._tables)
        self._tables.append(replace(pieces, rows=torch.empty(0, pieces.rows.shape[-1])))
        count, positions, _ = pieces.rows.shape
        self.samples += count * positions
        if self._chosen is not None:
            whose = np.where(pieces.inputs < 0, self.samples, pieces.inputs)
            self._chosen.take(pieces.rows, draw_priorities(self.seed, whose, pieces.parts, positions), first)
            return
        rows = _numbers(pieces.rows.flatten(0, 1))
        self._svd.update(rows)
        if self._kept is not None:
            self._kept.append(rows)

    def decompose(self) -> None:
        """Decompose all that was taken in, and score what was kept."""
        self._check_called()
        if self._chosen is not None:
            self._kept = [self._chosen.rows()]
            self._svd.update(self._kept[0])
        self._spectrum, self._V, self._mean = self._svd.result()
        self._scores = Scores(self._spectrum, self._V, self._mean, self._svd.rows)
        for rows in self._kept or ():
            self._scores.update(rows)

    @property
    def gram(self) -> NDArray[np.float64]:
        """A^T A, (features, features)."""
        return self._svd.gram

    @property
    def complete(self) -> bool:
        """Whether all samples have their scores."""
        return self._kept is not None

    def matrix(self) -> tuple[NDArray[Any], SampleLocations]:
        """Return the samples that were chosen, (samples, features), and where they lie."""
        self._check_called()
        assert self._chosen is not None
        rows = self._chosen.rows()
        return rows, self._places()

    def score(self, pieces: LayerOutput) -> None:
        """Score what the layer gave again."""
        assert self._scores is not None
        self._scores.update(_numbers(pieces.rows.flatten(0, 1)))

    def result(self) -> Components:
        """Return the decomposition."""
        assert self._scores is not None
        return build_components(
            self._spectrum,
            self._V,
            self._scores.result(),
            self._svd.total,
            layer=self.name,
            mean=self._mean if self.centre else None,
            places=self._places(),
            missed=self._svd.missed,
        )

    def _places(self) -> SampleLocations:
        tables = self._tables
        sizes = [len(t.inputs) for t in tables]
        if self._chosen is None:
            each = np.repeat([len(t.taken) for t in tables], sizes)  # positions of each piece
            piece = np.repeat(np.arange(len(each)), each)
            position = np.concatenate([np.tile(t.taken, len(t.inputs)) for t in tables])
        else:
            piece, position = self._chosen.piece, self._chosen.position
        d = len(tables[0].grid)
        return SampleLocations(
            piece,
            position,
            np.concatenate([t.inputs for t in tables]),
            np.concatenate([t.parts for t in tables]),
            np.repeat(np.array([t.grid for t in tables], dtype=np.int64).reshape(len(tables), d), sizes, 0),
            np.repeat(np.array([t.strides for t in tables], dtype=np.float64).reshape(len(tables), d), sizes, 0),
        )

    def _check_called(self) -> None:
        if self.samples == 0:
            raise InputError(f"The layer {self.name!r} is never called by the model, so it has no activations.")

    def _check(self, pieces: LayerOutput) -> None:
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


@dataclass(frozen=True, eq=False)
class ActivationStep:
    """How far a capture is.

    Attributes
    ----------
    batch : int
        Batches done, those of the second pass too.
    message : str
    result : dict of str to Components, or None
        By layer; with the last step.
    """

    batch: int
    message: str
    result: dict[str, Components] | None = field(default=None, repr=False)


# Calls the model with each batch; the function is called with what each of the named layers gives.
Run = Callable[[Collection[str], Callable[[Samples, LayerOutput], None]], Iterator[None]]


def decompose_steps(
    inputs: Inputs,
    taken: dict[str, Samples],
    run: Run,
    budget: int,
    uncalled: bool,
) -> Iterator[ActivationStep]:
    """Run the model for the decompositions, and once more for the scores of what the budget did not keep.

    `run(names, take)` calls the model with each batch, and `take` with what each of the named layers gives; layers that
    are never called are left out if `uncalled`. The last step has the result.
    """
    done = 0
    for _ in run(taken, Samples.take):
        while sum(layer.kept_bytes for layer in taken.values()) > budget:
            max(taken.values(), key=lambda layer: layer.kept_bytes).drop()
        done += 1
        yield ActivationStep(done, "Running the model")
    if done == 0:
        raise InputError("There are no inputs to run the model with.")
    if uncalled:
        taken = {name: layer for name, layer in taken.items() if layer.samples}
    for layer in taken.values():
        layer.decompose()
    again = [name for name, layer in taken.items() if not layer.complete]
    if again:
        if iter(iterate_batches(inputs)) is inputs:
            raise InputError(
                f"The activations take more than {budget / 2**20:.0f} MiB, so the inputs are needed twice; give a list "
                "of them, or a larger budget, or fewer samples with max_samples=."
            )
        for _ in run(again, Samples.score):
            done += 1
            yield ActivationStep(done, "Running the model again for the scores")
    yield ActivationStep(done, "Done", {name: layer.result() for name, layer in taken.items()})


class _Chosen:
    """The samples of lowest priority numbers: so many, drawn evenly from all, whatever the order they come in."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._limit = np.iinfo(np.uint64).max  # no sample above it can be among the chosen ones
        self._parts: list[tuple[NDArray[np.uint64], IntArray, IntArray, NDArray[Any]]] = []
        self.piece = self.position = np.empty(0, dtype=np.int64)

    def take(self, rows: Tensor, drawn: NDArray[np.uint64], first: int) -> None:
        """Take in rows (pieces, positions, features) whose pieces are numbered from `first`."""
        piece, position = np.nonzero(drawn <= self._limit)
        if len(piece) == 0:
            return
        where = [torch.from_numpy(i).to(rows.device) for i in (piece, position)]
        self._parts.append((drawn[piece, position], first + piece, position, _numbers(rows[where[0], where[1]])))
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


def draw_priorities(seed: int, inputs: IntArray, parts: IntArray, positions: int) -> NDArray[np.uint64]:
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
