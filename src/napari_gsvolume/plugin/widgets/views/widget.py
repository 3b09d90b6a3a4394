"""Dock widget for direct volume rendering, and for training Gaussian splats on its images."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any, get_args

import numpy as np
from magicgui.widgets import ComboBox, Container, LineEdit, PushButton
from napari.layers import Image, Labels, Layer
from napari.utils.notifications import show_warning
from napari.viewer import Viewer
from qtpy.QtWidgets import QFileDialog

from ....devices import devices, gsplat_problem
from ....errors import InputError
from ....rendering.settings import RenderMode, SplatTrainingSettings
from ....rendering.splats.ply import read_splats
from ...layers.conversion import SourceVolume, find_earlier_layer, label_array
from ...layers.pictures import is_picture, picture_layer
from ...layers.projections import scan_of
from ..shared.base import RunWidget, row_of, time_left
from ..shared.camera import viewer_camera
from ..shared.form import ChoicesFound, SettingsForm
from ..shared.layer_choice import LayerChoice
from ..shared.layer_updater import LayerUpdater
from ..shared.live_view import PictureLabel
from ..shared.plots import LossPlot
from ..shared.worker import PreviewThrottle
from .splats_panel import ModelPanel
from .transfer_panel import TransferFunctionPanel
from .worker import (
    ModelTrainingStep,
    PictureRequest,
    Pictures,
    PictureStep,
    SceneSource,
    SplatModel,
    render_pictures_steps,
    train_models_steps,
)

_MAIN = ("gaussians", "views", "image_size", "sh_degree", "time_limit")
_TOGETHER, _EACH = "all labels together", "each label on its own"
_SECONDS = 120.0
_GAP = 2  # pixels between reference and rendering
_PAIR_WIDTH = 270  # screen pixels of both together


def _devices() -> ChoicesFound:
    """Return the available devices, and the reason if there is no GPU; starts CUDA if there is one."""
    problem = gsplat_problem()
    return ({"auto": "auto", "cpu": "cpu"}, f"No GPU can be used: {problem}") if problem else (devices(), "")


class ViewsWidget(RunWidget):
    """Choose a volume and its transfer function, and train splats on its direct volume renderings.

    Parameters
    ----------
    napari_viewer : napari.Viewer
        Viewer with the layers.
    """

    _START = "Train"

    def __init__(self, napari_viewer: Viewer) -> None:
        self.transfer_panel = TransferFunctionPanel(self._source, self._say)
        self.part = LayerChoice(
            napari_viewer,
            "Part",
            lambda layer: isinstance(layer, Labels),
            "Labels layer of the visible part; voxels with label 0 are hidden",
            none="the whole volume",
        )
        self.each = ComboBox(
            label="Labels",
            choices=[_TOGETHER, _EACH],
            value=_TOGETHER,
            tooltip="One model for all labels, or one per label to show and hide; these share the time limit",
        )
        self.intervals = LineEdit(
            label="Intervals",
            tooltip="Named intervals of intensities, one model each, for example: bone 200 3000; fat -150 -30",
        )
        suggested = {"time_limit": _SECONDS}
        self.form = SettingsForm(
            SplatTrainingSettings, _MAIN, suggested, suggested, late={"device": (("auto", "cpu"), _devices)}
        )
        self.form.fields["views"].label = "Number of views"
        self.form.fields["image_size"].label = "Image size (pixels)"
        self.form.fields["sh_degree"].label = "SH degree"
        source = LayerChoice(
            napari_viewer,
            "Image",
            lambda layer: isinstance(layer, Image) and not is_picture(layer),
            "Image layer with the volume to render",
            prefers=lambda layer: scan_of(layer.metadata) is None,
        )
        self.mode = ComboBox(
            label="Mode",
            choices=list(get_args(RenderMode)),
            value="dvr",
            tooltip="Render mode. dvr: colours; mip, minip, mean: maximum, minimum, mean intensity along each ray; "
            "xray: line integrals",
        )
        self.dvr = PushButton(text="DVR view", tooltip="Render the volume from the viewer's camera, as a layer")
        self.open_file = PushButton(
            text="Open splats…", tooltip="Open splats from a .ply file, placed at the chosen image"
        )
        self._direct = Container(widgets=[self.mode, self.dvr, self.open_file], layout="horizontal", labels=False)
        self._direct.margins = (0, 0, 0, 0)
        self.panel = ModelPanel(napari_viewer, self._render, self._say)
        panel = self.transfer_panel
        rows = [panel.choice, panel.file, panel.shading, self.part, self.each, self.intervals, *self.form.rows]
        super().__init__(napari_viewer, rows, [], source=source)
        for fold in (panel.fold, *self.form.folds):
            self.content.insertWidget(self.content.indexOf(row_of(self.button)), fold)
        self.picture, self.plot = PictureLabel(_PAIR_WIDTH), LossPlot(napari_viewer)
        self.picture.hide()
        # The live view takes the place of the last picture, below the status line.
        for widget in (self._direct.native, self.picture, self.panel.live, self.panel.native, self.plot):
            self.content.addWidget(widget)
        self.panel.native.hide()
        self.content.addStretch()
        self.part.changed.connect(self._on_labels)
        self._on_labels(self.part.value)
        panel.show_rows()
        for box in (self.time_point, self.level):
            box.changed.connect(panel.renew)
        self.panel.follow.changed.connect(lambda on: self.picture.setVisible(not on))
        self.dvr.changed.connect(self._on_render)
        self.open_file.changed.connect(self._on_open)

    @property
    def models(self) -> dict[str, SplatModel]:
        """Trained and opened models by name."""
        return self.panel.models

    def reset_choices(self, *args: Any) -> None:
        """Follow the viewer's layers; napari calls it when they change."""
        super().reset_choices(*args)
        self._on_labels(self.part.value)

    def _on_image(self, layer: Layer | None) -> None:
        super()._on_image(layer)
        self.transfer_panel.follow(layer)

    def _on_labels(self, labels: Layer | None) -> None:
        self.each.visible = labels is not None

    # Running ----------------------------------------------------------------------------------------------------------

    def _source(self) -> SourceVolume:
        """Return the chosen volume; raise InputError if there is none, or it is two-dimensional."""
        source = self._volumes()[0]
        if source.grid.ndim != 3:
            raise InputError(f"'{source.name}' has two dimensions; views need a volume.")
        return source

    def _scene_source(self) -> SceneSource:
        source, labels = self._source(), self.part.value
        values = None if labels is None else label_array(labels, source.grid)
        if values is not None and not values.any():
            raise InputError(f"'{labels.name}' has no label but 0, so that there is nothing to show.")
        panel, intervals = self.transfer_panel, read_intervals(self.intervals.value)
        return SceneSource(source, panel.factory(), panel.shading.value, values, intervals=intervals)

    def _begin(self) -> None:
        settings, scene_source = self.form.settings(), self._scene_source()
        self._throttle, self._names, self._drawn = PreviewThrottle(), list[str](), -1
        self._prepare()
        by_label = self.each.value == _EACH
        self._start(train_models_steps, scene_source, by_label, settings, self._throttle)

    def _render(self, request: PictureRequest) -> None:
        """Start rendering pictures."""
        if self.running:
            raise InputError("A run is in progress; stop it first, or wait for its end.")
        self._prepare()
        self._start(render_pictures_steps, request)

    def _prepare(self) -> None:
        self._done = False
        self._enable(False)

    def _enable(self, on: bool) -> None:
        self.panel.enable(on)
        self.dvr.enabled = on

    def _end(self) -> None:
        self._enable(True)
        if self._done and not self._error_shown:
            self.progress.value = self.progress.max
        elif not self._error_shown:
            self._say("Stopped before there was a result.")

    def _show_step(self, step: ModelTrainingStep | PictureStep) -> None:
        super()._show_step(step)
        if isinstance(step, ModelTrainingStep):
            self._show_training(step)

    def _show_result(self, result: list[SplatModel] | Pictures | None) -> None:
        if isinstance(result, Pictures):
            self._show_pictures(result)
        self._done = bool(result)

    # Training ---------------------------------------------------------------------------------------------------------

    def _show_training(self, step: ModelTrainingStep) -> None:
        self._say(training_status(step, time.perf_counter() - self._started))
        self._show_picture(_side_by_side(step.step.reference, step.step.image))
        if len(step.step.history) != self._drawn:
            self._drawn = len(step.step.history)
            self.plot.show_history(step.step.history)
        if step.model is not None:
            self._names.append(step.name)
            self.panel.add_model(step.model)
            self.panel.check_trained(step.model.source.name, self._names)
        self._throttle.drawn()

    def _show_picture(self, picture: np.ndarray[Any, Any]) -> None:
        self.picture.show_picture(picture)
        self.picture.setVisible(not self.panel.follow.value)

    # Pictures ---------------------------------------------------------------------------------------------------------

    def _on_render(self) -> None:
        try:
            scene_source = self._scene_source()
            frame = viewer_camera(self._viewer, scene_source.source.grid, self.panel.pixels.value)
            mode: RenderMode = self.mode.value
            metadata = {"mode": mode, "shading": scene_source.shading}
            source = scene_source.source
            self._render(PictureRequest("DVR", source, frame, scene_source=scene_source, mode=mode, metadata=metadata))
        except (ValueError, MemoryError) as error:
            self._say(str(error), show_warning)

    def _show_pictures(self, pictures: Pictures) -> None:
        request, count = pictures.request, len(pictures.images)
        if request.path is not None:
            self._say(f"Saved {request.path.name}.")
            return
        name = f"{request.source.name} · {request.kind}"
        images = pictures.images if request.kind == "turntable" else pictures.images[0]
        psnr = pictures.psnr_db
        metadata = request.metadata if psnr is None else {**request.metadata, "psnr_db": psnr}
        shown = LayerUpdater(self._viewer, {name: find_earlier_layer(self._viewer.layers, name)})
        units = request.source.grid.units
        data = picture_layer(request.source.name, request.kind, images, request.frame, units, metadata)
        added = shown.put(name, data)
        height, width = pictures.images.shape[1:3]
        what = f"{count} pictures" if count > 1 else "a picture"
        quality = "" if psnr is None else f", PSNR {psnr:.2f} dB to DVR"
        self._say(f"'{name}' is {what} of {width} x {height} pixels{quality}.")
        if name in shown.layers and shown.layers[name] in self._viewer.layers:
            self._present(shown.layers[name], pictures, added)

    def _present(self, layer: Layer, pictures: Pictures, added: bool) -> None:
        """Make pictures visible: as a layer in 2D, in the dock while the viewer shows the volume in 3D."""
        dims, is_turntable = self._viewer.dims, pictures.request.kind == "turntable"
        first = pictures.images[0]
        self._show_picture(first / np.float32(255) if first.dtype == np.uint8 else first)
        if dims.ndisplay == 3 and not is_turntable:
            if added:
                layer.visible = False
                self._say(f"{self.status.value[:-1]}; the layer is hidden while the viewer shows 3D.")
            return
        if not added:
            return
        for other in self._viewer.layers:
            if other.name != layer.name and (is_picture(other) or other.name == pictures.request.source.name):
                other.visible = False
        if is_turntable:
            dims.ndisplay = 2
            dims.order = tuple(range(dims.ndim))
            dims.set_point(dims.ndim - 3, float(layer.translate[0]))
            self._viewer.reset_view()

    # Files ------------------------------------------------------------------------------------------------------------

    def _on_open(self) -> None:
        path, _ = QFileDialog.getOpenFileName(self.native, "Open splats", "", "Splats (*.ply)")
        if path:
            self.open_splats(path)

    def open_splats(self, path: str | Path) -> None:
        """Add the splats of a file to the models, placed at the chosen image."""
        try:
            model = SplatModel(Path(path).name, read_splats(path), self._source())
        except (ValueError, OSError, MemoryError) as error:
            self._say(str(error), show_warning)
            return
        self.panel.add_model(model)
        self._say(f"Opened {model.name}: {len(model.splats):,} Gaussians.")


def _side_by_side(reference: np.ndarray[Any, Any], image: np.ndarray[Any, Any] | None) -> np.ndarray[Any, Any]:
    """Return two views side by side, the second one black while it does not exist."""
    gap = np.full((len(reference), _GAP, 3), 0.5, np.float32)
    return np.concatenate([reference, gap, np.zeros_like(reference) if image is None else image], 1)


def training_status(step: ModelTrainingStep, seconds: float) -> str:
    """Return the status line of a training that has run for some seconds."""
    training, model = step.step, step.model
    prefix = f"{step.name.rpartition(' · ')[2]} ({step.index + 1} of {step.count}), " if step.count > 1 else ""
    if model is not None and model.trained is not None:
        t = model.trained
        return (
            f"{prefix}{t.psnr_db:.2f} dB and SSIM {t.ssim:.3f} on held-out views, {len(t.splats):,} Gaussians, "
            f"{t.fps:.0f} views/s, {t.seconds:.0f} s. {t.message}"
        )
    if training.splats is None or not training.history:
        return f"{prefix}{training.message}"
    last = training.history[-1]
    quality = ""
    if last.psnr_db is not None and last.ssim is not None:
        quality = f", held out {last.psnr_db:.2f} dB, SSIM {last.ssim:.3f}"
    counts = f"{len(training.splats):,} Gaussians{time_left(seconds, step.fraction)}"
    return f"{prefix}{training.message}: iteration {training.iteration:,}, loss {last.loss:.3g}{quality}, {counts}"


def read_intervals(text: str) -> dict[str, tuple[float, float]]:
    """Parse named intervals, as in ``bone 200 3000; fat -150 -30``; raise InputError if they are invalid."""
    found = {}
    for item in filter(None, (part.strip() for part in text.split(";"))):
        *words, first, last = item.replace(",", " ").split() if len(item.split()) > 2 else ["", "", ""]
        try:
            low, high = float(first), float(last)
        except ValueError:
            low = high = 0.0
        name = " ".join(words)
        if not (name and math.isfinite(low) and low < high < math.inf) or name in found:
            raise InputError(
                f"'{item}' is no interval; write a name, the lower and the upper limit, for example: bone 200 3000."
            )
        found[name] = (low, high)
    return found
