"""Labels of inputs, or painted on them, at the samples of a layer; and their random permutations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ...errors import InputError
from ...types import Float64Array, IntArray
from ..decomposition.components import Components, SampleLocations

How = Literal["majority", "nearest", "mean"]


def labels_at(places: SampleLocations, labels: ArrayLike | Sequence[ArrayLike], how: How = "majority") -> NDArray[Any]:
    """Return the label of each sample of a layer.

    A position of the grid of a layer covers a cell of voxels of the input: those with their centres in it. (Its
    receptive field is larger.)

    Parameters
    ----------
    places : SampleLocations
        Locations of the samples.
    labels : array_like, (inputs,), or sequence of array_like
        One value for each input; or an array on the grid of each input, (y, x) or (z, y, x), such as a Labels layer.
    how : {"majority", "nearest", "mean"}
        Resampling of painted arrays: most frequent label in the cell (the smallest of equally frequent ones), label of
        the voxel nearest to its centre, or mean of the cell, for continuous values.

    Returns
    -------
    ndarray, (samples,)

    Raises
    ------
    InputError
        If there are not as many labels as inputs, an array is not on the grid of its input, or the samples of the layer
        belong to no single input.
    """
    if (places.inputs < 0).any():
        raise InputError("This layer has one output for a whole batch, so its samples have no labels.")
    arrays = [np.asarray(one) for one in labels]  # type: ignore[union-attr]
    needed = int(places.inputs.max(initial=-1)) + 1
    if len(arrays) < needed:
        raise InputError(f"There are labels of {len(arrays)} inputs, and samples of {needed}.")
    if all(one.ndim == 0 for one in arrays):
        return np.array([one.item() for one in arrays])[places.input]
    here: list[NDArray[Any]] = []
    for piece, number in enumerate(places.inputs):
        grid, strides = places.grids[piece], places.strides[piece]
        array = arrays[number]
        if array.ndim != len(grid) or not np.array_equal(np.round(grid * strides), array.shape):
            expected = " x ".join(f"{n:.0f}" for n in grid * strides) or "no axes"
            raise InputError(
                f"The labels of input {number} have the shape {array.shape}, and the input that of {expected} voxels."
            )
        here.append(resample_labels(array, tuple(grid), how).ravel())
    sizes = np.array([len(one) for one in here])
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    return np.asarray(np.concatenate(here)[starts[places.piece] + places.position])


def resample_labels(array: NDArray[Any], grid: tuple[int, ...], how: How = "majority") -> NDArray[Any]:
    """Resample an array from the voxels of an input to the grid of a layer; see `labels_at`."""
    axes = [np.floor((np.arange(g) + 0.5) * n / g).astype(np.int64) for n, g in zip(array.shape, grid, strict=True)]
    nearest = np.asarray(array[np.ix_(*axes)])
    if how == "nearest" or any(g >= n for n, g in zip(array.shape, grid, strict=True) if g != n):
        return nearest
    size = int(np.prod(grid))
    along = [np.floor((np.arange(n) + 0.5) * g / n).astype(np.int64) for n, g in zip(array.shape, grid, strict=True)]
    cells = np.ravel_multi_index(np.meshgrid(*along, indexing="ij"), grid).ravel()
    counts = np.bincount(cells, minlength=size)
    if how == "mean":
        sums = np.bincount(cells, weights=array.ravel().astype(np.float64), minlength=size)
        return np.asarray(sums / counts).reshape(grid)
    values, which = np.unique(array.ravel(), return_inverse=True)
    most, label = np.full(size, -1), np.zeros(size, dtype=np.int64)
    for k in range(len(values)):  # one by one: a table of all labels may be large
        votes = np.bincount(cells[which == k], minlength=size)
        label[votes > most] = k
        most = np.maximum(most, votes)
    return np.asarray(values[label].reshape(grid))


def reconstruct_activations(decomposition: Components) -> Float64Array:
    """Return A (samples, features) reconstructed from its modes: exactly, if the decomposition has all modes."""
    rows = (decomposition.scores * decomposition.values) @ decomposition.concepts.T
    return np.asarray(rows if decomposition.mean is None else rows + decomposition.mean)


def block_groups(places: SampleLocations, blocks: int = 4) -> IntArray:
    """Return a group for each sample: blocks of the grid of each input, `blocks` along each axis.

    Blocks are for cross-validation within one painted volume. Receptive fields overlap at the faces between blocks, so
    results within one volume are slightly optimistic, and do not generalize to other volumes.

    Raises
    ------
    InputError
        If there is less than one block.
    """
    if blocks < 1:
        raise InputError(f"There are 1 or more blocks along an axis; got {blocks}.")
    which = places.index * blocks // np.maximum(places.grids[places.piece], blocks)
    keys = np.column_stack([places.inputs[places.piece], which])
    return np.unique(keys, axis=0, return_inverse=True)[1].reshape(-1).astype(np.int64)


def permute_labels(labels: NDArray[Any], groups: IntArray, rng: np.random.Generator) -> NDArray[Any]:
    """Return labels permuted under the null hypothesis that they are independent of the samples.

    Labels that are constant within every group are permuted among the groups. Others are moved to another group as a
    whole, with a random cyclic shift, which keeps the correlation of neighbours.
    """
    members = [np.flatnonzero(groups == g) for g in np.unique(groups)]
    constant = all((labels[m] == labels[m[0]]).all() for m in members)
    out = np.empty_like(labels)
    while True:
        for into, source in zip(members, rng.permutation(len(members)), strict=True):
            given = labels[members[source]]
            if not constant:
                given = np.roll(given, rng.integers(len(given)))
            out[into] = given[np.arange(len(into)) * len(given) // len(into)]
        # Groups of other sizes may not have room for rare labels.
        if constant or labels.dtype.kind == "f" or len(np.unique(out)) == len(np.unique(labels)):
            return out
