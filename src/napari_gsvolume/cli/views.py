"""The shell's commands that render views: of volumes, and of splats trained on them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import InputError
from ..rendering.settings import RenderMode, TrainSettings
from ..rendering.volume.transfer_functions import Preset
from .app import app
from .files import check_outputs, print_files, select_volume, write_report
from .options import REPORT_SUFFIXES, with_settings
from .progress import StopSignal, progress_bar
from .sections import VIEWS

if TYPE_CHECKING:
    from ..rendering.scene import Scene
    from ..rendering.splats.training import Trained, Training

_VIEWS, _SPLATS = (".npz",), (".ply",)
_Volume = Annotated[Path, typer.Argument(metavar="IN.nii.gz", help="The volume, .nii or .nii.gz.")]
_Preset = Annotated[Preset | None, typer.Option(help="Colours and opacities; gray if neither this nor --tf is given.")]
_Transfer = Annotated[Path | None, typer.Option("--tf", metavar="TF.json", help="Colours and opacities from a file.")]
_Shading = Annotated[
    bool | None, typer.Option("--shading/--no-shading", help="Light surfaces; as the preset does if not given.")
]
_TimePoint = Annotated[int | None, typer.Option(help="Which volume of a 4D image, from 0.")]
_Mask = Annotated[
    Path | None,
    typer.Option(metavar="LABELS.nii.gz", help="Show only where these labels are not 0."),
]


@app.command(rich_help_panel=VIEWS)
def views(
    volume: _Volume,
    out: Annotated[Path, typer.Option(metavar="VIEWS.npz", help="Images and cameras to write.")],
    mode: Annotated[RenderMode, typer.Option(help="Colours; or intensities along the rays, as they are.")] = "dvr",
    preset: _Preset = None,
    transfer: _Transfer = None,
    mask: _Mask = None,
    count: Annotated[int, typer.Option("--views", min=1, max=10_000, help="Views, evenly around the volume.")] = 24,
    size: Annotated[int, typer.Option(min=1, max=8192, help="Pixels of a view's sides.")] = 256,
    orthographic: Annotated[bool, typer.Option("--orthographic", help="Parallel rays.")] = False,
    shading: _Shading = None,
    step: Annotated[float, typer.Option(min=0.05, max=5, help="Between samples, voxels.")] = 0.5,
    time_point: _TimePoint = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print errors only.")] = False,
) -> None:
    """Render a volume from all around: direct volume rendering, MIP, MinIP, mean or X-ray.

    The file has images (V, H, W, C), C = 3 colours for dvr and else 1, cameras (V, 4, 4), from mm around the volume's
    middle to the camera, and intrinsics (V, 3, 3).
    """
    if mode != "dvr" and (preset or transfer):
        raise InputError(f"--preset and --tf choose colours, and --mode {mode} has none; leave them out.")
    [path] = check_outputs([p for p in (volume, transfer, mask) if p is not None], out=(out, _VIEWS))
    import numpy as np

    from ..rendering.volume.dvr import render_views

    scene = _scene(volume, preset, transfer, mask, shading, time_point)
    cameras = scene.cameras(count, size, orthographic=orthographic)
    images = []
    with progress_bar(quiet) as show:
        for image in render_views(
            scene.volume, scene.voxel_size, cameras, mode, scene.transfer if mode == "dvr" else None,
            step=step, shading=shading, mask=scene.mask,
        ):  # fmt: skip
            images.append(image)
            show("Rendering", len(images) / count, f"{len(images)} of {count}")
    cameras.save(out, np.stack(images))
    if not quiet:
        print(f"{count} views of {size} x {size} pixels, {np.min(images):.4g} to {np.max(images):.4g}")
        print_files([path])


@app.command(rich_help_panel=VIEWS)
@with_settings(TrainSettings)
def train_views(
    volume: _Volume,
    out: Annotated[Path | None, typer.Option(metavar="MODEL.ply", help="The splats to write.")] = None,
    preset: _Preset = None,
    transfer: _Transfer = None,
    mask: _Mask = None,
    shading: _Shading = None,
    report: Annotated[Path | None, typer.Option(metavar="R.json", help="Write figures and history.")] = None,
    time_point: _TimePoint = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print errors only.")] = False,
    **settings: Any,
) -> None:
    """Train Gaussian splats with spherical harmonics on direct volume renderings of a volume.

    Ctrl-C ends it and keeps what it has reached: the files are written. A second one aborts.
    """
    asked = TrainSettings(**settings)
    inputs = [p for p in (volume, transfer, mask) if p is not None]
    files = check_outputs(inputs, out=(out, _SPLATS), report=(report, REPORT_SUFFIXES))
    from ..rendering.splats.ply import write_splats
    from ..rendering.splats.training import Training

    training = Training(_scene(volume, preset, transfer, mask, shading, time_point), **asked.model_dump())
    with StopSignal() as stop:
        result = _run_training(training, stop, quiet)
        if out is not None:
            write_splats(out, result.splats)
        if report is not None:
            write_report(report, result.report())
    if quiet:
        return
    print(result.message)
    print(
        f"Views held out: {result.psnr_db:.2f} dB, SSIM {result.ssim:.4f}; {len(result.splats):,} Gaussians, "
        f"{result.fps:.0f} views a second, {result.seconds:.1f} s"
    )
    print_files(files)


@app.command(rich_help_panel=VIEWS)
def render(
    model: Annotated[Path, typer.Argument(metavar="MODEL.ply", help="Splats, as train-views writes them.")],
    cameras: Annotated[Path, typer.Option(metavar="VIEWS.npz", help="Cameras, as views writes them.")],
    out: Annotated[Path, typer.Option(metavar="RENDERED.npz", help="Images and cameras to write.")],
    size: Annotated[int | None, typer.Option(min=1, max=8192, help="Pixels of a side, if not the cameras'.")] = None,
    sh_degree: Annotated[int | None, typer.Option(min=0, max=3, help="Leave harmonics of a higher degree out.")] = None,
) -> None:
    """Render splats from the cameras of a file; where that has images, say how near they come."""
    [path] = check_outputs([model, cameras], out=(out, _VIEWS))
    import time

    import numpy as np

    from ..metrics import psnr_between
    from ..rendering.cameras import Cameras, images_of
    from ..rendering.splats.ply import read_splats

    splats, around, references = read_splats(model), Cameras.load(cameras), images_of(cameras)
    if size is not None:
        around, references = around.resized((size, size)), None
    began = time.perf_counter()
    images = splats.render(around, sh_degree=sh_degree).numpy()
    seconds = time.perf_counter() - began
    around.save(out, images)
    height, width = around.size
    print(f"{len(around)} views of {width} x {height} pixels, {len(around) / seconds:.0f} a second")
    if references is not None and references.shape == images.shape:
        print(f"PSNR to the images of {cameras}: {psnr_between(references, np.clip(images, 0, 1), 1.0):.2f} dB")
    print_files([path])


def _scene(
    volume: Path,
    preset: Preset | None,
    transfer: Path | None,
    mask: Path | None,
    shading: bool | None,
    time_point: int | None,
) -> Scene:
    import numpy as np

    from ..io.nifti import read_nifti
    from ..rendering.scene import Scene
    from ..rendering.volume.transfer_functions import TransferFunction
    from ..rendering.volume.transfer_functions import preset as named
    from ..units import voxel_size_mm

    if preset is not None and transfer is not None:
        raise InputError("--preset and --tf both choose colours; give one of them.")
    image = read_nifti(volume)
    array = select_volume(image, volume, time_point)
    if array.ndim != 3:
        raise InputError(f"{volume} is an image of two axes; views are of a volume.")
    colours = named(preset or "gray", array) if transfer is None else TransferFunction.load(transfer)
    inside = None
    if mask is not None:
        inside = np.asarray(read_nifti(mask).data)
        if inside.shape != array.shape:
            raise InputError(
                f"{mask} has the shape {inside.shape}, the volume {array.shape}; labels are of its voxels."
            )
    return Scene(array, voxel_size_mm(image.grid), colours, shading, mask=inside)


def _run_training(training: Training, stop: StopSignal, quiet: bool) -> Trained:
    step = None
    with progress_bar(quiet) as show:
        for step in training.steps(stop):
            stop.begun = step.splats is not None
            reached = ""
            if step.history:
                now = step.history[-1]
                reached = f"{now.psnr_db:.2f} dB  {now.n_gaussians:,} Gaussians  "
            show(step.message, step.progress, f"{reached}{step.seconds:.0f} s")
    if step is None or step.splats is None:
        raise InputError("It was stopped before there was anything to keep.")
    return training.result(step)
