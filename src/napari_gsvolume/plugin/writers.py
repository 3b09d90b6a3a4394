"""Writers that napari calls."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from ..errors import GSVolumeError
from .layers.gaussians import gaussians_of


class WriteError(GSVolumeError):
    """Layer that cannot be written; not a ValueError, which napari takes for a missing writer."""


def write_nifti_image(path: str, data: Any, attributes: dict[str, Any]) -> list[str]:
    """Write an image layer to a NIfTI file, with its affine and units."""
    from napari.layers import Image

    from ..io.nifti import NiftiImage, write_nifti
    from .layers.conversion import source_volume

    if attributes.get("rgb"):
        raise WriteError(f"'{attributes.get('name')}' is an RGB image; NIfTI files are written from greyscale images.")
    ndim = np.ndim(data[0] if attributes.get("multiscale") else data)
    if ndim not in (2, 3, 4):
        raise WriteError(f"'{attributes.get('name')}' has {ndim} axes; NIfTI files are written from 2D to 4D images.")
    known = {"scale", "translate", "rotate", "shear", "affine", "units", "axis_labels", "name"}
    layer = Image(
        data,
        rgb=False,
        multiscale=bool(attributes.get("multiscale")),
        **{k: attributes[k] for k in known & set(attributes)},
    )
    grid = source_volume(layer, time_point=0 if layer.ndim == 4 else None).grid
    array = np.asarray(data[0] if layer.multiscale else data, dtype=np.float32)
    header = (attributes.get("metadata") or {}).get("nifti_header")
    time: dict[str, Any] = {}
    if array.ndim == 4:
        step = layer.data_to_world(np.array([1.0, 0, 0, 0]))[0] - layer.data_to_world(np.zeros(4))[0]
        duration = step * layer.units[0]
        if duration.check("[time]") and str(duration.units) not in ("millisecond", "microsecond"):
            duration = duration.to("second")  # NIfTI knows no minutes
        time = {"time_step": float(duration.magnitude), "time_unit": str(duration.units)}
    write_nifti(path, array, grid, like=NiftiImage(array, grid, header) if header is not None else None, **time)
    return [path]


def write_gaussian_layer(path: str, data: Any, attributes: dict[str, Any]) -> list[str]:
    """Write the Gaussians of a surface or points layer, without the points that were deleted."""
    gaussians = gaussians_of(attributes.get("metadata") or {})
    if gaussians is None:
        raise WriteError(f"'{attributes.get('name')}' holds no Gaussians; save a layer '... · gaussians' of a fit.")
    features = attributes.get("features")
    if isinstance(data, np.ndarray) and features is not None and "index" in features:
        gaussians = gaussians.select(torch.tensor(np.array(features["index"], dtype=np.int64)))
    try:
        gaussians.save(path)
    except ValueError as error:
        raise WriteError(str(error)) from error
    return [path]
