"""Reconstruction widgets, used as a person would: choose, click, watch, stop, save."""

from dataclasses import replace

import numpy as np
import pytest
from napari.layers import Surface

from helpers.clicking import SLOW, click, fill, run
from napari_gsvolume import GaussianVolume
from napari_gsvolume.grid import Grid
from napari_gsvolume.phantoms import vessel_phantom
from napari_gsvolume.plugin.layers.conversion import METADATA_KEY
from napari_gsvolume.plugin.layers.projections import projection_layer, scan_of
from napari_gsvolume.tomography.presets import preset_scan, spread_angles
from napari_gsvolume.tomography.projections import project
from napari_gsvolume.tomography.scan import circular_scan

SIDE = 24
GRID = Grid((SIDE,) * 3, np.diag([2, 2, 2, 1]) + np.pad([[5], [-2], [7]], ((0, 1), (3, 0))), ("mm",) * 3)


@pytest.fixture(scope="module")
def volume():
    return vessel_phantom(SIDE)[0]


@pytest.fixture(scope="module")
def projections(volume):
    return project(volume, preset_scan("circle", volume.shape, 2.0, views=6))


@pytest.fixture
def open_widget(make_napari_viewer):
    """Return a function that opens a viewer with some layers and a widget, with few Gaussians and iterations."""

    def open_(name, *layers):
        viewer = make_napari_viewer(show=True)
        for array, options in layers:
            viewer.add_image(array, **options)
        _, widget = viewer.window.add_plugin_dock_widget("napari-gsvolume", name)
        fill(widget, gaussians=250, time_limit=None, iterations=8, fit_iterations=12)
        return viewer, widget

    return open_


def stack_of(projections, **options):
    array, own, _ = projection_layer("phantom", projections, GRID)
    return array, own | {"name": "stack"} | options


def true(volume):
    return volume, {"name": "true", "scale": (2, 2, 2), "translate": (5, -2, 7), "units": ("mm",) * 3}


def names(viewer):
    return {layer.name for layer in viewer.layers}


def test_a_stack_with_geometry_becomes_a_volume_in_its_place(open_widget, qtbot, volume, projections, tmp_path):
    viewer, widget = open_widget("Reconstruct", true(volume), stack_of(projections))
    assert widget.image.value.name == "stack"
    assert widget.geometry.value == "of the layer"
    assert not widget.file.visible
    assert not any(row.visible for row in widget.orbit.rows)
    widget.truth.value = viewer.layers["true"]
    run(qtbot, widget)
    result = widget.result
    assert result.psnr_db > 17, widget.status.value
    assert f"{result.psnr_db:.2f} dB" in widget.status.value
    made = viewer.layers["stack · reconstruction"]
    np.testing.assert_array_equal(made.data, result.reconstruction)
    assert tuple(made.contrast_limits) == tuple(viewer.layers["true"].contrast_limits)
    for layer in (made, viewer.layers["stack · gaussians"], viewer.layers["stack · centres"]):
        np.testing.assert_allclose(layer.data_to_world((1, 2, 3)), viewer.layers["true"].data_to_world((1, 2, 3)))
        assert layer.units == viewer.layers["true"].units
    assert isinstance(viewer.layers["stack · gaussians"], Surface)
    # Measured = reprojected + residual, in the unit of the stack.
    again, residual = viewer.layers["stack · reprojection"], viewer.layers["stack · projection residual"]
    np.testing.assert_allclose(again.data + residual.data, projections.images, atol=1e-4)
    np.testing.assert_allclose(again.data, project(result.reconstruction, projections.scan).images, atol=0.2)
    assert np.abs(residual.data).mean() < 0.6 * projections.images.mean()
    assert residual.contrast_limits[0] == -residual.contrast_limits[1]
    np.testing.assert_allclose(residual.data_to_world((1, 2, 3)), viewer.layers["stack"].data_to_world((1, 2, 3)))
    assert scan_of(again.metadata).to_dict() == projections.scan.to_dict()
    # The plot has the data fidelity, falling, and the PSNR.
    fidelity = widget.plot.axes.lines[0].get_ydata()
    assert fidelity[-1] < fidelity[0]
    assert widget.plot.quality.get_visible()
    assert made.metadata[METADATA_KEY]["metrics"]["psnr_db"] == pytest.approx(result.psnr_db)
    widget.save_results(tmp_path / "mine.safetensors")
    assert len(GaussianVolume.load(tmp_path / "mine.safetensors")) == len(result.gaussians)


def test_a_second_run_updates_in_place(open_widget, qtbot, projections):
    viewer, widget = open_widget("Reconstruct", stack_of(projections))
    run(qtbot, widget)
    before, layer = names(viewer), viewer.layers["stack · reconstruction"]
    first = layer.data.copy()
    assert not widget.plot.quality.get_visible()
    widget.form.fields["prior"].value = "tv"
    widget.support.value = viewer.add_labels(np.pad(np.ones((20,) * 3, int), 2), name="inside")
    run(qtbot, widget)
    assert names(viewer) == before | {"inside"}
    assert viewer.layers["stack · reconstruction"] is layer
    assert not np.array_equal(layer.data, first)


def test_stop_keeps_what_there_is(open_widget, qtbot, projections):
    viewer, widget = open_widget("Reconstruct", stack_of(projections))
    widget.form.fields["iterations"].value = 1000
    click(qtbot, widget.button)
    assert widget.button.text == "Stop"
    qtbot.waitUntil(lambda: "stack · reconstruction" in names(viewer), timeout=SLOW)
    click(qtbot, widget.button)
    qtbot.waitUntil(lambda: not widget.running, timeout=SLOW)
    assert widget.button.text == "Run"
    assert widget.save.enabled
    assert {"stack · gaussians", "stack · centres"} < names(viewer)


@pytest.mark.parametrize("how", ["from a file", "circular scan"])
def test_a_stack_without_geometry(open_widget, qtbot, volume, projections, tmp_path, how):
    _, widget = open_widget("Reconstruct", stack_of(projections, metadata={}))
    assert widget.geometry.value == "circular scan"
    widget.geometry.value = how
    qtbot.waitUntil(lambda: widget.file.visible == (how == "from a file"))
    if how == "from a file":
        projections.scan.save(tmp_path / "scan.json")
        widget.file.value = tmp_path / "scan.json"
    else:
        for name, value in {"pixel_size": 2.0, "width": SIDE, "height": SIDE}.items():
            widget.orbit.fields[name].value = value
    run(qtbot, widget)
    assert widget.result.reconstruction.shape == volume.shape
    assert np.corrcoef(widget.result.reconstruction.ravel(), volume.ravel())[0, 1] > 0.8


def test_a_cone_that_is_typed_in(open_widget, qtbot, volume):
    geometry = {"source_to_axis": 150.0, "source_to_detector": 250.0}
    scan = circular_scan(
        (SIDE,) * 3, 2.0, spread_angles(6, 360), "cone", pixels=(60, 50), pixel_size=(3, 3), offset=(-8, 0), **geometry
    )
    _, widget = open_widget("Reconstruct", stack_of(project(volume, scan), metadata={}))
    beam = widget.orbit.fields["beam"]
    qtbot.waitUntil(lambda: beam.visible)
    assert not widget.orbit.fields["source_to_axis"].visible
    beam.value = "cone"
    qtbot.waitUntil(lambda: widget.orbit.fields["source_to_axis"].visible)
    typed = {"arc": 360, "pixel_size": 3.0, "offset": -8.0, "voxel_size": 2.0, "width": SIDE, "height": SIDE}
    for name, value in typed.items():
        widget.orbit.fields[name].value = value
    click(qtbot, widget.button)
    assert "distances" in widget.status.value
    for name, value in geometry.items():
        widget.orbit.fields[name].value = value
    run(qtbot, widget)
    assert np.corrcoef(widget.result.reconstruction.ravel(), volume.ravel())[0, 1] > 0.8


def test_at_the_voxels_of_another_layer(open_widget, qtbot, volume, projections):
    coarse = volume.reshape(12, 2, 12, 2, 12, 2).mean((1, 3, 5))
    layer = coarse, {"name": "coarse", "scale": (4, 4, 4), "translate": (50, 0, 0), "units": ("mm",) * 3}
    viewer, widget = open_widget("Reconstruct", layer, stack_of(projections))
    widget.like.value = widget.truth.value = viewer.layers["coarse"]
    run(qtbot, widget)
    made = viewer.layers["stack · reconstruction"]
    assert made.data.shape == coarse.shape
    np.testing.assert_array_equal(made.translate, (50, 0, 0))


def bad_views(projections):
    return {"images": projections.images[:-1]}, "6 views"


def bad_detector(projections):
    return {"images": projections.images[:, :, 1:]}, "pixels"


def bad_pixels(projections):
    images = projections.images.copy()
    images[0, 0, 0] = np.nan
    return {"images": images}, "NaN"


@pytest.mark.parametrize("bad", [bad_views, bad_detector, bad_pixels])
def test_bad_input_gets_one_sentence_and_the_next_run_works(open_widget, qtbot, projections, bad, statuses):
    changes, words = bad(projections)
    viewer, widget = open_widget("Reconstruct", (changes["images"], stack_of(projections)[1]))
    said = statuses(viewer)
    click(qtbot, widget.button)
    qtbot.waitUntil(lambda: not widget.running, timeout=SLOW)
    assert words in widget.status.value
    assert widget.status.value in said
    assert names(viewer) == {"stack"}
    viewer.layers["stack"].data = projections.images
    run(qtbot, widget)
    assert "stack · reconstruction" in names(viewer)


def test_what_is_missing_is_said(open_widget, qtbot, volume, projections):
    viewer, widget = open_widget("Reconstruct")
    click(qtbot, widget.button)
    assert "no image layer" in widget.status.value
    viewer.add_image(projections.images, name="plain")
    for geometry, words in (("of the layer", "no geometry"), ("from a file", "cannot be read")):
        widget.geometry.value = geometry
        click(qtbot, widget.button)
        assert not widget.running
        assert words in widget.status.value
    viewer.add_image(
        **dict(
            zip(("data", "metadata"), (stack_of(projections)[0], stack_of(projections)[1]["metadata"]), strict=True)
        ),
        name="good",
    )
    widget.image.value = viewer.layers["good"]
    assert widget.geometry.value == "of the layer"
    widget.truth.value = viewer.add_image(volume[1:], name="short")
    click(qtbot, widget.button)
    qtbot.waitUntil(lambda: not widget.running, timeout=SLOW)
    assert "true volume is of shape" in widget.status.value


def test_stacks_of_other_things_are_not_offered(open_widget, volume, projections):
    viewer, widget = open_widget("Reconstruct", true(volume))
    array, options, _ = projection_layer("phantom", replace(projections, kind="mip"), GRID)
    viewer.add_image(array, **options)
    assert [layer.name for layer in widget.image.choices] == ["true"]


def slices(open_widget, *layers, **values):
    viewer, widget = open_widget("From slices", *layers)
    for name, value in values.items():
        widget.slices.fields[name].value = value
    return viewer, widget


def test_every_other_slice_along_an_axis(open_widget, qtbot, volume):
    viewer, widget = slices(open_widget, true(volume), known="every k-th", axis="y", every=2)
    run(qtbot, widget)
    assert widget.result.psnr_db > 20  # the volume itself is compared with
    made = viewer.layers["true · reconstruction"]
    np.testing.assert_allclose(made.data_to_world((1, 2, 3)), viewer.layers["true"].data_to_world((1, 2, 3)))
    assert names(viewer) == {"true", "true · reconstruction", "true · gaussians", "true · centres"}


def test_slices_of_nan_are_reconstructed(open_widget, qtbot, volume):
    holed = volume.copy()
    holed[:, :, 1::2] = np.nan
    viewer, widget = slices(open_widget, (holed, {"name": "holed", "contrast_limits": (0, 1)}), known="not NaN")
    assert not widget.slices.fields["axis"].visible
    run(qtbot, widget)
    assert widget.result.psnr_db is None
    made = viewer.layers["holed · reconstruction"].data
    assert np.sqrt(np.square(made - volume).mean()) < 0.1 * np.ptp(volume)


def test_stacks_of_two_orientations_and_projections_together(open_widget, qtbot, volume, projections):
    thick = (
        volume.reshape(6, 4, SIDE, SIDE).mean(1),
        {"name": "thick", "scale": (8, 2, 2), "translate": (8, -2, 7), "units": ("mm",) * 3},
    )
    across = (
        volume.reshape(SIDE, SIDE, 6, 4).mean(3),
        {"name": "across", "scale": (2, 2, 8), "translate": (5, -2, 10), "units": ("mm",) * 3},
    )
    viewer, widget = slices(open_widget, thick, across, stack_of(projections), known="whole stack", thickness=8.0)
    assert not widget.thicknesses[0].visible
    widget.image.value, widget.others[0].value = viewer.layers["thick"], viewer.layers["across"]
    qtbot.waitUntil(lambda: widget.thicknesses[0].visible)
    widget.thicknesses[0].value = 8.0
    widget.views.value = viewer.layers["stack"]
    run(qtbot, widget)
    made = viewer.layers["thick · reconstruction"]
    assert made.data.shape == volume.shape
    np.testing.assert_allclose(made.data_to_world((0, 0, 0)), (5, -2, 7))
    assert np.corrcoef(made.data.ravel(), volume.ravel())[0, 1] > 0.9
    assert viewer.layers["stack · projection residual"].data.shape == projections.images.shape
    viewer.layers["across"].units = ("um",) * 3
    click(qtbot, widget.button)
    qtbot.waitUntil(lambda: not widget.running, timeout=SLOW)
    assert "units" in widget.status.value


def test_hounsfield_units(open_widget, qtbot, volume, projections):
    air = 1000 * volume - 1000, {"name": "air", "scale": (2, 2, 2)}
    viewer, widget = slices(open_widget, air, known="every k-th", every=2)
    run(qtbot, widget)
    assert not widget.result.settings.non_negative  # slices say so
    assert widget.result.psnr_db > 20
    water = replace(projections, images=projections.images * np.float32(0.0193))
    array, options = stack_of(water)
    _, reconstruct = viewer.window.add_plugin_dock_widget("napari-gsvolume", "Reconstruct")
    viewer.add_image(array, **options)
    reconstruct.image.value, reconstruct.truth.value = viewer.layers["stack"], viewer.layers["air"]
    reconstruct.hounsfield.value = True
    run(qtbot, reconstruct)
    assert reconstruct.result.settings.non_negative
    assert reconstruct.result.psnr_db > 17
