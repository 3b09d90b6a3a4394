"""Learned super-resolution: networks, settings, and both schemes before they are trained."""

import importlib
import sys

import numpy as np
import pytest
import torch

from helpers.super_resolving import VOLUME, settings, slices, stirred
from napari_gsvolume.phantoms import vessel_phantom
from napari_gsvolume.super_resolution.axis_decoder import AxisDecoder
from napari_gsvolume.super_resolution.bspline import interpolation_matrix, upsample_bspline
from napari_gsvolume.super_resolution.degradation import Degradation
from napari_gsvolume.super_resolution.losses import orthogonality_error
from napari_gsvolume.super_resolution.model import SRModel
from napari_gsvolume.super_resolution.networks import EDSR, build_network
from napari_gsvolume.super_resolution.schemes import build_scheme, c_grid, orthonormalize, slice_modes
from napari_gsvolume.super_resolution.settings import SPANDREL_BACKBONES
from napari_gsvolume.super_resolution.training import train_superresolution
from napari_gsvolume.super_resolution.upsampling import superresolve
from napari_gsvolume.svd.continuous_basis import ContinuousImage
from napari_gsvolume.svd.decomposition import decompose

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def spandrel() -> None:
    try:
        importlib.import_module("spandrel")
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"spandrel cannot be imported: {error}")


class TestNetworks:
    @pytest.mark.parametrize("backbone", ["edsr", "resnet", "unet"])
    @pytest.mark.parametrize(
        "more", [{}, {"factor": 3, "context": 0}, {"factor": 1.7}, {"upsample_axes": "through-plane"}]
    )
    def test_shapes_and_the_beginning(self, backbone, more) -> None:
        s = settings(backbone=backbone, **more)
        low = slices(2, s.depth, 9, 11)
        prediction = build_scheme(s)(low)
        high = Degradation.of_low((9, 11), s.factors).high
        assert prediction.raw.shape == (2, *high)
        torch.testing.assert_close(prediction.raw, prediction.base, rtol=0, atol=0)
        assert (stirred(build_scheme(s))(low).raw - prediction.raw).abs().max() > 1e-3

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

    @pytest.mark.parametrize("backbone", SPANDREL_BACKBONES)
    @pytest.mark.parametrize("more", [{}, {"factor": 3, "context": 0}, {"factor": 4, "rank": 4}])
    def test_those_of_spandrel(self, backbone, more, spandrel) -> None:
        s = settings(backbone=backbone, channels=16, blocks=2, **more)
        for shape in ((17, 12), (5, 9)):  # no multiples of windows
            low = slices(2, s.depth, *shape)
            before = low.clone()
            prediction = build_scheme(s)(low)
            torch.testing.assert_close(low, before, rtol=0, atol=0)
            assert prediction.raw.shape == (2, *(int(s.factor) * n for n in shape))
            torch.testing.assert_close(prediction.raw, prediction.base, rtol=0, atol=0)
        made_of = stirred(build_scheme(s))
        changed = made_of(low)
        torch.testing.assert_close(
            made_of.degradation(shape).degrade(changed.image), low[:, s.depth // 2], rtol=0, atol=1e-5
        )
        assert (changed.raw - prediction.raw).abs().max() > 1e-3
        slices(*changed.image.shape, seed=1).mul(changed.image).sum().backward()
        assert all(p.grad is not None and p.grad.abs().max() > 0 for p in made_of.parameters())

    @pytest.mark.parametrize("backbone", SPANDREL_BACKBONES)
    @pytest.mark.parametrize(("factor", "gain"), [(2, 0.1), (3, 0.01)])
    def test_those_of_spandrel_learn(self, backbone, factor, gain, spandrel, tmp_path) -> None:
        quick = {
            "channels": 16,
            "blocks": 2,
            "batch_size": 4,
            "patch_size": 12,
            "iterations": 60,
            "learning_rate": 3e-3,
        }
        result = train_superresolution(
            [vessel_phantom(48, noise=0)[0]], [(1, 1, 1)], backbone=backbone, factor=factor, **quick
        )
        assert result.table["model"] > result.table["B-spline + projection"] + gain
        result.model.save(tmp_path / "SR.safetensors")
        low = VOLUME[:3, :14, :11]
        finer = superresolve(low, SRModel.load(tmp_path / "SR.safetensors")).volume
        np.testing.assert_array_equal(finer, superresolve(low, result.model).volume)
        assert finer.shape == (3, 14 * factor, 11 * factor)
        assert np.abs(Degradation.of_low(low.shape, (1, factor, factor)).degrade(finer) - low).max() < 1e-5 * low.max()

    @pytest.mark.parametrize("backbone", SPANDREL_BACKBONES)
    def test_without_spandrel(self, backbone, monkeypatch, refused) -> None:
        for name in [name for name in sys.modules if name.split(".")[0] == "spandrel"]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.setitem(sys.modules, "spandrel", None)
        with refused(ValueError, backbone, "napari-gsvolume[sr]"):
            build_network(settings(backbone=backbone))


class TestSettings:
    @pytest.mark.parametrize(
        ("more", "words"),
        [
            ({"factor": 1}, "factor"),
            ({"factor": 1.5, "backbone": "hat"}, "edsr"),
            ({"upsample_axes": "through-plane", "backbone": "rcan"}, "edsr"),
            ({"l2_weight": 0}, "nothing to train"),
            ({"patch_size": 12, "rank": 13}, "13"),
            ({"scheme": "c"}, "scheme"),
            ({"basis": "learned", "smoothing": 0.1}, "decoders"),
            ({"basis": "learned", "spline_degree": 1}, "decoders"),
            ({"scheme": "singular-vectors", "l2_weight": 0, "perceptual_weight": 1}, "nothing to train"),
        ],
    )
    def test_what_does_not_go_together(self, more, words, refused) -> None:
        with refused(ValueError, words):
            settings(**more)


class TestSchemes:
    @pytest.mark.parametrize("which", ["singular-vectors", "residual"])
    @pytest.mark.parametrize(
        "more", [{}, {"factor": 1.5}, {"upsample_axes": "through-plane"}, {"degradation": "bicubic"}]
    )
    def test_untrained_it_is_the_spline(self, which, more) -> None:
        for project in (True, False):
            s = settings(scheme=which, project=project, **more)
            low = slices(2, s.depth, 10, 12)
            middle = low[:, s.depth // 2]
            onto = Degradation.of_low((10, 12), s.factors, s.degradation) if project else None
            expected = upsample_bspline(middle, s.factors, onto=onto)
            torch.testing.assert_close(build_scheme(s)(low).image.detach(), expected, rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("which", ["singular-vectors", "residual"])
    def test_the_rank_is_that_of_the_backbone(self, which) -> None:
        s = settings(scheme=which, rank=3, project=False, context=0)
        low = slices(1, 1, 10, 12)
        expected = ContinuousImage.from_svd(decompose(low[0, 0].numpy()), 3).resampled((2, 2))
        np.testing.assert_allclose(build_scheme(s)(low).image[0].detach().numpy(), expected, atol=1e-5)

    @pytest.mark.parametrize(
        "more",
        [{"rank": 4}, {"spline_degree": 1}, {"spline_degree": 5, "factor": 1.5}, {"upsample_axes": "through-plane"}],
    )
    def test_smoothing_grows_with_the_mode(self, more) -> None:
        s = settings(project=False, context=0, smoothing=0.02, **more)
        low = slices(2, 1, 10, 12)
        made_of = build_scheme(s)(low).image.detach().numpy()
        for one, image in zip(low[:, 0].numpy(), made_of, strict=True):
            parts = decompose(one)
            values = parts.values[: s.rank]
            weights = 0.02 * np.square(values[0] / values)
            expected = ContinuousImage.from_svd(parts, s.rank, order=s.spline_degree, smoothing=weights)
            np.testing.assert_allclose(image, expected.resampled(s.factors), atol=1e-4)
            assert np.abs(image - upsample_bspline(one, s.factors, order=s.spline_degree)).max() > 0.1

    def test_smoothing_takes_noise_away(self) -> None:
        t = np.linspace(0, np.pi, 24)
        clean = np.outer(np.sin(t), np.cos(t)) + 0.3 * np.outer(np.sin(2 * t), np.sin(t))
        noisy = torch.from_numpy(clean + 0.05 * np.random.default_rng(0).normal(size=clean.shape)).float()
        truth = upsample_bspline(clean, (2, 2))
        smoothed_by = lambda weight: build_scheme(settings(project=False, context=0, smoothing=weight))  # noqa: E731
        errors = {
            weight: np.square(smoothed_by(weight)(noisy[None, None]).image[0].detach().numpy() - truth).mean()
            for weight in (0, 0.01)
        }
        assert errors[0.01] < 0.5 * errors[0]

    @pytest.mark.parametrize("order", [1, 2, 5])
    def test_without_smoothing_it_is_the_spline_of_that_order(self, order) -> None:
        low = slices(2, 3, 10, 12)
        expected = upsample_bspline(low[:, 1], (2, 2), order=order)
        for rank in (None, 10):  # with and without a decomposition: interpolating vectors is interpolating the image
            image = build_scheme(settings(spline_degree=order, rank=rank, project=False))(low).image.detach()
            torch.testing.assert_close(image, expected, rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("backbone", ["edsr", "resnet"])
    @pytest.mark.parametrize("more", [{}, {"factor": 1.5}, {"upsample_axes": "through-plane"}])
    def test_decoders_begin_as_the_spline_and_make_the_backbone(self, backbone, more) -> None:
        s = settings(basis="learned", backbone=backbone, project=False, **more)
        low = slices(2, 3, 10, 12)
        made_of = build_scheme(s)
        torch.testing.assert_close(
            made_of(low).image.detach(), upsample_bspline(low[:, 1], s.factors), rtol=1e-4, atol=1e-5
        )
        for decoder in (made_of.along_y, made_of.along_x):
            stirred(decoder)
        prediction = made_of(low)
        z = slice_modes(low[:, 1], None)
        values = z[1]
        along_y, along_x = made_of.along_y(z, c_grid(values)), made_of.along_x(z[::-1], c_grid(values))
        torch.testing.assert_close(prediction.U, along_y)
        scale = np.prod([len(along_y[0]) / 10, len(along_x[0]) / 12]) ** 0.5
        torch.testing.assert_close(prediction.c, values * scale)
        image = (along_y * values[:, None] * scale) @ along_x.transpose(1, 2)
        torch.testing.assert_close(prediction.base, image, rtol=1e-4, atol=1e-4)
        assert (image - upsample_bspline(low[:, 1], s.factors)).abs().max() > 0.1

    @pytest.mark.parametrize(
        "more",
        [{"backbone": b} for b in ("edsr", "resnet", "unet")]
        + [{"backbone": b, "basis": "learned"} for b in ("edsr", "unet")]
        + [{"rank": 5, "smoothing": 0.01}]
        + [{"scheme": "singular-vectors", "orthogonality": o} for o in ("penalty", "qr")],
    )
    def test_the_projection_is_exact_and_gradients_flow(self, more) -> None:
        s = settings(**more)
        made_of = stirred(build_scheme(s))
        low = slices(2, s.depth, 10, 12)
        prediction = made_of(low)
        again = made_of.degradation((10, 12)).degrade(prediction.image)
        torch.testing.assert_close(again, low[:, s.depth // 2], rtol=0, atol=1e-5)
        assert (made_of.degradation((10, 12)).degrade(prediction.raw) - low[:, s.depth // 2]).abs().max() > 1e-2
        slices(*prediction.image.shape, seed=1).mul(prediction.image).sum().backward()
        assert all(p.grad is not None and p.grad.abs().max() > 0 for p in made_of.parameters())

    def test_vectors_are_exactly_orthonormal_by_qr(self) -> None:
        prediction = stirred(build_scheme(settings(scheme="singular-vectors", orthogonality="qr")))(
            slices(2, 1, 10, 12)
        )
        for vectors in (prediction.U, prediction.V):
            gram = vectors.transpose(1, 2) @ vectors
            torch.testing.assert_close(gram, torch.eye(10).expand(2, 10, 10), rtol=0, atol=1e-5)
        prediction = stirred(build_scheme(settings(scheme="singular-vectors")))(slices(2, 1, 10, 12))
        assert orthogonality_error(prediction.U) > 1e-3

    def test_qr_keeps_directions(self) -> None:
        vectors = torch.linalg.qr(slices(3, 12, 4))[0] + 0.01 * slices(3, 12, 4, seed=1)
        cosines = (orthonormalize(vectors) * vectors).sum(1)
        assert cosines.min() > 0.9

    def test_signs_do_not_matter(self) -> None:
        for factor, blocks in ((2, 0), (1.5, 0), (2, 1)):
            decoder = stirred(AxisDecoder(factor, 6, weighting=True, blocks=blocks))
            U, values, V = slice_modes(slices(2, 9, 11), None)
            signs = torch.tensor([1.0, -1, -1, 1, -1, 1, 1, 1, -1])
            turned, grid = (U * signs, values, V * signs), c_grid(values)
            torch.testing.assert_close(decoder(turned, grid), decoder((U, values, V), grid) * signs)

    def test_details_are_those_of_an_image_that_is_finer_along_one_axis(self) -> None:
        """To first order the prediction is the spline and, made finer along x, what the network says is lacking."""
        made_of = build_scheme(settings(scheme="singular-vectors", project=False))
        details = made_of.along_y.details
        stirred(details)
        with torch.no_grad():
            details.tail.weight.mul_(1e-3)
            details.tail.bias.mul_(1e-3)
        low = slices(2, 1, 12, 10)
        lacking = details(low, low)[:, 0].detach()
        along_x = torch.from_numpy(interpolation_matrix(10, 2)).float().T
        expected = upsample_bspline(low[:, 0], (2, 2)) + lacking @ along_x
        change = (made_of(low).raw - upsample_bspline(low[:, 0], (2, 2))).detach()
        assert (made_of(low).raw - expected).abs().max() < 0.02 * change.abs().max()

    def test_weak_modes_get_no_details(self) -> None:
        decoder = AxisDecoder(2, 6, weighting=True, blocks=1)
        U, values, V = slice_modes(slices(2, 9, 11), None)
        values = values * torch.logspace(0, -8, 9)
        plain = decoder((U, values, V), c_grid(values))
        stirred(decoder.details)
        lengths = (decoder((U, values, V), c_grid(values)) - plain).norm(dim=1)
        assert lengths[:, 0].min() > 1e-3
        assert lengths[:, 6:].max() < 1e-2 * lengths.max()

    def test_no_gradient_goes_through_the_decomposition(self) -> None:
        low = slices(1, 1, 9, 11).requires_grad_()
        made_of = stirred(build_scheme(settings(scheme="singular-vectors", project=False)))
        assert torch.autograd.grad(made_of(low).image.sum(), low, allow_unused=True)[0] is None

    def test_the_weighting_can_be_removed(self) -> None:
        weighted, plain = (
            build_scheme(settings(scheme="singular-vectors", frequency_weighting=on)) for on in (True, False)
        )
        names = {name for name, _ in weighted.named_parameters()} - {name for name, _ in plain.named_parameters()}
        assert names == {"along_y.weights", "along_x.weights"}
        with torch.no_grad():
            weighted.along_y.weights[8:] = 0  # of the upper half of the frequencies
        low = slices(1, 1, 16, 12)
        degraded = weighted.degradation((16, 12)).degrade(weighted(low).raw)
        cosines = np.cos(np.pi * np.arange(12, 16)[:, None] * (np.arange(16) + 0.5) / 16)
        assert np.abs(cosines @ degraded.detach().numpy()[0]).max() < 1e-3

    def test_constant_slices_stay_so(self) -> None:
        for which in ("singular-vectors", "residual"):
            image = build_scheme(settings(scheme=which))(
                torch.full((1, 3 if which == "residual" else 1, 9, 9), 2.0)
            ).image
            torch.testing.assert_close(image, torch.full_like(image, 2), rtol=0, atol=1e-4)
            assert (
                build_scheme(settings(scheme=which))(torch.zeros(1, 3 if which == "residual" else 1, 9, 9))
                .image.abs()
                .max()
                == 0
            )
        for more in ({"smoothing": 0.1}, {"basis": "learned"}):
            for level in (0.0, 2.0):
                image = build_scheme(settings(**more))(torch.full((1, 3, 9, 9), level)).image
                torch.testing.assert_close(image, torch.full_like(image, level), rtol=0, atol=1e-4)

    def test_a_rank_above_the_size(self, refused) -> None:
        for which in ("singular-vectors", "residual"):
            with refused(ValueError, "1 to 9", "got 10"):
                build_scheme(settings(scheme=which, rank=10))(slices(1, 3, 9, 11))
