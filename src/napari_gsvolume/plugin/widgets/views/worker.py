"""Long runs of the Views widget: training of splats and rendering of pictures. No Qt here."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from ....errors import InputError
from ....io.atomic import atomic_write
from ....metrics import psnr_between
from ....progress import Budget, Step
from ....rendering.cameras import bounding_radius, orbit_cameras
from ....rendering.scene import Scene
from ....rendering.settings import RenderMode, SplatTrainingSettings
from ....rendering.splats.model import Splats
from ....rendering.splats.projection import BLUR
from ....rendering.splats.training import SplatTrainingStep, TrainedSplats, train_splats_steps
from ....rendering.volume.dvr import render_views
from ....rendering.volume.transfer_functions import TransferFunction, combine_intervals, restrict_to_intervals
from ....types import Float32Array
from ....units import voxel_size_mm
from ...layers.conversion import SourceVolume
from ..shared.camera import ViewerCamera
from ..shared.worker import PreviewThrottle

TransferFunctionFactory = Callable[[NDArray[Any]], TransferFunction]
"""Returns the transfer function for a volume, since presets depend on it."""
PictureKind = Literal["view", "turntable", "difference", "DVR"]
_FILM_FPS = 20
MAX_MODELS = 64


@dataclass(frozen=True, eq=False)
class SceneSource:
    """Choices in the widget from which a scene is loaded: a volume or parts of it, and their appearance.

    Attributes
    ----------
    source : SourceVolume
        Volume of a layer.
    make_transfer_function : callable
        Transfer function for the volume.
    shading : bool
        Phong shading.
    labels : ndarray, optional
        Label image of the volume's shape; label 0 is empty.
    values : tuple of int, optional
        Labels to show; by default all.
    intervals : dict
        Named half-open intervals of intensities; if there are any, only these are shown.
    """

    source: SourceVolume
    make_transfer_function: TransferFunctionFactory
    shading: bool = False
    labels: NDArray[np.generic] | None = field(default=None, repr=False)
    values: tuple[int, ...] | None = None
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)

    def load_scene(self) -> Scene:
        """Load the volume; raise InputError if the transfer function does not suit it."""
        volume = np.asarray(self.source.array)
        mask = None
        if self.labels is not None:
            mask = self.labels != 0 if self.values is None else np.isin(self.labels, self.values)
        transfer_function = self.make_transfer_function(volume)
        if self.intervals:
            parts = restrict_to_intervals(transfer_function, self.intervals)
            transfer_function = combine_intervals(list(parts.values()))
        return Scene(volume, voxel_size_mm(self.source.grid), transfer_function, self.shading, mask=mask)

    def split(self, by_label: bool) -> list[tuple[str, SceneSource]]:
        """Return the parts to train separately, with names: one for each interval, and for each label if `by_label`.

        Raises
        ------
        InputError
            If there are no labels, or too many parts.
        """
        name = self.source.name
        parts = [(name if self.labels is None else f"{name} · labels", self)]
        if by_label and self.labels is not None:
            found = [int(value) for value in np.unique(self.labels) if value]
            parts = [(f"{name} · label {value}", replace(self, values=(value,))) for value in found]
        if self.intervals:
            parts = [
                (f"{part_name} · {interval}", replace(part, intervals={interval: limits}))
                for part_name, part in parts
                for interval, limits in self.intervals.items()
            ]
        if not 0 < len(parts) <= MAX_MODELS:
            raise InputError(f"There are {len(parts)} models to train; possible are 1 to {MAX_MODELS}.")
        return parts

    def union(self, other: SceneSource) -> SceneSource:
        """Return the source that shows the parts of both."""
        if self.intervals != other.intervals:
            both = self.intervals | other.intervals if self.intervals and other.intervals else {}
            return replace(self, intervals=both).union(replace(other, intervals=both))
        if self.labels is None or other.labels is None:
            return replace(self, labels=None, values=None)
        if self.values is None or other.values is None:
            return replace(self, values=None)
        return replace(self, values=(*self.values, *other.values))


@dataclass(frozen=True, eq=False)
class SplatModel:
    """Named splats in the list of models.

    Attributes
    ----------
    name : str
        Name in the list.
    splats : Splats
        Splats, on the CPU.
    source : SourceVolume
        Volume that determines their position in the viewer.
    scene_source : SceneSource or None
        Scene of the training; None for splats from a file.
    trained : TrainedSplats or None
        Result of the training; None for splats from a file.
    """

    name: str
    splats: Splats
    source: SourceVolume
    scene_source: SceneSource | None = None
    trained: TrainedSplats | None = None

    def at_resolution(self, pixel_size_mm: float) -> Splats:
        """Return the splats for pictures with a given pixel size in the plane of the volume's centre, mm.

        Training adds the low-pass filter of the training pixels, so that splats would look thin and dark in close-ups:
        for smaller pixels, the missing variance is added to the Gaussians themselves.
        """
        if self.trained is None or self.scene_source is None:
            return self.splats
        s, source = self.trained.settings, self.source
        radius = bounding_radius(source.grid.shape, voxel_size_mm(source.grid))
        image_size = s.image_size, s.image_size
        camera = orbit_cameras([(1, 0, 0)], radius, image_size, orthographic=s.orthographic)
        missing = BLUR * (camera.pixel_size_mm**2 - pixel_size_mm**2)
        if missing <= 0:
            return self.splats
        return replace(self.splats, log_scales=torch.log(torch.exp(2 * self.splats.log_scales) + missing) / 2)


@dataclass(frozen=True, eq=False)
class ModelTrainingStep(Step):
    """State of the training of one or several models.

    Attributes
    ----------
    index, count : int
        Index of the current model, and number of models.
    name : str
        Name of the current model.
    step : SplatTrainingStep
        State of its training.
    model : SplatModel or None
        The model, once its training has ended.
    """

    index: int
    count: int
    name: str
    step: SplatTrainingStep
    model: SplatModel | None = None

    @property
    def has_result(self) -> bool:
        """True once there are splats."""
        return self.index > 0 or self.step.has_result


def train_models_steps(
    scene_source: SceneSource,
    by_label: bool,
    settings: SplatTrainingSettings,
    throttle: PreviewThrottle,
    *,
    budget: Budget | None = None,
) -> Generator[ModelTrainingStep, None, list[SplatModel]]:
    """Train one model, or one for each label and interval; the models share the time limit.

    Steps are yielded as often as the throttle permits, and when a model is finished. A run that is stopped returns the
    models trained so far, the last one with its current splats.
    """
    parts = scene_source.split(by_label)
    if settings.time_limit is not None:
        settings = settings.model_copy(update={"time_limit": settings.time_limit / len(parts)})
    return _train_models(parts, settings, throttle, budget or Budget())


def _train_models(
    parts: list[tuple[str, SceneSource]], settings: SplatTrainingSettings, throttle: PreviewThrottle, budget: Budget
) -> Generator[ModelTrainingStep, None, list[SplatModel]]:
    models: list[SplatModel] = []
    n = len(parts)
    for i, (name, part) in enumerate(parts):
        last: SplatTrainingStep | None = None
        with closing(train_splats_steps(part.load_scene(), budget=budget, **settings.model_dump())) as steps:
            while True:
                try:
                    last = next(steps)
                except StopIteration as end:
                    trained: TrainedSplats = end.value
                    break
                except InputError:
                    if budget.stop() and last is not None and not last.has_result:
                        return models  # stopped while the references were rendered
                    raise
                if throttle.due():
                    throttle.sent()
                    yield ModelTrainingStep((i + last.fraction) / n, last.message, i, n, name, last)
        model = SplatModel(name, trained.splats, part.source, part, trained)
        models.append(model)
        throttle.sent()
        assert last is not None
        yield ModelTrainingStep((i + 1) / n, trained.message, i, n, name, last, model)
        if budget.stop():
            break
    return models


@dataclass(frozen=True, eq=False)
class PictureRequest:
    """Pictures to render.

    Attributes
    ----------
    kind : "view", "turntable", "difference" or "DVR"
        Splats from one camera; splats from cameras around the volume; absolute difference of splats and direct volume
        rendering; or direct volume rendering.
    source : SourceVolume
        Volume in the pictures.
    frame : ViewerCamera
        Cameras, and the position of the pictures in the viewer.
    splats : Splats or None
        None for kind "DVR".
    scene_source : SceneSource or None
        Scene for kinds "difference" and "DVR".
    mode : str
        Render mode of kind "DVR".
    path : Path or None
        File to write; None: the pictures become a layer.
    metadata : dict
        Metadata of the layer.
    """

    kind: PictureKind
    source: SourceVolume
    frame: ViewerCamera
    splats: Splats | None = field(default=None, repr=False)
    scene_source: SceneSource | None = None
    mode: RenderMode = "dvr"
    path: Path | None = None
    metadata: dict[str, Any] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, eq=False)
class PictureStep(Step):
    """State of rendering pictures.

    Attributes
    ----------
    done, count : int
        Number of rendered pictures, and number of pictures in total.
    """

    done: int
    count: int


@dataclass(frozen=True, eq=False)
class Pictures:
    """Rendered pictures.

    Attributes
    ----------
    request : PictureRequest
        Their request.
    images : ndarray, uint8 (V, H, W, 3) or float32 (V, H, W)
        Pictures as the viewer shows them.
    psnr_db : float or None
        PSNR of the splats to direct volume rendering, for kind "difference".
    """

    request: PictureRequest
    images: NDArray[Any] = field(repr=False)
    psnr_db: float | None = None


def render_pictures_steps(
    request: PictureRequest, *, budget: Budget | None = None
) -> Generator[PictureStep, None, Pictures | None]:
    """Render pictures and write the file, if one is requested; a run that is stopped returns None."""
    budget = budget or Budget()
    count, images = len(request.frame.cameras), []
    for k in range(count):
        if budget.stop():
            return None
        yield PictureStep(k / count, f"{k} of {count} pictures", k, count)
        images.append(_render_picture(request, k))
    stack, psnr = np.stack([image for image, _ in images]), images[0][1]
    if request.path is not None:
        write_pictures(request.path, stack)
    return Pictures(request, stack, psnr)


def _render_picture(request: PictureRequest, k: int) -> tuple[NDArray[Any], float | None]:
    splat_image = None if request.splats is None else render_splat_picture(request.splats, request.frame, k)
    if request.scene_source is None:
        assert splat_image is not None
        return to_uint8(splat_image), None
    scene = request.scene_source.load_scene()
    [reference] = render_views(
        scene.volume,
        scene.voxel_size,
        request.frame.cameras[k],
        request.mode,
        scene.transfer_function,
        shading=scene.shading,
        mask=scene.mask,
    )
    reference = request.frame.as_displayed(reference)
    if splat_image is None:
        return (to_uint8(reference) if request.mode == "dvr" else reference[:, :, 0]), None
    return np.abs(splat_image - reference).mean(-1), psnr_between(reference, splat_image, 1.0)


def render_splat_picture(splats: Splats, frame: ViewerCamera, k: int = 0) -> Float32Array:
    """Return a picture of splats ``(H, W, 3)``, 0 to 1, as the viewer shows it."""
    with torch.no_grad():
        image = splats.render(frame.cameras[k])[0].cpu().numpy()
    return frame.as_displayed(np.clip(image, 0, 1).astype(np.float32))


def to_uint8(image: Float32Array) -> NDArray[np.uint8]:
    """Return colours from 0 to 1 as integers from 0 to 255."""
    return (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8)


def write_pictures(path: Path, images: NDArray[np.uint8]) -> None:
    """Write the first picture as PNG, or all pictures as an MP4 film; an existing file is replaced in one step.

    Raises
    ------
    InputError
        If the file name has another ending, or films cannot be written.
    OSError
        If the file cannot be written.
    """
    from imageio.v3 import imwrite

    suffix = path.suffix.lower()
    if suffix not in (".png", ".mp4"):
        raise InputError(f"Pictures are saved as .png and films as .mp4; got {path.name}.")
    if suffix == ".mp4" and (problem := film_problem()):
        raise InputError(problem)
    with atomic_write(path) as temporary:
        if suffix == ".png":
            imwrite(temporary, images[0], extension=".png")
        else:
            even = images[:, : images.shape[1] // 2 * 2, : images.shape[2] // 2 * 2]  # the codec needs even sizes
            imwrite(temporary, even, extension=".mp4", plugin="FFMPEG", fps=_FILM_FPS, macro_block_size=2)


def film_problem() -> str:
    """Return the reason why films cannot be written, or an empty string."""
    if importlib.util.find_spec("imageio_ffmpeg") is None:
        return "Films need the package imageio-ffmpeg, which is not installed: pip install imageio-ffmpeg."
    return ""
