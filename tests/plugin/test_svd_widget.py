"""The SVD widget, used as a person would: move through slices, ranks and modes, look at all slices, super-resolve."""

import time

import dask.array as da
import numpy as np
import pytest
from qtpy.QtCore import QPoint

from helpers.clicking import LEFT, SLOW, assert_ends, click, run
from napari_gsvolume import memory
from napari_gsvolume.grid import Grid
from napari_gsvolume.phantoms import vessel_phantom
from napari_gsvolume.plugin.layers.conversion import METADATA_KEY, grid_placement
from napari_gsvolume.plugin.widgets.svd import slice_matrix
from napari_gsvolume.super_resolution import upsampling
from napari_gsvolume.super_resolution.bspline import upsample_bspline
from napari_gsvolume.super_resolution.degradation import Degradation
from napari_gsvolume.svd import decomposition
from napari_gsvolume.svd.continuous_basis import ContinuousBasis

SHAPE = (10, 16, 12)
AFFINE = np.diag([3.0, 1.5, 1.0, 1]) + np.pad([[5], [-2], [7]], ((0, 1), (3, 0)))
TURNED = AFFINE.copy()
TURNED[1:3, 1:3] = [[1.2, -0.6], [0.7, 1.1]]  # rotated and sheared in the plane

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def volume():
    noise = np.random.default_rng(0).normal(size=SHAPE) * 0.05
    return (vessel_phantom(16)[0][:10, :, :12] + noise).astype(np.float32)


@pytest.fixture
def open_widget(make_napari_viewer, qtbot):
    """Return a function that opens a viewer with a layer "T1" and the widget, and waits for its first figures."""

    def open_(data=None, affine=AFFINE, step=4, **options):
        viewer = make_napari_viewer(show=True)
        if data is not None:
            placed = grid_placement(Grid(data.shape[-3:], affine, ("mm",) * 3)) if data.ndim == 3 else {}
            viewer.add_image(data, name="T1", **{**placed, **options})
        if data is not None and data.ndim == 3:
            viewer.dims.set_current_step(0, step)
        _, widget = viewer.window.add_plugin_dock_widget("napari-gsvolume", "SVD")
        settle(qtbot, widget)
        return viewer, widget

    return open_


def settle(qtbot, widget):
    qtbot.waitUntil(lambda: not widget.busy and not widget.running, timeout=SLOW)


def click_at(qtbot, plot, axes, x, y):
    """Click where the coordinates are in a plot."""
    plot.canvas.draw()
    left, bottom = axes.transData.transform((x, y)) / plot.canvas.device_pixel_ratio
    qtbot.mouseClick(plot.canvas, LEFT, pos=QPoint(round(left), round(plot.canvas.height() - bottom)))


def test_the_rank_slider_moves_the_image_and_its_residual(open_widget, qtbot, volume):
    viewer, widget = open_widget(volume)
    assert [layer.name for layer in viewer.layers] == ["T1"]  # nothing is added that nobody asked for
    assert widget.rank.max == 12
    found = decomposition.decompose(volume[4])
    for rank in (3, 12, 1):
        widget.rank.value = rank
        image, residual = viewer.layers["T1 · rank"], viewer.layers["T1 · rank residual"]
        assert image.data.shape == (1, 16, 12)
        np.testing.assert_allclose(image.data[0], found.truncate(rank), atol=1e-6)
        np.testing.assert_allclose(image.data + residual.data, volume[4:5], atol=1e-6)
        low, high = residual.contrast_limits
        assert low == -high
        assert image.metadata[METADATA_KEY]["rank"] == rank
    assert len(viewer.layers) == 3
    assert viewer.layers.selection == {viewer.layers["T1"]}
    # In place, one voxel thick.
    for corner in ((0, 0, 0), (0, 15, 11)):
        np.testing.assert_allclose(image.data_to_world(corner), viewer.layers["T1"].data_to_world((4, *corner[1:])))
    np.testing.assert_allclose(image.get_value(image.data_to_world((0, 2, 3)), world=True), image.data[0, 2, 3])
    # Figures of the slice and the rank.
    energy = 100 * decomposition.cumulative_energy(found.values)[0]
    best = decomposition.best_psnr_db(found.values, (16, 12), float(np.ptp(volume[4])))[0]
    text = widget.figures.value
    for part in (
        f"{energy:.5g} %",
        f"{best:.2f} dB",
        "rank 1:",
        f"effective rank {decomposition.effective_rank(found.values):.1f}",
    ):
        assert part in text
    assert f"stable rank {decomposition.stable_rank(found.values):.2f}" in text
    assert widget.plot.rank.get_xdata()[0] == 1
    np.testing.assert_allclose(widget.plot.axes.lines[0].get_ydata(), found.values)
    np.testing.assert_allclose(widget.plot.energy.lines[0].get_ydata(), decomposition.cumulative_energy(found.values))


def test_layers_follow_the_viewer_and_keep_what_the_user_set(open_widget, qtbot, volume):
    viewer, widget = open_widget(volume)
    widget.rank.value = 3
    image, residual = viewer.layers["T1 · rank"], viewer.layers["T1 · rank residual"]
    image.contrast_limits = (0.1, 0.4)
    viewer.dims.set_current_step(0, 7)
    settle(qtbot, widget)
    assert viewer.layers["T1 · rank"] is image
    np.testing.assert_allclose(image.data[0], decomposition.decompose(volume[7]).truncate(3), atol=1e-6)
    np.testing.assert_allclose(image.data_to_world((0, 0, 0)), viewer.layers["T1"].data_to_world((7, 0, 0)))
    assert tuple(image.contrast_limits) == (0.1, 0.4)
    assert viewer.dims.current_step[0] == 7
    # The slice is seen: what the layer shows of it is not empty.
    assert image._slice.image.raw.shape == (16, 12)
    # One that is removed stays away, the other follows; without both, the slider brings them back.
    viewer.layers.remove(residual)
    widget.rank.value = 5
    assert [layer.name for layer in viewer.layers] == ["T1", "T1 · rank"]
    viewer.layers.remove(image)
    viewer.dims.set_current_step(0, 2)
    settle(qtbot, widget)
    assert len(viewer.layers) == 1
    widget.rank.value = 6
    assert len(viewer.layers) == 3
    # Ours are not decomposed in their turn.
    assert [layer.name for layer in widget.image.choices] == ["T1"]


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_all_slices_and_the_viewer_move_each_other(open_widget, qtbot, volume, axis):
    viewer, widget = open_widget(volume)
    widget.axis.value = axis
    assert viewer.dims.not_displayed == (axis,)
    settle(qtbot, widget)
    widget.tabs.setCurrentWidget(widget.slices)
    click(qtbot, widget.slices.start)
    assert widget.running
    assert widget.button.text == "Stop"
    settle(qtbot, widget)
    n = SHAPE[axis]
    assert f"{n} of {n}" in widget.status.value
    heat = widget.slices.plot
    values = decomposition.spectra(volume, axis)
    np.testing.assert_allclose(heat.picture.get_array(), np.log10(np.fmax(values / values.max(), 1e-5)).T, atol=1e-6)
    # The viewer marks the slice.
    for index in (1, n - 2):
        viewer.dims.set_current_step(axis, index)
        settle(qtbot, widget)
        assert heat.slice.get_xdata()[0] == index
        np.testing.assert_allclose(widget.analysis.image, volume.take(index, axis))
    # A click moves the viewer.
    click_at(qtbot, heat, heat.axes, 3, 4)
    assert viewer.dims.current_step[axis] == 3
    settle(qtbot, widget)
    assert heat.slice.get_xdata()[0] == 3
    assert widget.analysis.matrix.index == 3


def test_the_threshold_is_offered(open_widget, qtbot, volume):
    viewer, widget = open_widget(volume)
    values = decomposition.decompose(volume[4]).values
    threshold = float(decomposition.optimal_threshold(values, (16, 12)))
    assert widget.rank.value == 10  # nothing is forced
    np.testing.assert_allclose(widget.plot.threshold.get_ydata(), threshold)
    assert widget.plot.threshold.get_linestyle() == "--"
    for _ in range(2):
        click(qtbot, widget.use_threshold)
        assert widget.rank.value == (values > threshold).sum()
    np.testing.assert_allclose(
        viewer.layers["T1 · rank"].data[0], decomposition.decompose(volume[4]).truncate(widget.rank.value), atol=1e-6
    )


def test_modes_as_functions_and_as_a_layer(open_widget, qtbot, volume):
    viewer, widget = open_widget(volume)
    modes, found = widget.modes, decomposition.decompose(volume[4])
    # Clicking on a value chooses its mode.
    click_at(qtbot, widget.plot, widget.plot.energy, 3, 0.98)
    assert modes.k.value == 3
    assert widget.plot.mode.get_xdata()[0] == 3
    for kind, order, smoothing in (
        ("bspline", 3, 0),
        ("bspline", 1, 2),
        ("legendre", 3, 0),
        ("rbf", 3, 1.0),
        ("periodic", 3, 0),
        ("mirrored", 3, 1),
    ):
        modes.basis.value, modes.spline_degree.value, modes.smoothing.value = kind, order, smoothing
        assert modes.spline_degree.visible == (kind == "bspline")
        for panel, vectors in zip(modes.plot.panels, (found.U, found.V), strict=True):
            samples, function = panel.lines[:2]
            np.testing.assert_allclose(samples.get_ydata(), vectors[:, 2], atol=1e-9)
            basis = ContinuousBasis.fit(vectors[:, 2:3], kind, order=order, smoothing=smoothing)
            np.testing.assert_allclose(function.get_ydata(), basis.evaluate(function.get_xdata())[:, 0], atol=1e-9)
            assert function.get_xdata()[0] == -0.5
    for _ in range(2):
        click(qtbot, modes.to_layer)
    layer = viewer.layers["T1 · mode 3"]
    np.testing.assert_allclose(layer.data[0], found.mode(2), atol=1e-6)
    np.testing.assert_allclose(layer.data_to_world((0, 0, 0)), viewer.layers["T1"].data_to_world((4, 0, 0)))
    assert len(viewer.layers) == 2


def test_an_unfolding(open_widget, qtbot, volume, monkeypatch):
    viewer, widget = open_widget(volume)
    widget.axis.value = 1
    widget.of.value = "unfolding"
    settle(qtbot, widget)
    found = decomposition.decompose(decomposition.unfold(volume, 1))
    np.testing.assert_allclose(widget.plot.axes.lines[0].get_ydata(), found.values)
    widget.rank.value = 4
    image = viewer.layers["T1 · rank"]
    folded = np.moveaxis(found.truncate(4).reshape(16, 10, 12), 0, 1)
    np.testing.assert_allclose(image.data, folded, atol=1e-5)
    np.testing.assert_allclose(image.data + viewer.layers["T1 · rank residual"].data, volume, atol=1e-6)
    assert len(widget.modes.plot.panels[1].images) == 1
    # A large one is truncated beside the viewer.
    monkeypatch.setattr("napari_gsvolume.plugin.widgets.svd.slice_panel._AT_ONCE", 10)
    widget.rank.value = 2
    assert widget.busy
    settle(qtbot, widget)
    assert image.metadata[METADATA_KEY]["rank"] == 2
    # Back to a slice, the same layers become slices.
    widget.of.value = "slice"
    settle(qtbot, widget)
    assert viewer.layers["T1 · rank"].data.shape == (10, 1, 12)
    assert len(viewer.layers) == 3


@pytest.mark.parametrize("affine", [AFFINE, TURNED], ids=["plain", "askew"])
@pytest.mark.parametrize("factor", [2.0, 2.5])
@pytest.mark.parametrize("axes", ["in-plane", "through-plane"])
def test_super_resolved_lies_on_the_source_and_agrees_with_it(open_widget, qtbot, volume, affine, factor, axes):
    viewer, widget = open_widget(volume, affine)
    assert not widget.button.visible
    widget.tabs.setCurrentWidget(widget.superresolve)
    assert widget.button.visible
    fields = widget.form.fields
    fields["factor"].value, fields["upsample_axes"].value = factor, axes
    assert fields["project"].value
    run(qtbot, widget)
    assert not widget.busy
    source, finer = viewer.layers["T1"], viewer.layers["T1 · super-resolved"]
    f = np.array((1, factor, factor) if axes == "in-plane" else (factor, 1, 1))
    onto = Degradation.of_low(SHAPE, tuple(f))
    np.testing.assert_allclose(finer.data, upsample_bspline(volume, tuple(f), onto=onto), atol=1e-5)
    assert np.abs(onto.degrade(finer.data) - volume).max() < 1e-5 * np.abs(volume).max()
    assert tuple(finer.contrast_limits) == tuple(source.contrast_limits)
    # Faces, not centres, are the same; where the factor does not divide, the first.
    for corner in np.ndindex(2, 2, 2):
        if not all(n * k % 1 == 0 for n, k in zip(SHAPE, f, strict=True)) and any(corner):
            continue
        low = np.where(corner, np.array(SHAPE) - 0.5, -0.5)
        high = np.where(corner, np.array(finer.data.shape) - 0.5, -0.5)
        np.testing.assert_allclose(finer.data_to_world(high), source.data_to_world(low), atol=1e-9)
    assert finer.units == source.units
    # Again: in place; without the projection it agrees less.
    fields["project"].value = False
    run(qtbot, widget)
    assert viewer.layers["T1 · super-resolved"] is finer
    assert len(viewer.layers) == 2
    np.testing.assert_allclose(finer.data, upsample_bspline(volume, tuple(f)), atol=1e-5)
    assert "data consistency" in widget.status.value


@pytest.mark.parametrize("of", ["slice", "unfolding"])
def test_super_resolved_at_the_rank(open_widget, qtbot, volume, of):
    data = volume.copy()
    data[0] = 0.25  # as outside of a body
    viewer, widget = open_widget(data)
    widget.of.value = of
    settle(qtbot, widget)
    widget.rank.value = 3
    widget.tabs.setCurrentWidget(widget.superresolve)
    widget.superresolve.input.value = "image truncated to the rank"
    widget.form.fields["project"].value = False
    run(qtbot, widget)
    if of == "slice":
        low = np.stack([data[0], *(decomposition.decompose(one).truncate(3) for one in data[1:])])
    else:
        low = decomposition.decompose(decomposition.unfold(data, 0)).truncate(3).reshape(SHAPE)
    finer = viewer.layers["T1 · super-resolved"]
    np.testing.assert_allclose(finer.data, upsample_bspline(low, (1, 2, 2)), atol=1e-5)
    assert finer.metadata[METADATA_KEY]["rank"] == 3
    # Projected, it agrees with the image itself.
    widget.form.fields["project"].value = True
    run(qtbot, widget)
    assert np.abs(Degradation.of_low(SHAPE, (1, 2, 2)).degrade(finer.data) - data).max() < 1e-5


def test_flat_images_and_series(open_widget, qtbot, volume):
    viewer, widget = open_widget(volume[4], scale=(2, 3), translate=(1, 5))
    assert not widget.of.visible
    widget.rank.value = 2
    image = viewer.layers["T1 · rank"]
    assert image.data.shape == (16, 12)
    np.testing.assert_allclose(image.data_to_world((3, 4)), viewer.layers["T1"].data_to_world((3, 4)))
    assert not widget.slices.start.enabled
    widget.tabs.setCurrentWidget(widget.superresolve)
    run(qtbot, widget)
    assert viewer.layers["T1 · super-resolved"].data.shape == (32, 24)
    # A volume of a series.
    series = viewer.add_image(np.stack([volume, 2 * volume]), name="series")
    widget.image.value = series
    widget.time_point.value = 1
    viewer.dims.set_current_step(1, 6)
    settle(qtbot, widget)
    np.testing.assert_allclose(widget.analysis.image, 2 * volume[6])
    widget.rank.value = 4
    assert viewer.layers["series · rank"].data.shape == (1, 16, 12)
    assert image in viewer.layers


def test_the_panel_follows_where_the_viewer_is_turned(open_widget, qtbot, volume):
    viewer, widget = open_widget(volume)
    widget.rank.value = 3
    viewer.dims.order = (2, 0, 1)
    assert widget.axis.value == 2
    viewer.dims.set_current_step(2, 5)
    settle(qtbot, widget)
    np.testing.assert_allclose(widget.analysis.image, volume[:, :, 5])
    assert viewer.layers["T1 · rank"].data.shape == (10, 16, 1)
    # What is hidden rests, and catches up.
    before = widget.analysis
    dock = widget.native.parent()
    dock.hide()
    viewer.dims.set_current_step(2, 7)
    qtbot.wait(100)
    assert not widget.busy
    assert widget.analysis is before
    dock.show()
    qtbot.waitUntil(lambda: widget.analysis.matrix.index == 7, timeout=SLOW)


def test_a_level_of_a_lazy_pyramid(open_widget, qtbot, volume):
    """Of lazy data only the slice is loaded."""
    loaded = []

    def load(block):
        loaded.append(block.shape)
        return block

    fine = da.from_array(volume, chunks=(1, 16, 12)).map_blocks(load, dtype=volume.dtype, meta=volume[:0])
    coarse = volume.reshape(5, 2, 8, 2, 6, 2).mean((1, 3, 5))
    viewer, widget = open_widget()
    viewer.add_image([fine, coarse], name="T1", contrast_limits=(0, 1))
    viewer.dims.set_current_step(0, 4)
    settle(qtbot, widget)
    loaded.clear()
    widget.level.value = 1
    settle(qtbot, widget)
    np.testing.assert_allclose(widget.analysis.image, coarse[2])
    widget.rank.value = 2
    image = viewer.layers["T1 · rank"]
    np.testing.assert_allclose(image.data_to_world((0, 0, 0)), (4.5, 0.5, 0.5))
    widget.level.value = 0
    settle(qtbot, widget)
    np.testing.assert_allclose(widget.analysis.image, volume[4])
    assert len(loaded) <= 3  # and napari's own
    assert viewer.layers["T1 · rank"].data.shape == (1, 16, 12)


def test_other_data_are_decomposed_anew(open_widget, qtbot, volume):
    viewer, widget = open_widget(volume)
    viewer.layers["T1"].data = volume[::-1].copy()
    settle(qtbot, widget)
    np.testing.assert_allclose(widget.analysis.image, volume[5])


def test_large_images_have_their_first_modes_found(open_widget, qtbot, volume, monkeypatch):
    monkeypatch.setattr(slice_matrix, "ALL_MODES_UP_TO", 10)
    monkeypatch.setattr(slice_matrix, "_MODES_OF_LARGE", 0.5)
    _, widget = open_widget(volume)
    full = decomposition.decompose(volume[4])
    at = widget.analysis
    assert (at.rank, widget.rank.max) == (6, 6)
    np.testing.assert_allclose(at.energy, decomposition.cumulative_energy(full.values)[:6])
    np.testing.assert_allclose(at.best_psnr, decomposition.best_psnr_db(full.values, (16, 12), np.ptp(volume[4]))[:6])
    assert widget.plot.threshold is None
    assert not widget.use_threshold.enabled
    assert "effective" not in widget.figures.value


def one_sentence(text, *words):
    assert text.endswith(".")
    assert "\n" not in text
    for word in words:
        assert word in text


def test_what_cannot_be_decomposed_is_said_in_a_sentence(open_widget, qtbot, volume, monkeypatch):
    viewer, widget = open_widget()
    one_sentence(widget.status.value, "no image layer")
    assert not widget.rank.enabled
    bad = volume.copy()
    bad[2] = 7
    bad[3, 4, 4] = np.nan
    viewer.add_image(bad, name="bad")
    viewer.dims.set_current_step(0, 2)
    settle(qtbot, widget)
    one_sentence(widget.status.value, "constant")
    assert not widget.use_threshold.enabled
    viewer.dims.set_current_step(0, 3)
    settle(qtbot, widget)
    one_sentence(widget.status.value, "NaN")
    # Another slice, and it is well again.
    viewer.dims.set_current_step(0, 5)
    settle(qtbot, widget)
    assert widget.status.value == ""
    assert widget.rank.enabled
    click(qtbot, widget.slices.start)
    settle(qtbot, widget)
    one_sentence(widget.status.value, "NaN")
    widget.tabs.setCurrentWidget(widget.superresolve)
    run(qtbot, widget)
    one_sentence(widget.status.value, "NaN")
    assert "bad · super-resolved" not in viewer.layers
    viewer.layers.remove("bad")
    viewer.add_image(np.zeros((8, 9, 3), np.uint8), rgb=True, name="colours")
    settle(qtbot, widget)
    one_sentence(widget.status.value, "RGB")
    click(qtbot, widget.button)
    assert not widget.running
    one_sentence(widget.status.value, "RGB")
    viewer.layers.clear()
    viewer.add_image(volume, name="T1")
    settle(qtbot, widget)
    widget.form.fields["factor"].value = 1.0
    click(qtbot, widget.button)
    one_sentence(widget.status.value, "actor")
    assert not widget.running
    widget.form.fields["factor"].value = 2.0
    monkeypatch.setattr(memory.psutil, "virtual_memory", lambda: type("Memory", (), {"available": 1000}))
    click(qtbot, widget.button)
    one_sentence(widget.status.value, "GiB")
    viewer.dims.set_current_step(0, 1)
    settle(qtbot, widget)
    one_sentence(widget.status.value, "GiB")


def slowly(monkeypatch):
    """Make what is done to each slice take a while."""
    values, upsample = decomposition.iter_spectra, upsampling.upsample_bspline

    def each(volume, axis):
        for one in values(volume, axis):
            time.sleep(0.2)
            yield one

    monkeypatch.setattr(decomposition, "iter_spectra", each)
    monkeypatch.setattr(upsampling, "upsample_bspline", lambda *args: time.sleep(0.2) or upsample(*args))


def test_stop_keeps_the_slices_there_are(open_widget, qtbot, volume, monkeypatch):
    slowly(monkeypatch)
    viewer, widget = open_widget(volume)
    click(qtbot, widget.slices.start)
    qtbot.waitUntil(lambda: "Decomposed" in widget.status.value, timeout=SLOW)
    click(qtbot, widget.button)
    settle(qtbot, widget)
    assert widget._spectra.done < 10
    assert np.isnan(widget._spectra.values[-1]).all()
    widget.tabs.setCurrentWidget(widget.superresolve)
    click(qtbot, widget.button)
    qtbot.waitUntil(lambda: "Super-resolving" in widget.status.value, timeout=SLOW)
    click(qtbot, widget.button)
    settle(qtbot, widget)
    assert "Stopped" in widget.status.value
    assert "T1 · super-resolved" not in viewer.layers


@pytest.mark.parametrize("how", ["dock", "window"])
def test_closing_stops_the_worker(open_widget, qtbot, volume, monkeypatch, how):
    slowly(monkeypatch)
    viewer, widget = open_widget(volume)
    click(qtbot, widget.slices.start)
    worker, stopped = widget._worker, widget._stop
    if how == "dock":
        viewer.window.remove_dock_widget(widget.native)
        viewer.dims.set_current_step(0, 1)  # nobody listens any more
    else:
        viewer.close()
    del widget
    assert_ends(qtbot, worker, stopped)
