"""One pair of functions for all files of the package: `load` and `save`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from ..errors import InputError

if TYPE_CHECKING:
    from ..gaussians import GaussianVolume
    from ..rendering.splats.model import Splats
    from ..super_resolution.model import SRModel
    from .nifti import NiftiImage

    Content: TypeAlias = GaussianVolume | NiftiImage | Splats | SRModel

_SR_FORMAT = "napari-gsvolume/sr/"  # how the format of super-resolution models begins in the file's metadata
_KINDS = ".nii, .nii.gz, .gsv, .safetensors or .ply"


def load(path: str | os.PathLike[str]) -> Content:
    """Read a file of any kind that the package knows.

    Parameters
    ----------
    path : str or path-like
        - ``.nii``, ``.nii.gz``: a volume (NIfTI);
        - ``.gsv``, ``.safetensors``: Gaussians that `save` or `GaussianVolume.save` wrote;
        - ``.safetensors``: a trained super-resolution model; the metadata of the file tell it from Gaussians;
        - ``.ply``: splats of 3D Gaussian Splatting, written by any program.

    Returns
    -------
    NiftiImage, GaussianVolume, SRModel or Splats
        Content of the file, on the CPU.

    Raises
    ------
    InputError
        If the name ends otherwise.
    FileFormatError
        If the file is damaged, or was written by another program.
    OSError
        If the file does not exist or may not be read (FileNotFoundError, PermissionError, ...).

    See Also
    --------
    save : Write a file.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> import napari_gsvolume as gsv
    >>> volume, grid = gsv.phantoms.vessel_phantom(16)
    >>> gaussians = gsv.fit(volume, grid=grid, gaussians=5, iterations=1).gaussians
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder) / "model.gsv"
    ...     gsv.save(path, gaussians)
    ...     gsv.load(path).grid == grid
    True
    """
    name = Path(path).name.lower()
    if name.endswith((".nii", ".nii.gz")):
        from .nifti import read_nifti

        return read_nifti(path)
    if name.endswith(".ply"):
        from ..rendering.splats.ply import read_splats

        return read_splats(path)
    if name.endswith(".safetensors") and _stored_format(path).startswith(_SR_FORMAT):
        from ..super_resolution.model import SRModel

        return SRModel.load(path)
    if name.endswith((".safetensors", ".gsv")):
        from .gaussians import read_gaussians

        return read_gaussians(path)
    raise InputError(f"The name of a file to load ends in {_KINDS}; got {Path(path).name}.")


def save(path: str | os.PathLike[str], content: Content) -> None:
    """Write a file; an existing file is replaced in one step, or not at all.

    Parameters
    ----------
    path : str or path-like
        Path of the file. Its suffix has to fit the content:

        - `GaussianVolume`: ``.safetensors`` (lossless), ``.gsv`` (small), ``.ply`` (export for viewers of splats);
        - `NiftiImage`: ``.nii``, ``.nii.gz``;
        - `Splats`: ``.ply``;
        - `SRModel`: ``.safetensors``.
    content : GaussianVolume, NiftiImage, Splats or SRModel
        Content to write.

    Raises
    ------
    InputError
        If the suffix does not fit the content, or the content cannot be written to such a file.
    TypeError
        If the content is of another type.
    OSError
        If the folder does not exist or cannot be written to (FileNotFoundError, PermissionError, ...).

    See Also
    --------
    load : Read a file.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> import numpy as np
    >>> import napari_gsvolume as gsv
    >>> from napari_gsvolume.io import NiftiImage
    >>> image = NiftiImage(np.zeros((3, 4, 5), np.float32), gsv.Grid((3, 4, 5), units=("mm",) * 3), header=None)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder) / "volume.nii.gz"
    ...     gsv.save(path, image)
    ...     gsv.load(path).data.shape
    (3, 4, 5)
    """
    # Types in the order of their cost: the first ones need no torch.
    from .nifti import NiftiImage

    if isinstance(content, NiftiImage):
        return _save_nifti(path, content)
    from ..gaussians import GaussianVolume

    if isinstance(content, GaussianVolume):
        from .gaussians import write_gaussians

        return write_gaussians(path, content)
    from ..rendering.splats.model import Splats

    if isinstance(content, Splats):
        from ..rendering.splats.ply import write_splats

        return write_splats(path, content)
    from ..super_resolution.model import SRModel

    if isinstance(content, SRModel):
        return content.save(path)
    raise TypeError(
        f"A {type(content).__name__} cannot be saved; save a GaussianVolume, NiftiImage, Splats or SRModel."
    )


def _save_nifti(path: str | os.PathLike[str], image: NiftiImage) -> None:
    from .nifti import write_nifti

    like = None if image.header is None else image
    write_nifti(path, image.data, image.grid, like=like, time_step=image.time_step, time_unit=image.time_unit)


def _stored_format(path: str | os.PathLike[str]) -> str:
    """Return the format in the metadata of a safetensors file; an empty string if there is none."""
    from .safetensors_file import open_safetensors

    with open_safetensors(path, "np") as file:
        return str((file.metadata() or {}).get("format", ""))
