"""Models from files: a trained super-resolution model, or a model factory with weights.

Nothing in a file is executed: safetensors holds numbers alone, and pickles are read with ``weights_only=True``. The
code of a factory is the user's, and is imported as usual.
"""

from __future__ import annotations

import importlib
import os
import pickle
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ...errors import FileFormatError, InputError
from ...super_resolution.model import SRModel
from .explained_model import ExplainedModel

SAFE, PICKLED = (".safetensors",), (".pt", ".pth", ".ckpt", ".bin")
_NESTED = ("state_dict", "model_state_dict", "model")  # keys of the weights in checkpoints
_PREFIXES = ("module.", "_orig_mod.")  # of nn.DataParallel and of torch.compile
_NAMED = 3


def load_model(spec: str | os.PathLike[str], weights: str | os.PathLike[str] | None = None) -> ExplainedModel:
    """Load a model from a file or a factory.

    Parameters
    ----------
    spec : str or path
        A ``.safetensors`` file of `SRModel.save`; or a factory ``package.module:function``: the module is imported from
        the environment or the current folder, and the function is called without arguments and returns an nn.Module.
    weights : str or path, optional
        Weights for the model of a factory, which must fit it exactly; see `load_weights`.

    Raises
    ------
    OSError
        If a file does not exist or may not be read.
    FileFormatError
        If a file is damaged, of another format, or a pickle of more than weights.
    InputError
        If there is no such factory, it raises an error or returns something else, or the weights do not fit.

    Examples
    --------
    >>> from napari_gsvolume.explain import load_model
    >>> load_model("torch.nn:Identity").kind
    'network'
    """
    spec = os.fspath(spec)
    if spec.lower().endswith(SAFE):
        if weights is not None:
            raise InputError(
                f"{spec} has weights of its own; leave {Path(weights).name} out, or give their factory, "
                "package.module:function."
            )
        sr = SRModel.load(spec)
        return ExplainedModel(sr.scheme.eval(), Path(spec).name, sr=sr)
    if spec.lower().endswith(PICKLED):
        raise InputError(
            f"{spec} holds weights, or code, which is not executed; give the factory of the model, "
            "package.module:function, and the file as its weights."
        )
    model = _from_factory(spec).eval()
    if weights is None:
        return ExplainedModel(model, spec)
    assign_weights(model, load_weights(weights), os.fspath(weights))
    return ExplainedModel(model, spec, Path(weights).name)


def load_weights(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Return the weights in a ``.safetensors`` file, or in a ``.pt`` or ``.pth`` file of nothing but weights.

    Weights of checkpoints are under ``state_dict``, ``model_state_dict`` or ``model``; the prefixes of nn.DataParallel
    and torch.compile are removed.

    Raises
    ------
    OSError
        If the file does not exist or may not be read.
    FileFormatError
        If it is damaged, of another format, or a pickle of more than weights.
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
    """Assign weights from a file called `name` to a model; raise InputError with the names that do not fit."""
    own = model.state_dict()
    # Tied weights are one tensor under several names, of which safetensors keeps one.
    given = {own[key].data_ptr() for key in own if key in state}
    missing = [key for key in own if key not in state and own[key].data_ptr() not in given]
    beyond = [key for key in state if key not in own]
    shapes = [
        f"{key} ({_shape(state[key])}, the model's is {_shape(own[key])})"
        for key in own
        if key in state and own[key].shape != state[key].shape
    ]
    wrong = [
        f"{what} {', '.join(keys[:_NAMED])}{f' and {len(keys) - _NAMED} more' if len(keys) > _NAMED else ''}"
        for what, keys in (("missing are", missing), ("the model has no", beyond), ("shapes differ for", shapes))
        if keys
    ]
    if wrong:
        raise InputError(f"The weights in {name} do not fit the model {type(model).__name__}: {'; '.join(wrong)}.")
    model.load_state_dict(dict(state), strict=False)


def checkpoint_loader(loaded: ExplainedModel | None) -> Callable[[Path], nn.Module]:
    """Return the function that loads the model of a checkpoint.

    Checkpoints of super-resolution models are complete. Those of a factory are weights, which are assigned to the
    model of `loaded`, one after the other.
    """

    def load(path: Path) -> nn.Module:
        if loaded is None or loaded.sr is not None:
            return SRModel.load(path).scheme.eval()
        assign_weights(loaded.model, load_weights(path), str(path))
        return loaded.model

    return load


def _tensors(state: Any, path: Path) -> dict[str, Tensor]:
    while isinstance(state, Mapping) and not any(isinstance(value, Tensor) for value in state.values()):
        inner = next((state[key] for key in _NESTED if isinstance(state.get(key), Mapping)), None)
        if inner is None:
            break
        state = inner
    if not isinstance(state, Mapping) or not state or not all(isinstance(v, Tensor) for v in state.values()):
        raise FileFormatError(f"{path} holds no state dict, as of model.state_dict().")
    tensors = {str(key): value for key, value in state.items()}
    for prefix in _PREFIXES:
        if all(key.startswith(prefix) for key in tensors):
            tensors = {key.removeprefix(prefix): value for key, value in tensors.items()}
    return tensors


def _from_factory(spec: str) -> nn.Module:
    module_name, _, function_name = spec.partition(":")
    if not _dotted(module_name) or not _dotted(function_name):
        raise InputError(
            f"{spec!r} is no model: give a .safetensors file of gsvolume train-sr, or a model factory as "
            "package.module:function."
        )
    with _importing_here() as here:
        try:
            thing: Any = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            raise InputError(
                f"{spec} cannot be imported from the environment or {here}: {str(error).rstrip('.')}."
            ) from error
        except (Exception, SystemExit) as error:
            raise InputError(f"Importing {module_name} failed: {_describe_error(error)}.") from error
        for part in function_name.split("."):
            if not hasattr(thing, part):
                raise InputError(f"The module {module_name} has no {function_name}.")
            thing = getattr(thing, part)
        if not callable(thing) or isinstance(thing, nn.Module):
            raise InputError(f"{spec} is {type(thing).__name__}, not a function that returns a model.")
        try:
            model = thing()
        except (Exception, SystemExit) as error:
            raise InputError(f"{spec}, called without arguments, failed: {_describe_error(error)}.") from error
    if not isinstance(model, nn.Module):
        raise InputError(f"{spec} returned {type(model).__name__}, not a torch.nn.Module.")
    return model


@contextmanager
def _importing_here() -> Iterator[str]:
    """Context in which modules are found in the current folder too, as with ``python -m``."""
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


def _describe_error(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split()).rstrip('.')}".rstrip(": ")


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "scalar"
