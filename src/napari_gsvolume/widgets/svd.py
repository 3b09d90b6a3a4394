"""The dock widget that takes slices as matrices: their singular values, ranks, modes, and finer voxels."""

from __future__ import annotations

from typing import Any

from napari.utils.notifications import show_warning
from napari.viewer import Viewer
from qtpy.QtWidgets import QTabWidget

from ..layers import made_before
from ..layers_spectral import FINER, finer_layer
from ..spectral.settings import SuperResolveSettings
from .form import SettingsForm
from .shown import ShownLayers
from .slicing import index_at, move_to
from .svd_job import Finer, FinerOrder, Spectra, run_finer, run_spectra
from .svd_matrix import Analysed, Matrix
from .svd_slice import SliceWidget
from .svd_tabs import AllSlicesTab, FinerTab, ModeTab


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
        self.form = SettingsForm(SuperResolveSettings, ("factor", "axes", "degradation", "fwhm", "project"),
                                 {}, {})  # fmt: skip
        super().__init__(napari_viewer)
        self.modes = ModeTab(napari_viewer, self._say)
        self.slices = AllSlicesTab(napari_viewer, self._on_heat_map)
        self.finer = FinerTab(self.form)
        self.tabs = QTabWidget()
        for tab, title in ((self.modes, "Mode"), (self.slices, "All slices"), (self.finer, "Finer")):
            self.tabs.addTab(tab, title)
        self._insert(self.button, self.tabs)
        self.content.addStretch()
        self.modes.k.changed.connect(lambda k: self.plot.mark(self.rank.value, k))
        self.slices.start.changed.connect(self._on_all_slices)
        self.tabs.currentChanged.connect(self._show_button)
        self._show_button()
        self._begin_to_follow()

    # What the tabs show -----------------------------------------------------------------------------------------------

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

    def _on_decomposed(self, at: Analysed | None) -> None:
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

    # Running ----------------------------------------------------------------------------------------------------------

    def _show_button(self, *_: Any) -> None:
        """Offer the button where it belongs; Stop is there whenever something runs."""
        self.button.visible = self.running or self.tabs.currentWidget() is self.finer

    def _on_all_slices(self) -> None:
        if self.running:
            return
        try:
            source = self._volumes()[0]
            if source.grid.ndim != 3:
                raise ValueError(f"'{source.name}' is flat; there is one slice.")
        except ValueError as error:
            self._say(str(error), show_warning)
            return
        self._done = False
        self._start(run_spectra, source, self.axis.value, self._key)
        self._began()

    def _begin(self) -> None:
        source = self._volumes()[0]
        self.form.fields["axis"].value = "zyx"[self.axis.value] if source.grid.ndim == 3 else "z"
        settings = self.form.settings()
        rank = self._rank if self.finer.of_rank else None
        order = FinerOrder(source, settings, rank, self.of.value if source.grid.ndim == 3 else "slice")
        order.check()
        self._done = False
        self._start(run_finer, order)
        self._began()

    def _began(self) -> None:
        self.slices.start.enabled = False
        self._show_button()

    def _end(self) -> None:
        self.slices.start.enabled = True
        self.renew()  # knows better
        self._show_button()
        if self._done and not self._error_shown:
            self.progress.value = self.progress.max
        elif not self._error_shown:
            self._say("Stopped before there was anything to show.")

    def _show(self, news: Spectra | Finer) -> None:
        if isinstance(news, Spectra):
            self._show_spectra(news)
        else:
            self._show_finer(news)

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
        shown = ShownLayers(self._viewer, {name: made_before(self._viewer.layers, name)})
        shown.put(name, finer_layer(order.source, news.volume, order.grid, about))
        size = " x ".join(map(str, news.volume.shape))
        self._say(
            f"'{name}' has {size} voxels; degraded again ({order.settings.degradation}) it differs from the image by "
            f"{news.misfit:.1e} of the largest intensity; {news.seconds:.1f} s."
        )
