"""Models from files: a trained super-resolution, or what a function returns with weights of its own.

Nothing in a file is executed: safetensors holds numbers alone, and pickles are read with ``weights_only=True``. The
code of a factory is the user's, and is imported as Python imports it.
"""

from __future__ import annotations

import fnmatch
import importlib
import os
import pickle
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ...errors import FileFormatError, InputError
from ...super_resolution.model import SRModel
from ...super_resolution.settings import TrainSRSettings
from .outputs import select_modules

SAFE, PICKLED = (".safetensors",), (".pt", ".pth", ".ckpt", ".bin")
_NESTED = ("state_dict", "model_state_dict", "model")  # where checkpoints of trainings keep the weights
_PREFIXES = ("module.", "_orig_mod.")  # of nn.DataParallel and of torch.compile
_NEVER_CALLED = (nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)
_NAMED = 3


@dataclass(frozen=True, eq=False)
class ExplainedModel:
    """A model, and where it is from.

    Attributes
    ----------
    model : nn.Module
        In evaluation mode. Of a super-resolution its scheme, whose layers are ``network...``.
    name : str
        The file or the factory.
    weights : str
        The file of its weights; "" for those that it came with.
    sr : SRModel, or None
        The super-resolution, if it is one.
    """

    model: nn.Module
    name: str
    weights: str = ""
    sr: SRModel | None = None

    @property
    def kind(self) -> Literal["super-resolution", "network"]:
        """What it is."""
        return "network" if self.sr is None else "super-resolution"

    @property
    def settings(self) -> TrainSRSettings | None:
        """What a super-resolution was trained with."""
        return None if self.sr is None else self.sr.settings

    @property
    def parameters(self) -> int:
        """How many numbers were learnt."""
        return sum(p.numel() for p in self.model.parameters())


def load_model(spec: str | os.PathLike[str], weights: str | os.PathLike[str] | None = None) -> ExplainedModel:
    """Return a model.

    Parameters
    ----------
    spec : str or path
        A ``.safetensors`` file of `SRModel.save`; or ``package.module:function``, where the module is imported from the
        environment or the current folder, and the function is called without arguments and returns an nn.Module.
    weights : str or path, optional
        Of what a factory returns; see `load_weights`. They have to fit it exactly.

    Raises
    ------
    OSError
        If a file does not exist or may not be read.
    FileFormatError
        If a file is damaged, of another kind, or a pickle of more than numbers.
    ValueError
        If there is no such factory, it raises or returns something else, or the weights do not fit.
    """
    spec = os.fspath(spec)
    if spec.lower().endswith(SAFE):
        if weights is not None:
            raise InputError(
                f"{spec} has weights of its own; leave {Path(weights).name} out, or name a factory, "
                "package.module:function, that they are for."
            )
        sr = SRModel.load(spec)
        return ExplainedModel(sr.scheme.eval(), Path(spec).name, sr=sr)
    if spec.lower().endswith(PICKLED):
        raise InputError(
            f"{spec} holds weights, or code, which is not executed; name the function that makes the model as "
            "package.module:function, and give the file as its weights."
        )
    model = _from_factory(spec).eval()
    if weights is None:
        return ExplainedModel(model, spec)
    assign_weights(model, load_weights(weights), os.fspath(weights))
    return ExplainedModel(model, spec, Path(weights).name)


def load_weights(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Return the weights in a ``.safetensors`` file, or in a ``.pt`` or ``.pth`` file of nothing but weights.

    Of a checkpoint of a training, what is under ``state_dict``, ``model_state_dict`` or ``model``; the prefixes of
    nn.DataParallel and torch.compile are taken off.

    Raises
    ------
    OSError
        If the file does not exist or may not be read.
    FileFormatError
        If it is damaged, of another kind, or a pickle of more than numbers.
    """
    path = Path(path)
    try:
        path.open("rb").close()
        suffix = path.suffix.lower()
        if suffix in SAFE:
            state: Any = load_file(path)
        elif suffix in PICKLED:
            state = torch.load(path, map_location="cpu", weights_only=True)
        else:
            raise InputError(f"weights are in {', '.join(SAFE + PICKLED[:2])} files")
    except OSError as error:
        raise type(error)(f"{path} cannot be read: {error.strerror or error}.") from error
    except pickle.UnpicklingError as error:
        raise FileFormatError(
            f"{path} cannot be read: it is damaged, or a pickle of more than weights, which could execute code; save "
            "model.state_dict() as .safetensors where it comes from."
        ) from error
    except (SafetensorError, ValueError, RuntimeError, EOFError, KeyError, AttributeError) as error:
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        raise FileFormatError(f"{path} cannot be read as weights: {reason}.") from error
    return _tensors(state, path)


def assign_weights(model: nn.Module, state: Mapping[str, Tensor], name: str) -> None:
    """Give a model the weights of a file called `name`; raise ValueError, naming what does not fit, if any does not."""
    own = model.state_dict()
    # Tied weights are one tensor under several names, of which safetensors keeps one.
    there = {own[key].data_ptr() for key in own if key in state}
    missing = [key for key in own if key not in state and own[key].data_ptr() not in there]
    beyond = [key for key in state if key not in own]
    shapes = [
        f"{key} ({_shape(state[key])}, the model's is {_shape(own[key])})"
        for key in own
        if key in state and own[key].shape != state[key].shape
    ]
    wrong = [
        f"{what} {', '.join(keys[:_NAMED])}{f' and {len(keys) - _NAMED} more' if len(keys) > _NAMED else ''}"
        for what, keys in (("it lacks", missing), ("the model has no", beyond), ("of other shapes are", shapes))
        if keys
    ]
    if wrong:
        raise InputError(f"The weights in {name} do not fit the model {type(model).__name__}: {'; '.join(wrong)}.")
    model.load_state_dict(dict(state), strict=False)


def checkpoint_loader(loaded: ExplainedModel | None) -> Callable[[Path], nn.Module]:
    """Return the function that makes models of checkpoints.

    Checkpoints of super-resolutions are models by themselves. Those of a factory are weights, and one model, that of
    `loaded`, has them one after the other.
    """

    def load(path: Path) -> nn.Module:
        if loaded is None or loaded.sr is not None:
            return SRModel.load(path).scheme.eval()
        assign_weights(loaded.model, load_weights(path), str(path))
        return loaded.model

    return load


def match_layers(model: nn.Module, patterns: Iterable[str]) -> list[str] | None:
    """Return the names of the layers that patterns as of the shell (``body.*``) stand for; None of no patterns.

    Raises
    ------
    ValueError
        If one stands for none.
    """
    called = [name for name, module in model.named_modules() if name and not isinstance(module, _NEVER_CALLED)]
    found: dict[str, None] = {}
    for pattern in patterns:
        matching = fnmatch.filter(called, pattern) if any(c in pattern for c in "*?[") else []
        found |= dict.fromkeys(matching or select_modules(model, [pattern]))
    return list(found) or None


def layer_label(layer: str) -> str:
    """Return what to call a layer: that of no name is the model."""
    return layer or "(model)"


def _tensors(state: Any, path: Path) -> dict[str, Tensor]:
    while isinstance(state, Mapping) and not any(isinstance(value, Tensor) for value in state.values()):
        inner = next((state[key] for key in _NESTED if isinstance(state.get(key), Mapping)), None)
        if inner is None:
            break
        state = inner
    if not isinstance(state, Mapping) or not state or not all(isinstance(v, Tensor) for v in state.values()):
        raise FileFormatError(f"{path} holds no weights by name, as model.state_dict() gives them.")
    tensors = {str(key): value for key, value in state.items()}
    for prefix in _PREFIXES:
        if all(key.startswith(prefix) for key in tensors):
            tensors = {key.removeprefix(prefix): value for key, value in tensors.items()}
    return tensors


def _from_factory(spec: str) -> nn.Module:
    module_name, _, function_name = spec.partition(":")
    if not _dotted(module_name) or not _dotted(function_name):
        raise InputError(
            f"{spec!r} is no model: give a .safetensors file of gsvolume train-sr, or a function that returns a model "
            "as package.module:function."
        )
    with _importing_here() as here:
        try:
            thing: Any = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            raise InputError(
                f"{spec} cannot be imported from the environment or {here}: {str(error).rstrip('.')}."
            ) from error
        except (Exception, SystemExit) as error:
            raise InputError(f"Importing {module_name} failed: {_said(error)}.") from error
        for part in function_name.split("."):
            if not hasattr(thing, part):
                raise InputError(f"The module {module_name} has no {function_name}.")
            thing = getattr(thing, part)
        if not callable(thing) or isinstance(thing, nn.Module):
            raise InputError(f"{spec} is {type(thing).__name__}, not a function that returns a model.")
        try:
            model = thing()
        except (Exception, SystemExit) as error:
            raise InputError(f"{spec}, called without arguments, failed: {_said(error)}.") from error
    if not isinstance(model, nn.Module):
        raise InputError(f"{spec} returned {type(model).__name__}, not a torch.nn.Module.")
    return model


@contextmanager
def _importing_here() -> Iterator[str]:
    """Within, modules are found in the current folder too, as with ``python -m``."""
    here = os.getcwd()
    sys.path.insert(0, here)
    importlib.invalidate_caches()
    try:
        yield here
    finally:
        if here in sys.path:
            sys.path.remove(here)


def _dotted(name: str) -> bool:
    return all(part.isidentifier() for part in name.split("."))


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split()).rstrip('.')}".rstrip(": ")


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "scalar"
