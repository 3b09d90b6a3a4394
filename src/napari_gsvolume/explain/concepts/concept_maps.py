"""Concept maps: projections of the activations of a layer on its concepts, as volumes that overlay the images."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ...progress import Budget, Step, finish
from ...types import Float32Array
from ..decomposition.components import Components
from ..models.explained_model import ExplainedModel, Model
from ..models.inputs import Images
from ..models.outputs import LayerOutput
from .grids import ConceptMaps, tensor_like, to_grid

_MEMORY_LIMIT = 2**30  # bytes of maps in memory


@dataclass(frozen=True, eq=False)
class MapStep(Step):
    """Step of `concept_map_steps`.

    Attributes
    ----------
    maps : tuple of ConceptMaps
        Maps that are finished with this step.
    """

    maps: tuple[ConceptMaps, ...] = field(default=(), repr=False)


def concept_maps(
    model: Model, images: Images, decompositions: Mapping[str, Components], count: int = 3, **options: Any
) -> tuple[ConceptMaps, ...]:
    """Return the maps of the first concepts of layers, layer by layer.

    The model is run again, so that maps have all positions even if the decomposition used a sample of them. Layers
    without a grid on the images (vectors, windows, tokens that are no patches) are left out.

    Parameters
    ----------
    model : nn.Module or ExplainedModel
    images : Images
        Inputs that are mapped, whether or not they were decomposed; see `prepare_images`.
    decompositions : mapping of str to Components
        Activations by layer; see `activations`.
    count : int
        Number of concepts.
    seed : int
        As in `activations`, for models that draw random numbers.
    memory_limit : int
        Bytes of maps in memory; the model is run several times where the layers together exceed it, and maps beyond it
        are kept in temporary files.
    budget : Budget, optional
        Stop request: the maps that are finished are returned.

    Returns
    -------
    tuple of ConceptMaps
        One for each layer and volume.

    Examples
    --------
    >>> import numpy as np
    >>> import torch
    >>> from napari_gsvolume import explain
    >>> network = torch.nn.Conv2d(1, 2, 3, padding=1)
    >>> found = explain.explain(network, [np.random.default_rng(0).normal(size=(4, 8, 8))], k=1, maps=0)
    >>> [maps] = explain.concept_maps(network, found.images, found.layers, count=1)
    >>> maps.values.shape
    (1, 4, 8, 8)
    """
    return finish(concept_map_steps(model, images, decompositions, count, **options))


def concept_map_steps(
    model: Model,
    images: Images,
    decompositions: Mapping[str, Components],
    count: int = 3,
    *,
    seed: int = 0,
    memory_limit: int = _MEMORY_LIMIT,
    budget: Budget | None = None,
) -> Generator[MapStep, None, tuple[ConceptMaps, ...]]:
    """Compute concept maps as a long run, with a step after each batch; see `concept_maps`."""
    explained, stop = ExplainedModel.of(model), (budget or Budget()).stop
    groups = _group_by_size({name: d for name, d in decompositions.items() if d.k and count}, count, memory_limit)
    total, done = len(groups) * len(images.batches), 0
    finished: list[ConceptMaps] = []
    for group in groups:
        found: dict[str, dict[int, Float32Array] | None] = {name: {} for name in group}

        def take(name: str, pieces: LayerOutput, found: dict[str, dict[int, Float32Array] | None] = found) -> None:
            projected = found[name]
            if projected is None:
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
                projected[int(number)] = spatial

        for _ in explained.passes(images, explained.modules(list(group)), take, seed):
            done += 1
            yield MapStep(done / total, "Computing concept maps")
            if stop():
                return tuple(finished)
        for name in group:
            projected = found.pop(name)
            if projected:
                if len(groups) > 1:
                    projected = _to_disk(projected)
                volumes = sorted({images.places[number].volume for number in projected})
                maps = tuple(_maps_of(name, volume, projected, images) for volume in volumes)
                finished.extend(maps)
                yield MapStep(done / total, "Computing concept maps", maps)
    return tuple(finished)


def _maps_of(name: str, volume: int, pieces: Mapping[int, Float32Array], images: Images) -> ConceptMaps:
    own = {number: piece for number, piece in pieces.items() if images.places[number].volume == volume}
    return ConceptMaps(name, volume, own, images)


def _to_disk(pieces: dict[int, Float32Array]) -> dict[int, Float32Array]:
    """Return arrays in a temporary file, which vanishes with them."""
    with tempfile.TemporaryFile() as file:
        store = np.memmap(file, np.float32, "w+", shape=(sum(piece.size for piece in pieces.values()),))
    moved, first = {}, 0
    for number, piece in pieces.items():
        view = store[first : first + piece.size].reshape(piece.shape)
        view[...] = piece
        moved[number] = view
        first += piece.size
    return moved


def _group_by_size(decompositions: dict[str, Components], count: int, memory_limit: int) -> list[list[str]]:
    groups: list[list[str]] = []
    used = math.inf
    for name, d in decompositions.items():
        assert d.places is not None
        size = 4 * count * int(d.places.grids.prod(1).sum())
        if used + size > memory_limit:
            groups.append([])
            used = 0
        groups[-1].append(name)
        used += size
    return groups
