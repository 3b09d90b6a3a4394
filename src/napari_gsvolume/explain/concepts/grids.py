"""Concept maps on the grids of images."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ...grid import Grid
from ...types import Float32Array
from ..models.inputs import Images, Place


@dataclass(frozen=True, eq=False)
class ConceptMaps:
    """Maps of the first concepts of a layer over one volume.

    Attributes
    ----------
    layer : str
    volume : int
        Number of the volume among the images.
    pieces : mapping of int to ndarray of float32, (k, *grid)
        Projections of the activations on each concept, in their unit, by the number of the input, on the grid of the
        layer.
    images : Images
        Inputs that the pieces belong to.
    """

    layer: str
    volume: int
    pieces: Mapping[int, Float32Array] = field(repr=False)
    images: Images = field(repr=False)

    @property
    def count(self) -> int:
        """Number of maps."""
        return len(next(iter(self.pieces.values())))

    @property
    def grid(self) -> Grid:
        """Grid of the maps: that of the volume, or a finer one over the same extent where the layer is finer."""
        source = self.images.volumes[self.volume].grid
        return source.resampled(tuple(self._upsampling[3 - source.ndim :]))

    @property
    def values(self) -> Float32Array:
        """Maps as one array, (k, Z, Y, X) or (k, Y, X), assembled on each access; NaN outside all inputs.

        The value of a position of the layer is repeated over the voxels that it covers.
        """
        layout, images, grid = self.images.layout, self.images, self.grid
        shape = (1,) * (3 - grid.ndim) + grid.shape
        values = np.full((self.count, *shape), np.nan, dtype=np.float32)
        order = layout.axes if layout.across is None else (layout.across, *layout.axes)
        view = values.transpose(0, *(1 + axis for axis in order))
        upsampling = self._upsampling[list(layout.axes)]
        for number, piece in self.pieces.items():
            place = images.places[number]
            target, index = covered_voxels(place, piece.shape[1:], upsampling, [shape[axis] for axis in layout.axes])
            plane = view if place.slice is None else view[:, place.slice]
            plane[(slice(None), *target)] = piece[np.ix_(np.arange(len(piece)), *index)]
        return values.reshape(-1, *grid.shape)

    @property
    def _upsampling(self) -> NDArray[np.float64]:
        """Voxels of the maps per voxel of the volume, along its axes, (3,)."""
        number, piece = next(iter(self.pieces.items()))
        upsampling = np.ones(3)
        extent = self.images.places[number].extent
        for axis, n, m in zip(self.images.layout.axes, extent, piece.shape[1:], strict=True):
            upsampling[axis] = max(1.0, m / n)
        return upsampling


def tensor_like(array: NDArray[Any], rows: torch.Tensor) -> torch.Tensor:
    """Return an array as a float64 tensor on the device of `rows`."""
    return torch.from_numpy(np.ascontiguousarray(array)).to(rows.device, torch.float64)


def to_grid(piece: Float32Array, grid: tuple[int, ...], extent: tuple[int, ...]) -> Float32Array | None:
    """Return the output of a layer for an input, (positions, k), as (k, *grid) along the axes of the input.

    Tokens may be those of square patches in their order, after others (class tokens, registers). None for outputs
    without a grid.
    """
    if len(grid) == len(extent):
        return np.ascontiguousarray(piece.T.reshape(-1, *grid))
    if len(grid) != 1:
        return None
    for side in range(2, min(extent) + 1):
        patches = tuple(n // side for n in extent)
        others = grid[0] - math.prod(patches)
        if all(n % side == 0 for n in extent) and 0 <= others < 16 and math.prod(patches) > 1:
            return np.ascontiguousarray(piece[others:].T.reshape(-1, *patches))
    return None


def covered_voxels(
    place: Place, positions: tuple[int, ...], upsampling: NDArray[np.float64], shape: list[int]
) -> tuple[tuple[slice, ...], list[NDArray[np.intp]]]:
    """Return the voxels of a map that an input covers, and the position of the layer at each of them."""
    target, index = [], []
    for start, extent, m, f, n in zip(place.start, place.extent, positions, upsampling, shape, strict=True):
        centres = (np.arange(n) + 0.5) / f - start  # from the first face of the input, in voxels of the input
        inside = np.flatnonzero((centres > 0) & (centres < extent))
        target.append(slice(int(inside[0]), int(inside[-1]) + 1))
        index.append(np.minimum((centres[inside] * (m / extent)).astype(np.intp), m - 1))
    return tuple(target), index
