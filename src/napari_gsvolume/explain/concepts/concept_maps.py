"""Concept maps: where in volumes a layer expresses each of its concepts, on grids that overlay them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import nn

from ...types import Float32Array
from ..decomposition.activations import passes
from ..decomposition.components import Components
from ..models.inputs import Images
from ..models.outputs import LayerOutput, select_modules
from .grids import ConceptMaps, assemble_maps, tensor_like, to_grid

_BUDGET = 2**30  # bytes of maps that are made in one go


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
    decompositions: Mapping[str, Components],
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
    decompositions : mapping of str to Components
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
        found: dict[str, dict[int, Float32Array] | None] = {name: {} for name in group}

        def take(name: str, pieces: LayerOutput, found: dict[str, dict[int, Float32Array] | None] = found) -> None:
            taken = found[name]
            if taken is None:
                return
            if (pieces.inputs < 0).any() or pieces.parts.any():
                found[name] = None
                return
            d = decompositions[name]
            rows = pieces.rows.double() if d.mean is None else pieces.rows.double() - tensor_like(d.mean, pieces.rows)
            coordinates = (rows @ tensor_like(d.concepts[:, :count], rows)).float().cpu().numpy()
            for number, piece in zip(pieces.inputs, coordinates, strict=True):
                spatial = to_grid(piece, pieces.grid, images.places[int(number)].extent)
                if spatial is None:
                    found[name] = None
                    return
                taken[int(number)] = spatial

        for _ in passes(model, images, select_modules(model, list(group)), take, seed):
            done += 1
            yield MapStep(done, total)
        for name in group:
            taken = found.pop(name)
            if taken:
                volumes = sorted({images.places[number].volume for number in taken})
                yield MapStep(done, total, tuple(assemble_maps(name, volume, taken, images) for volume in volumes))


def _groups(decompositions: dict[str, Components], count: int, budget: int) -> list[list[str]]:
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
