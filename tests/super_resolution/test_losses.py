"""Learned super-resolution: what is made small."""

import importlib
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from helpers.super_resolving import settings, slices, stirred
from napari_gsvolume.errors import FileFormatError
from napari_gsvolume.super_resolution.losses import Discriminator, Losses
from napari_gsvolume.super_resolution.perceptual import MonaiLoss, RandomFeatures, VGG16Features, perceptual_loss
from napari_gsvolume.super_resolution.schemes import build_scheme

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def monai() -> None:
    for name in ("lpips", "torchvision", "monai.losses"):  # the slowest last
        try:
            importlib.import_module(name)
        except (ImportError, RuntimeError) as error:
            pytest.skip(f"{name} cannot be imported: {error}")


class TestLosses:
    def test_terms(self) -> None:
        everything = {f"{name}_weight": 1.0 for name in ("l2", "l1", "consistency", "orthogonality")}
        made_of = stirred(build_scheme(settings(scheme="singular-vectors", **everything)))
        low, target = slices(2, 1, 10, 12), slices(2, 20, 24, seed=1)
        prediction = made_of(low)
        terms = Losses(made_of).terms(prediction, low[:, 0], target)
        assert set(terms) == {"squared", "absolute", "consistency", "orthogonality"}
        error = (prediction.image - target).detach()
        assert float(terms["squared"].detach()) == pytest.approx(float(error.square().mean()))
        assert float(terms["absolute"].detach()) == pytest.approx(float(error.abs().mean()))
        misfit = torch.nn.functional.avg_pool2d(prediction.raw.detach()[:, None], 2)[:, 0] - low[:, 0]
        assert float(terms["consistency"].detach()) == pytest.approx(float(misfit.square().mean()), rel=1e-4)
        off = [
            np.square(vectors.T @ vectors - np.eye(10)).sum() / 10
            for each in (prediction.U, prediction.V)
            for vectors in each.detach().numpy()
        ]
        assert float(terms["orthogonality"].detach()) == pytest.approx(sum(off) / 2, rel=1e-4)

    def test_what_a_scheme_has_no_use_for(self) -> None:
        more = {"perceptual_weight": 1.0, "adversarial_weight": 1.0}
        assert set(Losses(build_scheme(settings(scheme="residual", **more))).coefficients()) == {
            "squared",
            "consistency",
            "perceptual",
            "adversarial",
        }
        assert "orthogonality" in Losses(build_scheme(settings(basis="learned"))).coefficients()
        qr = Losses(build_scheme(settings(scheme="singular-vectors", orthogonality="qr", **more)))
        assert set(qr.coefficients()) == {"squared", "consistency"}

    def test_learned_weights(self) -> None:
        losses = Losses(build_scheme(settings(uncertainty_weighting=True, l2_weight=2.0)))
        with torch.no_grad():
            losses.balance["squared"].fill_(0.5)
        total = losses.total({"squared": torch.tensor(3.0), "consistency": torch.tensor(1.0)})
        assert float(total.detach()) == pytest.approx(6 * np.exp(-0.5) + 0.5 + 0.1)
        assert losses.coefficients()["squared"] == pytest.approx(2 * np.exp(-0.5))

    def test_random_features_see_a_blur(self) -> None:
        features = RandomFeatures()
        assert not any(p.requires_grad for p in features.parameters())
        image = slices(1, 16, 16)
        blurred = torch.nn.functional.avg_pool2d(image, 3, 1, 1)
        for a, b, again in zip(features(image), features(blurred), RandomFeatures()(image), strict=True):
            torch.testing.assert_close(a, again, rtol=0, atol=0)
            assert (a - b).square().mean() > 0.01

    def test_features_of_weights_that_are_given(self, tmp_path, vgg16) -> None:
        save_file(vgg16, tmp_path / "VGG.safetensors")
        images = slices(2, 24, 20)
        features = VGG16Features(tmp_path / "VGG.safetensors")
        assert not any(p.requires_grad for p in features.parameters())
        # torchvision's `features`, layer by layer: relu1_2, relu2_2, relu3_3 and relu4_3 are the 3rd, 8th, 15th, 22nd.
        layers, expected = images[:, None].repeat(1, 3, 1, 1), []
        for k in range(23):
            if f"features.{k}.weight" in vgg16:
                weight, bias = vgg16[f"features.{k}.weight"], vgg16[f"features.{k}.bias"]
                layers = torch.nn.functional.conv2d(layers, weight, bias, padding=1)
            elif k in (4, 9, 16):
                layers = torch.nn.functional.max_pool2d(layers, 2)
            else:
                layers = layers.relu()
            if k in (3, 8, 15, 22):
                expected.append(layers)
        made_of = features(images)
        assert [f.shape[1:] for f in made_of] == [(64, 24, 20), (128, 12, 10), (256, 6, 5), (512, 3, 2)]
        for found, wanted in zip(made_of, expected, strict=True):
            torch.testing.assert_close(found, wanted)
        loss = perceptual_loss(str(tmp_path / "VGG.safetensors"))
        other = slices(2, 24, 20, seed=1)
        apart = [(a - b).square().mean() for a, b in zip(made_of, features(other), strict=True)]
        torch.testing.assert_close(loss(images, other), torch.stack(apart).sum())
        assert float(loss(images, images)) == 0

    def test_weights_that_are_none(self, tmp_path, vgg16, refused) -> None:
        path = tmp_path / "VGG.safetensors"
        with refused(FileNotFoundError, "VGG.safetensors"):
            perceptual_loss(str(path))
        path.write_bytes(b"nothing")
        with refused(FileFormatError, "VGG.safetensors"):
            perceptual_loss(str(path))
        name = "features.21.bias"
        for tensors, words in (
            ({key: t for key, t in vgg16.items() if key != name}, f"{name} is missing"),
            (vgg16 | {name: torch.zeros(3)}, "(3,), not (512,)"),
            (vgg16 | {name: vgg16[name] * torch.nan}, "not finite"),
        ):
            save_file(tensors, path)
            with refused(FileFormatError, "VGG-16", words):
                perceptual_loss(str(path))
        with refused(ValueError, "Perceptual", "VGG.pt"):
            settings(perceptual_features="VGG.pt")

    def test_monai_without_its_weights(self, tmp_path, monkeypatch, refused, monai) -> None:
        monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
        with refused(ValueError, "vgg16", str(tmp_path)):
            perceptual_loss("monai")

    def test_monai(self, tmp_path, monkeypatch, monai) -> None:
        """On weights made up, of the smallest of its networks."""
        models = importlib.import_module("torchvision.models")
        monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
        (tmp_path / "checkpoints").mkdir()
        name = models.SqueezeNet1_1_Weights.IMAGENET1K_V1.url.rsplit("/", 1)[-1]
        torch.save(models.squeezenet1_1().state_dict(), tmp_path / "checkpoints" / name)
        loss = MonaiLoss("squeeze")
        sharp = slices(2, 32, 40)
        blurred = torch.nn.functional.avg_pool2d(sharp, 3, 1, 1).requires_grad_()
        assert float(loss(sharp, sharp)) == 0
        loss(blurred, sharp).backward()
        assert blurred.grad.abs().max() > 0
        assert not any(p.requires_grad for p in loss.parameters())
        with torch.no_grad():
            assert float(loss(blurred, sharp)) > 1e-3
            assert float(loss(blurred[:, :9, :8], sharp[:, :9, :8])) > 0  # smaller than such a network takes

    def test_without_monai(self, monkeypatch, refused) -> None:
        for name in [name for name in sys.modules if name.split(".")[0] == "monai"]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.setitem(sys.modules, "monai", None)
        with refused(ValueError, "napari-gsvolume[monai]"):
            perceptual_loss("monai")

    def test_a_discriminator_learns_to_tell(self) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            adversary = Discriminator(8)
        true = slices(4, 16, 16)
        false = torch.nn.functional.avg_pool2d(true, 3, 1, 1)
        optimiser = torch.optim.Adam(adversary.parameters(), 3e-3)
        for _ in range(30):
            optimiser.zero_grad()
            adversary.loss(false, true).backward()
            optimiser.step()
        assert adversary(true).mean() > adversary(false).mean() + 0.5
