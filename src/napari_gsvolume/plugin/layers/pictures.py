"""Layers of rendered pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from napari.layers import Layer
from numpy.typing import NDArray

from .conversion import METADATA_KEY, LayerData, residual_limit, value_limits

if TYPE_CHECKING:
    from ...rendering.cameras import Cameras


class PictureFrame(Protocol):
    """Where pictures were taken."""

    @property
    def cameras(self) -> Cameras:
        """One for each picture."""

    @property
    def mirrored(self) -> bool:
        """Whether the pictures are the mirror images of what the cameras see."""

    @property
    def centre(self) -> tuple[float, float, float]:
        """What is in the middle of the picture, in the world's last three axes."""

    @property
    def pixel(self) -> float:
        """Side of a pixel there, in the unit of the world."""


def picture_layer(
    name: str,
    kind: str,
    images: NDArray[Any],
    seen: PictureFrame,
    units: Sequence[str],
    about: dict[str, Any],
) -> LayerData:
    """Return pictures of a volume as an image layer "name · kind", where the canvas showed what they show.

    Parameters
    ----------
    name : str
        Of the volume.
    kind : str
        "view", "turntable", "difference" or "DVR".
    images : ndarray, ([V,] H, W, 3), uint8, or ([V,] H, W), float32
        In colours or grey; of a difference the absolute values, which are shown as heat.
    seen : PictureFrame
        Where the pictures were taken.
    units : sequence of str
        Of the world's last three axes.
    about : dict
        What is worth remembering of how they were made: settings, metrics.
    """
    rgb = images.dtype == np.uint8
    shape = np.array(images.shape[:-1] if rgb else images.shape)
    n = len(shape)
    height = float(shape[-2] * seen.pixel)
    scale = np.array([height / shape[0], seen.pixel, seen.pixel])[-n:]  # the slider over views is as long
    limits = (0.0, 255.0) if rgb else (0.0, residual_limit(images)) if kind == "difference" else value_limits(images)
    cameras = seen.cameras
    camera = {
        "matrices": cameras.matrices.tolist(),
        "intrinsics": cameras.intrinsics.tolist(),
        "size": list(cameras.size),
        "orthographic": cameras.orthographic,
        "mirrored": seen.mirrored,
    }
    options = {
        "name": f"{name} · {kind}",
        "contrast_limits": limits,
        **({} if rgb else {"colormap": "inferno" if kind == "difference" else "gray"}),
        "scale": tuple(scale),
        "translate": tuple(np.array(seen.centre)[-n:] - scale * (shape - 1) / 2),
        "units": tuple(units)[-n:],
        "axis_labels": ("view", "v", "u")[-n:],
        "rgb": rgb,
        "metadata": {METADATA_KEY: {"picture": kind, "camera": camera, **about}},
    }
    return images, options, "image"


def is_picture(layer: Layer) -> bool:
    """Whether a layer is pictures of a volume that this plugin took."""
    entry = layer.metadata.get(METADATA_KEY)
    return isinstance(entry, dict) and "picture" in entry
