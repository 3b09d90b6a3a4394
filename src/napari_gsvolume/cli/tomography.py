"""The shell commands about scanners: ``gsvolume project``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..tomography.scan import ARCS, VIEWS, Beam, Mode, Scan, orbit, spread, voxel_size_mm
from .gaussians import _FIGURES, _IMAGE, _MODEL, _check_outputs, _list, _one_volume, app

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..gaussians import GaussianVolume
    from ..grid import Grid

_OPTIONS = {"pixels": "detector"}  # where they are not named as the arguments of `orbit`


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
    from ..tomography.projections import (
        DEPTH,
        Projections,
        geometry_beside,
        hounsfield_to_attenuation,
        with_noise,
        write_projections,
    )
    from ..tomography.projections import project as projected

    if noise_photons is not None and mode != "xray":
        raise ValueError(f"--noise-photons is of X-rays; with --mode {mode} give --noise-sigma.")
    if depth is not None and noise_photons is None:
        raise ValueError("--depth scales line integrals for --noise-photons; give both, or neither.")
    beside = geometry_beside(out) if geometry_out is None else geometry_out
    inputs = [source] if geometry in ARCS else [source, Path(geometry)]
    files = _check_outputs(inputs, out=(out, _IMAGE), **{"geometry-out": (beside, _FIGURES)})
    volume, grid = _read(source, time_point)
    orbits = {
        "views": views, "arc": arc, "pixels": detector, "pixel_size": pixel_size,
        "source_to_axis": source_to_axis, "source_to_detector": source_to_detector,
    }  # fmt: skip
    scan = _scan(geometry, grid, {name: value for name, value in orbits.items() if value is not None})
    stack = projected(hounsfield_to_attenuation(volume) if hu else volume, scan, mode)
    if noise_photons is not None or noise_sigma is not None:
        scaled = depth if hu or depth is not None else DEPTH
        images = with_noise(stack.images, noise_photons, noise_sigma, seed, scaled)
        stack = Projections(images, scan, stack.kind)
    write_projections(out, stack, beside)
    nu, nv = scan.pixels
    print(f"{len(scan)} views of {nu} x {nv} pixels, {stack.images.min():.4g} to {stack.images.max():.4g}")
    _list(files)


def _read(source: Path, time_point: int | None) -> tuple[NDArray[Any] | GaussianVolume, Grid]:
    """Return what to project and its voxels."""
    volume: NDArray[Any] | GaussianVolume
    if source.name.lower().endswith(_MODEL):
        from ..gaussians import GaussianVolume

        if time_point is not None:
            raise ValueError(f"{source} has no time axis; leave --time-point out.")
        volume = GaussianVolume.load(source)
        grid = volume.grid
    else:
        from ..io.nifti import read_nifti

        image = read_nifti(source)
        volume, grid = _one_volume(image, source, time_point), image.grid
    if grid.ndim != 3:
        raise ValueError(f"{source} is an image of two axes; a projection is of a volume.")
    return volume, grid


def _scan(geometry: str, grid: Grid, options: dict[str, Any]) -> Scan:
    """Return the orbit that the options describe, or the scan of a file."""
    if geometry not in ARCS:
        if not Path(geometry).is_file():
            raise ValueError(f"--geometry {geometry}: there is no such file; or choose {', '.join(ARCS)}.")
        if options:
            given = ", ".join(f"--{_OPTIONS.get(name, name.replace('_', '-'))}" for name in options)
            raise ValueError(f"{given}: the geometry is that of {geometry}; leave the options of an orbit out.")
        return Scan.load(geometry).of_grid(grid)
    beam: Beam = next(name for name in ARCS if name == geometry)
    far = {"source_to_axis", "source_to_detector"} & set(options)
    if beam == "parallel" and far:
        raise ValueError(f"--{min(far).replace('_', '-')}: a parallel beam has no source; choose fan or cone.")
    arc = options.pop("arc", ARCS[beam])
    if not 0 < arc <= 360:
        raise ValueError(f"--arc {arc:g}: the views are spread over more than 0 and at most 360 degrees.")
    return orbit(grid.shape, voxel_size_mm(grid), spread(options.pop("views", VIEWS), arc), beam, **options)
