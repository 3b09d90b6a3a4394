"""Transfer functions of direct volume rendering: colour and opacity as functions of intensity."""

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

from ...errors import FileFormatError, InputError
from ...io.atomic import atomic_write
from ...settings import Positive, one_sentence

FORMAT: Literal["napari-gsvolume transfer function"] = "napari-gsvolume transfer function"
Preset = Literal["gray", "mr", "ct-bone", "ct-soft-tissue", "ct-angio"]
PRESETS: tuple[Preset, ...] = get_args(Preset)
LAYERS = 200
"""Number of layers along a volume's diagonal; default opacities refer to one of them."""
_MAX_OPACITY = 0.999  # keeps the extinction finite
_MIN_HU_MAXIMUM = 10.0  # HU; a volume with a smaller maximum is not in Hounsfield units
_COLORMAP_SAMPLES = 65
_RAMP_OPACITY = 0.1  # maximum opacity of ramps, low enough to see inside

_Point = tuple[float, tuple[float, float, float], float]
# Intensity (HU), colour (red, green, blue), opacity.
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
# Position between the darkest (0) and the brightest (1) tissue, colour, opacity.
_MR: list[_Point] = [
    (0.0, (0.55, 0.36, 0.32), 0.0),
    (0.2, (0.68, 0.48, 0.43), 0.35),
    (0.5, (0.85, 0.70, 0.63), 0.75),
    (1.0, (1.0, 0.97, 0.93), 0.95),
]


@dataclass(frozen=True, eq=False)
class TransferFunction:
    """Piecewise linear map from intensity to colour and opacity, constant beyond the first and the last point.

    Attributes
    ----------
    values : ndarray, (P,), float64
        Intensities of the points, ascending. Two points at the same intensity make a step; the second one holds there.
    colors : ndarray, (P, 3), float64
        Red, green and blue, 0 to 1.
    opacities : ndarray, (P,), float64
        Fraction of light absorbed by a layer of thickness `unit_mm`, 0 to 1; clipped to 0.999 for rendering.
    unit_mm : float or None
        Thickness of this layer, mm; None: 1/200 of the volume's diagonal, so that volumes of any size look alike.
    shading : bool
        Default for the `shading` option of renderers: Phong shading of surfaces.

    Raises
    ------
    InputError
        If shapes do not match, intensities are not finite and ascending, or a number is out of its range.

    References
    ----------
    M. Levoy, "Display of surfaces from volume data", IEEE Computer Graphics and Applications 8 (3), 1988.

    Examples
    --------
    >>> from napari_gsvolume.rendering import TransferFunction
    >>> bone = TransferFunction([150.0, 300, 1500], [(0.5, 0.2, 0.2), (1, 0.9, 0.7), (1, 1, 1)], [0.0, 0.7, 0.95])
    >>> bone.evaluate(225.0).round(3).tolist()
    [0.75, 0.55, 0.45, 0.35]
    """

    values: NDArray[np.float64]
    colors: NDArray[np.float64]
    opacities: NDArray[np.float64]
    unit_mm: float | None = None
    shading: bool = False

    def __post_init__(self) -> None:
        values, colors, opacities = (np.array(a, np.float64) for a in (self.values, self.colors, self.opacities))
        n = values.size
        if not n or values.shape != (n,) or colors.shape != (n, 3) or opacities.shape != (n,):
            raise InputError(
                "A transfer function has P intensities, colours of shape (P, 3) and P opacities, P at least 1; got "
                f"shapes {values.shape}, {colors.shape} and {opacities.shape}."
            )
        if not np.isfinite(values).all() or (np.diff(values) < 0).any():
            raise InputError("The intensities of a transfer function have to be finite and ascending.")
        for name, array in (("colors", colors), ("opacities", opacities)):
            if not ((array >= 0) & (array <= 1)).all():
                raise InputError(f"The {name} of a transfer function have to be from 0 to 1.")
        if self.unit_mm is not None and not 0 < self.unit_mm < np.inf:
            raise InputError(f"unit_mm, the layer thickness, has to be positive; got {self.unit_mm:g} mm.")
        for name, array in (("values", values), ("colors", colors), ("opacities", opacities)):
            object.__setattr__(self, name, array)

    def evaluate(self, intensities: ArrayLike) -> NDArray[np.float64]:
        """Return red, green, blue and opacity, ``(..., 4)``, at intensities of shape ``(...)``."""
        x = np.asarray(intensities, np.float64)
        return np.stack([np.interp(x, self.values, column) for column in (*self.colors.T, self.opacities)], -1)

    def lookup_table(self, low: float, high: float, n: int = 1024) -> NDArray[np.float64]:
        """Return red, green, blue and opacity at `n` equidistant intensities from `low` to `high`, ``(n, 4)``."""
        return self.evaluate(np.linspace(low, high, n))

    def extinction(self, opacities: ArrayLike, diagonal: float) -> NDArray[np.float64]:
        """Return extinction coefficients per mm, ``-log(1 - opacity) / unit_mm``.

        Parameters
        ----------
        opacities : array_like
            Opacities of a layer of thickness `unit_mm`, 0 to 1.
        diagonal : float
            Diagonal of the volume, mm; sets the layer thickness if `unit_mm` is None.
        """
        unit = diagonal / LAYERS if self.unit_mm is None else self.unit_mm
        return -np.log1p(-np.minimum(opacities, _MAX_OPACITY)) / unit

    @classmethod
    def from_preset(cls, name: Preset, volume: ArrayLike) -> TransferFunction:
        """Return a preset transfer function, adapted to a volume.

        Parameters
        ----------
        name : "gray", "mr", "ct-bone", "ct-soft-tissue" or "ct-angio"
            "gray": ramp from transparent black to white between the 1st and the 99th percentile, without shading.
            "mr": tissue between the 10th and the 99th percentile of the voxels above the mean, which hides the air.
            "ct-...": fixed intensities in Hounsfield units.
        volume : array_like
            Volume to be rendered.

        Raises
        ------
        InputError
            If the preset does not exist, the volume is not finite, or a CT preset is used for a volume that is not in
            Hounsfield units.

        Examples
        --------
        >>> import numpy as np
        >>> from napari_gsvolume.rendering import TransferFunction
        >>> volume = np.linspace(0, 100, 1000).reshape(10, 10, 10)
        >>> TransferFunction.from_preset("gray", volume).values.round(6).tolist()
        [1.0, 99.0]
        """
        array = np.asarray(volume)
        if name not in PRESETS:
            raise InputError(f"There is no preset {name!r}; the presets are {', '.join(PRESETS)}.")
        if not array.size or not np.isfinite(array).all():
            raise InputError("A preset needs a non-empty volume of finite voxels.")
        if name == "gray":
            low, high = _ascending(np.percentile(array, (1, 99)))
            return _from_points([(low, (0.0, 0.0, 0.0), 0.0), (high, (1.0, 1.0, 1.0), _RAMP_OPACITY)])
        if name == "mr":
            tissue = array[array > array.mean()]
            low, high = _ascending(np.percentile(tissue if tissue.size else array, (10, 99)))
            return _from_points([(low + part * (high - low), color, alpha) for part, color, alpha in _MR], shading=True)
        points, maximum = _CT[name], float(array.max())
        if maximum <= max(_MIN_HU_MAXIMUM, points[0][0]):
            raise InputError(
                f"The preset {name} is for CT in HU and shows nothing here: no voxel is brighter than {maximum:g}."
            )
        return _from_points(points, shading=True)

    @classmethod
    def from_colormap(
        cls, colors: ArrayLike, contrast_limits: tuple[float, float], gamma: float = 1.0
    ) -> TransferFunction:
        """Return the transfer function of a napari layer's colormap, with a linear opacity ramp.

        Parameters
        ----------
        colors : array_like, (n, 3) or (n, 4)
            Equidistant colours of the colormap, 0 to 1; n at least 1. Alpha scales the opacity.
        contrast_limits : (float, float)
            Intensities of the first and the last colour.
        gamma : float
            Exponent of the normalised intensity, which selects the colour and is proportional to the opacity.

        Raises
        ------
        InputError
            If the colours have another shape or range, the limits do not ascend, or gamma is not positive.

        Examples
        --------
        >>> from napari_gsvolume.rendering import TransferFunction
        >>> hot = TransferFunction.from_colormap([(0, 0, 0), (1, 0, 0), (1, 1, 0)], contrast_limits=(0, 100))
        >>> hot.evaluate(50.0).round(3).tolist()
        [1.0, 0.0, 0.0, 0.05]
        """
        stops, (low, high) = np.asarray(colors, np.float64), contrast_limits
        if stops.ndim != 2 or stops.shape[1] not in (3, 4) or not len(stops):
            raise InputError(f"The colours of a colormap have to be an array (n, 3) or (n, 4); got {stops.shape}.")
        if not (np.isfinite([low, high]).all() and low < high):
            raise InputError(f"The contrast limits have to be finite and ascending; got {low:g} and {high:g}.")
        if not 0 < gamma < np.inf:
            raise InputError(f"Gamma has to be positive; got {gamma:g}.")
        t = np.linspace(0, 1, _COLORMAP_SAMPLES)
        fraction = t**gamma
        columns = [np.interp(fraction, np.linspace(0, 1, len(stops)), column) for column in stops.T]
        alpha = columns[3] if len(columns) == 4 else 1.0
        return cls(low + t * (high - low), np.stack(columns[:3], 1), _RAMP_OPACITY * fraction * alpha)

    def to_dict(self) -> dict[str, Any]:
        """Return the content of the JSON file as a dictionary."""
        points = zip(self.values.tolist(), self.colors.tolist(), self.opacities.tolist(), strict=True)
        return {
            "format": FORMAT,
            "version": 1,
            "unit_mm": self.unit_mm,
            "shading": self.shading,
            "points": [{"value": value, "colour": color, "opacity": opacity} for value, color, opacity in points],
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the transfer function as JSON."""
        with atomic_write(Path(path)) as temporary:
            temporary.write_text(json.dumps(self.to_dict(), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def from_dict(cls, data: Any) -> TransferFunction:
        """Return the transfer function described by a dictionary from `to_dict`; raise InputError if it is invalid."""
        try:
            file = _File.model_validate(data)
        except ValidationError as error:
            raise InputError(one_sentence(error)) from error
        return _from_points([(p.value, p.colour, p.opacity) for p in file.points], file.unit_mm, file.shading)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> TransferFunction:
        """Read a transfer function from JSON.

        Raises
        ------
        FileFormatError
            If the file is not JSON, or does not describe a transfer function.
        OSError
            If the file cannot be opened.
        """
        name = Path(path).name
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise FileFormatError(f"{name} is not JSON ({str(error).rstrip('.')}).") from error
        try:
            return cls.from_dict(data)
        except ValueError as error:
            raise FileFormatError(f"{name}: {error}") from error


def restrict_to_intervals(
    transfer_function: TransferFunction, intervals: Mapping[str, tuple[float, float]]
) -> dict[str, TransferFunction]:
    """Return one transfer function for each interval of intensities, transparent outside of it.

    Parameters
    ----------
    transfer_function : TransferFunction
        Transfer function to restrict.
    intervals : mapping of str to (float, float)
        Half-open intervals [low, high) by name.

    Raises
    ------
    InputError
        If an interval is not finite or is empty.

    Examples
    --------
    >>> from napari_gsvolume.rendering import TransferFunction, restrict_to_intervals
    >>> ramp = TransferFunction([0.0, 100], [(0, 0, 0), (1, 1, 1)], [0.0, 0.5])
    >>> parts = restrict_to_intervals(ramp, {"dark": (0, 40), "bright": (40, 100)})
    >>> parts["bright"].evaluate([20.0, 60.0])[:, 3].tolist()
    [0.0, 0.3]
    """
    return {name: _restrict(transfer_function, name, *interval) for name, interval in intervals.items()}


def combine_intervals(parts: Sequence[TransferFunction]) -> TransferFunction:
    """Return the union of transfer functions of disjoint intervals, as `restrict_to_intervals` returns them.

    Raises
    ------
    InputError
        If two intervals overlap.
    """
    ordered = sorted(parts, key=lambda part: float(part.values[0]))
    if any(a.values[-1] > b.values[0] for a, b in pairwise(ordered)):
        raise InputError("Combined intervals must not overlap.")
    values, colors, opacities = (
        np.concatenate([getattr(part, name) for part in ordered]) for name in ("values", "colors", "opacities")
    )
    return replace(ordered[0], values=values, colors=colors, opacities=opacities)


def _restrict(transfer_function: TransferFunction, name: str, low: float, high: float) -> TransferFunction:
    if not (np.isfinite([low, high]).all() and low < high):
        raise InputError(f"The interval {name} has to be finite and ascending; got {low:g} and {high:g}.")
    inner = (transfer_function.values > low) & (transfer_function.values < high)
    first, last = transfer_function.evaluate([low, np.nextafter(high, low)])
    colors = np.stack([first[:3], first[:3], *transfer_function.colors[inner], last[:3], last[:3]])
    opacities = np.array([0, first[3], *transfer_function.opacities[inner], last[3], 0])
    return replace(
        transfer_function,
        values=np.array([low, low, *transfer_function.values[inner], high, high]),
        colors=colors,
        opacities=opacities,
    )


def _from_points(points: list[_Point], unit_mm: float | None = None, shading: bool = False) -> TransferFunction:
    values, colors, opacities = (np.array(column) for column in zip(*points, strict=True))
    return TransferFunction(values, colors, opacities, unit_mm, shading)


def _ascending(limits: NDArray[np.float64]) -> tuple[float, float]:
    """Return two limits, moved apart where they are equal, as in a volume that is almost constant."""
    low, high = map(float, limits)
    return (low, high) if low < high else (low - 0.5, low + 0.5)


_UnitInterval = Annotated[float, Field(ge=0, le=1)]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class _FilePoint(_Model):
    value: float
    colour: tuple[_UnitInterval, _UnitInterval, _UnitInterval]
    opacity: _UnitInterval


class _File(_Model):
    """Content of the JSON file."""

    format: Literal["napari-gsvolume transfer function"] = FORMAT
    version: Literal[1] = 1
    unit_mm: Positive | None = None
    shading: bool = False
    points: Annotated[list[_FilePoint], Field(min_length=1)]

    @model_validator(mode="after")
    def _check_order(self) -> _File:
        if any(a.value > b.value for a, b in zip(self.points, self.points[1:], strict=False)):
            raise InputError("the points of a transfer function have to be in ascending order")
        return self
