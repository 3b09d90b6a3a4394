"""Concept maps on the grids of images."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ...grid import Grid
from ...types import Float32Array
from ..models.inputs import Images, Place


@dataclass(frozen=True, eq=False)
class ConceptMaps:
    """The first concepts of a layer over one volume.

    Attributes
    ----------
    layer : str
    volume : int
        Which of the images.
    values : ndarray of float32, (k, Z, Y, X) or (k, Y, X)
        Projections of the activations on each concept, in their unit; NaN where no input lies. What a position of the
        layer says is repeated over the voxels that it stands for.
    grid : Grid
        The volume's own, or a finer one over the same extent where the layer is finer.
    """

    layer: str
    volume: int
    values: Float32Array
    grid: Grid


def tensor_like(array: NDArray[Any], rows: torch.Tensor) -> torch.Tensor:
    """Return an array as a float64 tensor on the device of `rows`."""
    return torch.from_numpy(np.ascontiguousarray(array)).to(rows.device, torch.float64)


def to_grid(piece: Float32Array, grid: tuple[int, ...], extent: tuple[int, ...]) -> Float32Array | None:
    """Return what a layer gave for an input, (positions, k), as (k, *grid) along the input's axes; None if it has none.

    Tokens may be those of square patches in their order, with others (classes, registers) before them.
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


def assemble_maps(layer: str, volume: int, taken: Mapping[int, Float32Array], images: Images) -> ConceptMaps:
    """Return the maps of the inputs that lie in one volume as one array."""
    layout, source = images.layout, images.volumes[volume].grid
    own = {number: piece for number, piece in taken.items() if images.places[number].volume == volume}
    first, piece = next(iter(own.items()))
    finer = np.ones(3)  # along the axes of a volume
    for axis, n, m in zip(layout.axes, images.places[first].extent, piece.shape[1:], strict=True):
        finer[axis] = max(1.0, m / n)
    grid = source.resampled(tuple(finer[3 - source.ndim :]))
    shape = (1,) * (3 - source.ndim) + grid.shape
    values = np.full((len(piece), *shape), np.nan, dtype=np.float32)
    order = layout.axes if layout.across is None else (layout.across, *layout.axes)
    view = values.transpose(0, *(1 + axis for axis in order))
    for number, piece in own.items():
        place = images.places[number]
        target, index = covered_voxels(
            place, piece.shape[1:], finer[list(layout.axes)], [shape[axis] for axis in layout.axes]
        )
        plane = view if place.slice is None else view[:, place.slice]
        plane[(slice(None), *target)] = piece[np.ix_(np.arange(len(piece)), *index)]
    return ConceptMaps(layer, volume, values.reshape(-1, *grid.shape), grid)


def covered_voxels(
    place: Place, positions: tuple[int, ...], finer: NDArray[np.float64], shape: list[int]
) -> tuple[tuple[slice, ...], list[NDArray[np.intp]]]:
    """Return which voxels of a map an input covers, and which position of the layer is at each of them."""
    target, index = [], []
    for start, extent, m, f, n in zip(place.start, place.extent, positions, finer, shape, strict=True):
        centres = (np.arange(n) + 0.5) / f - start  # from the input's first face, voxels of the input
        inside = np.flatnonzero((centres > 0) & (centres < extent))
        target.append(slice(int(inside[0]), int(inside[-1]) + 1))
        index.append(np.minimum((centres[inside] * (m / extent)).astype(np.intp), m - 1))
    return tuple(target), index
