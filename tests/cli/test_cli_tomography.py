"""``gsvolume project``: files in, files out, and what is said about wrong ones."""

import json
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from napari_gsvolume import GaussianVolume, Grid
from napari_gsvolume.io.nifti import write_nifti
from napari_gsvolume.phantoms import anatomical_phantom
from napari_gsvolume.tomography.beer_lambert import hounsfield_to_attenuation
from napari_gsvolume.tomography.presets import spread_angles
from napari_gsvolume.tomography.projections import read_projections
from napari_gsvolume.tomography.scan import Scan, circular_scan
from napari_gsvolume.tomography.voxel_projector import project_voxels

Run = Callable[..., tuple[int, str, str]]
VOXEL = (2.0, 1.5, 1.0)
GRID = Grid((20, 18, 16), np.diag([*VOXEL, 1]), ("mm",) * 3)
VOLUME = anatomical_phantom(20)[0][:, 1:-1, 2:-2]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    write_nifti(folder / "ct.nii.gz", VOLUME, GRID)
    write_nifti(folder / "4d.nii.gz", np.stack([VOLUME, VOLUME[::-1]]), GRID)
    write_nifti(folder / "flat.nii.gz", VOLUME[0], Grid((18, 16)))
    one = torch.tensor([[10.0, 9, 8]]), torch.eye(3)[None] / 3, torch.tensor([100.0])
    GaussianVolume(*one, GRID, -1000.0).save(folder / "blob.safetensors")
    GaussianVolume(*one, GRID).save(folder / "blob.gsv")
    circular_scan(GRID.shape, VOXEL, [0, 33], "cone").save(folder / "cone.json")
    (folder / "broken.json").write_text('{"beam": "pencil"}')
    return folder


def test_the_contract(run: Run, tmp_path: Path) -> None:
    stack, geometry = tmp_path / "P.nii.gz", tmp_path / "GEO.json"
    code, out, err = run("project", "ct.nii.gz", "--views", 7, "--out", stack, "--geometry-out", geometry)
    assert (code, err) == (0, "")
    assert "7 views" in out
    assert str(stack) in out
    assert str(geometry) in out
    image, scan = nib.load(stack), Scan.load(geometry)
    expected = circular_scan(GRID.shape, VOXEL, spread_angles(7, 180))
    assert image.shape == (*expected.pixels, 7)
    assert image.get_data_dtype() == np.float32
    np.testing.assert_array_equal(scan.sources, expected.sources)
    np.testing.assert_allclose(np.asarray(image.dataobj).T, project_voxels(VOLUME, expected), rtol=1e-5)


@pytest.mark.parametrize(("beam", "arc"), [("parallel", 180), ("fan", 360), ("cone", 360)])
def test_beams(run: Run, tmp_path: Path, beam: str, arc: float) -> None:
    far = () if beam == "parallel" else ("--source-to-axis", 90, "--source-to-detector", 200)
    out = tmp_path / "P.nii"
    detector = ("--detector", 30, 20, "--pixel-size", 2, 3)
    assert run("project", "blob.gsv", "--geometry", beam, "--views", 4, *far, *detector, "--out", out)[0] == 0
    scan = read_projections(out).scan
    distances = {"source_to_axis": 90, "source_to_detector": 200} if far else {}
    same = circular_scan(
        GRID.shape, VOXEL, spread_angles(4, arc), beam, **distances, pixels=(30, 20), pixel_size=(2, 3)
    )
    for name in ("sources", "centres", "u", "v"):
        np.testing.assert_allclose(getattr(scan, name), getattr(same, name), atol=1e-12)
    assert scan.pixels == (30, 20)


def test_a_geometry_from_a_file(run: Run, inputs: Path, tmp_path: Path) -> None:
    out = tmp_path / "P.nii.gz"
    assert run("project", "ct.nii.gz", "--geometry", "cone.json", "--out", out)[0] == 0
    stack = read_projections(out)
    np.testing.assert_array_equal(stack.scan.sources, Scan.load(inputs / "cone.json").sources)
    # What was written is a geometry to be used again.
    assert run("project", "blob.gsv", "--geometry", tmp_path / "P.json", "--out", tmp_path / "Q.nii.gz")[0] == 0
    assert read_projections(tmp_path / "Q.nii.gz").images.shape == stack.images.shape


def test_hounsfield_units_and_modes(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "P.nii"
    assert run("project", "ct.nii.gz", "--hu", "--views", 3, "--out", out)[0] == 0
    scan = circular_scan(GRID.shape, VOXEL, spread_angles(3, 180))
    np.testing.assert_allclose(
        read_projections(out).images, project_voxels(hounsfield_to_attenuation(VOLUME), scan), rtol=1e-5
    )
    assert run("project", "blob.safetensors", "--hu", "--views", 3, "--out", out)[0] == 0
    peak = 0.0193 / 10 * np.sqrt(2 * np.pi) * 3 * VOXEL[1]  # of the blob's middle; the background of -1000 is nothing
    assert read_projections(out).images[0].max() == pytest.approx(peak, rel=0.02)
    assert run("project", "4d.nii.gz", "--time-point", 1, "--mode", "mip", "--views", 1, "--out", out)[0] == 0
    assert read_projections(out).images.max() <= VOLUME.max()


def test_noise(run: Run, tmp_path: Path) -> None:
    def stack(*options: object) -> np.ndarray:
        out = tmp_path / "P.nii"
        assert run("project", "ct.nii.gz", "--views", 3, "--hu", "--out", out, *options)[0] == 0
        return read_projections(out).images

    clean, noisy, few = stack(), stack("--noise-photons", 1e4), stack("--noise-photons", 1e2)
    assert 0 < (noisy - clean).std() < (few - clean).std()
    np.testing.assert_array_equal(noisy, stack("--noise-photons", 1e4))
    assert not np.array_equal(noisy, stack("--noise-photons", 1e4, "--seed", 1))
    assert (stack("--noise-sigma", 0.5) - clean).std() == pytest.approx(0.5, rel=0.1)
    assert (stack("--noise-photons", 1e4, "--depth", 9) - clean).std() > 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["missing.nii.gz"], ["missing.nii.gz"]),
        (["flat.nii.gz"], ["two axes", "volume"]),
        (["4d.nii.gz"], ["--time-point"]),
        (["ct.nii.gz", "--geometry", "pencil"], ["--geometry pencil", "cone"]),
        (["ct.nii.gz", "--geometry", "broken.json"], ["broken.json", "beam"]),
        (["ct.nii.gz", "--geometry", "cone.json", "--views", 3, "--detector", 3, 4], ["--views", "--detector"]),
        (["ct.nii.gz", "--source-to-axis", 400], ["--source-to-axis", "parallel"]),
        (["ct.nii.gz", "--geometry", "cone", "--source-to-axis", 4], ["further from the axis"]),
        (["ct.nii.gz", "--arc", -5], ["--arc -5"]),
        (["ct.nii.gz", "--views", 0], ["--views"]),
        (["ct.nii.gz", "--detector", 0, 4], ["pixels", "positive"]),
        (["ct.nii.gz", "--mode", "mip", "--noise-photons", 100], ["--noise-photons", "--noise-sigma"]),
        (["ct.nii.gz", "--noise-photons", -1], ["photons", "positive"]),
        (["ct.nii.gz", "--depth", 3], ["--depth", "--noise-photons"]),
        (["ct.nii.gz", "--pixel-size", 0, 1], ["pixel", "positive"]),
    ],
)
def test_one_clear_sentence(run: Run, tmp_path: Path, options: list[object], words: list[str]) -> None:
    code, out, err = run("project", *options, "--out", tmp_path / "P.nii.gz")
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert err.startswith("gsvolume: ")
    for word in words:
        assert word in err
    assert not list(tmp_path.iterdir())


def test_outputs_are_checked_first(run: Run, tmp_path: Path) -> None:
    assert "--out" in run("project", "ct.nii.gz", "--out", tmp_path / "P.png")[2]
    assert "input" in run("project", "ct.nii.gz", "--out", "ct.nii.gz")[2]
    taken = run(
        "project", "ct.nii.gz", "--geometry", "cone.json", "--out", tmp_path / "P.nii", "--geometry-out", "cone.json"
    )
    assert "--geometry-out" in taken[2]
    assert json.loads(Path("cone.json").read_text())["beam"] == "cone"
