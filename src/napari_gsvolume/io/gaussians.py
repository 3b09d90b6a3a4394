"""Files of Gaussians; the suffix decides the format."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import FileFormatError, InputError

if TYPE_CHECKING:
    from ..gaussians import GaussianVolume

GAUSSIAN_SUFFIXES = (".safetensors", ".gsv")
"""Suffixes of files of Gaussians that can be written and read."""
EXPORT_SUFFIXES = (".ply",)
"""Suffixes of files of Gaussians that can only be written."""


def write_gaussians(path: str | os.PathLike[str], gaussians: GaussianVolume) -> None:
    """Write Gaussians; see `GaussianVolume.save`."""
    suffix = Path(path).suffix.lower()
    if suffix == ".gsv":
        from .gsv.format import write_gsv

        write_gsv(path, gaussians)
    elif suffix == ".ply":
        from .gaussian_ply import write_ply

        write_ply(path, gaussians)
    elif suffix == ".safetensors":
        from .gaussian_safetensors import write_safetensors

        write_safetensors(path, gaussians)
    else:
        endings = f"{', '.join(GAUSSIAN_SUFFIXES)} or {EXPORT_SUFFIXES[0]}"
        raise InputError(f"The name of a file of Gaussians ends in {endings}; got {Path(path).name}.")


def read_gaussians(path: str | os.PathLike[str]) -> GaussianVolume:
    """Read Gaussians; see `GaussianVolume.load`. Files without the suffix ``.gsv`` are read as safetensors."""
    suffix = Path(path).suffix.lower()
    if suffix in EXPORT_SUFFIXES:
        raise FileFormatError(f"{path} cannot be read: {suffix} files are for other viewers; keep a .gsv beside it.")
    if suffix == ".gsv":
        from .gsv.format import read_gsv

        return read_gsv(path)
    from .gaussian_safetensors import read_safetensors

    return read_safetensors(path)
