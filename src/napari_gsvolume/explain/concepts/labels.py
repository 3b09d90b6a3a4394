"""Labels of inputs, or painted on them, at the samples of a layer; and how they would lie if they meant nothing."""

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

    A position of a layer's grid stands for a cell of the input's voxels: those whose centres lie in it. (It *sees* more
    of the input, its receptive field.)

    Parameters
    ----------
    places : SampleLocations
        Where the samples lie.
    labels : array_like, (inputs,), or sequence of array_like
        One value for each input; or for each an array on its grid, (y, x) or (z, y, x), as of a Labels layer.
    how : {"majority", "nearest", "mean"}
        What a position gets of a painted array: the label that most of its cell has (of as many the smallest), that of
        the voxel nearest to its middle, or the mean of the cell, for values that are no labels.

    Returns
    -------
    ndarray, (samples,)

    Raises
    ------
    ValueError
        If there are not as many labels as inputs, an array is not on its input's grid, or a layer's samples belong to
        no one input.
    """
    if (places.inputs < 0).any():
        raise InputError("This layer gives one thing for a whole batch, so its samples have no labels.")
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
    """Return an array on the grid of an input's voxels at the positions of a layer's grid; see `labels_at`."""
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
    """Return A (samples, features) as far as its modes make it up: all of it, of a decomposition with all modes."""
    rows = (decomposition.scores * decomposition.values) @ decomposition.concepts.T
    return np.asarray(rows if decomposition.mean is None else rows + decomposition.mean)


def block_groups(places: SampleLocations, blocks: int = 4) -> IntArray:
    """Return a group for each sample: blocks of the grid, so many along each axis, of each input by itself.

    For cross-validation within one painted volume. Samples on both sides of a face between blocks still see much the
    same voxels, so what is found within one volume is a little too good, and says nothing of other volumes.

    Raises
    ------
    ValueError
        If there is less than one block.
    """
    if blocks < 1:
        raise InputError(f"There are 1 or more blocks along an axis; got {blocks}.")
    which = places.index * blocks // np.maximum(places.grids[places.piece], blocks)
    keys = np.column_stack([places.inputs[places.piece], which])
    return np.unique(keys, axis=0, return_inverse=True)[1].reshape(-1).astype(np.int64)


def permute_labels(labels: NDArray[Any], groups: IntArray, rng: np.random.Generator) -> NDArray[Any]:
    """Return labels as they might lie if they had nothing to do with the samples, which keep their groups.

    Labels that are the same within every group are dealt out to the groups anew. Others are given to another group as a
    whole, moved along cyclically by a random number of samples: labels of neighbours stay as alike as they are.
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
