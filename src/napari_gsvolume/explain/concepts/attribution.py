"""Gradients of components with respect to the input."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from ...errors import InputError
from ..models.explained_model import ExplainedModel, Model
from ..models.forward import Batch, iterate_tensors
from ..models.hooks import check_direction, with_replaced_tensor


def component_gradient(
    model: Model,
    inputs: Batch,
    layer: str,
    concept: ArrayLike,
    *,
    position: Sequence[int] | None = None,
    features_axis: int | None = None,
    seed: int = 0,
) -> NDArray[Any]:
    """Return the gradient of the projection on a concept with respect to the input.

    The gradient is the effect of infinitesimal changes of each voxel at these inputs: it says nothing of larger
    changes, nor of the contribution of a voxel, and is 0 where activation functions are flat.

    Parameters
    ----------
    model : nn.Module or ExplainedModel
        It must treat the inputs of a batch independently, as nearly all do in evaluation mode.
    inputs : Tensor, tuple or dict
        One batch; the gradient is with respect to the first tensor of real numbers in it.
    layer : str
    concept : array_like, (features,)
        A column of ``Components.concepts``, or any direction.
    position : sequence of int, optional
        Position on the grid of the layer where the projection is taken; mean over the grid if omitted.
    features_axis : int, optional
        As in `activations`.
    seed : int
        Seed of models that draw random numbers.

    Returns
    -------
    ndarray
        In the shape of the input; a gradient for each input.

    Raises
    ------
    InputError
        If the model cannot be called so, there is no such layer or position, or the concept belongs to another layer.
    """
    direction = np.asarray(concept, dtype=np.float64)
    projected: list[Tensor] = []
    explained = ExplainedModel.of(model)

    def project(tensor: Tensor, view: Callable[[Tensor], Tensor]) -> None:
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
    with explained.evaluation(seed), torch.enable_grad(), explained.intercept(layer, project, features_axis):
        explained.call(with_replaced_tensor(inputs, source, point * 1))  # a leaf must not be changed in place
    if not projected:
        raise InputError(f"The layer {layer!r} is never called by the model.")
    total = torch.stack(projected).sum()
    if not total.requires_grad:
        raise InputError(f"The output of the layer {layer!r} cannot be differentiated with respect to the input.")
    [gradient] = torch.autograd.grad(total, point, allow_unused=True)
    return np.zeros(point.shape) if gradient is None else gradient.cpu().numpy()


def find_real_tensor(batch: Batch) -> Tensor:
    """Return the first tensor of real numbers in a batch; raise InputError if there is none."""
    for tensor in iterate_tensors(batch):
        if tensor.is_floating_point() and tensor.ndim:
            return tensor
    raise InputError("The inputs hold no tensor of real numbers, so there are no images to differentiate by.")
