"""Cameras around a volume.

Lengths are in millimetres and vectors are (x, y, z) here, as in all software for cameras: the frame is that of scans
(`napari_gsvolume.tomography.scan`), along the array axes of the volume with its centre as the origin,
read the other way round.
A camera looks along its own z, its x points right and its y down (OpenCV's convention, also COLMAP's and gsplat's).
"""

from __future__ import annotations

import math
import os
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import InputError
from ..types import Float64Array

FIELD_OF_VIEW = 30.0
"""Degrees, of a perspective camera by default."""
_UP = (0.0, 0.0, 1.0)


@dataclass(frozen=True, eq=False)
class Cameras:
    """V cameras that take images of one size.

    Attributes
    ----------
    matrices : ndarray, (V, 4, 4), float64
        World (mm) to camera (mm): a rotation and a translation.
    intrinsics : ndarray, (V, 3, 3), float64
        ``[[fx, 0, cx], [0, fy, cy], [0, 0, 1]]`` in pixels; the middle of the first pixel is at (0.5, 0.5). A point
        (x, y, z) before a perspective camera is seen at ``(fx x / z + cx, fy y / z + cy)``, before an orthographic one
        at ``(fx x + cx, fy y + cy)``, where fx and fy are pixels a millimetre.
    size : (int, int)
        Pixels (H, W).
    orthographic : bool

    Raises
    ------
    ValueError
        If shapes do not fit, numbers are not finite, or a matrix is no rotation and translation.
    """

    matrices: Float64Array
    intrinsics: Float64Array
    size: tuple[int, int]
    orthographic: bool = False

    def __post_init__(self) -> None:
        matrices, intrinsics = (np.array(a, np.float64) for a in (self.matrices, self.intrinsics))
        n = len(matrices)
        if matrices.shape != (n, 4, 4) or intrinsics.shape != (n, 3, 3) or not n:
            raise InputError(
                "Cameras have matrices of shape (V, 4, 4) and intrinsics of shape (V, 3, 3), V at least 1; got "
                f"{matrices.shape} and {intrinsics.shape}."
            )
        if not (np.isfinite(matrices).all() and np.isfinite(intrinsics).all()):
            raise InputError("Cameras hold NaN or infinite numbers.")
        turns = matrices[:, :3, :3]
        if not np.allclose(turns @ turns.transpose(0, 2, 1), np.eye(3), atol=1e-4) or (np.linalg.det(turns) < 0).any():
            raise InputError("The upper left of a camera's matrix has to be a rotation.")
        if not np.allclose(matrices[:, 3], (0, 0, 0, 1)):
            raise InputError("The last row of a camera's matrix has to be (0, 0, 0, 1).")
        if (intrinsics[:, [0, 1], [0, 1]] <= 0).any() or min(self.size) < 1:
            raise InputError("Focal lengths and the size of images have to be positive.")
        object.__setattr__(self, "matrices", matrices)
        object.__setattr__(self, "intrinsics", intrinsics)
        object.__setattr__(self, "size", (int(self.size[0]), int(self.size[1])))

    def __len__(self) -> int:
        return len(self.matrices)

    def __getitem__(self, which: int | slice | NDArray[Any]) -> Self:
        """Return some of the cameras; a number gives a set of one."""
        chosen = np.atleast_1d(np.arange(len(self))[which])
        return replace(self, matrices=self.matrices[chosen], intrinsics=self.intrinsics[chosen])

    def __iter__(self) -> Iterator[Self]:
        return (self[k] for k in range(len(self)))

    @property
    def positions(self) -> Float64Array:
        """Where they are, mm, ``(V, 3)``; of an orthographic camera, the middle of its image."""
        return -(self.matrices[:, :3, :3].transpose(0, 2, 1) @ self.matrices[:, :3, 3:])[:, :, 0]

    @property
    def directions(self) -> Float64Array:
        """Where they look, of length one, ``(V, 3)``."""
        return self.matrices[:, 2, :3]

    @property
    def pixel_mm(self) -> float:
        """What a pixel of the first camera shows in the middle of the volume, mm."""
        away = 1.0 if self.orthographic else float(np.linalg.norm(self.positions[0]))
        return away / float(self.intrinsics[0, 0, 0])

    def resized(self, size: tuple[int, int]) -> Self:
        """Return cameras that see the same in images of another size; a wider one sees more at its sides."""
        (h, w), (new_h, new_w) = self.size, size
        intrinsics = self.intrinsics.copy()
        intrinsics[:, :2, :2] *= new_h / h
        intrinsics[:, 0, 2] = (intrinsics[:, 0, 2] - w / 2) * new_h / h + new_w / 2
        intrinsics[:, 1, 2] *= new_h / h
        return replace(self, intrinsics=intrinsics, size=size)

    def save(self, path: str | os.PathLike[str], images: ArrayLike | None = None) -> None:
        """Write an npz file: ``cameras`` (V, 4, 4), ``intrinsics`` (V, 3, 3), ``size``, ``orthographic``, ``images``.

        Images ``(V, H, W, C)`` are stored as float32, if there are any.
        """
        from ..io.atomic import atomic_write

        arrays: dict[str, Any] = {
            "cameras": self.matrices,
            "intrinsics": self.intrinsics,
            "size": np.array(self.size),
            "orthographic": np.array(self.orthographic),
        }
        if images is not None:
            arrays["images"] = np.asarray(images, np.float32)
        with atomic_write(Path(path)) as temporary, open(temporary, "wb") as file:
            np.savez_compressed(file, **arrays)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read the cameras of an npz file; raise ValueError, in one sentence, if it holds none."""
        try:
            with np.load(path, allow_pickle=False) as arrays:
                matrices, intrinsics = arrays["cameras"], arrays["intrinsics"]
                height, width = arrays["size"] if "size" in arrays else arrays["images"].shape[1:3]
                flat = bool(arrays["orthographic"]) if "orthographic" in arrays else False
        except KeyError as error:
            raise InputError(f"{path} holds no cameras: {error.args[0]}.") from error
        except (zipfile.BadZipFile, EOFError, ValueError, AttributeError, TypeError) as error:
            raise InputError(f"{path} is no npz file of cameras, as gsvolume views writes them.") from error
        try:
            return cls(matrices, intrinsics, (int(height), int(width)), flat)
        except ValueError as error:
            raise InputError(f"{path}: {error}") from error


def looking(
    positions: ArrayLike,
    size: tuple[int, int],
    focal: float,
    *,
    target: ArrayLike = (0.0, 0.0, 0.0),
    up: ArrayLike = _UP,
    orthographic: bool = False,
) -> Cameras:
    """Return cameras at positions ``(V, 3)`` that look at a point; `focal` is in pixels, or pixels a millimetre.

    `up` is shown upwards as far as possible; where a camera looks along it, any other way is taken.
    """
    positions = np.atleast_2d(np.asarray(positions, np.float64))
    forward = np.asarray(target, np.float64) - positions
    forward /= np.linalg.norm(forward, axis=1, keepdims=True)
    ups = np.broadcast_to(np.asarray(up, np.float64), forward.shape).copy()
    ups /= np.linalg.norm(ups, axis=1, keepdims=True)
    along = np.abs((forward * ups).sum(1)) > 0.9999
    ups[along] = np.where(np.abs(forward[along, 1:2]) < 0.9, (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))
    right = np.cross(forward, ups)
    right /= np.linalg.norm(right, axis=1, keepdims=True)
    turns = np.stack([right, np.cross(forward, right), forward], 1)  # (V, 3, 3), rows are the camera's axes
    matrices = np.tile(np.eye(4), (len(positions), 1, 1))
    matrices[:, :3, :3] = turns
    matrices[:, :3, 3:] = -turns @ positions[:, :, None]
    intrinsics = np.array([[focal, 0, size[1] / 2], [0, focal, size[0] / 2], [0, 0, 1.0]])
    return Cameras(matrices, np.tile(intrinsics, (len(positions), 1, 1)), size, orthographic)


def around(
    directions: ArrayLike,
    radius: float,
    size: tuple[int, int] = (256, 256),
    *,
    orthographic: bool = False,
    field_of_view: float = FIELD_OF_VIEW,
    zoom: float = 1.0,
) -> Cameras:
    """Return cameras in directions ``(V, 3)`` from the origin that see all of a ball of `radius` mm, `zoom` times."""
    ways = np.atleast_2d(np.asarray(directions, np.float64))
    ways = ways / np.linalg.norm(ways, axis=1, keepdims=True)
    half = min(size) / 2
    if orthographic:
        return looking(2 * radius * ways, size, zoom * half / radius, orthographic=True)
    angle = math.radians(field_of_view) / 2
    return looking(radius / math.sin(angle) * ways, size, zoom * half / math.tan(angle))


def fibonacci(n: int) -> Float64Array:
    """Return `n` directions spread evenly over the sphere, ``(n, 3)``: a spiral that turns by the golden angle."""
    z = 1 - (2 * np.arange(n) + 1) / n
    angle = np.arange(n) * math.pi * (3 - math.sqrt(5))
    return np.stack([np.sqrt(1 - z**2) * np.cos(angle), np.sqrt(1 - z**2) * np.sin(angle), z], 1)


def turntable(n: int, elevation: float = 0.0) -> Float64Array:
    """Return `n` directions around z, `elevation` degrees above the horizon, ``(n, 3)``, counter-clockwise from -y."""
    angle, up = 2 * math.pi * np.arange(n) / n - math.pi / 2, math.radians(elevation)
    return np.stack([math.cos(up) * np.cos(angle), math.cos(up) * np.sin(angle), np.full(n, math.sin(up))], 1)


def radius_of(shape: tuple[int, ...], voxel_size: ArrayLike) -> float:
    """Return half of a volume's diagonal, in the unit of the voxel size."""
    return float(np.linalg.norm(np.array(shape) * np.asarray(voxel_size)) / 2)


def images_of(path: str | os.PathLike[str]) -> NDArray[np.float32] | None:
    """Return the images ``(V, H, W, C)`` of a file of cameras; None if it has none."""
    with np.load(path, allow_pickle=False) as arrays:
        return np.asarray(arrays["images"], np.float32) if "images" in arrays else None
