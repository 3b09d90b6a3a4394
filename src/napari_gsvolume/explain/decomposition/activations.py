"""Activations of layers, collected by forward hooks as a model runs, and decomposed as a stream."""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from typing import Any

from numpy.typing import NDArray
from torch import Tensor

from ...errors import InputError
from ...progress import Budget, finish
from ..models.explained_model import ExplainedModel, Model
from ..models.forward import Inputs
from ..models.outputs import LayerOutput
from .components import Components, SampleLocations, check_modes
from .sampling import MEMORY_LIMIT, ActivationStep, Run, Samples, decompose_steps


def activations(
    model: Model, inputs: Inputs, layers: Sequence[str] | None = None, k: int = 16, **options: Any
) -> dict[str, Components]:
    """Decompose the activations A = U S V^T of layers: samples are positions, features are channels.

    Rows are streamed (see `StreamingSVD`); no more than `memory_limit` bytes of them are kept for the scores. Beyond
    that, the model is run twice. It is in evaluation mode and without gradients meanwhile, and afterwards as before.

    Parameters
    ----------
    model : nn.Module or ExplainedModel
    inputs : Tensor, tuple, dict, or iterable of these
        Arguments of the model: one tensor, a tuple of arguments, a dict of keyword arguments, or several such batches.
    layers : sequence of str, optional
        Names as in ``model.named_modules()``. All modules that have parameters of their own and are called, if omitted.
    k : int
        Number of components. Layers of a lower rank return fewer; a layer that is always 0 returns none.
    centre : bool
        Subtract the mean over samples: principal components. Off by default, as in A = U S V^T.
    max_samples : int, optional
        Largest number of positions of each layer, drawn uniformly; the draw depends on the seed alone, however the
        inputs are batched.
    seed : int
        Seed of that draw, and of models that draw random numbers.
    features_axis : int or dict of str to int, optional
        Axis of features of the output of a layer. If omitted: the last one of Linear, LayerNorm, Embedding, attention
        and recurrent modules; 1 of convolutions and BatchNorm, InstanceNorm, GroupNorm. Other modules (activation
        functions, blocks) use the axis of the last of these called before them, if it had as many axes and features;
        else the last of three axes, and 1 otherwise.
    output : callable, optional
        Selects the tensor in the output of a layer. The first one if omitted, in tuples, dicts and dataclasses too.
    memory_limit : int
        Largest number of bytes of activations that are kept.
    budget : Budget, optional
        Stop request: the batches so far are decomposed.

    Returns
    -------
    dict of str to Components
        By layer, in the order requested; ``places`` holds the location of each sample.

    Raises
    ------
    InputError
        If there is no such layer, it is not called, returns no tensor of real finite numbers, or a different number of
        features in different batches; if the model cannot be called with the inputs; if there are no inputs, or they
        are needed twice and are a generator; if `k` or `max_samples` is below 1.

    See Also
    --------
    activation_steps : The same as a long run.
    jacobian, attention : Decompositions of other parts of a network.

    References
    ----------
    .. [1] M. Raghu et al., "SVCCA: singular vector canonical correlation analysis for deep learning dynamics and
       interpretability", NeurIPS 2017.

    Examples
    --------
    >>> import torch
    >>> from napari_gsvolume import explain
    >>> network = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.ReLU())
    >>> components = explain.activations(network, torch.randn(2, 1, 8, 8), ["0"], k=2)["0"]
    >>> components.concepts.shape, components.scores.shape
    ((4, 2), (72, 2))
    """
    return finish(activation_steps(model, inputs, layers, k, **options))


def activation_steps(
    model: Model,
    inputs: Inputs,
    layers: Sequence[str] | None = None,
    k: int = 16,
    *,
    centre: bool = False,
    max_samples: int | None = None,
    seed: int = 0,
    features_axis: int | Mapping[str, int] | None = None,
    output: Callable[[Any], Tensor] | None = None,
    memory_limit: int = MEMORY_LIMIT,
    budget: Budget | None = None,
) -> Generator[ActivationStep, None, dict[str, Components]]:
    """Decompose activations as a long run, with a step after each batch; see `activations`."""
    check_modes(k)
    if max_samples is not None and max_samples < 1:
        raise InputError(f"At least one sample is needed; max_samples is {max_samples}.")
    explained = ExplainedModel.of(model)
    modules = explained.modules(layers)
    samples = {name: Samples(name, k, centre, max_samples, seed) for name in modules}
    run = _runner(explained, inputs, samples, seed=seed, features_axis=features_axis, output=output)
    return decompose_steps(inputs, samples, run, memory_limit, layers is None, budget or Budget())


def sample_activations(
    model: Model,
    inputs: Inputs,
    layers: Sequence[str] | None,
    max_samples: int,
    seed: int = 0,
    *,
    features_axis: int | Mapping[str, int] | None = None,
    output: Callable[[Any], Tensor] | None = None,
) -> dict[str, tuple[NDArray[Any], SampleLocations]]:
    """Return activations (samples, features) and the locations of the samples; parameters as in `activations`."""
    if max_samples < 1:
        raise InputError(f"At least one sample is needed; max_samples is {max_samples}.")
    explained = ExplainedModel.of(model)
    samples = {name: Samples(name, 1, False, max_samples, seed) for name in explained.modules(layers)}
    run = _runner(explained, inputs, samples, seed=seed, features_axis=features_axis, output=output)
    for _ in run(samples, Samples.take):
        pass
    return {name: layer.matrix() for name, layer in samples.items() if layer.samples or layers is not None}


def _runner(explained: ExplainedModel, inputs: Inputs, samples: Mapping[str, Samples], **options: Any) -> Run:
    """Return the function that runs the model and passes the outputs of layers to their samples."""

    def run(names: Collection[str], take: Callable[[Samples, LayerOutput], None]) -> Iterator[None]:
        modules = explained.modules(list(names))
        return explained.passes(inputs, modules, lambda name, pieces: take(samples[name], pieces), **options)

    return run
