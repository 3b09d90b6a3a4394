"""Projections of voxels and of Gaussians, and their files.

Line integrals are in intensity times mm. By the Beer-Lambert law the line integral p of attenuation, in 1 / mm, is the
optical depth: of I0 photons ``I0 exp(-p)`` are transmitted (docs/projections.md).
"""

from __future__ import annotations

import json
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from ..devices import available_device
from ..errors import FileFormatError, InputError
from ..gaussians import GaussianVolume
from ..grid import Grid
from ..operators.gaussian_sum import Gaussians
from ..progress import Budget, Step, finish
from ..types import Float32Array
from .gaussian_projector import GaussianProjector
from .scan import FORMAT, Mode, Scan, ScanError
from .voxel_projector import check_voxels, project_voxels

_PARTS = 25  # of a scan, between which progress is reported and a stop request is noticed


@dataclass(frozen=True, eq=False)
class Projections:
    """Stack of projections with its acquisition geometry.

    Parameters
    ----------
    images : ndarray, (K, V, U), float32
        Views, detector rows, detector columns.
    scan : Scan
        Acquisition geometry.
    kind : "xray", "mip", "minip" or "mean"
        Quantity of a pixel: line integral, in intensity times mm, or maximum, minimum or mean intensity.

    Raises
    ------
    ValueError
        If numbers of views or pixels differ between images and geometry.
    """

    images: Float32Array
    scan: Scan
    kind: Mode = "xray"

    def __post_init__(self) -> None:
        images = np.asarray(self.images, np.float32)
        if images.ndim != 3:
            raise InputError(f"Projections have 3 axes (view, v, u); these have {images.ndim} axes.")
        views, wanted = len(images), len(self.scan)
        if views != wanted:
            raise InputError(f"There are {views} projections, and the geometry has {wanted} views.")
        pixels = images.shape[:0:-1]
        if pixels != self.scan.pixels:
            (a, b), (c, d) = pixels, self.scan.pixels
            raise InputError(
                f"The projections have {a} x {b} pixels (u, v), the detector of the geometry has {c} x {d}."
            )
        object.__setattr__(self, "images", images)


@dataclass(frozen=True, eq=False)
class ProjectStep(Step):
    """State of a projection run.

    Attributes
    ----------
    done, count : int
        Number of finished views, and of all views.
    """

    done: int
    count: int

    @property
    def has_result(self) -> bool:
        """False: an incomplete scan is seldom worth keeping."""
        return False


def project(
    volume: ArrayLike | GaussianVolume,
    scan: Scan,
    mode: Mode = "xray",
    device: str = "auto",
    *,
    budget: Budget | None = None,
) -> Projections:
    """Project a volume or Gaussians.

    Parameters
    ----------
    volume : array_like or GaussianVolume, (Z, Y, X)
        Voxels or Gaussians, of the shape of the scan's volume. Line integrals of attenuation need intensities in
        1 / mm, see `hounsfield_to_attenuation`.
    scan : Scan
        Acquisition geometry.
    mode : "xray", "mip", "minip" or "mean"
        Line integrals, in intensity times mm; or maximum, minimum or mean intensity projections.
    device : str
        Compute device, as in `napari_gsvolume.devices.available_device`.
    budget : Budget, optional
        Stop request of the run; the result of a run that is stopped has the views done so far.

    Returns
    -------
    Projections
        Images ``(K, V, U)`` with their geometry.

    Raises
    ------
    ValueError
        If the volume does not have the scan's shape, is not finite, or the device cannot be used.

    See Also
    --------
    project_steps : The same as a generator, for a progress bar.
    napari_gsvolume.reconstruction.reconstruct : The inverse problem.

    Notes
    -----
    Voxels are projected by ray casting: trilinear interpolation at equidistant samples along each ray [1]_. Line
    integrals of Gaussians are evaluated in closed form [2]_: a 3D Gaussian projects to a 2D Gaussian on the detector,
    exactly for parallel beams, and in the local affine approximation for fan and cone beams. The background of
    Gaussians fills the box of their voxels. For maximum, minimum and mean projections Gaussians are sampled at their
    voxels first.

    References
    ----------
    .. [1] M. Levoy, "Display of surfaces from volume data", IEEE Comput. Graph. Appl. 8(3), 29-37, 1988.
    .. [2] M. Zwicker, H. Pfister, J. van Baar and M. Gross, "EWA volume splatting", IEEE Visualization, 29-36, 2001.

    Examples
    --------
    >>> from napari_gsvolume import phantoms
    >>> from napari_gsvolume.tomography import circular_scan, project, spread_angles
    >>> volume, _ = phantoms.vessel_phantom(16)
    >>> scan = circular_scan(volume.shape, 1.0, spread_angles(4, 180))
    >>> project(volume, scan).images.shape
    (4, 16, 23)
    """
    return finish(project_steps(volume, scan, mode, device, budget=budget))


def project_steps(
    volume: ArrayLike | GaussianVolume,
    scan: Scan,
    mode: Mode = "xray",
    device: str = "auto",
    *,
    budget: Budget | None = None,
) -> Generator[ProjectStep, None, Projections]:
    """Project a volume or Gaussians, a few views at a time.

    Parameters and errors are those of `project`.

    Yields
    ------
    ProjectStep
        Number of views done so far.

    Returns
    -------
    Projections
        All views; if the run is stopped, the views done so far.

    Examples
    --------
    >>> import numpy as np
    >>> from napari_gsvolume.tomography import circular_scan, project_steps
    >>> [step.message for step in project_steps(np.ones((4, 4, 4)), circular_scan((4, 4, 4), 1.0, [0, 90]))]
    ['0 of 2 views', '1 of 2 views']
    """
    device = available_device(device)
    voxels: ArrayLike | GaussianVolume = volume
    if isinstance(volume, GaussianVolume):
        if volume.grid.shape != scan.shape:
            raise InputError(f"The scan is of a volume of shape {scan.shape}, these Gaussians are {volume.grid.shape}.")
        if mode != "xray":
            voxels = volume.sample()
    else:
        voxels = check_voxels(volume, scan)
    return _project_steps(voxels, scan, mode, device, budget or Budget())


def _project_steps(
    volume: ArrayLike | GaussianVolume, scan: Scan, mode: Mode, device: str, budget: Budget
) -> Generator[ProjectStep, None, Projections]:
    count, done, images = len(scan), 0, list[Float32Array]()
    for views in np.array_split(np.arange(count), min(count, _PARTS)):
        if done and budget.stop():
            break
        yield ProjectStep(done / count, f"{done} of {count} views", done, count)
        part = scan.select(views)
        if isinstance(volume, GaussianVolume):
            images.append(_line_integrals(volume, part, device))
        else:
            images.append(project_voxels(volume, part, mode, device=device))
        done += len(views)
    return Projections(np.concatenate(images), scan.select(range(done)), mode)


def _line_integrals(volume: GaussianVolume, scan: Scan, device: str) -> Float32Array:
    tensors = (tensor.to(device) for tensor in (volume.means, volume.factors, volume.weights))
    images: Float32Array = GaussianProjector(scan, device).predict(Gaussians(*tensors)).cpu().numpy()
    if volume.background:
        for view, image in enumerate(images):
            image += np.float32(volume.background) * box_lengths(scan, view)
    return images


def box_lengths(scan: Scan, view: int) -> Float32Array:
    """Return the length of each ray of a view inside the box of the volume's voxels, mm, ``(V, U)``."""
    starts, directions = scan.rays(view)
    half = np.array(scan.shape) * scan.voxel_size / 2
    with np.errstate(divide="ignore", invalid="ignore"):  # rays along a face: inf, or nan if they start in its plane
        ends = np.stack([(-half - starts) / directions, (half - starts) / directions])
    enter, leave = np.nanmax(ends.min(0), -1), np.nanmin(ends.max(0), -1)
    if scan.beam != "parallel":  # rays start at the source
        enter = np.maximum(enter, 0)
    return np.asarray(np.maximum(leave - enter, 0), np.float32)


def sidecar_path(path: str | Path) -> Path:
    """Return the path of the geometry file of a stack of projections: P.json for P.nii.gz."""
    path = Path(path)
    return path.with_name(path.name.removesuffix(".gz").removesuffix(".nii") + ".json")


def sidecar_scan(path: str | Path) -> Scan | None:
    """Return the geometry of the sidecar file of a stack of projections; None if there is no valid geometry file."""
    try:
        data = json.loads(sidecar_path(path).read_text(encoding="utf-8"))
        return Scan.from_dict(data) if isinstance(data, dict) and data.get("format") == FORMAT else None
    except (OSError, ValueError):
        return None


def write_projections(path: str | Path, projections: Projections, geometry: str | Path | None = None) -> None:
    """Write a stack of projections as NIfTI with axes (u, v, view), and its geometry as JSON.

    Parameters
    ----------
    path : str or Path
        File that ends in ``.nii`` or ``.nii.gz``. The header has the pixel pitch along u and v.
    projections : Projections
        Stack to write.
    geometry : str or Path, optional
        Geometry file; ``P.json`` for ``P.nii.gz`` if omitted.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> from napari_gsvolume.tomography import circular_scan, project, read_projections, write_projections
    >>> projections = project(np.ones((4, 4, 4)), circular_scan((4, 4, 4), 1.0, [0, 90]))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_projections(f"{folder}/P.nii.gz", projections)
    ...     same = read_projections(f"{folder}/P.nii.gz")
    >>> bool((same.images == projections.images).all())
    True
    """
    from ..io.nifti import write_nifti

    scan = projections.scan
    du, dv = np.linalg.norm(scan.u[0]), np.linalg.norm(scan.v[0])
    write_nifti(path, projections.images, Grid(projections.images.shape, np.diag([1, dv, du, 1]), ("mm",) * 3))
    scan.save(sidecar_path(path) if geometry is None else geometry)


def read_projections(path: str | Path, geometry: str | Path | None = None) -> Projections:
    """Read a stack of projections and its geometry.

    Parameters
    ----------
    path : str or Path
        NIfTI file with axes (u, v, view); the last axis may be missing for a single view.
    geometry : str or Path, optional
        Geometry file, JSON; ``P.json`` for ``P.nii.gz`` if omitted.

    Returns
    -------
    Projections

    Raises
    ------
    OSError
        If a file does not exist or cannot be read.
    FileFormatError
        If the stack is not valid, or has another number of views or pixels than the geometry.
    ScanError
        If there is no geometry, or it is not valid. Both errors are ValueErrors.

    Examples
    --------
    See `write_projections`.
    """
    from ..io.nifti import read_nifti

    beside = sidecar_path(path) if geometry is None else Path(geometry)
    if geometry is None and not beside.exists():
        raise ScanError(f"{path} has no geometry: there is no {beside.name} beside it, and none was given.")
    image = read_nifti(path)
    if image.rgb or image.data.ndim > 3:
        raise FileFormatError(f"{path} is not a stack of projections with axes u, v and view.")
    stack = np.asarray(image.data, np.float32)
    if not np.isfinite(stack).all():
        raise FileFormatError(f"{path} holds {np.count_nonzero(~np.isfinite(stack)):,} NaN or infinite pixels.")
    try:
        return Projections(stack if stack.ndim == 3 else stack[None], Scan.load(beside))
    except ValueError as error:
        if isinstance(error, ScanError):  # its message names the file
            raise
        raise FileFormatError(f"{path} and {beside.name} do not match: {error}") from error
