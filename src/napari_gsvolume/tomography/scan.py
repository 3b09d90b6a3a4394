"""Acquisition geometry: positions of source, detector and volume, and the geometry file.

Lengths are in millimetres in the scanner frame: the axes are the array axes of the volume, the origin is the centre of
the volume. The rotation axis of circular scans is z through the origin. Vectors are in array order (z, y, x) here, and
in (x, y, z) order in files (docs/projections.md).
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
"""Quantity computed along each ray: line integral, or maximum, minimum or mean intensity projection."""
FORMAT: Literal["napari-gsvolume scan"] = "napari-gsvolume scan"


class ScanError(InputError):
    """Invalid acquisition geometry."""


@dataclass(frozen=True, eq=False)
class Scan:
    """Acquisition geometry of K projections of a volume.

    Pixel (i, j) of view k is centred on ``centres[k] + (i - (U - 1) / 2) u[k] + (j - (V - 1) / 2) v[k]``. A parallel
    beam has rays along ``sources[k]``; a cone beam has rays from the point ``sources[k]``; a fan beam has one point
    source per detector row, at ``sources[k] + (j - (V - 1) / 2) v[k]`` for row j.

    Parameters
    ----------
    beam : "parallel", "fan" or "cone"
        Beam geometry.
    sources : ndarray, (K, 3)
        Source positions, mm; for a parallel beam the ray directions, of any length.
    centres : ndarray, (K, 3)
        Positions of the detector centres, mm. They include the detector offset.
    u, v : ndarray, (K, 3)
        Steps from one pixel to the next along the detector rows and columns, mm. They include the detector tilt.
    pixels : (int, int)
        Numbers of detector pixels (U, V) along u and v.
    shape : (int, int, int)
        Numbers of voxels of the volume along z, y, x.
    voxel_size : ndarray, (3,)
        Voxel size along z, y, x, mm.

    Raises
    ------
    ScanError
        If array shapes are inconsistent, a number is not finite, a detector is parallel to its rays, or a source lies
        in the plane of its detector.

    See Also
    --------
    circular_scan, c_arm_scan, parallel_view, preset_scan : Make scans.

    Notes
    -----
    All vectors are in array order (z, y, x) and in the scanner frame: its axes are the array axes of the volume, its
    origin is the centre of the volume.

    Examples
    --------
    >>> from napari_gsvolume.tomography import circular_scan, spread_angles
    >>> scan = circular_scan((16, 24, 24), 1.0, spread_angles(6, 180))
    >>> len(scan), scan.beam, scan.image_shape
    (6, 'parallel', (6, 16, 34))
    >>> scan.select([0, 3]).image_shape
    (2, 16, 34)
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
                "correct its geometry."
            )

    def __len__(self) -> int:
        return len(self.sources)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Shape ``(K, V, U)`` of a stack of projections: views, detector rows, detector columns."""
        return len(self), self.pixels[1], self.pixels[0]

    @property
    def origins(self) -> NDArray[np.float64]:
        """Origins of the `frames`, mm, ``(K, 3)``: sources, or detector centres of a parallel beam."""
        return self.centres if self.beam == "parallel" else self.sources

    @property
    def frames(self) -> NDArray[np.float64]:
        """Matrices with columns u, v and the ray through the detector centre, ``(K, 3, 3)``.

        With ``y = frame^-1 (x - origin)``, a point x projects to the pixel offsets ``y_0, y_1`` (parallel), ``y_0 /
        y_2, y_1`` (fan) or ``y_0 / y_2, y_1 / y_2`` (cone) from the detector centre.
        """
        rays = self.sources if self.beam == "parallel" else self.centres - self.sources
        return np.stack([self.u, self.v, rays], axis=2)

    def rays(self, view: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return a point on each ray of a view and the unit direction of the ray.

        Parameters
        ----------
        view : int
            Index of the view.

        Returns
        -------
        points : ndarray, (V, U, 3)
            Position of the source, or of the pixel for a parallel beam, mm.
        directions : ndarray, (V, U, 3)
            Unit vectors towards the detector.
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
        """Return the scan with a subset of the views."""
        index = np.asarray(views, int)
        return replace(self, sources=self.sources[index], centres=self.centres[index], u=self.u[index], v=self.v[index])

    def with_pixels(self, u: int | None = None, v: int | None = None) -> Scan:
        """Return the scan with other numbers of pixels on a detector of the same size."""
        n_u, n_v = u or self.pixels[0], v or self.pixels[1]
        return replace(self, u=self.u * self.pixels[0] / n_u, v=self.v * self.pixels[1] / n_v, pixels=(n_u, n_v))

    def of_grid(self, grid: Grid) -> Scan:
        """Return the scan with the voxels of another grid, centred on the same point."""
        nz, ny, nx = grid.shape
        return replace(self, shape=(nz, ny, nx), voxel_size=voxel_size_mm(grid))

    def to_dict(self) -> dict[str, Any]:
        """Return the content of the geometry file, with vectors in (x, y, z) order."""
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
        """Write the geometry file, JSON."""
        Path(path).write_text(json.dumps(self.to_dict(), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> Scan:
        """Read a geometry file.

        Raises
        ------
        OSError
            If the file cannot be read.
        ScanError
            If the file is not a valid geometry.
        """
        try:
            return cls.from_dict(json.loads(Path(path).read_text(encoding="utf-8")))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ScanError(f"{Path(path).name} is not JSON ({str(error).rstrip('.')}).") from error
        except ScanError as error:
            raise ScanError(f"{Path(path).name}: {error}") from error

    @classmethod
    def from_dict(cls, data: Any) -> Scan:
        """Return the scan of the content of a geometry file: views one by one, or the gantry angles of a circle.

        Raises
        ------
        ScanError
            If the content is not a valid geometry.
        """
        try:
            file = _File.model_validate(data)
        except ValidationError as error:
            raise ScanError(one_sentence(error)) from error
        return file.scan()


def circular_scan(
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
    """Return the scan of a circular orbit around the z axis.

    At gantry angle a the rays (the central ray of a fan or cone) run along (x, y) = (-sin a, cos a); u points along
    (cos a, sin a) and v along z.

    Parameters
    ----------
    shape : (int, int, int)
        Numbers of voxels of the volume along z, y, x.
    voxel_size : float or array_like, (3,)
        Voxel size along z, y, x, mm.
    angles : array_like, (K,)
        Gantry angles, degrees.
    beam : "parallel", "fan" or "cone"
        Beam geometry.
    source_to_axis : float, optional
        Distance from the source of a fan or cone to the rotation axis, mm; by default four radii of the volume.
    source_to_detector : float, optional
        Distance from the source to the detector, mm; by default twice `source_to_axis`.
    pixels : (int, int), optional
        Numbers of detector pixels along u and v; by default enough to see all of the volume in every view.
    pixel_size : (float, float), optional
        Pixel pitch along u and v, mm; by default that of the smallest voxel, magnified to the detector.
    offset : (float, float)
        Detector offset along u and v from the central ray, mm.
    tilt : float
        In-plane rotation of the detector, degrees.

    Returns
    -------
    Scan

    Raises
    ------
    ScanError
        If there are no angles, a distance is not positive, or the source lies inside the volume.

    Examples
    --------
    >>> from napari_gsvolume.tomography import circular_scan
    >>> scan = circular_scan((8, 16, 16), (2.0, 1.0, 1.0), [0, 45, 90, 135], "cone", pixels=(40, 20))
    >>> scan.image_shape
    (4, 20, 40)
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
    # Magnification of the part of the volume nearest to the source, and of its centre.
    nearest, middle = (1.0, 1.0) if beam == "parallel" else (to_detector / (to_axis - radius), to_detector / to_axis)
    default = min(size[1:]) * middle, size[0] * (middle if beam == "cone" else 1)
    du, dv = default if pixel_size is None else check_pixel_size(pixel_size)
    if pixels is None:
        sine = radius / to_axis  # of half the opening angle under which the source sees the volume
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


def check_pixel_size(pixel_size: Sequence[float]) -> Sequence[float]:
    """Return the pixel size; raise a `ScanError` if it is not positive."""
    if not all(0 < d < math.inf for d in pixel_size):
        raise ScanError(f"The size of a pixel has to be positive; got {' x '.join(f'{d:g}' for d in pixel_size)} mm.")
    return pixel_size


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
    """Model of the geometry file: views one by one, or the gantry angles of a circle."""

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
            return circular_scan(
                shape,
                size,
                self.angles,
                self.beam,
                source_to_axis=self.source_to_axis,
                source_to_detector=self.source_to_detector,
                **detector.model_dump(),
            )
        views = self.views or []
        firsts = [view.direction if self.beam == "parallel" else view.source for view in views]
        columns = (firsts, *([getattr(view, name) for view in views] for name in ("centre", "u", "v")))
        sources, centres, u, v = (np.array(c, np.float64).reshape(-1, 3)[:, ::-1] for c in columns)
        return Scan(self.beam, sources, centres, u, v, detector.pixels or (1, 1), shape, size)


def grid_of_scan(scan: Scan, middle: ArrayLike = (0.0, 0.0, 0.0), unit: str = "mm") -> Grid:
    """Return the voxel grid of a scan.

    Parameters
    ----------
    scan : Scan
    middle : array_like, (3,)
        World position of the centre of the volume, in `unit`.
    unit : str
        Unit of length of the world axes.
    """
    affine = np.diag([*(scan.voxel_size / mm_per_unit(unit)), 1.0])
    affine[:-1, -1] = np.asarray(middle) - affine[:-1, :-1] @ (np.array(scan.shape) - 1) / 2
    return Grid(scan.shape, affine, (unit,) * 3)
