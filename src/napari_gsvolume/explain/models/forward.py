"""Calls of a model that leave it unchanged, and the tensors in its inputs and outputs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import InputError

# Arguments of a model: x, (x, adjacency), {"input_ids": ids}.
Batch = Tensor | tuple[Any, ...] | Mapping[str, Any]
Inputs = Batch | Iterable[Batch]


@contextmanager
def evaluation_mode(model: nn.Module, seed: int = 0) -> Iterator[None]:
    """Context in which a model is in evaluation mode, with a seed of its own; afterwards everything is as before.

    The fast path of nn.MultiheadAttention and nn.TransformerEncoderLayer, which bypasses the modules inside, is off.
    """
    modes = {module: module.training for module in model.modules()}
    fast = torch.backends.mha.get_fastpath_enabled()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        torch.backends.mha.set_fastpath_enabled(False)
        model.eval()
        try:
            yield
        finally:
            for module, training in modes.items():
                module.training = training
            torch.backends.mha.set_fastpath_enabled(fast)


@contextmanager
def forward_hooks(hooks: Mapping[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    """Context in which forward hooks (module, args, output) are registered."""
    handles = [module.register_forward_hook(hook) for module, hook in hooks.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def iterate_batches(inputs: Inputs) -> Iterable[Batch]:
    """Return the batches in inputs: one, if they are a tensor, a tuple of arguments or a dict of them.

    Raises
    ------
    InputError
        If the inputs are of another type.
    """
    if isinstance(inputs, (Tensor, tuple, Mapping)):
        return [inputs]
    if not isinstance(inputs, Iterable):
        raise InputError(
            "Inputs are a tensor, a tuple of arguments, a dict of keyword arguments, or an iterable of these; "
            f"got {type(inputs).__name__}."
        )
    return inputs


def call_model(model: nn.Module, batch: Batch) -> Any:
    """Return the output of a model for a batch.

    Raises
    ------
    InputError
        If the model raises an error; the message has its words.
    """
    try:
        if isinstance(batch, Mapping):
            return model(**batch)
        return model(*batch) if isinstance(batch, (tuple, list)) else model(batch)
    except RefusedError:
        raise
    except (RuntimeError, TypeError, ValueError, KeyError, IndexError, AttributeError, AssertionError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise InputError(
            f"The model {type(model).__name__} cannot be called with these inputs ({describe_batch(batch)}): "
            f"{type(error).__name__}: {reason}."
        ) from error


class RefusedError(InputError):
    """Unusable output of a layer, found during a pass: not an error of the model."""


def describe_batch(batch: Batch) -> str:
    """Return the shapes in a batch, for messages."""
    parts = batch.items() if isinstance(batch, Mapping) else enumerate(batch if isinstance(batch, tuple) else [batch])
    return ", ".join(
        (f"{name}: " if isinstance(name, str) else "")
        + ("x".join(map(str, part.shape)) or "scalar" if isinstance(part, Tensor) else type(part).__name__)
        for name, part in parts
    )


def iterate_tensors(thing: Any) -> Iterator[Tensor]:
    """Yield the tensors in tensors, sequences, mappings and dataclasses, in their order."""
    if isinstance(thing, Tensor):
        yield thing
    elif isinstance(thing, Mapping):
        for one in thing.values():
            yield from iterate_tensors(one)
    elif isinstance(thing, (tuple, list)):
        for one in thing:
            yield from iterate_tensors(one)
    elif dataclasses.is_dataclass(thing) and not isinstance(thing, type):
        for field in dataclasses.fields(thing):
            yield from iterate_tensors(getattr(thing, field.name))


def map_tensors(thing: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Return a nested structure with each tensor changed; substructures in which no tensor changes stay themselves."""
    if isinstance(thing, Tensor):
        return change(thing)
    if isinstance(thing, Mapping):
        parts = {name: map_tensors(one, change) for name, one in thing.items()}
        if all(parts[name] is one for name, one in thing.items()):
            return thing
        return parts if type(thing) is dict else type(thing)(parts)  # type: ignore[call-arg]
    if isinstance(thing, (tuple, list)):
        items = [map_tensors(one, change) for one in thing]
        if all(new is old for new, old in zip(items, thing, strict=True)):
            return thing
        return type(thing)(*items) if hasattr(thing, "_fields") else type(thing)(items)
    if dataclasses.is_dataclass(thing) and not isinstance(thing, type):
        values = {f.name: map_tensors(getattr(thing, f.name), change) for f in dataclasses.fields(thing) if f.init}
        if all(getattr(thing, name) is one for name, one in values.items()):
            return thing
        return dataclasses.replace(thing, **values)
    return thing


def find_tensor(thing: Any, owner: str) -> Tensor:
    """Return the first tensor in an output; raise InputError if there is none."""
    for tensor in iterate_tensors(thing):
        return tensor
    raise RefusedError(f"{owner} returns {type(thing).__name__}, which holds no tensor; select one with output=.")
