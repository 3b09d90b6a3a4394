"""Training in the SVD widget, as a person would: train, watch, stop, save, load, apply, inspect."""

import gc
import time
import weakref

import numpy as np
import pytest
import torch
from qtpy.QtWidgets import QFileDialog

from helpers.clicking import SLOW, click, run
from napari_gsvolume.grid import Grid
from napari_gsvolume.io.nifti import write_nifti
from napari_gsvolume.metrics import psnr_between
from napari_gsvolume.phantoms import anatomical_phantom
from napari_gsvolume.plugin.layers.conversion import METADATA_KEY, grid_placement
from napari_gsvolume.plugin.widgets.shared.dims import index_at
from napari_gsvolume.plugin.widgets.shared.worker import PreviewThrottle
from napari_gsvolume.plugin.widgets.svd import training_worker
from napari_gsvolume.plugin.widgets.svd.training_worker import (
    CurrentSlice,
    Previewer,
    TrainingRequest,
    training_steps,
)
from napari_gsvolume.progress import Budget
from napari_gsvolume.settings import validated
from napari_gsvolume.super_resolution import training
from napari_gsvolume.super_resolution.bspline import upsample_bspline
from napari_gsvolume.super_resolution.data import TrainingData
from napari_gsvolume.super_resolution.degradation import Degradation
from napari_gsvolume.super_resolution.intensities import Intensities
from napari_gsvolume.super_resolution.model import SRModel
from napari_gsvolume.super_resolution.schemes import build_scheme
from napari_gsvolume.super_resolution.settings import TrainSRSettings
from napari_gsvolume.super_resolution.training import train_superresolution_steps
from napari_gsvolume.super_resolution.upsampling import superresolve

VOLUME = anatomical_phantom(40)[0][4:36:2, 2:38, 1:37].astype(np.float32)  # (16, 36, 36)
AFFINE = np.diag([3.0, 1.5, 1.0, 1]) + np.pad([[5], [-2], [7]], ((0, 1), (3, 0)))
SMALL = {"channels": 4, "blocks": 1, "batch_size": 2, "patch_size": 8, "time_limit": None, "iterations": 20}
NAMES = ["cubic B-spline", "B-spline + projection", "model", "best of rank 18"]

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def open_widget(make_napari_viewer, qtbot):
    """Return a function that opens a viewer with a layer "T1" and the widget on its tab Learn, set to be quick."""

    def open_(data=VOLUME, **more):
        viewer = make_napari_viewer(show=True)
        if data is not None:
            viewer.add_image(
                data, name="T1", **grid_placement(Grid(data.shape, AFFINE[-data.ndim - 1 :][:, -data.ndim - 1 :]))
            )
            viewer.dims.set_current_step(0, 3)
        _, widget = viewer.window.add_plugin_dock_widget("napari-gsvolume", "SVD")
        settle(qtbot, widget)
        widget.tabs.setCurrentWidget(widget.train)
        fill(widget, **SMALL | more)
        return viewer, widget

    return open_


def settle(qtbot, widget):
    qtbot.waitUntil(lambda: not widget.busy and not widget.running, timeout=SLOW)


def fill(widget, **values):
    for name, value in values.items():
        widget.train.form.fields[name].value = value


def one_sentence(text, *words):
    assert text.endswith(".")
    assert "\n" not in text
    for word in words:
        assert word in text


def cells(table):
    return [[table.item(row, column).text() for column in range(3)] for row in range(table.rowCount())]


def an_untrained(**more):
    """Return a model whose weights, those that begin at 0 too, are random."""
    model = build_scheme(validated(TrainSRSettings, **SMALL | {"iterations": 5} | more))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.02 * torch.randn(p.shape, generator=generator))
    return SRModel(model, {"psnr_db": {"B-spline + projection": 30.0, "model": 31.25}})


def test_train_watch_save_load_apply_understand(open_widget, qtbot, tmp_path, monkeypatch):
    viewer, widget = open_widget()
    learn, view = widget.train, widget.training
    assert widget.button.text == "Train"
    assert not learn.save.enabled
    assert not widget.inspect.start.enabled
    run(qtbot, widget)
    # The figures, and what the model had to beat.
    model = learn.model
    table = cells(view.table)
    assert [row[0] for row in table] == NAMES
    assert [float(row[1]) for row in table] == pytest.approx(list(model.metrics["psnr_db"].values()), abs=0.006)
    psnr = view.plot.panels["psnr"]
    curve, *lines = psnr.lines
    assert max(curve.get_ydata()) == pytest.approx(model.metrics["psnr_db"]["model"])
    np.testing.assert_allclose(
        [line.get_ydata()[0] for line in lines], [model.metrics["psnr_db"][name] for name in NAMES[:2]], atol=1e-4
    )
    losses = view.plot.panels["losses"].lines
    assert [line.get_label() for line in losses] == ["1 × squared", "0.1 × consistency"]
    assert len(losses[0].get_ydata()) == len(curve.get_ydata()) - 1
    assert len(view.plot.panels["spectra"].lines) == 3
    assert not view.plot.panels["amplitudes"].get_visible()
    assert "iterations" in widget.status.value
    assert "edsr" in learn.about.value
    # The preview is the slice that the viewer shows, face to face.
    source, preview = viewer.layers["T1"], viewer.layers["T1 · preview"]
    assert preview.data.shape == (1, 72, 72)
    np.testing.assert_allclose(preview.data_to_world((0, -0.5, 71.5)), source.data_to_world((3, -0.5, 35.5)))
    made_finer = superresolve(VOLUME, model, ensemble=False).volume
    np.testing.assert_allclose(preview.data[0], made_finer[3], atol=1e-3 * np.ptp(VOLUME))
    assert [layer.name for layer in widget.image.choices] == ["T1"]
    # A file, and back; the window that asks for its name is answered for.
    monkeypatch.setattr(QFileDialog, "getSaveFileName", lambda *_: (str(tmp_path / "model"), ""))
    click(qtbot, learn.save)
    one_sentence(widget.status.value, "Saved", "model.safetensors")
    monkeypatch.setattr(QFileDialog, "getOpenFileName", lambda *_: (str(tmp_path / "model.safetensors"), ""))
    click(qtbot, learn.load)
    assert learn.model is not model
    assert learn.model.metrics == model.metrics
    assert cells(view.table) == table
    one_sentence(widget.status.value, "Loaded", f"{model.metrics['psnr_db']['model']:.2f} dB")
    # Finer is ready to use it.
    widget.tabs.setCurrentWidget(widget.superresolve)
    assert widget.button.text == "Super-resolve"
    assert widget.form.fields["scheme"].value == "residual"
    widget.form.fields["ensemble"].value = False
    run(qtbot, widget)
    finer = viewer.layers["T1 · super-resolved"]
    np.testing.assert_allclose(finer.data, made_finer, atol=1e-3 * np.ptp(VOLUME))
    np.testing.assert_allclose(finer.data_to_world((0, -0.5, -0.5)), source.data_to_world((0, -0.5, -0.5)))
    about = finer.metadata[METADATA_KEY]
    assert about["model"]["metrics"] == model.metrics
    assert about["model"]["settings"]["channels"] == 4
    # Through-plane: the other planes are made finer, and averaged.
    widget.form.fields["upsample_axes"].value = "through-plane"
    run(qtbot, widget)
    through = superresolve(VOLUME, model, upsample_axes="through-plane", ensemble=False).volume
    np.testing.assert_allclose(viewer.layers["T1 · super-resolved"].data, through, atol=1e-3 * np.ptp(VOLUME))
    # Where each loss pulls, on the slice held out that is nearest.
    widget.tabs.setCurrentWidget(widget.inspect)
    assert not widget.button.visible
    click(qtbot, widget.inspect.start)
    settle(qtbot, widget)
    [held] = TrainingData([VOLUME], model.settings).validation_sets
    k = held.slices[0]
    assert index_at(viewer, Grid(VOLUME.shape, AFFINE), 0) == k
    gradient, residual = viewer.layers["T1 · gradient of squared"], viewer.layers["T1 · model residual"]
    assert "T1 · gradient of consistency" in viewer.layers
    np.testing.assert_allclose(gradient.data_to_world((0, 3, 4)), source.data_to_world((k, 3, 4)))
    assert gradient.contrast_limits[0] == -gradient.contrast_limits[1]
    degraded = Degradation.of_high((36, 36), (2, 2)).degrade(VOLUME[k])
    np.testing.assert_allclose(  # what pulls at the pixels is the residual's part that was not measured
        gradient.data[0] * Intensities.of(VOLUME).scale / -2, residual.data[0], atol=2e-2 * np.abs(residual.data).max()
    )
    np.testing.assert_allclose(
        Degradation.of_high((36, 36), (2, 2)).degrade(residual.data[0]), 0, atol=1e-3 * degraded.max()
    )
    assert widget.inspect.plot.panels["spectra"].get_visible()
    one_sentence(widget.status.value, f"Validation slice {k} along z", "cubic B-spline", "projection", "model")


def test_scheme_a_shows_its_amplitudes_and_what_each_mode_adds(open_widget, qtbot):
    viewer, widget = open_widget(
        scheme="singular-vectors", patch_size=None, iterations=4, factor=1.5, uncertainty_weighting=True
    )
    fields = widget.train.form.fields
    assert not fields["backbone"].visible
    widget.train.form.folds[0].expand(animate=False)
    assert fields["orthogonality"].visible
    assert not fields["perceptual_weight"].visible
    run(qtbot, widget)
    plot = widget.training.plot
    scaled, amplitudes = (line.get_ydata() for line in plot.panels["amplitudes"].lines)
    assert len(amplitudes) == 24
    np.testing.assert_allclose(amplitudes[:5], scaled[:5], rtol=0.2)
    labels = [line.get_label() for line in plot.panels["losses"].lines]
    assert [label.split()[-1] for label in labels] == ["squared", "consistency", "orthogonality"]
    assert viewer.layers["T1 · preview"].data.shape == (1, 54, 54)
    widget.tabs.setCurrentWidget(widget.inspect)
    click(qtbot, widget.inspect.start)
    settle(qtbot, widget)
    reached = widget.inspect.plot.panels["cumulative"].lines[0].get_ydata()
    assert len(reached) == 24
    assert reached[0] < reached[-1] < 60
    assert "T1 · gradient of orthogonality" not in viewer.layers
    # What was set is there the next time; every row says what it means.
    viewer.window.remove_dock_widget(widget.native)
    _, widget = viewer.window.add_plugin_dock_widget("napari-gsvolume", "SVD")
    settle(qtbot, widget)
    fields = widget.train.form.fields
    assert (fields["scheme"].value, fields["factor"].value, fields["channels"].value) == ("singular-vectors", 1.5, 4)
    widget.tabs.setCurrentWidget(widget.train)
    assert not fields["backbone"].visible
    for name, field in fields.items():
        assert field.tooltip, name


def slowly(monkeypatch):
    """Make each batch take a while."""
    batches = TrainingData.batches

    def some(self, random):
        for batch in batches(self, random):
            time.sleep(0.05)
            yield batch

    monkeypatch.setattr(TrainingData, "batches", some)


def test_stop_keeps_the_best_model_and_the_preview_follows(open_widget, qtbot, monkeypatch):
    slowly(monkeypatch)
    viewer, widget = open_widget(iterations=100_000)
    click(qtbot, widget.button)
    assert widget.button.text == "Stop"
    assert not widget.train.load.enabled
    qtbot.waitUntil(lambda: "T1 · preview" in viewer.layers, timeout=SLOW)
    preview = viewer.layers["T1 · preview"]
    limits = tuple(np.array(preview.contrast_limits) / 2)
    preview.contrast_limits = limits
    viewer.dims.set_current_step(0, 9)
    place = viewer.layers["T1"].data_to_world((9, 0, 0))[0]
    qtbot.waitUntil(lambda: preview.data_to_world((0, 0, 0))[0] == pytest.approx(place), timeout=SLOW)
    assert viewer.layers["T1 · preview"] is preview
    assert tuple(preview.contrast_limits) == limits
    # Looking at other tabs, Stop is there.
    widget.tabs.setCurrentWidget(widget.modes)
    assert widget.button.visible
    click(qtbot, widget.button)
    settle(qtbot, widget)
    assert widget.train.model is not None
    assert widget.train.model.metrics["psnr_db"]["model"] >= widget.train.model.metrics["psnr_db"][NAMES[1]] - 1e-6
    assert "Stopped." in widget.status.value
    # Making finer is stopped without a layer.
    widget.tabs.setCurrentWidget(widget.superresolve)
    predict = SRModel.settings.fget
    monkeypatch.setattr(SRModel, "settings", property(lambda self: time.sleep(0.05) or predict(self)))
    click(qtbot, widget.button)
    click(qtbot, widget.button)
    settle(qtbot, widget)
    assert "Stopped" in widget.status.value
    assert "T1 · super-resolved" not in viewer.layers


def test_what_cannot_be_learnt_or_used_is_said_in_a_sentence(open_widget, qtbot, tmp_path):
    viewer, widget = open_widget(None)
    status, learn = widget.status, widget.train

    def refused(*words):
        settle(qtbot, widget)
        click(qtbot, widget.button)
        settle(qtbot, widget)
        one_sentence(status.value, *words)

    refused("no image layer")
    holed = VOLUME.copy()
    holed[3, 4, 5] = np.nan
    for data, name, words, options in (
        (holed, "holed", ("NaN",), {}),
        (np.full_like(VOLUME, 3), "constant", ("constant",), {"contrast_limits": (0, 5)}),
        (VOLUME[3], "flat", ("flat", "slices"), {}),
        (np.zeros((8, 9, 3), np.uint8), "colours", ("RGB",), {"rgb": True}),
        (VOLUME[:, :9, :9], "tiny", ("too small",), {}),
    ):
        layer = viewer.add_image(data, name=name, **options)
        widget.image.value = layer
        refused(*words)
        assert learn.model is None
        viewer.layers.remove(layer)
    viewer.add_image(VOLUME, name="T1")
    fill(widget, rank=30, patch_size=None)
    refused("rank", "17", "30")
    fill(widget, rank=None)
    learn.use_image.value = False
    refused("no training data")
    learn.folder.value = tmp_path
    refused("no NIfTI file")
    learn.folder.value = tmp_path / "nowhere"
    refused("no folder")
    # Models of something else.
    widget.tabs.setCurrentWidget(widget.superresolve)
    widget.form.fields["scheme"].value = "residual"
    refused("scheme residual needs a model")
    an_untrained().save(tmp_path / "good.safetensors")
    (tmp_path / "bad.safetensors").write_bytes(b"no model")
    learn.load_model(tmp_path / "bad.safetensors")
    one_sentence(status.value, "bad.safetensors", "damaged")
    learn.load_model(tmp_path / "none.safetensors")
    one_sentence(status.value, "none.safetensors", "cannot be read")
    learn.load_model(tmp_path / "good.safetensors")
    assert "31.25 dB (+1.25)" in learn.about.value
    assert "31.25 dB (+1.25)" in widget.superresolve.about.value
    for field, value, word in (
        ("factor", 3.0, "factor 2"),
        ("scheme", "singular-vectors", "scheme residual"),
        ("degradation", "bicubic", "block-mean"),
    ):
        before = widget.form.fields[field].value
        widget.form.fields[field].value = value
        refused("This model was trained for", word)
        widget.form.fields[field].value = before
    through = an_untrained(upsample_axes="through-plane")
    through.save(tmp_path / "through.safetensors")
    learn.load_model(tmp_path / "through.safetensors")
    assert widget.form.fields["upsample_axes"].value == "through-plane"
    widget.form.fields["upsample_axes"].value = "in-plane"
    refused("through-plane")
    assert "T1 · super-resolved" not in viewer.layers
    # One that cannot be saved.
    learn.save_model(tmp_path / "model.pt")
    one_sentence(status.value, ".safetensors")
    learn.save_model(tmp_path / "nowhere" / "model")
    one_sentence(status.value, "nowhere")


def test_other_layers_and_a_folder(open_widget, qtbot, tmp_path, monkeypatch):
    viewer, widget = open_widget(iterations=2)
    learn = widget.train
    assert not learn.others.visible
    second = viewer.add_image(VOLUME[::-1].copy(), name="T2")
    viewer.add_image(VOLUME[3], name="flat")
    assert list(learn.others.choices) == [second]  # neither the chosen one nor one without slices
    write_nifti(tmp_path / "more.nii.gz", 2 * VOLUME, Grid(VOLUME.shape, AFFINE))
    calls = []

    def noted(volumes, sizes, **options):
        calls.append((list(volumes), sizes))
        return train_superresolution_steps(volumes, sizes, **options)

    monkeypatch.setattr(training_worker, "train_superresolution_steps", noted)
    learn.others.value = [second]
    learn.folder.value = tmp_path
    learn.use_image.value = False
    run(qtbot, widget)
    [(volumes, sizes)] = calls
    np.testing.assert_array_equal(volumes[0], second.data)
    np.testing.assert_allclose(volumes[1], 2 * VOLUME)
    np.testing.assert_allclose(sizes, [[1, 1, 1], [3, 1.5, 1]])
    # The preview is of the chosen one.
    np.testing.assert_allclose(
        viewer.layers["T1 · preview"].data[0],
        superresolve(VOLUME, learn.model, ensemble=False).volume[3],
        atol=1e-3 * np.ptp(VOLUME),
    )
    write_nifti(tmp_path / "series.nii", np.zeros((2, 3, 4, 5), np.float32), Grid((3, 4, 5)), time_step=1.0)
    click(qtbot, widget.button)
    settle(qtbot, widget)
    one_sentence(widget.status.value, "series.nii", "4 axes")


@pytest.mark.parametrize("how", ["dock", "window"])
def test_closing_stops_a_training_and_nothing_of_it_stays(open_widget, qtbot, monkeypatch, how):
    slowly(monkeypatch)
    alive = []

    def noted(settings):
        made = build_scheme(settings)
        alive.append(weakref.ref(made))
        return made

    monkeypatch.setattr(training, "build_scheme", noted)
    viewer, widget = open_widget(iterations=100_000)
    click(qtbot, widget.button)
    qtbot.waitUntil(lambda: "iteration" in widget.status.value, timeout=SLOW)
    worker = widget._worker
    if how == "dock":
        viewer.window.remove_dock_widget(widget.native)
    else:
        viewer.close()
    deadline = time.monotonic() + 20
    while worker.is_running and time.monotonic() < deadline:
        qtbot.wait(20)
    assert not worker.is_running
    del worker
    qtbot.wait(50)
    gc.collect()
    assert [ref() for ref in alive] == [None]


def test_a_preview_of_finer_slices_lies_in_the_slice():
    """What is made of a part of a volume, through-plane, is what is made of the volume, where it is."""
    grid = Grid(VOLUME.shape, AFFINE)
    source = training_worker.SourceVolume("T1", VOLUME, grid, {}, (0, 1))
    for factor in (2.0, 2.5):
        model = an_untrained(upsample_axes="through-plane", factor=factor)
        previewer = Previewer(source, model.settings)
        fine = grid.resampled((factor, 1, 1))
        whole = superresolve(VOLUME, model, upsample_axes="through-plane", ensemble=False).volume
        for index in (0, 6, 15):
            preview = previewer.preview(model, index)
            middles = preview.grid.affine[0, 3] + 3 * np.arange(len(preview.image)) / factor
            assert (np.abs(middles - (5 + 3 * index)) <= 1.5 + 1e-9).all()
            assert preview.image.shape[1:] == VOLUME.shape[1:]
            if factor == 2:
                assert len(preview.image) == 2
                np.testing.assert_allclose(preview.grid.affine, fine.slab(0, 2 * index, 2).affine, atol=1e-9)
                expected = whole[2 * index : 2 * index + 2]
                assert psnr_between(expected, preview.image, np.ptp(VOLUME)) > 35


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_preview_of_a_slice_is_what_the_volume_becomes(axis):
    """Also where neighbours are missing, with the volume's own intensities, along every axis."""
    grid = Grid(VOLUME.shape, AFFINE)
    model = an_untrained(slice_axis="zyx"[axis])
    previewer = Previewer(training_worker.SourceVolume("T1", VOLUME, grid, {}, (0, 1)), model.settings)
    fine = grid.resampled([1 if k == axis else 2 for k in range(3)])
    whole = superresolve(VOLUME, model, slice_axis="zyx"[axis], ensemble=False).volume
    for index in (0, 7, VOLUME.shape[axis] - 1):
        preview = previewer.preview(model, index)
        np.testing.assert_allclose(preview.image, whole.take([index], axis), atol=1e-3 * np.ptp(VOLUME))
        assert preview.grid == fine.slab(axis, index)


def test_nothing_is_sent_more_often_than_a_viewer_can_follow(monkeypatch):
    """Judgements, previews that the viewer has drawn the last of, and a few figures a second."""
    settings = validated(TrainSRSettings, **SMALL | {"iterations": 60})
    source = training_worker.SourceVolume("T1", VOLUME, Grid(VOLUME.shape), {}, (0, 1))
    began = time.perf_counter()
    run = training_steps(TrainingRequest(source, settings), CurrentSlice(3), PreviewThrottle(), Budget())

    outcome = None

    def collect():
        nonlocal outcome
        outcome = yield from run

    progress = list(collect())
    assert progress.pop(0).training is None  # before the first validation
    seconds = time.perf_counter() - began
    validations = [one for one in progress if one.spectra is not None]
    assert len(validations) == 21  # twenty, and before the first iteration
    assert len(progress) <= len(validations) + 1 + seconds / 0.25
    assert sum(one.preview is not None for one in progress) == 1  # nobody has drawn the first
    assert outcome.preview is not None
    assert outcome.trained.history == progress[-1].training.history
    np.testing.assert_allclose(
        validations[0].spectra.spline[:3],
        np.linalg.svd(upsample_bspline(progress[0].training.low, (2, 2)), compute_uv=False)[:3],
    )
