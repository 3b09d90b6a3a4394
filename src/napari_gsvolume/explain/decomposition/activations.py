"""The activations of a model's layers, taken by forward hooks as it runs, and decomposed without being held."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ...errors import InputError
from ..models.forward import Inputs, call_model, evaluation_mode, forward_hooks, iterate_batches
from ..models.outputs import ForwardCall, LayerOutput, select_modules, typed_modules
from .components import Components, SampleLocations, check_modes
from .sampling import BUDGET, ActivationStep, Run, Samples, decompose_steps


def activations(
    model: nn.Module, inputs: Inputs, layers: Sequence[str] | None = None, k: int = 16, **more: Any
) -> dict[str, Components]:
    """Decompose the activations A = U S V^T of layers of a model: samples are positions, features are channels.

    Rows are streamed (see `streaming`); of them nothing is held but `budget` bytes. Where that is not enough for the
    scores, the inputs are gone through twice. The model is in evaluation mode meanwhile, without gradients, and
    afterwards as it was.

    Parameters
    ----------
    model : nn.Module
    inputs : Tensor, tuple, dict, or iterable of these
        What the model is called with: one tensor, a tuple of arguments, a dict of keyword arguments, or several such
        batches.
    layers : sequence of str, optional
        Names as in ``model.named_modules()``. When omitted, all modules that have parameters of their own and are
        called.
    k : int
        How many modes. Layers that have fewer give what they have; a layer that is always 0 has none.
    centre : bool
        Whether to take the mean over samples away first: principal components. Not by default, as A = U S V^T.
    max_samples : int, optional
        At most so many positions of each layer, drawn evenly from all of them by the seed alone, however the inputs
        are batched.
    seed : int
        For that, and for models that draw random numbers.
    features_axis : int or dict of str to int, optional
        Which axis of a layer's output the features are along. When omitted: the last one of Linear, LayerNorm,
        Embedding, attention and recurrent modules; 1 of convolutions and BatchNorm, InstanceNorm, GroupNorm. Of other
        modules (activation functions, blocks) as in the last of these called before the output, if that had as many
        axes and features; else the last of three axes, and 1 otherwise.
    output : callable, optional
        Takes the tensor out of what a layer gives. When omitted, the first in it, of tuples, dicts and dataclasses too.
    budget : int
        Bytes of activations to keep at most.

    Returns
    -------
    dict of str to Components
        By layer, in the order asked for. ``places`` says where each sample lies.

    Raises
    ------
    ValueError
        If there is no such layer, it is not called, gives no tensor of real finite numbers or other features from one
        batch to the next; if the model cannot be called with the inputs; if these are none, or are needed twice and can
        be had only once; if `k` or `max_samples` is below 1.
    """
    for step in activation_steps(model, inputs, layers, k, **more):
        last = step
    assert last.result is not None
    return last.result


def activation_steps(
    model: nn.Module,
    inputs: Inputs,
    layers: Sequence[str] | None = None,
    k: int = 16,
    *,
    centre: bool = False,
    max_samples: int | None = None,
    seed: int = 0,
    features_axis: int | Mapping[str, int] | None = None,
    output: Callable[[Any], Tensor] | None = None,
    budget: int = BUDGET,
) -> Iterator[ActivationStep]:
    """Yield a step after each batch of `activations`; the last one has the result."""
    check_modes(k)
    if max_samples is not None and max_samples < 1:
        raise InputError(f"At least one sample is needed; max_samples is {max_samples}.")
    modules = select_modules(model, layers)
    taken = {name: Samples(name, k, centre, max_samples, seed) for name in modules}
    run = _runner(model, inputs, modules, taken, seed=seed, features_axis=features_axis, output=output)
    yield from decompose_steps(inputs, taken, run, budget, layers is None)


def sample_activations(
    model: nn.Module,
    inputs: Inputs,
    layers: Sequence[str] | None,
    max_samples: int,
    seed: int = 0,
    *,
    features_axis: int | Mapping[str, int] | None = None,
    output: Callable[[Any], Tensor] | None = None,
) -> dict[str, tuple[NDArray[Any], SampleLocations]]:
    """Return activations (samples, features) themselves, and where the samples lie; parameters as of `activations`."""
    if max_samples < 1:
        raise InputError(f"At least one sample is needed; max_samples is {max_samples}.")
    modules = select_modules(model, layers)
    taken = {name: Samples(name, 1, False, max_samples, seed) for name in modules}
    run = _runner(model, inputs, modules, taken, seed=seed, features_axis=features_axis, output=output)
    for _ in run(taken, Samples.take):
        pass
    return {name: layer.matrix() for name, layer in taken.items() if layer.samples or layers is not None}


def passes(
    model: nn.Module,
    inputs: Inputs,
    modules: Mapping[str, nn.Module],
    take: Callable[[str, LayerOutput], None],
    seed: int = 0,
    *,
    features_axis: int | Mapping[str, int] | None = None,
    output: Callable[[Any], Tensor] | None = None,
) -> Iterator[None]:
    """ForwardCall the model with each batch, and `take` with what each of its modules gives; yield after each batch.

    Parameters are as of `activations`, but for `modules`, by their names.
    """
    axes = features_axis if isinstance(features_axis, Mapping) else dict.fromkeys(modules, features_axis)
    first = 0
    for number, batch in enumerate(iterate_batches(inputs)):
        now = ForwardCall(batch, first)

        def hook(name: str, now: ForwardCall = now) -> Callable[..., None]:
            def see(layer: nn.Module, _: Any, given: Any) -> None:
                take(name, now.pieces(name, layer, given, axes.get(name), output))

            return see

        typed = dict.fromkeys(typed_modules(model), now.note)
        hooks = {module: hook(name) for name, module in modules.items()}
        # Whoever consumes the steps may do anything between them: the model is itself then.
        with evaluation_mode(model, seed + number), torch.no_grad(), forward_hooks(typed), forward_hooks(hooks):
            call_model(model, batch)
        first += now.count
        yield


def _runner(
    model: nn.Module, inputs: Inputs, modules: Mapping[str, nn.Module], taken: Mapping[str, Samples], **more: Any
) -> Run:
    """Return what makes `passes` with the samples of the layers of some names."""

    def run(names: Collection[str], take: Callable[[Samples, LayerOutput], None]) -> Iterator[None]:
        some = {name: modules[name] for name in names}
        return passes(model, inputs, some, lambda name, pieces: take(taken[name], pieces), **more)

    return run
