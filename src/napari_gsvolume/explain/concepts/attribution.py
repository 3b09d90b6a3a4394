"""Gradients of components with respect to the input."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from ...errors import InputError
from ..models.forward import Batch, call_model, evaluation_mode, iterate_tensors
from ..models.hooks import check_direction, intercept_layer, with_replaced_tensor


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
            raise InputError(f"The layer {layer!r} has the grid {tuple(grid)}; there is no position {tuple(position)}.")
        projected.append(along.flatten(1)[:, int(np.ravel_multi_index(tuple(position), tuple(grid)))].sum())

    source = find_real_tensor(inputs)
    point = source.detach().clone().requires_grad_()
    with evaluation_mode(model, seed), torch.enable_grad(), intercept_layer(model, layer, see, features_axis):
        call_model(model, with_replaced_tensor(inputs, source, point * 1))  # a leaf must not be changed in place
    if not projected:
        raise InputError(f"The layer {layer!r} is never called by the model.")
    total = torch.stack(projected).sum()
    if not total.requires_grad:
        raise InputError(f"What the layer {layer!r} gives cannot be differentiated by the input.")
    [gradient] = torch.autograd.grad(total, point, allow_unused=True)
    return np.zeros(point.shape) if gradient is None else gradient.cpu().numpy()


def find_real_tensor(batch: Batch) -> Tensor:
    """Return the first tensor of real numbers in a batch; raise ValueError if there is none."""
    for tensor in iterate_tensors(batch):
        if tensor.is_floating_point() and tensor.ndim:
            return tensor
    raise InputError(
        "The inputs have no tensor of real numbers: there is no image of them, nothing to differentiate by."
    )
