"""Commands that render views of volumes, train splats on them and render these."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import InputError
from ..progress import Budget
from ..rendering.settings import RenderMode, SplatTrainingSettings
from ..rendering.volume.transfer_functions import Preset
from .app import app
from .files import check_outputs, print_files, select_volume, write_report
from .options import REPORT_SUFFIXES, ErrorsOnlyOption, TimePoint, with_settings
from .progress import StopSignal, run_steps
from .sections import VIEWS

if TYPE_CHECKING:
    from ..rendering.scene import Scene

_VIEW_SUFFIXES, _SPLAT_SUFFIXES = (".npz",), (".ply",)
_Volume = Annotated[Path, typer.Argument(metavar="IN.nii.gz", help="Volume, .nii or .nii.gz.")]
_Preset = Annotated[
    Preset | None, typer.Option(help="Preset transfer function; gray if neither --preset nor --tf is given.")
]
_TransferFunction = Annotated[
    Path | None, typer.Option("--tf", metavar="TF.json", help="File with a transfer function (colours and opacities).")
]
_Shading = Annotated[
    bool | None,
    typer.Option("--shading/--no-shading", help="Phong shading of surfaces (default: as the transfer function says)."),
]
_Mask = Annotated[
    Path | None,
    typer.Option(metavar="LABELS.nii.gz", help="Label image; only voxels with a label other than 0 are shown."),
]


@app.command(rich_help_panel=VIEWS)
def views(
    volume: _Volume,
    out: Annotated[Path, typer.Option(metavar="VIEWS.npz", help="Output file for images and cameras.")],
    mode: Annotated[
        RenderMode, typer.Option(help="dvr: colours; mip, minip, mean, xray: intensities along the rays.")
    ] = "dvr",
    preset: _Preset = None,
    transfer_function: _TransferFunction = None,
    mask: _Mask = None,
    count: Annotated[
        int, typer.Option("--views", min=1, max=10_000, help="Number of views, evenly distributed around the volume.")
    ] = 24,
    image_size: Annotated[int, typer.Option(min=1, max=8192, help="Width and height of the views in pixels.")] = 256,
    orthographic: Annotated[
        bool, typer.Option("--orthographic", help="Orthographic cameras (parallel rays) instead of perspective.")
    ] = False,
    shading: _Shading = None,
    ray_step: Annotated[
        float, typer.Option(min=0.05, max=5, help="Distance between samples along a ray, in voxels.")
    ] = 0.5,
    time_point: TimePoint = None,
    quiet: ErrorsOnlyOption = False,
) -> None:
    """Render views of a volume from all sides: direct volume rendering, MIP, MinIP, mean or X-ray.

    The output file contains images (V, H, W, C) with C = 3 colours for dvr, otherwise C = 1; cameras (V, 4, 4), from mm
    around the centre of the volume to camera coordinates; and intrinsics (V, 3, 3). Ctrl-C stops the command and keeps
    the views rendered so far; a second one aborts.
    """
    if mode != "dvr" and (preset or transfer_function):
        raise InputError(f"--preset and --tf set colours, and --mode {mode} has none; leave them out.")
    [path] = check_outputs([p for p in (volume, transfer_function, mask) if p is not None], out=(out, _VIEW_SUFFIXES))
    from ..rendering.volume.dvr import render_views_steps

    scene = _load_scene(volume, preset, transfer_function, mask, shading, time_point)
    cameras = scene.orbit_cameras(count, image_size, orthographic=orthographic)
    with StopSignal() as stop:
        steps = render_views_steps(
            scene.volume,
            scene.voxel_size,
            cameras,
            mode,
            scene.transfer_function if mode == "dvr" else None,
            ray_step=ray_step,
            shading=shading,
            mask=scene.mask,
            budget=Budget(stop=stop),
        )
        images = run_steps(steps, stop, quiet)
        cameras[: len(images)].save(out, images)
    if not quiet:
        print(f"{len(images)} views of {image_size} x {image_size} pixels, {images.min():.4g} to {images.max():.4g}")
        print_files([path])


@app.command(rich_help_panel=VIEWS)
@with_settings(SplatTrainingSettings)
def train_views(
    volume: _Volume,
    out: Annotated[Path | None, typer.Option(metavar="MODEL.ply", help="Output file for the splats.")] = None,
    preset: _Preset = None,
    transfer_function: _TransferFunction = None,
    mask: _Mask = None,
    shading: _Shading = None,
    report: Annotated[
        Path | None, typer.Option(metavar="R.json", help="Output file for results, settings and history.")
    ] = None,
    time_point: TimePoint = None,
    quiet: ErrorsOnlyOption = False,
    **settings: Any,
) -> None:
    """Train Gaussian splats with spherical harmonics on direct volume renderings of a volume.

    Ctrl-C stops the training, and the splats trained so far are written; a second one aborts.
    """
    SplatTrainingSettings(**settings)  # before the volume is loaded
    inputs = [p for p in (volume, transfer_function, mask) if p is not None]
    files = check_outputs(inputs, out=(out, _SPLAT_SUFFIXES), report=(report, REPORT_SUFFIXES))
    from ..rendering.splats.ply import write_splats
    from ..rendering.splats.training import train_splats_steps

    scene = _load_scene(volume, preset, transfer_function, mask, shading, time_point)
    with StopSignal() as stop:
        trained = run_steps(train_splats_steps(scene, budget=Budget(stop=stop), **settings), stop, quiet)
        if out is not None:
            write_splats(out, trained.splats)
        if report is not None:
            write_report(report, trained.report())
    if quiet:
        return
    print(trained.message)
    print(
        f"Held-out views: {trained.psnr_db:.2f} dB, SSIM {trained.ssim:.4f}; {len(trained.splats):,} Gaussians, "
        f"{trained.fps:.0f} views per second, {trained.seconds:.1f} s"
    )
    print_files(files)


@app.command(rich_help_panel=VIEWS)
def render(
    model: Annotated[Path, typer.Argument(metavar="MODEL.ply", help="Splats, from train-views or another program.")],
    cameras: Annotated[Path, typer.Option(metavar="VIEWS.npz", help="File with cameras, from views.")],
    out: Annotated[Path, typer.Option(metavar="RENDERED.npz", help="Output file for images and cameras.")],
    image_size: Annotated[
        int | None,
        typer.Option(min=1, max=8192, help="Width and height of the images in pixels (default: that of the cameras)."),
    ] = None,
    sh_degree: Annotated[
        int | None, typer.Option(min=0, max=3, help="Maximum degree of the spherical harmonics (default: all).")
    ] = None,
) -> None:
    """Render splats from the cameras of a file; print the PSNR if the file has reference images."""
    [path] = check_outputs([model, cameras], out=(out, _VIEW_SUFFIXES))
    import time

    import numpy as np

    from ..metrics import psnr_between
    from ..rendering.cameras import Cameras, load_images
    from ..rendering.splats.ply import read_splats

    splats, views, references = read_splats(model), Cameras.load(cameras), load_images(cameras)
    if image_size is not None:
        views, references = views.with_image_size((image_size, image_size)), None
    began = time.perf_counter()
    images = splats.render(views, sh_degree=sh_degree).numpy()
    seconds = time.perf_counter() - began
    views.save(out, images)
    height, width = views.image_size
    print(f"{len(views)} views of {width} x {height} pixels, {len(views) / seconds:.0f} per second")
    if references is not None and references.shape == images.shape:
        print(f"PSNR to the images of {cameras}: {psnr_between(references, np.clip(images, 0, 1), 1.0):.2f} dB")
    print_files([path])


def _load_scene(
    volume: Path,
    preset: Preset | None,
    transfer_function: Path | None,
    mask: Path | None,
    shading: bool | None,
    time_point: int | None,
) -> Scene:
    import numpy as np

    from ..io.nifti import read_nifti
    from ..rendering.scene import Scene
    from ..rendering.volume.transfer_functions import TransferFunction
    from ..units import voxel_size_mm

    if preset is not None and transfer_function is not None:
        raise InputError("--preset and --tf both set the transfer function; give one of them.")
    image = read_nifti(volume)
    array = select_volume(image, volume, time_point)
    if array.ndim != 3:
        raise InputError(f"{volume} is an image with two axes; views need a volume.")
    if transfer_function is None:
        appearance = TransferFunction.from_preset(preset or "gray", array)
    else:
        appearance = TransferFunction.load(transfer_function)
    labels = None
    if mask is not None:
        labels = np.asarray(read_nifti(mask).data)
        if labels.shape != array.shape:
            raise InputError(f"{mask} has the shape {labels.shape}, the volume {array.shape}; they have to be equal.")
    return Scene(array, voxel_size_mm(image.grid), appearance, shading, mask=labels)
