"""Components brought back to the inputs: where they are expressed, in which patches most, and what raises them."""

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
from ..models.forward import Inputs, iterate_batches
from .attribution import find_real_tensor


@dataclass(frozen=True, eq=False)
class ConceptMap:
    """How strongly a mode is expressed at each position of one input.

    Attributes
    ----------
    image : ndarray of float64
        On the layer's grid, or on the input's if it was resampled: projections of the activations on the concept, in
        their unit, positive or negative; NaN where no sample was taken.
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
        """Return where the image is in the world, given where the input is.

        The layer `layers.grid_placement` makes of it overlays the input.

        Raises
        ------
        ValueError
            If the input has another number of axes, or voxels.
        """
        extents = np.round(np.array(self.image.shape) * self.scale).astype(int)
        if source.ndim != self.image.ndim or tuple(extents) != source.shape:
            raise InputError(
                f"The map is of an input of {' x '.join(map(str, extents))} voxels, not of "
                f"{' x '.join(map(str, source.shape))}."
            )
        return source.resampled(tuple(1 / self.scale))


def concept_map(
    decomposition: Components, mode: int, number: int = 0, *, part: int = 0, order: int | None = None
) -> ConceptMap:
    """Return the map of a mode over one input.

    A position of a layer sees more than the voxels it lies on, so a map says where the layer *says* something and not
    what of the input made it say so: see `component_gradient`, and edit the input. A mode is one direction; that it
    looks like a structure in a few maps is a guess, to be tested by `linear_probe` or `run_tcav`.

    Parameters
    ----------
    decomposition : Components
        Of activations: with places.
    mode : int
    number : int
        Of the input, counted through all batches.
    part : int
        Which of several things that the layer gave for that input.
    order : int, optional
        Resample to the input's grid: 0 nearest, 1 linear. Stays on the layer's grid when omitted.

    Raises
    ------
    ValueError
        If there is no such mode, input or part, there are no places, the layer has no grid, or, to resample, its grid
        is not that of the input or positions were left out.
    """
    places = decomposition.places
    if places is None:
        raise InputError("These samples have no places, so there is no map of them.")
    found = np.flatnonzero((places.inputs == number) & (places.parts == part))
    if len(found) == 0:
        raise InputError(f"There is nothing of the input {number}, part {part}, in this decomposition.")
    piece = int(found[0])
    if places.grids.shape[1] == 0:
        raise InputError(f"The layer {decomposition.layer!r} gives one vector for an input, so there is no map.")
    image: Float64Array = decomposition.map(mode, piece) * decomposition.values[mode]
    strides = places.strides[piece]
    if order is not None:
        if np.isnan(strides).any():
            raise InputError(f"The grid of the layer {decomposition.layer!r} has other axes than the input.")
        if np.isnan(image).any():
            raise InputError("Positions were left out of this decomposition; take all samples to resample its maps.")
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
    """A part of an input where a mode is expressed strongly.

    Attributes
    ----------
    image : ndarray, (C, *size)
        The input's channels there.
    input : int
    start : tuple of int, (d,)
        Index of its first voxel in the input.
    centre : tuple of float, (d,)
        Index in the input of the position that expresses the mode.
    strength : float
        The projection there, in the unit of the activations.
    """

    image: NDArray[Any]
    input: int
    start: tuple[int, ...]
    centre: tuple[float, ...]
    strength: float


@dataclass(frozen=True, eq=False)
class Patches:
    """The patches at both ends of a mode, strongest first.

    Attributes
    ----------
    positive, negative : tuple of Patch
    """

    positive: tuple[Patch, ...]
    negative: tuple[Patch, ...]


def top_patches(
    decomposition: Components, inputs: Inputs, mode: int, count: int = 8, size: int = 16, per_input: int = 3
) -> Patches:
    """Return the patches of the inputs where a mode is expressed most, in both directions.

    The strongest of many are extremes: they look alike sooner than the rest, and what they show need not be what the
    mode does elsewhere. Look at a few in the middle as well, `concept_map` has them.

    Parameters
    ----------
    decomposition : Components
        Of activations.
    inputs : Tensor, tuple, dict, or list of these
        Those it is of: the first tensor of real numbers in each batch is (B, C, *extent).
    mode : int
    count : int
        How many at each end; fewer where there are no more.
    size : int
        Side of a patch in voxels of the input; no more than the input has. Take the layer's receptive field, at least.
    per_input : int
        At most so many of one input at each end. They do not overlap.

    Raises
    ------
    ValueError
        If there is no such mode, samples have no places in the inputs, or these are others.
    """
    places = decomposition.places
    if places is None or np.isnan(places.strides).any() or places.grids.shape[1] == 0:
        raise InputError(f"Samples of {decomposition.layer or 'this decomposition'} have no places in the inputs.")
    if not 0 <= mode < decomposition.k:
        raise InputError(f"There is no mode {mode}; they are 0 to {decomposition.k - 1}.")
    if min(count, size, per_input) < 1:
        raise InputError(f"Count, size and patches of an input are 1 or more; got {count}, {size} and {per_input}.")
    images = [image for batch in iterate_batches(inputs) for image in find_real_tensor(batch).detach()]
    whose, centres = places.input, places.coordinates
    if whose.max() >= len(images) or images[0].ndim != centres.shape[1] + 1:
        raise InputError(
            f"The decomposition is of {whose.max() + 1} inputs of {centres.shape[1]} axes and channels; these are "
            f"{len(images)} of the shape {tuple(images[0].shape)}."
        )
    strength = decomposition.scores[:, mode] * decomposition.values[mode]

    def end(sign: int) -> tuple[Patch, ...]:
        taken: list[Patch] = []
        for sample in np.argsort(-sign * strength, kind="stable"):
            if len(taken) == count or sign * strength[sample] <= 0:
                break
            number = int(whose[sample])
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
