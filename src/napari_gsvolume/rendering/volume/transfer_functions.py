"""Transfer functions: which colour and opacity direct volume rendering gives to an intensity."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ...errors import InputError
from ...io.atomic import atomic_write
from ...settings import Positive, one_sentence

FORMAT: Literal["napari-gsvolume transfer function"] = "napari-gsvolume transfer function"
Preset = Literal["gray", "mr", "ct-bone", "ct-soft-tissue", "ct-angio"]
PRESETS: tuple[Preset, ...] = get_args(Preset)
LAYERS = 200
"""Layers in a volume's diagonal: opacities are of one of them where no thickness is given."""
_MOST_OPAQUE = 0.999  # keeps the extinction finite
_FLAT = 10.0  # HU; a volume that nowhere reaches it is not in HU
_SAMPLES = 65  # of a colormap
_RAMP = 0.1  # the highest opacity of ramps: what is inside shows through

_Point = tuple[float, tuple[float, float, float], float]
# Intensity in HU, colour, opacity.
_CT: dict[str, list[_Point]] = {
    "ct-bone": [
        (140.0, (0.50, 0.24, 0.16), 0.0),
        (210.0, (0.80, 0.58, 0.42), 0.20),
        (320.0, (0.95, 0.87, 0.70), 0.70),
        (700.0, (0.99, 0.95, 0.85), 0.92),
        (1500.0, (1.0, 0.98, 0.94), 0.97),
    ],
    "ct-soft-tissue": [
        (-400.0, (0.88, 0.62, 0.50), 0.0),
        (-150.0, (0.95, 0.72, 0.58), 0.40),
        (-30.0, (0.93, 0.66, 0.50), 0.55),
        (20.0, (0.80, 0.40, 0.32), 0.80),
        (120.0, (0.72, 0.26, 0.21), 0.88),
        (250.0, (0.94, 0.82, 0.66), 0.92),
        (1000.0, (1.0, 0.97, 0.90), 0.97),
    ],
    "ct-angio": [
        (160.0, (0.50, 0.05, 0.04), 0.0),
        (220.0, (0.75, 0.09, 0.07), 0.50),
        (380.0, (0.92, 0.22, 0.15), 0.85),
        (550.0, (0.95, 0.60, 0.42), 0.92),
        (800.0, (0.98, 0.92, 0.80), 0.95),
        (1500.0, (1.0, 0.98, 0.94), 0.97),
    ],
}
# Parts of the way from the darkest to the brightest tissue, colour, opacity.
_MR: list[_Point] = [
    (0.0, (0.55, 0.36, 0.32), 0.0),
    (0.2, (0.68, 0.48, 0.43), 0.35),
    (0.5, (0.85, 0.70, 0.63), 0.75),
    (1.0, (1.0, 0.97, 0.93), 0.95),
]


@dataclass(frozen=True, eq=False)
class TransferFunction:
    """Colours and opacities at intensities, linear in between, constant outside.

    Attributes
    ----------
    values : ndarray, (P,), float64
        Intensities, ascending. Two points at one intensity make an edge, the second of which holds at it.
    colours : ndarray, (P, 3), float64
        Red, green and blue, from 0 to 1.
    opacities : ndarray, (P,), float64
        The part of the light that a layer of `unit_mm` absorbs, from 0 to 1; 0.999 is the most that is rendered.
    unit_mm : float or None
        Thickness of that layer, mm; None for 1/200 of the volume's diagonal, so that volumes of any size look alike.
    shading : bool
        Whether surfaces are lit, if the renderer is not told.

    Raises
    ------
    ValueError
        If shapes do not fit, intensities descend or are not finite, or a number is out of its range.
    """

    values: NDArray[np.float64]
    colours: NDArray[np.float64]
    opacities: NDArray[np.float64]
    unit_mm: float | None = None
    shading: bool = False

    def __post_init__(self) -> None:
        values, colours, opacities = (np.array(a, np.float64) for a in (self.values, self.colours, self.opacities))
        n = values.size
        if not n or values.shape != (n,) or colours.shape != (n, 3) or opacities.shape != (n,):
            raise InputError(
                "A transfer function has P intensities, colours of shape (P, 3) and P opacities, P at least 1; got "
                f"shapes {values.shape}, {colours.shape} and {opacities.shape}."
            )
        if not np.isfinite(values).all() or (np.diff(values) < 0).any():
            raise InputError("The intensities of a transfer function have to be finite and ascending.")
        for name, array in (("colours", colours), ("opacities", opacities)):
            if not ((array >= 0) & (array <= 1)).all():
                raise InputError(f"The {name} of a transfer function have to be from 0 to 1.")
        if self.unit_mm is not None and not 0 < self.unit_mm < np.inf:
            raise InputError(f"The thickness that opacities are of has to be positive; got {self.unit_mm:g} mm.")
        for name, array in (("values", values), ("colours", colours), ("opacities", opacities)):
            object.__setattr__(self, name, array)

    def at(self, intensities: ArrayLike) -> NDArray[np.float64]:
        """Return red, green, blue and opacity at intensities ``(...)``, as an array ``(..., 4)``."""
        x = np.asarray(intensities, np.float64)
        return np.stack([np.interp(x, self.values, column) for column in (*self.colours.T, self.opacities)], -1)

    def table(self, low: float, high: float, n: int = 1024) -> NDArray[np.float64]:
        """Return red, green, blue and opacity at `n` intensities evenly spread from low to high, ``(n, 4)``."""
        return self.at(np.linspace(low, high, n))

    def extinction(self, opacities: ArrayLike, diagonal: float) -> NDArray[np.float64]:
        """Return what opacities are per mm, ``-log(1 - opacity) / unit``, in a volume of this diagonal, mm."""
        unit = diagonal / LAYERS if self.unit_mm is None else self.unit_mm
        return -np.log1p(-np.minimum(opacities, _MOST_OPAQUE)) / unit

    @classmethod
    def from_colormap(
        cls, colors: ArrayLike, contrast_limits: tuple[float, float], gamma: float = 1.0
    ) -> TransferFunction:
        """Return the transfer function that shows a volume in the colours of a napari layer.

        Parameters
        ----------
        colors : array_like, (n, 3) or (n, 4)
            Of the colormap, evenly spread, from 0 to 1; n at least 1. An alpha scales the opacity.
        contrast_limits : (float, float)
            Intensities of the first and the last colour.
        gamma : float
            The part of the way between them, to this power, chooses the colour, and is in proportion the opacity.

        Raises
        ------
        ValueError
            If the colours are of another shape or range, the limits do not ascend, or gamma is not positive.
        """
        stops, (low, high) = np.asarray(colors, np.float64), contrast_limits
        if stops.ndim != 2 or stops.shape[1] not in (3, 4) or not len(stops):
            raise InputError(f"The colours of a colormap have to be of shape (n, 3) or (n, 4); got {stops.shape}.")
        if not (np.isfinite([low, high]).all() and low < high):
            raise InputError(f"The contrast limits have to be finite and ascending; got {low:g} and {high:g}.")
        if not 0 < gamma < np.inf:
            raise InputError(f"Gamma has to be positive; got {gamma:g}.")
        t = np.linspace(0, 1, _SAMPLES)
        way = t**gamma
        at = [np.interp(way, np.linspace(0, 1, len(stops)), column) for column in stops.T]
        alpha = at[3] if len(at) == 4 else 1.0
        return cls(low + t * (high - low), np.stack(at[:3], 1), _RAMP * way * alpha)

    def to_dict(self) -> dict[str, Any]:
        """Return the transfer function as it is in files."""
        points = zip(self.values.tolist(), self.colours.tolist(), self.opacities.tolist(), strict=True)
        return {
            "format": FORMAT,
            "version": 1,
            "unit_mm": self.unit_mm,
            "shading": self.shading,
            "points": [{"value": value, "colour": colour, "opacity": opacity} for value, colour, opacity in points],
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the transfer function as JSON."""
        with atomic_write(Path(path)) as temporary:
            temporary.write_text(json.dumps(self.to_dict(), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def from_dict(cls, data: Any) -> TransferFunction:
        """Return the transfer function that `to_dict` describes; a ValueError says in one sentence what is wrong."""
        try:
            file = _File.model_validate(data)
        except ValidationError as error:
            raise InputError(one_sentence(error)) from error
        return _of([(p.value, p.colour, p.opacity) for p in file.points], file.unit_mm, file.shading)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> TransferFunction:
        """Read the transfer function from JSON; a ValueError says in one sentence what is wrong with it."""
        name = Path(path).name
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise InputError(f"{name} is not JSON ({str(error).rstrip('.')}).") from error
        try:
            return cls.from_dict(data)
        except ValueError as error:
            raise InputError(f"{name}: {error}") from error


def preset(name: Preset, volume: ArrayLike) -> TransferFunction:
    """Return one of the usual transfer functions.

    Parameters
    ----------
    name : "gray", "mr", "ct-bone", "ct-soft-tissue" or "ct-angio"
        "gray" is a ramp from black and transparent to white, from the 1st to the 99th percentile, without shading;
        "mr" shows tissue from the 10th to the 99th percentile of what is brighter than the mean, which leaves out the
        air; those of CT are of intensities in HU.
    volume : array_like
        What it is to show.

    Raises
    ------
    ValueError
        If there is no such preset, the volume is not finite, or one of CT is asked of a volume that is not in HU.
    """
    array = np.asarray(volume)
    if name not in PRESETS:
        raise InputError(f"There is no preset {name!r}; there are {', '.join(PRESETS)}.")
    if not array.size or not np.isfinite(array).all():
        raise InputError("A preset needs a volume of finite voxels.")
    if name == "gray":
        low, high = _ascending(np.percentile(array, (1, 99)))
        return _of([(low, (0.0, 0.0, 0.0), 0.0), (high, (1.0, 1.0, 1.0), _RAMP)])
    if name == "mr":
        tissue = array[array > array.mean()]
        low, high = _ascending(np.percentile(tissue if tissue.size else array, (10, 99)))
        return _of([(low + part * (high - low), colour, opacity) for part, colour, opacity in _MR], shading=True)
    points, brightest = _CT[name], float(array.max())
    if brightest <= max(_FLAT, points[0][0]):
        raise InputError(
            f"The preset {name} is for CT in HU and shows nothing here, where no voxel is brighter than {brightest:g}."
        )
    return _of(points, shading=True)


def intervals(transfer: TransferFunction, named: Mapping[str, tuple[float, float]]) -> dict[str, TransferFunction]:
    """Return a transfer function restricted to intervals of intensity, one for each.

    Parameters
    ----------
    transfer : TransferFunction
    named : mapping of str to (float, float)
        Intervals, from their first value up to, but without, their last. Outside of them the opacity is zero.

    Raises
    ------
    ValueError
        If an interval is not finite or empty.
    """
    return {name: _within(transfer, name, *interval) for name, interval in named.items()}


def together(parts: Sequence[TransferFunction]) -> TransferFunction:
    """Return one transfer function that shows what several do, as `intervals` makes them.

    Raises
    ------
    ValueError
        If two of them overlap.
    """
    ordered = sorted(parts, key=lambda part: float(part.values[0]))
    if any(a.values[-1] > b.values[0] for a, b in pairwise(ordered)):
        raise InputError("Intervals that are shown together must not overlap.")
    values, colours, opacities = (
        np.concatenate([getattr(part, name) for part in ordered]) for name in ("values", "colours", "opacities")
    )
    return replace(ordered[0], values=values, colours=colours, opacities=opacities)


def _within(transfer: TransferFunction, name: str, low: float, high: float) -> TransferFunction:
    if not (np.isfinite([low, high]).all() and low < high):
        raise InputError(f"The interval {name} has to be finite and ascending; got {low:g} and {high:g}.")
    inner = (transfer.values > low) & (transfer.values < high)
    first, last = transfer.at([low, np.nextafter(high, low)])
    colours = np.stack([first[:3], first[:3], *transfer.colours[inner], last[:3], last[:3]])
    opacities = np.array([0, first[3], *transfer.opacities[inner], last[3], 0])
    return replace(
        transfer,
        values=np.array([low, low, *transfer.values[inner], high, high]),
        colours=colours,
        opacities=opacities,
    )


def _of(points: list[_Point], unit_mm: float | None = None, shading: bool = False) -> TransferFunction:
    values, colours, opacities = (np.array(column) for column in zip(*points, strict=True))
    return TransferFunction(values, colours, opacities, unit_mm, shading)


def _ascending(limits: NDArray[np.float64]) -> tuple[float, float]:
    """Return two limits, or, where they are one, as of a volume that is nearly all zero, two around it."""
    low, high = map(float, limits)
    return (low, high) if low < high else (low - 0.5, low + 0.5)


_Part = Annotated[float, Field(ge=0, le=1)]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class _FilePoint(_Model):
    value: float
    colour: tuple[_Part, _Part, _Part]
    opacity: _Part


class _File(_Model):
    """The JSON file."""

    format: Literal["napari-gsvolume transfer function"] = FORMAT
    version: Literal[1] = 1
    unit_mm: Positive | None = None
    shading: bool = False
    points: Annotated[list[_FilePoint], Field(min_length=1)]

    @model_validator(mode="after")
    def _ascend(self) -> _File:
        if any(a.value > b.value for a, b in zip(self.points, self.points[1:], strict=False)):
            raise InputError("the points of a transfer function have to ascend")
        return self
