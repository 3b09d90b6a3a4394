"""Image layers of rendered pictures."""

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
    """Cameras of pictures, and the position of the pictures in the viewer."""

    @property
    def cameras(self) -> Cameras:
        """One camera for each picture."""

    @property
    def mirrored(self) -> bool:
        """Whether the viewer shows the mirror images of the cameras' images."""

    @property
    def centre(self) -> tuple[float, float, float]:
        """World point in the centre of the picture, last three axes."""

    @property
    def pixel(self) -> float:
        """Pixel size at this point, in world units."""


def picture_layer(
    name: str,
    kind: str,
    images: NDArray[Any],
    frame: PictureFrame,
    units: Sequence[str],
    metadata: dict[str, Any],
) -> LayerData:
    """Return pictures of a volume as an image layer "name · kind", at the place where the canvas shows the volume.

    Parameters
    ----------
    name : str
        Name of the volume.
    kind : str
        "view", "turntable", "difference" or "DVR".
    images : ndarray, ([V,] H, W, 3), uint8, or ([V,] H, W), float32
        Colour or grey pictures; absolute values for kind "difference".
    frame : PictureFrame
        Cameras and position.
    units : sequence of str
        Units of the world's last three axes.
    metadata : dict
        Settings and metrics to store in the layer.
    """
    rgb = images.dtype == np.uint8
    shape = np.array(images.shape[:-1] if rgb else images.shape)
    n = len(shape)
    height = float(shape[-2] * frame.pixel)
    scale = np.array([height / shape[0], frame.pixel, frame.pixel])[-n:]  # the slider over views gets the same length
    limits = (0.0, 255.0) if rgb else (0.0, residual_limit(images)) if kind == "difference" else value_limits(images)
    cameras = frame.cameras
    camera = {
        "matrices": cameras.matrices.tolist(),
        "intrinsics": cameras.intrinsics.tolist(),
        "size": list(cameras.image_size),
        "orthographic": cameras.orthographic,
        "mirrored": frame.mirrored,
    }
    options = {
        "name": f"{name} · {kind}",
        "contrast_limits": limits,
        **({} if rgb else {"colormap": "inferno" if kind == "difference" else "gray"}),
        "scale": tuple(scale),
        "translate": tuple(np.array(frame.centre)[-n:] - scale * (shape - 1) / 2),
        "units": tuple(units)[-n:],
        "axis_labels": ("view", "v", "u")[-n:],
        "rgb": rgb,
        "metadata": {METADATA_KEY: {"picture": kind, "camera": camera, **metadata}},
    }
    return images, options, "image"


def is_picture(layer: Layer) -> bool:
    """Return whether a layer contains pictures rendered by this plugin."""
    entry = layer.metadata.get(METADATA_KEY)
    return isinstance(entry, dict) and "picture" in entry
