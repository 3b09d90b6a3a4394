"""Which sample of a layer lies at which voxel of an image, and which voxels samples stand for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import InputError
from ...grid import Grid
from ...types import IntArray
from ..decomposition.components import Components
from ..models.inputs import Images, Place
from .grids import assemble_maps, covered_voxels, to_grid


@dataclass(frozen=True, eq=False)
class Positions:
    """The samples of a layer in one image.

    Attributes
    ----------
    samples : ndarray of int32, (Z, Y, X) or (Y, X)
        At each voxel the row of `Components.scores` that lies there; -1 where none does, as samples were drawn.
    grid : Grid
        That of the layer's concept maps: the image's own, or a finer one where the layer is finer.
    """

    samples: NDArray[np.int32] = field(repr=False)
    grid: Grid

    @cached_property
    def _there(self) -> tuple[IntArray, NDArray[np.int32]]:
        """The voxels where a sample lies, in C order, and which."""
        flat = self.samples.ravel()
        voxels = np.flatnonzero(flat >= 0)
        return voxels, flat[voxels]

    def mark(self, labels: NDArray[Any], of_samples: NDArray[Any]) -> None:
        """Give every voxel where a sample lies the label of that sample, in place; `labels` is C-contiguous."""
        voxels, samples = self._there
        labels.reshape(-1)[voxels] = of_samples[samples]

    def labelled(self, labels: NDArray[Any], count: int) -> NDArray[Any]:
        """Return for each of `count` samples the largest label of its voxels, 0 where it has none.

        `labels` are those of the voxels of the image, on its own grid, or on `grid`.
        """
        voxels, samples = self._there
        if labels.shape == self.samples.shape:
            here = labels.reshape(-1)[voxels]
        else:
            axes = np.unravel_index(voxels, self.samples.shape)
            nearest = (a * n // m for a, n, m in zip(axes, labels.shape, self.samples.shape, strict=True))
            here = labels[tuple(nearest)]
        found = np.zeros(count, dtype=labels.dtype)
        kept = here != 0
        np.maximum.at(found, samples[kept], here[kept])
        return found

    def at(self, world: NDArray[np.float64]) -> int | None:
        """Return the sample at a point of the world, along the grid's axes; None if there is none."""
        inverse = np.linalg.inv(self.grid.affine)
        index = np.rint(inverse[:-1, :-1] @ world + inverse[:-1, -1]).astype(int)
        if not all(0 <= i < n for i, n in zip(index, self.samples.shape, strict=True)):
            return None
        sample = int(self.samples[tuple(index)])
        return sample if sample >= 0 else None


def locate_samples(decomposition: Components, images: Images, volume: int) -> Positions:
    """Return where the samples of a layer lie in one of the images.

    Raises
    ------
    ValueError
        If they have no place there: vectors, windows of images, tokens that are no patches.
    """
    places = decomposition.places
    nowhere = f"What the layer {decomposition.layer!r} says has no place in the image."
    if places is None or (places.inputs < 0).any() or places.parts.any():
        raise InputError(nowhere)
    taken = {}
    for number, at, samples in _pieces(decomposition):
        if images.places[number].volume != volume:
            continue
        grid = tuple(int(n) for n in places.grids[at])
        rows = np.full((int(np.prod(grid)), 1), -1, dtype=np.float32)  # exact up to 2^24
        rows[places.position[samples], 0] = samples
        spatial = to_grid(rows, grid, images.places[number].extent)
        if spatial is None:
            raise InputError(nowhere)
        taken[number] = spatial
    if not taken:
        raise InputError(f"No sample of the layer {decomposition.layer!r} is of {images.volumes[volume].name}.")
    maps = assemble_maps(decomposition.layer, volume, taken, images)
    return Positions(np.nan_to_num(maps.values[0], nan=-1).astype(np.int32), maps.grid)


def place_on_slice(piece: NDArray[Any], place: Place, images: Images) -> tuple[NDArray[np.float32], Grid]:
    """Return what a model gave for one input, along the input's axes, as an array on a grid over its slice.

    One voxel thick across the slice, with finer voxels where the output is finer; the whole volume for inputs that are
    volumes. NaN where the input does not reach.
    """
    layout, source = images.layout, images.volumes[place.volume].grid
    finer = np.ones(3)
    for axis, n, m in zip(layout.axes, place.extent, piece.shape, strict=True):
        finer[axis] = max(1.0, m / n)
    if layout.across is not None and source.ndim == 3:
        assert place.slice is not None
        source = source.slab(layout.across, place.slice)
    grid = source.resampled(tuple(finer[3 - source.ndim :]))
    shape = (1,) * (3 - source.ndim) + grid.shape
    values = np.full(shape, np.nan, dtype=np.float32)
    order = layout.axes if layout.across is None else (layout.across, *layout.axes)
    view = values.transpose(order)
    plane = view if layout.across is None else view[0]
    target, index = covered_voxels(place, piece.shape, finer[list(layout.axes)], [shape[axis] for axis in layout.axes])
    plane[tuple(target)] = piece[np.ix_(*index)]
    return values.reshape(grid.shape), grid


def _pieces(decomposition: Components) -> Iterator[tuple[int, int, IntArray]]:
    """Yield the input of each piece that has samples, its number, and which samples these are."""
    places = decomposition.places
    assert places is not None
    order = np.argsort(places.piece, kind="stable")
    pieces, starts = np.unique(places.piece[order], return_index=True)
    for piece, samples in zip(pieces, np.split(order, starts[1:]), strict=True):
        yield int(places.inputs[piece]), int(piece), samples
