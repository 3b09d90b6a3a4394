"""Upper part of the SVD widget: choice of the matrix, singular values, and rank."""

from __future__ import annotations

from typing import Any

from magicgui.widgets import ComboBox, Container, Label, PushButton, Slider
from napari.layers import Image, Layer
from napari.viewer import Viewer
from qtpy.QtWidgets import QVBoxLayout, QWidget

from ...layers.svd import is_part_of_svd
from ..shared.base import RunWidget, row_of
from ..shared.dims import index_at, set_slice_axis, slice_axis_of
from ..shared.latest_task import LatestTask
from ..shared.layer_choice import LayerChoice
from ..shared.visibility import VisibilityFilter
from .plots import SpectrumPlot
from .rank_layers import RankLayers
from .slice_matrix import Matrix, MatrixAnalysis, MatrixKind, analyse, summarize, truncate

_AT_ONCE = 2**20  # pixels of a matrix up to which a rank is shown at once; larger ones in the background
_FIRST_RANK = 10


class SliceWidget(RunWidget):
    """Choose an image layer: the slice in the viewer is decomposed; move the rank.

    Subclasses override the callbacks for another matrix (`_on_matrix`), its SVD (`_on_decomposed`) and a click on a
    mode (`_on_mode`), and call `_begin_to_follow` at the end of their constructor.

    Parameters
    ----------
    viewer : napari.Viewer
        The viewer to take layers from and to add layers to.
    """

    def __init__(self, viewer: Viewer) -> None:
        self._ready = self._is_volume = False
        self._at: MatrixAnalysis | None = None
        self._requested: tuple[Any, ...] | None = None
        self._observed: Layer | None = None
        self._layers = RankLayers(viewer)
        self._latest = LatestTask(self._on_analysed, self._on_failed)
        self._truncation = LatestTask(self._layers.show, self._on_failed)
        self.axis = ComboBox(
            label="Axis",
            choices=[("z", 0), ("y", 1), ("x", 2)],
            value=slice_axis_of(viewer),
            tooltip="Axis along which the slices are stacked",
        )
        self.of = ComboBox(
            label="Matrix",
            choices=[("current slice", "slice"), ("unfolding", "unfolding")],
            value="slice",
            tooltip="Matrix to decompose: the slice in the viewer, or the unfolding with one slice a row",
        )
        self.figures = Label(value="")
        self.rank = Slider(label="Rank", min=1, max=2, value=1, tooltip="Number of modes of the layer · rank")
        self.use_threshold = PushButton(
            text="Use threshold",
            tooltip="Set the rank to the number of modes above the dashed line, the optimal threshold for white noise",
        )
        source = LayerChoice(
            viewer,
            "Image",
            lambda layer: isinstance(layer, Image) and not is_part_of_svd(layer),
            "Image to decompose",
        )
        self._matrix_row: Container[Any] = Container(
            widgets=[self.axis, self.of], layout="horizontal", label="Axis", labels=False
        )
        self._matrix_row.margins = (0, 0, 0, 0)
        super().__init__(viewer, [self._matrix_row, self.rank, self.use_threshold], [], source=source)
        self.plot = SpectrumPlot(viewer, self._on_plot)
        self.spectrum = QWidget()  # hides the plot, which has a visibility of its own
        layout = QVBoxLayout(self.spectrum)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self.plot)
        self._insert(self.rank, self.spectrum, self.figures.native)
        self.figures.native.setWordWrap(True)

    def _insert(self, before: Any, *widgets: Any) -> None:
        for widget in widgets:
            self.content.insertWidget(self.content.indexOf(row_of(before)), widget)

    def _begin_to_follow(self) -> None:
        self.rank.changed.connect(self._on_rank)
        self.use_threshold.changed.connect(self._on_threshold)
        self.axis.changed.connect(self._on_axis)
        for box in (self.of, self.time_point, self.level):
            box.changed.connect(self.renew)
        self._viewer.dims.events.point.connect(self._on_dims)
        self._viewer.dims.events.order.connect(self._on_order)
        self._visibility = VisibilityFilter(hidden=self._forget, shown=self.renew)
        self.native.installEventFilter(self._visibility)
        self._ready = True
        self._on_image(self.image.value)

    def _on_matrix(self, matrix: Matrix, key: tuple[Any, ...]) -> None:
        """Handle another matrix; `key` is the identity of its volume."""

    def _on_other_data(self) -> None:
        """Handle changed data of the volume."""

    def _on_decomposed(self, at: MatrixAnalysis | None) -> None:
        """Handle the SVD of the matrix; None if there is none."""

    def _on_mode(self, k: int) -> None:
        """Select a mode, counted from 1."""

    @property
    def _mode(self) -> int:
        """Selected mode, counted from 1."""
        return 1

    @property
    def analysis(self) -> MatrixAnalysis | None:
        """SVD that is shown."""
        return self._at

    @property
    def busy(self) -> bool:
        """Whether an SVD or a truncation runs in the background."""
        return self._latest.busy or self._truncation.busy

    def _forget(self) -> None:
        """Drop the results of background tasks: the widget is hidden."""
        self._latest.drop()
        self._truncation.drop()
        self._requested = None  # so that the matrix is decomposed when the dock is shown again

    def _leave(self) -> None:
        super()._leave()
        self._forget()
        self._viewer.dims.events.point.disconnect(self._on_dims)
        self._viewer.dims.events.order.disconnect(self._on_order)
        self._observe(None)

    # Matrix -----------------------------------------------------------------------------------------------------------

    def _on_image(self, layer: Layer | None) -> None:
        super()._on_image(layer)
        if not self._ready:
            return
        if layer is not self._observed:
            self._observe(layer)
            self._layers.restart()
        self._is_volume = isinstance(layer, Image) and not layer.rgb and layer.ndim > 2
        self._matrix_row.visible = self._is_volume
        self.renew()

    def _observe(self, layer: Layer | None) -> None:
        if self._observed is not None:
            self._observed.events.data.disconnect(self._on_data)
        self._observed = layer
        if layer is not None:
            layer.events.data.connect(self._on_data)

    def _on_data(self, *_: Any) -> None:
        self._requested = None
        self._on_other_data()
        self.renew()

    def _on_axis(self, axis: int) -> None:
        if self._is_volume:
            set_slice_axis(self._viewer, axis)
        self.renew()

    def _on_dims(self, *_: Any) -> None:
        self.renew()

    def _on_order(self, *_: Any) -> None:
        """Follow the viewer when it shows slices along another axis."""
        if self._is_volume and self._viewer.dims.ndisplay == 2:
            self.axis.value = slice_axis_of(self._viewer)

    def _matrix(self) -> Matrix:
        """Return the matrix of the rows and the viewer's sliders; raise InputError if there is none."""
        source = self._volumes()[0]
        axis = self.axis.value if source.grid.ndim == 3 else 0
        kind: MatrixKind = self.of.value if source.grid.ndim == 3 else "slice"
        index = index_at(self._viewer, source.grid, axis) if source.grid.ndim == 3 and kind == "slice" else 0
        return Matrix(source, axis, kind, index)

    @property
    def _key(self) -> tuple[Any, ...]:
        """Identity of the chosen volume."""
        return self._observed, self.time_point.value, self.level.value

    def renew(self, *_: Any) -> None:
        """Decompose the chosen matrix, unless it is shown already."""
        if not self._ready or self._left or self._visibility.is_hidden:
            return
        try:
            matrix = self._matrix()
        except ValueError as error:
            if self._requested != ("error", str(error)):
                self._requested = ("error", str(error))
                self._latest.drop()
                self._on_failed(error)
            return
        self._on_matrix(matrix, self._key)
        requested = (*self._key, matrix.source.name, matrix.axis, matrix.source.grid, matrix.kind, matrix.index)
        if requested == self._requested:
            return
        self._requested = requested
        self._latest.ask(lambda: analyse(matrix))

    def _on_analysed(self, at: MatrixAnalysis) -> None:
        first = self._at is None or self._at.rank != at.rank
        if self._at is None and not self.running:
            self.status.value = ""
        self._at = at
        if first:  # otherwise the rank stays, though another slice is shown
            with self.rank.changed.blocked():
                value = min(self.rank.value if self.rank.value > 1 else _FIRST_RANK, at.rank)
                self.rank.max = max(at.rank, 2)  # a slider needs two positions
                self.rank.value = value
        self.rank.enabled = at.rank > 1
        self.use_threshold.enabled = at.threshold is not None
        self._on_decomposed(at)
        self.plot.show_spectrum(at, self._rank, self._mode)
        self._show_figures()
        if self._layers.exist:
            self._truncate()

    def _on_failed(self, error: Exception) -> None:
        known = isinstance(error, ValueError | MemoryError | OSError)
        self._at = None
        self.plot.show_spectrum(None, 1, 1)
        self._on_decomposed(None)
        self.figures.value = ""
        self.rank.enabled = self.use_threshold.enabled = False
        text = str(error) if known else f"This failed, please report it: {error or type(error).__name__}"
        self.status.value = text  # no notification: the viewer may just pass an empty slice
        self._viewer.status = text

    # Rank -------------------------------------------------------------------------------------------------------------

    @property
    def _rank(self) -> int:
        rank = int(self.rank.value)
        return rank if self._at is None else min(rank, self._at.rank)

    def _on_rank(self, _: int) -> None:
        if self._at is None:
            return
        self.plot.mark(self._rank, self._mode)
        self._show_figures()
        if not self._layers.exist:  # also if they were removed: moving the slider adds them again
            self._layers.restart()
        self._truncate()

    def _on_threshold(self) -> None:
        if self._at is None or self._at.threshold is None:
            return
        rank = self._at.rank_above_threshold
        if rank == self.rank.value:
            self._on_rank(rank)
        self.rank.value = rank

    def _truncate(self) -> None:
        """Show the image of the rank and its residual."""
        at, rank = self._at, self._rank
        if at is None:
            return
        if at.image.size <= _AT_ONCE:
            self._layers.show(truncate(at, rank))
        else:
            self._truncation.ask(lambda: truncate(at, rank))

    def _show_figures(self) -> None:
        if self._at is not None:
            self.figures.value = summarize(self._at, self._rank)

    def _on_plot(self, x: float) -> None:
        if self._at is not None:
            self._on_mode(min(max(round(x), 1), self._at.rank))
