"""How a scanner looks at a volume: where rays start and which pixels they end in.

Lengths are in millimetres in the scanner's frame: its axes are the array axes of the volume, its origin the volume's
centre. The rotation axis of the presets is z through the origin. Vectors here are in array order (z, y, x), in files
(x, y, z) (docs/projections.md).
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from ..errors import InputError
from ..grid import Grid
from ..settings import Count, Positive, one_sentence
from ..units import mm_per_unit, voxel_size_mm

Beam = Literal["parallel", "fan", "cone"]
Mode = Literal["xray", "mip", "minip", "mean"]
"""What a pixel shows of its ray: the line integral, or the largest, smallest or mean intensity."""
Preset = Literal["circle", "limited arc", "C-arm", "biplane"]
ARCS: dict[Beam, float] = {"parallel": 180.0, "fan": 360.0, "cone": 360.0}
"""Degrees over which views are spread by default: a parallel view from behind shows nothing new."""
VIEWS = 50
_LIMITED_ARC, _C_ARM_ARC = 120.0, 200.0  # degrees
FORMAT: Literal["napari-gsvolume scan"] = "napari-gsvolume scan"
_C_ARM_TO_AXIS, _C_ARM_LENGTH = 750.0, 1200.0  # mm, from the source to the axis and to the detector
_CLEARANCE = 1.05  # of a C-arm's detector, in radii of the volume


class ScanError(InputError):
    """A scan that cannot be: the sentence says why."""


@dataclass(frozen=True, eq=False)
class Scan:
    """The geometry of V projections of a volume.

    Pixel (i, j) of view k is centred on ``centres[k] + (i - (U - 1) / 2) u[k] + (j - (V - 1) / 2) v[k]``. Rays to it
    come along ``sources[k]`` if the beam is parallel; from the point ``sources[k]`` if it is a cone; and from that
    point moved by ``(j - (V - 1) / 2) v[k]`` if it is a fan, so that every row of the detector has a fan of its own.

    Parameters
    ----------
    beam : "parallel", "fan" or "cone"
    sources : ndarray, (K, 3)
        Positions of the source, mm; of a parallel beam the direction of its rays, of any length.
    centres : ndarray, (K, 3)
        Positions of the middle of the detector, mm. Offsets of the detector are in here.
    u, v : ndarray, (K, 3)
        Steps from one pixel to the next along the rows and columns of the detector, mm. Tilts are in here.
    pixels : (int, int)
        Pixels along u and v.
    shape : (int, int, int)
        Voxels of the volume along z, y, x.
    voxel_size : ndarray, (3,)
        In mm, along z, y, x.

    Raises
    ------
    ScanError
        If shapes do not fit each other, a number is not finite, a detector is flat on its rays, or a source lies in
        its detector's plane.
    """

    beam: Beam
    sources: NDArray[np.float64]
    centres: NDArray[np.float64]
    u: NDArray[np.float64]
    v: NDArray[np.float64]
    pixels: tuple[int, int]
    shape: tuple[int, int, int]
    voxel_size: NDArray[np.float64]

    def __post_init__(self) -> None:
        n = len(np.asarray(self.sources))
        for name in ("sources", "centres", "u", "v"):
            array = np.array(getattr(self, name), np.float64)
            if array.shape != (n, 3) or not n:
                raise ScanError(f"The {name} of {n} views have to be of shape ({n}, 3); got {array.shape}.")
            if not np.isfinite(array).all():
                raise ScanError(f"The {name} of the views hold NaN or infinite numbers.")
            object.__setattr__(self, name, array)
        object.__setattr__(self, "voxel_size", np.broadcast_to(np.asarray(self.voxel_size, np.float64), 3).copy())
        if min(self.pixels) < 1 or min(self.shape) < 1 or not (self.voxel_size > 0).all():
            raise ScanError("Numbers of pixels and voxels, and the size of a voxel, have to be positive.")
        frames = self.frames
        lengths = np.linalg.norm(frames, axis=1)
        flat = np.abs(np.linalg.det(frames / np.maximum(lengths, 1e-300)[:, None])) < 1e-6
        if flat.any():
            raise ScanError(
                f"In view {int(flat.argmax())} rays run along the detector, or its rows along its columns; "
                "mend its geometry."
            )

    def __len__(self) -> int:
        return len(self.sources)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Views, and rows and columns of pixels: the shape ``(K, V, U)`` of a stack of images."""
        return len(self), self.pixels[1], self.pixels[0]

    @property
    def origins(self) -> NDArray[np.float64]:
        """The point of each view where its `frames` start: the source, or the detector's centre, ``(K, 3)``."""
        return self.centres if self.beam == "parallel" else self.sources

    @property
    def frames(self) -> NDArray[np.float64]:
        """Matrices with columns u, v and the ray through the detector's centre, ``(K, 3, 3)``.

        A point x has ``y = frame^-1 (x - origin)``, and is seen at pixel offsets ``y_0, y_1`` (parallel), ``y_0 / y_2,
        y_1`` (fan) or ``y_0 / y_2, y_1 / y_2`` (cone) from the middle.
        """
        rays = self.sources if self.beam == "parallel" else self.centres - self.sources
        return np.stack([self.u, self.v, rays], axis=2)

    def rays(self, view: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return of each ray of a view its point at the source, or on the detector if parallel, and unit direction.

        Both ``(V, U, 3)``, mm.
        """
        across, down = (np.arange(n) - (n - 1) / 2 for n in self.pixels)
        rows = down[:, None, None] * self.v[view]
        points = self.centres[view] + across[:, None] * self.u[view] + rows
        if self.beam == "parallel":
            ways = np.broadcast_to(self.sources[view], points.shape)
        else:
            starts = np.broadcast_to(self.sources[view] + (rows if self.beam == "fan" else 0), points.shape)
            points, ways = starts, points - starts
        return points, ways / np.linalg.norm(ways, axis=-1, keepdims=True)

    def select(self, views: Sequence[int] | NDArray[np.intp]) -> Scan:
        """Return the scan of some of the views."""
        index = np.asarray(views, int)
        return replace(self, sources=self.sources[index], centres=self.centres[index], u=self.u[index], v=self.v[index])

    def with_pixels(self, u: int | None = None, v: int | None = None) -> Scan:
        """Return the scan with other numbers of pixels on detectors of the same size."""
        n_u, n_v = u or self.pixels[0], v or self.pixels[1]
        return replace(self, u=self.u * self.pixels[0] / n_u, v=self.v * self.pixels[1] / n_v, pixels=(n_u, n_v))

    def of_grid(self, grid: Grid) -> Scan:
        """Return the same scan of the volume on another grid: other voxels around the same centre."""
        nz, ny, nx = grid.shape
        return replace(self, shape=(nz, ny, nx), voxel_size=voxel_size_mm(grid))

    def to_dict(self) -> dict[str, Any]:
        """Return the geometry as it is in files, vectors in (x, y, z)."""
        first = "direction" if self.beam == "parallel" else "source"
        return {
            "format": FORMAT,
            "version": 1,
            "beam": self.beam,
            "volume": {"shape": list(self.shape[::-1]), "voxel_size": self.voxel_size[::-1].tolist()},
            "detector": {"pixels": list(self.pixels)},
            "views": [
                {first: s[::-1].tolist(), "centre": c[::-1].tolist(), "u": u[::-1].tolist(), "v": v[::-1].tolist()}
                for s, c, u, v in zip(self.sources, self.centres, self.u, self.v, strict=True)
            ],
        }

    def save(self, path: str | Path) -> None:
        """Write the geometry as JSON."""
        Path(path).write_text(json.dumps(self.to_dict(), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> Scan:
        """Read the geometry from JSON; a `ScanError` says what is wrong with it."""
        try:
            return cls.from_dict(json.loads(Path(path).read_text(encoding="utf-8")))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ScanError(f"{Path(path).name} is not JSON ({str(error).rstrip('.')}).") from error
        except ScanError as error:
            raise ScanError(f"{Path(path).name}: {error}") from error

    @classmethod
    def from_dict(cls, data: Any) -> Scan:
        """Return the scan that `to_dict` describes, or one given by angles; a `ScanError` says what is wrong."""
        try:
            file = _File.model_validate(data)
        except ValidationError as error:
            raise ScanError(one_sentence(error)) from error
        return file.scan()


def orbit(
    shape: Sequence[int],
    voxel_size: Any,
    angles: Any,
    beam: Beam = "parallel",
    *,
    source_to_axis: float | None = None,
    source_to_detector: float | None = None,
    pixels: Sequence[int] | None = None,
    pixel_size: Sequence[float] | None = None,
    offset: Sequence[float] = (0.0, 0.0),
    tilt: float = 0.0,
) -> Scan:
    """Return views from a circle around z.

    In the view at angle a rays (of a cone, the middle one) run along (x, y) = (-sin a, cos a); u is along (cos a, sin
    a) and v along z.

    Parameters
    ----------
    shape, voxel_size
        Of the volume, as in `Scan`.
    angles : array_like, (K,)
        In degrees.
    beam : "parallel", "fan" or "cone"
    source_to_axis, source_to_detector : float, optional
        In mm, of fans and cones; by default the axis is as far from the source as four radii of the volume, and in
        the middle between source and detector.
    pixels, pixel_size : two numbers, optional
        Of the detector, along u and v, mm. By default pixels are as large as the smallest voxel's image, and as many
        as it takes to see all of the volume in every view.
    offset : two floats
        Where the detector's middle is beside the middle ray, mm along u and v.
    tilt : float
        Rotation of the detector in its plane, degrees.

    Raises
    ------
    ScanError
        If there are no angles, or a distance is not positive or too short: the source inside the volume.
    """
    nz, ny, nx = shape
    size = np.broadcast_to(np.asarray(voxel_size, np.float64), 3)
    degrees = np.atleast_1d(np.asarray(angles, np.float64))
    if degrees.ndim != 1 or not len(degrees) or not np.isfinite(degrees).all():
        raise ScanError("The angles have to be a list of at least one finite number, in degrees.")
    radius, height = math.hypot(ny * size[1], nx * size[2]) / 2, nz * size[0]
    to_axis = 4 * radius if source_to_axis is None else source_to_axis
    to_detector = 2 * to_axis if source_to_detector is None else source_to_detector
    if beam != "parallel" and not radius < to_axis < to_detector:
        raise ScanError(
            f"The source has to be further from the axis ({to_axis:g} mm) than the volume reaches ({radius:g} mm), and "
            f"the detector further from the source ({to_detector:g} mm) than the axis."
        )
    # How large the part of the volume nearest to the source is seen, and its middle.
    nearest, middle = (1.0, 1.0) if beam == "parallel" else (to_detector / (to_axis - radius), to_detector / to_axis)
    default = min(size[1:]) * middle, size[0] * (middle if beam == "cone" else 1)
    du, dv = default if pixel_size is None else _positive(pixel_size)
    if pixels is None:
        sine = radius / to_axis  # of half the angle at which the source sees the volume
        half = radius if beam == "parallel" else to_detector * sine / math.sqrt(1 - sine**2)
        tall = height * (nearest if beam == "cone" else 1) + 2 * abs(offset[1])
        pixels = math.ceil(2 * (half + abs(offset[0])) / du - 1e-6), math.ceil(tall / dv - 1e-6)
    a = np.deg2rad(degrees)[:, None]
    zero = np.zeros_like(a)
    ray = np.concatenate([zero, np.cos(a), -np.sin(a)], 1)  # (K, 3), in (z, y, x)
    across, up = np.concatenate([zero, np.sin(a), np.cos(a)], 1), np.array([[1.0, 0, 0]])
    middle_of = (0 if beam == "parallel" else to_detector - to_axis) * ray + offset[0] * across + offset[1] * up
    c, s = math.cos(math.radians(tilt)), math.sin(math.radians(tilt))
    return Scan(
        beam,
        ray if beam == "parallel" else -to_axis * ray,
        middle_of,
        du * (c * across + s * up),
        dv * (c * up - s * across),
        (int(pixels[0]), int(pixels[1])),
        (int(nz), int(ny), int(nx)),
        size,
    )


def _positive(pixel_size: Sequence[float]) -> Sequence[float]:
    if not all(0 < d < math.inf for d in pixel_size):
        raise ScanError(f"The size of a pixel has to be positive; got {' x '.join(f'{d:g}' for d in pixel_size)} mm.")
    return pixel_size


def c_arm(shape: Sequence[int], voxel_size: Any, angles: Any, **detector: Any) -> Scan:
    """Return views of a cone from a C-arm: 1,200 mm from source to detector, 750 mm from source to axis.

    Both are scaled up where a volume is too large for them, so that source and detector stay outside of it.

    Parameters
    ----------
    shape, voxel_size, angles
        As in `orbit`.
    **detector
        ``pixels``, ``pixel_size``, ``offset`` and ``tilt``, as in `orbit`.
    """
    size = np.broadcast_to(np.asarray(voxel_size, np.float64), 3)
    radius = math.hypot(shape[1] * size[1], shape[2] * size[2]) / 2
    scale = max(1.0, _CLEARANCE * radius / (_C_ARM_LENGTH - _C_ARM_TO_AXIS))
    to_axis, length = scale * _C_ARM_TO_AXIS, scale * _C_ARM_LENGTH
    return orbit(shape, size, angles, "cone", source_to_axis=to_axis, source_to_detector=length, **detector)


def along(
    shape: Sequence[int],
    voxel_size: Any,
    direction: Any,
    u: Any,
    v: Any,
    *,
    pixels: Sequence[int] | None = None,
    pixel_size: Sequence[float] | None = None,
) -> Scan:
    """Return one view of parallel rays along any direction.

    Parameters
    ----------
    shape, voxel_size
        Of the volume, as in `Scan`.
    direction : array_like, (3,)
        Of the rays, of any length.
    u, v : array_like, (3,)
        About where the detector's rows and columns point; they are made perpendicular to the rays and to each other.
    pixels, pixel_size : two numbers, optional
        Of the detector, mm. By default pixels are as large as the smallest side of a voxel, and as many as it takes to
        see all of the volume.

    Raises
    ------
    ScanError
        If the three vectors lie in a plane.
    """
    size = np.broadcast_to(np.asarray(voxel_size, np.float64), 3)
    vectors = np.array([direction, u, v], np.float64)
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-300)
    if not np.isfinite(vectors).all() or abs(np.linalg.det(unit)) < 1e-9:
        raise ScanError("The rays, the rows and the columns of a view have to point in three different directions.")
    # Gram and Schmidt: the upper triangle's diagonal has the signs that keep the directions.
    Q, R = np.linalg.qr(unit.T)
    ray, across, down = (Q * np.sign(np.diag(R))).T
    du, dv = (min(size), min(size)) if pixel_size is None else _positive(pixel_size)
    if pixels is None:
        sides = np.array(shape) * size
        pixels = [math.ceil(np.abs(sides * axis).sum() / d - 1e-6) for axis, d in ((across, du), (down, dv))]
    n_u, n_v, (nz, ny, nx) = int(pixels[0]), int(pixels[1]), (int(n) for n in shape)
    return Scan(
        "parallel", ray[None], np.zeros((1, 3)), du * across[None], dv * down[None], (n_u, n_v), (nz, ny, nx), size
    )


def preset(
    name: Preset,
    shape: Sequence[int],
    voxel_size: Any,
    *,
    beam: Beam = "parallel",
    views: int = VIEWS,
    arc: float | None = None,
    **detector: Any,
) -> Scan:
    """Return one of the usual scans.

    Parameters
    ----------
    name : "circle", "limited arc", "C-arm" or "biplane"
        Views over all of `ARCS`, over `arc`, over 200 degrees of a C-arm (a cone), or two views, at 0 and 90 degrees.
    shape, voxel_size
        Of the volume, as in `Scan`.
    beam : "parallel", "fan" or "cone"
    views : int
    arc : float, optional
        Degrees of a limited arc, 120 if omitted.
    **detector
        As in `c_arm`.
    """
    if name == "C-arm":
        return c_arm(shape, voxel_size, spread(views, _C_ARM_ARC), **detector)
    whole = ARCS[beam] if name == "circle" else _LIMITED_ARC if arc is None else arc
    angles = [0.0, 90.0] if name == "biplane" else spread(views, whole)
    return orbit(shape, voxel_size, angles, beam, **detector)


def spread(views: int, arc: float) -> NDArray[np.float64]:
    """Return angles evenly spread over an arc that starts at 0, in degrees; its end is the start of a next arc."""
    return np.arange(views, dtype=np.float64) * (arc / views)


Vector = tuple[float, float, float]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class _Volume(_Part):
    shape: tuple[Count, Count, Count]
    voxel_size: tuple[Positive, Positive, Positive] = (1.0, 1.0, 1.0)


class _Detector(_Part):
    pixels: tuple[Count, Count] | None = None
    pixel_size: tuple[Positive, Positive] | None = None
    offset: tuple[float, float] = (0.0, 0.0)
    tilt: float = 0.0


class _View(_Part):
    direction: Vector | None = None
    source: Vector | None = None
    centre: Vector
    u: Vector
    v: Vector


class _File(_Part):
    """The JSON file: views one by one, or angles of a circle."""

    format: Literal["napari-gsvolume scan"] = FORMAT
    version: Literal[1] = 1
    beam: Beam
    volume: _Volume
    detector: _Detector = _Detector()
    views: list[_View] | None = None
    angles: list[float] | None = None
    source_to_axis: Positive | None = None
    source_to_detector: Positive | None = None

    @model_validator(mode="after")
    def _go_together(self) -> _File:
        if (self.views is None) == (self.angles is None):
            raise InputError("a geometry has either views or angles")
        wanted = "direction" if self.beam == "parallel" else "source"
        for k, view in enumerate(self.views or []):
            if getattr(view, wanted) is None:
                raise InputError(f"view {k} of a {self.beam} beam has no {wanted}")
        if self.views is not None and self.detector.pixels is None:
            raise InputError("with views one by one the detector needs its pixels")
        return self

    def scan(self) -> Scan:
        volume, detector = self.volume, self.detector
        shape, size = volume.shape[::-1], np.array(volume.voxel_size[::-1])
        if self.angles is not None:
            return orbit(
                shape, size, self.angles, self.beam,
                source_to_axis=self.source_to_axis, source_to_detector=self.source_to_detector,
                pixels=detector.pixels, pixel_size=detector.pixel_size, offset=detector.offset, tilt=detector.tilt,
            )  # fmt: skip
        views = self.views or []
        firsts = [view.direction if self.beam == "parallel" else view.source for view in views]
        columns = (firsts, *([getattr(view, name) for view in views] for name in ("centre", "u", "v")))
        sources, centres, u, v = (np.array(c, np.float64).reshape(-1, 3)[:, ::-1] for c in columns)
        return Scan(self.beam, sources, centres, u, v, detector.pixels or (1, 1), shape, size)


def grid_of_scan(scan: Scan, middle: ArrayLike = (0.0, 0.0, 0.0), unit: str = "mm") -> Grid:
    """Return the voxels that a scan is of, around a point of the world that has this unit."""
    affine = np.diag([*(scan.voxel_size / mm_per_unit(unit)), 1.0])
    affine[:-1, -1] = np.asarray(middle) - affine[:-1, :-1] @ (np.array(scan.shape) - 1) / 2
    return Grid(scan.shape, affine, (unit,) * 3)
