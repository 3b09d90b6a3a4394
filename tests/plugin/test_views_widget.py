"""The Views widget, used as a person would: choose colours, train, watch, look at the model from the camera, save."""

import json

import numpy as np
import pytest
from imageio.v3 import imread
from qtpy.QtCore import QPoint, Qt
from qtpy.QtGui import QColor
from qtpy.QtWidgets import QColorDialog, QFileDialog

from helpers.clicking import LEFT, SLOW, click, fill, run
from napari_gsvolume.grid import Grid
from napari_gsvolume.metrics import psnr_between
from napari_gsvolume.phantoms import vessel_phantom
from napari_gsvolume.plugin.layers.conversion import METADATA_KEY, SourceVolume, grid_placement
from napari_gsvolume.plugin.widgets.shared.camera import viewer_camera
from napari_gsvolume.plugin.widgets.views import worker
from napari_gsvolume.plugin.widgets.views.worker import SceneSource, SplatModel
from napari_gsvolume.rendering.cameras import Cameras
from napari_gsvolume.rendering.scene import Scene
from napari_gsvolume.rendering.splats.ply import read_splats
from napari_gsvolume.rendering.splats.training import train_splats
from napari_gsvolume.rendering.volume.dvr import render_views
from napari_gsvolume.rendering.volume.transfer_functions import TransferFunction
from napari_gsvolume.units import voxel_size_mm

SIDE = 24
GRID = Grid((SIDE,) * 3, np.diag([2.0, 1.5, 1.0, 1]) + np.pad([[5], [-2], [7]], ((0, 1), (3, 0))), ("mm",) * 3)

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def volume():
    return vessel_phantom(SIDE)[0]


@pytest.fixture
def open_widget(make_napari_viewer):
    """Return a function that opens a viewer with a layer "CT" and the widget, set to little work."""

    def open_(data=None, ndisplay=3, **values):
        viewer = make_napari_viewer(show=True)
        if data is not None:
            viewer.add_image(data, name="CT", **grid_placement(GRID))
        viewer.dims.ndisplay = ndisplay
        _, widget = viewer.window.add_plugin_dock_widget("napari-gsvolume", "Views")
        fill(
            widget, gaussians=200, views=6, image_size=32, sh_degree=1, time_limit=None, iterations=40, held_out_views=2
        )
        fill(widget, **values)
        widget.panel.pixels.value = 48
        widget.native.setFixedWidth(420)  # else a scroll bar would make the canvas narrower, and its pictures
        return viewer, widget

    return open_


def wait(qtbot, widget):
    qtbot.waitUntil(lambda: not widget.running, timeout=SLOW)


def press(qtbot, widget, button):
    """Click a button that makes pictures, and wait for them."""
    click(qtbot, button)
    assert widget.running, widget.status.value
    wait(qtbot, widget)


def entry(layer):
    return layer.metadata[METADATA_KEY]


def labels():
    made = np.zeros((SIDE,) * 3, int)
    made[:12], made[12:] = 1, 7
    return made


def test_train_and_look_from_the_camera(open_widget, qtbot, volume, tmp_path):
    viewer, widget = open_widget(volume)
    assert not widget.panel.visible
    assert widget.button.text == "Train"
    run(qtbot, widget)
    part = widget.models["CT"]
    assert f"{part.trained.psnr_db:.2f} dB" in widget.status.value
    assert "SSIM" in widget.status.value
    assert (widget.button.text, widget.progress.value) == ("Train", widget.progress.max)
    # Reference and view side by side, and the curves.
    assert widget.picture.picture.shape == (32, 66, 3)
    assert widget.picture.picture[:, 34:].max() > 0.05
    assert widget.plot.quality.get_visible()
    assert len(widget.plot.axes.lines[0].get_ydata()) >= 2
    assert widget.panel.visible
    # A view: where the volume is on the canvas, its splats are in the picture.
    press(qtbot, widget, widget.panel.view)
    view = viewer.layers["CT · view"]
    assert view.rgb
    assert view.data.dtype == np.uint8
    assert (max(view.data.shape[:2]), view.data.shape[2]) == (48, 3)
    assert "hidden" in widget.status.value
    assert not view.visible
    assert entry(view)["parts"]["CT"]["metrics"]["psnr_db"] == part.trained.psnr_db
    seen = viewer_camera(viewer, GRID, 48)
    np.testing.assert_allclose(entry(view)["camera"]["matrices"], seen.cameras.matrices)
    again = seen.as_displayed(part.at_resolution(seen.cameras.pixel_size_mm).render(seen.cameras)[0].numpy())
    np.testing.assert_allclose(view.data / 255, again.clip(0, 1), atol=0.003)
    # The volume itself, and how far off the splats are.
    press(qtbot, widget, widget.dvr)
    reference = viewer.layers["CT · DVR"]
    assert reference.data.shape == view.data.shape
    press(qtbot, widget, widget.panel.difference)
    difference = viewer.layers["CT · difference"]
    assert not difference.rgb
    expected = np.abs(view.data.astype(float) - reference.data).mean(-1) / 255
    np.testing.assert_allclose(difference.data, expected, atol=0.005)
    assert entry(difference)["psnr_db"] > 10
    # From another camera: in place.
    first = view.data.copy()
    viewer.scene.camera.angles = (20, 60, 10)
    press(qtbot, widget, widget.panel.view)
    assert viewer.layers["CT · view"] is view
    assert not np.array_equal(view.data, first)
    # All around; the first as the view. That is for 2D.
    widget.panel.frames.value = 3
    press(qtbot, widget, widget.panel.turntable)
    stack = viewer.layers["CT · turntable"]
    assert (stack.data.shape, stack.data.dtype) == ((3, *view.data.shape), np.uint8)
    np.testing.assert_array_equal(stack.data[0], view.data)
    assert not np.array_equal(stack.data[1], stack.data[0])
    assert viewer.dims.ndisplay == 2
    assert [layer.name for layer in viewer.layers if layer.visible] == ["CT · turntable"]
    # Pictures are not trained on in their turn.
    assert [layer.name for layer in widget.image.choices] == ["CT"]


def test_a_second_run_updates_in_place(open_widget, qtbot, volume):
    viewer, widget = open_widget(volume)
    run(qtbot, widget)
    first = widget.models["CT"]
    viewer.layers["CT"].contrast_limits = (0.3, 0.9)
    fill(widget, iterations=10)
    run(qtbot, widget)
    assert list(widget.models) == ["CT"]
    assert widget.models["CT"] is not first
    assert len(viewer.layers) == 1


def test_each_interval_is_a_part(open_widget, qtbot, volume):
    _, widget = open_widget(volume)
    for bad in ("bone", "bone 300 200", "200 300", "a 1 2; a 3 4"):
        widget.intervals.value = bad
        click(qtbot, widget.button)
        assert "is no interval" in widget.status.value
    widget.intervals.value = "thin wall 0.2 0.5; core 0.5 2"
    run(qtbot, widget)
    assert list(widget.models) == ["CT · thin wall", "CT · core"]
    wall, core = (widget.models[f"CT · {name}"].scene_source for name in ("thin wall", "core"))
    at = [0.1, 0.4, 0.8]
    opacities = [
        subject.load_scene().transfer_function.evaluate(at)[:, 3] for subject in (wall, core, wall.union(core))
    ]
    np.testing.assert_array_equal(opacities[0] > 0, [False, True, False])
    np.testing.assert_array_equal(opacities[1] > 0, [False, False, True])
    np.testing.assert_allclose(opacities[2], opacities[0] + opacities[1])


def test_parts_that_are_shown_and_hidden(open_widget, qtbot, volume):
    viewer, widget = open_widget(volume, iterations=15)
    assert not widget.each.visible
    widget.part.value = viewer.add_labels(labels(), name="organs")
    qtbot.waitUntil(lambda: widget.each.visible)
    widget.each.value = "each label on its own"
    run(qtbot, widget)
    assert list(widget.models) == ["CT · label 1", "CT · label 7"]
    assert [part.name for part in widget.panel.checked] == list(widget.models)
    press(qtbot, widget, widget.panel.view)
    view = viewer.layers["CT · view"]
    both = view.data.astype(int)
    widget.panel.check("CT · label 7", False)
    press(qtbot, widget, widget.panel.view)
    one = view.data.astype(int)
    assert np.abs(both - one).max() > 20
    press(qtbot, widget, widget.panel.difference)
    seen = viewer_camera(viewer, GRID, 48)
    subject = widget.models["CT · label 1"].scene_source
    image = render_views(
        volume,
        GRID.voxel_size,
        seen.cameras,
        transfer_function=subject.make_transfer_function(volume),
        mask=labels() == 1,
    )
    np.testing.assert_allclose(
        viewer.layers["CT · difference"].data, np.abs(one / 255 - seen.as_displayed(image[0])).mean(-1), atol=0.005
    )
    widget.panel.check("CT · label 1", False)
    click(qtbot, widget.panel.view)
    assert "No model is checked" in widget.status.value
    widget.each.value = "all labels together"
    run(qtbot, widget)
    assert [part.name for part in widget.panel.checked] == ["CT · labels"]


def test_stop_keeps_what_there_is(open_widget, qtbot, volume):
    _, widget = open_widget(volume, iterations=1_000_000)
    click(qtbot, widget.button)
    assert widget.button.text == "Stop"
    assert not widget.panel.view.enabled
    qtbot.waitUntil(lambda: "loss" in widget.status.value, timeout=SLOW)
    click(qtbot, widget.button)
    wait(qtbot, widget)
    assert "Stopped" in widget.status.value
    assert len(widget.models["CT"].splats) > 0
    assert widget.panel.view.enabled


def test_closing_the_dock_ends_the_training(open_widget, qtbot, volume):
    viewer, widget = open_widget(volume, iterations=1_000_000)
    click(qtbot, widget.button)
    qtbot.waitUntil(lambda: "loss" in widget.status.value, timeout=SLOW)
    viewer.window.remove_dock_widget(widget.native)
    wait(qtbot, widget)


def test_following_the_camera(open_widget, qtbot, volume):
    viewer, widget = open_widget(volume, iterations=5)
    run(qtbot, widget)
    live = widget.panel.live
    assert live.isHidden()
    widget.panel.follow.value = True
    qtbot.waitUntil(lambda: live.picture is not None, timeout=SLOW)
    assert live.picture.shape[2] == 3
    for change in ({"angles": (10, 50, 20)}, {"zoom": 30.0}, {"perspective": 40.0}):
        before = live.picture
        for name, value in change.items():
            setattr(viewer.scene.camera, name, value)
        qtbot.waitUntil(lambda before=before: live.picture is not before, timeout=SLOW)
    widget.panel.check("CT", False)
    qtbot.waitUntil(lambda: live.picture is None, timeout=SLOW)
    widget.panel.follow.value = False
    assert live.isHidden()


@pytest.mark.parametrize("perspective", [0, 45])
@pytest.mark.parametrize("flipped", [False, True])
@pytest.mark.parametrize("ndisplay", [2, 3])
def test_pictures_are_what_the_canvas_shows(make_napari_viewer, ndisplay, flipped, perspective):
    """Where a point is on the canvas, it is in the picture."""
    viewer = make_napari_viewer(show=True)
    layer = viewer.add_image(np.zeros(GRID.shape, np.float32), **grid_placement(GRID))
    camera = viewer.scene.camera
    if flipped:
        camera.orientation2d = ("up", "right")
    viewer.dims.order = (1, 0, 2)
    viewer.dims.ndisplay = ndisplay
    viewer.reset_view()
    camera.zoom *= 1.3
    camera.center = np.add(camera.center, (0, 3, -2))
    if ndisplay == 3:
        camera.angles, camera.perspective = (20, -50, 30), perspective
    canvas = viewer.window._qt_viewer.canvas
    canvas.on_draw(None)
    seen = viewer_camera(viewer, GRID, 300)
    assert seen.cameras.orthographic == (ndisplay == 2 or not perspective)
    node = canvas.layer_to_visual[layer].node
    point = np.array([3.0, 15.0, 5.0])
    world = layer.data_to_world(point)
    shown = np.array(world)[list(viewer.dims.order)][-ndisplay:]
    place = canvas.view.scene.transform.map([*shown[::-1], *([0] * (3 - ndisplay)), 1])
    place = place[:2] / place[3]
    (matrix,), (K,) = seen.cameras.matrices, seen.cameras.intrinsics
    mm = ((point - (np.array(GRID.shape) - 1) / 2) * GRID.voxel_size)[::-1]
    x, y, z = matrix[:3, :3] @ mm + matrix[:3, 3]
    u, v = (x, y) if seen.cameras.orthographic else (x / z, y / z)
    found = np.array([K[0, 0] * u + K[0, 2], K[1, 1] * v + K[1, 2]])
    if seen.mirrored:
        found[0] = seen.cameras.image_size[1] - found[0]
    factor = 300 / max(viewer.canvas.size)
    assert node is not None
    np.testing.assert_allclose(found, place * factor, atol=1.0)


def test_flat_pictures_lie_where_the_canvas_shows_them(open_widget, qtbot, volume):
    viewer, widget = open_widget(volume, ndisplay=2)
    widget.mode.value = "mip"
    press(qtbot, widget, widget.dvr)
    made = viewer.layers["CT · DVR"]
    assert not made.rgb
    assert made.visible
    assert not viewer.layers["CT"].visible
    middle = made.data_to_world((np.array(made.data.shape) - 1) / 2)
    np.testing.assert_allclose(middle, viewer.scene.camera.center[-2:], atol=1e-6)
    # Largest intensities along the first axis, column by column.
    column = np.unravel_index(volume.max(0).argmax(), volume.shape[1:])
    world = GRID.affine[:3] @ [0, *column, 1]
    row, col = np.round(made.world_to_data(world[1:])).astype(int)
    assert made.data[row - 1 : row + 2, col - 1 : col + 2].max() > 0.8 * volume.max()
    widget.mode.value = "dvr"
    press(qtbot, widget, widget.dvr)
    assert viewer.layers["CT · DVR"].rgb


def test_colors_of_the_layer(open_widget, qtbot, volume):
    viewer, widget = open_widget(volume)
    layer = viewer.layers["CT"]
    layer.colormap, layer.contrast_limits, layer.gamma = "magma", (0.1, 0.7), 1.5
    found = widget.transfer_panel.factory()(volume)
    expected = TransferFunction.from_colormap(layer.colormap.map(np.linspace(0, 1, 256)), (0.1, 0.7), 1.5)
    for x in (0.05, 0.3, 0.6, 0.9):
        np.testing.assert_allclose(found.evaluate(x), expected.evaluate(x))
    widget.transfer_panel.fold.expand()
    before = widget.transfer_panel.editor.transfer_function
    assert len(before.values) <= 16
    layer.contrast_limits = (0.2, 0.8)
    after = widget.transfer_panel.editor.transfer_function
    np.testing.assert_allclose((after.values[0], after.values[-1]), (0.2, 0.8))
    widget.transfer_panel.choice.value = "mr"
    assert widget.transfer_panel.shading.value
    np.testing.assert_allclose(
        widget.transfer_panel.editor.transfer_function.values, TransferFunction.from_preset("mr", volume).values
    )


def test_the_editor(open_widget, qtbot, volume, tmp_path, monkeypatch):
    _, widget = open_widget(volume)
    panel, editor = widget.transfer_panel, widget.transfer_panel.editor
    panel.choice.value = "mr"
    panel.fold.expand(animate=False)
    qtbot.waitUntil(lambda: editor.isVisible() and editor.visibleRegion().boundingRect().height() > 100)

    def at(k):
        curve = editor.transfer_function
        return editor.to_position(curve.values[k], curve.opacities[k]).toPoint()

    # Drag.
    values = editor.transfer_function.values.copy()
    start, target = at(1), editor.to_position(values[1], 0.9).toPoint()
    qtbot.mousePress(editor, LEFT, pos=start)
    drag(editor, target)
    qtbot.mouseRelease(editor, LEFT, pos=target)
    assert panel.choice.value == "edited"
    assert editor.transfer_function.opacities[1] == pytest.approx(0.9, abs=0.02)
    assert panel.factory()(volume) is editor.transfer_function
    # It stays between its neighbours.
    qtbot.mousePress(editor, LEFT, pos=at(1))
    drag(editor, QPoint(editor.width(), target.y()))
    qtbot.mouseRelease(editor, LEFT, pos=target)
    assert editor.transfer_function.values[1] == editor.transfer_function.values[2]
    editor.move_point(1, float(values[1]), 0.9)
    # Add, choose its colour, remove by key and by a right click.
    new = editor.to_position((values[2] + values[3]) / 2, 0.1).toPoint()
    qtbot.mouseDClick(editor, LEFT, pos=new)
    assert len(editor.transfer_function.values) == 5
    assert editor.selected == 3
    monkeypatch.setattr(QColorDialog, "getColor", lambda *_: QColor(255, 0, 0))
    qtbot.mouseDClick(editor, LEFT, Qt.KeyboardModifier.ControlModifier, at(3))
    np.testing.assert_allclose(editor.transfer_function.colors[3], (1, 0, 0), atol=1e-4)
    panel.save_to(tmp_path / "mine")
    qtbot.keyClick(editor, Qt.Key.Key_Delete)
    assert len(editor.transfer_function.values) == 4
    qtbot.mouseClick(editor, Qt.MouseButton.RightButton, pos=at(0))
    assert len(editor.transfer_function.values) == 3
    # The file has what was saved, and the shading.
    panel.load_from(tmp_path / "mine.json")
    assert len(editor.transfer_function.values) == 5
    assert editor.transfer_function.shading
    widget.transfer_panel.choice.value = "from a file"
    widget.transfer_panel.file.value = tmp_path / "mine.json"
    np.testing.assert_allclose(panel.factory()(volume).colors[3], (1, 0, 0), atol=1e-4)
    assert not editor.grab().isNull()


def drag(editor, to):
    """Move the mouse with its button down, which qtbot cannot."""
    from qtpy.QtCore import QEvent, QPointF
    from qtpy.QtGui import QMouseEvent
    from qtpy.QtWidgets import QApplication

    none = Qt.KeyboardModifier.NoModifier
    there = QPointF(to)
    QApplication.sendEvent(
        editor, QMouseEvent(QEvent.Type.MouseMove, there, QPointF(editor.mapToGlobal(to)), LEFT, LEFT, none)
    )


def test_files(open_widget, qtbot, volume, tmp_path, monkeypatch):
    viewer, widget = open_widget(volume, iterations=5)
    run(qtbot, widget)
    widget.panel.save_as(tmp_path / "model")
    assert "Saved model.ply" in widget.status.value
    part = widget.models["CT"]
    np.testing.assert_array_equal(read_splats(tmp_path / "model.ply").means, part.splats.means)
    monkeypatch.setattr(QFileDialog, "getOpenFileName", lambda *_: (str(tmp_path / "model.ply"), ""))
    click(qtbot, widget.open_file)
    assert [part.name for part in widget.panel.checked] == ["CT", "model.ply"]
    widget.panel.check("CT", False)
    monkeypatch.setattr(QFileDialog, "getSaveFileName", lambda *_: (str(tmp_path / "one"), "Picture (*.png)"))
    click(qtbot, widget.panel.save)
    wait(qtbot, widget)
    assert widget.status.value == "Saved one.png."
    press(qtbot, widget, widget.panel.view)
    np.testing.assert_array_equal(imread(tmp_path / "one.png"), viewer.layers["CT · view"].data)
    click(qtbot, widget.panel.difference)
    assert "not trained here" in widget.status.value
    monkeypatch.setattr(worker.importlib.util, "find_spec", lambda _: None)
    widget.panel.save_as(tmp_path / "film.mp4")
    assert "pip install imageio-ffmpeg" in widget.status.value
    widget.panel.save_as(tmp_path / "nowhere" / "model.ply")
    assert "cannot be written" in widget.status.value


def test_models_of_two_volumes(open_widget, qtbot, volume):
    """What was trained before is kept, unchecked; a model of a series is of one of its volumes."""
    viewer, widget = open_widget(volume, iterations=5)
    run(qtbot, widget)
    widget.image.value = viewer.add_image(np.stack([np.zeros_like(volume), volume]), name="series")
    widget.time_point.value = 1
    run(qtbot, widget)
    assert list(widget.models) == ["CT", "series"]
    assert [part.name for part in widget.panel.checked] == ["series"]
    np.testing.assert_array_equal(widget.models["series"].scene_source.load_scene().volume, volume)
    widget.panel.check("CT")
    click(qtbot, widget.panel.difference)
    assert "several volumes" in widget.status.value


def test_a_turntable_can_be_stopped(open_widget, qtbot, volume):
    viewer, widget = open_widget(volume, iterations=5)
    run(qtbot, widget)
    widget.panel.frames.value = 1000
    click(qtbot, widget.panel.turntable)
    qtbot.waitUntil(lambda: "of 1000 pictures" in widget.status.value, timeout=SLOW)
    assert widget.button.text == "Stop"
    click(qtbot, widget.button)
    wait(qtbot, widget)
    assert "Stopped" in widget.status.value
    assert len(viewer.layers) == 1


def test_splats_of_a_file_without_a_training(open_widget, qtbot, volume, tmp_path):
    _, widget = open_widget(volume, iterations=5)
    (tmp_path / "bad.ply").write_bytes(b"ply\nnonsense")
    widget.open_splats(tmp_path / "bad.ply")
    assert "bad.ply cannot be read" in widget.status.value
    assert not widget.panel.visible


@pytest.mark.filterwarnings("ignore")
def test_bad_input_gets_one_sentence(open_widget, qtbot, volume, tmp_path):
    viewer, widget = open_widget()

    def said(*words):
        click(qtbot, widget.button)
        wait(qtbot, widget)
        text = widget.status.value
        assert all(word in text for word in words), text
        assert text.endswith(".")
        assert not widget.models

    said("no image layer")
    click(qtbot, widget.dvr)
    assert "no image layer" in widget.status.value
    widget.image.value = viewer.add_image(np.ones((5, 6)), name="flat")
    said("'flat' has two dimensions")
    widget.image.value = viewer.add_image(np.ones((5, 6, 7, 3), np.uint8), rgb=True, name="colours")
    said("'colours' is an RGB image")
    holes = volume.copy()
    holes[3, 4, 5] = np.nan
    widget.image.value = viewer.add_image(holes, name="holes", contrast_limits=(0, 1))
    said("NaN")
    widget.image.value = viewer.add_image(volume, name="good")
    widget.transfer_panel.choice.value = "ct-bone"
    said("ct-bone", "HU")
    widget.transfer_panel.choice.value = "from a file"
    said("Choose a file")
    (tmp_path / "damaged.json").write_text("{")
    widget.transfer_panel.file.value = tmp_path / "damaged.json"
    said("damaged.json is not JSON")
    clear = TransferFunction(np.array([0.0, 1]), np.ones((2, 3)), np.zeros(2))
    (tmp_path / "clear.json").write_text(json.dumps(clear.to_dict()))
    widget.transfer_panel.file.value = tmp_path / "clear.json"
    said("transparent")
    widget.transfer_panel.choice.value = "gray"
    widget.part.value = viewer.add_labels(np.ones((4, 4, 4), int), name="few")
    said("'few'", "4 x 4 x 4")
    widget.part.value = viewer.add_labels(np.zeros(volume.shape, int), name="none")
    said("'none'", "no label")


def test_from_closer_the_blur_of_the_training_stays(volume):
    """Else splats were thin and dark where pixels are smaller than those they were trained with."""
    voxel_size = voxel_size_mm(GRID)
    scene = Scene(volume, voxel_size, TransferFunction.from_preset("mr", volume))
    trained = train_splats(scene, gaussians=300, views=8, image_size=32, sh_degree=0, iterations=150, held_out_views=2)
    source = SourceVolume("CT", volume, GRID, {}, (0, 1))
    part = SplatModel("CT", trained.splats, source, SceneSource(source, lambda _: scene.transfer_function), trained)
    near, far = scene.held_out_cameras(2, 96), scene.held_out_cameras(2, 32)
    pixels = [cameras.pixel_size_mm for cameras in (near, far)]
    assert part.at_resolution(pixels[1]) is part.splats
    true = np.stack(list(scene.reference_images(near)))
    plain, filled = (
        psnr_between(true, s.render(near).numpy(), 1) for s in (part.splats, part.at_resolution(pixels[0]))
    )
    assert filled > plain + 1
    assert SplatModel("file", trained.splats, source).at_resolution(pixels[0]) is trained.splats


def test_cameras_of_a_turntable_see_the_same_ball(open_widget, volume):
    viewer, _ = open_widget(volume)
    viewer.scene.camera.angles = (20, 60, 10)
    seen = viewer_camera(viewer, GRID, 32)
    turned = seen.orbit(4)
    assert isinstance(turned.cameras, Cameras)
    np.testing.assert_allclose(turned.cameras.matrices[0], seen.cameras.matrices[0])
    np.testing.assert_allclose(turned.cameras.matrices[2, 2, :3], -seen.cameras.matrices[0, 2, :3], atol=1e-9)
    # What is up stays up.
    np.testing.assert_allclose(turned.cameras.matrices[:, 1, :3], np.tile(seen.cameras.matrices[0, 1, :3], (4, 1)))
