"""The shell's commands that render views, as the contract says."""

import json

import numpy as np
import pytest

from napari_gsvolume import Grid
from napari_gsvolume.io.nifti import write_nifti
from napari_gsvolume.phantoms import anatomical_phantom
from napari_gsvolume.rendering.cameras import Cameras
from napari_gsvolume.rendering.splats.ply import read_splats
from napari_gsvolume.rendering.volume.transfer_functions import TransferFunction

QUICK = ("--views", 8, "--image-size", 40, "--gaussians", 300, "--iterations", 60, "--held-out-views", 2)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    volume = anatomical_phantom(32)[0]
    grid = Grid(volume.shape, np.diag([2.0, 1, 1, 1]), ("mm",) * 3)
    write_nifti(folder / "ct.nii.gz", volume, grid)
    write_nifti(folder / "unit.nii.gz", (volume - volume.min()) / np.ptp(volume), grid)
    labels = np.zeros(volume.shape, np.float32)
    labels[:16] = 1
    write_nifti(folder / "labels.nii.gz", labels, grid)
    write_nifti(folder / "other.nii.gz", labels[1:], Grid(labels[1:].shape))
    write_nifti(folder / "flat.nii.gz", volume[5], Grid(volume[5].shape))
    TransferFunction.from_preset("ct-soft-tissue", volume).save(folder / "tf.json")
    (folder / "bad.json").write_text("{}")
    return folder


def test_the_contract(run, tmp_path):
    views, model, report, rendered = (tmp_path / n for n in ("VIEWS.npz", "MODEL.ply", "R.json", "RENDERED.npz"))
    bone = ("ct.nii.gz", "--preset", "ct-bone")
    code, out, err = run("views", *bone, "--mode", "dvr", "--views", 5, "--image-size", 40, "--out", views)
    assert (code, err) == (0, "")
    assert "5 views of 40 x 40 pixels" in out
    with np.load(views) as file:
        assert file["images"].shape == (5, 40, 40, 3)
        assert file["images"].dtype == np.float32
        assert file["images"].max() > 0.3
        assert file["cameras"].shape == (5, 4, 4)
        assert file["intrinsics"].shape == (5, 3, 3)
        images = file["images"]
    code, out, err = run("train-views", *bone, *QUICK, "--sh-degree", 1, "--out", model, "--report", report)
    assert (code, err) == (0, "")
    assert "All iterations are done." in out
    figures = json.loads(report.read_text())
    assert {"psnr_db", "ssim", "n_gaussians", "fps", "history"} <= set(figures)
    assert f"{figures['psnr_db']:.2f} dB" in out
    assert len(read_splats(model)) == figures["n_gaussians"]
    assert read_splats(model).sh_degree == 1
    code, out, err = run("render", model, "--cameras", views, "--out", rendered)
    assert (code, err) == (0, "")
    with np.load(rendered) as file:
        psnr = -10 * np.log10(np.square(np.clip(file["images"], 0, 1) - images).mean())
    assert f"{psnr:.2f} dB" in out
    assert psnr > 20
    np.testing.assert_allclose(Cameras.load(rendered).matrices, Cameras.load(views).matrices)


@pytest.mark.parametrize("mode", ["mip", "minip", "mean", "xray"])
def test_modes(run, tmp_path, mode):
    assert (
        run("views", "ct.nii.gz", "--mode", mode, "--views", 2, "--image-size", 20, "--out", tmp_path / "V.npz")[0] == 0
    )
    with np.load(tmp_path / "V.npz") as file:
        assert file["images"].shape == (2, 20, 20, 1)


def test_colors_from_a_file_a_mask_and_parallel_rays(run, tmp_path):
    common = ("views", "ct.nii.gz", "--tf", "tf.json", "--views", 3, "--image-size", 24, "--orthographic")
    for name, more in (("all", ()), ("half", ("--mask", "labels.nii.gz")), ("plain", ("--no-shading",))):
        assert run(*common, *more, "--out", tmp_path / f"{name}.npz")[0] == 0
    assert Cameras.load(tmp_path / "all.npz").orthographic
    images = {name: np.load(tmp_path / f"{name}.npz")["images"] for name in ("all", "half", "plain")}
    assert images["half"].sum() < 0.9 * images["all"].sum()
    assert not np.array_equal(images["plain"], images["all"])


def test_another_size(run, tmp_path):
    views, model, rendered = (tmp_path / n for n in ("V.npz", "M.ply", "R.npz"))
    assert run("views", "ct.nii.gz", "--preset", "ct-bone", "--views", 2, "--image-size", 20, "--out", views)[0] == 0
    assert run("train-views", "ct.nii.gz", *QUICK, "--out", model)[0] == 0
    assert run("render", model, "--cameras", views, "--image-size", 50, "--sh-degree", 0, "--out", rendered)[0] == 0
    assert np.load(rendered)["images"].shape == (2, 50, 50, 3)


CT, OUT = ("views", "ct.nii.gz"), ("--out", "V.npz")
BAD = {
    "two choices of colours": ((*CT, "--preset", "mr", "--tf", "tf.json", *OUT), "one of them"),
    "colours of a MIP": ((*CT, "--mode", "mip", "--preset", "mr", *OUT), "leave them out"),
    "no Hounsfield units": (("views", "unit.nii.gz", "--preset", "ct-bone", *OUT), "HU"),
    "an image": (("views", "flat.nii.gz", *OUT), "two axes"),
    "another mask": ((*CT, "--mask", "other.nii.gz", *OUT), "shape"),
    "damaged colours": ((*CT, "--tf", "bad.json", *OUT), "bad.json"),
    "another ending": (("train-views", "ct.nii.gz", "--out", "M.gsv"), ".ply"),
    "no splats": (("render", "tf.json", "--cameras", "V.npz", "--out", "R.npz"), "PLY"),
    "a degree": (("train-views", "ct.nii.gz", "--sh-degree", 4), "--sh-degree"),
}


@pytest.mark.parametrize("case", BAD)
def test_one_sentence(run, inputs, case):
    arguments, words = BAD[case]
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert words in err
    assert err.count("\n") == 1
    assert not (inputs / "V.npz").exists()


def test_cameras_that_are_none(run, inputs, tmp_path):
    model = tmp_path / "M.ply"
    assert run("train-views", "ct.nii.gz", *QUICK, "--out", model)[0] == 0
    np.savez(tmp_path / "empty.npz", images=np.zeros((1, 2, 2, 3)))
    np.savez(tmp_path / "wrong.npz", cameras=np.zeros((1, 4, 4)), intrinsics=np.zeros((1, 3, 3)), size=(2, 2))
    for name, words in (("empty.npz", "no cameras"), ("wrong.npz", "rotation"), ("M.ply", "no npz file")):
        code, _, err = run("render", model, "--cameras", tmp_path / name, "--out", tmp_path / "R.npz")
        assert code == 2
        assert words in err
        assert err.count("\n") == 1
