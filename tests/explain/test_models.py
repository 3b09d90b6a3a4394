"""Models from files, and what they are called with."""

import os
import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import save_file, save_model
from torch import nn

from napari_gsvolume.errors import FileFormatError
from napari_gsvolume.explain.models.explained_model import ExplainedModel
from napari_gsvolume.explain.models.inputs import Volume, prepare_images
from napari_gsvolume.explain.models.loading import assign_weights, load_weights
from napari_gsvolume.explain.models.outputs import match_layers
from napari_gsvolume.explain.settings import ExplainSettings

RAMP = np.arange(6 * 10 * 8, dtype=np.float32).reshape(6, 10, 8)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 3, bias=False)
        self.second = nn.Linear(3, 3, bias=False)
        self.second.weight = self.first.weight


class Executes:
    def __reduce__(self):
        return os.mkdir, ("executed",)


def test_a_pickle_is_not_executed(tmp_path, monkeypatch, refused) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.pt").write_bytes(pickle.dumps({"weight": Executes()}))
    torch.save({"weight": Executes()}, tmp_path / "zipped.pth")
    for name in ("bad.pt", "zipped.pth"):
        with refused(FileFormatError, name, "safetensors"):
            load_weights(name)
    assert not (tmp_path / "executed").exists()


def test_damaged_weights(tmp_path, refused) -> None:
    for name in ("a.safetensors", "a.pt"):
        (tmp_path / name).write_bytes(b"no weights at all")
        with refused(FileFormatError, name):
            load_weights(tmp_path / name)
    torch.save([torch.zeros(2)], tmp_path / "list.pt")
    with refused(FileFormatError, "list.pt", "state dict"):
        load_weights(tmp_path / "list.pt")
    with refused(FileNotFoundError, "no.pt"):
        load_weights(tmp_path / "no.pt")


def test_tied_weights_are_one(tmp_path, refused) -> None:
    model, other = Tied(), Tied()
    save_model(model, str(tmp_path / "tied.safetensors"))
    assign_weights(other, load_weights(tmp_path / "tied.safetensors"), "tied")
    torch.testing.assert_close(other.second.weight, model.first.weight)
    save_file({"third.weight": torch.zeros(3, 3)}, tmp_path / "w.safetensors")
    before = other.first.weight.clone()
    with refused(ValueError, "missing are first.weight, second.weight", "no third.weight"):
        assign_weights(other, load_weights(tmp_path / "w.safetensors"), "w")
    assert torch.equal(other.first.weight, before)


def test_patterns_of_layers(refused) -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ModuleList([nn.ReLU(), nn.Conv2d(2, 2, 1)]))
    assert match_layers(model, ()) is None
    assert match_layers(model, ("1.*", "0")) == ["1.0", "1.1", "0"]
    assert match_layers(model, ("*",)) == ["0", "1.0", "1.1"]
    with refused(ValueError, "'2.?'"):
        match_layers(model, ("2.?",))


def inputs(model, settings=None, data=RAMP):
    images = prepare_images(
        ExplainedModel(model, "a model"), [Volume.of("ramp", data)], ExplainSettings(**(settings or {}))
    )
    return images, [batch.numpy() for batch in images]


@pytest.mark.parametrize("axis", ["z", "y", "x"])
def test_slices_with_their_neighbours(axis) -> None:
    settings = {"axis": axis, "channels": "neighbours", "normalise": "none"}
    images, batches = inputs(nn.Conv2d(3, 1, 1), settings)
    stacked = np.moveaxis(RAMP, "zyx".index(axis), 0)
    seen = np.concatenate(batches)
    assert len(seen) == len(images.places) == len(stacked)
    np.testing.assert_array_equal(seen[:, 1], stacked)
    np.testing.assert_array_equal(seen[1:, 0], stacked[:-1])
    np.testing.assert_array_equal(seen[:-1, 2], stacked[1:])
    np.testing.assert_array_equal(seen[0, 0], stacked[0])


def test_tiles_cover_and_padding_repeats_the_border() -> None:
    images, batches = inputs(nn.Conv3d(1, 1, 1), {"size": 6, "normalise": "none"})
    assert {place.start for place in images.places} == {(0, y, x) for y in (0, 4) for x in (0, 2)}
    for place, tile in zip(images.places, np.concatenate(batches), strict=True):
        z, y, x = place.start
        np.testing.assert_array_equal(tile[0], RAMP[z : z + 6, y : y + 6, x : x + 6])
    images, batches = inputs(nn.Conv2d(1, 1, 1), {"size": 12, "slices": 1, "normalise": "none"})
    [[[padded]]] = batches
    assert images.places[0].start == (-1, -2)
    np.testing.assert_array_equal(padded[1:11, 2:10], RAMP[3])
    np.testing.assert_array_equal(padded[0], padded[1])
    np.testing.assert_array_equal(padded[:, 0], padded[:, 2])


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("standard", lambda v: (v - v.mean()) / v.std()),
        ("unit", lambda v: (v - v.min()) / np.ptp(v)),
        ("robust", lambda v: (v - np.percentile(v, 1)) / np.subtract(*np.percentile(v, (99, 1)))),
    ],
)
def test_intensities(how, expected) -> None:
    _, batches = inputs(nn.Conv3d(1, 1, 1), {"normalise": how})
    np.testing.assert_allclose(batches[0][0, 0], expected(RAMP.astype(float)), atol=1e-5)


def test_one_image_a_channel(refused) -> None:
    volumes = [Volume.of("a", RAMP), Volume.of("b", -RAMP)]
    settings = ExplainSettings(channels="images", normalise="none")
    images = prepare_images(ExplainedModel(nn.Conv2d(2, 1, 1), "m"), volumes, settings)
    assert len(images.places) == 6
    batch = torch.cat(list(images))
    assert torch.equal(batch[:, 0], -batch[:, 1])
    with refused(ValueError, "2 channels", "1 images"):
        prepare_images(ExplainedModel(nn.Conv2d(2, 1, 1), "m"), volumes[:1], settings)
