"""What trains splats and makes pictures of them beside the viewer. No Qt here."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from ....errors import InputError
from ....io.atomic import atomic_write
from ....metrics import psnr_between
from ....rendering.cameras import around, radius_of
from ....rendering.scene import Scene
from ....rendering.settings import RenderMode, TrainSettings
from ....rendering.splats.model import Splats
from ....rendering.splats.projection import BLUR
from ....rendering.splats.training import Trained, Training, TrainStep
from ....rendering.volume.dvr import render_views
from ....rendering.volume.transfer_functions import TransferFunction, intervals, together
from ....types import Float32Array
from ....units import voxel_size_mm
from ...layers.conversion import SourceVolume
from ..shared.camera import ViewerCamera
from ..shared.worker import PreviewThrottle, run_in_background

Look = Callable[[NDArray[Any]], TransferFunction]
"""Returns the transfer function for a volume: some depend on it."""
Kind = Literal["view", "turntable", "difference", "DVR"]
_REFERENCES = 0.1  # of the bar, for a part's references
_FILM_FPS = 20
MOST_PARTS = 64


@dataclass(frozen=True, eq=False)
class Subject:
    """What direct volume rendering shows: a volume, or parts of it, in colours.

    Attributes
    ----------
    source : SourceVolume
    look : callable
    shading : bool
    labels : ndarray, optional
        Of the volume's voxels; where they are 0 there is nothing.
    values : tuple of int, optional
        Those of the labels that are shown; by default all.
    intervals : dict
        Of intensities, by name, from the first up to the second; only they are shown, if there are any.
    """

    source: SourceVolume
    look: Look
    shading: bool = False
    labels: NDArray[np.generic] | None = field(default=None, repr=False)
    values: tuple[int, ...] | None = None
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)

    def scene(self) -> Scene:
        """Load the volume; raise ValueError if the transfer function does not suit it."""
        volume = np.asarray(self.source.array)
        mask = None
        if self.labels is not None:
            mask = self.labels != 0 if self.values is None else np.isin(self.labels, self.values)
        transfer = self.look(volume)
        if self.intervals:
            transfer = together(list(intervals(transfer, self.intervals).values()))
        return Scene(volume, voxel_size_mm(self.source.grid), transfer, self.shading, mask=mask)

    def parts(self, each: bool) -> list[tuple[str, Subject]]:
        """Return what is trained on its own, with names: each interval, and each label if `each` says so.

        Raises
        ------
        ValueError
            If there are no labels, or too many parts.
        """
        name = self.source.name
        parts = [(name if self.labels is None else f"{name} · labels", self)]
        if each and self.labels is not None:
            found = [int(value) for value in np.unique(self.labels) if value]
            parts = [(f"{name} · label {value}", replace(self, values=(value,))) for value in found]
        if self.intervals:
            parts = [
                (f"{of} · {interval}", replace(part, intervals={interval: limits}))
                for of, part in parts
                for interval, limits in self.intervals.items()
            ]
        if not 0 < len(parts) <= MOST_PARTS:
            raise InputError(f"There are {len(parts)} parts to train, one after another; 1 to {MOST_PARTS} can be.")
        return parts

    def beside(self, other: Subject) -> Subject:
        """Return what shows the parts of both."""
        if self.intervals != other.intervals:
            both = self.intervals | other.intervals if self.intervals and other.intervals else {}
            return replace(self, intervals=both).beside(replace(other, intervals=both))
        if self.labels is None or other.labels is None:
            return replace(self, labels=None, values=None)
        if self.values is None or other.values is None:
            return replace(self, values=None)
        return replace(self, values=(*self.values, *other.values))


@dataclass(frozen=True, eq=False)
class Part:
    """Splats that can be seen beside others.

    Attributes
    ----------
    name : str
    splats : Splats
    source : SourceVolume
        The volume in whose place they are seen.
    subject : Subject or None
        What they were trained on; None of a file.
    trained : Trained or None
    """

    name: str
    splats: Splats
    source: SourceVolume
    subject: Subject | None = None
    trained: Trained | None = None

    def seen_at(self, pixel: float) -> Splats:
        """Return the splats for pictures with pixels of so many mm in the middle of the volume.

        Splats are trained with the blur of the views' pixels on top, and would look thin and dark from closer: where
        pixels are smaller than those of the training, what the blur lacks is added to the Gaussians themselves.
        """
        if self.trained is None or self.subject is None:
            return self.splats
        s, source = self.trained.settings, self.source
        radius = radius_of(source.grid.shape, voxel_size_mm(source.grid))
        camera = around([(1, 0, 0)], radius, (s.size, s.size), orthographic=s.orthographic)
        lacking = BLUR * (camera.pixel_mm**2 - pixel**2)
        if lacking <= 0:
            return self.splats
        return replace(self.splats, log_scales=torch.log(torch.exp(2 * self.splats.log_scales) + lacking) / 2)


@dataclass(frozen=True, eq=False)
class TrainNews:
    """Where a training stands.

    Attributes
    ----------
    index, count : int
        Which of how many parts is being trained.
    part : Part or None
        Present once it is finished.
    """

    index: int
    count: int
    name: str
    step: TrainStep
    progress: float
    seconds: float
    """Since the first iteration of this part."""
    part: Part | None = None


def run_training(
    subject: Subject, each: bool, settings: TrainSettings, pace: PreviewThrottle, stop: Callable[[], bool]
) -> Iterator[TrainNews]:
    """Train splats on a subject, or on each of its labels, which share the time; the last news of each has a part."""
    yield from run_in_background(_trained(subject, each, settings, pace, stop))


def _trained(
    subject: Subject, each: bool, settings: TrainSettings, pace: PreviewThrottle, stop: Callable[[], bool]
) -> Iterator[TrainNews]:
    subjects = subject.parts(each)
    n = len(subjects)
    if settings.time_limit is not None:
        settings = settings.model_copy(update={"time_limit": settings.time_limit / n})
    for i, (name, part) in enumerate(subjects):
        training = Training(part.scene(), **settings.model_dump())
        began, last = None, None
        for step in training.steps(stop):
            if step.stage == "training" and began is None:
                began = step.seconds
            if step.stage == "references":
                share = _REFERENCES * step.iteration / (settings.views + settings.hold_out)
            else:
                share = _REFERENCES + (1 - _REFERENCES) * step.progress
            last = TrainNews(i, n, name, step, (i + share) / n, 0.0 if began is None else step.seconds - began)
            if pace.due():
                pace.sent()
                yield last
        if last is None or last.step.splats is None:  # stopped before there was anything
            return
        result = training.result(last.step)
        pace.sent()
        yield replace(last, progress=(i + 1) / n, part=Part(name, result.splats, part.source, part, result))
        if stop():
            return


@dataclass(frozen=True, eq=False)
class Order:
    """Pictures that are asked for.

    Attributes
    ----------
    kind : "view", "turntable", "difference" or "DVR"
    source : SourceVolume
        What they are pictures of.
    seen : ViewerCamera
    splats : Splats or None
        None for DVR alone.
    subject : Subject or None
        Needed for a difference and for DVR.
    mode : str
        Of DVR.
    path : Path or None
        Where to write them; else they become a layer.
    about : dict
        What the layer is to remember.
    """

    kind: Kind
    source: SourceVolume
    seen: ViewerCamera
    splats: Splats | None = field(default=None, repr=False)
    subject: Subject | None = None
    mode: RenderMode = "dvr"
    path: Path | None = None
    about: dict[str, Any] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, eq=False)
class Pictures:
    """How many pictures of how many are made; with the last one all of them.

    Attributes
    ----------
    images : ndarray, uint8 (V, H, W, 3) or float32 (V, H, W), or None
        As the viewer would show them.
    psnr_db : float or None
        Of a difference: of the splats' view, to DVR.
    """

    order: Order
    done: int
    count: int
    images: NDArray[Any] | None = field(default=None, repr=False)
    psnr_db: float | None = None


def run_pictures(order: Order, stop: Callable[[], bool]) -> Iterator[Pictures]:
    """Make pictures, and write the file if one is asked for."""
    yield from run_in_background(_pictures(order, stop))


def _pictures(order: Order, stop: Callable[[], bool]) -> Iterator[Pictures]:
    count, images = len(order.seen.cameras), []
    for k in range(count):
        if stop():
            return
        yield Pictures(order, k, count)
        images.append(_picture(order, k))
    made, psnr = np.stack([image for image, _ in images]), images[0][1]
    if order.path is not None:
        write_pictures(order.path, made)
    yield Pictures(order, count, count, made, psnr)


def _picture(order: Order, k: int) -> tuple[NDArray[Any], float | None]:
    camera, shown = order.seen.cameras[k], order.seen.as_displayed
    splats = None if order.splats is None else view_of(order.splats, order.seen, k)
    if order.subject is None:
        assert splats is not None
        return eight_bits(splats), None
    scene = order.subject.scene()
    [reference] = render_views(
        scene.volume, scene.voxel_size, camera, order.mode, scene.transfer, shading=scene.shading, mask=scene.mask
    )
    reference = shown(reference)
    if splats is None:
        return (eight_bits(reference) if order.mode == "dvr" else reference[:, :, 0]), None
    return np.abs(splats - reference).mean(-1), psnr_between(reference, splats, 1.0)


def view_of(splats: Splats, seen: ViewerCamera, k: int = 0) -> Float32Array:
    """Return a picture of splats ``(H, W, 3)``, from 0 to 1, as the viewer would show it."""
    with torch.no_grad():
        image = splats.render(seen.cameras[k])[0].cpu().numpy()
    return seen.as_displayed(np.clip(image, 0, 1).astype(np.float32))


def eight_bits(image: Float32Array) -> NDArray[np.uint8]:
    """Return colours from 0 to 1 as 0 to 255."""
    return (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8)


def write_pictures(path: Path, images: NDArray[np.uint8]) -> None:
    """Write the first picture as PNG, or all as a film; replaces an existing file in one step, or not at all.

    Raises
    ------
    ValueError
        If the ending is another, or what writes films is not installed.
    OSError
        If the file cannot be written.
    """
    from imageio.v3 import imwrite

    kind = path.suffix.lower()
    if kind not in (".png", ".mp4"):
        raise InputError(f"Pictures are saved as .png and films as .mp4; got {path.name}.")
    if kind == ".mp4" and (problem := film_problem()):
        raise InputError(problem)
    with atomic_write(path) as temporary:
        if kind == ".png":
            imwrite(temporary, images[0], extension=".png")
        else:
            even = images[:, : images.shape[1] // 2 * 2, : images.shape[2] // 2 * 2]  # as the codec needs them
            imwrite(temporary, even, extension=".mp4", plugin="FFMPEG", fps=_FILM_FPS, macro_block_size=2)


def film_problem() -> str:
    """Return why films cannot be written, in one sentence, or an empty one."""
    if importlib.util.find_spec("imageio_ffmpeg") is None:
        return "Films need the package imageio-ffmpeg, which is not installed: pip install imageio-ffmpeg."
    return ""
