"""Tabs of the SVD widget to train and to inspect super-resolution models."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from magicgui.widgets import CheckBox, Container, FileEdit, PushButton, Select
from napari.layers import Image, Layer
from napari.utils.notifications import show_warning
from napari.viewer import Viewer
from qtpy.QtWidgets import QFileDialog, QVBoxLayout, QWidget
from rich.filesize import decimal as file_size

from ....super_resolution.model import SRModel
from ....super_resolution.settings import DEFAULT_ITERATIONS, DEFAULT_PATCH_SIZE, TrainSRSettings
from ....super_resolution.training import SRPoint
from ...layers.conversion import SourceVolume, source_volume
from ...layers.svd import is_part_of_svd
from ..shared.form import SettingsForm
from ..shared.tables import PSNRTable
from ..shared.tabs import Tab, text_label
from .inspection_worker import Inspection
from .training_plots import InspectionPlot, SRTrainingPlot
from .training_worker import SliceSpectra, TrainingOutcome, TrainingProgress, TrainingRequest

_SECONDS = 300.0
_MAIN = ("scheme", "factor", "backbone", "project", "time_limit")
_FOLDED = {
    "Losses": (
        *("l2_weight", "l1_weight", "consistency_weight", "orthogonality_weight", "perceptual_weight"),
        *("adversarial_weight", "perceptual_features", "orthogonality", "uncertainty_weighting"),
    ),
    "Network": (
        *("context", "channels", "blocks", "frequency_weighting", "rank", "patch_size", "batch_size", "learning_rate"),
    ),
    "Training data": ("upsample_axes", "degradation", "fwhm", "validation_fraction", "sign_flips"),
}
_ONLY_SCHEME_A = ("orthogonality", "frequency_weighting", "orthogonality_weight")
_ONLY_SCHEME_B = ("backbone", "context", "perceptual_weight", "perceptual_features", "adversarial_weight")
_FILES = "Trained super-resolution (*.safetensors)"
_ROWS = 3  # visible rows of the list of layers
_NO_MODEL = "No model yet: train or load one."
_BASELINE, _MODEL = "B-spline + projection", "model"  # rows of the table


class TrainTab(Tab):
    """Settings and data of a training; and the current model, which can be saved and loaded.

    Attributes
    ----------
    form : SettingsForm
    use_image, others, folder : Widget
        Training data: the chosen image, other layers, NIfTI files.
    load, save : PushButton
    about : Label
        Description of the current model.
    """

    def __init__(self, viewer: Viewer, say: Callable[..., None], on_model: Callable[[SRModel], None]) -> None:
        self._viewer, self._say, self._on_model = viewer, say, on_model
        self._chosen: Layer | None = None
        self._model: SRModel | None = None
        suggested = {
            "time_limit": _SECONDS,
            "iterations": DEFAULT_ITERATIONS,
            "patch_size": DEFAULT_PATCH_SIZE,
            "rank": 20,
        }
        self.form = SettingsForm(
            TrainSRSettings, _MAIN, suggested, {"time_limit": _SECONDS}, _FOLDED, without=("slice_axis",)
        )
        fields = self.form.fields
        fields["project"].text = "Projection on the measurement (exact data consistency)"
        fields["fwhm"].label = "PSF width (FWHM)"
        fields["upsample_axes"].label = "Axes"
        self.use_image = CheckBox(value=True, text="Chosen image", tooltip="Train on the slices of the chosen image")
        self.others = Select(
            label="Other layers",
            choices=self._selectable_layers,
            tooltip="Train on these image layers as well; Ctrl and a click selects several",
        )
        self.folder = FileEdit(
            mode="d",
            label="Folder",
            nullable=True,
            tooltip="Train on all .nii and .nii.gz volumes of a folder as well",
        )
        self._data: Container[Any] = Container(widgets=[self.use_image, self.others, self.folder])
        self.load = PushButton(
            text="Load model…", tooltip="Load a .safetensors file saved here or by gsvolume train-sr"
        )
        self.save = PushButton(
            text="Save model…", tooltip="Save weights, settings and figures to a .safetensors file", enabled=False
        )
        self._files: Container[Any] = Container(widgets=[self.load, self.save], layout="horizontal", labels=False)
        self._rows: Container[Any] = Container(widgets=[*self.form.rows])
        for rows in (self._data, self._files, self._rows):
            rows.margins = (0, 0, 0, 0)
        self.about = text_label(_NO_MODEL)
        super().__init__(self._rows.native, *self.form.folds, self._files.native, self.about.native)
        data_fold = next(fold for fold in self.form.folds if fold.text() == "Training data")
        data_fold.content().layout().insertWidget(0, self._data.native)
        self.others.native.setMaximumHeight((_ROWS + 1) * self.others.native.fontMetrics().lineSpacing())
        fields["scheme"].changed.connect(self._show_rows)
        fields["degradation"].changed.connect(self._show_rows)
        self.load.changed.connect(self._on_load)
        self.save.changed.connect(self._on_save)
        self._show_rows()
        self.follow(None)

    @property
    def model(self) -> SRModel | None:
        """Current model: trained last, or loaded."""
        return self._model

    def _show_rows(self, *_: Any) -> None:
        fields = self.form.fields
        for names, scheme in ((_ONLY_SCHEME_A, "singular-vectors"), (_ONLY_SCHEME_B, "residual")):
            for name in names:
                fields[name].visible = fields["scheme"].value == scheme
        fields["fwhm"].visible = fields["degradation"].value == "psf"

    # Training data ----------------------------------------------------------------------------------------------------

    def _selectable_layers(self, _: Any) -> list[Layer]:
        def is_volume(layer: Layer) -> bool:
            return isinstance(layer, Image) and not layer.rgb and layer.ndim == 3 and not is_part_of_svd(layer)

        return [layer for layer in self._viewer.layers if is_volume(layer) and layer is not self._chosen]

    def follow(self, chosen: Layer | None) -> None:
        """Offer the image layers of the viewer, except the chosen one, as training data."""
        self._chosen = chosen
        self.others.reset_choices()
        self.others.visible = bool(self.others.choices)

    def request(self, source: SourceVolume, axis: int) -> TrainingRequest:
        """Return the request of the rows; raise InputError or MemoryError if it cannot be fulfilled."""
        settings = self.form.settings(slice_axis="zyx"[axis])
        others = [source_volume(layer) for layer in self.others.value]
        folder = self.folder.value
        has_folder = folder is not None and str(folder) not in ("", ".")
        request = TrainingRequest(source, settings, others, Path(folder) if has_folder else None, self.use_image.value)
        request.check()
        return request

    # The model --------------------------------------------------------------------------------------------------------

    def set_model(self, model: SRModel, origin: str) -> None:
        """Make a model the current one; `origin` describes its source."""
        self._model = model
        self.save.enabled = True
        self.about.value = f"{origin}: {describe_model(model)}"
        self._on_model(model)

    def _on_load(self) -> None:
        path, _ = QFileDialog.getOpenFileName(self, "Load model", "", _FILES)
        if path:
            self.load_model(path)

    def load_model(self, path: str | Path) -> None:
        """Make the model of a file the current one."""
        try:
            model = SRModel.load(path)
        except (ValueError, OSError) as error:
            self._say(str(error), show_warning)
            return
        self.set_model(model, Path(path).name)
        self._say(f"Loaded {Path(path).name}: {describe_model(model)}")

    def _on_save(self) -> None:
        path, _ = QFileDialog.getSaveFileName(self, "Save model", "super-resolution.safetensors", _FILES)
        if path:
            self.save_model(path)

    def save_model(self, path: str | Path) -> None:
        """Save the current model, with its settings and figures, and show the file size."""
        path = Path(path)
        if self._model is None:
            return
        if not path.suffix:
            path = path.with_suffix(".safetensors")
        try:
            self._model.save(path)
            size = path.stat().st_size
        except (ValueError, OSError) as error:
            self._say(str(error), show_warning)
            return
        self._say(f"Saved {path.name}: {file_size(size)}.")


class TrainingView(QWidget):
    """Plots of a training, and the table of its result.

    Attributes
    ----------
    table : PSNRTable
    plot : SRTrainingPlot
    """

    def __init__(self, viewer: Viewer) -> None:
        super().__init__()
        self.table, self.plot = PSNRTable(), SRTrainingPlot(viewer)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        for widget in (self.table, self.plot):
            layout.addWidget(widget)
        self.restart()

    def restart(self) -> None:
        """Clear table and plots for another training."""
        self._history: tuple[SRPoint, ...] = ()
        self._spectra: SliceSpectra | None = None
        self.table.show_figures({}, _BASELINE, _MODEL)
        self.plot.show_training((), {}, None)

    def show_progress(self, progress: TrainingProgress) -> None:
        """Draw new validations."""
        if progress.spectra is not None:
            self._spectra = progress.spectra
        step = progress.training
        if step is not None and len(step.history) != len(self._history):
            self._history = step.history
            self.plot.show_training(self._history, step.baselines, self._spectra)

    def show_outcome(self, outcome: TrainingOutcome) -> None:
        """Show the table of a training that has ended."""
        self.table.show_figures(outcome.trained.table, _BASELINE, _MODEL)

    def show_model(self, model: SRModel) -> None:
        """Show the figures of a loaded model."""
        self.restart()
        self.table.show_figures(_table(model), _BASELINE, _MODEL)


class InspectTab(Tab):
    """Button that inspects the current model, and plots of its modes.

    Attributes
    ----------
    start : PushButton
    plot : InspectionPlot
    """

    def __init__(self, viewer: Viewer) -> None:
        self.start = PushButton(
            text="Inspect", tooltip="Add loss gradients and residual error of a validation slice as layers"
        )
        self.about = text_label(
            "Inspects the current model on the validation slice nearest to the slice in the viewer: residual error and "
            "loss gradients as layers, and plots of its modes."
        )
        self.plot = InspectionPlot(viewer)
        super().__init__(self.about.native, self.start.native, self.plot)

    def show_inspection(self, inspection: Inspection | None) -> None:
        """Draw the modes of a slice; None hides the plots."""
        if inspection is None:
            self.plot.show_modes(None, None)
        else:
            self.plot.show_modes(inspection.spectra, inspection.cumulative_db)


def describe_model(model: SRModel) -> str:
    """Return settings and figures of a model in one sentence."""
    s, metrics = model.settings, model.metrics
    network = f" ({s.backbone})" if s.scheme == "residual" else ""
    psf = f" of {s.fwhm:g} voxels" if s.degradation == "psf" else ""
    parts = [f"scheme {s.scheme}{network}", f"factor {s.factor:g} {s.upsample_axes}", f"{s.degradation}{psf}"]
    if s.rank is not None:
        parts.append(f"rank {s.rank}")
    table = _table(model)
    if _MODEL in table:
        gain = f" ({table[_MODEL] - table[_BASELINE]:+.2f})" if _BASELINE in table else ""
        parts.append(f"{table[_MODEL]:.2f} dB{gain} on the validation set")
    if isinstance(metrics.get("iterations"), int) and isinstance(metrics.get("seconds"), float):
        parts.append(f"{metrics['iterations']:,} iterations in {metrics['seconds']:.0f} s")
    return ", ".join(parts) + "."


def _table(model: SRModel) -> dict[str, float]:
    """Return the PSNR table of a model; a file may contain anything."""
    table = model.metrics.get("psnr_db")
    return {k: float(v) for k, v in table.items() if isinstance(v, float | int)} if isinstance(table, dict) else {}
