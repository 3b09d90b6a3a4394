"""Counterfactuals: the output of a model with edited activations of a layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from ...errors import InputError
from ..decomposition.components import Components
from ..models.explained_model import ExplainedModel, Model
from ..models.forward import Batch, find_tensor
from ..models.hooks import check_direction
from ..models.outputs import ForwardCall, typed_modules
from .labels import resample_labels

How = Literal["add", "scale", "remove"]


@dataclass(frozen=True, eq=False)
class Edit:
    """Edit of the activations of a layer along a direction.

    Large amounts lead to activations that the network never saw in training: stay within the range of `component_rms`
    and of the scores of the layer. The change of the output is the effect of the direction itself, with everything
    after the layer; no input need lead to these activations.

    Parameters
    ----------
    layer : str
    direction : array_like, (features,)
        Direction in the activations of the layer: a concept, a component.
    amount : float
        Factor of the direction that is added (its length counts), or of the component along it, which is scaled.
    how : {"add", "scale", "remove"}
        ``h + amount d``; ``h + (amount - 1) ((h - mean) . v) v`` with v = d / |d|; or the same with an amount of 0,
        which sets the component to its mean, or to 0.
    mean : array_like, (features,), optional
        Centre of the scaling; 0 if omitted.
    mask : array_like, optional
        Region, True on the grid of the layer or of the input (the majority of the voxels of a position). Everywhere if
        omitted.
    features_axis : int, optional
        As in `activations`.

    Raises
    ------
    InputError
        If the direction is no vector of finite numbers, or 0.

    Examples
    --------
    >>> import torch
    >>> from napari_gsvolume import explain
    >>> network = torch.nn.Sequential(torch.nn.Identity(), torch.nn.Flatten())
    >>> with explain.apply_edits(network, explain.Edit("0", [1.0, 0.0], amount=2.0)):
    ...     network(torch.zeros(1, 2, 1, 1))
    tensor([[2., 0.]])
    """

    layer: str
    direction: NDArray[np.float64] = field(repr=False)
    amount: float = 1.0
    how: How = "add"
    mean: NDArray[np.float64] | None = field(default=None, repr=False)
    mask: NDArray[np.bool_] | None = field(default=None, repr=False)
    features_axis: int | None = None

    def __init__(
        self,
        layer: str,
        direction: ArrayLike,
        amount: float = 1.0,
        how: How = "add",
        *,
        mean: ArrayLike | None = None,
        mask: ArrayLike | None = None,
        features_axis: int | None = None,
    ) -> None:
        array = np.asarray(direction, dtype=np.float64).copy()
        if array.ndim != 1 or not np.isfinite(array).all() or not array.any():
            raise InputError(f"A direction is a vector of finite numbers, not all 0; got the shape {array.shape}.")
        if how not in ("add", "scale", "remove"):
            raise InputError(f"An edit adds, scales or removes; got {how!r}.")
        centre = None if mean is None else np.asarray(mean, dtype=np.float64).copy()
        if centre is not None and centre.shape != array.shape:
            raise InputError(f"The mean has the shape {centre.shape}, and the direction {array.shape}.")
        values = {"layer": layer, "direction": array, "amount": float(amount), "how": how, "mean": centre}
        values |= {"mask": None if mask is None else np.asarray(mask).astype(bool), "features_axis": features_axis}
        for name, value in values.items():
            object.__setattr__(self, name, value)

    @classmethod
    def of_mode(
        cls, decomposition: Components, mode: int, amount: float = 1.0, how: How = "add", **options: Any
    ) -> Edit:
        """Return an edit along a component; amounts that are added are in units of its `component_rms`.

        Raises
        ------
        ValueError
            If there is no such mode.
        """
        length = component_rms(decomposition, mode) if how == "add" else 1.0
        options.setdefault("mean", decomposition.mean)
        return cls(decomposition.layer, length * decomposition.concepts[:, mode], amount, how, **options)

    def with_amount(self, amount: float, **changes: Any) -> Edit:
        """Return the same edit with another amount, for a slider, and with other arguments changed."""
        same = {name: getattr(self, name) for name in ("mean", "mask", "features_axis")}
        return Edit(self.layer, self.direction, amount, self.how, **same | changes)

    def apply(self, rows: Tensor) -> None:
        """Edit activations (pieces, *grid, features) in place."""
        check_direction(len(self.direction), rows.shape[-1], self.layer)
        direction = torch.from_numpy(self.direction).to(rows)
        if self.how == "add":
            change = (self.amount * direction).expand_as(rows)
        else:
            unit = direction / direction.norm()
            along = rows @ unit if self.mean is None else (rows - torch.from_numpy(self.mean).to(rows)) @ unit
            change = ((0.0 if self.how == "remove" else self.amount) - 1) * along[..., None] * unit
        if self.mask is not None:
            grid = tuple(rows.shape[1:-1])
            if self.mask.ndim != len(grid):
                raise InputError(f"The mask has {self.mask.ndim} axes, and the layer {self.layer!r} a grid of {grid}.")
            here = self.mask if self.mask.shape == grid else resample_labels(self.mask, grid)
            change = change * torch.from_numpy(np.ascontiguousarray(here)).to(rows.device)[..., None]
        rows += change


def component_rms(decomposition: Components, mode: int) -> float:
    """Return the root mean square of the projections of all samples on a component.

    Raises
    ------
    InputError
        If there is no such mode.
    """
    if not 0 <= mode < decomposition.k:
        raise InputError(f"There is no mode {mode}; they are 0 to {decomposition.k - 1}.")
    return float(decomposition.values[mode] / np.sqrt(decomposition.samples))


@contextmanager
def apply_edits(model: Model, *edits: Edit) -> Iterator[None]:
    """Context in which a model runs with edited activations; afterwards it is as before, after errors too.

    Each call of the layer is edited. Nothing else changes, so call the model in evaluation mode.

    Raises
    ------
    InputError
        If there is no such layer; when the model is called, if a direction or mask does not fit its layer.
    """
    explained = ExplainedModel.of(model)
    with ExitStack() as stack:
        for edit in edits:

            def replace(tensor: Tensor, view: Callable[[Tensor], Tensor], edit: Edit = edit) -> Tensor:
                copy = tensor.clone()
                edit.apply(view(copy))
                return copy

            stack.enter_context(explained.intercept(edit.layer, replace, edit.features_axis))
        yield


class Counterfactual:
    """Outputs of a model for one batch under successive edits of one layer, as for a slider.

    Outputs of the modules before the layer are kept, and these modules are not run again. The weights must therefore
    not change, and the output must depend on the batch alone (and on random numbers, which have a fixed seed).

    Parameters
    ----------
    model : nn.Module or ExplainedModel
    batch : Tensor, tuple or dict
    layer : str
    seed : int

    Raises
    ------
    InputError
        If the model cannot be called so, there is no such layer, or it is not called.

    Examples
    --------
    >>> import torch
    >>> from napari_gsvolume.explain import Counterfactual, Edit
    >>> network = torch.nn.Sequential(torch.nn.Identity(), torch.nn.Flatten())
    >>> counterfactual = Counterfactual(network, torch.zeros(1, 2, 1, 1), "0")
    >>> [output.tolist() for _, output in counterfactual.along(Edit("0", [1.0, 0.0]), [-1, 1])]
    [[[-1.0, 0.0]], [[1.0, 0.0]]]
    """

    def __init__(self, model: Model, batch: Batch, layer: str, *, seed: int = 0) -> None:
        explained = ExplainedModel.of(model)
        self._explained, self._batch, self.layer, self._seed = explained, batch, layer, seed
        [module] = explained.modules([layer]).values()
        names = {m: name for name, m in explained.model.named_modules()}
        done: list[tuple[nn.Module, Any]] = []  # outermost calls that ended before the layer's, in order
        started: list[int] = []
        ended = False
        current = ForwardCall(batch, 0)
        typed = set(typed_modules(explained.model))
        self._before: set[str] = set()
        self._axis: int | None = None

        def start(_: nn.Module, __: Any) -> None:
            started.append(len(done))

        def end(m: nn.Module, _: Any, given: Any) -> None:
            nonlocal ended
            first = started.pop()
            if not ended:
                del done[first:]  # calls within it
                done.append((m, tree_map(_copy, given)))
                ended = m is module
                if m in typed:
                    current.record(m, _, given)
                if ended:
                    self._axis = current.axis(layer, m, find_tensor(given, f"The layer {layer!r}"), None)
                else:
                    self._before.add(names[m])

        with ExitStack() as stack:
            for m in names:
                handle = m.register_forward_pre_hook(start)
                stack.callback(handle.remove)
            stack.enter_context(explained.hooks(dict.fromkeys(names, end)))
            self.unedited = tree_map(_copy, explained.run(batch, seed))
            """Output without an edit."""
        if not ended:
            raise InputError(f"The layer {layer!r} is never called by the model.")
        self._kept: dict[nn.Module, list[Any]] = {}
        for m, given in done:
            self._kept.setdefault(m, []).append(given)

    def __call__(self, *edits: Edit) -> Any:
        """Return the output under edits of the layer, or of later ones.

        Raises
        ------
        InputError
            As in `apply_edits`; or if an edit belongs to an earlier layer, which is not run again.
        """
        for edit in edits:
            if edit.layer in self._before - {self.layer}:
                raise InputError(f"The layer {edit.layer!r} comes before {self.layer!r}, whose activations are kept.")
        # The modules that determine the axis of features of the layer may not run again.
        edits = tuple(
            edit.with_amount(edit.amount, features_axis=self._axis)
            if edit.layer == self.layer and edit.features_axis is None
            else edit
            for edit in edits
        )
        with ExitStack() as stack:
            for module, given in self._kept.items():
                stack.enter_context(_replay_outputs(module, given))
            stack.enter_context(apply_edits(self._explained, *edits))
            return self._explained.run(self._batch, self._seed)

    def along(self, edit: Edit, amounts: ArrayLike) -> Iterator[tuple[float, Any]]:
        """Yield amounts of an edit, and the outputs."""
        for amount in np.asarray(amounts, dtype=np.float64):
            yield float(amount), self(edit.with_amount(float(amount)))


@contextmanager
def _replay_outputs(module: nn.Module, given: list[Any]) -> Iterator[None]:
    """Context in which the first calls of a module return given outputs; its own hooks run."""
    forward, own = module.forward, "forward" in vars(module)
    rest = list(given)

    def replay(*args: Any, **kwargs: Any) -> Any:
        return tree_map(_copy, rest.pop(0)) if rest else forward(*args, **kwargs)

    module.forward = replay
    try:
        yield
    finally:
        if own:
            module.forward = forward
        else:
            del module.forward


def _copy(leaf: Any) -> Any:
    return leaf.detach().clone() if isinstance(leaf, Tensor) else leaf
