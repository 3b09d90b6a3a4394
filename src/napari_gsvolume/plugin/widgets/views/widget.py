"""The dock widget that shows a volume by direct volume rendering, and trains splats that look the same."""

from __future__ import annotations

import math
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
from ....rendering.settings import RenderMode, TrainSettings
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
from .transfer_panel import ColourRows
from .worker import Order, Part, Pictures, Subject, TrainNews, run_pictures, run_training

_MAIN = ("gaussians", "views", "size", "sh_degree", "time_limit")
_TOGETHER, _EACH = "all labels together", "each label on its own"
_SECONDS = 120.0
_GAP = 2  # pixels between reference and trained view
_PAIR = 270  # pixels on the screen, of both


def _devices() -> ChoicesFound:
    """Return the devices there are, and why none of them is a GPU; where there is one, this starts CUDA."""
    problem = gsplat_problem()
    return ({"auto": "auto", "cpu": "cpu"}, f"No GPU can be used: {problem}") if problem else (devices(), "")


class ViewsWidget(RunWidget):
    """Choose a volume and its colours, press Train: splats appear beside what they should look like.

    Parameters
    ----------
    napari_viewer : napari.Viewer
        The viewer to take layers from and to add layers to.
    """

    _START = "Train"

    def __init__(self, napari_viewer: Viewer) -> None:
        self.colours = ColourRows(self._source, self._say)
        self.part = LayerChoice(
            napari_viewer, "Part", lambda layer: isinstance(layer, Labels), "Only what has labels is seen",
            none="the whole volume",
        )  # fmt: skip
        self.each = ComboBox(
            label="Labels", choices=[_TOGETHER, _EACH], value=_TOGETHER,
            tooltip="One set of splats, or one a label, which can be shown and hidden; these share the time",
        )  # fmt: skip
        self.intervals = LineEdit(
            label="Intervals",
            tooltip="Named intervals of intensities, each trained on its own, as: bone 200 3000; fat -150 -30",
        )
        suggested = {"time_limit": _SECONDS}
        self.form = SettingsForm(
            TrainSettings, _MAIN, suggested, suggested, late={"device": (("auto", "cpu"), _devices)}
        )
        self.form.fields["views"].label = "Number of views"
        self.form.fields["size"].label = "Pixels of a view"
        self.form.fields["sh_degree"].label = "Harmonics' degree"
        source = LayerChoice(
            napari_viewer, "Image", lambda layer: isinstance(layer, Image) and not is_picture(layer), "What is shown",
            prefers=lambda layer: scan_of(layer.metadata) is None,
        )  # fmt: skip
        self.mode = ComboBox(
            label="Mode", choices=list(get_args(RenderMode)), value="dvr",
            tooltip="dvr: colours; mip, minip, mean: largest, smallest, mean intensity of rays; xray: line integrals",
        )  # fmt: skip
        self.dvr = PushButton(text="DVR view", tooltip="Render the volume itself from the viewer's camera, as a layer")
        self.open_file = PushButton(text="Open splats…", tooltip="A .ply file, to be seen in the place of the image")
        self._direct = Container(widgets=[self.mode, self.dvr, self.open_file], layout="horizontal", labels=False)
        self._direct.margins = (0, 0, 0, 0)
        self.panel = ModelPanel(napari_viewer, self._make, self._say)
        rows = [self.colours.choice, self.colours.file, self.colours.shading, self.part, self.each, self.intervals]
        rows += self.form.rows
        super().__init__(napari_viewer, rows, [], source=source)
        for fold in (self.colours.fold, *self.form.folds):
            self.content.insertWidget(self.content.indexOf(row_of(self.button)), fold)
        self.picture, self.plot = PictureLabel(_PAIR), LossPlot(napari_viewer)
        self.picture.hide()
        # The live picture takes the place of the last one, below what says how far it is.
        for widget in (self._direct.native, self.picture, self.panel.live, self.panel.native, self.plot):
            self.content.addWidget(widget)
        self.panel.native.hide()
        self.content.addStretch()
        self.part.changed.connect(self._on_labels)
        self._on_labels(self.part.value)
        self.colours.show_rows()
        for box in (self.time_point, self.level):
            box.changed.connect(self.colours.renew)
        self.panel.follow.changed.connect(lambda on: self.picture.setVisible(not on))
        self.dvr.changed.connect(self._on_render)
        self.open_file.changed.connect(self._on_open)

    @property
    def parts(self) -> dict[str, Part]:
        """What has been trained or opened, by name."""
        return self.panel.parts

    def reset_choices(self, *args: Any) -> None:
        """Follow the viewer's layers; napari calls it when they change."""
        super().reset_choices(*args)
        self._on_labels(self.part.value)

    def _on_image(self, layer: Layer | None) -> None:
        super()._on_image(layer)
        self.colours.follow(layer)

    def _on_labels(self, labels: Layer | None) -> None:
        self.each.visible = labels is not None

    # Running ----------------------------------------------------------------------------------------------------------

    def _source(self) -> SourceVolume:
        """Return the chosen volume; raise ValueError if there is none, or it is flat."""
        source = self._volumes()[0]
        if source.grid.ndim != 3:
            raise InputError(f"'{source.name}' is flat; what is looked at from all around is a volume.")
        return source

    def _subject(self) -> Subject:
        source, labels = self._source(), self.part.value
        values = None if labels is None else label_array(labels, source.grid)
        if values is not None and not values.any():
            raise InputError(f"'{labels.name}' has no label but 0, so there is nothing to show.")
        intervals = read_intervals(self.intervals.value)
        return Subject(source, self.colours.look(), self.colours.shading.value, values, intervals=intervals)

    def _begin(self) -> None:
        settings, subject = self.form.settings(), self._subject()
        self._pace, self._names, self._drawn = PreviewThrottle(), list[str](), -1
        self._begun()
        self._start(run_training, subject, self.each.value == _EACH, settings, self._pace)

    def _make(self, order: Order) -> None:
        """Make pictures beside the viewer."""
        if self.running:
            raise InputError("Something is running; stop it first, or wait for its end.")
        self._begun()
        self._start(run_pictures, order)

    def _begun(self) -> None:
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
            self._say("Stopped before there was anything to show.")

    def _show(self, news: TrainNews | Pictures) -> None:
        if isinstance(news, Pictures):
            self._show_pictures(news)
        else:
            self._show_training(news)

    # Training ---------------------------------------------------------------------------------------------------------

    def _show_training(self, news: TrainNews) -> None:
        self.progress.value = round(1000 * news.progress)
        self._say(_figures(news))
        step = news.step
        if step.reference is not None:
            self._picture(_pair(step.reference, step.image))
        if len(step.history) != self._drawn:
            self._drawn = len(step.history)
            self.plot.show_history(step.history)
        if news.part is not None:
            self._done = True
            self._names.append(news.name)
            self.panel.put(news.part)
            self.panel.check_trained(news.part.source.name, self._names)
        self._pace.drawn()

    def _picture(self, picture: np.ndarray[Any, Any]) -> None:
        self.picture.show_picture(picture)
        self.picture.setVisible(not self.panel.follow.value)

    # Pictures ---------------------------------------------------------------------------------------------------------

    def _on_render(self) -> None:
        try:
            subject = self._subject()
            seen = viewer_camera(self._viewer, subject.source.grid, self.panel.pixels.value)
            mode: RenderMode = self.mode.value
            about = {"mode": mode, "shading": subject.shading}
            self._make(Order("DVR", subject.source, seen, subject=subject, mode=mode, about=about))
        except (ValueError, MemoryError) as error:
            self._say(str(error), show_warning)

    def _show_pictures(self, made: Pictures) -> None:
        self.progress.value = round(1000 * made.done / made.count)
        order, name = made.order, f"{made.order.source.name} · {made.order.kind}"
        if made.images is None:
            self._say(f"{made.done} of {made.count} pictures")
            return
        self._done = True
        if order.path is not None:
            self._say(f"Saved {order.path.name}.")
            return
        images = made.images if order.kind == "turntable" else made.images[0]
        about = order.about if made.psnr_db is None else {**order.about, "psnr_db": made.psnr_db}
        shown = LayerUpdater(self._viewer, {name: find_earlier_layer(self._viewer.layers, name)})
        data = picture_layer(order.source.name, order.kind, images, order.seen, order.source.grid.units, about)
        added = shown.put(name, data)
        height, width = made.images.shape[1:3]
        many = f"{made.count} pictures" if made.count > 1 else "a picture"
        close = "" if made.psnr_db is None else f", {made.psnr_db:.2f} dB to DVR"
        self._say(f"'{name}' is {many} of {width} x {height} pixels{close}.")
        if name in shown.layers and shown.layers[name] in self._viewer.layers:
            self._present(shown.layers[name], made, added)

    def _present(self, layer: Layer, made: Pictures, added: bool) -> None:
        """Have pictures be seen: as a layer in 2D, in the dock as long as the viewer shows the volume in 3D."""
        dims, turning = self._viewer.dims, made.order.kind == "turntable"
        assert made.images is not None
        first = made.images[0]
        self._picture(first / np.float32(255) if first.dtype == np.uint8 else first)
        if dims.ndisplay == 3 and not turning:
            if added:
                layer.visible = False
                self._say(f"{self.status.value[:-1]}; the layer is hidden while the viewer shows 3D.")
            return
        if not added:
            return
        for other in self._viewer.layers:
            if other.name != layer.name and (is_picture(other) or other.name == made.order.source.name):
                other.visible = False
        if turning:
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
        """Show the splats of a file, in the place of the chosen image."""
        try:
            part = Part(Path(path).name, read_splats(path), self._source())
        except (ValueError, OSError, MemoryError) as error:
            self._say(str(error), show_warning)
            return
        self.panel.put(part)
        self._say(f"Opened {part.name}: {len(part.splats):,} Gaussians.")


def _pair(reference: np.ndarray[Any, Any], image: np.ndarray[Any, Any] | None) -> np.ndarray[Any, Any]:
    """Return two views side by side, the second dark as long as there is none."""
    gap = np.full((len(reference), _GAP, 3), 0.5, np.float32)
    return np.concatenate([reference, gap, np.zeros_like(reference) if image is None else image], 1)


def _figures(news: TrainNews) -> str:
    step, part = news.step, news.part
    of = f"{news.name.rpartition(' · ')[2]} ({news.index + 1} of {news.count}), " if news.count > 1 else ""
    if part is not None and part.trained is not None:
        t = part.trained
        return (
            f"{of}{t.psnr_db:.2f} dB and SSIM {t.ssim:.3f} on views held out, {len(t.splats):,} Gaussians, "
            f"{t.fps:.0f} views/s, {t.seconds:.0f} s. {t.message}"
        )
    if step.stage == "references" or not step.history or step.splats is None:
        return f"{of}{step.message}"
    last = step.history[-1]
    judged = (
        "" if last.psnr_db is None or last.ssim is None else f", held out {last.psnr_db:.2f} dB, SSIM {last.ssim:.3f}"
    )
    left = f"{len(step.splats):,} Gaussians{time_left(news.seconds, step.progress)}"
    return f"{of}{step.message}: view {step.iteration:,}, loss {last.loss:.3g}{judged}, {left}"


def read_intervals(text: str) -> dict[str, tuple[float, float]]:
    """Return named intervals, as in ``bone 200 3000; fat -150 -30``; raise ValueError if they are none."""
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
                f"'{item}' is no interval; write a name, where it begins and where it ends: bone 200 3000."
            )
        found[name] = (low, high)
    return found
