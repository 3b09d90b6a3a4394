"""The shell command ``gsvolume``: one command for each call of the Python interface."""

from . import explain, gaussians, super_resolution, svd, tomography, views  # noqa: F401, registers the commands
from .app import main

__all__ = ["main"]
