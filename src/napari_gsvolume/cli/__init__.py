"""The shell command ``gsvolume``: one command for each call of the Python interface."""

from .gaussians import main

__all__ = ["main"]
