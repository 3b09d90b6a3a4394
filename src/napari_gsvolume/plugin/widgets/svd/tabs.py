"""The tabs of the SVD widget: a mode and its functions, all slices, and what is made finer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from magicgui.widgets import ComboBox, Container, FloatSpinBox, PushButton, SpinBox
from napari.utils.notifications import show_warning
from napari.viewer import Viewer

from ..shared.form import SettingsForm
from ..shared.tabs import Tab, sentences
from .plots import HeatMap, ModePlot
from .rank_layers import put_mode
from .slice_matrix import BasisChoice, MatrixAnalysis, sample_curve
from .worker import Spectra

_BASES = ("bspline", "legendre", "periodic", "mirrored", "rbf")


class ModeTab(Tab):
    """The k-th u and v as samples and as functions, and the mode as a layer.

    Attributes
    ----------
    k : SpinBox
        Which mode, from 1.
    basis, order, smoothing : Widget
        What the functions are made of.
    to_layer : PushButton
    plot : ModePlot
    """

    def __init__(self, viewer: Viewer, say: Callable[..., None]) -> None:
        self.k = SpinBox(label="Mode k", min=1, max=1, value=1, tooltip="Or click on the plot of singular values")
        self.basis = ComboBox(
            label="Functions", choices=_BASES, value="bspline",
            tooltip="What u and v are made of: B-splines, polynomials, Fourier or cosine series, a thin-plate spline",
        )  # fmt: skip
        self.spline_degree = SpinBox(label="Order", min=1, max=5, value=3, tooltip="Degree of the B-spline's pieces")
        self.smoothing = FloatSpinBox(
            label="Smoothing", min=0, max=1e6, step=0.5, value=0,
            tooltip="Weight of the roughness; 0 goes through the samples",
        )  # fmt: skip
        self.to_layer = PushButton(text="Mode as layer", tooltip="The image of rank one of this mode")
        self._which: Container[Any] = Container(
            widgets=[self.k, self.to_layer], layout="horizontal", label="Mode k", labels=False
        )
        self._which.margins = (0, 0, 0, 0)
        self._rows: Container[Any] = Container(widgets=[self._which, self.basis, self.spline_degree, self.smoothing])
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
        """Show a mode of another matrix; None shows nothing."""
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
            self._say(f"'{layer.name}' is the image of rank one of mode {self.k.value}.")


class AllSlicesTab(Tab):
    """The button that decomposes all slices, and the heat map of their singular values."""

    def __init__(self, viewer: Viewer, on_click: Callable[[float], None]) -> None:
        self.start = PushButton(text="All slices", tooltip="Decompose every slice along the axis")
        self.plot = HeatMap(viewer, on_click)
        super().__init__(self.start.native, self.plot)

    def show_spectra(self, of: Spectra | None, current: int) -> None:
        """Draw the values of a volume's slices; None shows nothing."""
        self.plot.show_spectra(of, current)

    def mark(self, current: int) -> None:
        """Mark the current slice."""
        self.plot.mark(current)


class FinerTab(Tab):
    """What is made finer, and how.

    Attributes
    ----------
    of : ComboBox
    about : Label
        The model that is used.
    """

    def __init__(self, form: SettingsForm[Any]) -> None:
        self.of = ComboBox(
            label="Of", choices=["the image", "the image at the rank"], value="the image",
            tooltip="All of it, or what is left of it at the chosen rank: of each slice, or of the unfolding",
        )  # fmt: skip
        self._rows: Container[Any] = Container(widgets=[self.of, *form.rows])
        self._rows.margins = (0, 0, 0, 0)
        self.about = sentences("No model yet: train or load one in the tab Learn.")
        super().__init__(self._rows.native, self.about.native)
        self._fields = form.fields
        self._fields["project"].text = "Projection: agrees exactly with the image"
        self._fields["ensemble"].text = "Mean over flipped and turned slices"
        self._fields["fwhm"].label = "Width of the psf"
        for name in ("degradation", "scheme"):
            self._fields[name].changed.connect(self._show_rows)
        self._show_rows()

    @property
    def of_rank(self) -> bool:
        """Whether the image at the chosen rank is meant."""
        return str(self.of.value) == "the image at the rank"

    def show_model(self, about: str) -> None:
        """Say which model is used."""
        self.about.value = f"Model: {about}"

    def _show_rows(self, *_: Any) -> None:
        learned = self._fields["scheme"].value != "spline"
        self._fields["fwhm"].visible = self._fields["degradation"].value == "psf"
        self._fields["ensemble"].visible = learned
        self.about.visible = learned
