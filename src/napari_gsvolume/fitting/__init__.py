"""Fitting Gaussians: settings, solvers, the choice of N, and the loop.

All but the settings is loaded when first used: it takes torch, and a form or ``--help`` does not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .settings import FitSettings

if TYPE_CHECKING:
    from .loop import fit, fit_steps
    from .result import FitResult, FitStep, HistoryPoint

__all__ = ["FitResult", "FitSettings", "FitStep", "HistoryPoint", "fit", "fit_steps"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import loop

    return getattr(loop, name)
