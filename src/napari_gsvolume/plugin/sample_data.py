"""Sample data in the File menu of napari."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..grid import Grid
from .layers.conversion import LayerData, grid_placement
from .readers import read_nifti_layers


def sample_anatomy() -> list[LayerData]:
    """Return a synthetic body with soft tissues, thin shells, vessels and noise."""
    from ..phantoms import anatomical_phantom

    return _sample("Anatomical phantom", *anatomical_phantom())


def sample_vessels() -> list[LayerData]:
    """Return a synthetic sparse vessel tree."""
    from ..phantoms import vessel_phantom

    return _sample("Vessel phantom", *vessel_phantom())


def sample_mri() -> list[LayerData]:
    """Return the anatomical MRI in nibabel's test data."""
    import nibabel.testing

    [(data, options, kind)] = read_nifti_layers(str(Path(nibabel.testing.data_path) / "anatomical.nii"))
    return [(data, {**options, "name": "MRI (nibabel)"}, kind)]


def _sample(name: str, volume: Any, grid: Grid) -> list[LayerData]:
    return [(volume, {"name": name, **grid_placement(grid)}, "image")]
