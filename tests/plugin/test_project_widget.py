"""The Project widget, used as a person would: choose a layer, click, look at the stack, follow the camera."""

import numpy as np
import pytest
import torch

from helpers.clicking import SLOW, click, fill, run
from napari_gsvolume import GaussianVolume, Grid
from napari_gsvolume.phantoms import vessel_phantom
from napari_gsvolume.plugin.layers.conversion import grid_placement
from napari_gsvolume.plugin.layers.gaussians import gaussian_layer
from napari_gsvolume.plugin.layers.projections import scan_of
from napari_gsvolume.plugin.widgets.shared.camera import scan_along_view
from napari_gsvolume.plugin.widgets.tomography.project import ProjectWidget
from napari_gsvolume.tomography.beer_lambert import hounsfield_to_attenuation
from napari_gsvolume.tomography.presets import c_arm_scan, spread_angles
from napari_gsvolume.tomography.projections import project
from napari_gsvolume.tomography.scan import circular_scan

GRID = Grid((24, 22, 20), np.diag([2.0, 1.5, 1.0, 1]), ("mm",) * 3)


@pytest.fixture
def volume():
    return vessel_phantom(24)[0][:, 1:-1, 2:-2]


@pytest.fixture
def gaussians():
    """Two blobs, of which one is larger: no two directions look the same."""
    means, factors = torch.tensor([[6.0, 6, 14], [15.0, 12, 6]]), torch.stack([torch.eye(3) / 2, torch.eye(3)])
    return GaussianVolume(means, factors, torch.tensor([1.0, 0.7]), GRID)


@pytest.fixture
def open_widget(make_napari_viewer):
    """Return a function that opens a viewer with one layer and the widget."""

    def open_(data=None, **values):
        viewer = make_napari_viewer(show=True)
        if isinstance(data, GaussianVolume):
            layer, options, _ = gaussian_layer("volume", data)
            viewer.add_surface(layer, **options)
        elif data is not None:
            viewer.add_image(data, name="volume", **grid_placement(GRID))
        _, widget = viewer.window.add_plugin_dock_widget("napari-gsvolume", "Project")
        fill(widget, views=4, **values)
        return viewer, widget

    return open_


def test_a_stack_with_its_geometry(open_widget, qtbot, volume):
    viewer, widget = open_widget(volume)
    viewer.dims.ndisplay = 3
    run(qtbot, widget)
    stack = viewer.layers["volume · X-rays"]
    scan = circular_scan(GRID.shape, GRID.voxel_size, spread_angles(4, 180))
    found = scan_of(stack.metadata)
    np.testing.assert_array_equal(found.sources, scan.sources)
    assert (found.shape, found.pixels) == (scan.shape, scan.pixels)
    np.testing.assert_allclose(stack.data, project(volume, scan).images, rtol=1e-6)
    assert tuple(stack.axis_labels) == ("view", "v", "u")
    np.testing.assert_allclose(stack.scale[1:], [2, 1])
    # It is seen, and lies around the middle of the volume.
    assert [layer.name for layer in viewer.layers if layer.visible] == ["volume · X-rays"]
    assert viewer.dims.ndisplay == 2
    middle = (np.array(stack.data.shape) - 1) / 2
    np.testing.assert_allclose(
        stack.data_to_world(middle), viewer.layers[0].data_to_world((np.array(GRID.shape) - 1) / 2)
    )
    assert "4 views" in widget.status.value
    assert (widget.button.text, widget.progress.value) == ("Run", widget.progress.max)


def test_a_second_run_updates_in_place(open_widget, qtbot, volume):
    viewer, widget = open_widget(volume)
    run(qtbot, widget)
    stack = viewer.layers["volume · X-rays"]
    first = stack.data.copy()
    fill(widget, path="limited arc", arc=60.0)
    run(qtbot, widget)
    assert len(viewer.layers) == 2
    assert viewer.layers["volume · X-rays"] is stack
    assert not np.array_equal(first, stack.data)
    np.testing.assert_allclose(scan_of(stack.metadata).sources, circular_scan(GRID.shape, 1.0, [0, 15, 30, 45]).sources)
    fill(widget, path="C-arm")  # of other shape: another layer in its place, seen as well
    run(qtbot, widget)
    assert [layer.name for layer in viewer.layers] == ["volume", "volume · X-rays"]
    assert viewer.layers["volume · X-rays"].visible
    same = c_arm_scan(GRID.shape, GRID.voxel_size, spread_angles(4, 200))
    np.testing.assert_allclose(scan_of(viewer.layers["volume · X-rays"].metadata).sources, same.sources)
    fill(widget, path="biplane", mode="mip")
    run(qtbot, widget)
    assert len(viewer.layers["volume · MIP"].data) == 2
    assert not viewer.layers["volume · X-rays"].visible
    # Stacks are not projected in their turn.
    assert [layer.name for layer in widget.image.choices] == ["volume"]


def test_gaussians_noise_and_detector(open_widget, qtbot, gaussians):
    viewer, widget = open_widget(gaussians, width=13, photons=1e4)
    assert [layer.name for layer in widget.image.choices] == ["volume · gaussians"]
    run(qtbot, widget)
    stack = viewer.layers["volume · gaussians · X-rays"]
    scan = circular_scan(GRID.shape, GRID.voxel_size, spread_angles(4, 180)).with_pixels(13)
    clean = project(gaussians, scan).images
    assert stack.data.shape == clean.shape
    assert 0 < np.abs(stack.data - clean).max() < 0.2 * clean.max()
    fill(widget, photons=None, hounsfield=True)
    run(qtbot, widget)
    np.testing.assert_allclose(stack.data, project(hounsfield_to_attenuation(gaussians), scan).images, atol=1e-5)


def test_rows_that_say_nothing_are_hidden(open_widget, qtbot, volume):
    _, widget = open_widget(volume)
    qtbot.waitUntil(lambda: widget.button.visible)
    for path, seen in {
        "circle": "beam views",
        "C-arm": "views",
        "current view": "",
        "limited arc": "beam views arc",
    }.items():
        fill(widget, path=path)
        assert " ".join(row for row in ("beam", "views", "arc") if widget.form.fields[row].visible) == seen


@pytest.mark.parametrize("flipped", [False, True])
@pytest.mark.parametrize("ndisplay", [2, 3])
def test_the_current_view_is_what_the_canvas_shows(open_widget, qtbot, gaussians, ndisplay, flipped):
    """Where a blob is on the canvas, it is in the view: right is right and down is down."""
    viewer, widget = open_widget(gaussians, path="current view")
    camera = viewer.scene.camera
    if flipped:
        camera.orientation2d = ("up", "right")
    viewer.dims.order = (1, 0, 2)
    viewer.dims.ndisplay = ndisplay
    viewer.reset_view()
    if ndisplay == 3:
        camera.angles = (20, -50, 30)
    image = project(gaussians, scan_along_view(viewer, GRID)).images[0]
    seen = np.array(np.unravel_index(image.argmax(), image.shape)) - (np.array(image.shape) - 1) / 2  # (v, u)
    blob = (gaussians.means[0].numpy() - (np.array(GRID.shape) - 1) / 2) * GRID.voxel_size
    if ndisplay == 2:
        expected = [blob[0] * (-1 if flipped else 1), blob[2]]
    else:
        # What napari says of the camera, in the order of the displayed axes.
        up = np.array(camera.up_direction)
        right = np.cross(camera.view_direction, up) * (-1 if flipped else 1)
        shown = blob[[1, 0, 2]]
        expected = [-up @ shown, right @ shown]
    np.testing.assert_allclose(seen, expected, atol=1.0)
    run(qtbot, widget)
    assert len(viewer.layers["volume · gaussians · X-rays"].data) == 1


@pytest.mark.parametrize("kind", ["voxels", "gaussians"])
def test_following_the_camera(open_widget, qtbot, volume, gaussians, kind):
    viewer, widget = open_widget(volume if kind == "voxels" else gaussians)
    viewer.dims.ndisplay = 3
    assert widget.live.isHidden()
    widget.follow.value = True
    qtbot.waitUntil(lambda: widget.live.picture is not None, timeout=SLOW)
    first = widget.live.picture
    viewer.scene.camera.angles = (10, 50, 20)
    qtbot.waitUntil(lambda: widget.live.picture is not first, timeout=SLOW)
    qtbot.waitUntil(lambda: not widget.live.busy, timeout=SLOW)
    source = volume if kind == "voxels" else gaussians
    scan = scan_along_view(viewer, GRID, 160)
    np.testing.assert_allclose(widget.live.picture, project(source, scan).images[0], rtol=1e-5, atol=1e-5)
    fill(widget, mode="mip")
    qtbot.waitUntil(lambda: 0.5 < widget.live.picture.max() < 1.01, timeout=SLOW)
    fill(widget, hounsfield=True)
    qtbot.waitUntil(lambda: 0 < widget.live.picture.max() < 0.02, timeout=SLOW)
    widget.follow.value = False
    last = widget.live.picture
    viewer.scene.camera.angles = (0, 0, 0)
    qtbot.wait(200)
    assert widget.live.picture is last
    assert widget.live.isHidden()


def test_stop(open_widget, qtbot, volume):
    viewer, widget = open_widget(np.tile(volume, (4, 4, 4)), path="circle")
    fill(widget, views=2000)
    click(qtbot, widget.button)
    qtbot.waitUntil(lambda: "views" in widget.status.value, timeout=SLOW)
    click(qtbot, widget.button)
    qtbot.waitUntil(lambda: not widget.running, timeout=SLOW)
    assert "Stopped" in widget.status.value
    assert len(viewer.layers) == 1


def test_a_live_view_that_fails_says_so_and_the_next_works(open_widget, qtbot, volume):
    viewer, widget = open_widget(np.where(volume > volume.mean(), np.nan, volume))
    widget.follow.value = True
    qtbot.waitUntil(lambda: "NaN" in widget.status.value, timeout=SLOW)
    assert widget.live.picture is None
    widget.image.value = viewer.add_image(volume, name="whole")
    qtbot.waitUntil(lambda: widget.live.picture is not None, timeout=SLOW)


@pytest.mark.filterwarnings("ignore")
def test_bad_input_gets_one_sentence(open_widget, qtbot, volume):
    viewer, widget = open_widget()

    def said(*words):
        click(qtbot, widget.button)
        qtbot.waitUntil(lambda: not widget.running, timeout=SLOW)
        assert all(word in widget.status.value for word in words), widget.status.value

    said("no image layer")
    viewer.add_image(np.ones((5, 6)), name="flat")
    said("'flat' is flat")
    holes = volume.copy()
    holes[3, 4, 5] = np.nan
    widget.image.value = viewer.add_image(holes, name="holes")
    said("NaN")
    widget.image.value = viewer.add_image(volume, name="good")
    fill(widget, mode="mip", photons=100.0)
    said("sigma", "mip")
    fill(widget, photons=None)
    run(qtbot, widget)
    assert "good · MIP" in viewer.layers


def test_one_time_point_of_a_series(open_widget, qtbot, volume):
    viewer, widget = open_widget()
    viewer.add_image(np.stack([volume, 2 * volume]), name="series")
    widget.time_point.value = 1
    run(qtbot, widget)
    scan = circular_scan(GRID.shape, 1.0, spread_angles(4, 180))
    np.testing.assert_allclose(viewer.layers["series · X-rays"].data, project(2 * volume, scan).images, rtol=1e-5)


def test_settings_are_remembered(open_widget, make_napari_viewer, qtbot, volume):
    _, widget = open_widget(volume, path="biplane", beam="cone", sigma=0.5)
    run(qtbot, widget)
    second = ProjectWidget(make_napari_viewer())
    qtbot.addWidget(second.native)
    assert second.form.settings() == widget.form.settings()
