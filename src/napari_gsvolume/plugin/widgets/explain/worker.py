"""Background runs of the Explain widget: explanation, maps, report, tracking, counterfactuals. No Qt here."""

from __future__ import annotations

import functools
import json
import threading
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import numpy as np
from numpy.typing import NDArray

from ....errors import InputError
from ....explain.concepts.concept_maps import concept_map_steps
from ....explain.concepts.grids import ConceptMaps
from ....explain.concepts.interventions import Counterfactual, Edit
from ....explain.concepts.sample_positions import place_on_slice
from ....explain.explanation import Explanation, explain_steps
from ....explain.findings.finding import Finding
from ....explain.models.explained_model import ExplainedModel
from ....explain.models.forward import find_tensor
from ....explain.models.inputs import Images, Place, Volume, prepare_images
from ....explain.models.loading import load_model
from ....explain.report.html import draw_map_view, render_report
from ....explain.report.tables import build_tables
from ....explain.settings import ExplainSettings, TrackSettings
from ....explain.tracking.checkpoints import track_steps
from ....explain.tracking.records import Evolution
from ....explain.tracking.tracker import Tracker
from ....grid import Grid
from ....io.atomic import atomic_write
from ....progress import Budget, Step, rescaled
from ....super_resolution.intensities import Intensities
from ....super_resolution.schemes import Prediction
from ....types import Float32Array
from ...layers.conversion import SourceVolume

StepT = TypeVar("StepT", bound=Step)
ResultT = TypeVar("ResultT")
Parameters = ParamSpec("Parameters")
_COMPARED = 8  # smallest number of inputs for a comparison of domains
_CHECKPOINTS = ("*.safetensors", "*.pt", "*.pth")

ALONE = threading.Lock()
"""Lock of all calls of a model: its layers are hooked during a run, and other calls must not pass through them."""


def holding_models(
    run: Callable[Parameters, Generator[StepT, None, ResultT]],
) -> Callable[Parameters, Generator[StepT, None, ResultT]]:
    """Decorate a long run that calls a model: it holds the lock `ALONE`."""

    @functools.wraps(run)
    def steps(*args: Parameters.args, **options: Parameters.kwargs) -> Generator[StepT, None, ResultT]:
        with ALONE:
            return (yield from run(*args, **options))

    return steps


@dataclass(frozen=True, eq=False)
class ExplainedImages:
    """Explanation of a model on image layers.

    Attributes
    ----------
    explanation : Explanation
    sources : tuple of SourceVolume
        Images of the explanation, in its order.
    findings : tuple of Finding
        Findings of the explanation, and differences between several images.
    """

    explanation: Explanation
    sources: tuple[SourceVolume, ...]
    findings: tuple[Finding, ...]


@holding_models
def explain_images_steps(
    model: ExplainedModel, sources: Sequence[SourceVolume], settings: ExplainSettings, *, budget: Budget
) -> Generator[Step, None, ExplainedImages | None]:
    """Explain a model on image layers; the result is None if nothing was decomposed."""
    volumes = [Volume.of(f"'{source.name}'", np.asarray(source.array), source.grid) for source in sources]
    volumes = [replace(volume, name=source.name) for volume, source in zip(volumes, sources, strict=True)]
    explanation = yield from rescaled(explain_steps(model, volumes, settings, budget=budget), 0.0, 0.9)
    if explanation.is_empty:
        return None
    found = list(explanation.findings)
    if len(volumes) > 1 and explanation.layers and not budget.stop():
        yield Step(0.9, "Comparing the images")
        found += _find_differences(explanation)
    return ExplainedImages(explanation, tuple(sources), tuple(found))


def _find_differences(explanation: Explanation) -> list[Finding]:
    """Return findings of layers that represent the images differently."""
    names = [explanation.images.volumes[place.volume].name for place in explanation.images.places]
    if len(names) < _COMPARED or len(set(names)) < 2:
        return []
    s = explanation.settings
    tracker = Tracker(explanation.model, list(explanation.layers), explanation.images, names, k=s.k, seed=s.seed)
    try:
        tracker.record(0)
        return [f for f in tracker.findings() if f.kind == "drift"]
    except ValueError:  # a layer with one output for a whole batch
        return []


# Maps and the report --------------------------------------------------------------------------------------------------


@holding_models
def map_layer_steps(
    explanation: Explanation, layer: str, count: int, *, budget: Budget
) -> Generator[Step, None, tuple[ConceptMaps, ...] | None]:
    """Map the first concepts of a layer over all images; the result is None if it was stopped."""
    s = explanation.settings
    images = explanation.images
    if s.slices is not None:  # maps have all slices, also those that were not decomposed
        images = prepare_images(explanation.model, images.volumes, s.model_copy(update={"slices": None}))
    components = {layer: explanation.layers[layer]}
    maps = yield from concept_map_steps(explanation.model, images, components, count, seed=s.seed, budget=budget)
    if not maps:
        if budget.stop():
            return None
        raise InputError(f"The positions of the layer {layer} have no location in the image, so there is no map.")
    return maps


def finished_maps(explanation: Explanation, layer: str, count: int) -> tuple[ConceptMaps, ...]:
    """Return the maps of a layer in an explanation, if they cover all slices and `count` concepts."""
    maps = tuple(one for one in explanation.maps if one.layer == layer)
    complete = explanation.settings.slices is None and all(one.count >= count for one in maps)
    return maps if complete else ()


@dataclass(frozen=True)
class SavedReport:
    """Folder of a saved report, and the names of its files."""

    folder: Path
    files: tuple[str, ...]


def save_report_steps(
    explained: ExplainedImages, folder: Path, *, budget: Budget
) -> Generator[Step, None, SavedReport | None]:
    """Write the self-contained report and its tables to a folder; the result is None if it was stopped."""
    explanation = replace(explained.explanation, findings=explained.findings)
    views = []
    for number, maps in enumerate(explanation.maps):
        yield Step(0.9 * number / len(explanation.maps), "Drawing concept maps")
        if budget.stop():
            return None
        views.append(draw_map_view(maps))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        files = build_tables(explanation)
        files["settings.json"] = json.dumps(explanation.settings.model_dump(), indent=2) + "\n"
        files["report.html"] = render_report(explanation, views, list(files))
        for name, text in files.items():
            with atomic_write(folder / name) as temporary:
                temporary.write_text(text, encoding="utf-8")
    except OSError as error:
        raise type(error)(f"{folder} cannot be written to: {error.strerror or error}.") from error
    return SavedReport(folder, tuple(files))


# Tracking of a training -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class TrackedTraining:
    """Evolution of each layer over the epochs of a training, and findings."""

    layers: dict[str, Evolution] = field(repr=False)
    findings: tuple[Finding, ...] = ()

    @classmethod
    def of(cls, tracker: Tracker) -> TrackedTraining:
        """Return the current state of a tracker."""
        names = dict.fromkeys(record.layer for record in tracker.history)
        return cls({layer: tracker.evolution(layer) for layer in names}, tuple(tracker.findings()))


@dataclass(frozen=True, eq=False)
class TrainingStep(Step):
    """Step after a checkpoint, with the state of the tracking as a preview."""

    training: TrackedTraining = field(repr=False)


@holding_models
def track_folder_steps(
    folder: Path,
    model: ExplainedModel | None,
    sources: Sequence[SourceVolume],
    settings: TrackSettings,
    *,
    budget: Budget,
) -> Generator[TrainingStep, None, str]:
    """Track the checkpoints in a folder, with a preview after each; the result is a summary."""
    paths = {path for pattern in _CHECKPOINTS for path in folder.glob(pattern)}
    if not paths:
        raise InputError(f"There are no checkpoints ({', '.join(_CHECKPOINTS)}) in {folder}.")
    volumes = [Volume.of(source.name, np.asarray(source.array), source.grid) for source in sources]
    factory = None if model is None or model.sr is not None else load_model(model.name)  # a copy for the weights
    steps = track_steps(paths, volumes, settings, model=factory, budget=budget)
    while True:
        try:
            step = next(steps)
        except StopIteration as end:
            tracking = end.value
            return f"{tracking.checkpoints[-1].name}: {len(tracking.checkpoints)} of {tracking.total} checkpoints."
        message = f"{step.path.name}: {step.done} of {step.total} checkpoints"
        yield TrainingStep(step.fraction, message, TrackedTraining.of(step.tracker))


# What if --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class EditedOutput:
    """Output of a model under an edit.

    Attributes
    ----------
    image, change : ndarray of float32 or None
        Edited output on `grid`, and edited minus unedited output; NaN outside the input. None if the output is no
        image.
    numbers : ndarray, (m, 2), or None
        Output without and with the edit, if it is a vector of numbers.
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
    """Outputs of a model for one input, with a component of a layer changed, as for a slider.

    Parameters
    ----------
    explanation : Explanation
    layer : str
    place : Place
        Location of the input.
    channel : int
        Channel of outputs of several images.
    """

    def __init__(self, explanation: Explanation, layer: str, place: Place, channel: int = 0) -> None:
        self._explanation, self._place, self._channel = explanation, place, channel
        with ALONE:
            self._run = Counterfactual(
                explanation.model, explanation.images.input(place), layer, seed=explanation.settings.seed
            )
        self.layer = layer
        self._before = output_of(self._run.unedited, explanation, place, channel)

    def at(self, mode: int, amount: float) -> EditedOutput:
        """Return the output with a component, counted from 0, moved by an amount, in its `spread`."""
        edit = Edit.of_mode(self._explanation.layers[self.layer], mode, amount)
        with ALONE:
            given = self._run(edit)
        after = output_of(given, self._explanation, self._place, self._channel)
        if self._before.ndim == 1:
            pairs = np.stack([self._before, after], 1).astype(np.float64)
            return EditedOutput(self.layer, mode, amount, self._place, numbers=pairs)
        image, grid = place_on_slice(after, self._place, self._explanation.images)
        change, _ = place_on_slice(after - self._before, self._place, self._explanation.images)
        return EditedOutput(self.layer, mode, amount, self._place, image, change, grid)


def output_of(given: Any, explanation: Explanation, place: Place, channel: int = 0) -> Float32Array:
    """Return the output for one input: an image along its axes, in its intensities, or numbers (m,).

    Raises
    ------
    InputError
        If there is no such channel.
    """
    if isinstance(given, Prediction):
        line = Intensities.of(explanation.images.volumes[place.volume].data)
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
    """Return the location of the input of an image at a slice; of several tiles, the one nearest to a point."""
    own = [place for place in images.places if place.volume == volume]
    if not own:
        raise InputError("The images are channels of one input, so this one has no inputs of its own.")
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
