"""The Fit widget, used as a person would: choose, click, watch, stop, save."""

import threading
from types import SimpleNamespace

import numpy as np
import pytest
from napari.layers import Image, Points, Surface
from qtpy.QtCore import Qt
from qtpy.QtWidgets import QFileDialog

from helpers.clicking import SLOW, assert_ends, click, run
from napari_gsvolume import FitSettings, GaussianVolume
from napari_gsvolume.devices import gpu_problem
from napari_gsvolume.fitting.result import HistoryPoint
from napari_gsvolume.phantoms import vessel_phantom
from napari_gsvolume.plugin.widgets.fit import widget as fit_module
from napari_gsvolume.plugin.widgets.fit.widget import FitWidget
from napari_gsvolume.plugin.widgets.shared.plots import HistoryPlot


@pytest.fixture
def volume():
    return vessel_phantom(24)[0]


@pytest.fixture
def open_widget(make_napari_viewer, qtbot):
    """Return a function that opens a viewer with one image and the widget, with few Gaussians and iterations."""

    def open_(data, **options):
        viewer = make_napari_viewer(show=True)
        if data is not None:
            viewer.add_image(data, name="volume", **{"rgb": False, **options})
        _, widget = viewer.window.add_plugin_dock_widget("napari-gsvolume", "Fit Gaussians")
        widget.form.fields["gaussians"].value = 40
        widget.form.fields["iterations"].value = 6
        return viewer, widget

    return open_


def names(viewer):
    return [layer.name for layer in viewer.layers]


def test_run_adds_density_residual_and_gaussians_in_place(open_widget, qtbot, volume):
    angle = np.deg2rad(20)
    rotate = [[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]]
    place = {"scale": (3, 1, 2), "translate": (5, -2, 7), "rotate": rotate, "units": ("mm", "mm", "mm")}
    viewer, widget = open_widget(volume, axis_labels=("z", "y", "x"), affine=np.diag([1, 2, 1, 1]), **place)
    run(qtbot, widget)
    source, density = viewer.layers["volume"], viewer.layers["volume · density"]
    residual, gaussians = viewer.layers["volume · residual"], viewer.layers["volume · gaussians"]
    np.testing.assert_allclose(density.data + residual.data, volume, atol=1e-6)
    assert density.data.dtype == np.float32
    assert isinstance(gaussians, Surface)
    for layer in (density, residual, gaussians, viewer.layers["volume · centres"]):
        for point in np.eye(3):
            np.testing.assert_allclose(layer.data_to_world(point), source.data_to_world(point), atol=1e-9)
        assert layer.units == source.units
        assert layer.axis_labels == source.axis_labels
    assert tuple(density.contrast_limits) == tuple(source.contrast_limits)
    low, high = residual.contrast_limits
    assert low == -high
    # The Gaussians' own grid says the same as the layer: exported files lie where the image does.
    [result] = widget.results
    np.testing.assert_allclose(result.gaussians.grid.affine @ [0, 1, 0, 1], [*source.data_to_world([0, 1, 0]), 1])
    assert result.gaussians.grid.units == ("millimeter",) * 3
    assert f"{result.psnr_db:.2f} dB" in widget.status.value
    assert density.metadata["napari_gsvolume"]["settings"]["gaussians"] == 40
    assert density.metadata["napari_gsvolume"]["metrics"]["psnr_db"] == pytest.approx(result.psnr_db, abs=1e-4)


def test_features_are_the_parameters_of_the_gaussians(open_widget, qtbot, volume):
    viewer, widget = open_widget(volume, scale=(2, 2, 2))
    run(qtbot, widget)
    [result] = widget.results
    points, surface = viewer.layers["volume · centres"], viewer.layers["volume · gaussians"]
    np.testing.assert_allclose(points.data, result.gaussians.means.numpy(), rtol=1e-6)
    np.testing.assert_allclose(points.features["weight"], result.gaussians.weights.numpy())
    scales, _ = result.gaussians.scales_and_quaternions()
    np.testing.assert_allclose(points.features["sigma_1"], 2 * scales[:, 0], rtol=1e-3)
    assert len(surface.features) == len(surface.vertices)
    assert set(surface.features["index"]) == set(range(result.n_gaussians))


def test_second_run_updates_in_place_and_can_keep_both(open_widget, qtbot, volume):
    viewer, widget = open_widget(volume)
    run(qtbot, widget)
    before, layer = names(viewer), viewer.layers["volume · density"]
    first = layer.data.copy()
    widget.form.fields["gaussians"].value = 80
    run(qtbot, widget)
    assert names(viewer) == before
    assert viewer.layers["volume · density"] is layer
    assert not np.array_equal(layer.data, first)
    assert len(viewer.layers["volume · centres"].data) == widget.results[0].n_gaussians
    widget.keep.value = True
    run(qtbot, widget)
    assert len(viewer.layers) == 2 * len(before) - 1


def test_stop_takes_effect_and_keeps_the_result(open_widget, qtbot):
    viewer, widget = open_widget(vessel_phantom(48)[0])
    widget.form.fields["gaussians"].value = 400
    widget.form.fields["iterations"].value = 5000
    click(qtbot, widget.button)
    assert widget.button.text == "Stop"
    qtbot.waitUntil(lambda: "volume · density" in names(viewer), timeout=SLOW)
    click(qtbot, widget.button)
    qtbot.waitUntil(lambda: not widget.running, timeout=SLOW)
    [result] = widget.results
    assert result.message == "Stopped."
    assert widget.button.text == "Run"
    np.testing.assert_allclose(viewer.layers["volume · density"].data, result.reconstruction)
    run_again = widget.button
    widget.form.fields["iterations"].value = 3
    click(qtbot, run_again)
    qtbot.waitUntil(lambda: not widget.running, timeout=SLOW)
    assert widget.results[0].message != "Stopped."


def test_a_2d_image_shows_its_ellipses(open_widget, qtbot, volume):
    viewer, widget = open_widget(volume.max(0))
    run(qtbot, widget)
    assert viewer.layers["volume · gaussians"].ndim == 2
    assert viewer.layers["volume · gaussians"].visible
    assert "volume · centres" not in names(viewer)


def test_slices_show_centres_and_space_shows_ellipsoids(open_widget, qtbot, volume):
    viewer, widget = open_widget(volume)
    run(qtbot, widget)
    surface, points = viewer.layers["volume · gaussians"], viewer.layers["volume · centres"]
    assert (surface.visible, points.visible) == (False, True)
    viewer.dims.ndisplay = 3
    assert (surface.visible, points.visible) == (True, False)


@pytest.mark.parametrize("choice", [1, "all"])
def test_a_series_asks_for_a_time_point_or_all(open_widget, qtbot, volume, choice):
    series = np.stack([volume, 2 * volume + 1, volume])
    viewer, widget = open_widget(series, scale=(10, 1, 2, 3), translate=(4, 0, 0, 1))
    qtbot.waitUntil(lambda: widget.time_point.visible)
    assert list(widget.time_point.choices) == [0, 1, 2, "all"]
    widget.time_point.value = choice
    run(qtbot, widget)
    density = viewer.layers["volume · density"]
    if choice == "all":
        assert density.data.shape == series.shape
        assert np.isfinite(density.data).all()
        assert len(widget.results) == 3
        point = np.array([2.0, 3, 4, 5])
        np.testing.assert_allclose(density.data_to_world(point), viewer.layers["volume"].data_to_world(point))
    else:
        np.testing.assert_allclose(density.data + viewer.layers["volume · residual"].data, series[1], atol=1e-5)
        world = viewer.layers["volume"].data_to_world([1.0, 3, 4, 5])[1:]
        np.testing.assert_allclose(density.data_to_world([3.0, 4, 5]), world)


def test_a_pyramid_asks_for_a_level_and_loads_only_that(open_widget, qtbot, volume):
    da = pytest.importorskip("dask.array")
    loaded = []

    def block(data, name):
        return da.from_delayed(_delayed(data, name, loaded), data.shape, data.dtype)

    coarse = volume.reshape(12, 2, 12, 2, 12, 2).mean((1, 3, 5))
    viewer, widget = open_widget(
        [block(volume, "fine"), block(coarse, "coarse")], multiscale=True, contrast_limits=(0, 1)
    )
    qtbot.waitUntil(lambda: widget.level.visible)
    widget.level.value = 1
    qtbot.wait(50)
    loaded.clear()
    run(qtbot, widget)
    density = viewer.layers["volume · density"]
    assert density.data.shape == coarse.shape
    assert "fine" not in loaded
    # A coarse voxel's centre is the middle of the eight fine ones it stands for.
    np.testing.assert_allclose(density.data_to_world([1.0, 1, 1]), [2.5, 2.5, 2.5])


def _delayed(data, name, loaded):
    import dask

    def load():
        loaded.append(name)
        return data

    return dask.delayed(load, pure=False)()


BAD = {
    "rgb": (lambda: np.zeros((20, 20, 3), np.uint8), {"rgb": True}, "RGB"),
    "constant": (lambda: np.ones((8, 8, 8)), {}, "constant"),
    "all NaN": (lambda: np.full((8, 8, 8), np.nan), {"contrast_limits": (0, 1)}, "no finite voxels"),
    "5D": (lambda: np.zeros((2, 2, 4, 4, 4)), {}, "5 axes"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gets_one_sentence_and_the_next_run_works(open_widget, qtbot, volume, case, statuses):
    make, options, words = BAD[case]
    viewer, widget = open_widget(make(), **options)
    before = names(viewer)
    said = statuses(viewer)
    click(qtbot, widget.button)
    qtbot.waitUntil(lambda: not widget.running, timeout=SLOW)
    assert words in widget.status.value
    assert widget.status.value in said
    assert names(viewer) == before
    widget.image.value = viewer.add_image(volume, name="good")
    run(qtbot, widget)
    assert "good · density" in names(viewer)


def test_no_layer_more_gaussians_than_voxels_and_too_large(open_widget, qtbot, volume):
    viewer, widget = open_widget(None)
    click(qtbot, widget.button)
    assert "no image layer" in widget.status.value
    viewer.add_image(volume, name="volume")
    widget.form.fields["gaussians"].value = volume.size + 1
    click(qtbot, widget.button)
    qtbot.waitUntil(lambda: not widget.running, timeout=SLOW)
    assert "more than the" in widget.status.value
    da = pytest.importorskip("dask.array")
    huge = viewer.add_image(da.zeros((4096, 4096, 4096), chunks=512), contrast_limits=(0, 1), name="huge")
    widget.image.value = huge
    click(qtbot, widget.button)
    assert not widget.running
    assert "GiB" in widget.status.value


def test_nan_voxels_are_left_out_and_said_so(open_widget, qtbot, volume):
    volume[:2] = np.nan
    _, widget = open_widget(volume, contrast_limits=(0, 1))
    run(qtbot, widget)
    assert f"{2 * 24 * 24:,} voxels are NaN" in widget.status.value
    assert np.isfinite(widget.results[0].reconstruction).all()


def test_removing_layers_during_a_fit_loses_nothing(open_widget, qtbot):
    viewer, widget = open_widget(vessel_phantom(48)[0])
    widget.form.fields["gaussians"].value = 400
    widget.form.fields["iterations"].value = 40
    click(qtbot, widget.button)
    qtbot.waitUntil(lambda: "volume · density" in names(viewer), timeout=SLOW)
    viewer.layers.remove("volume")
    viewer.layers.remove("volume · density")
    qtbot.waitUntil(lambda: not widget.running, timeout=SLOW)
    assert widget.results
    assert "volume · gaussians" in names(viewer)
    assert "volume · density" not in names(viewer)


@pytest.mark.parametrize("how", ["dock", "viewer"])
def test_closing_stops_the_worker(make_napari_viewer, qtbot, how):
    before = threading.active_count()
    viewer = make_napari_viewer()
    viewer.add_image(vessel_phantom(48)[0], name="volume")
    dock, widget = viewer.window.add_plugin_dock_widget("napari-gsvolume", "Fit Gaussians")
    widget.form.fields["iterations"].value = 100_000
    click(qtbot, widget.button)
    qtbot.waitUntil(lambda: "volume · density" in names(viewer), timeout=SLOW)
    worker, stopped = widget._worker, widget._stop
    if how == "dock":
        viewer.window.remove_dock_widget(dock)
    else:
        viewer.close()
    del widget
    assert_ends(qtbot, worker, stopped)
    assert threading.active_count() <= before + 4  # pools of threads stay, workers do not


def test_settings_are_remembered(open_widget, make_napari_viewer, qtbot, volume):
    _, widget = open_widget(volume)
    widget.form.fields["target_psnr"].value = 17.5
    widget.form.fields["solver"].value = "adam"
    run(qtbot, widget)
    second = FitWidget(make_napari_viewer())
    qtbot.addWidget(second.native)
    assert second.form.fields["target_psnr"].value == 17.5
    assert second.form.fields["solver"].value == "adam"
    assert second.form.fields["time_limit"].value is None


def test_every_setting_has_a_place_and_a_readable_label(open_widget, qtbot, volume):
    _, widget = open_widget(volume)
    assert [fold.text() for fold in widget.form.folds] == ["Objective", "Growth and file size", "Solver"]
    placed = [*widget.form.rows, *(row for group in widget.form._groups for row in group)]
    assert {id(row) for row in placed} == {id(row) for row in widget.form.fields.values()}
    assert len(placed) == len(FitSettings.model_fields)
    assert widget.form.fields["sparsity_weight"].label == "Sparsity weight"
    assert all("_" not in row.label for row in placed)
    for fold in widget.form.folds:
        fold.toggleButton().click()
        assert [other.isExpanded() for other in widget.form.folds] == [other is fold for other in widget.form.folds]
    # However much of it is open, it fits a small screen.
    assert widget.native.minimumSizeHint().height() < 300


@pytest.mark.parametrize(("typed", "value"), [("0.00001", 1e-5), ("0.0025", 0.0025), ("2", 2.0)])
def test_small_penalties_can_be_typed(open_widget, qtbot, volume, typed, value):
    _, widget = open_widget(volume)
    box = widget.form.fields["smoothness_weight"].native
    box.selectAll()
    qtbot.keyClicks(box, typed)
    qtbot.keyClick(box, Qt.Key.Key_Return)
    assert widget.form.settings().smoothness_weight == pytest.approx(value, rel=1e-9)
    assert float(box.text()) == value


def test_the_plot_shows_the_terms_of_the_loss_where_there_are_several(open_widget, qtbot, volume):
    _, widget = open_widget(volume)
    assert not widget.plot.isVisible()  # there is nothing to see yet
    run(qtbot, widget)
    assert widget.plot.isVisible()
    assert not widget.plot.terms.get_visible()
    assert widget.plot.axes.get_xlabel() == "seconds"
    widget.form.fields["sparsity_weight"].value = 1e-3
    widget.form.fields["smoothness_weight"].value = 1e-5
    run(qtbot, widget)
    plot, [result] = widget.plot, widget.results
    assert plot.terms.get_visible()
    assert plot.terms.get_yscale() == "log"
    assert (plot.axes.get_xlabel(), plot.terms.get_xlabel()) == ("", "seconds")
    lines = {line.get_label(): line for line in plot.terms.lines}
    assert list(lines) == ["data", "sparsity", "smoothness"]
    for name, line in lines.items():
        assert line.get_ydata()[-1] == pytest.approx(result.terms[name])
    assert [text.get_text() for text in plot.terms.get_legend().get_texts()] == list(lines)
    assert plot.axes.get_xlim() == plot.terms.get_xlim()


def test_the_plot_takes_terms_that_are_zero_or_come_late(make_napari_viewer, qtbot):
    plot = HistoryPlot(make_napari_viewer())
    qtbot.addWidget(plot)
    points = [
        HistoryPoint(0.0, 5.0, 0, {"data": 0.1}),
        HistoryPoint(1.0, 9.0, 10, {"data": 0.01, "sparsity": 0.0}),
        HistoryPoint(2.0, 12.0, 10, {"data": 0.001, "sparsity": 1e-4}),
    ]
    for n in range(4):
        plot.show_history(points[:n])
        plot.canvas.draw()
        assert plot.terms.get_visible() == (n > 1)
    assert [list(line.get_xdata()) for line in plot.terms.lines] == [[0, 1, 2], [2]]
    plot.show_history([])
    assert not plot.isVisible()


def test_save_and_open_again(open_widget, qtbot, volume, tmp_path):
    viewer, widget = open_widget(volume, scale=(1, 2, 3), units=("mm", "mm", "mm"))
    run(qtbot, widget)
    widget.save_results(tmp_path / "mine.safetensors")
    assert "Saved" in widget.status.value
    saved = GaussianVolume.load(tmp_path / "mine.safetensors")
    np.testing.assert_array_equal(saved.means.numpy(), widget.results[0].gaussians.means.numpy())
    # From the layer, through napari's own save and open.
    for kind in ("gaussians", "centres"):
        path = tmp_path / f"{kind}.safetensors"
        viewer.layers[f"volume · {kind}"].save(str(path), plugin="napari-gsvolume")
        again = GaussianVolume.load(path)
        np.testing.assert_array_equal(again.factors.numpy(), saved.factors.numpy())
        assert again.grid == saved.grid
    viewer.layers.clear()
    layers = viewer.open(tmp_path / "gaussians.safetensors", plugin="napari-gsvolume")
    assert [type(layer) for layer in layers] == [Image, Surface]
    np.testing.assert_allclose(layers[0].data, widget.results[0].reconstruction, atol=1e-4)
    np.testing.assert_allclose(layers[0].scale, (1, 2, 3))
    widget.save_results(tmp_path / "missing" / "x.safetensors")
    assert "missing" in widget.status.value


def test_the_size_of_a_file_is_told(open_widget, qtbot, volume, tmp_path, monkeypatch):
    _, widget = open_widget(volume)
    run(qtbot, widget)
    asked = []
    answers = iter(
        [
            ("a", "Compact (*.gsv)"),
            ("b.v2", "Lossless (*.safetensors)"),
            ("c", "Splat viewers (*.ply)"),
            ("d", ""),
            ("e.PLY", "Compact (*.gsv)"),
            ("", ""),
        ]
    )

    def ask(*args):
        asked.append(args[2:])
        name, chosen = next(answers)
        return (str(tmp_path / name) if name else "", chosen)

    monkeypatch.setattr(QFileDialog, "getSaveFileName", ask)
    for _ in range(6):
        click(qtbot, widget.save)
    assert asked[0] == ("volume.gsv", "Compact (*.gsv);;Lossless (*.safetensors);;Splat viewers (*.ply)")
    assert {path.name for path in tmp_path.iterdir()} == {"a.gsv", "b.v2.safetensors", "c.ply", "d.gsv", "e.PLY"}
    widget.save_results(tmp_path / "mine")
    size = (tmp_path / "mine.gsv").stat().st_size
    assert size < 1000
    assert f"mine.gsv: {size} bytes, ratio {4 * volume.size / size:,.1f}" in widget.status.value
    assert len(GaussianVolume.load(tmp_path / "mine.gsv")) > 0


def test_points_that_were_deleted_are_not_saved(open_widget, qtbot, volume, tmp_path):
    viewer, widget = open_widget(volume)
    run(qtbot, widget)
    points = viewer.layers["volume · centres"]
    assert isinstance(points, Points)
    points.selected_data = {0, 3}
    points.remove_selected()
    points.save(str(tmp_path / "fewer.safetensors"), plugin="napari-gsvolume")
    fewer = GaussianVolume.load(tmp_path / "fewer.safetensors")
    assert len(fewer) == widget.results[0].n_gaussians - 2
    np.testing.assert_array_equal(fewer.means[0].numpy(), widget.results[0].gaussians.means[1].numpy())


def test_a_ratio_has_the_number_of_gaussians_follow(open_widget, volume):
    _, widget = open_widget(volume)
    fields = widget.form.fields
    assert fields["gaussians"].value is not None
    fields["ratio"].on.native.click()
    assert fields["ratio"].value is not None
    assert fields["gaussians"].value is None
    fields["gaussians"].on.native.click()
    assert fields["gaussians"].value is not None
    assert fields["ratio"].value is not None


GPU = {"cuda:0": "cuda:0 (NVIDIA Card)"}
TWO = {**GPU, "cuda:1": "cuda:1 (NVIDIA Card)"}


@pytest.fixture
def pretend_gpus(monkeypatch):
    """Return a function that pretends GPUs, or a reason for none; the list it returns grows when they are found."""

    def pretend(gpus, problem=None):
        found = []
        names = {"auto": "auto (GPU if any)", "cpu": "cpu", **gpus}
        monkeypatch.setattr(fit_module, "devices", lambda: found.append(True) or names)
        monkeypatch.setattr(fit_module, "gpu_problem", lambda: problem)
        return found

    return pretend


def remember_device(make_napari_viewer, qtbot, name):
    """Have a session with this device leave its settings behind."""
    widget = FitWidget(make_napari_viewer())
    qtbot.addWidget(widget.native)
    widget.form.fields["device"].value = name
    assert widget.form.settings().device == name


def test_devices_are_found_when_the_rows_are_opened(open_widget, pretend_gpus, volume):
    found = pretend_gpus(TWO)
    _, widget = open_widget(volume)
    row = widget.form.fields["device"]
    assert widget.form.settings().device == "auto"
    assert not found  # it would start CUDA
    widget.form.folds[-1].toggleButton().click()
    assert row.choices == ("auto", "cpu", "cuda:0", "cuda:1")
    assert [row.native.itemText(i) for i in (0, 3)] == ["auto (GPU if any)", "cuda:1 (NVIDIA Card)"]
    assert row.value == "auto"
    assert row.tooltip == FitSettings.model_fields["device"].description
    row.native.setCurrentIndex(3)
    assert widget.form.settings().device == "cuda:1"
    for _ in range(2):
        widget.form.folds[-1].toggleButton().click()
    widget.reset_choices()  # napari does when layers change
    assert (row.value, len(row.choices), len(found)) == ("cuda:1", 4, 1)


def test_where_there_is_no_gpu_the_tooltip_says_why(open_widget, pretend_gpus, volume):
    pretend_gpus({}, "the kernels need the package numba-cuda.")
    _, widget = open_widget(volume)
    widget.form.folds[-1].toggleButton().click()
    row = widget.form.fields["device"]
    assert row.choices == ("auto", "cpu")
    assert row.tooltip.endswith(". No GPU can be used: the kernels need the package numba-cuda.")


@pytest.mark.parametrize(("gpus", "taken"), [(TWO, "cuda:1"), (GPU, "auto"), ({}, "auto")])
@pytest.mark.parametrize("look", [True, False])
def test_a_remembered_gpu_that_is_gone_is_auto(make_napari_viewer, pretend_gpus, qtbot, gpus, taken, look):
    pretend_gpus(TWO)
    remember_device(make_napari_viewer, qtbot, "cuda:1")
    found = pretend_gpus(gpus)
    widget = FitWidget(make_napari_viewer())
    qtbot.addWidget(widget.native)
    assert not found
    if look:
        widget.form.folds[-1].toggleButton().click()
        assert widget.form.fields["device"].value == taken
    assert widget.form.settings().device == taken
    assert "cuda:1" in widget.form.fields["device"].choices or taken == "auto"


def test_the_cpu_is_remembered_and_starts_no_cuda(make_napari_viewer, pretend_gpus, qtbot):
    found = pretend_gpus(TWO)
    remember_device(make_napari_viewer, qtbot, "cpu")
    widget = FitWidget(make_napari_viewer())
    qtbot.addWidget(widget.native)
    assert widget.form.settings().device == "cpu"
    assert not found


def test_a_gpu_that_cannot_be_used_is_said_in_one_sentence(open_widget, pretend_gpus, qtbot, volume):
    if gpu_problem() is None:
        pytest.skip("there is a GPU")
    pretend_gpus(GPU)
    viewer, widget = open_widget(volume)
    widget.form.fields["device"].value = "cuda:0"
    click(qtbot, widget.button)
    qtbot.waitUntil(lambda: not widget.running, timeout=SLOW)
    assert widget.status.value.startswith("The device 'cuda:0' cannot be used: ")
    assert names(viewer) == ["volume"]
    widget.form.fields["device"].value = "auto"
    run(qtbot, widget)
    assert "cuda" not in widget.status.value


@pytest.mark.parametrize(("device", "where"), [("cpu", ""), ("cuda:1", " on cuda:1")])
def test_the_gpu_that_computes_is_named(device, where):
    step = SimpleNamespace(psnr_db=30, n_gaussians=1000, seconds=7, fraction=0.5, device=device)
    text = fit_module._figures(SimpleNamespace(fit=step, result=None))
    assert text == f"30.00 dB, 1,000 Gaussians, 7 s{where}, about 7 s left"
