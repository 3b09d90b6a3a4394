"""Learned super-resolution: models in files, applied to volumes, and looked into."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from helpers.super_resolving import VOLUME, settings, slices, stirred
from napari_gsvolume.errors import FileFormatError
from napari_gsvolume.super_resolution.analysis import loss_gradients, mode_contributions
from napari_gsvolume.super_resolution.bspline import spline
from napari_gsvolume.super_resolution.degradation import Degradation
from napari_gsvolume.super_resolution.intensities import Intensities
from napari_gsvolume.super_resolution.model import SRModel, superresolve
from napari_gsvolume.super_resolution.schemes import scheme
from napari_gsvolume.super_resolution.settings import SuperResolveSettings
from napari_gsvolume.svd.continuous_basis import ContinuousImage
from napari_gsvolume.svd.decomposition import decompose

pytestmark = pytest.mark.usefixtures("one_thread")


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
