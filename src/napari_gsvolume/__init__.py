"""Represent volumes as sums of weighted 3D Gaussians.

The names below are loaded when first used: importing the package costs nothing, and never needs a display.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .fitting import FitResult, FitSettings, FitStep, fit, fit_steps
    from .gaussians import GaussianVolume
    from .grid import Grid
    from .phantoms import anatomical_phantom, vessel_phantom

_HOMES = {
    "FitResult": ".fitting",
    "FitSettings": ".fitting",
    "FitStep": ".fitting",
    "GaussianVolume": ".gaussians",
    "Grid": ".grid",
    "anatomical_phantom": ".phantoms",
    "fit": ".fitting",
    "fit_steps": ".fitting",
    "vessel_phantom": ".phantoms",
}

__version__ = importlib.metadata.version("napari-gsvolume")
__all__ = [
    "FitResult",
    "FitSettings",
    "FitStep",
    "GaussianVolume",
    "Grid",
    "anatomical_phantom",
    "fit",
    "fit_steps",
    "vessel_phantom",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name], __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
