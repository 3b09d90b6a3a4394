"""The Explain widget, used as a person would: choose a model, explain, circle samples, look at maps, ask what if."""

import gc
import time

import numpy as np
import pytest
from qtpy.QtCore import QPoint, Qt
from qtpy.QtTest import QTest
from qtpy.QtWidgets import QFileDialog

from helpers.clicking import LEFT, SLOW, click, run
from napari_gsvolume.grid import Grid
from napari_gsvolume.phantoms import vessel_phantom
from napari_gsvolume.plugin.layers.conversion import METADATA_KEY, grid_placement
from napari_gsvolume.super_resolution.training import train_superresolution

SHAPE = (8, 20, 24)
BLOB = (slice(2, 6), slice(6, 12), slice(10, 18))
AFFINE = np.diag([3.0, 1.5, 1.0, 1]) + np.pad([[5], [-2], [7]], ((0, 1), (3, 0)))
TURNED = AFFINE.copy()
TURNED[1:3, 1:3] = [[1.2, -0.6], [0.7, 1.1]]  # rotated and sheared in the plane

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def volume():
    noise = np.random.default_rng(0).normal(size=SHAPE) * 0.05
    noise[BLOB] += 1
    return noise.astype(np.float32)


@pytest.fixture(scope="module")
def sr_file(tmp_path_factory):
    """Return the file of a super-resolution that learnt for a few iterations."""
    result = train_superresolution([vessel_phantom(24)[0]], factor=2.0, channels=8, blocks=1, iterations=3)
    path = tmp_path_factory.mktemp("models") / "sr.safetensors"
    result.model.save(path)
    return path


@pytest.fixture
def open_widget(make_napari_viewer, qtbot):
    """Return a function that opens a viewer with a layer "T1" and the widget."""

    def open_(data=None, affine=AFFINE, **options):
        viewer = make_napari_viewer(show=True)
        if data is not None:
            placed = grid_placement(Grid(data.shape, affine, ("mm",) * 3)) if data.ndim == 3 else {}
            viewer.add_image(data, name="T1", **{**placed, **options})
        _, widget = viewer.window.add_plugin_dock_widget("napari-gsvolume", "Explain")
        return viewer, widget

    return open_


def settle(qtbot, widget):
    qtbot.waitUntil(lambda: not widget.busy, timeout=SLOW)


def load(qtbot, widget, spec):
    widget.model.model.value = str(spec)
    click(qtbot, widget.model.load)
    settle(qtbot, widget)


def explained(qtbot, widget, spec, **values):
    """Load a model, fill in the form, press Explain, and wait for the end."""
    load(qtbot, widget, spec)
    for name, value in values.items():
        widget.model.form.fields[name].value = value
    run(qtbot, widget)
    assert widget.explained is not None, widget.status.value


def pixel(plot, point):
    """Return where a point of the plot is on its canvas."""
    left, bottom = plot.axes.transData.transform(point) / plot.canvas.device_pixel_ratio
    return QPoint(round(left), round(plot.canvas.height() - bottom))


def circle(plot, low, high):
    """Draw a lasso around a rectangle of the plot, with the mouse."""
    plot.canvas.draw()
    corners = [low, (high[0], low[1]), high, (low[0], high[1]), low]
    places = [pixel(plot, corner) for corner in corners]
    QTest.mousePress(plot.canvas, LEFT, Qt.KeyboardModifier.NoModifier, places[0])
    for place in places[1:]:
        QTest.mouseMove(plot.canvas, place)
        QTest.qWait(20)
    QTest.mouseRelease(plot.canvas, LEFT, Qt.KeyboardModifier.NoModifier, places[-1])


def one_sentence(text, *words):
    assert text.endswith("."), text
    assert "\n" not in text
    for word in words:
        assert word in text, text


def circle_the_blob(widget):
    """Circle the samples whose first coordinate is that of the blob."""
    plot = widget.samples.plot
    first = plot.points[:, 0]
    sign = np.sign(first[np.abs(first).argmax()])
    middle = sign * np.abs(first).max() / 2
    low, high = (np.array(side) for side in zip(plot.axes.get_xlim(), plot.axes.get_ylim(), strict=True))
    inset = 0.01 * (high - low)
    low, high = low + inset, high - inset
    (low if sign > 0 else high)[0] = middle
    circle(plot, tuple(low), tuple(high))


@pytest.mark.parametrize(("factory", "affine"), [("fine", AFFINE), ("coarse", TURNED)], ids=["plain", "askew"])
def test_a_lasso_marks_the_voxels_of_samples(open_widget, qtbot, volume, factory, affine):
    viewer, widget = open_widget(volume, affine)
    explained(qtbot, widget, f"helpers.planted_network:{factory}", k=2, normalise="none")
    widget.layer.value = "body.0"
    widget.tabs.setCurrentWidget(widget.samples)
    circle_the_blob(widget)
    selected, source = viewer.layers["T1 · selected"], viewer.layers["T1"]
    assert selected.data.shape == SHAPE
    expected = np.zeros(SHAPE, bool)
    expected[BLOB] = True  # whose borders are even
    np.testing.assert_array_equal(selected.data > 0, expected)
    for corner in ((0, 0, 0), (7, 19, 23)):
        np.testing.assert_allclose(selected.data_to_world(corner), source.data_to_world(corner))
    assert f"{expected.sum() // (1 if factory == 'fine' else 4)} of" in widget.samples.message.text()
    # Marked in the plot too, and only there.
    plot = widget.samples.plot
    cells = plot.marked.get_array()[..., 3].ravel() > 0
    np.testing.assert_array_equal(np.flatnonzero(cells), np.unique(plot._cell[widget.samples.chosen > 0]))
    # Another lasso, of nothing: the layer is emptied.
    circle(plot, *(2 * [plot.points.mean(0)]))
    assert not selected.data.any()
    assert viewer.layers["T1 · selected"] is selected


def test_voxels_mark_samples(open_widget, qtbot, volume):
    viewer, widget = open_widget(volume)
    explained(qtbot, widget, "helpers.planted_network:coarse", k=2)
    widget.layer.value = "body.0"
    widget.tabs.setCurrentWidget(widget.samples)
    labels = viewer.add_labels(
        np.zeros(SHAPE, np.uint8), name="mine", **grid_placement(widget.explained.sources[0].grid)
    )
    widget.samples.labels.value = labels
    labels.brush_size = 2
    labels.paint((3, 6, 8), 2)
    qtbot.wait(20)
    found = widget.samples.chosen
    where = widget.explained.explanation.layers["body.0"].places
    painted = labels.data.reshape(8, 10, 2, 12, 2).max((2, 4))
    np.testing.assert_array_equal(found, painted[where.input, *where.index.T])
    assert set(found) == {0, 2}
    assert "under 'mine'" in widget.samples.message.text()
    # The cursor over a voxel puts the ring around its sample.
    viewer.cursor.position = tuple(labels.data_to_world((3, 6, 9)))
    d = widget.explained.explanation.layers["body.0"]
    [sample] = np.flatnonzero((where.input == 3) & (where.index == (3, 4)).all(1))
    np.testing.assert_allclose(
        np.ravel(widget.samples.plot.cursor.get_data()), (d.scores * d.values)[sample, [0, d.k - 1]]
    )
    viewer.cursor.position = (-100, -100, -100)
    assert len(widget.samples.plot.cursor.get_xdata()) == 0
    # What is painted on the layer of the selection marks samples as well.
    widget.samples.labels.value = None
    circle_the_blob(widget)
    selected = viewer.layers["T1 · selected"]
    selected.paint((0, 1, 1), 1)
    qtbot.wait(20)
    assert widget.samples.chosen[(where.input == 0) & (where.index == 0).all(1)] == 1


def test_selections_of_many_samples(open_widget, qtbot):
    rng = np.random.default_rng(0)
    viewer, widget = open_widget(rng.normal(size=(10, 100, 110)).astype(np.float32))
    load(qtbot, widget, "helpers.planted_network:fine")
    widget.model.check(("body.1",))
    run(qtbot, widget)
    widget.tabs.setCurrentWidget(widget.samples)
    qtbot.wait(50)
    d = widget.explained.explanation.layers["body.1"]
    assert d.samples == 100_000
    samples = widget.samples
    for bound in (-0.5, 1.5):
        samples.plot._on_circled([(bound, -9), (9, -9), (9, 9), (bound, 9)])
    np.testing.assert_array_equal(samples.chosen > 0, samples.plot.points[:, 0] > 1.5)
    assert 0 < samples.chosen.sum() < 50_000
    assert viewer.layers["T1 · selected"].data.sum() == samples.chosen.sum()


def test_maps_overlay_exactly(open_widget, qtbot, volume):
    viewer, widget = open_widget(volume, TURNED)
    explained(qtbot, widget, "helpers.planted_network:coarse", k=2, normalise="none")
    widget.layer.value = "body.0"
    widget.tabs.setCurrentWidget(widget.maps)
    click(qtbot, widget.maps.map)
    settle(qtbot, widget)
    source, layer = viewer.layers["T1"], viewer.layers["T1 · body.0 · concept 1"]
    low, high = layer.contrast_limits
    assert low == -high
    d = widget.explained.explanation.layers["body.0"]
    said = volume.reshape(8, 10, 2, 12, 2).mean((2, 4))[..., None] * [1, 0.5, -1] @ d.concepts[:, 0]
    np.testing.assert_allclose(layer.data, said.repeat(2, 1).repeat(2, 2), atol=1e-5)
    # The blob has the same place in the world in both.
    for data, of in ((volume, source), (np.abs(layer.data), layer)):
        where = np.argwhere(data > np.abs(data).max() / 2)
        middle = of.data_to_world(where.mean(0))
        np.testing.assert_allclose(middle, source.data_to_world((3.5, 8.5, 13.5)), atol=1e-6)
    # Another concept, by a click on its value; the map is there already.
    plot = widget.spectra.plot
    widget.tabs.setCurrentWidget(widget.spectra)
    plot.canvas.draw()
    qtbot.mouseClick(plot.canvas, LEFT, pos=pixel(plot, (1, 1.0)))
    assert widget.concept.value == 1
    for _ in range(2):
        click(qtbot, widget.maps.map)
    assert len(viewer.layers) == 2
    assert layer.metadata[METADATA_KEY]["layer"] == "body.0"
    # Ours are not explained in their turn.
    assert [choice.name for choice in widget.image.choices] == ["T1"]


def test_patches_are_where_the_blob_is(open_widget, qtbot, volume):
    viewer, widget = open_widget(volume)
    explained(qtbot, widget, "helpers.planted_network:fine", k=1, normalise="none")
    widget.layer.value = "body.0"
    widget.maps.size.value = 6
    click(qtbot, widget.maps.find)
    settle(qtbot, widget)
    patches = viewer.layers["T1 · patches"]
    np.testing.assert_array_equal(np.unique(patches.data), np.arange(len(widget.maps.plot.panels) + 1))
    np.testing.assert_allclose(patches.data_to_world((1, 2, 3)), viewer.layers["T1"].data_to_world((1, 2, 3)))
    strongest = np.argwhere(patches.data == 1)
    assert len(strongest) == 36
    assert strongest[0, 0] in range(2, 6)
    assert volume[patches.data == 1].mean() > 0.3
    # A click on a picture goes to its slice.
    viewer.dims.set_current_step(0, 0)
    plot = widget.maps.plot
    widget.tabs.setCurrentWidget(widget.maps)
    plot.canvas.draw()
    box = plot.panels[0].get_window_extent()
    ratio = plot.canvas.device_pixel_ratio
    x, y = ((box.x0 + box.x1) / 2 / ratio, plot.canvas.height() - (box.y0 + box.y1) / 2 / ratio)
    qtbot.mouseClick(plot.canvas, LEFT, pos=QPoint(round(x), round(y)))
    assert viewer.dims.current_step[0] == strongest[0, 0]


def test_what_if_of_a_super_resolution(open_widget, qtbot, sr_file):
    data = vessel_phantom(20)[0][:8].astype(np.float32)
    viewer, widget = open_widget(data)
    viewer.dims.set_current_step(0, 3)
    explained(qtbot, widget, sr_file, k=3)
    assert "super-resolution" in widget.model.about.value
    names = list(widget.explained.explanation.layers)
    assert "network.head" in names
    widget.layer.value = "network.head"
    widget.tabs.setCurrentWidget(widget.what_if)
    assert not widget.what_if.channel.visible
    tab = widget.what_if
    tab.amount.value = 2
    settle(qtbot, widget)
    layer, change = viewer.layers["T1 · what if"], viewer.layers["T1 · what if change"]
    assert layer.data.shape == (1, 40, 40)
    one = change.data.copy()
    assert np.abs(one).max() > 0
    # In place: faces agree, and the projection keeps what was measured.
    source = viewer.layers["T1"]
    for corner in ((-0.5, -0.5, -0.5), (0.5, 39.5, 39.5)):
        at = np.array([3 + corner[0], (corner[1] + 0.5) / 2 - 0.5, (corner[2] + 0.5) / 2 - 0.5])
        np.testing.assert_allclose(layer.data_to_world(corner), source.data_to_world(at), atol=1e-9)
    np.testing.assert_allclose(layer.data.reshape(20, 2, 20, 2).mean((1, 3)), data[3], atol=1e-5)
    # Another amount, in the same layers; back at 0 nothing is changed.
    tab.amount.value = -3
    settle(qtbot, widget)
    assert viewer.layers["T1 · what if change"] is change
    assert np.abs(change.data - one).max() > 0
    click(qtbot, tab.reset)
    settle(qtbot, widget)
    np.testing.assert_allclose(change.data, 0, atol=1e-6)
    # It follows the viewer.
    viewer.dims.set_current_step(0, 5)
    settle(qtbot, widget)
    np.testing.assert_allclose(layer.data.reshape(20, 2, 20, 2).mean((1, 3)), data[5], atol=1e-5)
    np.testing.assert_allclose(layer.data_to_world((0, 0, 0))[0], source.data_to_world((5, 0, 0))[0])


def test_what_if_moves_the_output_by_what_is_added(open_widget, qtbot, volume):
    viewer, widget = open_widget(volume)
    explained(qtbot, widget, "helpers.planted_network:fine", k=1, normalise="none")
    widget.layer.value = "body.0"
    widget.tabs.setCurrentWidget(widget.what_if)
    widget.what_if.amount.value = 1.5
    settle(qtbot, widget)
    d = widget.explained.explanation.layers["body.0"]
    added = 1.5 * d.values[0] / np.sqrt(d.samples) * d.concepts[:, 0]  # before the ReLU
    index = viewer.dims.current_step[0]
    features = volume[index][..., None] * [1, 0.5, -1]
    expected = np.maximum(features + added, 0) @ [1, 0, -1] - np.maximum(features, 0) @ [1, 0, -1]
    np.testing.assert_allclose(viewer.layers["T1 · what if change"].data[0], expected, atol=1e-5)


def test_a_painted_concept(open_widget, qtbot, volume):
    viewer, widget = open_widget(volume)
    explained(qtbot, widget, "helpers.planted_network:fine", k=2, normalise="none")
    widget.layer.value = "body.0"
    widget.tabs.setCurrentWidget(widget.concepts)
    click(qtbot, widget.concepts.test)
    one_sentence(widget.status.value, "no labels layer")
    painted = np.zeros(SHAPE, np.uint8)
    painted[(3, *BLOB[1:])] = 1
    labels = viewer.add_labels(painted, name="blob", **grid_placement(widget.explained.sources[0].grid))
    click(qtbot, widget.concepts.test)
    settle(qtbot, widget)
    one_sentence(widget.status.value, "painted", "two")
    painted[BLOB] = 1
    labels.data = painted
    click(qtbot, widget.concepts.test)
    settle(qtbot, widget)
    said = widget.concepts.message.text()
    assert "accuracy of 0.99" in said or "accuracy of 1.0" in said
    assert "TCAV score" in said
    assert "4 inputs are painted" in said
    bars = [bar.get_height() for bar in widget.concepts.plot.axes.patches]
    assert max(abs(height) for height in bars) > 0.8
    # Labels of other voxels are refused.
    viewer.layers.remove(labels)
    viewer.add_labels(np.zeros((3, 4, 5), np.uint8), name="other")
    click(qtbot, widget.concepts.test)
    one_sentence(widget.status.value, "voxels")


def test_two_images_are_groups(open_widget, qtbot, volume):
    viewer, widget = open_widget(volume)
    other = (volume * 3 + 1).astype(np.float32)
    viewer.add_image(other, name="T2", **grid_placement(Grid(SHAPE, AFFINE, ("mm",) * 3)))
    widget.image.value = viewer.layers["T1"]
    widget.more.value = [viewer.layers["T2"]]
    explained(qtbot, widget, "helpers.planted_network:fine", k=2, normalise="none")
    assert len(widget.explained.explanation.images.places) == 16
    assert "T2" in widget.findings.text.toPlainText()
    widget.layer.value = "body.0"
    widget.tabs.setCurrentWidget(widget.samples)
    widget.samples.colour.value = "image"
    assert [text.get_text() for text in widget.samples.plot.axes.get_legend().get_texts()] == ["T1", "T2"]
    widget.samples.select(np.ones(len(widget.samples.plot.points), bool))
    assert (viewer.layers["T1 · selected"].data == 1).all()
    assert (viewer.layers["T2 · selected"].data == 1).all()


def test_the_report_is_written(open_widget, qtbot, volume, tmp_path, monkeypatch):
    _, widget = open_widget(volume)
    assert not widget.export.enabled
    explained(qtbot, widget, "helpers.planted_network:fine", k=2)
    monkeypatch.setattr(QFileDialog, "getExistingDirectory", lambda *_: str(tmp_path / "report"))
    click(qtbot, widget.export)
    settle(qtbot, widget)
    page = (tmp_path / "report" / "report.html").read_text(encoding="utf-8")
    assert "planted_network:fine" in page
    assert page.count("<img") >= 3
    assert "http" not in page.replace("http://www.w3.org", "")  # needs nothing besides itself
    rows = (tmp_path / "report" / "spectra.csv").read_text(encoding="utf-8").splitlines()
    assert any(row.startswith("body.0,0,") for row in rows)
    assert "report.html" in widget.status.value


def test_a_training_is_followed(open_widget, qtbot, tmp_path, monkeypatch):
    data = vessel_phantom(24)[0].astype(np.float32)
    model = train_superresolution([data], factor=2.0, channels=8, blocks=1, iterations=2).model
    (tmp_path / "run").mkdir()
    for epoch in range(3):
        for p in model.scheme.parameters():
            p.data.mul_(1 + 0.1 * epoch)
        model.save(tmp_path / "run" / f"epoch-{epoch}.safetensors")
    _, widget = open_widget(data[:10])
    widget.tabs.setCurrentWidget(widget.findings)
    monkeypatch.setattr(QFileDialog, "getExistingDirectory", lambda *_: str(tmp_path / "run"))
    click(qtbot, widget.findings.checkpoints)
    settle(qtbot, widget)
    assert "3 of 3" in widget.status.value
    followed = widget.findings._training
    widget.findings.layer.value = "network.head"
    shown = widget.findings.plot.ranks.lines[-1]
    np.testing.assert_allclose(shown.get_xdata(), (0, 1, 2))
    np.testing.assert_allclose(shown.get_ydata(), followed.layers["network.head"].effective_ranks)
    # The table of it says the same.
    from napari_gsvolume.explain.models.inputs import Volume, prepare_images
    from napari_gsvolume.explain.models.loading import load_model
    from napari_gsvolume.explain.settings import TrackSettings
    from napari_gsvolume.explain.tracking.tracker import Tracker

    loaded = load_model(tmp_path / "run" / "epoch-0.safetensors")
    settings = TrackSettings(slices=4)
    tracker = Tracker(loaded.model, None, prepare_images(loaded, [Volume.of("T1", data[:10])], settings), k=4)
    for epoch in (0, 1):
        tracker.record(epoch)
    tracker.to_csv(tmp_path / "evolution.csv")
    monkeypatch.setattr(QFileDialog, "getOpenFileName", lambda *_: (str(tmp_path / "evolution.csv"), ""))
    click(qtbot, widget.findings.table)
    of, read = tracker.evolution("network.head"), widget.findings._training.layers["network.head"]
    for name in ("epochs", "values", "shares", "to_first", "effective_ranks", "stable_ranks", "angles"):
        np.testing.assert_allclose(getattr(read, name), getattr(of, name), rtol=1e-6)
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    monkeypatch.setattr(QFileDialog, "getOpenFileName", lambda *_: (str(tmp_path / "other.csv"), ""))
    click(qtbot, widget.findings.table)
    one_sentence(widget.status.value, "other.csv", "tracked training")


def test_only_what_is_checked_is_explained(open_widget, qtbot, volume):
    _, widget = open_widget(volume)
    load(qtbot, widget, "helpers.planted_network:fine")
    tree = widget.model.tree
    body = tree.topLevelItem(0)
    assert [body.child(k).text(0) for k in range(2)] == ["0", "1"]
    assert widget.model.layers == ("body.0", "head")
    body.child(0).setCheckState(0, Qt.CheckState.Unchecked)
    body.child(1).setCheckState(0, Qt.CheckState.Checked)
    run(qtbot, widget)
    assert list(widget.explained.explanation.layers) == ["body.1", "head"]
    assert body.child(1).text(1) == "20 x 24 x 3"
    widget.model.check(())
    click(qtbot, widget.button)
    one_sentence(widget.status.value, "No layer is checked")


def test_what_cannot_be_explained_is_said_in_a_sentence(open_widget, qtbot, volume, tmp_path):
    viewer, widget = open_widget()
    click(qtbot, widget.button)
    one_sentence(widget.status.value, "no model")
    (tmp_path / "wrong.safetensors").write_bytes(b"nothing of the kind")
    for spec, words in (
        (tmp_path / "wrong.safetensors", "damaged"),
        (tmp_path / "missing.safetensors", "cannot be read"),
        ("helpers.planted_network:nothing", "has no nothing"),
        ("no_such_module:f", "cannot be imported"),
        ("nonsense", "no model"),
    ):
        load(qtbot, widget, spec)
        one_sentence(widget.status.value, words)
        assert widget.model.loaded is None
    load(qtbot, widget, "helpers.planted_network:broken")
    click(qtbot, widget.button)
    one_sentence(widget.status.value, "no image layer")
    viewer.add_image(np.zeros((20, 24, 3), np.uint8), rgb=True, name="colours")
    click(qtbot, widget.button)
    one_sentence(widget.status.value, "RGB")
    viewer.layers.clear()
    viewer.add_image(volume, name="T1")
    run(qtbot, widget)
    one_sentence(widget.status.value, "body", "NaN")
    assert widget.explained is None
    bad = volume.copy()
    bad[0, 0, 0] = np.nan
    viewer.layers["T1"].data = bad
    load(qtbot, widget, "helpers.planted_network:fine")
    run(qtbot, widget)
    one_sentence(widget.status.value, "T1", "NaN")
    # After all that it works.
    viewer.layers["T1"].data = volume
    run(qtbot, widget)
    assert widget.explained is not None


@pytest.mark.parametrize("how", ["dock", "window"])
def test_closing_stops_the_worker(open_widget, qtbot, volume, how):
    viewer, widget = open_widget(volume)
    load(qtbot, widget, "helpers.planted_network:slow")
    widget.model.form.fields["size"].value = 8
    click(qtbot, widget.button)
    assert widget.button.text == "Stop"
    worker, stopped = widget._worker, widget._stop
    if how == "dock":
        viewer.window.remove_dock_widget(widget.native)
        viewer.cursor.position = (0, 0, 0)  # nobody listens any more
        viewer.dims.set_current_step(0, 1)
    else:
        viewer.close()
    del widget
    gc.collect()
    qtbot.waitUntil(stopped.is_set, timeout=5000)
    deadline = time.monotonic() + 20
    while worker.is_running and time.monotonic() < deadline:
        qtbot.wait(20)
    assert not worker.is_running
