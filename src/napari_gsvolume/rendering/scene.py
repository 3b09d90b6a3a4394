"""Scene: a volume with its transfer function, cameras around it and reference images of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from ..types import Float32Array, Float64Array
from .cameras import Cameras, bounding_radius, fibonacci_directions, orbit_cameras
from .volume.dvr import iter_views
from .volume.transfer_functions import TransferFunction


@dataclass(frozen=True, eq=False)
class Scene:
    """Volume, or part of a volume, with the appearance that direct volume rendering gives it.

    Attributes
    ----------
    volume : array_like, (Z, Y, X)
        Intensities.
    voxel_size : ndarray, (3,)
        Voxel size along z, y, x, mm.
    transfer_function : TransferFunction
        Colours and opacities.
    shading : bool, optional
        Phong shading of surfaces; by default as the transfer function says.
    background : (float, float, float)
        Background colour (red, green, blue), 0 to 1.
    mask : array_like, (Z, Y, X), optional
        Voxels to show (not 0) and to leave out (0).

    Examples
    --------
    >>> import numpy as np
    >>> from napari_gsvolume.phantoms import vessel_phantom
    >>> from napari_gsvolume.rendering import Scene, TransferFunction
    >>> volume = vessel_phantom(16)[0]
    >>> scene = Scene(volume, np.ones(3), TransferFunction.from_preset("mr", volume))
    >>> [image] = scene.reference_images(scene.orbit_cameras(1, 32))
    >>> image.shape
    (32, 32, 3)
    """

    volume: ArrayLike
    voxel_size: Float64Array
    transfer_function: TransferFunction
    shading: bool | None = None
    background: tuple[float, float, float] = (0.0, 0.0, 0.0)
    mask: ArrayLike | None = None

    @property
    def radius(self) -> float:
        """Radius of the bounding ball (half of the volume's diagonal), mm."""
        return bounding_radius(np.shape(self.volume), self.voxel_size)

    def reference_images(self, cameras: Cameras) -> Iterator[Float32Array]:
        """Return an iterator over the direct volume renderings ``(H, W, 3)``, each rendered when it is requested."""
        return iter_views(
            self.volume,
            self.voxel_size,
            cameras,
            "dvr",
            self.transfer_function,
            shading=self.shading,
            background=self.background,
            mask=self.mask,
        )

    def orbit_cameras(self, views: int, image_size: int, *, orthographic: bool = False) -> Cameras:
        """Return cameras distributed evenly around the volume, with square images of a given width in pixels."""
        return self._orbit(fibonacci_directions(views), image_size, orthographic)

    def held_out_cameras(self, views: int, image_size: int, *, orthographic: bool = False) -> Cameras:
        """Return cameras for validation, in other directions than those of `orbit_cameras`."""
        # A rotation that is no symmetry of the spiral puts them into the gaps, whatever the number of views.
        a, b = 1.234, 0.77
        about_z = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
        about_x = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
        return self._orbit(fibonacci_directions(views) @ (about_z @ about_x).T, image_size, orthographic)

    def _orbit(self, directions: Float64Array, image_size: int, orthographic: bool) -> Cameras:
        return orbit_cameras(directions, self.radius, (image_size, image_size), orthographic=orthographic)
