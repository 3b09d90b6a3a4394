"""Samples of layers: rows that are decomposed as a stream, and kept up to a memory limit."""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sized
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...errors import InputError
from ...progress import Budget, Step
from ...types import IntArray
from ..models.forward import Inputs, RefusedError, iterate_batches
from ..models.outputs import LayerOutput
from .components import Components, SampleLocations, build_components
from .streaming_svd import Scores, StreamingSVD

MEMORY_LIMIT = 2**30
"""Bytes of activations that are kept for the scores, of all layers together."""


class Samples:
    """Activations of one layer, taken in batch by batch."""

    def __init__(self, name: str, k: int, centre: bool, max_samples: int | None, seed: int) -> None:
        self.name, self.centre, self.seed = name, centre, seed
        self.samples = 0
        self._svd = StreamingSVD(k, centre=centre)
        self._tables: list[LayerOutput] = []  # without their rows
        self._subset = None if max_samples is None else _RandomSubset(max_samples)
        self._kept: list[NDArray[Any]] | None = [] if max_samples is None else None
        self._scores: Scores | None = None

    @property
    def kept_bytes(self) -> int:
        """Bytes of the activations that are kept and could be dropped."""
        return sum(rows.nbytes for rows in self._kept or ())

    def drop(self) -> None:
        """Drop the activations: the model has to be run again for the scores."""
        self._kept = None

    def take(self, pieces: LayerOutput) -> None:
        """Take in an output of the layer."""
        self._check(pieces)
        first = sum(len(table.inputs) for table in self._tables)
        self._tables.append(replace(pieces, rows=torch.empty(0, pieces.rows.shape[-1])))
        count, positions, _ = pieces.rows.shape
        self.samples += count * positions
        if self._subset is not None:
            owners = np.where(pieces.inputs < 0, self.samples, pieces.inputs)
            self._subset.take(pieces.rows, draw_priorities(self.seed, owners, pieces.parts, positions), first)
            return
        rows = _to_numpy(pieces.rows.flatten(0, 1))
        self._svd.update(rows)
        if self._kept is not None:
            self._kept.append(rows)

    def decompose(self) -> None:
        """Decompose all activations, and compute the scores of those that were kept."""
        self._check_called()
        if self._subset is not None:
            self._kept = [self._subset.rows()]
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
        """True if all samples have scores."""
        return self._kept is not None

    def matrix(self) -> tuple[NDArray[Any], SampleLocations]:
        """Return the sampled activations, (samples, features), and their locations."""
        self._check_called()
        assert self._subset is not None
        rows = self._subset.rows()
        return rows, self._places()

    def score(self, pieces: LayerOutput) -> None:
        """Compute the scores of an output of the second pass."""
        assert self._scores is not None
        self._scores.update(_to_numpy(pieces.rows.flatten(0, 1)))

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
        if self._subset is None:
            each = np.repeat([len(t.sampled_positions) for t in tables], sizes)  # positions of each piece
            piece = np.repeat(np.arange(len(each)), each)
            position = np.concatenate([np.tile(t.sampled_positions, len(t.inputs)) for t in tables])
        else:
            piece, position = self._subset.piece, self._subset.position
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
                    f"The layer {self.name!r} has {features} features on a grid of {len(pieces.grid)} axes, after "
                    f"{before.rows.shape[-1]} on {len(before.grid)}; say which axis they are along with features_axis=."
                )
        if not bool(torch.isfinite(pieces.rows).all()):
            bad = ~torch.isfinite(pieces.rows).flatten(1).all(1).cpu().numpy()
            raise RefusedError(
                f"The layer {self.name!r} has NaN or infinite activations, first for the input "
                f"{pieces.inputs[bad].min()}."
            )


@dataclass(frozen=True, eq=False)
class ActivationStep(Step):
    """Step after a batch of `activation_steps`.

    Attributes
    ----------
    batch : int
        Number of batches that were run, of both passes.
    """

    batch: int = 0

    @property
    def summary(self) -> str:
        """Number of batches."""
        return f"batch {self.batch:,}"


# Runs the model on each batch; the function is called with the output of each of the named layers.
Run = Callable[[Collection[str], Callable[[Samples, LayerOutput], None]], Iterator[None]]


def decompose_steps(
    inputs: Inputs, samples: dict[str, Samples], run: Run, memory_limit: int, skip_uncalled: bool, budget: Budget
) -> Generator[ActivationStep, None, dict[str, Components]]:
    """Run the model for the decompositions, and once more for the scores of activations that were not kept.

    `run(names, take)` runs the model on each batch, and calls `take` with the output of each of the named layers.
    Layers that are never called are left out if `skip_uncalled`, and an error otherwise.
    """
    total = len(inputs) if isinstance(inputs, Sized) else None
    if isinstance(inputs, (Tensor, tuple, Mapping)):
        total = 1  # one batch
    done, fraction, dropped, stopped = 0, 0.0, False, False
    for _ in run(samples, Samples.take):
        while sum(layer.kept_bytes for layer in samples.values()) > memory_limit:
            max(samples.values(), key=lambda layer: layer.kept_bytes).drop()
            dropped = True
        done += 1
        # Of inputs of unknown number the bar never quite arrives.
        part = done / total if total else done / (done + 1)
        fraction = max(fraction, part / 2 if dropped else part)
        yield ActivationStep(min(1.0, fraction), "Running the model", done)
        if stopped := budget.stop():
            break
    if done == 0:
        raise InputError("There are no inputs to run the model with.")
    if skip_uncalled:
        samples = {name: layer for name, layer in samples.items() if layer.samples}
    for layer in samples.values():
        layer.decompose()
    again = [name for name, layer in samples.items() if not layer.complete]
    if again:
        if iter(iterate_batches(inputs)) is inputs:
            raise InputError(
                f"The activations take more than {memory_limit / 2**20:.0f} MiB, so the inputs are needed twice; give "
                "a list of them, a larger memory_limit=, or fewer samples with max_samples=."
            )
        # The same batches as before: a stop request must not leave samples without scores.
        for number, _ in enumerate(run(again, Samples.score), 1):
            fraction = max(fraction, 0.5 + 0.5 * number / done)
            yield ActivationStep(min(1.0, fraction), "Running the model again for the scores", done + number)
            if stopped and number == done:
                break
    return {name: layer.result() for name, layer in samples.items()}


class _RandomSubset:
    """Random subset of the samples: those of the lowest priorities, whatever the order they come in."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._limit = np.iinfo(np.uint64).max  # no sample above it can be in the subset
        self._parts: list[tuple[NDArray[np.uint64], IntArray, IntArray, NDArray[Any]]] = []
        self.piece = self.position = np.empty(0, dtype=np.int64)

    def take(self, rows: Tensor, drawn: NDArray[np.uint64], first: int) -> None:
        """Take in rows (pieces, positions, features); pieces are numbered from `first`."""
        piece, position = np.nonzero(drawn <= self._limit)
        if len(piece) == 0:
            return
        where = [torch.from_numpy(i).to(rows.device) for i in (piece, position)]
        self._parts.append((drawn[piece, position], first + piece, position, _to_numpy(rows[where[0], where[1]])))
        if sum(len(part[0]) for part in self._parts) > 2 * self._size:
            self._prune()

    def rows(self) -> NDArray[Any]:
        """Return the subset ordered by location; `piece` and `position` are set to the locations."""
        self._prune()
        [(_, piece, position, rows)] = self._parts
        order = np.lexsort((position, piece))
        self.piece, self.position = piece[order], position[order]
        self._parts = []
        return np.asarray(rows[order])

    def _prune(self) -> None:
        columns = [np.concatenate(column) for column in zip(*self._parts, strict=True)]
        if len(columns[0]) > self._size:
            least = np.argpartition(columns[0], self._size - 1)[: self._size]
            columns = [column[least] for column in columns]
            self._limit = columns[0].max()
        self._parts = [(columns[0], columns[1], columns[2], columns[3])]


def draw_priorities(seed: int, inputs: IntArray, parts: IntArray, positions: int) -> NDArray[np.uint64]:
    """Return random numbers that depend on the seed and the location of a sample alone, (pieces, positions)."""

    def mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:  # SplitMix64 (Steele, Lea & Flood 2014)
        x = x + np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))

    start = mix(np.array([seed % 2**64], dtype=np.uint64))
    pieces = mix(mix(start ^ inputs.astype(np.uint64)) ^ parts.astype(np.uint64))
    return mix(pieces[:, None] ^ np.arange(positions, dtype=np.uint64))


def _to_numpy(rows: Tensor) -> NDArray[Any]:
    """Return a copy of rows as float32, or float64 if they are: modules may work in place."""
    kind = rows.dtype if rows.dtype == torch.float64 else torch.float32
    return np.array(rows.to("cpu", kind).numpy())
