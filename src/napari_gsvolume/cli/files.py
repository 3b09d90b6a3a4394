"""Input and output files of commands: checks, reports and summaries."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.filesize import decimal as file_size

from ..errors import InputError

if TYPE_CHECKING:
    from ..io.nifti import NiftiImage
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..io.nifti import NiftiImage


def print_summary(figures: dict[str, Any], files: list[Path]) -> None:
    """Print the figures of a fit and the files that were written."""
    ssim = "" if figures["ssim"] is None else f", SSIM {figures['ssim']:.4f}"
    print(figures["message"])
    where = "" if figures["device"] == "cpu" else f" on {figures['device']}"
    reached = f"PSNR {figures['psnr_db']:.2f} dB{ssim}, {figures['n_gaussians']:,} Gaussians"
    print(f"{reached}, {figures['seconds']:.1f} s{where}")
    print_files(files)


def write_report(path: Path, figures: dict[str, Any]) -> None:
    """Write figures as JSON."""
    path.write_text(json.dumps(figures, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def print_files(files: list[Path]) -> None:
    """Print files that were written, and how large they are."""
    for path in files:
        print(f"{path}: {file_size(path.stat().st_size)}")


def check_outputs(inputs: list[Path], **outputs: tuple[Path | None, tuple[str, ...]]) -> list[Path]:
    """Return the files to write; raise now, rather than after a long fit, if one could not be, or is an input."""
    files: list[Path] = []
    for option, (path, suffixes) in outputs.items():
        if path is None:
            continue
        if not path.name.lower().endswith(suffixes):
            raise InputError(f"--{option} {path}: the name must end in {' or '.join(suffixes)}.")
        if path.is_dir() or path.resolve() in (other.resolve() for other in inputs + files):
            raise InputError(f"--{option} {path}: the name is taken by a folder, an input or another output.")
        try:
            with tempfile.TemporaryFile(dir=path.parent):  # a folder's modes do not tell of read-only disks
                files.append(path)
        except OSError as error:
            raise OSError(f"--{option} {path}: its folder cannot be written to ({error.strerror}).") from error
    return files


def file_sizes(path: Path, n_voxels: int) -> dict[str, float]:
    """Return how large a file is, and how many times smaller than the volume in float32."""
    size = path.stat().st_size
    return {"bytes": size, "ratio": 4 * n_voxels / size}


def select_volume(image: NiftiImage, path: Path, time_point: int | None) -> Any:
    """Return the one volume of intensities."""
    if image.rgb:
        raise InputError(f"{path} holds colours; one intensity a voxel is needed.")
    if image.data.ndim < 4:
        if time_point is not None:
            raise InputError(f"{path} has no time axis; leave --time-point out.")
        return image.data
    last = len(image.data) - 1
    if time_point is None or not 0 <= time_point <= last:
        raise InputError(f"{path} is 4D; choose one of its volumes with --time-point 0 to {last}.")
    return image.data[time_point]


class OutputFolder:
    """Output folder of a command: created by `make`, never over an input, each file written atomically."""

    def __init__(self, path: Path, inputs: Sequence[Path]) -> None:
        self._path = path
        self._inputs = {other.resolve() for other in inputs}
        self.written: list[str] = []
        if path.exists() and not path.is_dir():
            raise InputError(f"--out {path}: this is a file; name a folder.")

    def make(self) -> None:
        """Create the folder."""
        try:
            self._path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise type(error)(f"--out {self._path}: the folder cannot be made ({error.strerror}).") from error

    def path(self, name: str) -> Path:
        """Return where to write a file; raise ValueError if an input is there."""
        path = self._path / name
        if path.resolve() in self._inputs:
            raise InputError(f"--out {self._path}: {path} is an input and would be overwritten; name another folder.")
        path.parent.mkdir(parents=True, exist_ok=True)
        self.written.append(name)
        return path

    def text(self, name: str, content: str) -> None:
        """Write a text file."""
        from ..io.atomic import atomic_write

        with atomic_write(self.path(name)) as temporary:
            temporary.write_text(content, encoding="utf-8")

    def nifti(self, name: str, values: Any, grid: Any, like: NiftiImage) -> None:
        """Write several volumes, or several images as volumes of one slice, to one file."""
        import numpy as np

        from ..grid import Grid
        from ..io.nifti import write_nifti

        if grid.ndim == 2:
            affine = np.eye(4)
            affine[1:, 1:] = grid.affine
            grid, values = Grid((1, *grid.shape), affine, (grid.units[0], *grid.units)), values[:, None]
        write_nifti(self.path(name), values, grid, like=like)

    def tell(self, sentences: Sequence[str]) -> None:
        """Print sentences, and what was written."""
        for sentence in sentences:
            print(sentence)
        size = sum((self._path / name).stat().st_size for name in self.written)
        print(f"{self._path / 'report.html'}, and {len(self.written) - 1} files beside it, {file_size(size)}")
