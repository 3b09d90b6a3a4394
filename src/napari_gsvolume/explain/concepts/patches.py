"""Components on the inputs: maps over an input, and the patches that express them most."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates

from ...errors import InputError
from ...grid import Grid
from ...types import Float64Array
from ..decomposition.components import Components
from ..models.explained_model import ExplainedModel
from ..models.forward import Inputs
from .attribution import find_real_tensor


@dataclass(frozen=True, eq=False)
class ConceptMap:
    """Map of a mode over one input.

    Attributes
    ----------
    image : ndarray of float64
        Projections of the activations on the concept, in their unit, on the grid of the layer, or on that of the input
        if resampled; NaN where no sample was taken.
    scale : ndarray of float64, (d,)
        Extent of a voxel of the image, in voxels of the input.
    translate : ndarray of float64, (d,)
        Index of the image's first voxel centre in the input: ``(scale - 1) / 2``.
    mode, input, part : int
    layer : str
    """

    image: Float64Array
    scale: Float64Array
    translate: Float64Array
    mode: int
    input: int
    part: int
    layer: str

    def grid(self, source: Grid) -> Grid:
        """Return the grid of the map in world coordinates, given that of the input.

        Raises
        ------
        InputError
            If the input has a different number of axes or voxels.
        """
        extents = np.round(np.array(self.image.shape) * self.scale).astype(int)
        if source.ndim != self.image.ndim or tuple(extents) != source.shape:
            raise InputError(
                f"The map belongs to an input of {' x '.join(map(str, extents))} voxels, not of "
                f"{' x '.join(map(str, source.shape))}."
            )
        return source.resampled(tuple(1 / self.scale))


def concept_map(
    decomposition: Components, mode: int, number: int = 0, *, part: int = 0, order: int | None = None
) -> ConceptMap:
    """Return the map of a mode over one input.

    The receptive field of a position is larger than its voxels: a map shows where the layer is active, not which part
    of the input causes it (see `component_gradient`). A mode is one direction; its likeness to a structure in a few
    maps is a hypothesis, to be tested by `linear_probe` or `tcav`.

    Parameters
    ----------
    decomposition : Components
        Activations, with the locations of the samples.
    mode : int
    number : int
        Number of the input, counted through all batches.
    part : int
        Part, where the layer has several outputs for an input.
    order : int, optional
        Resample to the grid of the input: 0 nearest, 1 linear. On the grid of the layer if omitted.

    Raises
    ------
    InputError
        If there is no such mode, input or part, no locations, or no grid; to resample, if the grid has other axes than
        the input or positions were left out.
    """
    places = decomposition.places
    if places is None:
        raise InputError("These samples have no locations, so there is no map of them.")
    found = np.flatnonzero((places.inputs == number) & (places.parts == part))
    if len(found) == 0:
        raise InputError(f"This decomposition has no samples of the input {number}, part {part}.")
    piece = int(found[0])
    if places.grids.shape[1] == 0:
        raise InputError(f"The layer {decomposition.layer!r} has one vector per input, so there is no map.")
    image: Float64Array = decomposition.map(mode, piece) * decomposition.values[mode]
    strides = places.strides[piece]
    if order is not None:
        if np.isnan(strides).any():
            raise InputError(f"The grid of the layer {decomposition.layer!r} has other axes than the input.")
        if np.isnan(image).any():
            raise InputError("Positions were left out of this decomposition; use all samples to resample its maps.")
        if order not in (0, 1):
            raise InputError(f"Maps are resampled by order 0, nearest, or 1, linear; got {order}.")
        lengths = [round(n * s) for n, s in zip(image.shape, strides, strict=True)]
        axes = [(np.arange(n) + 0.5) / s - 0.5 for n, s in zip(lengths, strides, strict=True)]
        points = np.stack(np.meshgrid(*axes, indexing="ij"))
        image = map_coordinates(image, points, order=0 if order == 0 else 1, mode="nearest")
        strides = np.ones_like(strides)
    return ConceptMap(image, strides, (strides - 1) / 2, mode, number, part, decomposition.layer)


@dataclass(frozen=True, eq=False)
class Patch:
    """Patch of an input that expresses a mode strongly.

    Attributes
    ----------
    image : ndarray, (C, *size)
        Channels of the input in the patch.
    input : int
    start : tuple of int, (d,)
        Index of the first voxel in the input.
    centre : tuple of float, (d,)
        Index in the input of the position with the strongest projection.
    strength : float
        Projection at the centre, in the unit of the activations.
    """

    image: NDArray[Any]
    input: int
    start: tuple[int, ...]
    centre: tuple[float, ...]
    strength: float


@dataclass(frozen=True, eq=False)
class Patches:
    """Patches at both ends of a mode, strongest first.

    Attributes
    ----------
    positive, negative : tuple of Patch
    """

    positive: tuple[Patch, ...]
    negative: tuple[Patch, ...]


def top_patches(
    decomposition: Components, inputs: Inputs, mode: int, count: int = 8, size: int = 16, per_input: int = 3
) -> Patches:
    """Return the patches of the inputs that express a mode most, in both directions.

    The strongest patches are extremes, and not representative of the mode: see its maps as well (`concept_map`).

    Parameters
    ----------
    decomposition : Components
        Activations.
    inputs : Tensor, tuple, dict, or list of these
        Inputs that the activations belong to; the first tensor of real numbers in each batch is (B, C, *extent).
    mode : int
    count : int
        Number of patches at each end; fewer if there are no more.
    size : int
        Size of a patch in voxels of the input, limited to that of the input; at least the receptive field of the layer.
    per_input : int
        Largest number of patches of one input at each end. They do not overlap.

    Raises
    ------
    InputError
        If there is no such mode, samples have no locations in the inputs, or the inputs are others.

    Examples
    --------
    >>> import torch
    >>> from napari_gsvolume import explain
    >>> images = torch.zeros(1, 1, 12, 12)
    >>> images[0, 0, 6, 6] = 1
    >>> components = explain.activations(torch.nn.Conv2d(1, 2, 1, bias=False), images, [""])[""]
    >>> found = explain.top_patches(components, images, mode=0, count=1, size=4)
    >>> [patch.centre for patch in (*found.positive, *found.negative)]
    [(6.0, 6.0)]
    """
    places = decomposition.places
    if places is None or np.isnan(places.strides).any() or places.grids.shape[1] == 0:
        raise InputError(f"Samples of {decomposition.layer or 'this decomposition'} have no locations in the inputs.")
    if not 0 <= mode < decomposition.k:
        raise InputError(f"There is no mode {mode}; they are 0 to {decomposition.k - 1}.")
    if min(count, size, per_input) < 1:
        raise InputError(f"Count, size and patches of an input are 1 or more; got {count}, {size} and {per_input}.")
    images = [image for batch in ExplainedModel.batches(inputs) for image in find_real_tensor(batch).detach()]
    owners, centres = places.input, places.coordinates
    if owners.max() >= len(images) or images[0].ndim != centres.shape[1] + 1:
        raise InputError(
            f"The decomposition has {owners.max() + 1} inputs of {centres.shape[1]} axes and channels; these are "
            f"{len(images)} of the shape {tuple(images[0].shape)}."
        )
    strength = decomposition.scores[:, mode] * decomposition.values[mode]

    def end(sign: int) -> tuple[Patch, ...]:
        taken: list[Patch] = []
        for sample in np.argsort(-sign * strength, kind="stable"):
            if len(taken) == count or sign * strength[sample] <= 0:
                break
            number = int(owners[sample])
            image = images[number]
            extents = np.array(image.shape[1:])
            sides = np.minimum(size, extents)
            start = np.clip(np.round(centres[sample] - (sides - 1) / 2), 0, extents - sides).astype(int)
            same = [p for p in taken if p.input == number]
            if len(same) >= per_input or any((np.abs(start - np.array(p.start)) < sides).all() for p in same):
                continue
            part = image[(slice(None), *(slice(int(a), int(a + n)) for a, n in zip(start, sides, strict=True)))]
            where = tuple(map(int, start)), tuple(map(float, centres[sample]))
            taken.append(Patch(part.cpu().numpy().copy(), number, *where, float(strength[sample])))
        return tuple(taken)

    return Patches(end(1), end(-1))
