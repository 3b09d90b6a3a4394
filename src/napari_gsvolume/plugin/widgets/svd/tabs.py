"""Tabs of the SVD widget: modes and their functions, spectra of all slices, and super-resolution."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from magicgui.widgets import ComboBox, Container, FloatSpinBox, PushButton, SpinBox
from napari.utils.notifications import show_warning
from napari.viewer import Viewer

from ..shared.form import SettingsForm
from ..shared.tabs import Tab, text_label
from .plots import HeatMap, ModePlot
from .rank_layers import put_mode
from .slice_matrix import BasisChoice, MatrixAnalysis, sample_curve
from .worker import Spectra

_BASES = ("bspline", "legendre", "periodic", "mirrored", "rbf")
_IMAGE, _TRUNCATED = "image", "image truncated to the rank"


class ModeTab(Tab):
    """Singular vectors u and v of mode k as samples and as functions, and the mode as a layer.

    Attributes
    ----------
    k : SpinBox
        Mode number, from 1.
    basis, spline_degree, smoothing : Widget
        Basis of the functions.
    to_layer : PushButton
    plot : ModePlot
    """

    def __init__(self, viewer: Viewer, say: Callable[..., None]) -> None:
        self.k = SpinBox(
            label="Mode k",
            min=1,
            max=1,
            value=1,
            tooltip="Mode number, from 1; a click on the plot of singular values sets it, too",
        )
        self.basis = ComboBox(
            label="Functions",
            choices=_BASES,
            value="bspline",
            tooltip="Basis of the functions u and v: B-splines, polynomials, Fourier or cosine series, thin plates",
        )
        self.spline_degree = SpinBox(
            label="Degree", min=1, max=5, value=3, tooltip="B-spline degree: 1 linear, 3 cubic"
        )
        self.smoothing = FloatSpinBox(
            label="Smoothing",
            min=0,
            max=1e6,
            step=0.5,
            value=0,
            tooltip="Weight of the roughness penalty; 0 interpolates the samples",
        )
        self.to_layer = PushButton(text="Mode as layer", tooltip="Add the rank-1 image of this mode as a layer")
        self._mode_row: Container[Any] = Container(
            widgets=[self.k, self.to_layer], layout="horizontal", label="Mode k", labels=False
        )
        self._mode_row.margins = (0, 0, 0, 0)
        self._rows: Container[Any] = Container(widgets=[self._mode_row, self.basis, self.spline_degree, self.smoothing])
        self._rows.margins = (0, 0, 0, 0)
        self.plot = ModePlot(viewer)
        super().__init__(self._rows.native, self.plot)
        self._viewer, self._say = viewer, say
        self._at: MatrixAnalysis | None = None
        for row in (self.k, self.basis, self.spline_degree, self.smoothing):
            row.changed.connect(self._draw)
        self.to_layer.changed.connect(self._on_layer)
        self.show_modes(None)

    def show_modes(self, at: MatrixAnalysis | None) -> None:
        """Show a mode of another matrix; None hides the plot."""
        self._at = at
        self._rows.enabled = at is not None
        if at is not None:
            with self.k.changed.blocked():
                self.k.max = at.rank
        self._draw()

    def _draw(self, *_: Any) -> None:
        self.spline_degree.visible = self.basis.value == "bspline"
        if self._at is None:
            self.plot.show_mode(1, ())
            return
        of, matrix, k = self._at.decomposition, self._at.matrix, self.k.value
        basis = BasisChoice(self.basis.value, self.spline_degree.value, self.smoothing.value)
        try:
            rows, columns = matrix.labels
            u, v = of.U[:, k - 1], of.V[:, k - 1]
            curves = [sample_curve(u, rows, basis)]
            picture = None
            if matrix.kind == "unfolding":
                shape = [matrix.source.grid.shape[axis] for axis in matrix.other_axes]
                picture = columns, v.reshape(shape)
            else:
                curves.append(sample_curve(v, columns, basis))
        except ValueError as error:
            self._say(str(error))
            return
        self.plot.show_mode(k, curves, picture)

    def _on_layer(self) -> None:
        if self._at is None:
            return
        try:
            layer = put_mode(self._viewer, self._at, self.k.value)
        except (ValueError, MemoryError) as error:
            self._say(str(error), show_warning)
            return
        if layer is not None:
            self._say(f"'{layer.name}' is the rank-1 image of mode {self.k.value}.")


class AllSlicesTab(Tab):
    """Button that decomposes all slices, and heat map of their singular values."""

    def __init__(self, viewer: Viewer, on_click: Callable[[float], None]) -> None:
        self.start = PushButton(text="All slices", tooltip="Decompose every slice along the axis")
        self.plot = HeatMap(viewer, on_click)
        super().__init__(self.start.native, self.plot)

    def show_spectra(self, of: Spectra | None, current: int) -> None:
        """Draw the singular values of the slices of a volume; None hides the plot."""
        self.plot.show_spectra(of, current)

    def mark(self, current: int) -> None:
        """Mark the current slice."""
        self.plot.mark(current)


class SuperResolveTab(Tab):
    """Settings of super-resolution.

    Attributes
    ----------
    input : ComboBox
        The image, or its truncation to the rank.
    about : Label
        Description of the model.
    """

    def __init__(self, form: SettingsForm[Any]) -> None:
        self.input = ComboBox(
            label="Input",
            choices=[_IMAGE, _TRUNCATED],
            value=_IMAGE,
            tooltip="Input: the image, or each slice (or the unfolding) truncated to the chosen rank",
        )
        self._rows: Container[Any] = Container(widgets=[self.input, *form.rows])
        self._rows.margins = (0, 0, 0, 0)
        self.about = text_label("No model yet: train or load one in the tab Train.")
        super().__init__(self._rows.native, self.about.native)
        self._fields = form.fields
        self._fields["project"].text = "Projection on the image (exact data consistency)"
        self._fields["ensemble"].text = "Self-ensemble (slower)"
        self._fields["fwhm"].label = "PSF width (FWHM)"
        self._fields["upsample_axes"].label = "Axes"
        for name in ("degradation", "scheme"):
            self._fields[name].changed.connect(self._show_rows)
        self._show_rows()

    @property
    def is_truncated(self) -> bool:
        """Whether the input is the image truncated to the chosen rank."""
        return str(self.input.value) == _TRUNCATED

    def show_model(self, about: str) -> None:
        """Show the description of the current model."""
        self.about.value = f"Model: {about}"

    def _show_rows(self, *_: Any) -> None:
        by_model = self._fields["scheme"].value != "spline"
        self._fields["fwhm"].visible = self._fields["degradation"].value == "psf"
        self._fields["ensemble"].visible = by_model
        self.about.visible = by_model
