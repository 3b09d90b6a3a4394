"""Learned super-resolution: networks, both schemes, what they learn from, training, and models applied to volumes."""

import importlib
import json
import sys
from itertools import islice

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from napari_gsvolume import anatomical_phantom, vessel_phantom
from napari_gsvolume.files import FileFormatError
from napari_gsvolume.fitting.metrics import psnr_between
from napari_gsvolume.parameters import made
from napari_gsvolume.spectral.degradation import Degradation
from napari_gsvolume.spectral.functions import ContinuousImage
from napari_gsvolume.spectral.networks import EDSR, network
from napari_gsvolume.spectral.schemes import AxisDecoder, c_grid, modes, orthonormal, scheme
from napari_gsvolume.spectral.settings import SuperResolveSettings
from napari_gsvolume.spectral.spectra import best_psnr_db, decompose
from napari_gsvolume.spectral.sr_data import Intensities, Planes
from napari_gsvolume.spectral.sr_explain import loss_gradients, mode_contributions
from napari_gsvolume.spectral.sr_features import MonaiLoss, RandomFeatures, VGG16Features, perceptual_loss
from napari_gsvolume.spectral.sr_losses import Discriminator, Losses, departure
from napari_gsvolume.spectral.sr_model import SRModel, superresolve
from napari_gsvolume.spectral.sr_settings import FOREIGN, TrainSRSettings
from napari_gsvolume.spectral.sr_training import SRTraining, train_sr
from napari_gsvolume.spectral.upsample import interpolation, spline

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = {"channels": 8, "blocks": 1, "batch": 2}
QUICK = SMALL | {"iterations": 6}
VOLUME = anatomical_phantom(40)[0][:, 2:38, 1:36]


def settings(**more) -> TrainSRSettings:
    return made(TrainSRSettings, **SMALL | more)


def stirred(module, seed=0):
    """Return a module whose weights, those that begin at 0 too, are all random."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=generator))
    return module


def slices(*shape, seed=0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape).astype(np.float32))


@pytest.fixture
def spandrel() -> None:
    try:
        importlib.import_module("spandrel")
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"spandrel cannot be imported: {error}")


class TestNetworks:
    @pytest.mark.parametrize("backbone", ["edsr", "resnet", "unet"])
    @pytest.mark.parametrize("more", [{}, {"factor": 3, "context": 0}, {"factor": 1.7}, {"axes": "through-plane"}])
    def test_shapes_and_the_beginning(self, backbone, more) -> None:
        s = settings(backbone=backbone, **more)
        low = slices(2, s.depth, 9, 11)
        prediction = scheme(s)(low)
        high = Degradation.of_low((9, 11), s.factors).high
        assert prediction.raw.shape == (2, *high)
        torch.testing.assert_close(prediction.raw, prediction.base, rtol=0, atol=0)
        assert (stirred(scheme(s))(low).raw - prediction.raw).abs().max() > 1e-3

    @pytest.mark.parametrize("factors", [(2, 2), (3, 3), (3, 1)])
    def test_pixels_are_shuffled_to_where_they_belong(self, factors) -> None:
        net = EDSR(1, factors, 4, 1)
        with torch.no_grad():
            net.tail.bias.copy_(torch.arange(factors[0] * factors[1]))
        residual = net(slices(1, 1, 4, 5), torch.zeros(1, 1, 4 * factors[0], 5 * factors[1]))[0, 0]
        expected = np.tile(np.arange(factors[0] * factors[1]).reshape(factors), (4, 5))
        np.testing.assert_array_equal(residual.detach().numpy(), expected)

    @pytest.mark.parametrize("factors", [(2, 2), (1.5, 1.5)])
    def test_low_and_high_pixels_are_aligned(self, factors) -> None:
        """Flipping what goes in flips what comes out, once kernels are symmetric."""
        net = stirred(EDSR(1, factors, 4, 1))
        with torch.no_grad():
            for p in net.parameters():
                if p.ndim == 4:
                    p.copy_(p.mean((2, 3), keepdim=True).expand_as(p))
            net.tail.weight.copy_(net.tail.weight.mean(0, keepdim=True).expand_as(net.tail.weight))
            net.tail.bias.zero_()
            low = slices(1, 1, 8, 6)
            for axis in (2, 3):
                torch.testing.assert_close(net(low.flip(axis), low), net(low, low).flip(axis))

    @pytest.mark.parametrize("backbone", FOREIGN)
    @pytest.mark.parametrize("more", [{}, {"factor": 3, "context": 0}, {"factor": 4, "rank": 4}])
    def test_those_of_spandrel(self, backbone, more, spandrel) -> None:
        s = settings(backbone=backbone, channels=16, blocks=2, **more)
        for shape in ((17, 12), (5, 9)):  # no multiples of windows
            low = slices(2, s.depth, *shape)
            before = low.clone()
            prediction = scheme(s)(low)
            torch.testing.assert_close(low, before, rtol=0, atol=0)
            assert prediction.raw.shape == (2, *(int(s.factor) * n for n in shape))
            torch.testing.assert_close(prediction.raw, prediction.base, rtol=0, atol=0)
        made_of = stirred(scheme(s))
        changed = made_of(low)
        torch.testing.assert_close(
            made_of.degradation(shape).degrade(changed.image), low[:, s.depth // 2], rtol=0, atol=1e-5
        )
        assert (changed.raw - prediction.raw).abs().max() > 1e-3
        slices(*changed.image.shape, seed=1).mul(changed.image).sum().backward()
        assert all(p.grad is not None and p.grad.abs().max() > 0 for p in made_of.parameters())

    @pytest.mark.parametrize("backbone", FOREIGN)
    @pytest.mark.parametrize(("factor", "gain"), [(2, 0.1), (3, 0.01)])
    def test_those_of_spandrel_learn(self, backbone, factor, gain, spandrel, tmp_path) -> None:
        quick = {"channels": 16, "blocks": 2, "batch": 4, "patch": 12, "iterations": 60, "learning_rate": 3e-3}
        result = train_sr([vessel_phantom(48, noise=0)[0]], [(1, 1, 1)], backbone=backbone, factor=factor, **quick)
        assert result.table["model"] > result.table["B-spline + projection"] + gain
        result.model.save(tmp_path / "SR.safetensors")
        low = VOLUME[:3, :14, :11]
        finer = superresolve(low, SRModel.load(tmp_path / "SR.safetensors"))
        np.testing.assert_array_equal(finer, superresolve(low, result.model))
        assert finer.shape == (3, 14 * factor, 11 * factor)
        assert np.abs(Degradation.of_low(low.shape, (1, factor, factor)).degrade(finer) - low).max() < 1e-5 * low.max()

    @pytest.mark.parametrize("backbone", FOREIGN)
    def test_without_spandrel(self, backbone, monkeypatch, refused) -> None:
        for name in [name for name in sys.modules if name.split(".")[0] == "spandrel"]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.setitem(sys.modules, "spandrel", None)
        with refused(ValueError, backbone, "napari-gsvolume[sr]"):
            network(settings(backbone=backbone))


class TestSettings:
    @pytest.mark.parametrize(
        ("more", "words"),
        [
            ({"factor": 1}, "factor"),
            ({"factor": 1.5, "backbone": "hat"}, "edsr"),
            ({"axes": "through-plane", "backbone": "rcan"}, "edsr"),
            ({"lambda_squared": 0}, "nothing to learn"),
            ({"patch": 12, "rank": 13}, "13"),
            ({"scheme": "c"}, "scheme"),
            ({"functions": "decoders", "smoothing": 0.1}, "decoders"),
            ({"functions": "decoders", "order": 1}, "decoders"),
            ({"scheme": "a", "lambda_squared": 0, "lambda_perceptual": 1}, "nothing to learn"),
        ],
    )
    def test_what_does_not_go_together(self, more, words, refused) -> None:
        with refused(ValueError, words):
            settings(**more)


class TestSchemes:
    @pytest.mark.parametrize("which", ["a", "b"])
    @pytest.mark.parametrize("more", [{}, {"factor": 1.5}, {"axes": "through-plane"}, {"degradation": "bicubic"}])
    def test_untrained_it_is_the_spline(self, which, more) -> None:
        for project in (True, False):
            s = settings(scheme=which, project=project, **more)
            low = slices(2, s.depth, 10, 12)
            middle = low[:, s.depth // 2]
            onto = Degradation.of_low((10, 12), s.factors, s.degradation) if project else None
            expected = spline(middle, s.factors, onto=onto)
            torch.testing.assert_close(scheme(s)(low).image.detach(), expected, rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("which", ["a", "b"])
    def test_the_rank_is_that_of_the_backbone(self, which) -> None:
        s = settings(scheme=which, rank=3, project=False, context=0)
        low = slices(1, 1, 10, 12)
        expected = ContinuousImage.of(decompose(low[0, 0].numpy()), 3).resampled((2, 2))
        np.testing.assert_allclose(scheme(s)(low).image[0].detach().numpy(), expected, atol=1e-5)

    @pytest.mark.parametrize(
        "more", [{"rank": 4}, {"order": 1}, {"order": 5, "factor": 1.5}, {"axes": "through-plane"}]
    )
    def test_smoothing_grows_with_the_mode(self, more) -> None:
        s = settings(project=False, context=0, smoothing=0.02, **more)
        low = slices(2, 1, 10, 12)
        made_of = scheme(s)(low).image.detach().numpy()
        for one, image in zip(low[:, 0].numpy(), made_of, strict=True):
            parts = decompose(one)
            values = parts.values[: s.rank]
            weights = 0.02 * np.square(values[0] / values)
            expected = ContinuousImage.of(parts, s.rank, order=s.order, smoothing=weights)
            np.testing.assert_allclose(image, expected.resampled(s.factors), atol=1e-4)
            assert np.abs(image - spline(one, s.factors, order=s.order)).max() > 0.1

    def test_smoothing_takes_noise_away(self) -> None:
        t = np.linspace(0, np.pi, 24)
        clean = np.outer(np.sin(t), np.cos(t)) + 0.3 * np.outer(np.sin(2 * t), np.sin(t))
        noisy = torch.from_numpy(clean + 0.05 * np.random.default_rng(0).normal(size=clean.shape)).float()
        truth = spline(clean, (2, 2))
        errors = {
            weight: np.square(scheme(settings(project=False, context=0, smoothing=weight))(noisy[None, None]).image[0]
            .detach().numpy() - truth).mean()
            for weight in (0, 0.01)
        }  # fmt: skip
        assert errors[0.01] < 0.5 * errors[0]

    @pytest.mark.parametrize("order", [1, 2, 5])
    def test_without_smoothing_it_is_the_spline_of_that_order(self, order) -> None:
        low = slices(2, 3, 10, 12)
        expected = spline(low[:, 1], (2, 2), order=order)
        for rank in (None, 10):  # with and without a decomposition: interpolating vectors is interpolating the image
            image = scheme(settings(order=order, rank=rank, project=False))(low).image.detach()
            torch.testing.assert_close(image, expected, rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("backbone", ["edsr", "resnet"])
    @pytest.mark.parametrize("more", [{}, {"factor": 1.5}, {"axes": "through-plane"}])
    def test_decoders_begin_as_the_spline_and_make_the_backbone(self, backbone, more) -> None:
        s = settings(functions="decoders", backbone=backbone, project=False, **more)
        low = slices(2, 3, 10, 12)
        made_of = scheme(s)
        torch.testing.assert_close(made_of(low).image.detach(), spline(low[:, 1], s.factors), rtol=1e-4, atol=1e-5)
        for decoder in (made_of.along_y, made_of.along_x):
            stirred(decoder)
        prediction = made_of(low)
        z = modes(low[:, 1], None)
        values = z[1]
        along_y, along_x = made_of.along_y(z, c_grid(values)), made_of.along_x(z[::-1], c_grid(values))
        torch.testing.assert_close(prediction.U, along_y)
        scale = np.prod([len(along_y[0]) / 10, len(along_x[0]) / 12]) ** 0.5
        torch.testing.assert_close(prediction.c, values * scale)
        image = (along_y * values[:, None] * scale) @ along_x.transpose(1, 2)
        torch.testing.assert_close(prediction.base, image, rtol=1e-4, atol=1e-4)
        assert (image - spline(low[:, 1], s.factors)).abs().max() > 0.1

    @pytest.mark.parametrize(
        "more",
        [{"backbone": b} for b in ("edsr", "resnet", "unet")]
        + [{"backbone": b, "functions": "decoders"} for b in ("edsr", "unet")]
        + [{"rank": 5, "smoothing": 0.01}]
        + [{"scheme": "a", "orthogonality": o} for o in ("penalty", "qr")],
    )
    def test_the_projection_is_exact_and_gradients_flow(self, more) -> None:
        s = settings(**more)
        made_of = stirred(scheme(s))
        low = slices(2, s.depth, 10, 12)
        prediction = made_of(low)
        again = made_of.degradation((10, 12)).degrade(prediction.image)
        torch.testing.assert_close(again, low[:, s.depth // 2], rtol=0, atol=1e-5)
        assert (made_of.degradation((10, 12)).degrade(prediction.raw) - low[:, s.depth // 2]).abs().max() > 1e-2
        slices(*prediction.image.shape, seed=1).mul(prediction.image).sum().backward()
        assert all(p.grad is not None and p.grad.abs().max() > 0 for p in made_of.parameters())

    def test_vectors_are_exactly_orthonormal_by_qr(self) -> None:
        prediction = stirred(scheme(settings(scheme="a", orthogonality="qr")))(slices(2, 1, 10, 12))
        for vectors in (prediction.U, prediction.V):
            gram = vectors.transpose(1, 2) @ vectors
            torch.testing.assert_close(gram, torch.eye(10).expand(2, 10, 10), rtol=0, atol=1e-5)
        prediction = stirred(scheme(settings(scheme="a")))(slices(2, 1, 10, 12))
        assert departure(prediction.U) > 1e-3

    def test_qr_keeps_directions(self) -> None:
        vectors = torch.linalg.qr(slices(3, 12, 4))[0] + 0.01 * slices(3, 12, 4, seed=1)
        cosines = (orthonormal(vectors) * vectors).sum(1)
        assert cosines.min() > 0.9

    def test_signs_do_not_matter(self) -> None:
        for factor, blocks in ((2, 0), (1.5, 0), (2, 1)):
            decoder = stirred(AxisDecoder(factor, 6, weighting=True, blocks=blocks))
            U, values, V = modes(slices(2, 9, 11), None)
            signs = torch.tensor([1.0, -1, -1, 1, -1, 1, 1, 1, -1])
            turned, grid = (U * signs, values, V * signs), c_grid(values)
            torch.testing.assert_close(decoder(turned, grid), decoder((U, values, V), grid) * signs)

    def test_details_are_those_of_an_image_that_is_finer_along_one_axis(self) -> None:
        """To first order the prediction is the spline and, made finer along x, what the network says is lacking."""
        made_of = scheme(settings(scheme="a", project=False))
        details = made_of.along_y.details
        stirred(details)
        with torch.no_grad():
            details.tail.weight.mul_(1e-3)
            details.tail.bias.mul_(1e-3)
        low = slices(2, 1, 12, 10)
        lacking = details(low, low)[:, 0].detach()
        along_x = torch.from_numpy(interpolation(10, 2)).float().T
        expected = spline(low[:, 0], (2, 2)) + lacking @ along_x
        change = (made_of(low).raw - spline(low[:, 0], (2, 2))).detach()
        assert (made_of(low).raw - expected).abs().max() < 0.02 * change.abs().max()

    def test_weak_modes_get_no_details(self) -> None:
        decoder = AxisDecoder(2, 6, weighting=True, blocks=1)
        U, values, V = modes(slices(2, 9, 11), None)
        values = values * torch.logspace(0, -8, 9)
        plain = decoder((U, values, V), c_grid(values))
        stirred(decoder.details)
        lengths = (decoder((U, values, V), c_grid(values)) - plain).norm(dim=1)
        assert lengths[:, 0].min() > 1e-3
        assert lengths[:, 6:].max() < 1e-2 * lengths.max()

    def test_no_gradient_goes_through_the_decomposition(self) -> None:
        low = slices(1, 1, 9, 11).requires_grad_()
        made_of = stirred(scheme(settings(scheme="a", project=False)))
        assert torch.autograd.grad(made_of(low).image.sum(), low, allow_unused=True)[0] is None

    def test_the_weighting_can_be_removed(self) -> None:
        weighted, plain = (scheme(settings(scheme="a", weighting=on)) for on in (True, False))
        names = {name for name, _ in weighted.named_parameters()} - {name for name, _ in plain.named_parameters()}
        assert names == {"along_y.weights", "along_x.weights"}
        with torch.no_grad():
            weighted.along_y.weights[8:] = 0  # of the upper half of the frequencies
        low = slices(1, 1, 16, 12)
        degraded = weighted.degradation((16, 12)).degrade(weighted(low).raw)
        cosines = np.cos(np.pi * np.arange(12, 16)[:, None] * (np.arange(16) + 0.5) / 16)
        assert np.abs(cosines @ degraded.detach().numpy()[0]).max() < 1e-3

    def test_constant_slices_stay_so(self) -> None:
        for which in ("a", "b"):
            image = scheme(settings(scheme=which))(torch.full((1, 3 if which == "b" else 1, 9, 9), 2.0)).image
            torch.testing.assert_close(image, torch.full_like(image, 2), rtol=0, atol=1e-4)
            assert scheme(settings(scheme=which))(torch.zeros(1, 3 if which == "b" else 1, 9, 9)).image.abs().max() == 0
        for more in ({"smoothing": 0.1}, {"functions": "decoders"}):
            for level in (0.0, 2.0):
                image = scheme(settings(**more))(torch.full((1, 3, 9, 9), level)).image
                torch.testing.assert_close(image, torch.full_like(image, level), rtol=0, atol=1e-4)

    def test_a_rank_above_the_size(self, refused) -> None:
        for which in ("a", "b"):
            with refused(ValueError, "1 to 9", "got 10"):
                scheme(settings(scheme=which, rank=10))(slices(1, 3, 9, 11))


class TestLosses:
    def test_terms(self) -> None:
        everything = {f"lambda_{name}": 1.0 for name in ("squared", "absolute", "consistency", "orthogonality")}
        made_of = stirred(scheme(settings(scheme="a", **everything)))
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
        more = {"lambda_perceptual": 1.0, "lambda_adversarial": 1.0}
        assert set(Losses(scheme(settings(scheme="b", **more))).coefficients()) == {
            "squared", "consistency", "perceptual", "adversarial",
        }  # fmt: skip
        assert "orthogonality" in Losses(scheme(settings(functions="decoders"))).coefficients()
        qr = Losses(scheme(settings(scheme="a", orthogonality="qr", **more)))
        assert set(qr.coefficients()) == {"squared", "consistency"}

    def test_learned_weights(self) -> None:
        losses = Losses(scheme(settings(learn_weights=True, lambda_squared=2.0)))
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
            ({key: t for key, t in vgg16.items() if key != name}, f"lacks {name}"),
            (vgg16 | {name: torch.zeros(3)}, "(3,), not (512,)"),
            (vgg16 | {name: vgg16[name] * torch.nan}, "not finite"),
        ):
            save_file(tensors, path)
            with refused(FileFormatError, "VGG-16", words):
                perceptual_loss(str(path))
        with refused(ValueError, "Perceptual", "VGG.pt"):
            settings(perceptual="VGG.pt")

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


@pytest.fixture(scope="module")
def vgg16() -> dict[str, torch.Tensor]:
    """Return random weights, named and shaped as torchvision's vgg16 has them."""
    before, tensors = 3, {}
    widths = [64] * 2 + [128] * 2 + [256] * 3 + [512] * 3
    for n, width in zip((0, 2, 5, 7, 10, 12, 14, 17, 19, 21), widths, strict=True):
        tensors[f"features.{n}.weight"] = slices(width, before, 3, 3, seed=n) * (2 / (9 * before)) ** 0.5
        tensors[f"features.{n}.bias"] = 0.1 * slices(width, seed=n)
        before = width
    return tensors


@pytest.fixture
def monai() -> None:
    for name in ("lpips", "torchvision", "monai.losses"):  # the slowest last
        try:
            importlib.import_module(name)
        except (ImportError, RuntimeError) as error:
            pytest.skip(f"{name} cannot be imported: {error}")


class TestPlanes:
    def test_pairs_are_degradations(self) -> None:
        for more in ({}, {"factor": 1.5, "patch": 9}, {"axes": "through-plane"}, {"scheme": "a"}, {"rank": 4}):
            s = settings(**more)
            planes = Planes([VOLUME], s, [(1, 1, 1)])
            for low, target, _ in islice(planes.batches(np.random.default_rng(0)), 8):
                assert len(low) == s.batch
                assert low.shape[1] == s.depth
                again = Degradation.of_low(low.shape[2:], s.factors).degrade(target)
                torch.testing.assert_close(again, low[:, s.depth // 2])
                if s.side is not None:
                    assert max(low.shape[2:]) <= round(s.side * s.factor)

    def test_slices_held_out_are_not_learnt_from(self) -> None:
        """The intensity of a voxel tells its slice, and a patch is in one, whichever way it is cut."""
        volume = np.broadcast_to(np.arange(40.0)[:, None, None], (40, 36, 36)) + 0.0
        for size in ((1, 1, 1), (3, 1, 1)):
            planes = Planes([volume], settings(hold_out=0.2, context=0), [size])
            line = Intensities.of(volume)
            [held] = planes.held_out
            out = np.unique(np.round(held.target.numpy() * line.scale + line.centre))
            np.testing.assert_array_equal(out, np.arange(16, 24))
            seen = set()
            for _, target, _ in islice(planes.batches(np.random.default_rng(0)), 30):
                seen |= set(np.round(target.numpy() * line.scale + line.centre).ravel())
            assert seen <= set(range(16)) | set(range(24, 40))
            assert len(seen) > 20

    def test_neighbours_are_as_far_as_pixels_of_low_resolution(self) -> None:
        volume = np.broadcast_to(np.arange(40.0)[:, None, None], (40, 36, 36)) + 0.0
        planes = Planes([volume], settings(factor=3, context=2, hold_out=0.1), [(3, 1, 1)])
        low = planes.held_out[0].low[0] * Intensities.of(volume).scale
        np.testing.assert_allclose(np.diff(low.mean((1, 2)).numpy()), 3, rtol=1e-4)

    def test_neighbours_of_planes_across_slices_are_as_far_as_slices(self) -> None:
        volume = np.broadcast_to(np.arange(40.0)[None, :, None], (40, 40, 40)) + 0.0
        planes = Planes([volume], settings(batch=1, patch=8, hold_out=0.1), [(1, 2, 2)])
        scale = Intensities.of(volume).scale
        steps = set()
        for low, _, seen in islice(planes.batches(np.random.default_rng(0)), 60):
            if seen is not None:
                steps |= set(np.round(np.diff(low[0].mean((1, 2)).numpy() * scale), 3))
        assert steps == {0.0, 0.5}  # planes across x have 0, and those across y at the border

    def test_all_directions_where_voxels_are_cubes(self) -> None:
        counts = {
            size: len(Planes([VOLUME], settings(), [size]).stacks) for size in ((1, 1, 1), (1.1, 1, 1), (2, 1, 1))
        }
        assert list(counts.values()) == [6, 6, 2]
        assert len(Planes([VOLUME], settings()).stacks) == 2
        assert len(Planes([VOLUME], settings(axes="through-plane"), [(1, 1, 1)]).stacks) == 2

    @pytest.mark.parametrize("more", [{}, {"factor": 1.5, "patch": 9}, {"scheme": "a", "degradation": "bicubic"}])
    def test_where_slices_are_close_predictions_are_compared_along_that_axis(self, more) -> None:
        s = settings(**more)
        planes = Planes([VOLUME], s, [(1, s.factor, s.factor)])
        made_of = scheme(s)
        kinds = set()
        for low, target, seen in islice(planes.batches(np.random.default_rng(0)), 20):
            kinds.add(None if seen is None else target.shape[1] > low.shape[2])
            if seen is None:
                continue
            sharp = (s.factor, 1) if target.shape[1] > low.shape[2] else (1, s.factor)
            once = Degradation.of_low(low.shape[2:], sharp, s.degradation)
            middle = low[:, s.depth // 2]
            torch.testing.assert_close(once.degrade(target), middle)
            compared = seen.degrade(made_of(low).image)
            assert compared.shape == target.shape
            # What is compared is no worse than a spline along that axis alone, which is as good as can be untrained.
            alone = spline(middle, sharp, onto=once)
            assert (compared - target).square().mean() < 1.1 * (alone - target).square().mean()
        assert kinds == {None, True, False}

    def test_how_large_what_is_learnt_from_is(self) -> None:
        large = np.random.default_rng(0).normal(size=(4, 420, 300)).astype(np.float32)
        for more, expected in (
            ({}, (32, 32)),
            ({"patch": 20}, (20, 20)),
            ({"scheme": "a"}, (32, 32)),
            ({"functions": "decoders"}, (128, 128)),
            ({"smoothing": 0.1}, (128, 128)),
            ({"functions": "decoders"}, (128, 128)),
            ({"rank": 145}, (145, 145)),
            ({"functions": "decoders", "factor": 3}, (128, 99)),
        ):
            batches = Planes([large], settings(hold_out=0.25, **more)).batches(np.random.default_rng(0))
            assert sorted(next(batches).low.shape[2:]) == sorted(expected)

    def test_units_do_not_matter(self) -> None:
        a, b = (Planes([v], settings()).held_out[0].low for v in (VOLUME, VOLUME * 3 + 500))
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)

    def test_signs(self) -> None:
        for signs in (False, True):
            planes = Planes([VOLUME], settings(random_signs=signs, batch=1))
            means = [float(high.mean()) for _, high, _ in islice(planes.batches(np.random.default_rng(0)), 40)]
            dark = Planes([VOLUME], settings(batch=1)).stacks[0].planes.min()
            plain = min(float(h.min()) for _, h, _ in islice(planes.batches(np.random.default_rng(1)), 40))
            assert (plain < 1.5 * dark) == signs, means

    @pytest.mark.parametrize(
        ("volume", "more", "words"),
        [
            (np.where(VOLUME > 100, np.nan, VOLUME), {}, "NaN"),
            (np.ones((40, 40, 40)), {}, "constant"),
            (np.zeros((20, 20, 20, 3)), {}, "three axes"),
            (VOLUME[0], {}, "three axes"),
            (VOLUME + 1j, {}, "real"),
            (VOLUME[:, :15], {}, "too small"),
            (VOLUME[:2], {}, "too small"),
            (VOLUME, {"factor": 5}, "too small"),
            (VOLUME, {"rank": 30}, "1 to"),
        ],
    )
    def test_what_is_refused(self, volume, more, words, refused) -> None:
        with refused(ValueError, words):
            SRTraining([volume], **more)

    def test_nothing_to_learn_from(self, refused) -> None:
        with refused(ValueError, "no volume"):
            SRTraining([])


class TestTraining:
    @pytest.mark.parametrize(
        ("more", "gain"),
        [
            ({}, 0.4),
            ({"scheme": "a"}, 0.7),
            ({"scheme": "a", "orthogonality": "qr"}, 0.4),
            ({"functions": "decoders"}, 0.4),
            ({"factor": 1.5}, 0.4),
            ({"axes": "through-plane", "context": 0}, 1.5),
        ],
    )
    def test_it_learns_what_a_spline_lacks(self, more, gain) -> None:
        quick = {"iterations": 150, "channels": 16, "blocks": 2, "batch": 4, "patch": 12}
        result = train_sr([vessel_phantom(48, noise=0)[0]], [(1, 1, 1)], **quick | more)
        assert result.table["model"] > result.table["B-spline + projection"] + gain
        assert result.table["B-spline + projection"] > result.table["cubic B-spline"]

    def test_the_table(self) -> None:
        training = SRTraining([VOLUME], **QUICK, rank=5)
        *_, last = training.steps()
        result = training.result(last)
        [held] = training.planes.held_out
        low, target = held.low[:, 1].numpy(), held.target.numpy()
        line = Intensities.of(VOLUME)
        np.testing.assert_allclose(target * line.scale + line.centre, VOLUME[list(held.slices)][:, :36, :34], atol=0.02)
        assert training.baselines() == {name: db for name, db in result.table.items() if name != "model"}
        best = training.best().scheme.state_dict()
        assert all(torch.equal(t, best[name]) for name, t in result.model.scheme.state_dict().items())
        span = float(np.ptp(target))
        degradation = Degradation.of_high(target.shape[1:], (2, 2))
        plain, projected = (psnr_between(target, spline(low, (2, 2), onto=p), span) for p in (None, degradation))
        assert result.table["cubic B-spline"] == pytest.approx(plain, abs=1e-3)
        assert result.table["B-spline + projection"] == pytest.approx(projected, abs=1e-3)
        images = np.stack([result.model.scheme(one[None]).image[0].detach().numpy() for one in held.low])
        assert result.table["model"] == pytest.approx(psnr_between(target, images, span), abs=1e-3)
        ceilings = [best_psnr_db(decompose(one).values, one.shape, span)[4] for one in target]
        pooled = -10 * np.log10(np.mean(10 ** (-np.array(ceilings) / 10)))
        assert result.table["best of rank 5"] == pytest.approx(pooled, abs=1e-3)
        report = json.loads(json.dumps(result.report(), allow_nan=False))
        assert report["psnr_db"] == result.table == result.model.metrics["psnr_db"]
        assert report["settings"]["rank"] == 5
        assert {"history", "seconds", "message", "parameters"} <= set(report)

    @pytest.mark.parametrize("which", ["a", "b"])
    def test_equal_seeds_give_equal_models(self, which) -> None:
        runs = [train_sr([VOLUME], **QUICK, scheme=which, seed=seed) for seed in (1, 1, 2)]
        first, again, other = (torch.cat([t.flatten() for t in r.model.scheme.state_dict().values()]) for r in runs)
        assert torch.equal(first, again)
        assert not torch.equal(first, other)
        assert [p.psnr_db for p in runs[0].history] == [p.psnr_db for p in runs[1].history]

    def test_the_best_is_kept(self) -> None:
        result = train_sr([VOLUME], **QUICK | {"iterations": 20}, learning_rate=3.0)
        reached = [point.psnr_db for point in result.history]
        assert reached[-1] < max(reached) - 1, "it was made to diverge"
        assert result.table["model"] == max(reached) >= result.table["B-spline + projection"] - 1e-6

    def test_stopping(self) -> None:
        training = SRTraining([VOLUME], **QUICK | {"iterations": 10_000})
        stop = []
        for step in training.steps(lambda: bool(stop)):
            if step.iteration == 5:
                stop.append(True)
        assert (step.message, step.iteration) == ("Stopped.", 6)
        assert training.result(step).table["model"] == max(point.psnr_db for point in step.history)
        training = SRTraining([VOLUME], **QUICK)
        steps = training.steps()
        step = next(steps)
        steps.close()
        assert training.result(step).model.settings.iterations == 6

    def test_a_time_limit(self) -> None:
        result = train_sr([VOLUME], **SMALL, time_limit=1.0)
        assert result.message == "The time is over."
        assert 0.9 < result.seconds < 10

    def test_what_is_shown(self) -> None:
        training = SRTraining([VOLUME], **QUICK)
        *_, step = training.steps()
        assert step.prediction.shape == step.target.shape == tuple(2 * n for n in step.low.shape)
        np.testing.assert_allclose(
            Degradation.of_low(step.low.shape, (2, 2)).degrade(step.prediction), step.low, atol=1e-5
        )
        np.testing.assert_allclose(Degradation.of_low(step.low.shape, (2, 2)).degrade(step.target), step.low, atol=1e-5)

    @pytest.mark.parametrize(
        "more", [{"lambda_perceptual": 0.1}, {"lambda_adversarial": 0.01}, {"learn_weights": True}]
    )
    def test_other_losses(self, more) -> None:
        result = train_sr([VOLUME], **QUICK, patch=16, **more)
        plain = train_sr([VOLUME], **QUICK, patch=16)
        assert np.isfinite(list(result.history[-1].losses.values())).all()
        assert set(result.history[-1].losses) == set(result.history[-1].coefficients)
        assert [p.psnr_db for p in result.history] != [p.psnr_db for p in plain.history]

    @pytest.mark.parametrize("learn", [False, True])
    def test_each_loss_of_scheme_a_has_its_coefficient(self, learn) -> None:
        more = {"scheme": "a", "lambda_absolute": 0.5, "lambda_orthogonality": 0.01, "weighting": False}
        result = train_sr([VOLUME], **QUICK, learn_weights=learn, **more)
        first, last = (json.loads(json.dumps(result.report()["history"][k]["coefficients"])) for k in (0, -1))
        assert first == {"squared": 1.0, "absolute": 0.5, "consistency": 0.1, "orthogonality": 0.01}
        assert set(result.history[-1].losses) == set(last) == set(first)
        assert all((last[name] != first[name]) == learn for name in first)

    def test_a_perceptual_loss_of_given_weights(self, tmp_path, vgg16) -> None:
        path = tmp_path / "VGG.safetensors"
        save_file(vgg16, path)
        quick = SMALL | {"iterations": 2, "patch": 8, "lambda_perceptual": 0.1}
        result, plain = (train_sr([VOLUME], **quick, perceptual=kind) for kind in (str(path), "random"))
        assert result.history[-1].losses["perceptual"] != plain.history[-1].losses["perceptual"]
        assert not any("perceptual" in name for name in result.model.scheme.state_dict())
        result.model.save(tmp_path / "SR.safetensors")
        path.unlink()
        assert SRModel.load(tmp_path / "SR.safetensors").settings.perceptual == str(path), "a model does without them"

    def test_several_volumes(self) -> None:
        training = SRTraining([VOLUME, 5 * VOLUME[:, :30]], **QUICK)
        *_, last = training.steps()
        assert len(training.planes.held_out) == 2
        assert training.result(last).table["model"] > 10


class TestModels:
    @pytest.mark.parametrize(
        "more",
        [
            {},
            {"scheme": "a"},
            {"axes": "through-plane", "factor": 1.5},
            {"functions": "decoders", "backbone": "unet"},
            {"order": 1, "rank": 9, "smoothing": 0.1},
        ],
    )
    def test_the_file_is_the_model(self, tmp_path, more) -> None:
        model = SRModel(stirred(scheme(settings(**more))), {"psnr_db": {"model": 30.0}})
        model.save(tmp_path / "SR.safetensors")
        again = SRModel.load(tmp_path / "SR.safetensors")
        assert (again.settings, again.metrics) == (model.settings, model.metrics)
        axes = model.settings.axes
        low = VOLUME[:12, :14, :11]
        np.testing.assert_array_equal(superresolve(low, again, axes=axes), superresolve(low, model, axes=axes))

    def test_files_that_are_none(self, tmp_path, refused) -> None:
        path = tmp_path / "SR.safetensors"
        model = SRModel(scheme(settings()))
        with refused(ValueError, ".safetensors"):
            model.save(tmp_path / "SR.pt")
        with refused(FileNotFoundError, "SR.safetensors"):
            SRModel.load(path)
        path.write_bytes(b"nothing")
        with refused(FileFormatError, "SR.safetensors"):
            SRModel.load(path)
        good = model.scheme.state_dict()
        texts = {"format": "napari-gsvolume/sr/1", "settings": model.settings.model_dump_json(), "metrics": "{}"}
        damaged = dict(good)
        name = next(iter(damaged))
        for tensors, more, words in (
            (good, {"format": "napari-gsvolume/1"}, "something else"),
            (good, {"format": "napari-gsvolume/sr/2"}, "newer"),
            (good, {"settings": "[]"}, "settings"),
            (good, {"settings": '{"factor": 0}'}, "factor"),
            (good, {"settings": '{"factor": 2, "turbo": true}'}, "no setting turbo; try a newer"),
            (good, {"metrics": "{"}, "metrics"),
            ({name: good[name]}, {}, "weights"),
            (damaged | {name: good[name] * torch.nan}, {}, "finite"),
        ):
            save_file(tensors, path, texts | more)
            with refused(FileFormatError, words):
                SRModel.load(path)

    def test_models_of_something_else(self, refused) -> None:
        model = SRModel(scheme(settings(factor=3)))
        model.check(SuperResolveSettings(scheme="b", factor=3))
        model.check(SuperResolveSettings(scheme="b", factor=3, axes="through-plane"))
        for more, words in (
            ({"factor": 2}, "factor 3, not 2"),
            ({"factor": 3, "scheme": "a"}, "scheme b, not a"),
            ({"factor": 3, "degradation": "psf"}, "block-mean, not psf"),
        ):
            with refused(ValueError, words):
                model.check(SuperResolveSettings(**{"scheme": "b"} | more))
        with refused(ValueError, "through-plane"):
            SRModel(scheme(settings(axes="through-plane"))).check(SuperResolveSettings(scheme="b"))
        with refused(ValueError, "fwhm 1, not 2"):
            psf = SRModel(scheme(settings(degradation="psf")))
            psf.check(SuperResolveSettings(scheme="b", degradation="psf", fwhm=2))


class TestApplying:
    @pytest.mark.parametrize("axis", [0, 1, 2])
    @pytest.mark.parametrize("more", [{}, {"factor": 1.5, "scheme": "a"}, {"axes": "through-plane"}])
    def test_untrained_it_is_the_spline_in_every_direction(self, axis, more) -> None:
        s = settings(**more)
        low = VOLUME[:12, :14, :10]
        factors = [s.factor if (k == axis) == (s.axes == "through-plane") else 1.0 for k in range(3)]
        expected = spline(low, factors, onto=Degradation.of_low(low.shape, factors))
        np.testing.assert_allclose(superresolve(low, SRModel(scheme(s)), axis, s.axes), expected, atol=0.5)

    @pytest.mark.parametrize("axes", ["in-plane", "through-plane"])
    @pytest.mark.parametrize("more", [{}, {"scheme": "a"}, {"degradation": "bicubic", "factor": 1.5}])
    def test_it_agrees_with_what_was_measured(self, axes, more) -> None:
        s = settings(**more)
        model = SRModel(stirred(scheme(s)))
        low = VOLUME[:12, :14, :11]
        factors = (1, s.factor, s.factor) if axes == "in-plane" else (s.factor, 1, 1)
        degradation = Degradation.of_low(low.shape, factors, s.degradation)
        finer = superresolve(low, model, 0, axes)
        assert finer.dtype == np.float32
        assert np.abs(degradation.degrade(finer) - low).max() < 1e-5 * np.abs(low).max()
        free = superresolve(low, model, 0, axes, project=False)
        assert np.abs(degradation.degrade(free) - low).max() > 1e-3 * np.abs(low).max()

    def test_each_slice_is_what_the_scheme_predicts(self) -> None:
        model = SRModel(stirred(scheme(settings(context=1))))
        low = VOLUME[:6, :14, :11]
        line = Intensities.of(low)
        normal = torch.from_numpy((low - line.centre) / line.scale)
        finer = superresolve(low, model, ensemble=False)
        for k, neighbours in ((0, [0, 0, 1]), (3, [2, 3, 4]), (5, [4, 5, 5])):
            expected = model.scheme(normal[neighbours][None]).image[0].detach() * line.scale + line.centre
            np.testing.assert_allclose(finer[k], expected.numpy(), atol=0.1)

    @pytest.mark.parametrize("more", [{}, {"scheme": "a"}, {"axes": "through-plane", "context": 0}])
    def test_an_ensemble_does_not_mind_flips(self, more) -> None:
        s = settings(**more)
        model = SRModel(stirred(scheme(s)))
        low = VOLUME[:6, :14, :11]
        finer = superresolve(low, model, 0, s.axes)
        flips = (2, (1, 2), 1) if s.axes == "in-plane" else (0, 1, (0, 2))
        for axes in flips:
            flipped = superresolve(np.flip(low, axes), model, 0, s.axes)
            np.testing.assert_allclose(np.flip(flipped, axes), finer, atol=0.05)
        assert np.abs(superresolve(low, model, 0, s.axes, ensemble=False) - finer).max() > 1
        if s.axes == "in-plane":
            turned = superresolve(low.transpose(0, 2, 1), model).transpose(0, 2, 1)
            np.testing.assert_allclose(turned, finer, atol=0.05)

    def test_an_image_and_what_is_constant(self) -> None:
        model = SRModel(stirred(scheme(settings())))
        image = superresolve(VOLUME[5], model)
        assert image.shape == (72, 70)
        np.testing.assert_allclose(Degradation.of_high((72, 70), (2, 2)).degrade(image), VOLUME[5], atol=0.02)
        constant = superresolve(np.full((3, 9, 9), 7), model)
        np.testing.assert_array_equal(constant, np.full((3, 18, 18), 7))
        assert constant.dtype == np.float32

    def test_a_part_of_a_volume(self) -> None:
        """In the intensities of the volume, it is as in the volume."""
        model = SRModel(stirred(scheme(settings(context=0))))
        whole = superresolve(VOLUME, model)
        part = superresolve(VOLUME[5:7], model, intensities=Intensities.of(VOLUME))
        np.testing.assert_allclose(part, whole[5:7], rtol=1e-4, atol=1e-2)

    def test_progress_is_told(self) -> None:
        told = []
        superresolve(VOLUME, SRModel(scheme(settings())), axes="through-plane", tell=told.append)
        assert told == sorted(told)
        assert told[-1] == 1

    def test_what_is_refused(self, refused) -> None:
        model = SRModel(scheme(settings()))
        for volume, words in (
            (np.where(VOLUME > 100, np.nan, VOLUME), "NaN"),
            (np.zeros((5, 5, 5, 3)), "axes"),
            (VOLUME[:5, :3], "too small"),
        ):
            with refused(ValueError, words):
                superresolve(volume, model)
        with refused(ValueError, "takes 9 modes", "8 x 35 pixels have 8"):
            superresolve(VOLUME[:5, :8], SRModel(scheme(settings(rank=9))))
        with refused(ValueError, "two axes"):
            superresolve(VOLUME[0], model, axes="through-plane")
        with refused(ValueError, "through-plane"):
            superresolve(VOLUME, SRModel(scheme(settings(axes="through-plane"))))


class TestUnderstanding:
    def test_gradients_of_the_losses(self) -> None:
        model = SRModel(stirred(scheme(settings(project=False, lambda_absolute=1.0))))
        low, target = slices(3, 10, 12), slices(20, 24, seed=1)
        gradients = loss_gradients(model, low, target)
        assert set(gradients) == {"squared", "absolute", "consistency"}
        error = model.scheme(low[None]).raw[0].detach() - target
        np.testing.assert_allclose(gradients["squared"], 2 * error.numpy() / error.numel(), rtol=1e-4, atol=1e-8)
        np.testing.assert_allclose(gradients["absolute"], np.sign(error.numpy()) / error.numel(), rtol=1e-4)

    def test_of_scheme_a_the_losses_of_vectors_have_none(self) -> None:
        model = SRModel(scheme(settings(scheme="a")))
        assert set(loss_gradients(model, slices(1, 10, 12), slices(20, 24, seed=1))) == {"squared", "consistency"}

    def test_with_the_projection_nothing_pulls_at_what_was_measured(self) -> None:
        model = SRModel(stirred(scheme(settings())))
        squared = loss_gradients(model, slices(3, 10, 12), slices(20, 24, seed=1))["squared"]
        assert np.abs(squared).max() > 1e-4
        np.testing.assert_allclose(Degradation.of_high((20, 24), (2, 2)).degrade(squared), 0, atol=1e-8)

    def test_contributions_of_modes(self, refused) -> None:
        model = SRModel(scheme(settings(scheme="a")))
        low, target = slices(1, 10, 12), slices(20, 24, seed=1)
        facts = mode_contributions(model, low, target)
        np.testing.assert_allclose(facts["c"], facts["values"], rtol=1e-4)
        np.testing.assert_allclose(facts["values"], 2 * np.linalg.svd(low[0].numpy())[1], rtol=1e-4)
        raw = model.scheme(low[None]).raw[0].detach().numpy()
        assert facts["error"][-1] == pytest.approx(np.square(raw - target.numpy()).mean(), rel=1e-4)
        first = ContinuousImage.of(decompose(low[0].numpy()), 1).resampled((2, 2))
        assert facts["error"][0] == pytest.approx(np.square(first - target.numpy()).mean(), rel=1e-4)
        with refused(ValueError, "Scheme b"):
            mode_contributions(SRModel(scheme(settings())), slices(3, 10, 12), target)
