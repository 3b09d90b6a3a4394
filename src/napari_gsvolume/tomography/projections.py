"""Projections: made from voxels or Gaussians, turned into intensities and back, made noisy, read and written.

A line integral is intensity times millimetres. Beer and Lambert's law makes it an X-ray: of attenuation, in 1 / mm, it
is the optical depth p, and of I0 photons ``I0 exp(-p)`` come through (docs/projections.md).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from ..devices import available_device
from ..errors import FileFormatError, InputError
from ..gaussians import GaussianVolume
from ..grid import Grid
from ..operators.gaussian_sum import Gaussians
from ..types import Float32Array
from .gaussian_projector import XRay
from .scan import FORMAT, Mode, Scan, ScanError
from .voxel_projector import project as cast


@dataclass(frozen=True, eq=False)
class Projections:
    """A stack of views with its geometry.

    Parameters
    ----------
    images : ndarray, (K, V, U), float32
    scan : Scan
    kind : "xray", "mip", "minip" or "mean"
        What a pixel is: a line integral, in intensity times mm, or an intensity.

    Raises
    ------
    ValueError
        If there are more or fewer views, or other detectors, than the geometry has.
    """

    images: Float32Array
    scan: Scan
    kind: Mode = "xray"

    def __post_init__(self) -> None:
        images = np.asarray(self.images, np.float32)
        if images.ndim != 3:
            raise InputError(f"Projections are a stack of axes (view, v, u); this one has {images.ndim} axes.")
        views, wanted = len(images), len(self.scan)
        if views != wanted:
            raise InputError(f"There are {views} projections, and the geometry has {wanted} views.")
        pixels = images.shape[:0:-1]
        if pixels != self.scan.pixels:
            (a, b), (c, d) = pixels, self.scan.pixels
            raise InputError(
                f"The projections are of {a} x {b} pixels (u, v), the geometry's detector is of {c} x {d}."
            )
        object.__setattr__(self, "images", images)


def project(source: ArrayLike | GaussianVolume, scan: Scan, mode: Mode = "xray", device: str = "auto") -> Projections:
    """Return the projections of voxels or of Gaussians.

    X-rays of Gaussians are closed-form line integrals (`napari_gsvolume.tomography.gaussian_projector`), and
    their background is there in the box of their voxels. For the other modes Gaussians are sampled at their voxels.

    Parameters
    ----------
    source : array_like or GaussianVolume
        Of the scan's shape.
    scan : Scan
    mode : "xray", "mip", "minip" or "mean"
        Line integrals, or the largest, smallest or mean intensity along the ray.
    device : str
        As of `napari_gsvolume.devices.available_device`.

    Raises
    ------
    ValueError
        If the volume is not of the scan's shape, or not finite, or the device cannot be used.
    """
    device = available_device(device)
    if not isinstance(source, GaussianVolume):
        return Projections(cast(source, scan, mode, device=device), scan, mode)
    if source.grid.shape != scan.shape:
        raise InputError(f"The scan is of a volume of shape {scan.shape}, these Gaussians are of {source.grid.shape}.")
    if mode != "xray":
        return Projections(cast(source.sample(), scan, mode, device=device), scan, mode)
    numbers = (tensor.to(device) for tensor in (source.means, source.factors, source.weights))
    images = XRay(scan, device).predict(Gaussians(*numbers)).cpu().numpy()
    if source.background:
        for view, image in enumerate(images):
            image += np.float32(source.background) * box_lengths(scan, view)
    return Projections(images, scan)


def box_lengths(scan: Scan, view: int) -> Float32Array:
    """Return how far each ray of a view runs through the box of the volume's voxels, mm, ``(V, U)``."""
    starts, ways = scan.rays(view)
    half = np.array(scan.shape) * scan.voxel_size / 2
    with np.errstate(divide="ignore", invalid="ignore"):  # rays along a face: inf, or nan if they start in its plane
        ends = np.stack([(-half - starts) / ways, (half - starts) / ways])
    enter, leave = np.nanmax(ends.min(0), -1), np.nanmin(ends.max(0), -1)
    if scan.beam != "parallel":  # rays begin at their source
        enter = np.maximum(enter, 0)
    return np.asarray(np.maximum(leave - enter, 0), np.float32)


def geometry_beside(path: str | Path) -> Path:
    """Return the name of the geometry that goes with a stack: P.json of P.nii.gz."""
    path = Path(path)
    return path.with_name(path.name.removesuffix(".gz").removesuffix(".nii") + ".json")


def scan_beside(path: str | Path) -> Scan | None:
    """Return the geometry in the file beside a stack; None if there is none, or the file is about something else."""
    beside = geometry_beside(path)
    try:
        data = json.loads(beside.read_text(encoding="utf-8"))
        return Scan.from_dict(data) if isinstance(data, dict) and data.get("format") == FORMAT else None
    except (OSError, ValueError):
        return None


def write_projections(path: str | Path, projections: Projections, geometry: str | Path | None = None) -> None:
    """Write a stack as NIfTI of axes (u, v, view), and its geometry as JSON.

    Parameters
    ----------
    path : str or Path
        Ends in ``.nii`` or ``.nii.gz``. The header has the sizes of pixels along u and v.
    geometry : str or Path, optional
        ``P.json`` beside ``P.nii.gz`` if omitted.
    """
    from ..io.nifti import write_nifti

    scan = projections.scan
    du, dv = np.linalg.norm(scan.u[0]), np.linalg.norm(scan.v[0])
    write_nifti(path, projections.images, Grid(projections.images.shape, np.diag([1, dv, du, 1]), ("mm",) * 3))
    scan.save(geometry_beside(path) if geometry is None else geometry)


def read_projections(path: str | Path, geometry: str | Path | None = None) -> Projections:
    """Read a stack of axes (u, v, view) and its geometry.

    Parameters
    ----------
    path : str or Path
        NIfTI; of a single view the last axis may be missing.
    geometry : str or Path, optional
        JSON; ``P.json`` beside ``P.nii.gz`` if omitted.

    Raises
    ------
    OSError
        If a file is not there or cannot be read.
    ValueError
        If there is no geometry, if one of the files is not what it should be, or if they do not fit each other.
    """
    from ..io.nifti import read_nifti

    beside = geometry_beside(path) if geometry is None else Path(geometry)
    if geometry is None and not beside.exists():
        raise ScanError(f"{path} has no geometry: there is no {beside.name} beside it, and none was given.")
    image = read_nifti(path)
    if image.rgb or image.data.ndim > 3:
        raise FileFormatError(f"{path} is no stack of projections, whose axes are u, v and view.")
    stack = np.asarray(image.data, np.float32)
    if not np.isfinite(stack).all():
        raise FileFormatError(f"{path} holds {np.count_nonzero(~np.isfinite(stack)):,} NaN or infinite pixels.")
    try:
        return Projections(stack if stack.ndim == 3 else stack[None], Scan.load(beside))
    except ValueError as error:
        if isinstance(error, ScanError):  # names the file already
            raise
        raise FileFormatError(f"{path} and {beside.name} do not go together: {error}") from error
