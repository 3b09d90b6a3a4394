"""Base of the widgets with Gaussians as result: layers drawn one by one, a plot, and a button that saves."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from magicgui.widgets import PushButton, Widget
from napari.layers import Layer, Surface
from napari.utils.notifications import show_warning
from napari.viewer import Viewer
from qtpy.QtCore import QTimer
from qtpy.QtWidgets import QFileDialog, QWidget
from rich.filesize import decimal as file_size

from ....gaussians import GaussianVolume
from ....io.gaussians import EXPORT_SUFFIXES, GAUSSIAN_SUFFIXES
from ...layers.conversion import LayerData, find_earlier_layer
from ...layers.gaussians import gaussian_layer, points_layer
from ...preferences import most_ellipsoids
from .base import RunWidget, row_of
from .form import SettingsForm
from .layer_updater import LayerUpdater

DrawCall = Callable[[], None]
_FILES = {
    "Compact (*.gsv)": ".gsv",
    "Lossless (*.safetensors)": ".safetensors",
    "Splat viewers (*.ply)": ".ply",
}


class GaussianWidget(RunWidget):
    """Base of widgets that show Gaussians as ellipsoids and centres, and save them.

    Subclasses define `_named_gaussians`.

    Parameters
    ----------
    viewer : napari.Viewer
        The viewer to take layers from and to add layers to.
    form : SettingsForm
        Form of the settings.
    plot : QWidget
        Plot of the history.
    above, after : sequence of Widget
        Rows before and after the rows of the form.
    **choice
        Further arguments of `RunWidget`.
    """

    def __init__(
        self,
        viewer: Viewer,
        form: SettingsForm[Any],
        plot: QWidget,
        above: Sequence[Widget] = (),
        after: Sequence[Widget] = (),
        **choice: Any,
    ) -> None:
        self._shown: LayerUpdater[str] = LayerUpdater(viewer)
        self._draw_calls: deque[DrawCall] = deque()  # drawing that is left to do
        self.save = PushButton(text="Save Gaussians…", enabled=False)
        super().__init__(viewer, [*above, *form.rows, *after], [self.save], **choice)
        self.form, self.plot = form, plot
        for fold in form.folds:
            self.content.insertWidget(self.content.indexOf(row_of(after[0] if after else self.button)), fold)
        self.content.addWidget(plot)
        self.content.addStretch()
        self.save.changed.connect(self._on_save)
        viewer.dims.events.ndisplay.connect(self._on_ndisplay)

    @property
    def _named_gaussians(self) -> list[tuple[str, GaussianVolume]]:
        """Gaussians of the last run, each with the name of its source."""
        raise NotImplementedError

    def _earlier_layers(self, name: str, kinds: Sequence[str]) -> dict[str, Layer | None]:
        """Return the layers of an earlier run on the same source, which this run updates in place."""
        return {kind: find_earlier_layer(self._viewer.layers, f"{name} · {kind}") for kind in kinds}

    # Drawing ----------------------------------------------------------------------------------------------------------

    def _leave(self) -> None:
        super()._leave()
        self._draw_calls.clear()

    def _drawing(self) -> bool:
        return bool(self._draw_calls)

    def _draw(self, calls: Sequence[DrawCall]) -> None:
        self._draw_calls += calls
        self._draw_next()

    def _draw_next(self) -> None:
        """Draw one layer, then let the viewer handle events before the next."""
        if self._draw_calls:
            draw = self._draw_calls.popleft()
            QTimer.singleShot(0, self._draw_next)  # before the call: should it fail, the others still follow
            draw()

    def _gaussian_draw_calls(
        self, name: str, gaussians: GaussianVolume, placement: dict[str, Any], *, final: bool
    ) -> list[DrawCall]:
        """Return the draw calls of ellipsoids and centres."""
        flat, calls = gaussians.ndim == 2, list[DrawCall]()
        # Ellipsoids of a volume are visible in 3D only: previews leave them out in 2D, where centres are visible.
        if final or flat or self._viewer.dims.ndisplay == 3:
            calls.append(lambda: self._put("gaussians", gaussian_layer(name, gaussians, placement)))
        if len(gaussians) > most_ellipsoids():
            calls.append(lambda: self._shown.forget("centres"))  # points, "gaussians" itself, take over
        elif not flat:
            calls.append(lambda: self._put("centres", points_layer(name, gaussians, placement)))
        return calls

    def _on_ndisplay(self) -> None:
        """Show centres in 2D and ellipsoids in 3D: a slice through a surface is a few stray triangles."""
        ellipsoids, centres = (self._shown.layers.get(kind) for kind in ("gaussians", "centres"))
        if isinstance(ellipsoids, Surface) and ellipsoids.ndim == 3:
            ellipsoids.visible = self._viewer.dims.ndisplay == 3
            if centres is not None:
                centres.visible = not ellipsoids.visible

    def _put(self, kind: str, data: LayerData) -> None:
        if self._shown.put(kind, data):
            self._on_ndisplay()

    # Saving -----------------------------------------------------------------------------------------------------------

    def _on_save(self) -> None:
        name = f"{self._named_gaussians[0][0]}.gsv"
        path, chosen = QFileDialog.getSaveFileName(self.native, "Save Gaussians", name, ";;".join(_FILES))
        if path:
            self.save_results(path, _FILES.get(chosen, ".gsv"))

    def save_results(self, path: str | Path, suffix: str = ".gsv") -> None:
        """Save the Gaussians of the last run, and show the size of the file.

        Parameters
        ----------
        path : str or Path
            Path of the file; its suffix decides the format (see `GaussianVolume.save`). The volumes of a time series
            become ``name_t000.gsv`` and so on.
        suffix : str
            Suffix to add if the path has none of the known ones.
        """
        path = Path(path)
        if path.suffix.lower() not in (*GAUSSIAN_SUFFIXES, *EXPORT_SUFFIXES):
            path = path.with_name(f"{path.name}{suffix}")
        many = len(self._named_gaussians) > 1
        n_bytes = n_voxels = 0
        try:
            for t, (_, gaussians) in enumerate(self._named_gaussians):
                file = path.with_stem(f"{path.stem}_t{t:03d}") if many else path
                gaussians.save(file)
                n_bytes += file.stat().st_size
                n_voxels += gaussians.grid.size
        except (OSError, ValueError) as error:
            self._say(str(error), show_warning)
            return
        files = f"{len(self._named_gaussians)} files, {path.stem}_t000{path.suffix} and on" if many else path.name
        ratio = 4 * n_voxels / n_bytes
        self._say(f"Saved {files}: {file_size(n_bytes)}, ratio {ratio:,.1f} to the volume in float32.")
