"""What the manifest offers to napari besides widgets: readers, writers and sample data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..gaussians import GaussianVolume
from ..grid import Grid
from ..io.gaussians import GAUSSIAN_FILES
from .layers.conversion import LayerData, density_layer, gaussian_layer, gaussians_of, grid_placement, projection_layer


class WriteError(Exception):
    """A layer cannot be written; not a ValueError, which napari takes for there being no writer."""


Reader = Callable[[str | Sequence[str]], list[LayerData]]


def nifti_reader(path: str | Sequence[str]) -> Reader | None:
    """Return a reader for NIfTI files (``.nii``, ``.nii.gz``)."""
    return _each(_read_nifti) if _all_end(path, (".nii", ".nii.gz")) else None


def gaussian_reader(path: str | Sequence[str]) -> Reader | None:
    """Return a reader for files of Gaussians (``.gsv``, ``.safetensors``)."""
    return _each(_read_gaussians) if _all_end(path, GAUSSIAN_FILES) else None


def _all_end(path: str | Sequence[str], suffixes: tuple[str, ...]) -> bool:
    return all(str(p).lower().endswith(suffixes) for p in _paths(path))


def _paths(path: str | Sequence[str]) -> list[str]:
    return [path] if isinstance(path, str) else [str(p) for p in path]


def _each(read: Callable[[str], list[LayerData]]) -> Reader:
    return lambda path: [layer for p in _paths(path) for layer in read(p)]


def _read_nifti(path: str) -> list[LayerData]:
    from ..io.nifti import read_nifti
    from ..reconstruction.problem import grid_of_scan
    from ..tomography.projections import Projections, scan_beside

    image = read_nifti(path)
    if (scan := scan_beside(path)) is not None and scan.image_shape == image.data.shape:
        projections = Projections(np.asarray(image.data, np.float32), scan)
        images, options, kind = projection_layer(_stem(path), projections, grid_of_scan(scan))
        return [(images, options | {"name": _stem(path)}, kind)]
    place = grid_placement(image.grid)
    if image.time_step is not None:
        place = _with_time(image.grid, image.time_step, image.time_unit or "pixel")
    options = {"name": _stem(path), "rgb": image.rgb, "metadata": {"nifti_header": image.header}}
    return [(image.data, {**options, **place}, "image")]


def _with_time(grid: Grid, step: float, unit: str) -> dict[str, Any]:
    affine = np.eye(grid.ndim + 2)
    affine[1:, 1:] = grid.affine
    affine[0, 0] = step
    return {"affine": affine, "units": (unit, *grid.units), "axis_labels": ("t", *grid.axis_labels)}


def _read_gaussians(path: str) -> list[LayerData]:
    gaussians = GaussianVolume.load(path)
    density = gaussians.sample()
    limits = (float(density.min()), float(max(density.max(), density.min() + 1e-6)))
    name = _stem(path)
    return [
        density_layer(name, density, grid_placement(gaussians.grid), limits, dict(gaussians.metadata)),
        gaussian_layer(name, gaussians),
    ]


def _stem(path: str) -> str:
    name = Path(path).name
    return name.removesuffix(".gz").rsplit(".", 1)[0]


def write_nifti_image(path: str, data: Any, attributes: dict[str, Any]) -> list[str]:
    """Write an image layer to a NIfTI file, with its place in the world and its units."""
    from napari.layers import Image

    from ..io.nifti import NiftiImage, write_nifti
    from .layers.conversion import source_volume

    if attributes.get("rgb"):
        raise WriteError(f"'{attributes.get('name')}' is an RGB image; NIfTI files are written from grey ones.")
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
    """Write the Gaussians of a surface or points layer; of points, those that are still there."""
    gaussians = gaussians_of(attributes.get("metadata") or {})
    if gaussians is None:
        raise WriteError(
            f"'{attributes.get('name')}' holds no Gaussians; save a layer '... · gaussians' that a fit made."
        )
    features = attributes.get("features")
    if isinstance(data, np.ndarray) and features is not None and "index" in features:
        gaussians = gaussians.select(torch.tensor(np.array(features["index"], dtype=np.int64)))
    try:
        gaussians.save(path)
    except ValueError as error:
        raise WriteError(str(error)) from error
    return [path]


def sample_anatomy() -> list[LayerData]:
    """Return a made-up body with soft tissues, thin shells, vessels and noise."""
    from ..phantoms import anatomical_phantom

    return _sample("Anatomical phantom", *anatomical_phantom())


def sample_vessels() -> list[LayerData]:
    """Return a made-up sparse vessel tree."""
    from ..phantoms import vessel_phantom

    return _sample("Vessel phantom", *vessel_phantom())


def sample_mri() -> list[LayerData]:
    """Return the anatomical MRI that nibabel ships for its own tests."""
    import nibabel.testing

    [(data, options, kind)] = _read_nifti(str(Path(nibabel.testing.data_path) / "anatomical.nii"))
    return [(data, {**options, "name": "MRI (nibabel)"}, kind)]


def _sample(name: str, volume: Any, grid: Grid) -> list[LayerData]:
    return [(volume, {"name": name, **grid_placement(grid)}, "image")]
