"""Common acquisition geometries: full circle, limited arc, C-arm, biplane, and a single parallel view."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from .scan import Beam, Scan, ScanError, check_pixel_size, circular_scan

Preset = Literal["circle", "limited arc", "C-arm", "biplane"]
DEFAULT_ARCS: dict[Beam, float] = {"parallel": 180.0, "fan": 360.0, "cone": 360.0}
"""Default arc in degrees: opposite views of a parallel beam are redundant."""
DEFAULT_VIEWS = 50
_LIMITED_ARC = 120.0  # degrees
_C_ARM_ARC = 200.0  # degrees
_C_ARM_TO_AXIS = 750.0  # mm, source to axis
_C_ARM_LENGTH = 1200.0  # mm, source to detector
_CLEARANCE = 1.05  # distance of a C-arm's detector from the axis, in radii of the volume


def c_arm_scan(shape: Sequence[int], voxel_size: Any, angles: Any, **detector: Any) -> Scan:
    """Return the cone-beam scan of a C-arm: 1,200 mm from source to detector, 750 mm from source to axis.

    Both distances are scaled up for volumes that would not fit between source and detector.

    Parameters
    ----------
    shape, voxel_size, angles
        Volume and gantry angles, as in `circular_scan`.
    **detector
        ``pixels``, ``pixel_size``, ``offset`` and ``tilt``, as in `circular_scan`.

    Examples
    --------
    >>> from napari_gsvolume.tomography import c_arm_scan, spread_angles
    >>> c_arm_scan((64, 64, 64), 2.0, spread_angles(30, 200), pixels=(100, 80)).image_shape
    (30, 80, 100)
    """
    size = np.broadcast_to(np.asarray(voxel_size, np.float64), 3)
    radius = math.hypot(shape[1] * size[1], shape[2] * size[2]) / 2
    scale = max(1.0, _CLEARANCE * radius / (_C_ARM_LENGTH - _C_ARM_TO_AXIS))
    to_axis, length = scale * _C_ARM_TO_AXIS, scale * _C_ARM_LENGTH
    return circular_scan(shape, size, angles, "cone", source_to_axis=to_axis, source_to_detector=length, **detector)


def parallel_view(
    shape: Sequence[int],
    voxel_size: Any,
    direction: Any,
    u: Any,
    v: Any,
    *,
    pixels: Sequence[int] | None = None,
    pixel_size: Sequence[float] | None = None,
) -> Scan:
    """Return a single view with parallel rays along any direction.

    Parameters
    ----------
    shape, voxel_size
        Volume, as in `Scan`.
    direction : array_like, (3,)
        Ray direction, of any length.
    u, v : array_like, (3,)
        Approximate directions of the detector rows and columns; they are orthogonalized to the rays and to each other.
    pixels : (int, int), optional
        Numbers of detector pixels along u and v; by default enough to see all of the volume.
    pixel_size : (float, float), optional
        Pixel pitch along u and v, mm; by default the smallest side of a voxel.

    Raises
    ------
    ScanError
        If the three vectors lie in a plane.

    Examples
    --------
    >>> from napari_gsvolume.tomography import parallel_view
    >>> parallel_view((8, 16, 16), 1.0, direction=(1, 0, 0), u=(0, 0, 1), v=(0, 1, 0)).image_shape
    (1, 16, 16)
    """
    size = np.broadcast_to(np.asarray(voxel_size, np.float64), 3)
    vectors = np.array([direction, u, v], np.float64)
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-300)
    if not np.isfinite(vectors).all() or abs(np.linalg.det(unit)) < 1e-9:
        raise ScanError("The rays, the rows and the columns of a view have to point in three different directions.")
    # Gram-Schmidt: the signs of the diagonal of R keep the directions.
    Q, R = np.linalg.qr(unit.T)
    ray, across, down = (Q * np.sign(np.diag(R))).T
    du, dv = (min(size), min(size)) if pixel_size is None else check_pixel_size(pixel_size)
    if pixels is None:
        sides = np.array(shape) * size
        pixels = [math.ceil(np.abs(sides * axis).sum() / d - 1e-6) for axis, d in ((across, du), (down, dv))]
    n_u, n_v, (nz, ny, nx) = int(pixels[0]), int(pixels[1]), (int(n) for n in shape)
    return Scan(
        "parallel", ray[None], np.zeros((1, 3)), du * across[None], dv * down[None], (n_u, n_v), (nz, ny, nx), size
    )


def preset_scan(
    name: Preset,
    shape: Sequence[int],
    voxel_size: Any,
    *,
    beam: Beam = "parallel",
    views: int = DEFAULT_VIEWS,
    arc: float | None = None,
    **detector: Any,
) -> Scan:
    """Return a common scan by name.

    Parameters
    ----------
    name : "circle", "limited arc", "C-arm" or "biplane"
        Full circle (`DEFAULT_ARCS`), `arc`, 200 degrees of a C-arm (cone beam), or two views at 0 and 90 degrees.
    shape, voxel_size
        Volume, as in `Scan`.
    beam : "parallel", "fan" or "cone"
        Beam geometry; a C-arm always has a cone beam.
    views : int
        Number of views; a biplane scan always has two.
    arc : float, optional
        Degrees of a limited arc, 120 if omitted.
    **detector
        ``pixels``, ``pixel_size``, ``offset`` and ``tilt``, as in `circular_scan`.

    Examples
    --------
    >>> from napari_gsvolume.tomography import preset_scan
    >>> preset_scan("limited arc", (8, 16, 16), 1.0, views=12, arc=90).image_shape
    (12, 8, 23)
    """
    if name == "C-arm":
        return c_arm_scan(shape, voxel_size, spread_angles(views, _C_ARM_ARC), **detector)
    whole = DEFAULT_ARCS[beam] if name == "circle" else _LIMITED_ARC if arc is None else arc
    angles = [0.0, 90.0] if name == "biplane" else spread_angles(views, whole)
    return circular_scan(shape, voxel_size, angles, beam, **detector)


def spread_angles(views: int, arc: float) -> NDArray[np.float64]:
    """Return gantry angles evenly spread over an arc from 0, in degrees; the end of the arc is excluded.

    Examples
    --------
    >>> from napari_gsvolume.tomography import spread_angles
    >>> spread_angles(4, 180)
    array([  0.,  45.,  90., 135.])
    """
    return np.arange(views, dtype=np.float64) * (arc / views)
