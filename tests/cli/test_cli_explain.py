"""The shell's commands about networks, as a user calls them."""

import csv
import json
import shutil
import signal
from html.parser import HTMLParser

import nibabel as nib
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from napari_gsvolume import Grid
from napari_gsvolume.explain import activations
from napari_gsvolume.explain import explanation as running
from napari_gsvolume.explain.models.inputs import Volume, prepare_images
from napari_gsvolume.explain.models.loading import load_model
from napari_gsvolume.explain.settings import ExplainSettings
from napari_gsvolume.io.nifti import read_nifti, write_nifti
from napari_gsvolume.phantoms import anatomical_phantom
from napari_gsvolume.super_resolution.training import train_superresolution

pytestmark = pytest.mark.usefixtures("one_thread")

VOLUME = anatomical_phantom(16)[0][:, :14, :12]
BLOB = (9, 4, 7)
AFFINE = np.array([[-3.0, 0.2, 0, 40], [0, 0.9, 0.1, -12], [0, 0, 0.7, 5], [0, 0, 0, 1]])
FACTORIES = """
import torch
from torch import nn

class Pooled(nn.Module):  # a segmentation network whose sides are multiples of 8
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(1, 6, 3, padding=1)
        self.down = nn.Sequential(nn.MaxPool2d(8), nn.Conv2d(6, 5, 1), nn.Upsample(scale_factor=8))
        self.last = nn.Conv2d(11, 3, 1)
    def forward(self, x):
        y = self.first(x).relu()
        return self.last(torch.cat([y, self.down(y)], 1))

class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.patch = nn.Conv2d(3, 16, 4, 4)
        self.image_size = 12
        self.place = nn.Parameter(torch.randn(1, 10, 16))
        layer = nn.TransformerEncoderLayer(16, 2, 24, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.head = nn.Linear(16, 4)
    def forward(self, x):
        t = self.patch(x).flatten(2).transpose(1, 2)
        return self.head(self.encoder(torch.cat([t[:, :1], t], 1) + self.place)[:, 0])

def pooled(): return Pooled()
def tokens(): return Tokens()
def volumes():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv3d(1, 4, 3, stride=2, padding=1), nn.ReLU(), nn.Conv3d(4, 2, 1))
def picks():  # a layer whose one concept is the image itself
    layer = nn.Conv2d(1, 2, 1, bias=False)
    layer.weight.data[:, 0, 0, 0] = torch.tensor([0.6, 0.8])
    return nn.Sequential(nn.AvgPool2d(2), layer)
def raises(): raise RuntimeError("no such\\nfile")
def nothing(): return 3
"""


class Page(HTMLParser):
    """What is in a page, and whether its tags close."""

    def __init__(self, text):
        super().__init__()
        self.open, self.images, self.text, self.seen = [], [], [], set()
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.seen.add(tag)
        if tag == "img":
            self.images.append(dict(attrs)["src"])
        elif tag != "meta":
            self.open.append(tag)
        assert "http" not in str([value for name, value in attrs if name in ("src", "href")])

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)

    @property
    def words(self):
        return " ".join(" ".join(self.text).split())


def rows(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("networks")
    grid = Grid(VOLUME.shape, AFFINE, ("mm",) * 3)
    write_nifti(folder / "ct.nii.gz", VOLUME, grid)
    bad, blob = VOLUME.copy(), np.zeros((16, 14, 12), np.float32)
    bad[3, 3, 3] = np.nan
    blob[9, 4:6, 6:8] = 1
    write_nifti(folder / "nan.nii.gz", bad, grid)
    write_nifti(folder / "blob.nii.gz", blob, grid)
    write_nifti(folder / "constant.nii.gz", np.ones_like(blob), grid)
    write_nifti(folder / "flat.nii.gz", VOLUME[8], Grid((14, 12)))
    write_nifti(folder / "series.nii.gz", np.stack([VOLUME, 2 * VOLUME]), grid)
    colours = np.zeros((4, 5, 6), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    nib.save(nib.Nifti1Image(colours, np.eye(4)), folder / "rgb.nii.gz")
    (folder / "factories_of_test_cli.py").write_text(FACTORIES)
    model = train_superresolution([anatomical_phantom(20)[0]], channels=4, blocks=1, batch_size=2, iterations=1).model
    for n in (1, 2, 10):  # its last layer begins at 0, and is to give something
        model.scheme.network.tail.weight.data.normal_(0, 0.01 * n)
        model.save(folder / f"sr-{n}.safetensors")
    torch.manual_seed(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        state = load_model("factories_of_test_cli:pooled").model.state_dict()
    for n in range(3):
        save_file({name: t + 0.05 * n * torch.randn_like(t) for name, t in state.items()}, folder / f"w{n}.safetensors")
    torch.save(state, folder / "w.pt")
    torch.save({"state_dict": {f"module.{name}": t for name, t in state.items()}, "epoch": 3}, folder / "nested.pth")
    torch.save(torch.nn.Linear(2, 2), folder / "code.pt")
    save_file({"first.weight": torch.zeros(6, 2, 3, 3), "other": torch.zeros(1)}, folder / "misfit.safetensors")
    return folder


POOLED = ("--model", "factories_of_test_cli:pooled")


def test_a_super_resolution(run, inputs, tmp_path) -> None:
    out = tmp_path / "made" / "here"
    words = ("--images", "ct.nii.gz", "--out", out, "--k", 3, "--what", "all", "--patch", 8)
    code, text, err = run("explain", "--model", "sr-10.safetensors", *words)
    assert (code, err) == (0, "")
    assert "network.head: 4 features" in text
    loaded = load_model(inputs / "sr-10.safetensors")
    images = prepare_images(loaded, [Volume.of("ct", VOLUME)], ExplainSettings())
    expected = activations(loaded.model, images, None, 3, max_samples=100_000)
    layers = {row["layer"]: row for row in rows(out / "layers.csv")}
    assert list(layers) == list(expected)
    spectra = rows(out / "spectra.csv")
    for name, d in expected.items():
        values = [float(row["value"]) for row in spectra if row["layer"] == name]
        np.testing.assert_allclose(values, d.spectrum, rtol=1e-6)
        table = [row for row in rows(out / "concepts.csv") if row["layer"] == name]
        concepts = [[float(row[f"concept_{k}"]) for k in range(d.k)] for row in table]
        np.testing.assert_allclose(concepts, d.concepts, atol=1e-6)
        assert int(layers[name]["samples"]) == VOLUME.size
        maps = read_nifti(out / "concepts" / "ct" / f"{name}.nii.gz")
        assert maps.data.shape == (min(3, d.k), *VOLUME.shape)
        np.testing.assert_allclose(maps.grid.affine, AFFINE, atol=1e-5)
        np.testing.assert_allclose(maps.data.reshape(d.k, -1).T, d.scores * d.values, atol=1e-4)
    whole = [row for row in rows(out / "scores.csv") if row["layer"] == "network.head" and row["mode"] == "1"]
    scores = (expected["network.head"].scores * expected["network.head"].values)[:, 1].reshape(16, -1)
    np.testing.assert_allclose([float(row["mean"]) for row in whole], scores.mean(1), atol=1e-4)
    assert [row["slice"] for row in whole] == [str(k) for k in range(16)]
    page = Page((out / "report.html").read_text(encoding="utf-8"))
    assert len(page.images) == 1 + len(expected) + 1
    assert all(source.startswith(("data:image/png;base64,", "data:image/svg+xml;base64,")) for source in page.images)
    assert "script" not in page.seen
    assert "scheme residual, edsr, factor 2" in page.words
    assert "Attention is left out" in page.words
    assert len(rows(out / "jacobian.csv")) == 3
    assert json.loads((out / "settings.json").read_text())["settings"]["k"] == 3


def test_a_network_padded_to_what_it_takes_with_weights(run, tmp_path) -> None:
    words = ("--images", "ct.nii.gz", "--layers", "first", "down.*", "--axis", "y", "--json")
    facts = {}
    for weights in ("w0.safetensors", "w.pt", "nested.pth"):
        code, text, err = run("explain", *POOLED, "--weights", weights, *words, "--out", tmp_path)
        assert (code, err) == (0, "")
        facts[weights] = json.loads(text)["layers"]
        assert list(facts[weights]) == ["first", "down.0", "down.1", "down.2"]
    assert facts["w.pt"] == facts["nested.pth"] == facts["w0.safetensors"]
    maps = read_nifti(tmp_path / "concepts" / "ct" / "down.1.nii.gz")
    assert maps.data.shape == (3, *VOLUME.shape)  # slices of 16 x 12, padded to 16 x 16
    assert np.isfinite(maps.data).all()
    assert len(np.unique(maps.data[0, :, 3])) == 2 * 2


@pytest.mark.parametrize("name", ["blob.nii.gz", "series.nii.gz"])
def test_a_map_lies_where_the_image_does(run, tmp_path, name) -> None:
    more = ("--time-point", 1, "--size", 6) if name == "series.nii.gz" else ()
    words = ("--model", "factories_of_test_cli:picks", "--images", name, "--normalise", "none", "--maps", 1, *more)
    assert run("explain", *words, "--out", tmp_path, "--quiet") == (0, "", "")
    maps = read_nifti(tmp_path / "concepts" / name.removesuffix(".nii.gz") / "1.nii.gz")
    values = maps.data  # of one concept the axis is dropped, being of length 1
    image = read_nifti(name)
    data = image.data[1] if image.data.ndim == 4 else image.data
    np.testing.assert_allclose(maps.grid.affine, image.grid.affine, atol=1e-5)
    means = data.reshape(16, 7, 2, 6, 2).mean((2, 4)).repeat(2, 1).repeat(2, 2)
    if name == "blob.nii.gz":
        np.testing.assert_allclose(values, means, atol=1e-6)
        peak = np.argwhere(values > 0.5).mean(0)
        np.testing.assert_allclose(maps.grid.affine @ [*peak, 1], image.grid.affine @ [9, 4.5, 6.5, 1], atol=1e-4)
    else:  # tiles of 6: rows of the third begin at 8
        np.testing.assert_allclose(values, means, rtol=1e-4)


def test_volumes_and_slices_that_are_left_out(run, tmp_path) -> None:
    words = ("--images", "ct.nii.gz", "--quiet", "--out")
    assert run("explain", "--model", "factories_of_test_cli:volumes", *words, tmp_path / "a")[0] == 0
    coarse = read_nifti(tmp_path / "a" / "concepts" / "ct" / "0.nii.gz").data
    assert coarse.shape == (3, *VOLUME.shape)
    np.testing.assert_array_equal(coarse[:, ::2, ::2, ::2], coarse[:, 1::2, 1::2, 1::2])
    assert run("explain", *POOLED, "--slices", 4, *words, tmp_path / "b")[0] == 0
    some = read_nifti(tmp_path / "b" / "concepts" / "ct" / "first.nii.gz").data
    assert np.flatnonzero(np.isfinite(some[0]).all((1, 2))).tolist() == [2, 6, 10, 14]


def test_attention_of_a_network_of_one_size(run, tmp_path) -> None:
    words = (
        "--model",
        "factories_of_test_cli:tokens",
        "--images",
        "ct.nii.gz",
        "flat.nii.gz",
        "--slices",
        3,
        "--size",
        12,
    )
    assert run("explain", *words, "--what", "attention", "--out", tmp_path)[0] == 0
    heads = rows(tmp_path / "heads.csv")
    assert [(row["layer"], row["head"]) for row in heads] == [("encoder.layers.0.self_attn", str(k)) for k in (0, 1)]
    assert all(0 < float(row["entropy"]) <= np.log(10) + 1e-6 for row in heads)
    assert len(Page((tmp_path / "report.html").read_text()).images) == 1
    assert run("explain", *words, "--what", "activations", "--quiet", "--out", tmp_path)[0] == 0
    maps = read_nifti(tmp_path / "concepts" / "flat" / "encoder.layers.0.linear1.nii.gz")
    assert maps.data.shape[-2:] == (14, 12)
    assert "No maps of (model), head" in Page((tmp_path / "report.html").read_text()).words


def test_interrupted_it_keeps_what_there_is(run, tmp_path, monkeypatch) -> None:
    explain_steps = running.explain_steps

    def interrupted(*args, **options):
        steps, sent = explain_steps(*args, **options), False
        while True:
            try:
                step = next(steps)
            except StopIteration as end:
                return end.value
            yield step
            if step.fraction >= 0.1 and not sent:
                sent = True
                signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(running, "explain_steps", interrupted)
    assert run("explain", *POOLED, "--images", "ct.nii.gz", "--what", "all", "--out", tmp_path)[0] == 0
    page = Page((tmp_path / "report.html").read_text())
    assert "Stopped before it was finished." in page.words


def test_tracking(run, inputs, tmp_path) -> None:
    words = ("--images", "ct.nii.gz", "--slices", 4, "--k", 2)
    code, text, err = run("track", "--checkpoints", "w*.safetensors", *POOLED, *words, "--out", tmp_path / "a")
    assert (code, err) == (0, "")
    assert "3 of 3 checkpoints, 3 layers" in text
    table = rows(tmp_path / "a" / "evolution.csv")
    assert list(dict.fromkeys(row["epoch"] for row in table)) == ["0", "1", "2"]
    assert {row["layer"] for row in table} == {"first", "down.1", "last"}
    page = Page((tmp_path / "a" / "report.html").read_text(encoding="utf-8"))
    assert len(page.images) == 1 + 3
    assert "3, epochs 0 to 2: w0.safetensors to w2.safetensors" in page.words
    found = {row["sentence"] for row in rows(tmp_path / "a" / "findings.csv")}
    assert all(sentence in page.words for sentence in found)
    names = [f"sr-{n}.safetensors" for n in (10, 2, 1)]
    code, text, _ = run("track", "--checkpoints", *names, *words, "--layers", "network.*", "--json", "--out", tmp_path)
    assert (code, json.loads(text)["epochs"]) == (0, [1, 2, 10])


OUT = ("--out", "out")
CT = ("--images", "ct.nii.gz")
SR = ("--model", "sr-10.safetensors")
RAISES = ("--model", "factories_of_test_cli:raises")
MISFIT = ("--weights", "misfit.safetensors")
BAD = {
    "no image": (("explain", *SR, "--images", "no.nii.gz", *OUT), "no.nii.gz"),
    "NaN": (("explain", *SR, "--images", "nan.nii.gz", *OUT), "NaN"),
    "colours": (("explain", *SR, "--images", "rgb.nii.gz", *OUT), "colours"),
    "a constant": (("explain", *SR, "--images", "constant.nii.gz", *OUT), "constant"),
    "a series": (("explain", *SR, "--images", "series.nii.gz", *OUT), "--time-point"),
    "no model": (("explain", "--model", "no.safetensors", *CT, *OUT), "no.safetensors"),
    "a model that is none": (("explain", "--model", "w0.safetensors", *CT, *OUT), "w0.safetensors"),
    "a word": (("explain", "--model", "unet", *CT, *OUT), "package.module:function"),
    "weights as a model": (("explain", "--model", "w.pt", *CT, *OUT), "not executed"),
    "no module": (("explain", "--model", "no_such_module:f", *CT, *OUT), "no_such_module"),
    "no function": (("explain", "--model", "factories_of_test_cli:no", *CT, *OUT), "has no no"),
    "a factory that raises": (("explain", *RAISES, *CT, *OUT), "RuntimeError: no such file"),
    "a factory of nothing": (("explain", "--model", "factories_of_test_cli:nothing", *CT, *OUT), "returned int"),
    "weights that do not fit": (("explain", *POOLED, *MISFIT, *CT, *OUT), "missing are first.bias"),
    "weights of other shapes": (("explain", *POOLED, *MISFIT, *CT, *OUT), "6x2x3x3"),
    "a pickle": (("explain", *POOLED, "--weights", "code.pt", *CT, *OUT), "safetensors"),
    "weights that are none": (("explain", *POOLED, "--weights", "ct.nii.gz", *CT, *OUT), "ct.nii.gz"),
    "weights of a super-resolution": (("explain", *SR, "--weights", "w.pt", *CT, *OUT), "weights of its own"),
    "a layer": (("explain", *SR, "--layers", "network.hed", *CT, *OUT), "network.head"),
    "a pattern": (("explain", *SR, "--layers", "nothing.*", *CT, *OUT), "nothing.*"),
    "an image for volumes": (
        ("explain", "--model", "factories_of_test_cli:volumes", "--images", "flat.nii.gz", *OUT),
        "takes volumes",
    ),
    "a size": (("explain", "--model", "factories_of_test_cli:tokens", "--size", 8, *CT, *OUT), "1x3x8x8"),
    "channels": (("explain", *POOLED, "--channels", "images", *CT, "flat.nii.gz", *OUT), "1 channels"),
    "no attention": (("explain", *SR, "--what", "attention", *CT, *OUT), "No attention"),
    "k": (("explain", *SR, "--k", 0, *CT, *OUT), "--k"),
    "a file as folder": (("explain", *SR, *CT, "--out", "ct.nii.gz"), "this is a file"),
    "no checkpoints": (("track", "--checkpoints", "no*.safetensors", *CT, *OUT), "no*.safetensors"),
    "checkpoints without a model": (("track", "--checkpoints", "w0.safetensors", *CT, *OUT), "w0.safetensors"),
    "a checkpoint that does not fit": (
        ("track", "--checkpoints", "w0.safetensors", "misfit.safetensors", *POOLED, *CT, *OUT),
        "misfit.safetensors",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_one_sentence(run, inputs, case) -> None:
    arguments, words = BAD[case]
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert words in err
    assert err.count("\n") == 1
    assert not (inputs / "out").exists()


def test_an_input_is_not_overwritten(run, inputs, tmp_path) -> None:
    folder = tmp_path / "concepts" / "ct"
    folder.mkdir(parents=True)
    shutil.copy(inputs / "ct.nii.gz", folder / "first.nii.gz")
    before = (folder / "first.nii.gz").read_bytes()
    shutil.copy(inputs / "ct.nii.gz", tmp_path / "ct.nii.gz")
    words = ("--images", tmp_path / "ct.nii.gz", folder / "first.nii.gz", "--out", tmp_path)
    code, out, err = run("explain", *POOLED, *words)
    assert (code, out) == (2, "")
    assert "would be overwritten" in err
    assert (folder / "first.nii.gz").read_bytes() == before
