"""One layer of a model as it runs: looked at with its gradients, or given something else in its place."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from .forward import RefusedError, find_tensor, forward_hooks, map_tensors
from .outputs import ForwardCall, select_modules, typed_modules

# Takes the tensor of a layer, and what makes a view of any tensor of that layout that is (pieces, *grid, features);
# returns what the layer is to give instead, or None.
Interceptor = Callable[[Tensor, Callable[[Tensor], Tensor]], Tensor | None]


@contextmanager
def intercept_layer(model: nn.Module, layer: str, see: Interceptor, features_axis: int | None = None) -> Iterator[None]:
    """Within, `see` is called with the first tensor of whatever the layer gives.

    Raises
    ------
    ValueError
        If there is no such layer; and, of a call of the model, if the layer gives no activations.
    """
    [module] = select_modules(model, [layer]).values()
    now = ForwardCall((), 0)

    def begin(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        nonlocal now
        now = ForwardCall((*args, *kwargs.values()), 0)

    def note(typed: nn.Module, args: Any, given: Any) -> None:
        now.note(typed, args, given)

    def hook(_: nn.Module, __: Any, given: Any) -> Any:
        tensor = find_tensor(given, f"The layer {layer!r}")
        new = see(tensor, lambda t: now.features_last(layer, module, t, features_axis, None))
        return None if new is None else with_replaced_tensor(given, tensor, new)

    handle = model.register_forward_pre_hook(begin, with_kwargs=True)
    try:
        with forward_hooks(dict.fromkeys(typed_modules(model), note)), forward_hooks({module: hook}):
            yield
    finally:
        handle.remove()


def with_replaced_tensor(given: Any, old: Tensor, new: Tensor) -> Any:
    """Return a copy of what a module gave, with another tensor for one of those in it."""
    return map_tensors(given, lambda tensor: new if tensor is old else tensor)


def check_direction(direction_features: int, features: int, layer: str) -> None:
    """Raise ValueError if a direction is none of a layer's activations."""
    if direction_features != features:
        raise RefusedError(
            f"The direction has {direction_features} features, and the layer {layer!r} gives {features}; it is of "
            "another layer."
        )
