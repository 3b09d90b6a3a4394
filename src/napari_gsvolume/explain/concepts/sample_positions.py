"""Voxels of the samples of a layer, and outputs on the grid of a slice."""

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
from .grids import ConceptMaps, covered_voxels, to_grid


@dataclass(frozen=True, eq=False)
class SamplePositions:
    """Voxels of the samples of a layer in one image.

    Attributes
    ----------
    samples : ndarray of int32, (Z, Y, X) or (Y, X)
        Row of `Components.scores` of the sample at each voxel; -1 without a sample.
    grid : Grid
        Grid of the concept maps of the layer: that of the image, or a finer one where the layer is finer.
    """

    samples: NDArray[np.int32] = field(repr=False)
    grid: Grid

    @cached_property
    def _occupied(self) -> tuple[IntArray, NDArray[np.int32]]:
        """Voxels with a sample, in C order, and the samples."""
        flat = self.samples.ravel()
        voxels = np.flatnonzero(flat >= 0)
        return voxels, flat[voxels]

    def mark(self, labels: NDArray[Any], of_samples: NDArray[Any]) -> None:
        """Label the voxels of all samples, in place; `labels` is C-contiguous, `of_samples` has a label per sample."""
        voxels, samples = self._occupied
        labels.reshape(-1)[voxels] = of_samples[samples]

    def sample_labels(self, labels: NDArray[Any], count: int) -> NDArray[Any]:
        """Return the largest label of the voxels of each of `count` samples, 0 without one.

        `labels` are on the grid of the image, or on `grid`.
        """
        voxels, samples = self._occupied
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
        """Return the sample at a point in world coordinates, along the axes of the grid; None if there is none."""
        inverse = np.linalg.inv(self.grid.affine)
        index = np.rint(inverse[:-1, :-1] @ world + inverse[:-1, -1]).astype(int)
        if not all(0 <= i < n for i, n in zip(index, self.samples.shape, strict=True)):
            return None
        sample = int(self.samples[tuple(index)])
        return sample if sample >= 0 else None


def locate_samples(decomposition: Components, images: Images, volume: int) -> SamplePositions:
    """Return the voxels of the samples of a layer in one of the images.

    Raises
    ------
    InputError
        If they have no location there: vectors, windows of images, tokens that are no patches.
    """
    places = decomposition.places
    no_location = f"The samples of the layer {decomposition.layer!r} have no location in the image."
    if places is None or (places.inputs < 0).any() or places.parts.any():
        raise InputError(no_location)
    found = {}
    for number, at, samples in _pieces(decomposition):
        if images.places[number].volume != volume:
            continue
        grid = tuple(int(n) for n in places.grids[at])
        rows = np.full((int(np.prod(grid)), 1), -1, dtype=np.float32)  # exact up to 2^24
        rows[places.position[samples], 0] = samples
        spatial = to_grid(rows, grid, images.places[number].extent)
        if spatial is None:
            raise InputError(no_location)
        found[number] = spatial
    if not found:
        raise InputError(f"The layer {decomposition.layer!r} has no samples in {images.volumes[volume].name}.")
    maps = ConceptMaps(decomposition.layer, volume, found, images)
    return SamplePositions(np.nan_to_num(maps.values[0], nan=-1).astype(np.int32), maps.grid)


def place_on_slice(piece: NDArray[Any], place: Place, images: Images) -> tuple[NDArray[np.float32], Grid]:
    """Return the output for one input, along the axes of the input, as an array on a grid over its slice.

    The grid is one voxel thick across the slice, with smaller voxels where the output is finer; it covers the whole
    volume for inputs that are volumes. NaN outside the input.
    """
    layout, source = images.layout, images.volumes[place.volume].grid
    upsampling = np.ones(3)
    for axis, n, m in zip(layout.axes, place.extent, piece.shape, strict=True):
        upsampling[axis] = max(1.0, m / n)
    if layout.across is not None and source.ndim == 3:
        assert place.slice is not None
        source = source.slab(layout.across, place.slice)
    grid = source.resampled(tuple(upsampling[3 - source.ndim :]))
    shape = (1,) * (3 - source.ndim) + grid.shape
    values = np.full(shape, np.nan, dtype=np.float32)
    order = layout.axes if layout.across is None else (layout.across, *layout.axes)
    view = values.transpose(order)
    plane = view if layout.across is None else view[0]
    target, index = covered_voxels(
        place, piece.shape, upsampling[list(layout.axes)], [shape[axis] for axis in layout.axes]
    )
    plane[tuple(target)] = piece[np.ix_(*index)]
    return values.reshape(grid.shape), grid


def _pieces(decomposition: Components) -> Iterator[tuple[int, int, IntArray]]:
    """Yield the input, the number and the samples of each piece that has samples."""
    places = decomposition.places
    assert places is not None
    order = np.argsort(places.piece, kind="stable")
    pieces, starts = np.unique(places.piece[order], return_index=True)
    for piece, samples in zip(pieces, np.split(order, starts[1:]), strict=True):
        yield int(places.inputs[piece]), int(piece), samples
