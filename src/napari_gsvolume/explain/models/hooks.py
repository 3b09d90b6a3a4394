"""Interception of a layer during a pass: its output is read with gradients, or replaced."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from .forward import RefusedError, find_tensor, forward_hooks, map_tensors
from .outputs import ForwardCall, select_modules, typed_modules

# Called with the output of a layer, and with the function that views tensors of that layout as (pieces, *grid,
# features); returns the tensor that replaces the output, or None to keep it.
Interceptor = Callable[[Tensor, Callable[[Tensor], Tensor]], Tensor | None]


@contextmanager
def intercept_layer(
    model: nn.Module, layer: str, interceptor: Interceptor, features_axis: int | None = None
) -> Iterator[None]:
    """Context in which `interceptor` is called with the first tensor in the output of a layer.

    Raises
    ------
    InputError
        If there is no such layer; when the model is called, if the layer returns no activations.
    """
    [module] = select_modules(model, [layer]).values()
    current = ForwardCall((), 0)

    def begin(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        nonlocal current
        current = ForwardCall((*args, *kwargs.values()), 0)

    def record(typed: nn.Module, args: Any, given: Any) -> None:
        current.record(typed, args, given)

    def hook(_: nn.Module, __: Any, given: Any) -> Any:
        tensor = find_tensor(given, f"The layer {layer!r}")
        new = interceptor(tensor, lambda t: current.features_last(layer, module, t, features_axis, None))
        return None if new is None else with_replaced_tensor(given, tensor, new)

    handle = model.register_forward_pre_hook(begin, with_kwargs=True)
    try:
        with forward_hooks(dict.fromkeys(typed_modules(model), record)), forward_hooks({module: hook}):
            yield
    finally:
        handle.remove()


def with_replaced_tensor(given: Any, old: Tensor, new: Tensor) -> Any:
    """Return a copy of an output with one of its tensors replaced."""
    return map_tensors(given, lambda tensor: new if tensor is old else tensor)


def check_direction(direction_features: int, features: int, layer: str) -> None:
    """Raise InputError if a direction does not fit the features of a layer."""
    if direction_features != features:
        raise RefusedError(
            f"The direction has {direction_features} features, and the layer {layer!r} has {features}; it belongs to "
            "another layer."
        )
