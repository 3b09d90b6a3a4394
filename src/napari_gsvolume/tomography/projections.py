"""Projections: made from voxels or Gaussians, turned into intensities and back, made noisy, read and written.

A line integral is intensity times millimetres. Beer and Lambert's law makes it an X-ray: of attenuation, in 1 / mm, it
is the optical depth p, and of I0 photons ``I0 exp(-p)`` come through (docs/projections.md).
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..devices import available_device
from ..gaussians import GaussianVolume
from ..grid import Grid
from ..io.gaussians import FileFormatError
from ..operators.gaussian_sum import Gaussians
from .gaussian_projector import XRay
from .scan import FORMAT, Mode, Scan, ScanError
from .voxel_projector import project as cast

Floats = NDArray[np.float32]

WATER = 0.0193
"""Attenuation of water at 70 keV, about the mean energy of a CT scanner's beam, in 1 / mm."""
DEPTH = 4.0
"""Optical depth of the largest line integral where intensities are no attenuation: 1.8 % of the photons come through"""


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

    images: Floats
    scan: Scan
    kind: Mode = "xray"

    def __post_init__(self) -> None:
        images = np.asarray(self.images, np.float32)
        if images.ndim != 3:
            raise ValueError(f"Projections are a stack of axes (view, v, u); this one has {images.ndim} axes.")
        views, wanted = len(images), len(self.scan)
        if views != wanted:
            raise ValueError(f"There are {views} projections, and the geometry has {wanted} views.")
        pixels = images.shape[:0:-1]
        if pixels != self.scan.pixels:
            (a, b), (c, d) = pixels, self.scan.pixels
            raise ValueError(
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
        raise ValueError(f"The scan is of a volume of shape {scan.shape}, these Gaussians are of {source.grid.shape}.")
    if mode != "xray":
        return Projections(cast(source.sample(), scan, mode, device=device), scan, mode)
    numbers = (tensor.to(device) for tensor in (source.means, source.factors, source.weights))
    images = XRay(scan, device).predict(Gaussians(*numbers)).cpu().numpy()
    if source.background:
        for view, image in enumerate(images):
            image += np.float32(source.background) * box_lengths(scan, view)
    return Projections(images, scan)


def box_lengths(scan: Scan, view: int) -> Floats:
    """Return how far each ray of a view runs through the box of the volume's voxels, mm, ``(V, U)``."""
    starts, ways = scan.rays(view)
    half = np.array(scan.shape) * scan.voxel_size / 2
    with np.errstate(divide="ignore", invalid="ignore"):  # rays along a face: inf, or nan if they start in its plane
        ends = np.stack([(-half - starts) / ways, (half - starts) / ways])
    enter, leave = np.nanmax(ends.min(0), -1), np.nanmin(ends.max(0), -1)
    if scan.beam != "parallel":  # rays begin at their source
        enter = np.maximum(enter, 0)
    return np.asarray(np.maximum(leave - enter, 0), np.float32)


def attenuation(intensities: ArrayLike, i0: float, flat: ArrayLike | None = None) -> Floats:
    """Return line integrals of attenuation, ``-log(I / (I0 flat))``.

    Parameters
    ----------
    intensities : array_like, (K, V, U)
        What the detector has counted, its dark signal subtracted.
    i0 : float
        The intensity where nothing is in the way; 1 if `flat` has it.
    flat : array_like, (V, U) or (K, V, U), optional
        How much of `i0` each pixel shows where nothing is in the way; 1 everywhere if omitted.

    Raises
    ------
    ValueError
        If an intensity, `i0` or a pixel of the flat field is not a positive number, or the flat field is of another
        detector.
    """
    images = np.asarray(intensities, np.float64)
    bad = int(np.count_nonzero(~(images > 0) | ~np.isfinite(images)))
    if bad:
        raise ValueError(
            f"{bad:,} of {images.size:,} intensities are zero, negative or no numbers and have no logarithm; set them "
            "to one count, or check that the dark signal was not subtracted twice."
        )
    return np.asarray(-np.log(images / _open(i0, flat, images.shape)), np.float32)


def intensities(line_integrals: ArrayLike, i0: float, flat: ArrayLike | None = None) -> Floats:
    """Return what comes through, ``I0 flat exp(-p)``: the inverse of `attenuation`."""
    images = np.asarray(line_integrals, np.float64)
    return np.asarray(np.exp(-images) * _open(i0, flat, images.shape), np.float32)


def _open(i0: float, flat: ArrayLike | None, shape: tuple[int, ...]) -> Any:
    """Return the intensity where nothing is in the way."""
    if not 0 < i0 < math.inf:
        raise ValueError(f"The intensity I0 where nothing is in the way has to be positive; got {i0:g}.")
    if flat is None:
        return i0
    field = np.asarray(flat, np.float64)
    if field.shape not in (shape, shape[1:]):
        raise ValueError(f"The flat field is of shape {field.shape}, the images are of {shape[1:]} pixels (v, u).")
    if not ((field > 0) & np.isfinite(field)).all():
        raise ValueError("The flat field holds pixels that are not positive numbers; replace them by their neighbours.")
    return i0 * field


@overload
def hounsfield_to_attenuation(hu: GaussianVolume, water: float = WATER) -> GaussianVolume: ...
@overload
def hounsfield_to_attenuation(hu: ArrayLike, water: float = WATER) -> Floats: ...
def hounsfield_to_attenuation(hu: ArrayLike | GaussianVolume, water: float = WATER) -> Floats | GaussianVolume:
    """Return the attenuation ``water (1 + HU / 1000)``, in the unit of `water`: 1 / mm.

    Voxels get at least 0; Gaussians stay a sum of Gaussians, which may fall a little below.
    """
    if isinstance(hu, GaussianVolume):
        background = water * (1 + hu.background / 1000)
        return replace(hu, weights=hu.weights * (water / 1000), background=background)
    return np.maximum(water * (1 + np.asarray(hu, np.float32) / 1000), 0).astype(np.float32)


def with_noise(
    images: ArrayLike,
    photons: float | None = None,
    sigma: float | None = None,
    seed: int = 0,
    depth: float | None = DEPTH,
) -> Floats:
    """Return projections with noise.

    Parameters
    ----------
    images : array_like, (K, V, U)
        Line integrals; with `sigma` alone, any images.
    photons : float, optional
        Counts a pixel where nothing is in the way. They are Poisson's, at least one, and become line integrals again,
        in the unit of `images`.
    sigma : float, optional
        Standard deviation of Gaussian noise that is added (after that of photons), in the unit of `images`.
    seed : int
    depth : float or None
        Line integrals of any intensity are no optical depths: they are scaled such that the largest of all views
        becomes this one. None if the intensities are attenuation in 1 / mm, and so nothing is to be scaled.

    Raises
    ------
    ValueError
        If a number is not positive, or no line integral is.
    """
    random = np.random.default_rng(seed)
    noisy = np.asarray(images, np.float64)
    if photons is not None:
        scale = _depth_scale(noisy, depth)
        counts = np.maximum(random.poisson(_mean_counts(noisy * scale, photons)), 1)
        noisy = -np.log(counts / photons) / scale
    if sigma is not None:
        if not 0 < sigma < math.inf:
            raise ValueError(f"The standard deviation of noise has to be positive; got {sigma:g}.")
        noisy = noisy + random.normal(0, sigma, noisy.shape)
    return noisy.astype(np.float32)


def noise_variance(images: ArrayLike, photons: float, depth: float | None = DEPTH) -> Floats:
    """Return the variance of each line integral, 1 / counts, in the unit of `images` squared.

    The counts are those expected, at least one. Parameters are as in `with_noise`; noisy images, too, give about the
    variance of their pixels.
    """
    values = np.asarray(images, np.float64)
    scale = _depth_scale(values, depth)
    return (1 / np.maximum(_mean_counts(values * scale, photons), 1) / scale**2).astype(np.float32)


def _depth_scale(images: NDArray[np.float64], depth: float | None) -> float:
    """Return the factor that makes line integrals optical depths."""
    if depth is None:
        return 1.0
    largest = float(images.max())
    if not 0 < depth < math.inf:
        raise ValueError(f"The optical depth of the largest line integral has to be positive; got {depth:g}.")
    if not largest > 0:
        raise ValueError("No line integral is positive, so there is nothing that could absorb photons.")
    return depth / largest


_MOST_COUNTS = 1e15  # numpy's Poisson numbers end at 9e18


def _mean_counts(depths: NDArray[np.float64], photons: float) -> NDArray[np.float64]:
    if not 0 < photons < math.inf:
        raise ValueError(f"The number of photons a pixel has to be positive; got {photons:g}.")
    counts = photons * np.exp(-depths)
    if counts.max() > _MOST_COUNTS:
        raise ValueError(f"Up to {counts.max():.0e} photons a pixel are too many to be counted; ask for fewer.")
    return counts


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
