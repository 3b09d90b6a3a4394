"""The Compare widget, used as a person would: choose a study, click, watch rows and layers come, click rows, save."""

import csv

import numpy as np
import pytest
from qtpy.QtCore import Qt
from qtpy.QtWidgets import QApplication, QFileDialog

from helpers.clicking import LEFT, SLOW, assert_ends, click, fill, run
from napari_gsvolume import GaussianVolume
from napari_gsvolume.ablation import COLUMNS, cases, format_row, to_csv, to_markdown
from napari_gsvolume.phantoms import vessel_phantom
from napari_gsvolume.plugin.layers.conversion import METADATA_KEY
from napari_gsvolume.plugin.layers.gaussians import gaussians_of
from napari_gsvolume.plugin.widgets.fit import worker as job
from napari_gsvolume.plugin.widgets.fit.compare import CompareWidget
from napari_gsvolume.plugin.widgets.fit.widget import FitWidget


@pytest.fixture
def volume():
    return vessel_phantom(24)[0]


@pytest.fixture
def open_widget(make_napari_viewer):
    """Return a function that opens a viewer with one image and the widget, with few Gaussians and iterations."""

    def open_(data, study, **options):
        viewer = make_napari_viewer(show=True)
        if data is not None:
            viewer.add_image(data, name="volume", **options)
        _, widget = viewer.window.add_plugin_dock_widget("napari-gsvolume", "Compare fits")
        fill(widget, study=study, gaussians=20, iterations=3, time_limit=None)
        return viewer, widget

    return open_


def click_row(qtbot, table, row):
    place = table.visualItemRect(table.item(row, 0)).center()
    qtbot.mouseClick(table.viewport(), LEFT, pos=place)


def names(viewer):
    return [layer.name for layer in viewer.layers]


def shown(viewer):
    return [layer.name.removeprefix("volume · ") for layer in viewer.layers if layer.visible and "·" in layer.name]


def row_texts(table, row):
    return [table.item(row, column).text() for column in range(table.columnCount())]


def test_a_study_becomes_rows_and_layers_in_place(open_widget, qtbot, volume):
    angle = np.deg2rad(20)
    rotate = [[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]]
    place = {"scale": (3, 1, 2), "translate": (5, -2, 7), "rotate": rotate, "units": ("mm", "mm", "mm")}
    viewer, widget = open_widget(volume, "support", axis_labels=("z", "y", "x"), contrast_limits=(0.1, 0.9), **place)
    run(qtbot, widget)
    table, wanted = widget.table, list(cases("support"))
    assert [outcome.case for outcome in widget.results] == table.cases() == wanted
    headers = [table.horizontalHeaderItem(column).text() for column in range(table.columnCount())]
    assert headers == list(COLUMNS.values())
    for row, outcome in enumerate(widget.results):
        assert row_texts(table, row) == format_row(outcome)
    best = max(widget.results, key=lambda outcome: outcome.psnr_db)
    assert [table.item(row, 1).font().bold() for row in range(5)] == [case == best.case for case in wanted]
    assert f"{best.psnr_db:.2f} dB ({best.case})" in widget.status.value
    assert (widget.button.text, widget.progress.value) == ("Run", widget.progress.max)

    source = viewer.layers["volume"]
    assert set(names(viewer)) == {"volume", *(f"volume · {c}{end}" for c in wanted for end in ("", " · artefacts"))}
    for outcome in widget.results:
        density, artefacts = (viewer.layers[f"volume · {outcome.case}{end}"] for end in ("", " · artefacts"))
        np.testing.assert_array_equal(density.data, outcome.result.reconstruction)
        np.testing.assert_array_equal(artefacts.data, outcome.artefacts)
        assert tuple(density.contrast_limits) == (0.1, 0.9)
        assert (artefacts.blending, artefacts.colormap.name) == ("additive", "inferno")
        assert artefacts.contrast_limits == viewer.layers["volume · weights · artefacts"].contrast_limits
        for layer in (density, artefacts):
            for point in np.eye(3):
                np.testing.assert_allclose(layer.data_to_world(point), source.data_to_world(point), atol=1e-9)
            assert (layer.units, layer.axis_labels) == (source.units, source.axis_labels)
        assert density.metadata[METADATA_KEY]["metrics"]["psnr_db"] == pytest.approx(outcome.psnr_db, abs=1e-3)
        assert density.metadata[METADATA_KEY]["settings"]["gaussians"] == 20
        assert gaussians_of(density.metadata) is outcome.result.gaussians
    assert shown(viewer) == [wanted[-1], f"{wanted[-1]} · artefacts"]
    assert [layer.name for layer in viewer.layers.selection] == ["volume"]


def test_a_click_on_a_row_shows_its_case(open_widget, qtbot, volume):
    viewer, widget = open_widget(volume, "support")
    run(qtbot, widget)
    click_row(qtbot, widget.table, 1)
    assert shown(viewer) == ["neighbourhood", "neighbourhood · artefacts"]
    viewer.layers["volume · neighbourhood"].visible = False
    click_row(qtbot, widget.table, 1)
    assert shown(viewer) == ["neighbourhood", "neighbourhood · artefacts"]
    qtbot.keyClick(widget.table, Qt.Key.Key_Up)
    assert shown(viewer) == ["weights", "weights · artefacts"]
    # Sorted, by numbers: a row is still its own case's.
    header = widget.table.horizontalHeader()
    qtbot.mouseClick(header.viewport(), LEFT, pos=_title(header, 1))
    best_last = sorted(widget.results, key=lambda outcome: outcome.psnr_db)
    assert widget.table.cases() == [outcome.case for outcome in best_last]
    click_row(qtbot, widget.table, 4)
    assert shown(viewer)[0] == best_last[-1].case
    viewer.layers.remove(f"volume · {best_last[0].case}")
    click_row(qtbot, widget.table, 0)
    assert shown(viewer) == [f"{best_last[0].case} · artefacts"]


def _title(header, column):
    point = header.rect().center()
    point.setX(header.sectionViewportPosition(column) + header.sectionSize(column) // 2)
    return point


def test_a_second_run_updates_in_place(open_widget, qtbot, volume):
    viewer, widget = open_widget(volume, "growth")
    run(qtbot, widget)
    before, layer = names(viewer), viewer.layers["volume · saddle"]
    first = layer.data.copy()
    viewer.layers["volume"].translate = (1, 2, 3)
    fill(widget, gaussians=30)
    run(qtbot, widget)
    assert names(viewer) == before
    assert viewer.layers["volume · saddle"] is layer
    assert not np.array_equal(layer.data, first)
    np.testing.assert_array_equal(layer.translate, (1, 2, 3))
    assert widget.table.cases() == list(cases("growth"))
    assert shown(viewer) == [list(cases("growth"))[-1]]
    # Another study comes beside it, and hides it.
    fill(widget, study="support")
    run(qtbot, widget)
    assert set(before) < set(names(viewer))
    assert widget.table.cases() == list(cases("support"))
    assert shown(viewer)[0] == list(cases("support"))[-1]
    assert len(shown(viewer)) == 2


def test_stop_keeps_the_finished_cases(open_widget, qtbot):
    viewer, widget = open_widget(vessel_phantom(32)[0], "support")
    fill(widget, gaussians=50, iterations=None, time_limit=1.0)
    click(qtbot, widget.button)
    assert widget.button.text == "Stop"
    qtbot.waitUntil(lambda: widget.table.rowCount() == 1, timeout=SLOW)
    qtbot.waitUntil(lambda: "(2 of 5)" in widget.status.value, timeout=SLOW)
    assert "dB" in widget.status.value or "starting" in widget.status.value
    click(qtbot, widget.button)
    qtbot.waitUntil(lambda: not widget.running, timeout=SLOW)
    done = widget.table.cases()
    assert done == [outcome.case for outcome in widget.results] == list(cases("support"))[: len(done)]
    assert 1 <= len(done) < 5
    assert len(names(viewer)) == 1 + 2 * len(done)
    assert widget.status.value == f"Stopped: {len(done)} of 5 cases finished."
    assert all(outcome.result.message != "Stopped." for outcome in widget.results)
    fill(widget, gaussians=20, iterations=3)
    run(qtbot, widget)
    assert widget.table.rowCount() == 5


def test_bad_input_gets_one_sentence_and_the_next_run_works(open_widget, qtbot, volume, statuses):
    viewer, widget = open_widget(np.ones((8, 8, 8)), "growth")
    said = statuses(viewer)
    click(qtbot, widget.button)
    qtbot.waitUntil(lambda: not widget.running, timeout=SLOW)
    assert "constant" in widget.status.value
    assert widget.status.value in said
    assert (names(viewer), widget.table.rowCount(), widget.save.enabled) == (["volume"], 0, False)
    widget.image.value = viewer.add_image(volume, name="good")
    fill(widget, gaussians=volume.size + 1)
    click(qtbot, widget.button)
    qtbot.waitUntil(lambda: not widget.running, timeout=SLOW)
    assert "more than the" in widget.status.value
    fill(widget, gaussians=20)
    run(qtbot, widget)
    assert widget.table.rowCount() == 5
    assert "good · mcmc" in names(viewer)


def test_no_layer(open_widget, qtbot):
    _, widget = open_widget(None, "spacing")
    click(qtbot, widget.button)
    assert not widget.running
    assert "no image layer" in widget.status.value


@pytest.mark.filterwarnings("ignore:.*please report it")
def test_what_nobody_foresaw_is_said_and_keeps_the_finished_cases(open_widget, qtbot, volume, monkeypatch):
    def broken(*args, **settings):
        for step in ablate_steps(*args, **settings):
            if step.index == 1:
                raise RuntimeError("no such luck")
            yield step

    ablate_steps = job.ablate_steps
    monkeypatch.setattr(job, "ablate_steps", broken)
    _, widget = open_widget(volume, "growth")
    run(qtbot, widget)
    assert "please report it: no such luck" in widget.status.value
    assert widget.table.cases() == [next(iter(cases("growth")))]
    assert widget.save.enabled


def test_fits_and_studies_leave_each_others_layers_alone(open_widget, qtbot, volume):
    viewer, compare = open_widget(volume, "growth")
    _, fit = viewer.window.add_plugin_dock_widget("napari-gsvolume", "Fit Gaussians")
    fill(fit, gaussians=25, iterations=2)
    run(qtbot, compare)  # one of its cases is "residual", as one of the layers of a fit
    case = viewer.layers["volume · residual"]
    of_case = case.data.copy()
    for _ in range(2):
        run(qtbot, fit)
        np.testing.assert_array_equal(case.data, of_case)
    residual = viewer.layers["volume · residual [1]"]
    np.testing.assert_allclose(residual.data, volume - fit.results[0].reconstruction, atol=1e-6)
    assert "volume · residual [2]" not in names(viewer)
    assert isinstance(fit, FitWidget)


def test_the_table_is_saved_and_copied(open_widget, qtbot, volume, tmp_path, monkeypatch):
    _, widget = open_widget(volume, "growth")
    assert not widget.save.enabled
    assert not widget.copy.enabled
    run(qtbot, widget)
    answers = iter([("mine", "Markdown (*.md)"), ("mine", "Table (*.csv)"), ("a.b.md", "Table (*.csv)"), ("", "")])

    def ask(*args):
        name, chosen = next(answers)
        return (str(tmp_path / name) if name else "", chosen)

    monkeypatch.setattr(QFileDialog, "getSaveFileName", ask)
    for _ in range(4):
        click(qtbot, widget.save)
    assert {path.name for path in tmp_path.iterdir()} == {"mine.md", "mine.csv", "a.b.md"}
    assert (tmp_path / "mine.md").read_text(encoding="utf-8") == to_markdown(widget.results)
    text = (tmp_path / "mine.csv").read_text(encoding="utf-8")
    assert text == to_csv(widget.results)
    assert [row["case"] for row in csv.DictReader(text.splitlines())] == list(cases("growth"))
    assert "a.b.md" in widget.status.value
    click(qtbot, widget.copy)
    assert QApplication.clipboard().text() == to_markdown(widget.results)
    widget.save_table(tmp_path / "missing" / "x.csv")
    assert "missing" in widget.status.value


def test_the_gaussians_of_a_case_are_in_its_layer(open_widget, qtbot, volume, tmp_path):
    viewer, widget = open_widget(volume, "growth", scale=(1, 2, 3), units=("mm", "mm", "mm"))
    run(qtbot, widget)
    gaussians = gaussians_of(viewer.layers["volume · mcmc"].metadata)
    gaussians.save(tmp_path / "mcmc.safetensors")
    again = GaussianVolume.load(tmp_path / "mcmc.safetensors")
    np.testing.assert_allclose(again.sample(), viewer.layers["volume · mcmc"].data, atol=1e-5)
    np.testing.assert_allclose(again.grid.affine, np.diag([1, 2, 3, 1]))
    assert viewer.layers["volume · mcmc"].metadata[METADATA_KEY]["settings"]["growth"] == "mcmc"


def test_of_a_series_one_time_point(open_widget, qtbot, volume):
    series = np.stack([volume, 2 * volume + 1])
    viewer, widget = open_widget(series, "growth", scale=(10, 1, 2, 3), translate=(4, 0, 0, 1))
    qtbot.waitUntil(lambda: widget.time_point.visible)
    assert list(widget.time_point.choices) == [0, 1]
    widget.time_point.value = 1
    run(qtbot, widget)
    density = viewer.layers["volume · residual"]
    assert density.data.shape == volume.shape
    assert density.data.mean() > 0.9
    world = viewer.layers["volume"].data_to_world([1.0, 3, 4, 5])[1:]
    np.testing.assert_allclose(density.data_to_world([3.0, 4, 5]), world)


@pytest.mark.parametrize("how", ["dock", "viewer"])
def test_closing_stops_the_worker(make_napari_viewer, qtbot, how):
    viewer = make_napari_viewer()
    viewer.add_image(vessel_phantom(32)[0], name="volume")
    dock, widget = viewer.window.add_plugin_dock_widget("napari-gsvolume", "Compare fits")
    fill(widget, study="support", gaussians=50, iterations=100_000, time_limit=None)
    click(qtbot, widget.button)
    status, worker, stopped = widget.status, widget._worker, widget._stop
    qtbot.waitUntil(lambda: "dB" in status.value, timeout=SLOW)
    if how == "dock":
        viewer.window.remove_dock_widget(dock)
    else:
        viewer.close()
    del widget
    assert_ends(qtbot, worker, stopped)


def test_studies_are_explained_and_settings_remembered(open_widget, make_napari_viewer, qtbot, volume):
    _, widget = open_widget(volume, "spacing")
    tips = {
        widget.study.native.itemData(row, Qt.ItemDataRole.ToolTipRole) for row in range(widget.study.native.count())
    }
    assert len(tips) == 4
    assert widget.study.tooltip in tips
    assert widget.study.tooltip in widget.status.value
    fill(widget, study="growth", solver="adam", iterations=2)
    run(qtbot, widget)
    second = CompareWidget(make_napari_viewer())
    qtbot.addWidget(second.native)
    assert second.form.settings() == widget.form.settings()
    # A fit has its own memory.
    third = FitWidget(make_napari_viewer())
    qtbot.addWidget(third.native)
    assert third.form.fields["solver"].value == "gauss-newton"
