"""Components brought back to the inputs: where they are expressed, in which patches most, and what raises them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import map_coordinates
from torch import Tensor, nn

from ...grid import Grid
from ..decomposition.components import Decomposition
from ..models.forward import Batch, Inputs, batches, call, tensors, undisturbed
from ..models.hooks import check_direction, replaced, watched

Floats = NDArray[np.float64]


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

    image: Floats
    scale: Floats
    translate: Floats
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
            raise ValueError(
                f"The map is of an input of {' x '.join(map(str, extents))} voxels, not of "
                f"{' x '.join(map(str, source.shape))}."
            )
        return source.resampled(tuple(1 / self.scale))


def concept_map(
    decomposition: Decomposition, mode: int, number: int = 0, *, part: int = 0, order: int | None = None
) -> ConceptMap:
    """Return the map of a mode over one input.

    A position of a layer sees more than the voxels it lies on, so a map says where the layer *says* something and not
    what of the input made it say so: see `component_gradient`, and edit the input. A mode is one direction; that it
    looks like a structure in a few maps is a guess, to be tested by `linear_probe` or `run_tcav`.

    Parameters
    ----------
    decomposition : Decomposition
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
        raise ValueError("These samples have no places, so there is no map of them.")
    found = np.flatnonzero((places.inputs == number) & (places.parts == part))
    if len(found) == 0:
        raise ValueError(f"There is nothing of the input {number}, part {part}, in this decomposition.")
    piece = int(found[0])
    if places.grids.shape[1] == 0:
        raise ValueError(f"The layer {decomposition.layer!r} gives one vector for an input, so there is no map.")
    image: Floats = decomposition.map(mode, piece) * decomposition.values[mode]
    strides = places.strides[piece]
    if order is not None:
        if np.isnan(strides).any():
            raise ValueError(f"The grid of the layer {decomposition.layer!r} has other axes than the input.")
        if np.isnan(image).any():
            raise ValueError("Positions were left out of this decomposition; take all samples to resample its maps.")
        if order not in (0, 1):
            raise ValueError(f"Maps are resampled by order 0, nearest, or 1, linear; got {order}.")
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
    decomposition: Decomposition, inputs: Inputs, mode: int, count: int = 8, size: int = 16, per_input: int = 3
) -> Patches:
    """Return the patches of the inputs where a mode is expressed most, in both directions.

    The strongest of many are extremes: they look alike sooner than the rest, and what they show need not be what the
    mode does elsewhere. Look at a few in the middle as well, `concept_map` has them.

    Parameters
    ----------
    decomposition : Decomposition
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
        raise ValueError(f"Samples of {decomposition.layer or 'this decomposition'} have no places in the inputs.")
    if not 0 <= mode < decomposition.k:
        raise ValueError(f"There is no mode {mode}; they are 0 to {decomposition.k - 1}.")
    if min(count, size, per_input) < 1:
        raise ValueError(f"Count, size and patches of an input are 1 or more; got {count}, {size} and {per_input}.")
    images = [image for batch in batches(inputs) for image in real(batch).detach()]
    whose, centres = places.input, places.coordinates
    if whose.max() >= len(images) or images[0].ndim != centres.shape[1] + 1:
        raise ValueError(
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


def component_gradient(
    model: nn.Module,
    inputs: Batch,
    layer: str,
    concept: ArrayLike,
    *,
    position: Sequence[int] | None = None,
    features_axis: int | None = None,
    seed: int = 0,
) -> NDArray[Any]:
    """Return the gradient of the projection on a concept with respect to the input.

    It says what an infinitely small change of each voxel does at these inputs: nothing of larger changes, nor how much
    a voxel contributes. Where activation functions are flat it is 0, whatever matters there.

    Parameters
    ----------
    model : nn.Module
        It must treat the inputs of a batch by themselves, as in evaluation mode nearly all do.
    inputs : Tensor, tuple or dict
        One batch; the first tensor of real numbers in it is what is differentiated by.
    layer : str
    concept : array_like, (features,)
        A column of ``Decomposition.concepts``, or any direction.
    position : sequence of int, optional
        Of the layer's grid: the projection there. The mean over the grid when omitted.
    features_axis : int, optional
        As of `activations`.
    seed : int
        For models that draw random numbers.

    Returns
    -------
    ndarray
        In the shape of the input; of each input its own gradient.

    Raises
    ------
    ValueError
        If the model cannot be called so, there is no such layer or position, or the concept is of another one.
    """
    direction = np.asarray(concept, dtype=np.float64)
    projected: list[Tensor] = []

    def see(tensor: Tensor, view: Callable[[Tensor], Tensor]) -> None:
        rows = view(tensor)  # (pieces, *grid, features)
        check_direction(direction.size, rows.shape[-1], layer)
        along = rows @ torch.from_numpy(direction).to(rows)
        if position is None:
            projected.append(along.flatten(1).mean(1).sum() if along.ndim > 1 else along.sum())
            return
        grid = along.shape[1:]
        if len(position) != len(grid) or not all(0 <= i < n for i, n in zip(position, grid, strict=True)):
            raise ValueError(f"The layer {layer!r} has the grid {tuple(grid)}; there is no position {tuple(position)}.")
        projected.append(along.flatten(1)[:, int(np.ravel_multi_index(tuple(position), tuple(grid)))].sum())

    source = real(inputs)
    point = source.detach().clone().requires_grad_()
    with undisturbed(model, seed), torch.enable_grad(), watched(model, layer, see, features_axis):
        call(model, replaced(inputs, source, point * 1))  # a leaf must not be changed in place
    if not projected:
        raise ValueError(f"The layer {layer!r} is never called by the model.")
    total = torch.stack(projected).sum()
    if not total.requires_grad:
        raise ValueError(f"What the layer {layer!r} gives cannot be differentiated by the input.")
    [gradient] = torch.autograd.grad(total, point, allow_unused=True)
    return np.zeros(point.shape) if gradient is None else gradient.cpu().numpy()


def real(batch: Batch) -> Tensor:
    """Return the first tensor of real numbers in a batch; raise ValueError if there is none."""
    for tensor in tensors(batch):
        if tensor.is_floating_point() and tensor.ndim:
            return tensor
    raise ValueError(
        "The inputs have no tensor of real numbers: there is no image of them, nothing to differentiate by."
    )
