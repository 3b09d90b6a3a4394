"""The dock widget that fits Gaussians to an image layer."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from magicgui.widgets import CheckBox, PushButton
from napari.layers import Layer, Surface
from napari.utils.notifications import show_info, show_warning
from napari.viewer import Viewer
from qtpy.QtCore import QTimer
from qtpy.QtWidgets import QFileDialog
from rich.filesize import decimal as file_size

from ..files import EXPORTS, GAUSSIAN_FILES
from ..fitting import FitResult, FitSettings
from ..gaussians import GaussianVolume
from ..geometry import Grid
from ..layers import (
    MOST_ELLIPSOIDS,
    LayerData,
    SourceVolume,
    density_layer,
    gaussian_layer,
    made_before,
    points_layer,
    residual_layer,
    residual_limit,
    series_placement,
)
from ..splat.devices import devices, gpu_problem
from . import job
from .form import Found, Late, SettingsForm
from .job import Preview
from .plot import HistoryPlot
from .runner import RunWidget, row_of, time_left
from .shown import ShownLayers

_MAIN = ("gaussians", "target_psnr", "ratio", "time_limit", "solver")
_FOLDED: dict[str, tuple[str, ...]] = {
    "Objective": (
        *("data_term", "normalised", "neighbourhood_radius", "ellipsoid_radius"),
        *("lambda_sparsity", "lambda_overlap", "lambda_smoothness", "lambda_spacing", "spacing", "spacing_radius"),
    ),
    "Population and file": ("population", "rounds", "target_bytes"),
}
_SUGGESTIONS = {
    "gaussians": 2000, "target_psnr": 30.0, "ratio": 100.0, "target_bytes": 20_000, "time_limit": 60.0,
    "iterations": 150,
}  # fmt: skip
_FILES = {
    "Compact (*.gsv)": ".gsv",
    "Lossless (*.safetensors)": ".safetensors",
    "Splat viewers (*.ply)": ".ply",
}


def _devices() -> Found:
    """Return the devices there are, and why no GPU is among them; where there is one, this starts CUDA."""
    problem = gpu_problem()
    return devices(), f"No GPU can be used: {problem}" if problem else ""


_LATE: dict[str, Late] = {"device": (("auto", "cpu"), _devices)}


class FitWidget(RunWidget):
    """Choose an image layer, press Run, watch its Gaussians appear; Stop keeps what there is.

    Parameters
    ----------
    napari_viewer : napari.Viewer
        The viewer to take layers from and to add layers to.
    """

    def __init__(self, napari_viewer: Viewer) -> None:
        self._shown: ShownLayers[str] = ShownLayers(napari_viewer)
        self._results: list[tuple[SourceVolume, FitResult]] = []
        self._turns: deque[Callable[[], None]] = deque()  # what is still to be drawn
        self.form = SettingsForm(FitSettings, _MAIN, _SUGGESTIONS, {"gaussians": 2000}, _FOLDED, "Solver", _LATE)
        self.keep = CheckBox(
            text="Keep earlier results", tooltip="Add new layers instead of updating those of the last run"
        )
        self.save = PushButton(text="Save Gaussians…", enabled=False)
        super().__init__(napari_viewer, [*self.form.rows, self.keep], [self.save], whole_series=True)
        self.plot = HistoryPlot(napari_viewer)
        for fold in self.form.folds:
            self.content.insertWidget(self.content.indexOf(row_of(self.keep)), fold)
        self.content.addWidget(self.plot)
        self.content.addStretch()
        self.save.changed.connect(self._on_save)
        for size in ("ratio", "target_bytes"):
            self.form.fields[size].on.changed.connect(self._on_size)
        napari_viewer.dims.events.ndisplay.connect(self._on_ndisplay)
        QTimer.singleShot(0, _load_points)

    def _on_size(self, asked: bool) -> None:
        """Have the number follow the size of the file; who wants both switches it on again."""
        if asked:
            self.form.fields["gaussians"].value = None

    @property
    def results(self) -> list[FitResult]:
        """The results of the last run, one a volume."""
        return [result for _, result in self._results]

    # Running ----------------------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        settings, sources = self.form.settings(), self._sources()
        self._results = []
        self._shown = ShownLayers(self._viewer, {} if self.keep.value else self._earlier_layers(sources[0].name))
        self._series = self.image.value if len(sources) > 1 else None
        if self._series is not None:  # the Gaussians of one volume would not go with the layers of all
            self._shown.forget("gaussians", "centres")
        self.save.enabled = False
        self._pace = job.Pace()
        self._start(job.run, sources, settings, self._pace)

    def _earlier_layers(self, name: str) -> dict[str, Layer | None]:
        """Return the layers of an earlier run on the same source, which this run updates in place."""
        kinds = ("density", "residual", "gaussians", "centres")
        return {kind: made_before(self._viewer.layers, f"{name} · {kind}") for kind in kinds}

    def _leave(self) -> None:
        super()._leave()
        self._turns.clear()

    def _drawing(self) -> bool:
        return bool(self._turns)

    def _end(self) -> None:
        self.save.enabled = bool(self._results)
        if self._results and not self._error_shown:
            self.progress.value = self.progress.max

    # Showing ----------------------------------------------------------------------------------------------------------

    def _show(self, preview: Preview) -> None:
        step = preview.step
        self.progress.value = round(1000 * preview.progress)
        which = f"Volume {preview.index + 1} of {preview.count}: " if preview.count > 1 else ""
        if preview.density is None:
            self._say(which + step.message)
            return
        self._say(which + _figures(preview))
        if preview.result is not None:
            self._results.append((preview.source, preview.result))
            for note in preview.result.notes:
                self._say(f"{which}{_figures(preview)} {note}", show_info)
        self._turns += [
            lambda: self.plot.show_history(step.history),
            *self._images(preview),
            *([] if self._series is not None else self._gaussians(preview)),
            self._pace.drawn,
        ]
        self._take_turns()

    def _take_turns(self) -> None:
        """Draw one thing, then let the viewer breathe before the next."""
        if self._turns:
            turn = self._turns.popleft()
            QTimer.singleShot(0, self._take_turns)  # first: should this turn fail, the others still have theirs
            turn()

    def _images(self, preview: Preview) -> list[Callable[[], None]]:
        """Return the calls that show density and residual."""
        density, residual, source = preview.density, preview.residual, preview.source
        if density is None or residual is None:
            return []
        metadata, place = preview.step.gaussians.metadata, source.placement
        limit = residual_limit(residual)
        if self._series is not None:
            place = series_placement(self._series, source.grid)
            density = self._stacked("density", density, preview)
            residual = self._stacked("residual", residual, preview)
        metadata = metadata if preview.result is None else preview.result.gaussians.metadata
        return [
            lambda: self._put("density", density_layer(source.name, density, place, source.limits, metadata)),
            lambda: self._put("residual", residual_layer(source.name, residual, place, limit, metadata)),
        ]

    def _stacked(self, kind: str, volume: Any, preview: Preview) -> Any:
        """Return the series so far with this volume in its place; the ones to come are NaN."""
        if preview.index == 0 or kind not in self._shown.layers:
            series = np.full((preview.count, *volume.shape), np.nan, np.float32)
        else:
            series = self._shown.layers[kind].data
        series[preview.index] = volume
        return series

    def _gaussians(self, preview: Preview) -> list[Callable[[], None]]:
        """Return the calls that show ellipsoids and centres."""
        gaussians = preview.step.gaussians if preview.result is None else preview.result.gaussians
        source, flat = preview.source, gaussians.ndim == 2
        # A surface in a volume is seen in 3D only: the live view leaves it out in 2D, where centres show.
        calls: list[Callable[[], None]] = []
        if preview.result is not None or flat or self._viewer.dims.ndisplay == 3:
            calls.append(lambda: self._put("gaussians", gaussian_layer(source.name, gaussians, source.placement)))
        if len(gaussians) > MOST_ELLIPSOIDS:
            calls.append(lambda: self._shown.forget("centres"))  # points, "gaussians" itself, take over
        elif not flat:
            calls.append(lambda: self._put("centres", points_layer(source.name, gaussians, source.placement)))
        return calls

    def _on_ndisplay(self) -> None:
        """Show centres in slices and ellipsoids in space: of a surface a slice shows stray triangles only."""
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
        name = self._results[0][0].name
        path, chosen = QFileDialog.getSaveFileName(self.native, "Save Gaussians", f"{name}.gsv", ";;".join(_FILES))
        if path:
            self.save_results(path, _FILES.get(chosen, ".gsv"))

    def save_results(self, path: str | Path, suffix: str = ".gsv") -> None:
        """Save the Gaussians of the last run, and say how large the file is.

        Parameters
        ----------
        path : str or Path
            Its ending says what to write (`GaussianVolume.save`). Those of a time series become ``name_t000.gsv`` and
            so on.
        suffix : str
            The ending to add where there is none of these.
        """
        path = Path(path)
        if path.suffix.lower() not in (*GAUSSIAN_FILES, *EXPORTS):
            path = path.with_name(f"{path.name}{suffix}")
        many = len(self._results) > 1
        n_bytes = n_voxels = 0
        try:
            for t, (source, result) in enumerate(self._results):
                file = path.with_stem(f"{path.stem}_t{t:03d}") if many else path
                result.gaussians.save(file)
                n_bytes += file.stat().st_size
                n_voxels += math.prod(source.grid.shape)
        except (OSError, ValueError) as error:
            self._say(str(error), show_warning)
            return
        files = f"{len(self._results)} files, {path.stem}_t000{path.suffix} and on" if many else path.name
        ratio = 4 * n_voxels / n_bytes
        self._say(f"Saved {files}: {file_size(n_bytes)}, ratio {ratio:,.1f} to the volume in float32.")


def _load_points() -> None:
    """Make a points layer for nothing: the first one loads pandas and more, better now than during a fit."""
    one = GaussianVolume(torch.zeros(1, 3), torch.eye(3)[None], torch.ones(1), Grid((1, 1, 1)))
    Layer.create(*points_layer("", one, {}))


def _figures(preview: Preview) -> str:
    step = preview.step
    where = "" if step.device == "cpu" else f" on {step.device}"
    text = f"{step.psnr_db:.2f} dB, {step.n_gaussians:,} Gaussians, {step.seconds:.0f} s{where}"
    if preview.result is not None:
        similarity = "" if preview.result.ssim is None else f", SSIM {preview.result.ssim:.3f}"
        return f"{text}{similarity}. {step.message}"
    return text + time_left(step.seconds, step.progress)
