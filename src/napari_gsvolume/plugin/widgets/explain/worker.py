"""What explains a network beside the viewer, and what its dock computes of an explanation. No Qt here."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ....errors import InputError
from ....explain.concepts.concept_maps import concept_maps
from ....explain.concepts.grids import ConceptMaps
from ....explain.concepts.interventions import Counterfactual, Edit
from ....explain.concepts.sample_positions import place_on_slice
from ....explain.explanation import Explanation, explain_steps
from ....explain.findings.finding import Finding
from ....explain.models.forward import find_tensor
from ....explain.models.inputs import Images, Place, Volume, prepare_images
from ....explain.models.loading import ExplainedModel, checkpoint_loader, load_model, match_layers
from ....explain.report.html import draw_map_view, render_report
from ....explain.report.tables import build_tables
from ....explain.settings import ExplainSettings, TrackSettings
from ....explain.tracking.checkpoints import natural_key, track_checkpoints
from ....explain.tracking.tracker import Evolution, Tracker
from ....grid import Grid
from ....io.atomic import atomic_write
from ....super_resolution.intensities import Intensities
from ....super_resolution.schemes import Prediction
from ....types import Float32Array
from ...layers.conversion import SourceVolume
from ..shared.worker import run_in_background as _run_in_background

Stop = Callable[[], bool]
_COMPARED = 8  # inputs, at least, that domains are compared by
_CHECKPOINTS = ("*.safetensors", "*.pt", "*.pth")

ALONE = threading.Lock()
"""Held by whatever runs a model: its layers are hooked meanwhile, and others' calls must not pass there."""


def run_in_background(news: Iterator[Any]) -> Iterator[Any]:
    """Pass news on as `shared.worker.run_in_background` does, while nothing else runs a model."""
    with ALONE:
        yield from _run_in_background(news)


@dataclass(frozen=True, eq=False)
class Explained:
    """A finished explanation.

    Attributes
    ----------
    of : Explanation
    sources : tuple of SourceVolume
        Its images, in its order.
    findings : tuple of Finding
        Those of the explanation, and where the images differ if there are several.
    """

    of: Explanation
    sources: tuple[SourceVolume, ...]
    findings: tuple[Finding, ...]


@dataclass(frozen=True, eq=False)
class Progress:
    """How far a run is, 0 to 1; with the last news what it came to."""

    progress: float
    message: str
    made: Any = field(default=None, repr=False)


def run_explain(
    loaded: ExplainedModel, sources: Sequence[SourceVolume], settings: ExplainSettings, stop: Stop
) -> Iterator[Progress]:
    """Explain a model by images; last comes the `Explained`, if there is anything."""
    yield from run_in_background(_explained(loaded, sources, settings, stop))


def _explained(
    loaded: ExplainedModel, sources: Sequence[SourceVolume], settings: ExplainSettings, stop: Stop
) -> Iterator[Progress]:
    volumes = [Volume.of(f"'{source.name}'", np.asarray(source.array), source.grid) for source in sources]
    volumes = [replace(volume, name=source.name) for volume, source in zip(volumes, sources, strict=True)]
    for step in explain_steps(loaded, volumes, settings, stop):
        yield Progress(0.9 * step.progress, step.message)
    result = step.result
    if result is None or result.empty:
        return
    found = list(result.findings)
    if len(volumes) > 1 and result.layers and not stop():
        yield Progress(0.9, "Comparing the images")
        found += _drift(result)
    yield Progress(1.0, "Done", Explained(result, tuple(sources), tuple(found)))


def _drift(of: Explanation) -> list[Finding]:
    """Return where layers treat the images differently."""
    names = [of.images.volumes[place.volume].name for place in of.images.places]
    if len(names) < _COMPARED or len(set(names)) < 2:
        return []
    tracker = Tracker(of.loaded.model, list(of.layers), of.images, names, k=of.settings.k, seed=of.settings.seed)
    try:
        tracker.record(0)
        return [f for f in tracker.findings() if f.kind == "drift"]
    except ValueError:  # a layer that does not tell inputs apart
        return []


# Maps and the report --------------------------------------------------------------------------------------------------


def run_maps(of: Explanation, layers: Sequence[str], count: int, stop: Stop) -> Iterator[Progress]:
    """Map the first concepts of layers over all images; last comes the list of `ConceptMaps`."""
    yield from run_in_background(_maps(of, layers, count, stop))


def _maps(of: Explanation, layers: Sequence[str], count: int, stop: Stop) -> Iterator[Progress]:
    made: list[ConceptMaps] = []
    chosen = {layer: of.layers[layer] for layer in layers}
    every = of.settings.model_copy(update={"slices": None})  # also slices that were not decomposed
    images = prepare_images(of.loaded, of.images.volumes, every)
    for step in concept_maps(of.loaded.model, images, chosen, count, seed=of.settings.seed):
        made += step.maps
        if stop():
            return
        yield Progress(step.done / step.total, "Mapping concepts")
    if not made:
        raise InputError(
            f"What the layer {', '.join(layers)} says has no place in the image, so there is no map of it."
        )
    yield Progress(1.0, "Done", made)


@dataclass(frozen=True)
class Exported:
    """A folder, and the names of the files in it."""

    folder: Path
    files: tuple[str, ...]


def run_export(explained: Explained, folder: Path, stop: Stop) -> Iterator[Progress]:
    """Write the report, which needs nothing besides itself, and the tables."""
    yield from run_in_background(_exported(explained, folder, stop))


def _exported(explained: Explained, folder: Path, stop: Stop) -> Iterator[Progress]:
    of = replace(explained.of, findings=explained.findings)
    views = []
    for step in concept_maps(of.loaded.model, of.images, of.layers, of.settings.maps, seed=of.settings.seed):
        views += [draw_map_view(maps, of.images) for maps in step.maps]
        if stop():
            return
        yield Progress(0.9 * step.done / step.total, "Drawing concept maps")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        files = build_tables(of)
        files["settings.json"] = json.dumps(of.settings.model_dump(), indent=2) + "\n"
        files["report.html"] = render_report(of, views, list(files))
        for name, text in files.items():
            with atomic_write(folder / name) as temporary:
                temporary.write_text(text, encoding="utf-8")
    except OSError as error:
        raise type(error)(f"{folder} cannot be written to: {error.strerror or error}.") from error
    yield Progress(1.0, "Done", Exported(folder, tuple(files)))


# Following a training -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Followed:
    """A training: each layer over its epochs, and what was found."""

    layers: dict[str, Evolution] = field(repr=False)
    findings: tuple[Finding, ...] = ()


def run_follow(
    folder: Path, loaded: ExplainedModel | None, sources: Sequence[SourceVolume], settings: TrackSettings, stop: Stop
) -> Iterator[Progress]:
    """Follow the checkpoints in a folder; after each comes what there is so far."""
    yield from run_in_background(_followed(folder, loaded, sources, settings, stop))


def _followed(
    folder: Path, loaded: ExplainedModel | None, sources: Sequence[SourceVolume], settings: TrackSettings, stop: Stop
) -> Iterator[Progress]:
    paths = sorted({path for pattern in _CHECKPOINTS for path in folder.glob(pattern)}, key=natural_key)
    if not paths:
        raise InputError(f"There are no checkpoints ({', '.join(_CHECKPOINTS)}) in {folder}.")
    volumes = [Volume.of(source.name, np.asarray(source.array), source.grid) for source in sources]
    factory = None if loaded is None or loaded.sr is not None else load_model(loaded.name)  # a copy to be filled
    load = checkpoint_loader(factory)
    first = load_model(paths[0]) if factory is None else factory
    inputs = prepare_images(first, volumes, settings)
    names = match_layers(first.model, settings.layers)
    samples = max(settings.max_samples, 64 * len(inputs.places))
    more: dict[str, Any] = {"k": settings.k, "max_samples": samples, "seed": settings.seed}
    for step in track_checkpoints(paths, load, names, inputs, **more):
        tracker = step.tracker
        layers = {layer: tracker.evolution(layer) for layer in dict.fromkeys(r.layer for r in tracker.history)}
        message = f"{step.path.name}: {step.done} of {step.total} checkpoints"
        yield Progress(step.done / step.total, message, Followed(layers, tuple(tracker.findings())))
        if stop():
            return


# What if --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a model gives under an edit.

    Attributes
    ----------
    image, change : ndarray of float32 or None
        The edited output on `grid`, and edited - unedited; NaN where the input does not reach. None where the output
        is no image.
    numbers : ndarray, (m, 2), or None
        The output without and with the edit, where it is numbers.
    """

    layer: str
    mode: int
    amount: float
    place: Place
    image: Float32Array | None = field(default=None, repr=False)
    change: Float32Array | None = field(default=None, repr=False)
    grid: Grid | None = None
    numbers: NDArray[np.float64] | None = field(default=None, repr=False)


class WhatIf:
    """A model at one input, with a component of one of its layers moved: behind a slider.

    Parameters
    ----------
    of : Explanation
    layer : str
    place : Place
        The input.
    channel : int
        Of an output of several images.
    """

    def __init__(self, of: Explanation, layer: str, place: Place, channel: int = 0) -> None:
        self._of, self._place, self._channel = of, place, channel
        with ALONE:
            self._run = Counterfactual(of.loaded.model, of.images.input(place), layer, seed=of.settings.seed)
        self.layer = layer
        self._before = output_of(self._run.unedited, of, place, channel)

    def at(self, mode: int, amount: float) -> Outcome:
        """Return the output with a component, counted from 0, moved by an amount, in its `spread`."""
        edit = Edit.of_mode(self._of.layers[self.layer], mode, amount)
        with ALONE:
            given = self._run(edit)
        after = output_of(given, self._of, self._place, self._channel)
        if self._before.ndim == 1:
            pairs = np.stack([self._before, after], 1).astype(np.float64)
            return Outcome(self.layer, mode, amount, self._place, numbers=pairs)
        image, grid = place_on_slice(after, self._place, self._of.images)
        change, _ = place_on_slice(after - self._before, self._place, self._of.images)
        return Outcome(self.layer, mode, amount, self._place, image, change, grid)


def output_of(given: Any, of: Explanation, place: Place, channel: int = 0) -> Float32Array:
    """Return what a model gave for one input: an image along the input's axes, in its intensities, or numbers (m,).

    Raises
    ------
    ValueError
        If there is no such channel.
    """
    if isinstance(given, Prediction):
        line = Intensities.of(of.images.volumes[place.volume].data)
        image = given.image[0].detach().cpu().numpy() * line.scale + line.centre
        return np.asarray(image, np.float32)
    tensor = find_tensor(given, "The model").detach().float().cpu().numpy()
    axes = len(place.extent)
    if tensor.ndim != axes + 2 or len(tensor) != 1:
        return np.asarray(tensor.ravel())
    if not 0 <= channel < tensor.shape[1]:
        raise InputError(f"The output has {tensor.shape[1]} channels; there is no {channel}.")
    return np.asarray(tensor[0, channel])


def place_at(images: Images, volume: int, index: int | None, point: NDArray[np.float64] | None = None) -> Place:
    """Return the input of one image at a slice, and of its tiles the one whose middle is nearest to a point of it."""
    own = [place for place in images.places if place.volume == volume]
    if not own:
        raise InputError("No input is of this image, as the images are channels of one input.")
    layout = images.layout
    if index is not None and layout.across is not None:
        nearest = min(own, key=lambda place: abs((place.slice or 0) - index)).slice
        own = [replace(place, slice=index) for place in own if place.slice == nearest]
    if point is None:
        return own[len(own) // 2]

    def distance(place: Place) -> float:
        middle = np.array(place.start) + (np.array(place.extent) - 1) / 2
        return float(np.square(middle - point[list(layout.axes)]).sum())

    return min(own, key=distance)


def patch_box(images: Images, place: Place, start: Sequence[int], sides: Sequence[int]) -> tuple[slice, ...]:
    """Return the voxels, (Z, Y, X) or (Y, X), of a patch of an input in its image."""
    layout, shape = images.layout, images.volumes[place.volume].grid.shape
    box = [slice(None)] * 3
    if layout.across is not None and place.slice is not None:
        box[layout.across] = slice(place.slice, place.slice + 1)
    for axis, first, offset, n in zip(layout.axes, place.start, start, sides, strict=True):
        box[axis] = slice(max(0, first + offset), max(0, first + offset + n))
    return tuple(box[3 - len(shape) :])
