"""A trained super-resolution: applied to volumes, written to and read from files."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from safetensors.torch import save
from torch import Tensor

from ..errors import InputError
from ..io.atomic import atomic_write
from ..io.safetensors_file import open_safetensors
from ..settings import validated
from .bspline import factors_of
from .degradation import Degradation
from .intensities import Intensities
from .schemes import Scheme, scheme
from .settings import Axes, SuperResolveSettings, TrainSRSettings

_PROGRAM = "napari-gsvolume/sr/"
_FORMAT = f"{_PROGRAM}1"
_PIXELS = 2**18  # of low resolution that are predicted at once
_SMALLEST = 5  # pixels of a slice's sides, which networks mirror up to 8
_FLIPS: tuple[tuple[int, ...], ...] = (), (-1,), (-2,), (-1, -2)


@dataclass(frozen=True, eq=False)
class SRModel:
    """A trained scheme.

    Attributes
    ----------
    scheme : Scheme
        Its weights, and the settings it was trained with.
    metrics : dict
        What it reached, ready for JSON.
    """

    scheme: Scheme
    metrics: dict[str, Any] = field(default_factory=dict)

    @property
    def settings(self) -> TrainSRSettings:
        """What it was trained with."""
        return self.scheme.settings

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write weights, settings and metrics to a ``.safetensors`` file.

        Raises
        ------
        ValueError
            If the file's name ends otherwise.
        OSError
            If it cannot be written.
        """
        path = Path(path)
        if path.suffix.lower() != ".safetensors":
            raise InputError(f"The name of a model's file ends in .safetensors; got {path.name}.")
        texts = {
            "format": _FORMAT,
            "settings": self.settings.model_dump_json(),
            "metrics": json.dumps(self.metrics, allow_nan=False),
        }
        content = save({name: t.contiguous() for name, t in self.scheme.state_dict().items()}, texts)
        with atomic_write(path) as temporary:
            temporary.write_bytes(content)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> SRModel:
        """Read what `save` wrote.

        Raises
        ------
        OSError
            If the file does not exist or may not be read.
        FileFormatError
            If it is damaged, or no trained super-resolution.
        """
        with open_safetensors(path, "pt", "a trained super-resolution") as file:
            texts: dict[str, str] = file.metadata() or {}
            return _parsed(texts, {name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118 - no mapping

    def check(self, asked: SuperResolveSettings) -> None:
        """Raise ValueError, in one sentence, if this model was trained for something else than is asked for."""
        s = self.settings
        names = ["scheme", "factor", "degradation"] + ["fwhm"] * (asked.degradation == s.degradation == "psf")
        for name in names:
            if getattr(asked, name) != getattr(s, name):
                raise InputError(
                    f"This model was trained for the {name} {_said(s, name)}, not {_said(asked, name)}; choose that, "
                    "or another model."
                )
        _check_axes(s.axes, asked.axes)


def superresolve(
    volume: ArrayLike,
    model: SRModel,
    axis: int = 0,
    axes: Axes = "in-plane",
    *,
    project: bool = True,
    ensemble: bool = True,
    intensities: Intensities | None = None,
    tell: Callable[[float], None] = lambda part: None,
) -> NDArray[np.float32]:
    """Return a volume, made finer by a trained model, slice by slice.

    Through-plane, the slices across both other axes are made finer and their mean is taken. A model trained in-plane
    makes them finer in both directions, and what was fine enough is degraded again.

    Parameters
    ----------
    volume : array_like, (Z, Y, X) or (Y, X)
        Finite. A constant one stays so.
    model : SRModel
    axis : int
        Along which slices are stacked.
    axes : {"in-plane", "through-plane"}
    project : bool
        Make the result agree exactly with `volume`, once degraded, whatever the model was trained with.
    ensemble : bool
        Predict from flipped slices, and from transposed ones where both axes become finer, too, and take the mean: 4 or
        8 times the work (Lim et al. 2017).
    intensities : Intensities, optional
        Those of the volume that `volume` is a part of; its own if not given.
    tell : callable
        Called with the part that is done, 0 to 1; what it raises ends the work.

    Returns
    -------
    ndarray of float32
        The finer volume, in the intensities of `volume`.

    Raises
    ------
    ValueError
        If the volume is none, is not finite or too small, or the model was trained through-plane and slices are to be
        made finer in-plane.
    """
    array = np.asarray(volume)
    if array.ndim not in (2, 3) or array.dtype.kind not in "biuf":
        raise InputError(f"A volume has 2 or 3 axes and one intensity a voxel; this has the shape {array.shape}.")
    if not np.isfinite(array).all():
        raise InputError("There are NaN or infinite intensities, which would spread; replace them first.")
    s = model.settings
    _check_axes(s.axes, axes)
    factors = factors_of(s.factor, axis, axes, array.ndim)
    array = array.astype(np.float32)
    degradation = Degradation.of_low(array.shape, factors, s.degradation, s.fwhm)
    if array.min() == array.max():  # which no network was trained on
        return np.full(degradation.high, array.flat[0])
    line = Intensities.of(array) if intensities is None else intensities
    normal = torch.from_numpy((array - np.float32(line.centre)) / np.float32(line.scale))
    if axes == "in-plane" or array.ndim == 2:
        stacked = normal[None] if array.ndim == 2 else normal.movedim(axis, 0)
        finer = _predicted(model, stacked, project, ensemble, tell)
        finer = finer[0] if array.ndim == 2 else finer.movedim(0, axis)
    else:
        others = [k for k in range(3) if k != axis]
        finer = torch.zeros(degradation.high)
        for k, across in enumerate(others):
            [along] = [j for j in others if j != across]
            # (across, axis, along): slices whose rows are along the axis that is to become finer.
            stacked = normal.permute(across, axis, along)
            made_finer = _predicted(model, stacked, project, ensemble, partial(_tell_half, tell, k))
            if s.axes == "in-plane":
                again = Degradation.of_low((array.shape[along],), (s.factor,), s.degradation, s.fwhm)
                made_finer = again.degrade(made_finer)
            finer += made_finer.movedim((0, 1, 2), (across, axis, along)) / 2
    image = np.ascontiguousarray(finer.numpy()) * np.float32(line.scale) + np.float32(line.centre)
    return degradation.project(image, array) if project else image


def _predicted(model: SRModel, slices: Tensor, project: bool, ensemble: bool, tell: Callable[[float], None]) -> Tensor:
    """Return slices (n, H, W), made finer, of (n, h, w)."""
    count, *shape = slices.shape
    if min(shape) < _SMALLEST:
        raise InputError(f"Slices of {' x '.join(map(str, shape))} pixels are too small to be made finer by a model.")
    rank = model.settings.rank
    if rank is not None and rank > min(shape):
        size = " x ".join(map(str, shape))
        raise InputError(f"This model takes {rank} modes of slices; slices of {size} pixels have {min(shape)}.")
    depth = model.settings.depth
    batch = max(1, _PIXELS // (shape[0] * shape[1]))
    turns = (False, True) if model.settings.axes == "in-plane" else (False,)
    views = list(product(_FLIPS, turns)) if ensemble else [((), False)]
    parts = []
    model.scheme.eval()
    with torch.no_grad():
        for first in range(0, count, batch):
            which = torch.arange(first, min(count, first + batch))[:, None] + torch.arange(depth) - depth // 2
            low = slices[which.clamp(0, count - 1)].contiguous()
            total = torch.zeros(())
            for k, (flips, turned) in enumerate(views, 1):
                seen = low.flip(flips)
                prediction = model.scheme(seen.transpose(-1, -2).contiguous() if turned else seen)
                image = prediction.image if project else prediction.raw
                total = total + (image.transpose(-1, -2) if turned else image).flip(flips)
                tell((first + len(low) * k / len(views)) / count)
            parts.append(total / len(views))
    return torch.cat(parts)


def _tell_half(tell: Callable[[float], None], half: int, part: float) -> None:
    tell((half + part) / 2)


def _parsed(texts: dict[str, str], tensors: dict[str, Tensor]) -> SRModel:
    written_as = texts.get("format", "")
    if not written_as.startswith(_PROGRAM):
        raise InputError("it holds something else")
    if written_as != _FORMAT:
        raise InputError(f"its format is {written_as}, and this version reads {_FORMAT}; try a newer napari-gsvolume")
    try:
        stored, metrics = json.loads(texts["settings"]), json.loads(texts["metrics"])
    except (KeyError, ValueError, RecursionError) as error:
        raise InputError("its settings or metrics are damaged") from error
    if not (isinstance(stored, dict) and isinstance(metrics, dict)):
        raise InputError("its settings or metrics are damaged")
    if unknown := sorted(set(stored) - set(TrainSRSettings.model_fields)):
        raise InputError(f"this version has no setting {unknown[0]}; try a newer napari-gsvolume")
    made_of = scheme(validated(TrainSRSettings, **stored))
    wanted = {name: (t.shape, t.dtype) for name, t in made_of.state_dict().items()}
    if {name: (t.shape, t.dtype) for name, t in tensors.items()} != wanted:
        raise InputError("its weights are not those of its settings")
    if not all(t.isfinite().all() for t in tensors.values() if t.is_floating_point()):
        raise InputError("its weights are not finite")
    made_of.load_state_dict(tensors)
    return SRModel(made_of, metrics)


def _check_axes(trained: Axes, asked: Axes) -> None:
    if (trained, asked) == ("through-plane", "in-plane"):
        raise InputError("This model was trained to make one axis finer, through-plane; train another one in-plane.")


def _said(settings: Any, name: str) -> str:
    value = getattr(settings, name)
    return f"{value:g}" if isinstance(value, float) else str(value)
