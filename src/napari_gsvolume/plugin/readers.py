"""Readers that napari calls."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..gaussians import GaussianVolume
from ..grid import Grid
from ..io.gaussians import GAUSSIAN_SUFFIXES
from .layers.conversion import LayerData, density_layer, grid_placement
from .layers.gaussians import gaussian_layer
from .layers.projections import projection_layer

Reader = Callable[[str | Sequence[str]], list[LayerData]]


def nifti_reader(path: str | Sequence[str]) -> Reader | None:
    """Return a reader for NIfTI files (``.nii``, ``.nii.gz``)."""
    return _each(read_nifti_layers) if _all_end(path, (".nii", ".nii.gz")) else None


def gaussian_reader(path: str | Sequence[str]) -> Reader | None:
    """Return a reader for files of Gaussians (``.gsv``, ``.safetensors``)."""
    return _each(_read_gaussians) if _all_end(path, GAUSSIAN_SUFFIXES) else None


def _all_end(path: str | Sequence[str], suffixes: tuple[str, ...]) -> bool:
    return all(str(p).lower().endswith(suffixes) for p in _paths(path))


def _paths(path: str | Sequence[str]) -> list[str]:
    return [path] if isinstance(path, str) else [str(p) for p in path]


def _each(read: Callable[[str], list[LayerData]]) -> Reader:
    return lambda path: [layer for p in _paths(path) for layer in read(p)]


def read_nifti_layers(path: str) -> list[LayerData]:
    """Return the image layer, or the layer of projections, in a NIfTI file."""
    from ..io.nifti import read_nifti
    from ..tomography.projections import Projections, sidecar_scan
    from ..tomography.scan import grid_of_scan

    image = read_nifti(path)
    if (scan := sidecar_scan(path)) is not None and scan.image_shape == image.data.shape:
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
