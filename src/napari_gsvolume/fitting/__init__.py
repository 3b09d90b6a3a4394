"""Fitting Gaussians: settings, solvers, the choice of N, and the loop."""

from .loop import FitResult, FitStep, HistoryPoint, fit, fit_steps
from .settings import FitSettings

__all__ = ["FitResult", "FitSettings", "FitStep", "HistoryPoint", "fit", "fit_steps"]
