"""The tabs of the SVD widget in which a super-resolution is trained, and understood."""

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
from ..shared.tabs import Tab, sentences
from .training_plots import ExplainedPlot, SRTrainingPlot
from .training_worker import Explained, Learning, SliceSpectra, TrainOrder

_SECONDS = 300.0
_MAIN = ("scheme", "factor", "backbone", "project", "time_limit")
_FOLDED = {
    "Losses": (
        *(name for name in TrainSRSettings.model_fields if name.startswith("lambda_")),
        *("orthogonality", "uncertainty_weighting"),
    ),
    "Network": ("context", "channels", "blocks", "weighting", "rank", "patch", "batch", "learning_rate"),
    "What is learnt from": ("axes", "degradation", "fwhm", "validation_fraction", "sign_flips"),
}
_OF_A = ("orthogonality", "weighting", "orthogonality_weight")
_OF_B = ("backbone", "context", "perceptual_weight", "adversarial_weight")
_FILES = "Trained super-resolution (*.safetensors)"
_ROWS = 3  # of a list of layers
_NO_MODEL = "No model yet: train one, or load one."
_PROJECTED, _LEARNED = "B-spline + projection", "model"  # rows of the table


class LearnTab(Tab):
    """What is learnt, how, and from what; and the model in hand, which can be saved and loaded.

    Attributes
    ----------
    form : SettingsForm
    itself, others, folder : Widget
        What is learnt from: the chosen image, other layers, NIfTI files.
    load, save : PushButton
    about : Label
        The model in hand.
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
            TrainSRSettings, _MAIN, suggested, {"time_limit": _SECONDS}, _FOLDED, without=("axis",)
        )  # fmt: skip
        fields = self.form.fields
        fields["project"].text = "Projection: agrees exactly with the image"
        fields["fwhm"].label = "Width of the psf"
        self.itself = CheckBox(value=True, text="The chosen image", tooltip="Learn from the slices of the image itself")
        self.others = Select(
            label="Other layers", choices=self._offered,
            tooltip="Learn from these image layers as well; Ctrl and a click chooses several",
        )  # fmt: skip
        self.folder = FileEdit(
            mode="d", label="Folder", nullable=True,
            tooltip="Learn from all volumes in .nii and .nii.gz files of a folder as well",
        )  # fmt: skip
        self._from: Container[Any] = Container(widgets=[self.itself, self.others, self.folder])
        self.load = PushButton(text="Load model…", tooltip="A .safetensors file that was saved here, or by train-sr")
        self.save = PushButton(text="Save model…", tooltip="Weights, settings and figures", enabled=False)
        self._files: Container[Any] = Container(widgets=[self.load, self.save], layout="horizontal", labels=False)
        self._rows: Container[Any] = Container(widgets=[*self.form.rows])
        for rows in (self._from, self._files, self._rows):
            rows.margins = (0, 0, 0, 0)
        self.about = sentences(_NO_MODEL)
        super().__init__(self._rows.native, *self.form.folds, self._files.native, self.about.native)
        from_ = next(fold for fold in self.form.folds if fold.text() == "What is learnt from")
        from_.content().layout().insertWidget(0, self._from.native)
        self.others.native.setMaximumHeight((_ROWS + 1) * self.others.native.fontMetrics().lineSpacing())
        fields["scheme"].changed.connect(self._show_rows)
        fields["degradation"].changed.connect(self._show_rows)
        self.load.changed.connect(self._on_load)
        self.save.changed.connect(self._on_save)
        self._show_rows()
        self.follow(None)

    @property
    def model(self) -> SRModel | None:
        """The model in hand: trained last, or loaded."""
        return self._model

    def _show_rows(self, *_: Any) -> None:
        fields = self.form.fields
        for names, scheme in ((_OF_A, "a"), (_OF_B, "b")):
            for name in names:
                fields[name].visible = fields["scheme"].value == scheme
        fields["fwhm"].visible = fields["degradation"].value == "psf"

    # What is learnt from ----------------------------------------------------------------------------------------------

    def _offered(self, _: Any) -> list[Layer]:
        def suits(layer: Layer) -> bool:
            return isinstance(layer, Image) and not layer.rgb and layer.ndim == 3 and not is_part_of_svd(layer)

        return [layer for layer in self._viewer.layers if suits(layer) and layer is not self._chosen]

    def follow(self, chosen: Layer | None) -> None:
        """Offer the viewer's layers but the chosen one."""
        self._chosen = chosen
        self.others.reset_choices()
        self.others.visible = bool(self.others.choices)

    def order(self, source: SourceVolume, axis: int) -> TrainOrder:
        """Return what the rows ask for; raise ValueError or MemoryError if it cannot be done."""
        settings = self.form.settings(axis="zyx"[axis])
        others = [source_volume(layer) for layer in self.others.value]
        folder = self.folder.value
        asked = str(folder) not in ("", ".") if folder is not None else False
        order = TrainOrder(source, settings, others, Path(folder) if asked else None, self.itself.value)
        order.check()
        return order

    # The model --------------------------------------------------------------------------------------------------------

    def take(self, model: SRModel, origin: str) -> None:
        """Have a model in hand; `origin` is where it is from."""
        self._model = model
        self.save.enabled = True
        self.about.value = f"{origin}: {about_model(model)}"
        self._on_model(model)

    def _on_load(self) -> None:
        path, _ = QFileDialog.getOpenFileName(self, "Load model", "", _FILES)
        if path:
            self.load_model(path)

    def load_model(self, path: str | Path) -> None:
        """Take the model of a file in hand."""
        try:
            model = SRModel.load(path)
        except (ValueError, OSError) as error:
            self._say(str(error), show_warning)
            return
        self.take(model, Path(path).name)
        self._say(f"Loaded {Path(path).name}: {about_model(model)}")

    def _on_save(self) -> None:
        path, _ = QFileDialog.getSaveFileName(self, "Save model", "super-resolution.safetensors", _FILES)
        if path:
            self.save_model(path)

    def save_model(self, path: str | Path) -> None:
        """Write the model in hand, with its settings and figures, and say how large the file is."""
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


class LearnView(QWidget):
    """How a training goes: the table, once it has ended, and its plots.

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
        """Show nothing: another training begins."""
        self._history: tuple[SRPoint, ...] = ()
        self._spectra: SliceSpectra | None = None
        self.table.show_figures({}, _PROJECTED, _LEARNED)
        self.plot.show_training((), {}, None)

    def show_news(self, news: Learning) -> None:
        """Draw what is new."""
        if news.spectra is not None:
            self._spectra = news.spectra
        if len(news.step.history) != len(self._history):
            self._history = news.step.history
            self.plot.show_training(self._history, news.baselines, self._spectra)
        if news.trained is not None:
            self.table.show_figures(news.trained.table, _PROJECTED, _LEARNED)

    def show_model(self, model: SRModel) -> None:
        """Show the figures of a model that was not trained here."""
        self.restart()
        self.table.show_figures(_table(model), _PROJECTED, _LEARNED)


class UnderstandTab(Tab):
    """The button that explains the model in hand, and plots of what its modes do.

    Attributes
    ----------
    start : PushButton
    plot : ExplainedPlot
    """

    def __init__(self, viewer: Viewer) -> None:
        self.start = PushButton(
            text="Explain", tooltip="Where each loss pulls, and what the model lacks, as layers of a slice held out"
        )
        self.about = sentences(
            "Of the slice held out that is nearest to the viewer's: what the model lacks and where each loss pulls, as "
            "layers, and what its modes are."
        )
        self.plot = ExplainedPlot(viewer)
        super().__init__(self.about.native, self.start.native, self.plot)

    def show_explained(self, explained: Explained | None) -> None:
        """Draw the modes of a slice; None shows nothing."""
        if explained is None:
            self.plot.show_explained(None, None)
        else:
            self.plot.show_explained(explained.spectra, explained.reached_db)


def about_model(model: SRModel) -> str:
    """Return settings and figures of a model in a sentence."""
    s, metrics = model.settings, model.metrics
    network = f" ({s.backbone})" if s.scheme == "residual" else ""
    psf = f" of {s.fwhm:g} voxels" if s.degradation == "psf" else ""
    parts = [f"scheme {s.scheme}{network}", f"{s.factor:g} times finer {s.upsample_axes}", f"{s.degradation}{psf}"]
    if s.rank is not None:
        parts.append(f"rank {s.rank}")
    table = _table(model)
    if _LEARNED in table:
        gain = f" ({table[_LEARNED] - table[_PROJECTED]:+.2f})" if _PROJECTED in table else ""
        parts.append(f"{table[_LEARNED]:.2f} dB{gain} on slices held out")
    if isinstance(metrics.get("iterations"), int) and isinstance(metrics.get("seconds"), float):
        parts.append(f"{metrics['iterations']:,} iterations in {metrics['seconds']:.0f} s")
    return ", ".join(parts) + "."


def _table(model: SRModel) -> dict[str, float]:
    """Return the PSNR that a model's figures tell; a file may tell anything."""
    table = model.metrics.get("psnr_db")
    return {k: float(v) for k, v in table.items() if isinstance(v, float | int)} if isinstance(table, dict) else {}
