"""Concept maps: where in volumes a layer expresses each of its concepts, on grids that overlay them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ...grid import Grid
from ..decomposition.activations import chosen, passes
from ..decomposition.components import Decomposition
from ..decomposition.sampling import Pieces
from ..models.inputs import Images, Place

Floats = NDArray[np.float32]
_BUDGET = 2**30  # bytes of maps that are made in one go


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
    values: Floats
    grid: Grid


@dataclass(frozen=True, eq=False)
class MapStep:
    """How far the maps are.

    Attributes
    ----------
    done, total : int
        Batches, of all passes.
    maps : tuple of ConceptMaps
        Those that are finished.
    """

    done: int
    total: int
    maps: tuple[ConceptMaps, ...] = ()


def concept_maps(
    model: nn.Module,
    images: Images,
    decompositions: Mapping[str, Decomposition],
    count: int = 3,
    *,
    seed: int = 0,
    budget: int = _BUDGET,
) -> Iterator[MapStep]:
    """Yield the maps of the first concepts of layers, layer by layer.

    The model is run again, so that there is a value at each position even if samples were drawn. Layers without a
    place for what they say (vectors, windows of images, tokens that are no patches) are left out.

    Parameters
    ----------
    model : nn.Module
    images : Images
        All of them are mapped, whether or not they were decomposed.
    decompositions : mapping of str to Decomposition
        By layer, as of `activations`.
    count : int
        How many concepts.
    seed : int
        As of `activations`, for models that draw random numbers.
    budget : int
        Bytes of maps at once; the model is run several times where all layers' take more.
    """
    groups = _groups({name: d for name, d in decompositions.items() if d.k and count}, count, budget)
    total, done = len(groups) * len(images.batches), 0
    for group in groups:
        found: dict[str, dict[int, Floats] | None] = {name: {} for name in group}

        def take(name: str, pieces: Pieces, found: dict[str, dict[int, Floats] | None] = found) -> None:
            taken = found[name]
            if taken is None:
                return
            if (pieces.inputs < 0).any() or pieces.parts.any():
                found[name] = None
                return
            d = decompositions[name]
            rows = pieces.rows.double() if d.mean is None else pieces.rows.double() - _like(d.mean, pieces.rows)
            coordinates = (rows @ _like(d.concepts[:, :count], rows)).float().cpu().numpy()
            for number, piece in zip(pieces.inputs, coordinates, strict=True):
                spatial = _spatial(piece, pieces.grid, images.places[int(number)].extent)
                if spatial is None:
                    found[name] = None
                    return
                taken[int(number)] = spatial

        for _ in passes(model, images, chosen(model, list(group)), take, seed):
            done += 1
            yield MapStep(done, total)
        for name in group:
            taken = found.pop(name)
            if taken:
                volumes = sorted({images.places[number].volume for number in taken})
                yield MapStep(done, total, tuple(_assembled(name, volume, taken, images) for volume in volumes))


def _groups(decompositions: dict[str, Decomposition], count: int, budget: int) -> list[list[str]]:
    groups: list[list[str]] = []
    used = math.inf
    for name, d in decompositions.items():
        assert d.places is not None
        size = 4 * count * int(d.places.grids.prod(1).sum())
        if used + size > budget:
            groups.append([])
            used = 0
        groups[-1].append(name)
        used += size
    return groups


def _like(array: NDArray[Any], rows: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array)).to(rows.device, torch.float64)


def _spatial(piece: Floats, grid: tuple[int, ...], extent: tuple[int, ...]) -> Floats | None:
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


def _assembled(layer: str, volume: int, taken: Mapping[int, Floats], images: Images) -> ConceptMaps:
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
        target, index = _covered(
            place, piece.shape[1:], finer[list(layout.axes)], [shape[axis] for axis in layout.axes]
        )
        plane = view if place.slice is None else view[:, place.slice]
        plane[(slice(None), *target)] = piece[np.ix_(np.arange(len(piece)), *index)]
    return ConceptMaps(layer, volume, values.reshape(-1, *grid.shape), grid)


def _covered(
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
