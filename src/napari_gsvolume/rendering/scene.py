"""What is to be seen: a volume with its transfer function, the cameras around it, and its reference images."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..types import Float32Array
from .cameras import Cameras, around, fibonacci, radius_of
from .volume.dvr import render_views
from .volume.transfer_functions import TransferFunction


@dataclass(frozen=True, eq=False)
class Scene:
    """A volume, or a part of it, as direct volume rendering shows it.

    Attributes
    ----------
    volume : array_like, (Z, Y, X)
    voxel_size : ndarray, (3,)
        In mm, along z, y, x.
    transfer : TransferFunction
    shading : bool or None
        None: as the transfer function says.
    background : (float, float, float)
    mask : array_like, (Z, Y, X), optional
        Where it is zero there is nothing.
    """

    volume: ArrayLike
    voxel_size: NDArray[np.float64]
    transfer: TransferFunction
    shading: bool | None = None
    background: tuple[float, float, float] = (0.0, 0.0, 0.0)
    mask: ArrayLike | None = None

    @property
    def radius(self) -> float:
        """Half of the volume's diagonal, mm."""
        return radius_of(np.shape(self.volume), self.voxel_size)

    def images(self, cameras: Cameras) -> Iterator[Float32Array]:
        """Return an iterator over the reference images ``(H, W, 3)``, each rendered when it is asked for."""
        return render_views(
            self.volume, self.voxel_size, cameras, "dvr", self.transfer,
            shading=self.shading, background=self.background, mask=self.mask,
        )  # fmt: skip

    def cameras(self, views: int, size: int, *, orthographic: bool = False) -> Cameras:
        """Return cameras evenly around the volume, their images `size` pixels square."""
        return around(fibonacci(views), self.radius, (size, size), orthographic=orthographic)

    def held_out(self, views: int, size: int, *, orthographic: bool = False) -> Cameras:
        """Return cameras like `cameras`, but elsewhere: in the gaps of a spiral of any number."""
        # Turned by a rotation that is no symmetry of the spiral.
        a, b = 1.234, 0.77
        turn = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
        tilt = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
        return around(fibonacci(views) @ (turn @ tilt).T, self.radius, (size, size), orthographic=orthographic)
