"""A trained super-resolution model, and its file."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor

from ..errors import InputError
from ..io.atomic import atomic_write
from ..io.safetensors_file import open_safetensors
from ..settings import validated
from .schemes import Scheme, build_scheme
from .settings import SuperResolveSettings, TrainSRSettings, UpsampleAxes

_PROGRAM = "napari-gsvolume/sr/"
_FORMAT_OF_0_1_0 = f"{_PROGRAM}1"
_FORMAT = f"{_PROGRAM}2"
# Settings as version 0.1.0 named them in its files, and their names now.
_RENAMED_SETTINGS = {
    "axes": "upsample_axes",
    "axis": "slice_axis",
    "functions": "basis",
    "order": "spline_degree",
    "patch": "patch_size",
    "batch": "batch_size",
    "lambda_squared": "l2_weight",
    "lambda_absolute": "l1_weight",
    "lambda_consistency": "consistency_weight",
    "lambda_orthogonality": "orthogonality_weight",
    "lambda_perceptual": "perceptual_weight",
    "lambda_adversarial": "adversarial_weight",
    "perceptual": "perceptual_features",
    "learn_weights": "uncertainty_weighting",
    "weighting": "frequency_weighting",
    "random_signs": "sign_flips",
    "hold_out": "validation_fraction",
}
_RENAMED_VALUES = {
    "scheme": {"a": "singular-vectors", "b": "residual"},
    "functions": {"decoders": "learned"},
}


@dataclass(frozen=True, eq=False)
class SRModel:
    """A trained super-resolution model.

    Attributes
    ----------
    scheme : Scheme
        Torch module with the weights and the settings of the training.
    metrics : dict
        Figures of the training, ready for JSON: ``psnr_db``, ``seconds``, ``iterations``.

    See Also
    --------
    train_superresolution : Trains a model.
    superresolve : Applies a model to a volume.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> from napari_gsvolume.super_resolution import SRModel, TrainSRSettings
    >>> from napari_gsvolume.super_resolution.schemes import build_scheme
    >>> model = SRModel(build_scheme(TrainSRSettings(channels=4, blocks=1)))  # untrained
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     model.save(pathlib.Path(folder) / "SR.safetensors")
    ...     SRModel.load(pathlib.Path(folder) / "SR.safetensors").settings.factor
    2.0
    """

    scheme: Scheme
    metrics: dict[str, Any] = field(default_factory=dict)

    @property
    def settings(self) -> TrainSRSettings:
        """Settings of the training."""
        return self.scheme.settings

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write weights, settings and metrics to a ``.safetensors`` file.

        Raises
        ------
        InputError
            If the file name has another ending.
        OSError
            If the file cannot be written.
        """
        path = Path(path)
        if path.suffix.lower() != ".safetensors":
            raise InputError(f"The file name of a model ends in .safetensors; got {path.name}.")
        header = {
            "format": _FORMAT,
            "settings": self.settings.model_dump_json(),
            "metrics": json.dumps(self.metrics, allow_nan=False),
        }
        content = save({name: t.contiguous() for name, t in self.scheme.state_dict().items()}, header)
        with atomic_write(path) as temporary:
            temporary.write_bytes(content)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> SRModel:
        """Read a file written by `save`, also one of version 0.1.0.

        Raises
        ------
        OSError
            If the file does not exist or may not be read.
        FileFormatError
            If the file is damaged, or is not a trained super-resolution model.
        """
        with open_safetensors(path, "pt", "a trained super-resolution") as file:
            header: dict[str, str] = file.metadata() or {}
            return _parse(header, {name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118 - no mapping

    def check(self, settings: SuperResolveSettings) -> None:
        """Raise InputError, in one sentence, if this model was trained for other settings than these."""
        s = self.settings
        names = ["scheme", "factor", "degradation"] + ["fwhm"] * (settings.degradation == s.degradation == "psf")
        for name in names:
            trained, requested = (_format_value(getattr(each, name)) for each in (s, settings))
            if trained != requested:
                raise InputError(
                    f"This model was trained for the {name} {trained}, not {requested}; choose {trained}, or another "
                    "model."
                )
        check_axes(s.upsample_axes, settings.upsample_axes)


def check_axes(trained: UpsampleAxes, requested: UpsampleAxes) -> None:
    """Raise InputError if a model trained for some axes cannot super-resolve the requested ones."""
    if (trained, requested) == ("through-plane", "in-plane"):
        raise InputError(
            "This model was trained through-plane, for one axis; in-plane super-resolution needs a model trained "
            "in-plane."
        )


def _parse(header: dict[str, str], tensors: dict[str, Tensor]) -> SRModel:
    file_format = header.get("format", "")
    if not file_format.startswith(_PROGRAM):
        raise InputError("it holds something else")
    if file_format not in (_FORMAT, _FORMAT_OF_0_1_0):
        raise InputError(
            f"its format is {file_format}, and this version reads up to {_FORMAT}; try a newer napari-gsvolume"
        )
    try:
        stored, metrics = json.loads(header["settings"]), json.loads(header["metrics"])
    except (KeyError, ValueError, RecursionError) as error:
        raise InputError("its settings or metrics are damaged") from error
    if not (isinstance(stored, dict) and isinstance(metrics, dict)):
        raise InputError("its settings or metrics are damaged")
    if file_format == _FORMAT_OF_0_1_0:
        stored = _translate(stored)
    if unknown := sorted(set(stored) - set(TrainSRSettings.model_fields)):
        raise InputError(f"this version has no setting {unknown[0]}; try a newer napari-gsvolume")
    scheme = build_scheme(validated(TrainSRSettings, **stored))
    expected = {name: (t.shape, t.dtype) for name, t in scheme.state_dict().items()}
    if {name: (t.shape, t.dtype) for name, t in tensors.items()} != expected:
        raise InputError("its weights do not fit its settings")
    if not all(t.isfinite().all() for t in tensors.values() if t.is_floating_point()):
        raise InputError("its weights are not finite")
    scheme.load_state_dict(tensors)
    return SRModel(scheme, metrics)


def _translate(stored: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of a file of version 0.1.0 under the names of this version."""
    translated = {}
    for name, value in stored.items():
        values = _RENAMED_VALUES.get(name, {})
        translated[_RENAMED_SETTINGS.get(name, name)] = values.get(value, value) if isinstance(value, str) else value
    return translated


def _format_value(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
