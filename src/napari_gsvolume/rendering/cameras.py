"""Cameras around a volume.

World coordinates are (x, y, z) in millimetres along the array axes of the volume, with its centre as the origin: the
frame of scans (`napari_gsvolume.tomography.scan`) read in reverse order. Cameras follow the OpenCV convention, as
COLMAP and gsplat do: x points right, y points down, z points along the viewing direction.
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

from ..errors import FileFormatError, InputError
from ..types import Float32Array, Float64Array

FIELD_OF_VIEW = 30.0
"""Default field of view of perspective cameras, degrees."""
_UP = (0.0, 0.0, 1.0)


@dataclass(frozen=True, eq=False)
class Cameras:
    """Set of V pinhole or orthographic cameras with images of one size; ``cameras[k]`` is a set of one camera.

    Attributes
    ----------
    matrices : ndarray, (V, 4, 4), float64
        World-to-camera matrices (gsplat: ``viewmats``): a rotation and a translation in mm. Cameras follow the OpenCV
        convention: x right, y down, z along the viewing direction.
    intrinsics : ndarray, (V, 3, 3), float64
        ``[[fx, 0, cx], [0, fy, cy], [0, 0, 1]]`` in pixels (gsplat: ``Ks``); the centre of the first pixel is at
        (0.5, 0.5). A point (x, y, z) in camera coordinates projects to ``(fx x / z + cx, fy y / z + cy)``. Orthographic
        cameras project it to ``(fx x + cx, fy y + cy)``, with fx and fy in pixels per mm.
    image_size : (int, int)
        Image height and width (H, W) in pixels.
    orthographic : bool
        Parallel rays instead of a perspective projection.

    Raises
    ------
    InputError
        If shapes do not match, numbers are not finite, or a matrix is not a rotation and a translation.

    See Also
    --------
    orbit_cameras : cameras around the origin
    look_at_cameras : cameras at given positions

    Examples
    --------
    >>> import numpy as np
    >>> from napari_gsvolume.rendering import Cameras
    >>> K = [[300.0, 0, 128], [0, 300, 128], [0, 0, 1]]
    >>> view = np.eye(4)
    >>> view[2, 3] = 200.0  # the origin lies 200 mm in front of the camera
    >>> cameras = Cameras(view[None], [K], (256, 256))
    >>> len(cameras), cameras.positions[0, 2].item()
    (1, -200.0)
    """

    matrices: Float64Array
    intrinsics: Float64Array
    image_size: tuple[int, int]
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
            raise InputError("Camera matrices and intrinsics must not contain NaN or infinite numbers.")
        rotations = matrices[:, :3, :3]
        is_orthonormal = np.allclose(rotations @ rotations.transpose(0, 2, 1), np.eye(3), atol=1e-4)
        if not is_orthonormal or (np.linalg.det(rotations) < 0).any():
            raise InputError("The upper left 3 x 3 part of a camera matrix has to be a rotation.")
        if not np.allclose(matrices[:, 3], (0, 0, 0, 1)):
            raise InputError("The last row of a camera matrix has to be (0, 0, 0, 1).")
        if (intrinsics[:, [0, 1], [0, 1]] <= 0).any() or min(self.image_size) < 1:
            raise InputError("Focal lengths and the image size have to be positive.")
        object.__setattr__(self, "matrices", matrices)
        object.__setattr__(self, "intrinsics", intrinsics)
        object.__setattr__(self, "image_size", (int(self.image_size[0]), int(self.image_size[1])))

    def __len__(self) -> int:
        return len(self.matrices)

    def __getitem__(self, index: int | slice | NDArray[Any]) -> Self:
        """Return the selected cameras; an integer gives a set of one."""
        selected = np.atleast_1d(np.arange(len(self))[index])
        return replace(self, matrices=self.matrices[selected], intrinsics=self.intrinsics[selected])

    def __iter__(self) -> Iterator[Self]:
        return (self[k] for k in range(len(self)))

    @property
    def positions(self) -> Float64Array:
        """Camera positions in the world, mm, ``(V, 3)``; image centres of orthographic cameras."""
        return -(self.matrices[:, :3, :3].transpose(0, 2, 1) @ self.matrices[:, :3, 3:])[:, :, 0]

    @property
    def directions(self) -> Float64Array:
        """Viewing directions in the world, unit vectors, ``(V, 3)``."""
        return self.matrices[:, 2, :3]

    @property
    def pixel_size_mm(self) -> float:
        """Size of a pixel of the first camera in the plane of the world's origin, mm."""
        distance = 1.0 if self.orthographic else float(np.linalg.norm(self.positions[0]))
        return distance / float(self.intrinsics[0, 0, 0])

    def with_image_size(self, image_size: tuple[int, int]) -> Self:
        """Return cameras with the same vertical field of view and another image size ``(H, W)``.

        Wider images show more at the left and at the right.

        Examples
        --------
        >>> from napari_gsvolume.rendering import fibonacci_directions, orbit_cameras
        >>> cameras = orbit_cameras(fibonacci_directions(4), radius=50.0, image_size=(64, 64))
        >>> cameras.with_image_size((128, 256)).image_size
        (128, 256)
        """
        (h, w), (new_h, new_w) = self.image_size, image_size
        intrinsics = self.intrinsics.copy()
        intrinsics[:, :2, :2] *= new_h / h
        intrinsics[:, 0, 2] = (intrinsics[:, 0, 2] - w / 2) * new_h / h + new_w / 2
        intrinsics[:, 1, 2] *= new_h / h
        return replace(self, intrinsics=intrinsics, image_size=image_size)

    def save(self, path: str | os.PathLike[str], images: ArrayLike | None = None) -> None:
        """Write an npz file: ``cameras`` (V, 4, 4), ``intrinsics`` (V, 3, 3), ``size``, ``orthographic``, ``images``.

        Parameters
        ----------
        path : str or path-like
            Output file, replaced in one step if it exists.
        images : array_like, (V, H, W, C), optional
            Images of the cameras, stored as float32.
        """
        from ..io.atomic import atomic_write

        arrays: dict[str, Any] = {
            "cameras": self.matrices,
            "intrinsics": self.intrinsics,
            "size": np.array(self.image_size),
            "orthographic": np.array(self.orthographic),
        }
        if images is not None:
            arrays["images"] = np.asarray(images, np.float32)
        with atomic_write(Path(path)) as temporary, open(temporary, "wb") as file:
            np.savez_compressed(file, **arrays)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read the cameras of an npz file.

        Raises
        ------
        FileFormatError
            If the file is not an npz file or contains no valid cameras.
        OSError
            If the file cannot be opened.
        """
        try:
            with np.load(path, allow_pickle=False) as arrays:
                matrices, intrinsics = arrays["cameras"], arrays["intrinsics"]
                height, width = arrays["size"] if "size" in arrays else arrays["images"].shape[1:3]
                orthographic = bool(arrays["orthographic"]) if "orthographic" in arrays else False
        except KeyError as error:
            raise FileFormatError(f"{path} contains no cameras: {error.args[0]}.") from error
        except (zipfile.BadZipFile, EOFError, ValueError, AttributeError, TypeError) as error:
            raise FileFormatError(f"{path} is no npz file of cameras (as gsvolume views writes them).") from error
        try:
            return cls(matrices, intrinsics, (int(height), int(width)), orthographic)
        except ValueError as error:
            raise FileFormatError(f"{path}: {error}") from error


@dataclass(frozen=True, eq=False)
class Camera(Cameras):
    """One pinhole or orthographic camera: `Cameras` of length 1, with the same attributes and conventions.

    Raises
    ------
    InputError
        As `Cameras`; also if there are several cameras.

    See Also
    --------
    Cameras : set of cameras, and the camera convention

    Examples
    --------
    >>> import napari_gsvolume as gsv
    >>> volume, grid = gsv.phantoms.vessel_phantom(16)
    >>> camera = gsv.Camera.look_at((0, -100, 0), image_size=(32, 48))  # mm from the centre of the volume
    >>> gsv.render_views(volume, grid.voxel_size, camera, "mip").shape
    (1, 32, 48, 1)
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self) != 1:
            raise InputError(
                f"A camera has one matrix and one intrinsic matrix; got {len(self)}. Use Cameras for several."
            )

    @classmethod
    def look_at(
        cls,
        position: ArrayLike,
        target: ArrayLike = (0.0, 0.0, 0.0),
        *,
        image_size: tuple[int, int] = (256, 256),
        field_of_view: float = FIELD_OF_VIEW,
        up: ArrayLike = _UP,
        orthographic: bool = False,
    ) -> Self:
        """Return the camera at a position that looks at a target point.

        Parameters
        ----------
        position, target : array_like, (3,)
            Position of the camera and point in the image centre (x, y, z), mm from the centre of the volume.
        image_size : (int, int)
            Image height and width in pixels.
        field_of_view : float
            Opening angle along the shorter image side, degrees. An orthographic camera shows the same extent in the
            plane of the target.
        up : array_like, (3,)
            Direction that points up in the image.
        orthographic : bool
            Parallel rays instead of a perspective projection.
        """
        focal = min(image_size) / 2 / math.tan(math.radians(field_of_view) / 2)
        if orthographic:
            focal /= float(np.linalg.norm(np.subtract(position, target)))
        camera = look_at_cameras(position, image_size, focal, target=target, up=up, orthographic=orthographic)
        return cls(camera.matrices, camera.intrinsics, image_size, orthographic)


def look_at_cameras(
    positions: ArrayLike,
    image_size: tuple[int, int],
    focal: float,
    *,
    target: ArrayLike = (0.0, 0.0, 0.0),
    up: ArrayLike = _UP,
    orthographic: bool = False,
) -> Cameras:
    """Return cameras at given positions that look at one target point.

    Parameters
    ----------
    positions : array_like, (V, 3) or (3,)
        Camera positions (x, y, z), mm.
    image_size : (int, int)
        Image height and width in pixels.
    focal : float
        Focal length in pixels; pixels per mm for orthographic cameras.
    target : array_like, (3,)
        Point in the image centre, mm.
    up : array_like, (3,)
        Direction that points up in the images. Cameras that look along it use another direction.
    orthographic : bool
        Parallel rays instead of a perspective projection.

    Examples
    --------
    >>> from napari_gsvolume.rendering import look_at_cameras
    >>> camera = look_at_cameras([0.0, -200.0, 0.0], (256, 256), focal=300.0)
    >>> camera.directions.round(6).tolist()
    [[0.0, 1.0, 0.0]]
    """
    positions = np.atleast_2d(np.asarray(positions, np.float64))
    forward = np.asarray(target, np.float64) - positions
    forward /= np.linalg.norm(forward, axis=1, keepdims=True)
    ups = np.broadcast_to(np.asarray(up, np.float64), forward.shape).copy()
    ups /= np.linalg.norm(ups, axis=1, keepdims=True)
    parallel = np.abs((forward * ups).sum(1)) > 0.9999
    ups[parallel] = np.where(np.abs(forward[parallel, 1:2]) < 0.9, (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))
    right = np.cross(forward, ups)
    right /= np.linalg.norm(right, axis=1, keepdims=True)
    rotations = np.stack([right, np.cross(forward, right), forward], 1)  # (V, 3, 3), rows are the camera axes
    matrices = np.tile(np.eye(4), (len(positions), 1, 1))
    matrices[:, :3, :3] = rotations
    matrices[:, :3, 3:] = -rotations @ positions[:, :, None]
    intrinsics = np.array([[focal, 0, image_size[1] / 2], [0, focal, image_size[0] / 2], [0, 0, 1.0]])
    return Cameras(matrices, np.tile(intrinsics, (len(positions), 1, 1)), image_size, orthographic)


def orbit_cameras(
    directions: ArrayLike,
    radius: float,
    image_size: tuple[int, int] = (256, 256),
    *,
    orthographic: bool = False,
    field_of_view: float = FIELD_OF_VIEW,
    zoom: float = 1.0,
) -> Cameras:
    """Return cameras around the origin, each with a ball of a given radius just filling its image.

    Parameters
    ----------
    directions : array_like, (V, 3) or (3,)
        Directions (x, y, z) from the origin to the cameras, of any length; see `fibonacci_directions` and
        `turntable_directions`.
    radius : float
        Radius of the ball, mm; see `bounding_radius`.
    image_size : (int, int)
        Image height and width in pixels.
    orthographic : bool
        Parallel rays instead of a perspective projection.
    field_of_view : float
        Opening angle of perspective cameras along the shorter image side, degrees.
    zoom : float
        Magnification.

    Examples
    --------
    >>> from napari_gsvolume.rendering import orbit_cameras, turntable_directions
    >>> cameras = orbit_cameras(turntable_directions(36, elevation=15), radius=80.0, image_size=(128, 128))
    >>> len(cameras), cameras.image_size
    (36, (128, 128))
    """
    units = np.atleast_2d(np.asarray(directions, np.float64))
    units = units / np.linalg.norm(units, axis=1, keepdims=True)
    half = min(image_size) / 2
    if orthographic:
        return look_at_cameras(2 * radius * units, image_size, zoom * half / radius, orthographic=True)
    angle = math.radians(field_of_view) / 2
    return look_at_cameras(radius / math.sin(angle) * units, image_size, zoom * half / math.tan(angle))


def fibonacci_directions(n: int) -> Float64Array:
    """Return `n` unit vectors (x, y, z) distributed evenly over the sphere (Fibonacci spiral), ``(n, 3)``.

    References
    ----------
    R. Swinbank, R. J. Purser, "Fibonacci grids: A novel approach to global modelling", Quarterly Journal of the Royal
    Meteorological Society 132, 2006.

    Examples
    --------
    >>> from napari_gsvolume.rendering import fibonacci_directions
    >>> fibonacci_directions(100).shape
    (100, 3)
    """
    z = 1 - (2 * np.arange(n) + 1) / n
    angle = np.arange(n) * math.pi * (3 - math.sqrt(5))  # multiples of the golden angle
    return np.stack([np.sqrt(1 - z**2) * np.cos(angle), np.sqrt(1 - z**2) * np.sin(angle), z], 1)


def turntable_directions(n: int, elevation: float = 0.0) -> Float64Array:
    """Return `n` unit vectors (x, y, z) on a circle around the z axis, ``(n, 3)``, counter-clockwise from -y.

    Parameters
    ----------
    n : int
        Number of directions.
    elevation : float
        Angle above the x-y plane, degrees.

    Examples
    --------
    >>> from napari_gsvolume.rendering import turntable_directions
    >>> turntable_directions(4).round(6)[1].tolist()
    [1.0, 0.0, 0.0]
    """
    angle, height = 2 * math.pi * np.arange(n) / n - math.pi / 2, math.radians(elevation)
    columns = [math.cos(height) * np.cos(angle), math.cos(height) * np.sin(angle), np.full(n, math.sin(height))]
    return np.stack(columns, 1)


def bounding_radius(shape: tuple[int, ...], voxel_size: ArrayLike) -> float:
    """Return the radius of a volume's bounding ball: half of its diagonal, in the unit of the voxel size.

    Examples
    --------
    >>> from napari_gsvolume.rendering import bounding_radius
    >>> bounding_radius((6, 8, 1), (1.0, 1.0, 0.0))
    5.0
    """
    return float(np.linalg.norm(np.array(shape) * np.asarray(voxel_size)) / 2)


def load_images(path: str | os.PathLike[str]) -> Float32Array | None:
    """Return the images ``(V, H, W, C)`` in an npz file of cameras; None if it contains none."""
    with np.load(path, allow_pickle=False) as arrays:
        return np.asarray(arrays["images"], np.float32) if "images" in arrays else None
