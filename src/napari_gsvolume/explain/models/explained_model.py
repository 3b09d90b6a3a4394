"""The model that is explained: its layers, its evaluation mode, its batches and its hooks, in one place."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from .forward import Batch, Inputs, call_model, evaluation_mode, forward_hooks, iterate_batches
from .hooks import Interceptor, intercept_layer
from .outputs import ForwardCall, LayerOutput, match_layers, select_modules, typed_modules

if TYPE_CHECKING:
    from ...super_resolution.model import SRModel
    from ...super_resolution.settings import TrainSRSettings

ContextT = TypeVar("ContextT")


@dataclass(frozen=True, eq=False)
class ExplainedModel:
    """A network, and everything that analyses of it need: selection of layers, evaluation mode, batches and hooks.

    Parameters
    ----------
    model : nn.Module
        The network. Analyses run it in evaluation mode and leave it in the mode that it was in. Of a super-resolution
        model it is the scheme, whose layers are ``network...``.
    name : str
        File or factory that it comes from; its class for a module that was given.
    weights : str
        File of its weights; "" for those that a factory sets.
    sr : SRModel, optional
        The super-resolution model, if it is one.

    See Also
    --------
    load_model : Load a model from a file or a factory.

    Examples
    --------
    >>> import torch
    >>> from napari_gsvolume.explain import ExplainedModel
    >>> network = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.ReLU())
    >>> explained = ExplainedModel.of(network)
    >>> list(explained.modules()), explained.parameters
    (['0'], 40)
    >>> explained.run(torch.zeros(2, 1, 8, 8)).shape
    torch.Size([2, 4, 6, 6])
    """

    model: nn.Module
    name: str = ""
    weights: str = ""
    sr: SRModel | None = None

    @classmethod
    def of(cls, model: nn.Module | ExplainedModel | SRModel) -> ExplainedModel:
        """Return a model as it is, or wrap a module or a super-resolution model."""
        if isinstance(model, ExplainedModel):
            return model
        if isinstance(model, nn.Module):
            return cls(model, type(model).__name__)
        return cls(model.scheme, type(model).__name__, sr=model)

    @property
    def kind(self) -> Literal["super-resolution", "network"]:
        """Kind of the model."""
        return "network" if self.sr is None else "super-resolution"

    @property
    def settings(self) -> TrainSRSettings | None:
        """Training settings of a super-resolution model; None for other networks."""
        return None if self.sr is None else self.sr.settings

    @property
    def parameters(self) -> int:
        """Number of parameters."""
        return sum(p.numel() for p in self.model.parameters())

    # Layers -----------------------------------------------------------------------------------------------------------

    def modules(self, layers: Sequence[str] | str | None = None) -> dict[str, nn.Module]:
        """Return modules by name; all that have parameters of their own if no layers are given.

        Raises
        ------
        InputError
            If there is no such layer.
        """
        return select_modules(self.model, layers)

    def match(self, patterns: Iterable[str]) -> list[str] | None:
        """Return the names of the layers that match patterns such as ``body.*``; None if there are no patterns.

        Raises
        ------
        InputError
            If a pattern matches no layer.
        """
        return match_layers(self.model, patterns)

    # Runs -------------------------------------------------------------------------------------------------------------

    @contextmanager
    def evaluation(self, seed: int = 0) -> Iterator[None]:
        """Context in which the model is in evaluation mode, with a seed of its own; afterwards it is as before."""
        with evaluation_mode(self.model, seed):
            yield

    @staticmethod
    def batches(inputs: Inputs) -> Iterable[Batch]:
        """Return the batches in inputs: one, if they are a tensor, a tuple of arguments or a dict of them."""
        return iterate_batches(inputs)

    def call(self, batch: Batch) -> Any:
        """Return the output for a batch, in the current mode of the model.

        Raises
        ------
        InputError
            If the model raises an error; the message has its words.
        """
        return call_model(self.model, batch)

    def run(self, batch: Batch, seed: int = 0) -> Any:
        """Return the output for a batch, in evaluation mode and without gradients; raises as `call` does."""
        with self.evaluation(seed), torch.no_grad():
            return self.call(batch)

    def accepts(self, batch: Batch, seed: int = 0) -> bool:
        """Return True if the model can be called with a batch."""
        try:
            self.run(batch, seed)
        except ValueError:
            return False
        return True

    def run_batches(
        self,
        inputs: Inputs,
        seed: int = 0,
        context: Callable[[ForwardCall], AbstractContextManager[ContextT]] = lambda _: nullcontext(),  # type: ignore[assignment,return-value]
    ) -> Iterator[tuple[ForwardCall, ContextT]]:
        """Run the model on each batch, in evaluation mode and without gradients, and yield after each.

        Parameters
        ----------
        inputs : Tensor, tuple, dict, or iterable of these
        seed : int
            Seed of the first batch; it grows by 1 with each batch.
        context : callable
            Returns the context that a call of the model is made in; what that yields is yielded too.
        """
        first = 0
        for number, batch in enumerate(self.batches(inputs)):
            current = ForwardCall(batch, first)
            # Consumers of the steps may do anything between them: the model is left only within its own contexts.
            with self.evaluation(seed + number), torch.no_grad(), context(current) as yielded:
                self.call(batch)
            first += current.count
            yield current, yielded

    def passes(
        self,
        inputs: Inputs,
        modules: Mapping[str, nn.Module],
        take: Callable[[str, LayerOutput], None],
        seed: int = 0,
        *,
        features_axis: int | Mapping[str, int] | None = None,
        output: Callable[[Any], Tensor] | None = None,
    ) -> Iterator[None]:
        """Run the model on each batch, call `take` with the output of each module, and yield after each batch.

        Parameters are those of `activations`, except for `modules`, which are given by name.
        """
        axes = features_axis if isinstance(features_axis, Mapping) else dict.fromkeys(modules, features_axis)

        @contextmanager
        def hooks(current: ForwardCall) -> Iterator[None]:
            def hook(name: str) -> Callable[..., None]:
                def record(layer: nn.Module, _: Any, given: Any) -> None:
                    take(name, current.pieces(name, layer, given, axes.get(name), output))

                return record

            typed = dict.fromkeys(typed_modules(self.model), current.record)
            with forward_hooks(typed), forward_hooks({module: hook(name) for name, module in modules.items()}):
                yield

        for _ in self.run_batches(inputs, seed, hooks):
            yield

    # Hooks ------------------------------------------------------------------------------------------------------------

    @contextmanager
    def hooks(self, hooks: Mapping[nn.Module, Callable[..., Any]]) -> Iterator[None]:
        """Context in which forward hooks (module, args, output) are registered."""
        with forward_hooks(hooks):
            yield

    @contextmanager
    def intercept(self, layer: str, interceptor: Interceptor, features_axis: int | None = None) -> Iterator[None]:
        """Context in which `interceptor` sees, and may replace, the output of a layer; see `intercept_layer`."""
        with intercept_layer(self.model, layer, interceptor, features_axis):
            yield


Model = nn.Module | ExplainedModel
"""What analyses take: a plain module or an `ExplainedModel`."""
