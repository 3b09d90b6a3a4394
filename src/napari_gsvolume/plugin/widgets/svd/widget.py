"""The dock widget that takes slices as matrices: their singular values, ranks, modes, and finer voxels."""

from __future__ import annotations

from typing import Any

import numpy as np
from napari.layers import Layer
from napari.utils.notifications import show_warning
from napari.viewer import Viewer

from ....errors import InputError
from ....grid import Grid
from ....super_resolution.model import SRModel
from ....super_resolution.settings import SuperResolveSettings
from ...layers.conversion import LayerData, made_before
from ...layers.svd import FINER, PREVIEW, inspection_layer, slab_placement, super_resolved_layer
from ..shared.base import time_left
from ..shared.dims import index_at, move_to
from ..shared.form import SettingsForm
from ..shared.layer_updater import ShownLayers
from ..shared.tabs import Tabs
from ..shared.worker import PreviewThrottle
from .slice_matrix import Matrix, MatrixAnalysis, MatrixKind
from .slice_panel import SliceWidget
from .tabs import AllSlicesTab, FinerTab, ModeTab
from .training_tabs import LearnTab, LearnView, UnderstandTab, about_model
from .training_worker import Explained, ExplainOrder, Learning, Look, Sight, TrainOrder, run_explaining, run_learning
from .worker import Finer, FinerOrder, Spectra, run_finer, run_spectra

_OF_A_MODEL = ("scheme", "factor", "axes", "degradation", "fwhm")
_NO_GAIN = 0.05  # dB, which nobody sees


class SVDWidget(SliceWidget):
    """Choose an image layer: the slice the viewer shows is decomposed; move the rank, look at modes, make it finer.

    Parameters
    ----------
    napari_viewer : napari.Viewer
        The viewer to take layers from and to add layers to.
    """

    _START = "Make finer"

    def __init__(self, napari_viewer: Viewer) -> None:
        self._spectra: Spectra | None = None
        self._order: TrainOrder | None = None
        self._look, self._pace = Look(0), PreviewThrottle()
        self._shown: ShownLayers[str] = ShownLayers(napari_viewer)
        self._seen_at: Grid | None = None
        self.form = SettingsForm(SuperResolveSettings, (*_OF_A_MODEL, "project", "ensemble"), {}, {}, without=("axis",))
        super().__init__(napari_viewer)
        self.modes = ModeTab(napari_viewer, self._say)
        self.slices = AllSlicesTab(napari_viewer, self._on_heat_map)
        self.finer = FinerTab(self.form)
        self.learn = LearnTab(napari_viewer, self._say, self._on_model)
        self.understand = UnderstandTab(napari_viewer)
        self.learning = LearnView(napari_viewer)
        self.tabs = Tabs(
            {
                "Mode": self.modes, "All slices": self.slices, "Finer": self.finer, "Learn": self.learn,
                "Understand": self.understand,
            }
        )  # fmt: skip
        self._insert(self.button, self.tabs)
        self.content.addWidget(self.learning)
        self.content.addStretch()
        self.modes.k.changed.connect(lambda k: self.plot.mark(self.rank.value, k))
        self.slices.start.changed.connect(lambda: self._tried(self._begin_spectra))
        self.understand.start.changed.connect(lambda: self._tried(self._begin_explaining))
        self.tabs.bar.currentChanged.connect(self._show_button)
        self._enable(True)
        self._begin_to_follow()

    # What the tabs show -----------------------------------------------------------------------------------------------

    def _on_image(self, layer: Layer | None) -> None:
        super()._on_image(layer)
        if self._ready:
            self.learn.follow(layer)

    def _on_dims(self, *_: Any) -> None:
        super()._on_dims()
        if self._order is not None:
            axis = "zyx".index(self._order.settings.slice_axis)
            self._look.index = index_at(self._viewer, self._order.source.grid, axis)

    def _on_matrix(self, matrix: Matrix, key: tuple[Any, ...]) -> None:
        if self._spectra is not None and not self._of_these(self._spectra, matrix, key):
            self._on_other_data()
        self.slices.mark(matrix.index)
        self.slices.start.enabled = not matrix.flat and not self.running

    def _of_these(self, spectra: Spectra, matrix: Matrix, key: tuple[Any, ...]) -> bool:
        source = spectra.source
        same = (source.name, source.grid, spectra.axis) == (matrix.source.name, matrix.source.grid, matrix.axis)
        return same and spectra.key == key

    def _on_other_data(self) -> None:
        self._spectra = None
        self.slices.show_spectra(None, 0)

    def _on_decomposed(self, at: MatrixAnalysis | None) -> None:
        self.modes.show_modes(at)

    @property
    def _mode(self) -> int:
        return int(self.modes.k.value)

    def _on_mode(self, k: int) -> None:
        self.modes.k.value = k
        self.tabs.setCurrentWidget(self.modes)

    def _on_heat_map(self, x: float) -> None:
        if self._spectra is not None:
            move_to(self._viewer, self._spectra.source.grid, self._spectra.axis, round(x))

    def _on_model(self, model: SRModel) -> None:
        """Make finer with a model from now on."""
        for name in _OF_A_MODEL:
            self.form.fields[name].value = getattr(model.settings, name)
        self.finer.show_model(about_model(model))
        self.understand.show_explained(None)
        self._enable(not self.running)
        if not self.running:
            self.learning.show_model(model)

    # Running ----------------------------------------------------------------------------------------------------------

    def _show_button(self, *_: Any) -> None:
        """Offer the button where it belongs; Stop is there whenever something runs."""
        tab = self.tabs.currentWidget()
        self.button.visible = self.running or tab in (self.finer, self.learn)
        if not self.running:
            self.button.text = "Train" if tab is self.learn else self._START
        self.learning.setVisible(tab is self.learn)
        of_rank = tab not in (self.learn, self.understand)  # which have spectra of their own, and need the room
        for native in (self.spectrum, self.figures.native):
            native.setVisible(of_rank)
        self.rank.visible = self.use_threshold.visible = of_rank

    def _enable(self, on: bool) -> None:
        """Let something else be started, or not: one thing runs at a time."""
        self.slices.start.enabled = self.learn.load.enabled = on
        self.understand.start.enabled = on and self.learn.model is not None
        self._show_button()

    def _tried(self, begin: Any) -> None:
        if self.running:
            return
        try:
            begin()
        except (ValueError, MemoryError) as error:
            self._say(str(error), show_warning)

    def _run(self, run: Any, *args: Any) -> None:
        self._done = False
        self._start(run, *args)
        self._enable(False)

    def _begin_spectra(self) -> None:
        source = self._volumes()[0]
        if source.grid.ndim != 3:
            raise InputError(f"'{source.name}' is flat; there is one slice.")
        self._run(run_spectra, source, self.axis.value, self._key)

    def _begin(self) -> None:
        source = self._volumes()[0]
        if self.tabs.currentWidget() is self.learn:
            self._begin_learning(self.learn.order(source, self.axis.value))
            return
        settings = self.form.settings(axis="zyx"[self.axis.value] if source.grid.ndim == 3 else "z")
        rank = self._rank if self.finer.of_rank else None
        kind: MatrixKind = self.of.value if source.grid.ndim == 3 else "slice"
        order = FinerOrder(source, settings, rank, kind, self.learn.model)
        order.check()
        self._run(run_finer, order)

    def _begin_learning(self, order: TrainOrder) -> None:
        self._order, self._pace = order, PreviewThrottle()
        self._look = Look(index_at(self._viewer, order.source.grid, self.axis.value))
        name = f"{order.source.name} · {PREVIEW}"
        self._shown = ShownLayers(self._viewer, {PREVIEW: made_before(self._viewer.layers, name)})
        self._seen_at = None
        self.learning.restart()
        self._run(run_learning, order, self._look, self._pace)

    def _begin_explaining(self) -> None:
        source, axis = self._volumes()[0], self.axis.value
        assert self.learn.model is not None
        order = ExplainOrder(source, self.learn.model, axis, 0)
        order.check()
        order = ExplainOrder(source, self.learn.model, axis, index_at(self._viewer, source.grid, axis))
        self._run(run_explaining, order)

    def _end(self) -> None:
        self._order = None
        self._enable(True)
        self.renew()  # knows better
        if self._done and not self._error_shown:
            self.progress.value = self.progress.max
        elif not self._error_shown:
            self._say("Stopped before there was anything to show.")

    # Showing ----------------------------------------------------------------------------------------------------------

    def _show(self, news: Spectra | Finer | Learning | Explained | str) -> None:
        if isinstance(news, str):
            self._say(news)
        elif isinstance(news, Spectra):
            self._show_spectra(news)
        elif isinstance(news, Finer):
            self._show_finer(news)
        elif isinstance(news, Learning):
            self._show_learning(news)
        else:
            self._show_explained(news)

    def _show_spectra(self, news: Spectra) -> None:
        self.progress.value = round(1000 * news.done / news.count)
        self._done = news.done > 0
        self._say(f"Decomposed {news.done} of {news.count} slices.")
        try:
            matrix = self._matrix()
        except ValueError:
            return
        if self._of_these(news, matrix, self._key):  # not if another image was chosen meanwhile
            self._spectra = news
            self.slices.show_spectra(news, index_at(self._viewer, news.source.grid, news.axis))

    def _show_finer(self, news: Finer) -> None:
        self.progress.value = round(1000 * news.progress)
        if news.volume is None:
            self._say(news.doing)
            return
        self._done = True
        order, name = news.order, f"{news.order.source.name} · {FINER}"
        about = order.settings.model_dump() | ({} if order.rank is None else {"rank": order.rank, "of": order.kind})
        if order.model is not None and order.settings.scheme != "spline":
            about["model"] = {"settings": order.model.settings.model_dump(), "metrics": order.model.metrics}
        self._put(name, super_resolved_layer(order.source, news.volume, order.grid, about))
        size = " x ".join(map(str, news.volume.shape))
        self._say(
            f"'{name}' has {size} voxels; degraded again ({order.settings.degradation}) it differs from the image by "
            f"{news.misfit:.1e} of the largest intensity; {news.seconds:.1f} s."
        )

    def _put(self, name: str, data: LayerData) -> Layer | None:
        shown = ShownLayers(self._viewer, {name: made_before(self._viewer.layers, name)})
        shown.put(name, data)
        return shown.layers.get(name)

    def _show_learning(self, news: Learning) -> None:
        self.progress.value = round(1000 * news.step.progress)
        self._say(_progress(news))
        self.learning.show_news(news)
        if news.sight is not None:
            self._show_sight(news, news.sight)
            self._pace.drawn()
        if news.trained is not None:
            self._done = True
            self.learn.take(news.trained.model, f"Trained with '{news.order.source.name}'")

    def _show_sight(self, news: Learning, sight: Sight) -> None:
        """Show what a model makes of the viewer's slice; contrast limits that the user sets stay."""
        if sight.grid != self._seen_at:
            self._shown, self._seen_at = ShownLayers(self._viewer, dict(self._shown.layers)), sight.grid  # placed anew
        layer: Any = self._shown.layers.get(PREVIEW)
        limits = news.order.source.limits if layer is None else tuple(layer.contrast_limits)
        about = {"settings": news.order.settings.model_dump(), "iteration": news.step.iteration}
        self._shown.put(PREVIEW, super_resolved_layer(news.order.source, sight.image, sight.grid, about, PREVIEW))
        layer = self._shown.layers[PREVIEW]
        layer.contrast_limits = limits

    def _show_explained(self, news: Explained) -> None:
        self._done = True
        source, axis = news.order.source, news.order.axis
        placement = slab_placement(source, axis, news.index)
        about = {"axis": source.grid.axis_labels[axis], "slice": news.index, "psnr_db": news.psnr_db}
        images = {f"gradient of {name}": gradient for name, gradient in news.gradients.items()}
        first = next(iter(images), "")
        for what, image in ({"model residual": news.residual} | images).items():
            data = inspection_layer(source, what, np.expand_dims(image, axis), placement, about, visible=what == first)
            self._put(f"{source.name} · {what}", data)
        move_to(self._viewer, source.grid, axis, news.index)
        self.understand.show_explained(news)
        reached = ", ".join(f"{name} {psnr:.2f} dB" for name, psnr in news.psnr_db.items())
        self._say(f"Slice {news.index} along {about['axis']}, held out: {reached}.")


def _progress(news: Learning) -> str:
    step, trained = news.step, news.trained
    spline = news.baselines["B-spline + projection"]
    gain = step.best_db - spline
    if trained is None:
        return (
            f"{step.message}: iteration {step.iteration:,}, best {step.best_db:.2f} dB, {gain:+.2f} to the projected "
            f"spline{time_left(step.seconds, step.progress)}"
        )
    verdict = (
        f"{gain:+.2f} dB to the projected spline; the tab Finer uses this model now"
        if gain > _NO_GAIN
        else "no better than the projected spline: train for longer, or with other settings"
    )
    return f"{step.message} {step.iteration:,} iterations, {step.seconds:.0f} s: {step.best_db:.2f} dB, {verdict}."
