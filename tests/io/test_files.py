"""`load` and `save`: every kind of file there and back, and what is refused."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from napari_gsvolume import GaussianVolume, Grid
from napari_gsvolume.errors import FileFormatError, InputError
from napari_gsvolume.io import NiftiImage, load, read_nifti, save, write_nifti
from napari_gsvolume.rendering.splats.model import Splats
from napari_gsvolume.super_resolution.model import SRModel

FOLDER = Path(__file__).parents[1] / "data" / "v0.1.0"
GRID = Grid((3, 4, 5), np.diag([2.0, 1, 1, 1]), ("mm",) * 3)


@pytest.fixture
def gaussians() -> GaussianVolume:
    return GaussianVolume(torch.ones(2, 3), torch.eye(3).repeat(2, 1, 1), torch.tensor([1.0, -2.0]), GRID, 0.5)


@pytest.mark.parametrize("suffix", [".gsv", ".safetensors", ".SAFETENSORS"])
def test_gaussians(tmp_path, gaussians, suffix) -> None:
    path = tmp_path / f"model{suffix}"
    save(path, gaussians)
    found = load(path)
    assert isinstance(found, GaussianVolume)
    assert (len(found), found.grid, found.background) == (2, GRID, 0.5)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_images(tmp_path, suffix) -> None:
    path, series = tmp_path / f"image{suffix}", tmp_path / f"series{suffix}"
    values = np.arange(60, dtype=np.float32).reshape(3, 4, 5)
    save(path, NiftiImage(values, GRID, None))
    found = load(path)
    assert isinstance(found, NiftiImage)
    assert found.grid == GRID
    np.testing.assert_array_equal(found.data, values)
    write_nifti(series, np.stack([values] * 2), GRID, like=found, time_step=2.5, time_unit="second")
    save(path, load(series))
    again = read_nifti(path)
    assert (again.data.shape, again.time_step, again.time_unit) == ((2, 3, 4, 5), 2.5, "second")


def test_splats(tmp_path, gaussians) -> None:
    path = tmp_path / "splats.ply"
    save(path, gaussians)  # an export, read as any program would
    splats = load(str(path))
    assert isinstance(splats, Splats)
    assert len(splats) == 2
    save(path, splats)
    again = load(path)
    assert isinstance(again, Splats)
    assert torch.equal(again.means, splats.means)


def test_super_resolution_models(tmp_path) -> None:
    [first, *_] = sorted(FOLDER.glob("superresolution-*.safetensors"))
    model = load(first)
    assert isinstance(model, SRModel)
    save(tmp_path / "model.safetensors", model)
    again = load(tmp_path / "model.safetensors")
    assert isinstance(again, SRModel)
    assert again.settings == model.settings


def test_what_cannot_be_loaded(tmp_path, refused) -> None:
    with refused(InputError, "ends in", "picture.png"):
        load(tmp_path / "picture.png")
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "no.safetensors")
    (tmp_path / "bad.safetensors").write_bytes(b"no such file")
    with refused(FileFormatError, "bad.safetensors"):
        load(tmp_path / "bad.safetensors")


def test_what_cannot_be_saved(tmp_path, gaussians, refused) -> None:
    with refused(InputError, "ends in", "model.nii"):
        save(tmp_path / "model.nii", gaussians)
    with refused(InputError, ".nii", "image.gsv"):
        save(tmp_path / "image.gsv", NiftiImage(np.zeros((3, 4, 5)), GRID, None))
    with pytest.raises(TypeError, match="ndarray cannot be saved"):
        save(tmp_path / "image.nii", np.zeros((3, 4, 5)))  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_images_need_no_torch(tmp_path) -> None:
    code = (
        "import sys; from napari_gsvolume.io import load, save, NiftiImage; import numpy as np; "
        "from napari_gsvolume.grid import Grid; "
        "save(sys.argv[1], NiftiImage(np.zeros((2, 2, 2)), Grid((2, 2, 2)), None)); load(sys.argv[1]); "
        "assert 'torch' not in sys.modules"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "image.nii")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
