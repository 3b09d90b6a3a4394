"""Dock widget of the SVD of slices: singular values, ranks, modes, and super-resolution."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from napari.layers import Layer
from napari.utils.notifications import show_warning
from napari.viewer import Viewer

from ....errors import InputError
from ....grid import Grid
from ....progress import Step
from ....super_resolution.model import SRModel
from ....super_resolution.settings import SuperResolveSettings
from ....super_resolution.training import TrainingFailedError
from ....super_resolution.upsampling import SuperResolved
from ...layers.conversion import LayerData, find_earlier_layer
from ...layers.svd import PREVIEW, SUPER_RESOLVED, inspection_layer, slab_placement, super_resolved_layer
from ..shared.base import time_left
from ..shared.dims import index_at, move_to
from ..shared.form import SettingsForm
from ..shared.layer_updater import LayerUpdater
from ..shared.tabs import Tabs
from ..shared.worker import PreviewThrottle
from .inspection_worker import Inspection, InspectionRequest, inspection_steps
from .slice_matrix import Matrix, MatrixAnalysis, MatrixKind
from .slice_panel import SliceWidget
from .tabs import AllSlicesTab, ModeTab, SuperResolveTab
from .training_tabs import InspectTab, TrainingView, TrainTab, describe_model
from .training_worker import (
    CurrentSlice,
    SlicePreview,
    TrainingOutcome,
    TrainingProgress,
    TrainingRequest,
    training_steps,
)
from .worker import Spectra, SpectraStep, SuperResolveRequest, spectra_steps, superresolve_request_steps

_MODEL_FIELDS = ("scheme", "factor", "upsample_axes", "degradation", "fwhm")
_NO_GAIN = 0.05  # dB: not visible


class SVDWidget(SliceWidget):
    """Choose an image layer: the slice in the viewer is decomposed; move the rank, show modes, super-resolve.

    Parameters
    ----------
    napari_viewer : napari.Viewer
        The viewer to take layers from and to add layers to.
    """

    _START = "Super-resolve"

    def __init__(self, napari_viewer: Viewer) -> None:
        self._spectra: Spectra | None = None
        self._request: TrainingRequest | None = None
        self._current, self._throttle = CurrentSlice(0), PreviewThrottle()
        self._shown: LayerUpdater[str] = LayerUpdater(napari_viewer)
        self._preview_grid: Grid | None = None
        self._show_run_step: Callable[[Any], None] = super()._show_step
        self._show_run_result: Callable[[Any], None] = super()._show_result
        fields = (*_MODEL_FIELDS, "project", "ensemble")
        self.form = SettingsForm(SuperResolveSettings, fields, {}, {}, without=("slice_axis",))
        super().__init__(napari_viewer)
        self.modes = ModeTab(napari_viewer, self._say)
        self.slices = AllSlicesTab(napari_viewer, self._on_heat_map)
        self.superresolve = SuperResolveTab(self.form)
        self.train = TrainTab(napari_viewer, self._say, self._on_model)
        self.inspect = InspectTab(napari_viewer)
        self.training = TrainingView(napari_viewer)
        self.tabs = Tabs(
            {
                "Mode": self.modes,
                "Slices": self.slices,
                "Super-resolve": self.superresolve,
                "Train": self.train,
                "Inspect": self.inspect,
            }
        )
        self._insert(self.button, self.tabs)
        self.content.addWidget(self.training)
        self.content.addStretch()
        self.modes.k.changed.connect(lambda k: self.plot.mark(self.rank.value, k))
        self.slices.start.changed.connect(lambda: self._try_to(self._begin_spectra))
        self.inspect.start.changed.connect(lambda: self._try_to(self._begin_inspection))
        self.tabs.bar.currentChanged.connect(self._show_button)
        self._enable(True)
        self._begin_to_follow()

    # Tabs -------------------------------------------------------------------------------------------------------------

    def _on_image(self, layer: Layer | None) -> None:
        super()._on_image(layer)
        if self._ready:
            self.train.follow(layer)

    def _on_dims(self, *_: Any) -> None:
        super()._on_dims()
        if self._request is not None:
            axis = "zyx".index(self._request.settings.slice_axis)
            self._current.index = index_at(self._viewer, self._request.source.grid, axis)

    def _on_matrix(self, matrix: Matrix, key: tuple[Any, ...]) -> None:
        if self._spectra is not None and not self._are_of(self._spectra, matrix, key):
            self._on_other_data()
        self.slices.mark(matrix.index)
        self.slices.start.enabled = not matrix.flat and not self.running

    def _are_of(self, spectra: Spectra, matrix: Matrix, key: tuple[Any, ...]) -> bool:
        """Return True if spectra are those of the volume and axis of a matrix."""
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
        """Set the form to the model, which is used from now on."""
        for name in _MODEL_FIELDS:
            self.form.fields[name].value = getattr(model.settings, name)
        self.superresolve.show_model(describe_model(model))
        self.inspect.show_inspection(None)
        self._enable(not self.running)
        if not self.running:
            self.training.show_model(model)

    # Running ----------------------------------------------------------------------------------------------------------

    def _show_button(self, *_: Any) -> None:
        """Show the button in the tabs that it starts, and as Stop during a run."""
        tab = self.tabs.currentWidget()
        self.button.visible = self.running or tab in (self.superresolve, self.train)
        if not self.running:
            self.button.text = "Train" if tab is self.train else self._START
        self.training.setVisible(tab is self.train)
        has_rank = tab not in (self.train, self.inspect)  # these have spectra of their own, and need the room
        for native in (self.spectrum, self.figures.native):
            native.setVisible(has_rank)
        self.rank.visible = self.use_threshold.visible = has_rank

    def _enable(self, on: bool) -> None:
        """Enable or disable the other buttons that start a run: there is one run at a time."""
        self.slices.start.enabled = self.train.load.enabled = on
        self.inspect.start.enabled = on and self.train.model is not None
        self._show_button()

    def _try_to(self, begin: Callable[[], None]) -> None:
        if self.running:
            return
        try:
            begin()
        except (ValueError, MemoryError) as error:
            self._say(str(error), show_warning)

    def _run(
        self, run: Callable[..., Any], *args: Any, result: Callable[[Any], None], step: Callable[[Any], None]
    ) -> None:
        """Start a long run; `step` and `result` show its steps and its result, where there is one."""
        self._done = False
        self._show_run_step, self._show_run_result = step, result
        self._start(run, *args)
        self._enable(False)

    def _show_step(self, step: Step) -> None:
        self._show_run_step(step)

    def _show_result(self, result: Any) -> None:
        if result is not None:
            self._done = True
            self._show_run_result(result)

    def _begin_spectra(self) -> None:
        source = self._volumes()[0]
        if source.grid.ndim != 3:
            raise InputError(f"'{source.name}' is flat; there is one slice.")
        args = source, self.axis.value, self._key
        self._run(spectra_steps, *args, step=self._show_spectra_step, result=self._show_spectra)

    def _begin(self) -> None:
        source = self._volumes()[0]
        if self.tabs.currentWidget() is self.train:
            self._begin_training(self.train.request(source, self.axis.value))
            return
        settings = self.form.settings(slice_axis="zyx"[self.axis.value] if source.grid.ndim == 3 else "z")
        rank = self._rank if self.superresolve.is_truncated else None
        kind: MatrixKind = self.of.value if source.grid.ndim == 3 else "slice"
        request = SuperResolveRequest(source, settings, rank, kind, self.train.model)
        request.check()
        show = partial(self._show_super_resolved, request)
        self._run(superresolve_request_steps, request, step=super()._show_step, result=show)

    def _begin_training(self, request: TrainingRequest) -> None:
        self._request, self._throttle = request, PreviewThrottle()
        self._current = CurrentSlice(index_at(self._viewer, request.source.grid, self.axis.value))
        name = f"{request.source.name} · {PREVIEW}"
        self._shown = LayerUpdater(self._viewer, {PREVIEW: find_earlier_layer(self._viewer.layers, name)})
        self._preview_grid = None
        self.training.restart()
        self._run(
            training_steps,
            request,
            self._current,
            self._throttle,
            step=partial(self._show_training, request),
            result=partial(self._show_trained, request),
        )

    def _begin_inspection(self) -> None:
        source, axis = self._volumes()[0], self.axis.value
        assert self.train.model is not None
        InspectionRequest(source, self.train.model, axis, 0).check()
        request = InspectionRequest(source, self.train.model, axis, index_at(self._viewer, source.grid, axis))
        self._run(inspection_steps, request, step=super()._show_step, result=self._show_inspection)

    def _on_error(self, error: BaseException) -> None:
        if isinstance(error, TrainingFailedError) and self._request is not None and not self._left:
            self.train.set_model(error.result.model, f"Trained with '{self._request.source.name}'")
        super()._on_error(error)

    def _end(self) -> None:
        self._request = None
        self._enable(True)
        self.renew()  # it knows better whether its buttons are enabled
        if self._done and not self._error_shown:
            self.progress.value = self.progress.max
        elif not self._error_shown:
            self._say("Stopped; there is no result yet.")

    # Steps and results ------------------------------------------------------------------------------------------------

    def _show_spectra_step(self, step: SpectraStep) -> None:
        super()._show_step(step)
        self._draw_spectra(step.spectra)

    def _show_spectra(self, spectra: Spectra) -> None:
        self._say(f"Decomposed {spectra.done} of {spectra.count} slices.")
        self._draw_spectra(spectra)

    def _draw_spectra(self, spectra: Spectra) -> None:
        try:
            matrix = self._matrix()
        except ValueError:
            return
        if self._are_of(spectra, matrix, self._key):  # not if another image was chosen meanwhile
            self._spectra = spectra
            self.slices.show_spectra(spectra, index_at(self._viewer, spectra.source.grid, spectra.axis))

    def _show_super_resolved(self, request: SuperResolveRequest, result: SuperResolved) -> None:
        name = f"{request.source.name} · {SUPER_RESOLVED}"
        about = request.settings.model_dump()
        about |= {} if request.rank is None else {"rank": request.rank, "of": request.kind}
        if request.model is not None and request.settings.scheme != "spline":
            about["model"] = {"settings": request.model.settings.model_dump(), "metrics": request.model.metrics}
        self._put(name, super_resolved_layer(request.source, result.volume, request.grid, about))
        size = " x ".join(map(str, result.volume.shape))
        self._say(
            f"'{name}' has {size} voxels; data consistency ({request.settings.degradation}): max deviation "
            f"{result.deviation:.1e} of the largest intensity; {result.seconds:.1f} s."
        )

    def _put(self, name: str, data: LayerData) -> Layer | None:
        shown = LayerUpdater(self._viewer, {name: find_earlier_layer(self._viewer.layers, name)})
        shown.put(name, data)
        return shown.layers.get(name)

    def _show_training(self, request: TrainingRequest, progress: TrainingProgress) -> None:
        step = progress.training
        self.progress.value = round(1000 * min(1.0, progress.fraction))
        if step is None:
            self._say(progress.message)
            return
        gain = step.best_db - step.baselines["B-spline + projection"]
        self._say(
            f"{step.message}: iteration {step.iteration:,}, best {step.best_db:.2f} dB, {gain:+.2f} dB relative to the "
            f"projected spline{time_left(step.seconds, step.fraction)}"
        )
        self.training.show_progress(progress)
        if progress.preview is not None:
            self._show_preview(request, progress.preview, step.iteration)
            self._throttle.drawn()

    def _show_trained(self, request: TrainingRequest, outcome: TrainingOutcome) -> None:
        trained = outcome.trained
        iterations = trained.history[-1].iteration
        self._show_preview(request, outcome.preview, iterations)
        self.training.show_outcome(outcome)
        self.train.set_model(trained.model, f"Trained with '{request.source.name}'")
        best = trained.table["model"]
        gain = best - trained.table["B-spline + projection"]
        verdict = (
            f"{gain:+.2f} dB relative to the projected spline; the tab Super-resolve uses this model now"
            if gain > _NO_GAIN
            else "no better than the projected spline: train for longer, or with other settings"
        )
        self._say(f"{trained.message} {iterations:,} iterations, {trained.seconds:.0f} s: {best:.2f} dB, {verdict}.")

    def _show_preview(self, request: TrainingRequest, preview: SlicePreview, iteration: int) -> None:
        """Show the super-resolved slice of the viewer; contrast limits that the user has set stay."""
        if preview.grid != self._preview_grid:  # placed anew
            self._shown, self._preview_grid = LayerUpdater(self._viewer, dict(self._shown.layers)), preview.grid
        layer: Any = self._shown.layers.get(PREVIEW)
        limits = request.source.limits if layer is None else tuple(layer.contrast_limits)
        about = {"settings": request.settings.model_dump(), "iteration": iteration}
        data = super_resolved_layer(request.source, preview.image, preview.grid, about, PREVIEW)
        self._shown.put(PREVIEW, data)
        self._shown.layers[PREVIEW].contrast_limits = limits

    def _show_inspection(self, inspection: Inspection) -> None:
        source, axis = inspection.request.source, inspection.request.axis
        placement = slab_placement(source, axis, inspection.index)
        about = {"axis": source.grid.axis_labels[axis], "slice": inspection.index, "psnr_db": inspection.psnr_db}
        images = {f"gradient of {name}": gradient for name, gradient in inspection.gradients.items()}
        first = next(iter(images), "")
        for name, image in ({"model residual": inspection.residual} | images).items():
            data = inspection_layer(source, name, np.expand_dims(image, axis), placement, about, visible=name == first)
            self._put(f"{source.name} · {name}", data)
        move_to(self._viewer, source.grid, axis, inspection.index)
        self.inspect.show_inspection(inspection)
        figures = ", ".join(f"{name} {psnr:.2f} dB" for name, psnr in inspection.psnr_db.items())
        self._say(f"Validation slice {inspection.index} along {about['axis']}: {figures}.")
