"""Files that version 0.1.0 wrote are read as they were meant: see data/README.md."""

import dataclasses
import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from napari_gsvolume import GaussianVolume
from napari_gsvolume.explain import load_model
from napari_gsvolume.explain.tracking.evolution_csv import read_evolutions
from napari_gsvolume.io.nifti import read_nifti, write_nifti
from napari_gsvolume.rendering.cameras import Cameras, load_images
from napari_gsvolume.rendering.splats.ply import read_splats, write_splats
from napari_gsvolume.rendering.volume.transfer_functions import TransferFunction
from napari_gsvolume.super_resolution.model import SRModel
from napari_gsvolume.super_resolution.upsampling import superresolve
from napari_gsvolume.tomography.projections import read_projections, sidecar_scan, write_projections
from napari_gsvolume.tomography.scan import Scan

pytestmark = pytest.mark.usefixtures("one_thread")

FOLDER = Path(__file__).parents[1] / "data" / "v0.1.0"
GROUND = (0.1, 0.2, 0.3)
# zlib-ng packs the same content in other bytes than the zlib that these files were packed with.
same_zlib = pytest.mark.skipif("ng" in zlib.ZLIB_RUNTIME_VERSION, reason="another zlib")


def names(pattern: str) -> list[str]:
    return sorted(path.name for path in FOLDER.glob(pattern))


GAUSSIANS = [*names("*.gsv"), *names("*-[23]d.safetensors")]
MODELS = names("superresolution-*.safetensors")
SPLATS = names("*.ply")
STACKS = names("projections-*.nii.gz")
CAMERAS = names("*.npz")
CAMERAS.remove("expected.npz")
TRANSFERS = names("transfer*.json")
GEOMETRIES = names("projections-*.json") + names("geometry-*.json")


# Settings of super-resolution models in files of version 0.1.0, and in files of today.
SETTINGS = {
    "axes": "upsample_axes",
    "axis": "slice_axis",
    "functions": "basis",
    "order": "spline_degree",
    "patch": "patch_size",
    "batch": "batch_size",
    "lambda_squared": "l2_weight",
    "lambda_absolute": "l1_weight",
    "lambda_consistency": "consistency_weight",
    "lambda_orthogonality": "orthogonality_weight",
    "lambda_perceptual": "perceptual_weight",
    "lambda_adversarial": "adversarial_weight",
    "perceptual": "perceptual_features",
    "learn_weights": "uncertainty_weighting",
    "weighting": "frequency_weighting",
    "random_signs": "sign_flips",
    "hold_out": "validation_fraction",
}
VALUES = {("scheme", "a"): "singular-vectors", ("scheme", "b"): "residual", ("functions", "decoders"): "learned"}


@pytest.fixture(scope="module")
def told():
    """Return a function that returns what a file holds, by field."""
    with np.load(FOLDER / "expected.npz") as arrays:
        truth = dict(arrays)
    return lambda name: {key.split(":", 1)[1]: v for key, v in truth.items() if key.split(":", 1)[0] == name}


def contents_of(path: Path) -> tuple[dict, bytes]:
    """Return the header and the numbers of a safetensors file, whose header may have any order."""
    content = path.read_bytes()
    (length,) = struct.unpack_from("<Q", content)
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def test_every_file_is_read_here() -> None:
    """No sample has gone, and none is left out."""
    tested = {*GAUSSIANS, *MODELS, *SPLATS, *STACKS, *CAMERAS, *TRANSFERS, *GEOMETRIES}
    assert tested | {"evolution.csv", "volume.nii.gz", "expected.npz"} == {path.name for path in FOLDER.iterdir()}
    assert [len(files) for files in (GAUSSIANS, MODELS, SPLATS, STACKS, CAMERAS, TRANSFERS, GEOMETRIES)] == [
        11,
        6,
        6,
        4,
        3,
        2,
        5,
    ]


class TestGaussians:
    @pytest.mark.parametrize("name", GAUSSIANS)
    def test_read(self, name, told) -> None:
        g, truth = GaussianVolume.load(FOLDER / name), told(name)
        for field in ("means", "factors", "weights"):
            if name.endswith(".gsv"):  # dequantised: equal up to the last bits of other processors
                np.testing.assert_allclose(getattr(g, field), truth[field], rtol=1e-6, atol=1e-7)
            else:
                np.testing.assert_array_equal(getattr(g, field), truth[field])
        assert g.background == truth["background"]
        assert g.grid.shape == tuple(truth["shape"])
        np.testing.assert_array_equal(g.grid.affine, truth["affine"])
        assert g.grid.units == tuple(truth["units"])
        assert g.grid.axis_labels == tuple(truth["axis_labels"])
        assert g.metadata == json.loads(str(truth["metadata"]))
        values = g.sample()[(slice(None, None, 3),) * g.ndim]
        np.testing.assert_allclose(values, truth["values"], rtol=1e-4, atol=1e-3)

    @same_zlib
    @pytest.mark.parametrize("name", names("*.gsv"))
    def test_written_again_small_files_are_the_same_bytes(self, name, tmp_path) -> None:
        GaussianVolume.load(FOLDER / name).save(tmp_path / name)
        assert (tmp_path / name).read_bytes() == (FOLDER / name).read_bytes()

    @pytest.mark.parametrize("name", names("*-[23]d.safetensors"))
    def test_written_again_lossless_files_say_the_same(self, name, tmp_path) -> None:
        GaussianVolume.load(FOLDER / name).save(tmp_path / name)
        assert contents_of(tmp_path / name) == contents_of(FOLDER / name)

    def test_the_shell_tells_of_them(self, capsys) -> None:
        from napari_gsvolume.cli import main

        for name in GAUSSIANS:
            assert main(["info", str(FOLDER / name), "--json"]) == 0
            assert json.loads(capsys.readouterr().out)["n_gaussians"] == len(GaussianVolume.load(FOLDER / name))


class TestSplats:
    @pytest.mark.parametrize("name", SPLATS)
    def test_read(self, name, told) -> None:
        splats, truth = read_splats(FOLDER / name), told(name)
        for field in ("means", "log_scales", "quaternions", "logits", "sh"):
            np.testing.assert_array_equal(
                getattr(splats, "opacity_logits" if field == "logits" else field), truth[field]
            )
        if "rendered" in truth:
            images = splats.render(Cameras.load(FOLDER / "views.npz"), GROUND, backend="cpu")
            np.testing.assert_allclose(images, truth["rendered"], atol=1e-4)

    @pytest.mark.parametrize("name", [name for name in SPLATS if name != "export-3d.ply"])
    def test_written_again_they_are_the_same_bytes(self, name, tmp_path) -> None:
        write_splats(tmp_path / name, read_splats(FOLDER / name))
        assert (tmp_path / name).read_bytes() == (FOLDER / name).read_bytes()

    def test_the_export_of_gaussians_too(self, tmp_path) -> None:
        """Read and written as splats; Gaussians are not made of it again."""
        name = "export-3d.ply"
        write_splats(tmp_path / name, read_splats(FOLDER / name))
        assert (tmp_path / name).read_bytes() == (FOLDER / name).read_bytes()


class TestViews:
    @pytest.mark.parametrize("name", CAMERAS)
    def test_cameras(self, name, told) -> None:
        cameras, images, truth = Cameras.load(FOLDER / name), load_images(FOLDER / name), told(name)
        for field in ("matrices", "intrinsics", "size", "orthographic", "positions"):
            np.testing.assert_allclose(
                getattr(cameras, "image_size" if field == "size" else field), truth[field], rtol=1e-12, atol=1e-12
            )
        assert (images is None) == ("images" not in truth)
        if images is not None:
            np.testing.assert_array_equal(images, truth["images"])

    @same_zlib
    @pytest.mark.parametrize("name", CAMERAS)
    def test_written_again_cameras_are_the_same_bytes(self, name, tmp_path) -> None:
        Cameras.load(FOLDER / name).save(tmp_path / name, load_images(FOLDER / name))
        assert (tmp_path / name).read_bytes() == (FOLDER / name).read_bytes()

    @pytest.mark.parametrize("name", TRANSFERS)
    def test_transfer_functions(self, name, told, tmp_path) -> None:
        transfer, truth = TransferFunction.load(FOLDER / name), told(name)
        np.testing.assert_array_equal(transfer.values, truth["values"])
        np.testing.assert_allclose(transfer.evaluate(np.linspace(-1000, 2000, 41)), truth["at"], rtol=1e-12, atol=1e-15)
        np.testing.assert_allclose(transfer.extinction(transfer.opacities, 50.0), truth["extinction"], rtol=1e-12)
        assert transfer.shading == truth["shading"]
        transfer.save(tmp_path / name)
        assert (tmp_path / name).read_bytes() == (FOLDER / name).read_bytes()


class TestProjections:
    @pytest.mark.parametrize("name", GEOMETRIES)
    def test_geometries(self, name, told) -> None:
        scan, truth = Scan.load(FOLDER / name), told(name)
        assert scan.beam == truth["beam"]
        for field in ("sources", "centres", "u", "v", "pixels", "shape", "voxel_size"):
            np.testing.assert_allclose(getattr(scan, field), truth[field], rtol=1e-12, atol=1e-9)
        starts, ways = scan.rays(1 % len(scan))
        np.testing.assert_allclose(starts[3, 5], truth["ray_start"], rtol=1e-12, atol=1e-9)
        np.testing.assert_allclose(ways[3, 5], truth["ray_way"], rtol=1e-12, atol=1e-12)

    @pytest.mark.parametrize("name", names("projections-*.json"))
    def test_written_again_geometries_are_the_same_bytes(self, name, tmp_path) -> None:
        Scan.load(FOLDER / name).save(tmp_path / name)
        assert (tmp_path / name).read_bytes() == (FOLDER / name).read_bytes()

    @pytest.mark.parametrize("name", STACKS)
    def test_stacks(self, name, told) -> None:
        stack = read_projections(FOLDER / name)
        np.testing.assert_array_equal(stack.images, told(name)["images"])
        beside = sidecar_scan(FOLDER / name)
        assert beside is not None
        assert beside.to_dict() == stack.scan.to_dict()

    @pytest.mark.parametrize("name", STACKS)
    def test_written_again_stacks_say_the_same(self, name, tmp_path) -> None:
        write_projections(tmp_path / name, read_projections(FOLDER / name))
        again = read_projections(tmp_path / name)
        np.testing.assert_array_equal(again.images, read_projections(FOLDER / name).images)
        np.testing.assert_allclose(read_nifti(tmp_path / name).grid.affine, read_nifti(FOLDER / name).grid.affine)

    def test_volume(self, told, tmp_path) -> None:
        image, truth = read_nifti(FOLDER / "volume.nii.gz"), told("volume.nii.gz")
        np.testing.assert_array_equal(image.data, truth["data"])
        np.testing.assert_allclose(image.grid.affine, truth["affine"], rtol=1e-6)
        assert image.grid.units == tuple(truth["units"])
        write_nifti(tmp_path / "volume.nii.gz", image.data, image.grid)
        again = read_nifti(tmp_path / "volume.nii.gz")
        np.testing.assert_array_equal(again.data, image.data)
        assert again.grid == image.grid


class TestSuperResolution:
    @pytest.mark.parametrize("name", MODELS)
    def test_read(self, name, told) -> None:
        model, truth = SRModel.load(FOLDER / name), told(name)
        settings = model.settings
        assert (settings.factor, settings.rank or 0, settings.depth) == tuple(
            truth[field].item() for field in ("factor", "rank", "sees")
        )
        assert model.metrics == json.loads(str(truth["metrics"]))
        low = told("superresolved")["low"]
        low = low if settings.upsample_axes == "in-plane" else np.repeat(low, 2, 0)
        finer = superresolve(low, model, upsample_axes=settings.upsample_axes, project=settings.project).volume
        scale = np.ptp(truth["finer"])
        np.testing.assert_allclose(finer / scale, truth["finer"] / scale, atol=1e-5)

    @pytest.mark.parametrize("name", MODELS)
    def test_what_explains_networks_reads_them(self, name, told) -> None:
        loaded = load_model(FOLDER / name)
        assert loaded.kind == "super-resolution"
        assert loaded.parameters == told(name)["parameters"]

    @pytest.mark.parametrize("name", MODELS)
    def test_written_again_they_hold_the_same_numbers(self, name, tmp_path) -> None:
        """Names in the file may become others; the model does not."""
        model = SRModel.load(FOLDER / name)
        model.save(tmp_path / name)
        again = SRModel.load(tmp_path / name)
        assert (again.settings, again.metrics) == (model.settings, model.metrics)
        assert again.scheme.state_dict().keys() == model.scheme.state_dict().keys()
        for key, tensor in model.scheme.state_dict().items():
            assert torch.equal(again.scheme.state_dict()[key], tensor)

    @pytest.mark.parametrize("name", MODELS)
    def test_written_again_they_say_the_same_under_new_names(self, name, tmp_path) -> None:
        SRModel.load(FOLDER / name).save(tmp_path / name)
        (old, old_tensors), (new, new_tensors) = contents_of(FOLDER / name), contents_of(tmp_path / name)
        assert new_tensors == old_tensors
        old_texts, new_texts = old.pop("__metadata__"), new.pop("__metadata__")
        assert new == old
        assert (old_texts["format"], new_texts["format"]) == ("napari-gsvolume/sr/1", "napari-gsvolume/sr/2")
        assert new_texts["metrics"] == old_texts["metrics"]
        old_settings, new_settings = (json.loads(texts["settings"]) for texts in (old_texts, new_texts))
        assert len(new_settings) == len(old_settings)
        for field, value in old_settings.items():
            assert new_settings[SETTINGS.get(field, field)] == VALUES.get((field, value), value)


def test_the_table_of_a_training(told) -> None:
    evolutions, truth = read_evolutions(FOLDER / "evolution.csv"), told("evolution.csv")
    assert list(evolutions) == list(truth["layers"])
    for layer, evolution in evolutions.items():
        for i, field in enumerate(dataclasses.fields(evolution)):
            np.testing.assert_array_equal(getattr(evolution, field.name), truth[f"{layer}/{i}"])
