"""Counterfactuals: what a model would give if a layer said more, or less, of something."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn
from torch.utils._pytree import tree_map  # of whatever modules give

from ...errors import InputError
from ..decomposition.components import Components
from ..models.forward import Batch, call_model, evaluation_mode, find_tensor, forward_hooks
from ..models.hooks import check_direction, intercept_layer
from ..models.outputs import ForwardCall, select_modules, typed_modules
from .labels import resample_labels

How = Literal["add", "scale", "remove"]


@dataclass(frozen=True, eq=False)
class Edit:
    """A layer's activations moved along a direction.

    Moved far, activations are such as the network never saw, and what it gives then says little: stay within what
    `component_rms` and the layer's scores have. What changes is the effect of the direction as such, with all that the
    network does after the layer; that the network came to it by the same way in an input is not said.

    Parameters
    ----------
    layer : str
    direction : array_like, (features,)
        Of the layer's activations: a concept, a component.
    amount : float
        How many times the direction is added (its length counts); or what the component along it is multiplied by.
    how : {"add", "scale", "remove"}
        ``h + amount d``; ``h + (amount - 1) ((h - mean) . v) v``, v being d at unit length; or that with an amount of
        0: the component is as it is on average, or 0.
    mean : array_like, (features,), optional
        About which it is scaled; 0 when omitted.
    mask : array_like, optional
        Where: True on the layer's grid, or on the input's (the majority of a position's voxels). Everywhere when
        omitted.
    features_axis : int, optional
        As of `activations`.

    Raises
    ------
    ValueError
        If the direction is no vector of finite numbers, not all 0.
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
    def of_mode(cls, decomposition: Components, mode: int, amount: float = 1.0, how: How = "add", **more: Any) -> Edit:
        """Return an edit along a component, whose amount, when added, is in its `component_rms`.

        Raises
        ------
        ValueError
            If there is no such mode.
        """
        length = component_rms(decomposition, mode) if how == "add" else 1.0
        more.setdefault("mean", decomposition.mean)
        return cls(decomposition.layer, length * decomposition.concepts[:, mode], amount, how, **more)

    def moved(self, amount: float, **more: Any) -> Edit:
        """Return the same edit by another amount, for a slider; `more` are other arguments that change."""
        same = {name: getattr(self, name) for name in ("mean", "mask", "features_axis")}
        return Edit(self.layer, self.direction, amount, self.how, **same | more)

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
    """Return the root mean square of the projections of samples on a component.

    Raises
    ------
    ValueError
        If there is no such mode.
    """
    if not 0 <= mode < decomposition.k:
        raise InputError(f"There is no mode {mode}; they are 0 to {decomposition.k - 1}.")
    return float(decomposition.values[mode] / np.sqrt(decomposition.samples))


@contextmanager
def apply_edits(model: nn.Module, *edits: Edit) -> Iterator[None]:
    """Within, calls of the model are under the edits; afterwards it is as before, after errors too.

    Each call of the layer is edited. Nothing else of the model changes: call it in evaluation mode for what it gives.

    Raises
    ------
    ValueError
        If there is no such layer; and, of a call, if a direction or mask is not of its layer.
    """
    with ExitStack() as stack:
        for edit in edits:

            def see(tensor: Tensor, view: Callable[[Tensor], Tensor], edit: Edit = edit) -> Tensor:
                copy = tensor.clone()
                edit.apply(view(copy))
                return copy

            stack.enter_context(intercept_layer(model, edit.layer, see, edit.features_axis))
        yield


class Counterfactual:
    """A model at one batch, for edits of one layer, one after the other: behind a slider.

    What modules before the layer give is kept, and these are not run again. So the model's weights must stay as they
    are meanwhile, and what it gives must depend on nothing but the batch (and random numbers, whose seed is fixed).

    Parameters
    ----------
    model : nn.Module
    batch : Tensor, tuple or dict
    layer : str
    seed : int

    Raises
    ------
    ValueError
        If the model cannot be called so, there is no such layer, or it is not called.
    """

    def __init__(self, model: nn.Module, batch: Batch, layer: str, *, seed: int = 0) -> None:
        self._model, self._batch, self.layer, self._seed = model, batch, layer, seed
        [module] = select_modules(model, [layer]).values()
        names = {m: name for name, m in model.named_modules()}
        done: list[tuple[nn.Module, Any]] = []  # outermost calls that ended before the layer's, in order
        started: list[int] = []
        ended = False
        now = ForwardCall(batch, 0)
        typed = set(typed_modules(model))
        self._before: set[str] = set()
        self._axis: int | None = None

        def start(_: nn.Module, __: Any) -> None:
            started.append(len(done))

        def end(m: nn.Module, _: Any, given: Any) -> None:
            nonlocal ended
            first = started.pop()
            if not ended:
                del done[first:]  # what ran within it
                done.append((m, tree_map(_copied, given)))
                ended = m is module
                if m in typed:
                    now.note(m, _, given)
                if ended:
                    self._axis = now.axis(layer, m, find_tensor(given, f"The layer {layer!r}"), None)
                else:
                    self._before.add(names[m])

        with ExitStack() as stack:
            for m in names:
                handle = m.register_forward_pre_hook(start)
                stack.callback(handle.remove)
            stack.enter_context(forward_hooks(dict.fromkeys(names, end)))
            with evaluation_mode(model, seed), torch.no_grad():
                self.unedited = tree_map(_copied, call_model(model, batch))
                """What the model gives without an edit."""
        if not ended:
            raise InputError(f"The layer {layer!r} is never called by the model.")
        self._kept: dict[nn.Module, list[Any]] = {}
        for m, given in done:
            self._kept.setdefault(m, []).append(given)

    def __call__(self, *edits: Edit) -> Any:
        """Return what the model gives under edits of the layer, or of later ones.

        Raises
        ------
        ValueError
            As of `apply_edits`; or if an edit is of an earlier layer, which is not run again.
        """
        for edit in edits:
            if edit.layer in self._before - {self.layer}:
                raise InputError(f"The layer {edit.layer!r} comes before {self.layer!r}, whose activations are kept.")
        # Modules that would tell along which axis the layer's features are may not run again.
        edits = tuple(
            edit.moved(edit.amount, features_axis=self._axis)
            if edit.layer == self.layer and edit.features_axis is None
            else edit
            for edit in edits
        )
        with ExitStack() as stack:
            for module, given in self._kept.items():
                stack.enter_context(_instead(module, given))
            stack.enter_context(apply_edits(self._model, *edits))
            with evaluation_mode(self._model, self._seed), torch.no_grad():
                return call_model(self._model, self._batch)

    def along(self, edit: Edit, amounts: ArrayLike) -> Iterator[tuple[float, Any]]:
        """Yield each of several amounts of an edit, and what the model gives."""
        for amount in np.asarray(amounts, dtype=np.float64):
            yield float(amount), self(edit.moved(float(amount)))


@contextmanager
def _instead(module: nn.Module, given: list[Any]) -> Iterator[None]:
    """Within, the first calls of a module give what is given; its own hooks run."""
    forward, own = module.forward, "forward" in vars(module)
    rest = list(given)

    def instead(*args: Any, **kwargs: Any) -> Any:
        return tree_map(_copied, rest.pop(0)) if rest else forward(*args, **kwargs)

    module.forward = instead
    try:
        yield
    finally:
        if own:
            module.forward = forward
        else:
            del module.forward


def _copied(leaf: Any) -> Any:
    return leaf.detach().clone() if isinstance(leaf, Tensor) else leaf
