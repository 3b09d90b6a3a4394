"""Shell commands of tomography: ``gsvolume project``, ``reconstruct`` and ``from-slices``."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ..errors import InputError
from ..progress import Budget
from ..reconstruction.settings import ReconstructSettings
from ..tomography.presets import DEFAULT_ARCS, DEFAULT_VIEWS, spread_angles
from ..tomography.scan import Beam, Mode, Scan, circular_scan
from ..units import voxel_size_mm
from .app import app
from .files import check_outputs, print_files, select_volume, write_report
from .options import GAUSSIAN_SUFFIXES, IMAGE_SUFFIXES, REPORT_SUFFIXES, ErrorsOnlyOption, with_settings
from .progress import StopSignal, run_steps
from .sections import TOMOGRAPHY

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..gaussians import GaussianVolume
    from ..grid import Grid
    from ..io.nifti import NiftiImage
    from ..reconstruction import ReconstructionResult, ReconstructStep

_Out = Annotated[Path | None, typer.Option(metavar="M", help="Output: Gaussians, .gsv or .safetensors.")]
_Reconstruction = Annotated[
    Path | None, typer.Option(metavar="R.nii.gz", help="Output: reconstructed volume, the sum of the Gaussians.")
]
_Voxels = Annotated[
    Path | None, typer.Option(metavar="V.nii.gz", help="Output: voxels that the Gaussians were fitted to.")
]
_Report = Annotated[Path | None, typer.Option(metavar="REP.json", help="Output: quality figures and history.")]
_GeometryFile = Annotated[
    Path | None, typer.Option(metavar="GEO.json", help="Geometry file of the projections (default: P.json).")
]

_OPTIONS = {"pixels": "detector"}  # options whose names differ from the parameters of `circular_scan`


@app.command(rich_help_panel=TOMOGRAPHY)
def project(
    source: Annotated[
        Path,
        typer.Argument(metavar="IN.nii.gz|M", help="Volume, .nii or .nii.gz, or Gaussians, .gsv or .safetensors."),
    ],
    out: Annotated[
        Path, typer.Option(metavar="P.nii.gz", help="Output: stack of projections, axes (u, v, view), float32.")
    ],
    geometry: Annotated[
        str, typer.Option(metavar="parallel|fan|cone|GEO.json", help="Beam of a circular scan, or a geometry file.")
    ] = "parallel",
    views: Annotated[
        int | None, typer.Option(min=1, help=f"Number of views of a circular scan (default: {DEFAULT_VIEWS}).")
    ] = None,
    arc: Annotated[
        float | None,
        typer.Option(help="Arc of the views of a circular scan, degrees (default: parallel 180, fan and cone 360)."),
    ] = None,
    detector: Annotated[
        tuple[int, int] | None, typer.Option(metavar="U V", help="Numbers of detector pixels along u and v.")
    ] = None,
    pixel_size: Annotated[
        tuple[float, float] | None, typer.Option(metavar="DU DV", help="Pixel pitch along u and v, mm.")
    ] = None,
    source_to_axis: Annotated[
        float | None, typer.Option(help="Distance from the source of a fan or cone to the rotation axis, mm.")
    ] = None,
    source_to_detector: Annotated[
        float | None, typer.Option(help="Distance from the source of a fan or cone to the detector, mm.")
    ] = None,
    mode: Annotated[
        Mode, typer.Option(help="Line integrals (xray), or maximum, minimum or mean intensity projections.")
    ] = "xray",
    hu: Annotated[
        bool, typer.Option("--hu", help="Convert the volume from Hounsfield units to attenuation, 1 / mm.")
    ] = False,
    noise_photons: Annotated[
        float | None, typer.Option(help="Unattenuated photons per pixel, for Poisson noise (xray only).")
    ] = None,
    noise_sigma: Annotated[
        float | None, typer.Option(help="Standard deviation of additive Gaussian noise, in the unit of a pixel.")
    ] = None,
    depth: Annotated[
        float | None,
        typer.Option(help="Optical depth of the largest line integral, for --noise-photons (default without --hu: 4)."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the noise.")] = 0,
    time_point: Annotated[int | None, typer.Option(help="Time point of a 4D image, from 0.")] = None,
    geometry_out: Annotated[
        Path | None, typer.Option(metavar="GEO.json", help="Output: geometry file (default: P.json).")
    ] = None,
) -> None:
    """Project a volume or Gaussians: X-rays, or maximum, minimum or mean intensity projections.

    Lengths are in mm; the header of the volume has its voxel size. At gantry angle a the rays of a circular scan run
    along (x, y) = (-sin a, cos a).
    """
    from ..tomography.beer_lambert import hounsfield_to_attenuation
    from ..tomography.noise import OPTICAL_DEPTH, add_noise
    from ..tomography.projections import Projections, project_steps, sidecar_path, write_projections

    if noise_photons is not None and mode != "xray":
        raise InputError(f"--noise-photons needs line integrals; use --noise-sigma with --mode {mode}.")
    if depth is not None and noise_photons is None:
        raise InputError("--depth scales line integrals for --noise-photons; give both, or neither.")
    sidecar = sidecar_path(out) if geometry_out is None else geometry_out
    inputs = [source] if geometry in DEFAULT_ARCS else [source, Path(geometry)]
    files = check_outputs(inputs, out=(out, IMAGE_SUFFIXES), **{"geometry-out": (sidecar, REPORT_SUFFIXES)})
    volume, grid = _read(source, time_point)
    options = {
        "views": views,
        "arc": arc,
        "pixels": detector,
        "pixel_size": pixel_size,
        "source_to_axis": source_to_axis,
        "source_to_detector": source_to_detector,
    }
    scan = _scan(geometry, grid, {name: value for name, value in options.items() if value is not None})
    # Ctrl-C ends the command: an incomplete scan is not worth keeping, so the stop signal is not installed.
    steps = project_steps(hounsfield_to_attenuation(volume) if hu else volume, scan, mode)
    projections = run_steps(steps, StopSignal())
    if noise_photons is not None or noise_sigma is not None:
        scaled = depth if hu or depth is not None else OPTICAL_DEPTH
        images = add_noise(projections.images, noise_photons, noise_sigma, seed, scaled)
        projections = Projections(images, scan, projections.kind)
    write_projections(out, projections, sidecar)
    nu, nv = scan.pixels
    print(f"{len(scan)} views of {nu} x {nv} pixels, {projections.images.min():.4g} to {projections.images.max():.4g}")
    print_files(files)


def _read(source: Path, time_point: int | None) -> tuple[NDArray[Any] | GaussianVolume, Grid]:
    """Return the volume or the Gaussians to project, and their grid."""
    volume: NDArray[Any] | GaussianVolume
    if source.name.lower().endswith(GAUSSIAN_SUFFIXES):
        from ..gaussians import GaussianVolume

        if time_point is not None:
            raise InputError(f"{source} has no time axis; omit --time-point.")
        volume = GaussianVolume.load(source)
        grid = volume.grid
    else:
        from ..io.nifti import read_nifti

        image = read_nifti(source)
        volume, grid = select_volume(image, source, time_point), image.grid
    if grid.ndim != 3:
        raise InputError(f"{source} is an image with two axes; a projection needs a volume.")
    return volume, grid


def _scan(geometry: str, grid: Grid, options: dict[str, Any]) -> Scan:
    """Return the circular scan of the options, or the scan of a geometry file."""
    if geometry not in DEFAULT_ARCS:
        if not Path(geometry).is_file():
            raise InputError(f"--geometry {geometry}: there is no such file; the beams are {', '.join(DEFAULT_ARCS)}.")
        if options:
            given = ", ".join(f"--{_OPTIONS.get(name, name.replace('_', '-'))}" for name in options)
            raise InputError(f"{given}: {geometry} defines the geometry; omit the options of a circular scan.")
        return Scan.load(geometry).of_grid(grid)
    beam: Beam = next(name for name in DEFAULT_ARCS if name == geometry)
    far = {"source_to_axis", "source_to_detector"} & set(options)
    if beam == "parallel" and far:
        raise InputError(f"--{min(far).replace('_', '-')}: a parallel beam has no source; choose fan or cone.")
    arc = options.pop("arc", DEFAULT_ARCS[beam])
    if not 0 < arc <= 360:
        raise InputError(f"--arc {arc:g}: the arc has to be more than 0 and at most 360 degrees.")
    return circular_scan(
        grid.shape, voxel_size_mm(grid), spread_angles(options.pop("views", DEFAULT_VIEWS), arc), beam, **options
    )


@app.command(rich_help_panel=TOMOGRAPHY)
@with_settings(ReconstructSettings)
def reconstruct(
    projections: Annotated[Path, typer.Argument(metavar="P.nii.gz", help="Stack of projections, axes (u, v, view).")],
    geometry: _GeometryFile = None,
    like: Annotated[
        Path | None,
        typer.Option(metavar="IN.nii.gz", help="Volume that sets the voxel grid, and is compared with (PSNR, SSIM)."),
    ] = None,
    i0: Annotated[
        float | None,
        typer.Option(help="Unattenuated intensity, for stacks of raw intensities instead of line integrals."),
    ] = None,
    out: _Out = None,
    reconstruction: _Reconstruction = None,
    voxels: _Voxels = None,
    report: _Report = None,
    quiet: ErrorsOnlyOption = False,
    **settings: Any,
) -> None:
    """Reconstruct a volume, as Gaussians, from few X-ray projections.

    Ctrl-C ends the reconstruction, keeps its current state and writes the files. A second Ctrl-C aborts.
    """
    checked = ReconstructSettings(**settings)
    outputs = _Outputs(out, reconstruction, voxels, report)
    files = outputs.checked([p for p in (projections, geometry, like) if p is not None])
    from ..reconstruction.run import reconstruct_steps
    from ..tomography.beer_lambert import attenuation
    from ..tomography.projections import read_projections

    stack = read_projections(projections, geometry)
    image = None if like is None else _read_image(like)
    images = stack.images if i0 is None else attenuation(stack.images, i0)
    stop = StopSignal()
    steps = reconstruct_steps(
        images,
        scan=stack.scan,
        grid=None if image is None else image.grid,
        truth=None if image is None else image.data,
        budget=Budget(stop=stop),
        **checked.model_dump(),
    )
    _finish(steps, stop, image, outputs, files, quiet)


@app.command(rich_help_panel=TOMOGRAPHY)
@with_settings(ReconstructSettings)
def from_slices(
    image: Annotated[Path, typer.Argument(metavar="IN.nii.gz", help="Stack of slices, or volume to take them from.")],
    keep_every: Annotated[
        int, typer.Option(min=1, help="Slice spacing k: one slice in k is known, the other slices are compared with.")
    ] = 1,
    axis: Annotated[Literal["z", "y", "x"], typer.Option(help="Axis along which slices are stacked.")] = "z",
    thickness: Annotated[
        float, typer.Option(min=0, help="Slice thickness (full width at half maximum of the slice profile), mm.")
    ] = 0.0,
    other_stack: Annotated[
        list[Path] | None,
        typer.Option(metavar="STACK.nii.gz", help="Another stack of the same volume, of any orientation; repeatable."),
    ] = None,
    other_thickness: Annotated[
        list[float] | None, typer.Option(min=0, help="Slice thickness of each --other-stack, mm (default: 0).")
    ] = None,
    projections: Annotated[
        Path | None, typer.Option(metavar="P.nii.gz", help="X-ray projections around the centre of the volume.")
    ] = None,
    geometry: _GeometryFile = None,
    out: _Out = None,
    reconstruction: _Reconstruction = None,
    voxels: _Voxels = None,
    report: _Report = None,
    quiet: ErrorsOnlyOption = False,
    **settings: Any,
) -> None:
    """Reconstruct a volume, as Gaussians, from some of its slices.

    With --keep-every 1 all slices are known, and the volume is reconstructed with isotropic voxels.
    """
    checked = ReconstructSettings(**settings)
    outputs = _Outputs(out, reconstruction, voxels, report)
    others = other_stack or []
    thicknesses = other_thickness or [0.0] * len(others)
    if len(thicknesses) != len(others):
        raise InputError(
            f"There are {len(others)} --other-stack and {len(thicknesses)} --other-thickness; give one for each."
        )
    if geometry is not None and projections is None:
        raise InputError("--geometry belongs to --projections; give both, or neither.")
    files = outputs.checked([p for p in (image, *others, projections, geometry) if p is not None])
    import numpy as np

    from ..reconstruction.problem import MeasurementInput, SliceStack, slice_axis
    from ..reconstruction.run import reconstruct_steps
    from ..reconstruction.slice_metrics import cubic_spline, missing_psnr
    from ..tomography.projections import read_projections

    source, along = _read_image(image), "zyx".index(axis)
    known = np.arange(source.data.shape[along]) % keep_every == 0
    first = SliceStack(source.data, source.grid, along, keep_every, thickness)
    measurements: list[MeasurementInput] = [first]
    for path, other_thick in zip(others, thicknesses, strict=True):
        other = _read_image(path)
        measurements.append(SliceStack(other.data, other.grid, slice_axis(other.grid), thickness=other_thick))
    if projections is not None:
        measurements.append(read_projections(projections, geometry))

    def missing_slices(result: ReconstructionResult) -> dict[str, float]:
        if known.all():
            return {}
        return {
            "psnr_missing_db": missing_psnr(result.reconstruction, source.data, known, along),
            "psnr_missing_cubic_db": missing_psnr(cubic_spline(source.data, known, along), source.data, known, along),
        }

    stop = StopSignal()
    steps = reconstruct_steps(
        measurements,
        grid=first.reconstruction_grid(),
        truth=None if keep_every == 1 else source.data,
        budget=Budget(stop=stop),
        **checked.model_dump(),
    )
    _finish(steps, stop, source, outputs, files, quiet, missing_slices)


@dataclass(frozen=True)
class _Outputs:
    """Files to write."""

    out: Path | None
    reconstruction: Path | None
    voxels: Path | None
    report: Path | None

    def checked(self, inputs: list[Path]) -> list[Path]:
        """Return the files that are wanted; raise an error if one could not be written."""
        return check_outputs(
            inputs,
            out=(self.out, GAUSSIAN_SUFFIXES),
            reconstruction=(self.reconstruction, IMAGE_SUFFIXES),
            voxels=(self.voxels, IMAGE_SUFFIXES),
            report=(self.report, REPORT_SUFFIXES),
        )


def _read_image(path: Path) -> NiftiImage:
    from ..io.nifti import read_nifti

    image = read_nifti(path)
    volume = select_volume(image, path, None)
    if volume.ndim != 3:
        raise InputError(f"{path} is an image with two axes; a volume is needed.")
    return image


def _finish(
    steps: Generator[ReconstructStep, None, ReconstructionResult],
    stop: StopSignal,
    source: NiftiImage | None,
    outputs: _Outputs,
    files: list[Path],
    quiet: bool,
    more: Callable[[ReconstructionResult], dict[str, float]] = lambda result: {},
) -> None:
    """Run a reconstruction behind a progress bar, write its files, and print its quality."""
    from ..io.nifti import write_nifti

    with stop:
        result = run_steps(steps, stop, quiet)
        figures = result.report() | (others := more(result))
        grid = result.gaussians.grid
        if outputs.out is not None:
            result.gaussians.save(outputs.out)
        like = source if source is not None and source.grid.shape == grid.shape else None
        for path, volume in ((outputs.reconstruction, result.reconstruction), (outputs.voxels, result.voxels)):
            if path is not None:
                write_nifti(path, volume, grid, like=like)
        if outputs.report is not None:
            write_report(outputs.report, figures)
    if quiet:
        return
    print(result.message)
    psnr = "" if result.psnr_db is None else f"PSNR {result.psnr_db:.2f} dB, "
    print(
        f"{psnr}data fidelity {result.data_fidelity:.3g}, {len(result.gaussians):,} Gaussians, {result.seconds:.1f} s"
    )
    if others:
        print(
            f"Missing slices: {others['psnr_missing_db']:.2f} dB, "
            f"cubic spline: {others['psnr_missing_cubic_db']:.2f} dB"
        )
    print_files(files)
