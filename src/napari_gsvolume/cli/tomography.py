"""The shell commands about scanners: ``gsvolume project``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import InputError
from ..tomography.presets import DEFAULT_ARCS, DEFAULT_VIEWS, spread_angles
from ..tomography.scan import Beam, Mode, Scan, circular_scan
from ..units import voxel_size_mm
from .app import app
from .files import check_outputs, print_files, select_volume
from .options import GAUSSIAN_SUFFIXES, IMAGE_SUFFIXES, REPORT_SUFFIXES

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..gaussians import GaussianVolume
    from ..grid import Grid
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from ..reconstruction.settings import ReconstructSettings
from .files import write_report
from .options import with_settings
from .progress import StopSignal, progress_bar

if TYPE_CHECKING:
    from ..io.nifti import NiftiImage
    from ..reconstruction.run import ReconstructionResult, Recovery

_Out = Annotated[Path | None, typer.Option(metavar="M", help="Write the Gaussians, .gsv or .safetensors.")]
_Reconstruction = Annotated[Path | None, typer.Option(metavar="R.nii.gz", help="Write the volume recovered.")]
_Voxels = Annotated[
    Path | None, typer.Option(metavar="V.nii.gz", help="Write the voxels that the Gaussians were fitted to.")
]
_Report = Annotated[Path | None, typer.Option(metavar="REP.json", help="Write figures and history.")]

_OPTIONS = {"pixels": "detector"}  # where they are not named as the arguments of `circular_scan`


@app.command()
def project(
    source: Annotated[
        Path,
        typer.Argument(metavar="IN.nii.gz|M", help="A volume, .nii or .nii.gz, or Gaussians, .gsv or .safetensors."),
    ],
    out: Annotated[Path, typer.Option(metavar="P.nii.gz", help="The stack to write, axes (u, v, view), float32.")],
    geometry: Annotated[
        str, typer.Option(metavar="parallel|fan|cone|GEO.json", help="The beam of an orbit around z, or a file.")
    ] = "parallel",
    views: Annotated[int | None, typer.Option(min=1, help="Views of the orbit, 50 if not given.")] = None,
    arc: Annotated[
        float | None,
        typer.Option(help="Degrees over which the views are spread, from 0: 180 if not given, of fans and cones 360."),
    ] = None,
    detector: Annotated[tuple[int, int] | None, typer.Option(metavar="U V", help="Pixels along u and v.")] = None,
    pixel_size: Annotated[
        tuple[float, float] | None, typer.Option(metavar="DU DV", help="Of the detector, mm.")
    ] = None,
    source_to_axis: Annotated[float | None, typer.Option(help="Of fans and cones, mm.")] = None,
    source_to_detector: Annotated[float | None, typer.Option(help="Of fans and cones, mm.")] = None,
    mode: Annotated[Mode, typer.Option(help="Line integrals; largest, smallest or mean intensity.")] = "xray",
    hu: Annotated[bool, typer.Option("--hu", help="Turn Hounsfield units into attenuation, 1 / mm, first.")] = False,
    noise_photons: Annotated[float | None, typer.Option(help="Photons a pixel: Poisson noise, of xray only.")] = None,
    noise_sigma: Annotated[float | None, typer.Option(help="Standard deviation of Gaussian noise.")] = None,
    depth: Annotated[
        float | None,
        typer.Option(help="Optical depth of the largest line integral, for --noise-photons; 4 without --hu."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the noise.")] = 0,
    time_point: Annotated[int | None, typer.Option(help="Which volume of a 4D image to project, from 0.")] = None,
    geometry_out: Annotated[
        Path | None, typer.Option(metavar="GEO.json", help="Where to write the geometry; P.json if not given.")
    ] = None,
) -> None:
    """Project a volume or Gaussians: X-rays, or largest, smallest or mean intensities along rays.

    Lengths are in mm: voxels as the header has them. An orbit's view at angle a integrates along (x, y) = (-sin a,
    cos a).
    """
    from ..tomography.beer_lambert import hounsfield_to_attenuation
    from ..tomography.noise import OPTICAL_DEPTH, add_noise
    from ..tomography.projections import Projections, sidecar_path, write_projections
    from ..tomography.projections import project as projected

    if noise_photons is not None and mode != "xray":
        raise InputError(f"--noise-photons is of X-rays; with --mode {mode} give --noise-sigma.")
    if depth is not None and noise_photons is None:
        raise InputError("--depth scales line integrals for --noise-photons; give both, or neither.")
    beside = sidecar_path(out) if geometry_out is None else geometry_out
    inputs = [source] if geometry in DEFAULT_ARCS else [source, Path(geometry)]
    files = check_outputs(inputs, out=(out, IMAGE_SUFFIXES), **{"geometry-out": (beside, REPORT_SUFFIXES)})
    volume, grid = _read(source, time_point)
    orbits = {
        "views": views, "arc": arc, "pixels": detector, "pixel_size": pixel_size,
        "source_to_axis": source_to_axis, "source_to_detector": source_to_detector,
    }  # fmt: skip
    scan = _scan(geometry, grid, {name: value for name, value in orbits.items() if value is not None})
    stack = projected(hounsfield_to_attenuation(volume) if hu else volume, scan, mode)
    if noise_photons is not None or noise_sigma is not None:
        scaled = depth if hu or depth is not None else OPTICAL_DEPTH
        images = add_noise(stack.images, noise_photons, noise_sigma, seed, scaled)
        stack = Projections(images, scan, stack.kind)
    write_projections(out, stack, beside)
    nu, nv = scan.pixels
    print(f"{len(scan)} views of {nu} x {nv} pixels, {stack.images.min():.4g} to {stack.images.max():.4g}")
    print_files(files)


def _read(source: Path, time_point: int | None) -> tuple[NDArray[Any] | GaussianVolume, Grid]:
    """Return what to project and its voxels."""
    volume: NDArray[Any] | GaussianVolume
    if source.name.lower().endswith(GAUSSIAN_SUFFIXES):
        from ..gaussians import GaussianVolume

        if time_point is not None:
            raise InputError(f"{source} has no time axis; leave --time-point out.")
        volume = GaussianVolume.load(source)
        grid = volume.grid
    else:
        from ..io.nifti import read_nifti

        image = read_nifti(source)
        volume, grid = select_volume(image, source, time_point), image.grid
    if grid.ndim != 3:
        raise InputError(f"{source} is an image of two axes; a projection is of a volume.")
    return volume, grid


def _scan(geometry: str, grid: Grid, options: dict[str, Any]) -> Scan:
    """Return the orbit that the options describe, or the scan of a file."""
    if geometry not in DEFAULT_ARCS:
        if not Path(geometry).is_file():
            raise InputError(f"--geometry {geometry}: there is no such file; or choose {', '.join(DEFAULT_ARCS)}.")
        if options:
            given = ", ".join(f"--{_OPTIONS.get(name, name.replace('_', '-'))}" for name in options)
            raise InputError(f"{given}: the geometry is that of {geometry}; leave the options of an orbit out.")
        return Scan.load(geometry).of_grid(grid)
    beam: Beam = next(name for name in DEFAULT_ARCS if name == geometry)
    far = {"source_to_axis", "source_to_detector"} & set(options)
    if beam == "parallel" and far:
        raise InputError(f"--{min(far).replace('_', '-')}: a parallel beam has no source; choose fan or cone.")
    arc = options.pop("arc", DEFAULT_ARCS[beam])
    if not 0 < arc <= 360:
        raise InputError(f"--arc {arc:g}: the views are spread over more than 0 and at most 360 degrees.")
    return circular_scan(
        grid.shape, voxel_size_mm(grid), spread_angles(options.pop("views", DEFAULT_VIEWS), arc), beam, **options
    )


@dataclass(frozen=True)
class _Outputs:
    """The files to write."""

    out: Path | None
    reconstruction: Path | None
    voxels: Path | None
    report: Path | None

    def checked(self, inputs: list[Path]) -> list[Path]:
        """Return those that are wanted; raise now if one could not be written."""
        return check_outputs(
            inputs,
            out=(self.out, GAUSSIAN_SUFFIXES),
            reconstruction=(self.reconstruction, IMAGE_SUFFIXES),
            voxels=(self.voxels, IMAGE_SUFFIXES),
            report=(self.report, REPORT_SUFFIXES),
        )


@app.command()
@with_settings(ReconstructSettings)
def reconstruct(
    projections: Annotated[
        Path, typer.Argument(metavar="P.nii.gz", help="The stack of projections, axes (u, v, view).")
    ],
    geometry: Annotated[
        Path | None, typer.Option(metavar="GEO.json", help="Its geometry; P.json if not given.")
    ] = None,
    like: Annotated[
        Path | None,
        typer.Option(metavar="IN.nii.gz", help="Recover at this image's voxels, and compare with it (PSNR, SSIM)."),
    ] = None,
    i0: Annotated[
        float | None, typer.Option(help="The stack holds raw intensities, of so many counts without a volume.")
    ] = None,
    out: _Out = None,
    reconstruction: _Reconstruction = None,
    voxels: _Voxels = None,
    report: _Report = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print errors only.")] = False,
    **settings: Any,
) -> None:
    """Recover a volume, as Gaussians, from few X-ray projections.

    Ctrl-C ends it and keeps what it has reached: the files are written. A second one aborts.
    """
    asked = ReconstructSettings(**settings)
    outputs = _Outputs(out, reconstruction, voxels, report)
    files = outputs.checked([p for p in (projections, geometry, like) if p is not None])
    from ..reconstruction.problem import Problem
    from ..tomography.beer_lambert import attenuation
    from ..tomography.projections import read_projections
    from ..tomography.scan import grid_of_scan

    stack = read_projections(projections, geometry)
    image = None if like is None else _read_image(like)
    images = stack.images if i0 is None else attenuation(stack.images, i0)
    grid = grid_of_scan(stack.scan) if image is None else image.grid
    problem = Problem(grid, (images, stack.scan), truth=None if image is None else image.data)
    _finish(problem.recovery(asked), image, outputs, files, quiet)


@app.command()
@with_settings(ReconstructSettings)
def from_slices(
    image: Annotated[Path, typer.Argument(metavar="IN.nii.gz", help="The volume whose slices are known.")],
    keep_every: Annotated[
        int, typer.Option(min=1, help="Only every so many-th slice is known; the others are compared with.")
    ] = 1,
    axis: Annotated[Literal["z", "y", "x"], typer.Option(help="Along which the slices are stacked.")] = "z",
    thickness: Annotated[float, typer.Option(min=0, help="Of the slices, full width at half maximum, mm.")] = 0.0,
    also: Annotated[
        list[Path] | None,
        typer.Option(metavar="STACK.nii.gz", help="Another stack of the same volume, of any orientation; repeatable."),
    ] = None,
    also_thickness: Annotated[
        list[float] | None, typer.Option(min=0, help="Of its slices, in the order of --also; 0 if none is given.")
    ] = None,
    projections: Annotated[
        Path | None, typer.Option(metavar="P.nii.gz", help="X-rays around the middle of the volume, as well.")
    ] = None,
    geometry: Annotated[
        Path | None, typer.Option(metavar="GEO.json", help="Of the projections; P.json if not given.")
    ] = None,
    out: _Out = None,
    reconstruction: _Reconstruction = None,
    voxels: _Voxels = None,
    report: _Report = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print errors only.")] = False,
    **settings: Any,
) -> None:
    """Recover a volume, as Gaussians, from some of its slices.

    With --keep-every 1 all slices are known, and the volume is recovered with as many slices as make its voxels as long
    along the axis as across.
    """
    asked = ReconstructSettings(**settings)
    outputs = _Outputs(out, reconstruction, voxels, report)
    others = also or []
    thicknesses = also_thickness or [0.0] * len(others)
    if len(thicknesses) != len(others):
        raise InputError(f"There are {len(others)} --also and {len(thicknesses)} --also-thickness; give as many.")
    if geometry is not None and projections is None:
        raise InputError("--geometry is that of --projections; give both, or neither.")
    files = outputs.checked([p for p in (image, *others, projections, geometry) if p is not None])
    import numpy as np

    from ..reconstruction.problem import Problem, SliceStack, isotropic_grid, slice_axis
    from ..reconstruction.slice_metrics import cubic_spline, missing_psnr
    from ..tomography.projections import read_projections

    source, along = _read_image(image), "zyx".index(axis)
    known = np.arange(source.data.shape[along]) % keep_every == 0
    stacks = [SliceStack(source.data, source.grid, along, keep_every, thickness)]
    for path, thick in zip(others, thicknesses, strict=True):
        other = _read_image(path)
        stacks.append(SliceStack(other.data, other.grid, slice_axis(other.grid), thickness=thick))
    stack = None if projections is None else read_projections(projections, geometry)
    problem = Problem(
        isotropic_grid(source.grid, along) if keep_every == 1 else source.grid,
        None if stack is None else (stack.images, stack.scan),
        stacks,
        truth=None if keep_every == 1 else source.data,
    )

    def missing(result: ReconstructionResult) -> dict[str, float]:
        if known.all():
            return {}
        return {
            "psnr_missing_db": missing_psnr(result.reconstruction, source.data, known, along),
            "psnr_missing_cubic_db": missing_psnr(cubic_spline(source.data, known, along), source.data, known, along),
        }

    _finish(problem.recovery(asked), source, outputs, files, quiet, missing)


def _read_image(path: Path) -> NiftiImage:
    from ..io.nifti import read_nifti

    image = read_nifti(path)
    volume = select_volume(image, path, None)
    if volume.ndim != 3:
        raise InputError(f"{path} is an image of two axes; a volume is needed.")
    return image


def _finish(
    recovery: Recovery,
    source: NiftiImage | None,
    outputs: _Outputs,
    files: list[Path],
    quiet: bool,
    more: Callable[[ReconstructionResult], dict[str, float]] = lambda result: {},
) -> None:
    """Run a recovery behind a progress bar, write its files, and say what it reached."""
    from ..io.nifti import write_nifti

    with StopSignal() as stop:
        result = _run_reconstruction(recovery, stop, quiet)
        figures = result.report() | (others := more(result))
        if outputs.out is not None:
            result.gaussians.save(outputs.out)
        same = source is not None and source.grid.shape == recovery.grid.shape
        for path, volume in ((outputs.reconstruction, result.reconstruction), (outputs.voxels, result.voxels)):
            if path is not None:
                write_nifti(path, volume, recovery.grid, like=source if same else None)
        if outputs.report is not None:
            write_report(outputs.report, figures)
    if quiet:
        return
    print(result.message)
    against = "" if result.psnr_db is None else f"PSNR {result.psnr_db:.2f} dB, "
    print(f"{against}misfit {result.misfit:.3g}, {len(result.gaussians):,} Gaussians, {result.seconds:.1f} s")
    if others:
        print(
            f"Missing slices: {others['psnr_missing_db']:.2f} dB, "
            f"a cubic spline has {others['psnr_missing_cubic_db']:.2f} dB"
        )
    print_files(files)


def _run_reconstruction(recovery: Recovery, stop: StopSignal, quiet: bool) -> ReconstructionResult:
    with progress_bar(quiet) as show:
        for step in recovery.steps(stop):
            stop.begun = True
            now = step.now
            psnr = "" if now.psnr_db is None else f"{now.psnr_db:.2f} dB  "
            show(step.message, step.progress, f"{now.n_gaussians:,} Gaussians  {psnr}{now.seconds:.0f} s")
        return recovery.result(step)
