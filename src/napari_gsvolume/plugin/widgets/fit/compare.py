"""Dock widget that fits an image layer in several ways and compares the results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from magicgui.widgets import Container, PushButton
from napari.utils.notifications import show_info, show_warning
from napari.viewer import Viewer
from pydantic import create_model
from qtpy.QtCore import Qt
from qtpy.QtWidgets import QApplication, QFileDialog

from ....ablation import STUDIES, AblationStep, CaseResult, cases, to_csv, to_markdown
from ....fitting import FitSettings
from ....fitting.settings import Study
from ...layers.conversion import SourceVolume, find_earlier_layer
from ...layers.gaussians import artefact_layer, case_layer
from ..shared.base import RunWidget, time_left
from ..shared.form import SettingsForm
from ..shared.layer_updater import LayerUpdater
from ..shared.tables import CaseTable
from .worker import ablation_previews

_STUDIES = {
    "spacing": "Spacing of neighbours: free, overlapping, tangent, with a gap, or with an overlap penalty",
    "penalties": "Penalties on sparsity, overlap and smoothness, each at two strengths",
    "support": "Data terms: learned weights, or values of the voxels in a neighbourhood or in ellipsoids",
    "growth": "Growth strategies: where new Gaussians are placed",
}
_SHARED = ("gaussians", "time_limit", "iterations", "solver")
_TABLES = {"Table (*.csv)": ".csv", "Markdown (*.md)": ".md"}
_DENSITY, _ARTEFACTS = "density", "artefacts"

# Rows of the form: the study, and the settings that all of its cases share.
_FIELDS: dict[str, Any] = {name: FitSettings.model_fields[name] for name in _SHARED}
_FIELDS = {"study": (Study, STUDIES[0]), **{name: (field.annotation, field) for name, field in _FIELDS.items()}}
StudySettings = create_model("StudySettings", **_FIELDS)


class CompareWidget(RunWidget):
    """Dock widget for ablation studies: each case of a study becomes a row of a table, and a layer.

    Parameters
    ----------
    napari_viewer : napari.Viewer
        The viewer to take layers from and to add layers to.
    """

    def __init__(self, napari_viewer: Viewer) -> None:
        self._results: list[CaseResult] = []
        self._limits: dict[str, float] = {}  # upper contrast limits of the maps of artefacts, by case
        self._shown: LayerUpdater[tuple[str, str]] = LayerUpdater(napari_viewer)
        suggestions = {"gaussians": 1000, "time_limit": 20.0, "iterations": 50}
        initial = {"gaussians": 1000, "time_limit": 20.0}
        self.form = SettingsForm(StudySettings, tuple(StudySettings.model_fields), suggestions, initial)
        self.form.fields["time_limit"].label = "Time per case (s)"
        self.save = PushButton(text="Save table…", enabled=False, tooltip="Save as .csv (unrounded) or .md (Markdown)")
        self.copy = PushButton(text="Copy", enabled=False, tooltip="Copy the table as Markdown")
        self._buttons: Container[Any] = Container(widgets=[self.save, self.copy], layout="horizontal", labels=False)
        self._buttons.margins = (0, 0, 0, 0)
        super().__init__(napari_viewer, self.form.rows, [self._buttons])
        self.table = CaseTable()
        self.content.insertWidget(self.content.indexOf(self._buttons.native), self.table, 1)

        self.study = self.form.fields["study"]
        for row, about in enumerate(_STUDIES[name] for name in self.study.choices):
            self.study.native.setItemData(row, about, Qt.ItemDataRole.ToolTipRole)
        self.study.changed.connect(self._on_study)
        self._on_study(self.study.value)
        self.table.case_selected.connect(self.show_case)
        self.save.changed.connect(self._on_save)
        self.copy.changed.connect(self._on_copy)

    @property
    def results(self) -> list[CaseResult]:
        """Results of the finished cases of the last run."""
        return list(self._results)

    def _on_study(self, study: str) -> None:
        self.study.tooltip = _STUDIES[study]
        if not self.running:
            self.status.value = f"{_STUDIES[study]}."

    # Running ----------------------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        settings = self.form.settings().model_dump()
        [self._source] = self._sources()
        self._study = settings.pop("study")
        self._fresh = True
        self._start(ablation_previews, self._source, self._study, settings)

    def _clear(self) -> None:
        """Clear the last run, at the first step of a new one: until then its table and layers stay."""
        self._fresh = False
        self.show_case(None)
        self._results, self._limits = [], {}
        self.table.setRowCount(0)
        self._enable(False)
        self._shown = LayerUpdater(self._viewer, self._earlier_layers(self._source))

    def _earlier_layers(self, source: SourceVolume) -> dict[tuple[str, str], Any]:
        """Return the layers of an earlier run of the study on the source, which this run updates in place."""
        endings = {_DENSITY: "", _ARTEFACTS: f" · {_ARTEFACTS}"}
        return {
            (case, kind): find_earlier_layer(self._viewer.layers, f"{source.name} · {case}{ending}", self._study)
            for case in cases(self._study)
            for kind, ending in endings.items()
        }

    def _show_step(self, step: AblationStep) -> None:
        if self._fresh:
            self._clear()
        self.progress.value = round(1000 * step.fraction)
        left = time_left(self._elapsed, step.fraction)
        fit = step.fit
        figures = f"{fit.psnr_db:.2f} dB, {fit.n_gaussians:,} Gaussians" if fit.iteration else "starting"
        self._say(f"{step.message}: {figures}{left}")
        if step.result is not None:
            self._add(step.result)
            for note in step.result.result.notes if step.index == 0 else ():
                show_info(note)

    def _add(self, case_result: CaseResult) -> None:
        self._results.append(case_result)
        case, result = case_result.case, case_result.result
        layer = case_layer(self._source, self._study, case, result.reconstruction, result.gaussians)
        self._shown.put((case, _DENSITY), layer)
        if self._study == "support":
            layer = artefact_layer(self._source, self._study, case, case_result.artefacts, result.gaussians)
            self._shown.put((case, _ARTEFACTS), layer)
            self._limits[case] = layer[1]["contrast_limits"][1]
            self._share_limits()
        self.table.add(case_result)
        self._enable(True)

    def _share_limits(self) -> None:
        """Show all maps of artefacts in the same limits: the median limit, as a few cases are far off."""
        limits = (0.0, float(np.median(list(self._limits.values()))))
        for (_, kind), layer in self._shown.layers.items():
            if kind == _ARTEFACTS:
                layer.contrast_limits_range = layer.contrast_limits = limits

    def _end(self) -> None:
        if self._error_shown:
            return
        count, done = len(cases(self._study)), len(self._results)
        if done < count:
            self._say(f"Stopped: {done} of {count} cases finished.")
            return
        self.progress.value = self.progress.max
        best = max(self._results, key=lambda case: case.psnr_db)
        notes = "".join(f" {note}" for note in best.result.notes)
        self._say(f"All {count} cases finished. Best PSNR: {best.psnr_db:.2f} dB ({best.case}).{notes}")

    def _enable(self, on: bool) -> None:
        self.save.enabled = self.copy.enabled = on

    # Showing and saving -----------------------------------------------------------------------------------------------

    def show_case(self, case: str | None) -> None:
        """Show the layers of a case and hide those of the others."""
        for (name, _), layer in self._shown.layers.items():
            layer.visible = name == case

    def _on_save(self) -> None:
        name = f"{self._source.name} {self._study}.csv"
        path, chosen = QFileDialog.getSaveFileName(self.native, "Save table", name, ";;".join(_TABLES))
        if path:
            self.save_table(path, _TABLES.get(chosen, ".csv"))

    def save_table(self, path: str | Path, suffix: str = ".csv") -> None:
        """Save the table: Markdown as displayed, or CSV unrounded.

        Parameters
        ----------
        path : str or Path
            Path of the file; its suffix, .csv or .md, decides the format.
        suffix : str
            Suffix to add if the path has neither.
        """
        path = Path(path)
        if path.suffix.lower() not in _TABLES.values():
            path = path.with_name(f"{path.name}{suffix}")
        text = to_markdown(self._results) if path.suffix.lower() == ".md" else to_csv(self._results)
        try:
            path.write_text(text, encoding="utf-8")
        except OSError as error:
            self._say(str(error), show_warning)
            return
        self._say(f"Saved {path.name}.")

    def _on_copy(self) -> None:
        QApplication.clipboard().setText(to_markdown(self._results))
        self._say("The table is on the clipboard, as Markdown.")
