"""What is decomposed, and its rank: the upper part of the SVD widget."""

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
from .slice_matrix import Analysed, Matrix, MatrixKind, analysed, figures, truncated

_AT_ONCE = 2**20  # pixels of a matrix up to which a rank is shown at once; of larger ones beside the viewer
_FIRST_RANK = 10


class SliceWidget(RunWidget):
    """Choose an image layer: the slice the viewer shows is decomposed; move the rank.

    Subclasses add what else is done with it: they are told which matrix is asked for (`_on_matrix`), what it is made of
    (`_on_decomposed`) and which mode is clicked on (`_on_mode`), and call `_begin_to_follow` once they are made.

    Parameters
    ----------
    viewer : napari.Viewer
        The viewer to take layers from and to add layers to.
    """

    def __init__(self, viewer: Viewer) -> None:
        self._ready = self._solid = False
        self._at: Analysed | None = None
        self._asked: tuple[Any, ...] | None = None
        self._watched: Layer | None = None
        self._layers = RankLayers(viewer)
        self._latest = LatestTask(self._on_analysed, self._on_failed)
        self._cutting = LatestTask(self._layers.show, self._on_failed)
        self.axis = ComboBox(
            label="Axis", choices=[("z", 0), ("y", 1), ("x", 2)], value=slice_axis_of(viewer),
            tooltip="Along which the slices are stacked",
        )  # fmt: skip
        self.of = ComboBox(
            label="Of", choices=[("current slice", "slice"), ("unfolding", "unfolding")], value="slice",
            tooltip="The slice the viewer shows, or the matrix whose rows are all slices",
        )  # fmt: skip
        self.figures = Label(value="")
        self.rank = Slider(label="Rank", min=1, max=2, value=1, tooltip="How many modes the image · rank has")
        self.use_threshold = PushButton(
            text="Use threshold", tooltip="Take the modes above the dashed line: the best rank against white noise"
        )
        source = LayerChoice(
            viewer, "Image", lambda layer: isinstance(layer, Image) and not is_part_of_svd(layer),
            "What is decomposed",
        )  # fmt: skip
        self._which: Container[Any] = Container(
            widgets=[self.axis, self.of], layout="horizontal", label="Axis", labels=False
        )
        self._which.margins = (0, 0, 0, 0)
        super().__init__(viewer, [self._which, self.rank, self.use_threshold], [], source=source)
        self.plot = SpectrumPlot(viewer, self._on_plot)
        self.spectrum = QWidget()  # hides the plot, which itself knows whether there is something to show
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
        """Note what is asked for, and what the volume it is of is known by."""

    def _on_other_data(self) -> None:
        """Forget what is known of the volume's data: they have changed."""

    def _on_decomposed(self, at: Analysed | None) -> None:
        """Show more of a matrix; None if there is nothing to show."""

    def _on_mode(self, k: int) -> None:
        """Choose a mode, from 1."""

    @property
    def _mode(self) -> int:
        """Which mode is chosen, from 1."""
        return 1

    @property
    def analysed(self) -> Analysed | None:
        """What is shown."""
        return self._at

    @property
    def busy(self) -> bool:
        """Whether something is being decomposed or truncated beside the viewer."""
        return self._latest.busy or self._cutting.busy

    def _forget(self) -> None:
        """Show nothing of what is under way beside the viewer: nobody sees it."""
        self._latest.drop()
        self._cutting.drop()
        self._asked = None  # should the dock be shown again

    def _leave(self) -> None:
        super()._leave()
        self._forget()
        self._viewer.dims.events.point.disconnect(self._on_dims)
        self._viewer.dims.events.order.disconnect(self._on_order)
        self._watch(None)

    # What is decomposed -----------------------------------------------------------------------------------------------

    def _on_image(self, layer: Layer | None) -> None:
        super()._on_image(layer)
        if not self._ready:
            return
        if layer is not self._watched:
            self._watch(layer)
            self._layers.restart()
        self._solid = isinstance(layer, Image) and not layer.rgb and layer.ndim > 2
        self._which.visible = self._solid
        self.renew()

    def _watch(self, layer: Layer | None) -> None:
        if self._watched is not None:
            self._watched.events.data.disconnect(self._on_data)
        self._watched = layer
        if layer is not None:
            layer.events.data.connect(self._on_data)

    def _on_data(self, *_: Any) -> None:
        self._asked = None
        self._on_other_data()
        self.renew()

    def _on_axis(self, axis: int) -> None:
        if self._solid:
            set_slice_axis(self._viewer, axis)
        self.renew()

    def _on_dims(self, *_: Any) -> None:
        self.renew()

    def _on_order(self, *_: Any) -> None:
        """Follow the viewer where it is turned to other slices."""
        if self._solid and self._viewer.dims.ndisplay == 2:
            self.axis.value = slice_axis_of(self._viewer)

    def _matrix(self) -> Matrix:
        """Return what the rows and the viewer's sliders ask for; raise ValueError if there is nothing."""
        source = self._volumes()[0]
        axis = self.axis.value if source.grid.ndim == 3 else 0
        kind: MatrixKind = self.of.value if source.grid.ndim == 3 else "slice"
        index = index_at(self._viewer, source.grid, axis) if source.grid.ndim == 3 and kind == "slice" else 0
        return Matrix(source, axis, kind, index)

    @property
    def _key(self) -> tuple[Any, ...]:
        """What the chosen volume is known by."""
        return self._watched, self.time_point.value, self.level.value

    def renew(self, *_: Any) -> None:
        """Decompose what is to be shown, unless it is."""
        if not self._ready or self._left or self._visibility.is_hidden:
            return
        try:
            matrix = self._matrix()
        except ValueError as error:
            if self._asked != ("error", str(error)):
                self._asked = ("error", str(error))
                self._latest.drop()
                self._on_failed(error)
            return
        self._on_matrix(matrix, self._key)
        asked = (*self._key, matrix.source.name, matrix.axis, matrix.source.grid, matrix.kind, matrix.index)
        if asked == self._asked:
            return
        self._asked = asked
        self._latest.ask(lambda: analysed(matrix))

    def _on_analysed(self, at: Analysed) -> None:
        first = self._at is None or self._at.rank != at.rank
        if self._at is None and not self.running:
            self.status.value = ""
        self._at = at
        if first:  # else the rank is what it was, though another slice is shown
            with self.rank.changed.blocked():
                value = min(self.rank.value if self.rank.value > 1 else _FIRST_RANK, at.rank)
                self.rank.max = max(at.rank, 2)  # a slider has two places at least
                self.rank.value = value
        self.rank.enabled = at.rank > 1
        self.use_threshold.enabled = at.threshold is not None
        self._on_decomposed(at)
        self.plot.show_spectrum(at, self._rank, self._mode)
        self._tell()
        if self._layers.there:
            self._cut()

    def _on_failed(self, error: Exception) -> None:
        known = isinstance(error, ValueError | MemoryError | OSError)
        self._at = None
        self.plot.show_spectrum(None, 1, 1)
        self._on_decomposed(None)
        self.figures.value = ""
        self.rank.enabled = self.use_threshold.enabled = False
        text = str(error) if known else f"This failed, please report it: {error or type(error).__name__}"
        self.status.value = text  # no window pops up: one may just have come across an empty slice
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
        self._tell()
        if not self._layers.there:  # also where they were removed: who moves the slider wants to see something
            self._layers.restart()
        self._cut()

    def _on_threshold(self) -> None:
        if self._at is None or self._at.threshold is None:
            return
        rank = self._at.rank_above_threshold
        if rank == self.rank.value:
            self._on_rank(rank)
        self.rank.value = rank

    def _cut(self) -> None:
        """Show the image of the rank and its residual."""
        at, rank = self._at, self._rank
        if at is None:
            return
        if at.image.size <= _AT_ONCE:
            self._layers.show(truncated(at, rank))
        else:
            self._cutting.ask(lambda: truncated(at, rank))

    def _tell(self) -> None:
        if self._at is not None:
            self.figures.value = figures(self._at, self._rank)

    def _on_plot(self, x: float) -> None:
        if self._at is not None:
            self._on_mode(min(max(round(x), 1), self._at.rank))
