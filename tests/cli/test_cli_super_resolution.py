"""The shell's commands about slices as matrices, as the contract says."""

import csv
import json
import signal
from itertools import islice

import nibabel as nib
import numpy as np
import pytest

from napari_gsvolume import Grid
from napari_gsvolume.io.nifti import read_nifti, write_nifti
from napari_gsvolume.phantoms import anatomical_phantom
from napari_gsvolume.super_resolution import training
from napari_gsvolume.super_resolution.bspline import upsample_bspline
from napari_gsvolume.super_resolution.data import TrainingData
from napari_gsvolume.super_resolution.degradation import Degradation
from napari_gsvolume.super_resolution.model import SRModel
from napari_gsvolume.super_resolution.training import train_superresolution, train_superresolution_steps
from napari_gsvolume.super_resolution.upsampling import superresolve

pytestmark = pytest.mark.usefixtures("one_thread")

VOLUME = anatomical_phantom(24)[0][:, :20, :18]
TINY = {"channels": 4, "blocks": 1, "batch_size": 2}
FEW = ("--channels", 4, "--blocks", 1, "--batch-size", 2)


def oblique() -> np.ndarray:
    """Return an affine (z, y, x) that is turned about two axes, flipped, anisotropic and shifted."""
    a, b = 0.4, -0.7
    turn = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    turn = turn @ np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    affine = np.eye(4)
    affine[:3, :3] = turn * [3.0, -0.7, 0.9]
    affine[:3, 3] = -40, 12.5, 90
    return affine


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    grid = Grid(VOLUME.shape, oblique(), ("mm",) * 3)
    write_nifti(folder / "ct.nii.gz", VOLUME, grid)
    write_nifti(folder / "flat.nii.gz", VOLUME[12], Grid((20, 18)))
    bad, constant = VOLUME.copy(), VOLUME.copy()
    bad[12, 3, 4] = np.nan
    constant[12] = 5
    write_nifti(folder / "nan.nii.gz", bad, grid)
    write_nifti(folder / "constant.nii.gz", constant, grid)
    (folder / "empty").mkdir()
    write_nifti(folder / "series.nii.gz", np.stack([VOLUME, 2 * VOLUME]), grid)
    colours = np.zeros((4, 5, 6), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    nib.save(nib.Nifti1Image(colours, np.eye(4)), folder / "rgb.nii.gz")
    for scheme, name in (("singular-vectors", "a"), ("residual", "b")):
        train_superresolution([VOLUME], **TINY, scheme=scheme, iterations=2).model.save(folder / f"{name}.safetensors")
    content = (folder / "b.safetensors").read_bytes()
    (folder / "damaged.safetensors").write_bytes(content[: len(content) // 2])
    (folder / "future.safetensors").write_bytes(content.replace(b"gsvolume/sr/2", b"gsvolume/sr/3"))
    train_superresolution([VOLUME], **TINY, scheme="singular-vectors", rank=8, iterations=1).model.save(
        folder / "rank.safetensors"
    )
    write_nifti(folder / "narrow.nii.gz", VOLUME[:, :, :7], Grid((24, 20, 7)))
    write_nifti(folder / "uniform.nii.gz", np.full_like(VOLUME, 7), grid)
    return folder


class TestSvd:
    def test_one_slice(self, run) -> None:
        code, out, err = run("svd", "ct.nii.gz", "--axis", "y", "--slice", 7, "--rank", 3, "--json")
        assert (code, err) == (0, "")
        facts = json.loads(out)
        matrix = VOLUME[:, 7].astype(np.float64)
        values = np.linalg.svd(matrix, compute_uv=False)
        assert (facts["of"], facts["axis"], facts["slice"], facts["shape"]) == ("slice", "y", 7, [24, 18])
        np.testing.assert_allclose(facts["values"], values)
        energy = np.square(values[:3]).sum() / np.square(values).sum()
        assert facts["at_rank"]["energy"] == pytest.approx(energy)
        assert facts["energy"][2] == pytest.approx(energy)
        mse = np.square(values[3:]).sum() / matrix.size
        assert facts["at_rank"]["best_psnr_db"] == pytest.approx(10 * np.log10(np.ptp(matrix) ** 2 / mse))
        assert facts["stable_rank"] == pytest.approx(np.square(values).sum() / values[0] ** 2)
        assert facts["rank_above_threshold"] == (values > facts["threshold"]).sum()
        code, out, err = run("svd", "ct.nii.gz", "--axis", "y", "--slice", 7, "--rank", 3)
        assert (code, err) == (0, "")
        assert "Slice 7 along y, 24 x 18" in out
        assert f"{values[0]:.5g}" in out
        assert f"effective rank: {facts['effective_rank']:.2f}" in out
        assert f"{facts['at_rank']['best_psnr_db']:.2f} dB" in out

    def test_the_middle_slice_and_an_image(self, run) -> None:
        for name, k in (("ct.nii.gz", 12), ("flat.nii.gz", 0), ("series.nii.gz", 12)):
            more = ("--time-point", 0) if name == "series.nii.gz" else ()
            facts = json.loads(run("svd", name, *more, "--json")[1])
            assert facts["slice"] == k
            np.testing.assert_allclose(
                facts["values"], np.linalg.svd(VOLUME[12], compute_uv=False), rtol=1e-4, atol=0.1
            )

    def test_all_slices_and_the_unfolding(self, run) -> None:
        facts = json.loads(run("svd", "constant.nii.gz", "--of", "slices", "--rank", 1, "--json")[1])
        assert (np.shape(facts["values"]), facts["count"]) == ((24, 18), 24)
        assert facts["at_rank"]["energy"][12] == pytest.approx(1)
        np.testing.assert_allclose(facts["effective_rank"][12], 1, atol=1e-6)
        code, out, _ = run("svd", "constant.nii.gz", "--of", "slices", "--rank", 1)
        assert code == 0
        assert "24 slices along z, 20 x 18" in out
        assert f"to {max(facts['effective_rank']):.5g}" in out
        facts = json.loads(run("svd", "ct.nii.gz", "--axis", "x", "--of", "unfolding", "--json")[1])
        assert facts["shape"] == [18, 24 * 20]
        expected = np.linalg.svd(VOLUME.transpose(2, 0, 1).reshape(18, -1).astype(np.float64), compute_uv=False)
        np.testing.assert_allclose(facts["values"], expected)
        assert "Unfolding along x, 18 x 480" in run("svd", "ct.nii.gz", "--axis", "x", "--of", "unfolding")[1]


class TestSuperresolve:
    @pytest.mark.parametrize(
        ("options", "factors"),
        [
            ((), (1, 2, 2)),
            (("--slice-axis", "x"), (2, 2, 1)),
            (("--upsample-axes", "through-plane", "--factor", 3, "--degradation", "bicubic"), (3, 1, 1)),
            (("--factor", 1.5, "--degradation", "psf", "--fwhm", 1.2), (1, 1.5, 1.5)),
        ],
    )
    def test_the_same_extent_of_the_world_and_the_same_measurements(self, run, tmp_path, options, factors) -> None:
        path = tmp_path / "HR.nii.gz"
        code, out, err = run("superresolve", "ct.nii.gz", "--scheme", "spline", *options, "--out", path)
        assert (code, err) == (0, "")
        source, made = read_nifti("ct.nii.gz"), read_nifti(path)
        assert made.data.shape == tuple(round(n * f) for n, f in zip(VOLUME.shape, factors, strict=True))
        assert " x ".join(map(str, made.data.shape)) in out
        np.testing.assert_allclose(made.grid.voxel_size, source.grid.voxel_size / factors, rtol=1e-6)
        # Points: a place at either face, or anywhere within, has the index that the factor says.
        for part in (np.zeros(3), np.array([0.3, 0.8, 0.5]), 1 / np.array([1, 2, 3])):
            old = np.append(part * source.grid.shape - 0.5, 1)
            new = np.append(part * source.grid.shape * factors - 0.5, 1)
            np.testing.assert_allclose(made.grid.affine @ new, source.grid.affine @ old, atol=1e-4)
        kind = dict(zip(options[::2], options[1::2], strict=True)).get("--degradation", "block-mean")
        degradation = Degradation.of_low(VOLUME.shape, factors, kind, 1.2)
        assert np.abs(degradation.degrade(made.data) - VOLUME).max() < 1e-5 * np.abs(VOLUME).max()
        assert made.header["sform_code"] == source.header["sform_code"] > 0

    def test_without_the_projection_it_is_the_spline(self, run, tmp_path) -> None:
        path = tmp_path / "HR.nii.gz"
        assert run("superresolve", "ct.nii.gz", "--no-project", "--quiet", "--out", path) == (0, "", "")
        np.testing.assert_allclose(read_nifti(path).data, upsample_bspline(VOLUME, (1, 2, 2)), atol=1e-2)
        assert np.abs(Degradation.of_low(VOLUME.shape, (1, 2, 2)).degrade(read_nifti(path).data) - VOLUME).max() > 10

    def test_an_image_and_a_volume_of_a_series(self, run, tmp_path) -> None:
        path = tmp_path / "HR.nii.gz"
        assert run("superresolve", "flat.nii.gz", "--factor", 4, "--out", path)[0] == 0
        assert read_nifti(path).data.shape == (80, 72)
        assert run("superresolve", "series.nii.gz", "--time-point", 1, "--out", path)[0] == 0
        low = Degradation.of_low(VOLUME.shape, (1, 2, 2)).degrade(read_nifti(path).data)
        np.testing.assert_allclose(low, 2 * VOLUME, atol=0.1)

    @pytest.mark.parametrize("scheme", ["singular-vectors", "residual"])
    @pytest.mark.parametrize("axes", ["in-plane", "through-plane"])
    def test_by_a_model(self, run, tmp_path, scheme, axes) -> None:
        path, model = tmp_path / "HR.nii.gz", {"singular-vectors": "a", "residual": "b"}[scheme] + ".safetensors"
        code, out, err = run(
            "superresolve", "ct.nii.gz", "--scheme", scheme, "--model", model, "--upsample-axes", axes, "--out", path
        )
        assert (code, err) == (0, "")
        assert "Data consistency" in out
        source, finer = read_nifti("ct.nii.gz"), read_nifti(path)
        factors = (1, 2, 2) if axes == "in-plane" else (2, 1, 1)
        np.testing.assert_allclose(finer.grid.affine, source.grid.resampled(factors).affine, atol=1e-4)
        expected = superresolve(VOLUME, SRModel.load(model), upsample_axes=axes).volume
        np.testing.assert_allclose(finer.data, expected, atol=1e-2)
        assert np.abs(expected - upsample_bspline(VOLUME, factors)).max() > 1
        low = Degradation.of_low(VOLUME.shape, factors).degrade(finer.data)
        assert np.abs(low - VOLUME).max() < 1e-5 * np.abs(VOLUME).max()

    def test_without_the_ensemble(self, run, tmp_path) -> None:
        path = tmp_path / "HR.nii.gz"
        words = ("--scheme", "residual", "--model", "b.safetensors", "--no-ensemble", "--out", path)
        assert run("superresolve", "ct.nii.gz", *words)[0] == 0
        expected = superresolve(VOLUME, SRModel.load("b.safetensors"), ensemble=False).volume
        np.testing.assert_allclose(read_nifti(path).data, expected, atol=1e-2)

    def test_an_image_by_a_model(self, run, tmp_path) -> None:
        path = tmp_path / "HR.nii.gz"
        assert (
            run("superresolve", "flat.nii.gz", "--scheme", "residual", "--model", "b.safetensors", "--out", path)[0]
            == 0
        )
        assert read_nifti(path).data.shape == (40, 36)


class TestTrainSr:
    @pytest.mark.parametrize(
        "options", [("--scheme", "singular-vectors"), ("--scheme", "residual", "--backbone", "unet"), ()]
    )
    def test_model_and_report(self, run, tmp_path, options) -> None:
        model, report = tmp_path / "SR.safetensors", tmp_path / "R.json"
        code, out, err = run(
            "train-sr",
            "ct.nii.gz",
            "--factor",
            2,
            "--iterations",
            3,
            *FEW,
            *options,
            "--out",
            model,
            "--report",
            report,
        )
        assert (code, err) == (0, "")
        figures, loaded = json.loads(report.read_text()), SRModel.load(model)
        assert figures["settings"] == loaded.settings.model_dump()
        assert figures["psnr_db"] == loaded.metrics["psnr_db"]
        assert set(figures["psnr_db"]) == {"cubic B-spline", "B-spline + projection", "model", "best of rank 9"}
        for name, psnr in figures["psnr_db"].items():
            assert f"{name}: {psnr:.2f}" in out
        assert "All iterations are done. 3 iterations" in out
        chosen = dict(zip(options[::2], options[1::2], strict=True))
        assert loaded.settings.scheme == chosen.get("--scheme", "residual")
        assert loaded.settings.backbone == chosen.get("--backbone", "edsr")
        scheme = loaded.settings.scheme
        made = run("superresolve", "ct.nii.gz", "--scheme", scheme, "--model", model, "--out", tmp_path / "HR.nii.gz")
        assert made[0] == 0

    @pytest.mark.parametrize("scheme", ["singular-vectors", "residual"])
    def test_followed(self, run, tmp_path, scheme) -> None:
        """It learns the same; the table has the judgments as epochs."""
        model, report, table = tmp_path / "SR.safetensors", tmp_path / "R.json", tmp_path / "T.csv"
        words = "train-sr", "ct.nii.gz", "--iterations", 3, *FEW, "--scheme", scheme, "--out", model
        assert run(*words)[0] == 0
        alone = SRModel.load(model).metrics["psnr_db"]
        code, out, err = run(*words, "--report", report, "--track", table)
        assert (code, err) == (0, "")
        assert f"{table}: " in out
        assert SRModel.load(model).metrics["psnr_db"] == alone
        with table.open(newline="") as file:
            rows = list(csv.DictReader(file))
        judged = [point["iteration"] for point in json.loads(report.read_text())["history"]]
        assert sorted({int(row["epoch"]) for row in rows}) == judged
        assert all(float(row["value"]) >= 0 for row in rows)

    def test_checkpoints(self, run, tmp_path) -> None:
        folder, report = tmp_path / "run", tmp_path / "R.json"
        words = "train-sr", "ct.nii.gz", "--iterations", 3, *FEW, "--checkpoints", folder, "--report", report
        assert run(*words)[0] == 0
        judged = {p["iteration"]: p["psnr_db"] for p in json.loads(report.read_text())["history"]}
        saved = [SRModel.load(path).metrics for path in folder.iterdir()]
        assert {m["iterations"]: m["psnr_db"]["model"] for m in saved}.items() <= judged.items()
        assert max(m["iterations"] for m in saved) == 3
        followed = tmp_path / "T"
        assert (
            run("track", "--checkpoints", folder / "*.safetensors", "--images", "ct.nii.gz", "--out", followed)[0] == 0
        )
        assert (followed / "report.html").exists()

    def test_several_volumes_one_of_a_series(self, run, tmp_path) -> None:
        report = tmp_path / "R.json"
        words = (
            "ct.nii.gz",
            "series.nii.gz",
            "--time-point",
            1,
            "--iterations",
            1,
            *FEW,
            "--report",
            report,
            "--quiet",
        )
        assert run("train-sr", *words) == (0, "", "")
        assert json.loads(report.read_text())["history"][-1]["iteration"] == 1

    def test_a_folder(self, run, inputs, tmp_path, monkeypatch) -> None:
        source = read_nifti(inputs / "ct.nii.gz")
        for name, times in (("b.nii", 1), ("a.NII.gz", 2), ("c.nii.gz", 3)):
            write_nifti(tmp_path / name, times * VOLUME, source.grid)
        (tmp_path / "notes.txt").write_text("no image")
        (tmp_path / "d.nii").mkdir()
        seen = []

        def seeing(volumes, sizes, **settings):
            seen.extend((float(volume.max() / VOLUME.max()), size) for volume, size in zip(volumes, sizes, strict=True))
            return train_superresolution_steps(volumes, sizes, **settings)

        monkeypatch.setattr(training, "train_superresolution_steps", seeing)
        words = ("--iterations", 1, *FEW, "--quiet")
        assert run("train-sr", tmp_path, "ct.nii.gz", *words) == (0, "", "")
        np.testing.assert_allclose([times for times, _ in seen], [2, 1, 3, 1], rtol=1e-5)
        np.testing.assert_allclose([size for _, size in seen], [source.grid.voxel_size] * 4, rtol=1e-5)

    def test_interrupted_it_keeps_the_best(self, run, tmp_path, monkeypatch) -> None:
        batches = TrainingData.batches

        def interrupted(self, random):
            for k, batch in enumerate(batches(self, random), 1):
                if k == 4:
                    signal.raise_signal(signal.SIGINT)
                yield batch

        monkeypatch.setattr(TrainingData, "batches", interrupted)
        model = tmp_path / "SR.safetensors"
        code, out, err = run("train-sr", "ct.nii.gz", "--iterations", 9999, *FEW, "--out", model)
        assert (code, err) == (0, "")
        assert "Stopped. 4 iterations" in out
        assert SRModel.load(model).metrics["iterations"] == 4

    def test_an_error_in_an_iteration_keeps_the_best(self, run, tmp_path, monkeypatch) -> None:
        def failing(self, random):
            yield from islice(batches(self, random), 2)
            raise RuntimeError("no luck")

        batches = TrainingData.batches
        monkeypatch.setattr(TrainingData, "batches", failing)
        model, report = tmp_path / "SR.safetensors", tmp_path / "R.json"
        words = "train-sr", "ct.nii.gz", "--iterations", 9, *FEW, "--out", model, "--report", report
        code, out, err = run(*words)
        assert (code, out) == (1, "")
        assert "failed in iteration 3: no luck." in err
        assert SRModel.load(model).metrics["iterations"] == 2
        assert json.loads(report.read_text())["message"] in err


OUT = ("--out", "HR.nii.gz")
SR = ("--out", "SR.safetensors")
BAD = {
    "a rank": (("svd", "ct.nii.gz", "--rank", 19), "1 to 18"),
    "a rank of all": (("svd", "ct.nii.gz", "--of", "slices", "--rank", 0), "1 to 18"),
    "a slice": (("svd", "ct.nii.gz", "--slice", 24), "0 to 23"),
    "a slice of all": (("svd", "ct.nii.gz", "--of", "slices", "--slice", 2), "--of slice"),
    "a constant slice": (("svd", "constant.nii.gz"), "constant"),
    "NaN": (("svd", "nan.nii.gz"), "NaN"),
    "NaN among all": (("svd", "nan.nii.gz", "--of", "slices"), "NaN"),
    "colours": (("svd", "rgb.nii.gz"), "colours"),
    "an axis of an image": (("svd", "flat.nii.gz", "--axis", "y"), "two axes"),
    "a series": (("svd", "series.nii.gz"), "--time-point"),
    "a factor": (("superresolve", "ct.nii.gz", "--factor", 1, *OUT), "--factor"),
    "a scheme": (("superresolve", "ct.nii.gz", "--scheme", "nearest", *OUT), "scheme"),
    "a volume with NaN": (("superresolve", "nan.nii.gz", *OUT), "NaN"),
    "a volume of colours": (("superresolve", "rgb.nii.gz", *OUT), "colours"),
    "slices of an image": (("superresolve", "flat.nii.gz", "--upsample-axes", "through-plane", *OUT), "two axes"),
    "a wide psf": (("superresolve", "ct.nii.gz", "--degradation", "psf", "--fwhm", 5, *OUT), "psf"),
    "an ending": (("superresolve", "ct.nii.gz", "--out", "HR.npz"), ".nii.gz"),
    "a model of another factor": (
        ("superresolve", "ct.nii.gz", "--factor", 3, "--scheme", "residual", "--model", "b.safetensors", *OUT),
        "factor 2, not 3",
    ),
    "a model of another scheme": (
        ("superresolve", "ct.nii.gz", "--scheme", "singular-vectors", "--model", "b.safetensors", *OUT),
        "scheme residual, not singular-vectors",
    ),
    "a model of another degradation": (
        (
            "superresolve",
            "ct.nii.gz",
            "--scheme",
            "residual",
            "--model",
            "b.safetensors",
            "--degradation",
            "bicubic",
            *OUT,
        ),
        "block-mean, not bicubic",
    ),
    "no model": (("superresolve", "ct.nii.gz", "--scheme", "residual", *OUT), "--model"),
    "a model that is not there": (
        ("superresolve", "ct.nii.gz", "--scheme", "residual", "--model", "no.pt", *OUT),
        "no.pt",
    ),
    "a model that is none": (
        ("superresolve", "ct.nii.gz", "--scheme", "residual", "--model", "ct.nii.gz", *OUT),
        "ct.nii.gz",
    ),
    "a damaged model": (
        ("superresolve", "ct.nii.gz", "--scheme", "residual", "--model", "damaged.safetensors", *OUT),
        "damaged.safetensors is damaged",
    ),
    "a model of a future version": (
        ("superresolve", "ct.nii.gz", "--scheme", "residual", "--model", "future.safetensors", *OUT),
        "try a newer napari-gsvolume",
    ),
    "a model of more modes": (
        ("superresolve", "narrow.nii.gz", "--scheme", "singular-vectors", "--model", "rank.safetensors", *OUT),
        "takes 8 modes",
    ),
    "a model for a spline": (("superresolve", "ct.nii.gz", "--model", "b.safetensors", *OUT), "--scheme"),
    "NaN with a model": (
        ("superresolve", "nan.nii.gz", "--scheme", "residual", "--model", "b.safetensors", *OUT),
        "NaN",
    ),
    "training on NaN": (("train-sr", "ct.nii.gz", "nan.nii.gz", *SR), "nan.nii.gz: There are NaN"),
    "training on colours": (("train-sr", "rgb.nii.gz", *SR), "colours"),
    "training on an empty folder": (("train-sr", "empty", *SR), "empty contains no .nii"),
    "training on what is constant": (("train-sr", "uniform.nii.gz", *SR), "constant"),
    "training with weights that are not there": (
        ("train-sr", "ct.nii.gz", "--perceptual-weight", 1, "--perceptual-features", "no.safetensors", *FEW, *SR),
        "no.safetensors cannot be read",
    ),
    "training with weights of another kind": (
        ("train-sr", "ct.nii.gz", "--perceptual-features", "VGG.pt", *SR),
        "VGG.pt",
    ),
    "training of decoders": (
        ("train-sr", "ct.nii.gz", "--basis", "learned", "--smoothing", 1, *SR),
        "omit them with learned decoders",
    ),
    "training on an image": (("train-sr", "flat.nii.gz", *SR), "two axes"),
    "training on a series": (("train-sr", "series.nii.gz", *SR), "--time-point"),
    "training on too little": (("train-sr", "ct.nii.gz", "--factor", 3, *SR), "too small"),
    "training of a rank": (("train-sr", "ct.nii.gz", "--rank", 12, *SR), "1 to 8"),
    "training of a scheme": (("train-sr", "ct.nii.gz", "--scheme", "spline", *SR), "scheme"),
    "training of a backbone": (("train-sr", "ct.nii.gz", "--backbone", "hat", "--factor", 1.5, *SR), "edsr"),
    "a model's ending": (("train-sr", "ct.nii.gz", "--out", "SR.pt"), ".safetensors"),
    "a table's ending": (("train-sr", "ct.nii.gz", "--track", "T.txt", *SR), ".csv"),
    "the input": (("superresolve", "ct.nii.gz", "--out", "ct.nii.gz"), "taken"),
}


@pytest.mark.parametrize("case", BAD)
def test_one_sentence(run, inputs, case) -> None:
    arguments, words = BAD[case]
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert words in err
    assert err.count("\n") == 1
    assert not (inputs / "HR.nii.gz").exists()
    assert not (inputs / "SR.safetensors").exists()
