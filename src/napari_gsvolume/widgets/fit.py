"""The dock widget that fits Gaussians to an image layer."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from magicgui.widgets import CheckBox, ComboBox, Container, Label, ProgressBar, PushButton, create_widget
from napari.layers import Image, Layer, Points, Surface
from napari.utils.notifications import show_error, show_info, show_warning
from napari.viewer import Viewer
from qtpy.QtCore import QEvent, QObject, QThreadPool, QTimer
from qtpy.QtWidgets import QFileDialog
from superqt.utils import create_worker

from ..fitting import FitResult, FitSettings
from ..fitting.target import check_volume
from ..gaussians import GaussianVolume
from ..geometry import Grid
from ..layers import (
    MOST_ELLIPSOIDS,
    SourceVolume,
    density_layer,
    gaussian_layer,
    level_shapes,
    points_layer,
    residual_layer,
    residual_limit,
    series_placement,
    source_volume,
)
from . import job
from .form import SettingsForm
from .job import Preview
from .plot import HistoryPlot

_ALL = "all"
_MAIN = ("gaussians", "target_psnr", "time_limit", "solver")
_SUGGESTIONS = {"gaussians": 2000, "target_psnr": 30.0, "time_limit": 60.0, "iterations": 150}


class FitWidget(Container[Any]):
    """Choose an image layer, press Run, watch its Gaussians appear; Stop keeps what there is.

    Parameters
    ----------
    napari_viewer : napari.Viewer
        The viewer to take layers from and to add layers to.
    """

    def __init__(self, napari_viewer: Viewer) -> None:
        self._viewer = napari_viewer
        self._worker: Any = None
        self._stop = threading.Event()
        self._shown: dict[str, Layer] = {}  # this run's layers, by kind
        self._results: list[tuple[SourceVolume, FitResult]] = []
        self._turns: deque[Callable[[], None]] = deque()  # what is still to be drawn
        self._error_shown = False
        self._left = False

        self.image = create_widget(annotation=Image, label="Image")
        self.time_point = ComboBox(label="Time point", choices=[0], tooltip="Which volume of the series to fit")
        self.level = ComboBox(label="Level", choices=[0], tooltip="Which level of the pyramid to load and fit")
        self.form = SettingsForm(FitSettings, _MAIN, _SUGGESTIONS, {"gaussians": 2000})
        self.keep = CheckBox(
            text="Keep earlier results", tooltip="Add new layers instead of updating those of the last run"
        )
        self.button = PushButton(text="Run")
        self.progress = ProgressBar(min=0, max=1000, value=0)
        self.status = Label(value="")
        self.save = PushButton(text="Save Gaussians…", enabled=False)
        super().__init__(
            widgets=[
                self.image, self.time_point, self.level, *self.form.rows, self.keep, self.button, self.progress,
                self.status, self.save,
            ]
        )  # fmt: skip
        self.plot = HistoryPlot(napari_viewer)
        layout = self.native.layout()
        layout.insertWidget(layout.indexOf(_row_of(self.keep)), self.form.folded)
        layout.addWidget(self.plot)
        layout.addStretch()
        self.status.native.setWordWrap(True)

        self.image.changed.connect(self._on_image)
        self.button.changed.connect(self._on_button)
        self.save.changed.connect(self._on_save)
        napari_viewer.dims.events.ndisplay.connect(self._on_ndisplay)
        self._closing = _Closing(self.stop)
        self.native.installEventFilter(self._closing)
        self._window_closing = _Closing(self._leave)
        self.native.destroyed.connect(self._leave)
        self._on_image(self.image.value)
        QTimer.singleShot(0, _load_points)

    @property
    def running(self) -> bool:
        """Whether a fit is under way."""
        return self._worker is not None

    @property
    def results(self) -> list[FitResult]:
        """The results of the last run, one a volume."""
        return [result for _, result in self._results]

    def stop(self) -> None:
        """End a fit that is under way; what it has reached is kept."""
        self._stop.set()

    def _leave(self) -> None:
        """End the fit and draw no more: there will be no viewer to draw in."""
        self._stop.set()
        self._turns.clear()
        self._left = True

    def reset_choices(self, *args: Any) -> None:
        """Follow the viewer's layers; napari calls it when they change."""
        super().reset_choices(*args)
        self._on_image(self.image.value)

    # What to fit ------------------------------------------------------------------------------------------------------

    def _on_image(self, layer: Image | None) -> None:
        """Ask for a time point or a level where the layer has several."""
        shapes = [] if layer is None or layer.rgb else level_shapes(layer)
        is_series = bool(shapes) and len(shapes[0]) == 4
        _offer(self.time_point, [*range(shapes[0][0]), _ALL] if is_series else [0])
        self.time_point.visible = is_series
        _offer(self.level, [(f"{i}: {' x '.join(map(str, shape))}", i) for i, shape in enumerate(shapes)] or [0])
        self.level.visible = len(shapes) > 1

    def _sources(self) -> list[SourceVolume]:
        layer = self.image.value
        if layer is None:
            raise ValueError("There is no image layer to fit; open an image first (File > Open Sample has some).")
        level = self.level.value if layer.multiscale else 0
        if not layer.rgb and len(level_shapes(layer)[0]) == 4:
            n = level_shapes(layer)[0][0]
            points = range(n) if self.time_point.value == _ALL else [self.time_point.value]
            return [source_volume(layer, time_point=t, level=level) for t in points]
        return [source_volume(layer, level=level)]

    # Running ----------------------------------------------------------------------------------------------------------

    def _on_button(self) -> None:
        if self.running:
            self._stop.set()
            self.button.enabled = False
            self.button.text = "Stopping…"
            return
        try:
            settings = self.form.settings()
            sources = self._sources()
            self._refuse_too_large(sources[0])
        except (ValueError, MemoryError) as error:
            self._say(str(error), show_warning)
            return
        self._start(sources, settings)

    @staticmethod
    def _refuse_too_large(source: SourceVolume) -> None:
        """Check the size before anything is loaded; the rest is checked by the fit itself."""
        lazy = np.broadcast_to(np.float32(0), np.shape(source.array))
        check_volume(lazy)

    def _start(self, sources: list[SourceVolume], settings: FitSettings) -> None:
        self._stop = threading.Event()  # the last run's worker may still look at its own
        self._results, self._error_shown, self._left = [], False, False
        self.native.window().installEventFilter(self._window_closing)
        self._shown = {} if self.keep.value else self._earlier_layers(sources[0].name)
        self._placed: set[str] = set()
        self._series = self.image.value if len(sources) > 1 else None
        if self._series is not None:  # the Gaussians of one volume would not go with the layers of all
            self._forget("gaussians", "centres")
        self.save.enabled = False
        self.button.text = "Stop"
        self.progress.value = 0
        self._say("Loading the volume")
        self._pace = job.Pace()
        self._worker = create_worker(
            job.run, sources, settings, self._stop.is_set, self._pace, _start_thread=False, _ignore_errors=True
        )
        self._worker.yielded.connect(self._show)
        self._worker.errored.connect(self._on_error)
        self._worker.finished.connect(self._on_finished)
        _POOL.start(self._worker)

    def _earlier_layers(self, name: str) -> dict[str, Layer]:
        """Return the layers of an earlier run on the same source, which this run updates in place."""
        kinds = ("density", "residual", "gaussians", "centres")
        layers = {kind: f"{name} · {kind}" for kind in kinds}
        return {kind: self._viewer.layers[full] for kind, full in layers.items() if full in self._viewer.layers}

    def _on_error(self, error: BaseException) -> None:
        if self._left:
            return
        self._error_shown = True
        known = isinstance(error, ValueError | MemoryError | OSError)
        text = str(error) if known else f"The fit failed, please report it: {error or type(error).__name__}"
        self._say(text, show_warning if known else show_error)

    def _on_finished(self) -> None:
        if self._turns:
            QTimer.singleShot(5, self._on_finished)
            return
        self._worker = None
        if self._left:
            return
        self.button.text = "Run"
        self.button.enabled = True
        self.save.enabled = bool(self._results)
        if self._results and not self._error_shown:
            self.progress.value = self.progress.max

    def _say(self, text: str, notify: Any = None) -> None:
        self.status.value = text
        self._viewer.status = text
        if notify is not None:
            notify(text)

    # Showing ----------------------------------------------------------------------------------------------------------

    def _show(self, preview: Preview) -> None:
        if self._left:
            return
        step = preview.step
        self.progress.value = round(1000 * preview.progress)
        which = f"Volume {preview.index + 1} of {preview.count}: " if preview.count > 1 else ""
        if preview.density is None:
            self._say(which + step.message)
            return
        self._say(which + _figures(preview))
        if preview.result is not None:
            self._results.append((preview.source, preview.result))
            for note in preview.result.notes:
                self._say(f"{which}{_figures(preview)} {note}", show_info)
        self._turns += [
            lambda: self.plot.show_history(step.history),
            *self._images(preview),
            *([] if self._series is not None else self._gaussians(preview)),
            self._pace.drawn,
        ]
        self._take_turns()

    def _take_turns(self) -> None:
        """Draw one thing, then let the viewer breathe before the next."""
        if self._turns:
            turn = self._turns.popleft()
            QTimer.singleShot(0, self._take_turns)  # first: should this turn fail, the others still have theirs
            turn()

    def _images(self, preview: Preview) -> list[Callable[[], None]]:
        """Return the calls that show density and residual."""
        density, residual, source = preview.density, preview.residual, preview.source
        if density is None or residual is None:
            return []
        metadata, place = preview.step.gaussians.metadata, source.placement
        limit = residual_limit(residual)
        if self._series is not None:
            place = series_placement(self._series, source.grid)
            density = self._stacked("density", density, preview)
            residual = self._stacked("residual", residual, preview)
        metadata = metadata if preview.result is None else preview.result.gaussians.metadata
        return [
            lambda: self._put("density", density_layer(source.name, density, place, source.limits, metadata)),
            lambda: self._put("residual", residual_layer(source.name, residual, place, limit, metadata)),
        ]

    def _stacked(self, kind: str, volume: Any, preview: Preview) -> Any:
        """Return the series so far with this volume in its place; the ones to come are NaN."""
        if preview.index == 0 or kind not in self._shown:
            series = np.full((preview.count, *volume.shape), np.nan, np.float32)
        else:
            series = self._shown[kind].data
        series[preview.index] = volume
        return series

    def _gaussians(self, preview: Preview) -> list[Callable[[], None]]:
        """Return the calls that show ellipsoids and centres."""
        gaussians = preview.step.gaussians if preview.result is None else preview.result.gaussians
        source, flat = preview.source, gaussians.ndim == 2
        # A surface in a volume is seen in 3D only: the live view leaves it out in 2D, where centres show.
        calls: list[Callable[[], None]] = []
        if preview.result is not None or flat or self._viewer.dims.ndisplay == 3:
            calls.append(lambda: self._put("gaussians", gaussian_layer(source.name, gaussians, source.placement)))
        if len(gaussians) > MOST_ELLIPSOIDS:
            calls.append(lambda: self._forget("centres"))  # points, "gaussians" itself, take over
        elif not flat:
            calls.append(lambda: self._put("centres", points_layer(source.name, gaussians, source.placement)))
        return calls

    def _forget(self, *kinds: str) -> None:
        """Remove layers of an earlier state that this run does not update."""
        for kind in kinds:
            layer = self._shown.pop(kind, None)
            if layer is not None and layer in self._viewer.layers:
                self._viewer.layers.remove(layer)

    def _on_ndisplay(self) -> None:
        """Show centres in slices and ellipsoids in space: of a surface a slice shows stray triangles only."""
        ellipsoids, centres = self._shown.get("gaussians"), self._shown.get("centres")
        if isinstance(ellipsoids, Surface) and ellipsoids.ndim == 3:
            ellipsoids.visible = self._viewer.dims.ndisplay == 3
            if centres is not None:
                centres.visible = not ellipsoids.visible

    def _put(self, kind: str, data: tuple[Any, dict[str, Any], str]) -> None:
        """Add a layer, or update it in place; one that the user removed during this run stays away."""
        array, options, layer_type = data
        layer = self._shown.get(kind)
        if layer is not None and layer not in self._viewer.layers:
            if self.running:
                return
            layer = None
        if layer is not None and kind not in self._placed:
            _place(layer, options)  # the source may lie elsewhere now, or be another level
        self._placed.add(kind)
        if layer is not None and not _update(layer, array, options, layer_type):
            self._viewer.layers.remove(layer)
            layer = None
        if layer is None:
            selected = set(self._viewer.layers.selection)
            self._shown[kind] = self._viewer.add_layer(Layer.create(array, options, layer_type))
            self._viewer.layers.selection = selected  # the controls the user sees stay
            self._on_ndisplay()

    # Saving -----------------------------------------------------------------------------------------------------------

    def _on_save(self) -> None:
        name = self._results[0][0].name
        path, _ = QFileDialog.getSaveFileName(
            self.native, "Save Gaussians", f"{name}.safetensors", "Gaussians (*.safetensors)"
        )
        if path:
            self.save_results(path)

    def save_results(self, path: str | Path) -> None:
        """Save the Gaussians of the last run; those of a time series as ``name_t000.safetensors`` and so on."""
        path = Path(path)
        if path.suffix != ".safetensors":
            path = path.with_name(f"{path.name}.safetensors")
        many = len(self._results) > 1
        try:
            for t, (_, result) in enumerate(self._results):
                result.gaussians.save(path.with_stem(f"{path.stem}_t{t:03d}") if many else path)
        except (OSError, ValueError) as error:
            self._say(str(error), show_warning)
            return
        self._say(f"Saved {path.name}." if not many else f"Saved {len(self._results)} files, {path.stem}_t000 and on.")


def _load_points() -> None:
    """Make a points layer for nothing: the first one loads pandas and more, better now than during a fit."""
    one = GaussianVolume(torch.zeros(1, 3), torch.eye(3)[None], torch.ones(1), Grid((1, 1, 1)))
    Layer.create(*points_layer("", one, {}))


# Not Qt's common pool: a fit lowers its thread's priority, which the next user of that thread would inherit.
_POOL = QThreadPool()


class _Closing(QObject):
    """Calls back when a widget is closed or taken out of its dock: napari itself does not stop workers then."""

    def __init__(self, callback: Any) -> None:
        super().__init__()
        self._callback = callback

    def eventFilter(self, watched: QObject, event: QEvent) -> bool:
        """Let everything pass."""
        gone = event.type() == QEvent.Type.ParentChange and watched.parent() is None
        if gone or event.type() == QEvent.Type.Close:
            self._callback()
        return False


def _offer(box: ComboBox, choices: list[Any]) -> None:
    """Set a box's choices, keeping its value where it is still among them."""
    if list(box.choices) != [c[1] if isinstance(c, tuple) else c for c in choices]:
        box.choices = choices


def _figures(preview: Preview) -> str:
    step = preview.step
    text = f"{step.psnr_db:.2f} dB, {step.n_gaussians:,} Gaussians, {step.seconds:.0f} s"
    if preview.result is not None:
        similarity = "" if preview.result.ssim is None else f", SSIM {preview.result.ssim:.3f}"
        return f"{text}{similarity}. {step.message}"
    if 0.02 < step.progress < 1:
        text += f", about {step.seconds * (1 - step.progress) / step.progress:.0f} s left"
    return text


def _row_of(widget: Any) -> Any:
    """Return the Qt widget that stands for a magicgui widget in its container: itself, or the row with its label."""
    labelled = widget._labeled_widget()
    return widget.native if labelled is None else labelled.native


def _place(layer: Layer, options: dict[str, Any]) -> None:
    """Put a layer where the options say."""
    n = layer.ndim
    nowhere = {
        "scale": np.ones(n),
        "translate": np.zeros(n),
        "rotate": np.eye(n),
        "shear": np.zeros(n * (n - 1) // 2),
        "affine": np.eye(n + 1),
    }
    for name, default in nowhere.items():
        value = options.get(name, default)
        if len(value) == len(default):  # else the layer has another number of axes, and will be replaced
            setattr(layer, name, value)
    if len(options["units"]) == n:
        layer.units, layer.axis_labels = options["units"], options["axis_labels"]


_CLASSES = {"image": Image, "surface": Surface, "points": Points}


def _update(layer: Layer, data: Any, options: dict[str, Any], layer_type: str) -> bool:
    """Give a layer new data of the same kind and voxels; False if it cannot take them."""
    if not isinstance(layer, _CLASSES[layer_type]):
        return False
    if isinstance(layer, Image):
        if layer.data.shape != data.shape:
            return False
        layer.data = data
        layer.contrast_limits_range = options["contrast_limits"]
        layer.contrast_limits = options["contrast_limits"]
    elif isinstance(layer, Surface):
        if layer.ndim != data[0].shape[1]:
            return False
        layer.data = data
        layer.features = options["features"]
    else:
        if layer.ndim != data.shape[1]:
            return False
        layer.data = data
        layer.features = options["features"]
        layer.size = options["size"]
        layer.refresh_colors()
    layer.metadata = options["metadata"]
    return True
