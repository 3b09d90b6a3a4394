"""Trained super-resolution models: files, application to volumes, and analysis."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from helpers.super_resolving import VOLUME, settings, slices, stirred
from napari_gsvolume.errors import FileFormatError
from napari_gsvolume.progress import Budget
from napari_gsvolume.super_resolution.analysis import loss_gradients, mode_contributions
from napari_gsvolume.super_resolution.bspline import upsample_bspline
from napari_gsvolume.super_resolution.degradation import Degradation
from napari_gsvolume.super_resolution.intensities import Intensities
from napari_gsvolume.super_resolution.model import SRModel
from napari_gsvolume.super_resolution.schemes import build_scheme
from napari_gsvolume.super_resolution.settings import SuperResolveSettings
from napari_gsvolume.super_resolution.upsampling import superresolve, superresolve_steps
from napari_gsvolume.svd.continuous_basis import ContinuousImage
from napari_gsvolume.svd.decomposition import decompose

pytestmark = pytest.mark.usefixtures("one_thread")


class TestModels:
    @pytest.mark.parametrize(
        "more",
        [
            {},
            {"scheme": "singular-vectors"},
            {"upsample_axes": "through-plane", "factor": 1.5},
            {"basis": "learned", "backbone": "unet"},
            {"spline_degree": 1, "rank": 9, "smoothing": 0.1},
        ],
    )
    def test_the_file_is_the_model(self, tmp_path, more) -> None:
        model = SRModel(stirred(build_scheme(settings(**more))), {"psnr_db": {"model": 30.0}})
        model.save(tmp_path / "SR.safetensors")
        again = SRModel.load(tmp_path / "SR.safetensors")
        assert (again.settings, again.metrics) == (model.settings, model.metrics)
        axes = model.settings.upsample_axes
        low = VOLUME[:12, :14, :11]
        np.testing.assert_array_equal(
            superresolve(low, again, upsample_axes=axes).volume, superresolve(low, model, upsample_axes=axes).volume
        )

    def test_files_that_are_none(self, tmp_path, refused) -> None:
        path = tmp_path / "SR.safetensors"
        model = SRModel(build_scheme(settings()))
        with refused(ValueError, ".safetensors"):
            model.save(tmp_path / "SR.pt")
        with refused(FileNotFoundError, "SR.safetensors"):
            SRModel.load(path)
        path.write_bytes(b"nothing")
        with refused(FileFormatError, "SR.safetensors"):
            SRModel.load(path)
        good = model.scheme.state_dict()
        texts = {"format": "napari-gsvolume/sr/2", "settings": model.settings.model_dump_json(), "metrics": "{}"}
        damaged = dict(good)
        name = next(iter(damaged))
        for tensors, more, words in (
            (good, {"format": "napari-gsvolume/1"}, "something else"),
            (good, {"format": "napari-gsvolume/sr/3"}, "newer"),
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
        model = SRModel(build_scheme(settings(factor=3)))
        model.check(SuperResolveSettings(scheme="residual", factor=3))
        model.check(SuperResolveSettings(scheme="residual", factor=3, upsample_axes="through-plane"))
        for more, words in (
            ({"factor": 2}, "factor 3, not 2"),
            ({"factor": 3, "scheme": "singular-vectors"}, "scheme residual, not singular-vectors"),
            ({"factor": 3, "degradation": "psf"}, "block-mean, not psf"),
        ):
            with refused(ValueError, words):
                model.check(SuperResolveSettings(**{"scheme": "residual"} | more))
        with refused(ValueError, "through-plane"):
            SRModel(build_scheme(settings(upsample_axes="through-plane"))).check(
                SuperResolveSettings(scheme="residual")
            )
        with refused(ValueError, "fwhm 1, not 2"):
            psf = SRModel(build_scheme(settings(degradation="psf")))
            psf.check(SuperResolveSettings(scheme="residual", degradation="psf", fwhm=2))


class TestApplying:
    @pytest.mark.parametrize("axis", [0, 1, 2])
    @pytest.mark.parametrize(
        "more", [{}, {"factor": 1.5, "scheme": "singular-vectors"}, {"upsample_axes": "through-plane"}]
    )
    def test_untrained_it_is_the_spline_in_every_direction(self, axis, more) -> None:
        s = settings(**more)
        low = VOLUME[:12, :14, :10]
        factors = [s.factor if (k == axis) == (s.upsample_axes == "through-plane") else 1.0 for k in range(3)]
        expected = upsample_bspline(low, factors, onto=Degradation.of_low(low.shape, factors))
        np.testing.assert_allclose(
            superresolve(low, SRModel(build_scheme(s)), slice_axis="zyx"[axis], upsample_axes=s.upsample_axes).volume,
            expected,
            atol=0.5,
        )

    @pytest.mark.parametrize("axes", ["in-plane", "through-plane"])
    @pytest.mark.parametrize("more", [{}, {"scheme": "singular-vectors"}, {"degradation": "bicubic", "factor": 1.5}])
    def test_it_agrees_with_what_was_measured(self, axes, more) -> None:
        s = settings(**more)
        model = SRModel(stirred(build_scheme(s)))
        low = VOLUME[:12, :14, :11]
        factors = (1, s.factor, s.factor) if axes == "in-plane" else (s.factor, 1, 1)
        degradation = Degradation.of_low(low.shape, factors, s.degradation)
        finer = superresolve(low, model, upsample_axes=axes).volume
        assert finer.dtype == np.float32
        assert np.abs(degradation.degrade(finer) - low).max() < 1e-5 * np.abs(low).max()
        free = superresolve(low, model, upsample_axes=axes, project=False).volume
        assert np.abs(degradation.degrade(free) - low).max() > 1e-3 * np.abs(low).max()

    def test_each_slice_is_what_the_scheme_predicts(self) -> None:
        model = SRModel(stirred(build_scheme(settings(context=1))))
        low = VOLUME[:6, :14, :11]
        line = Intensities.of(low)
        normal = torch.from_numpy((low - line.centre) / line.scale)
        finer = superresolve(low, model, ensemble=False).volume
        for k, neighbours in ((0, [0, 0, 1]), (3, [2, 3, 4]), (5, [4, 5, 5])):
            expected = model.scheme(normal[neighbours][None]).image[0].detach() * line.scale + line.centre
            np.testing.assert_allclose(finer[k], expected.numpy(), atol=0.1)

    @pytest.mark.parametrize(
        "more", [{}, {"scheme": "singular-vectors"}, {"upsample_axes": "through-plane", "context": 0}]
    )
    def test_an_ensemble_does_not_mind_flips(self, more) -> None:
        s = settings(**more)
        model = SRModel(stirred(build_scheme(s)))
        low = VOLUME[:6, :14, :11]
        finer = superresolve(low, model, upsample_axes=s.upsample_axes).volume
        flips = (2, (1, 2), 1) if s.upsample_axes == "in-plane" else (0, 1, (0, 2))
        for axes in flips:
            flipped = superresolve(np.flip(low, axes), model, upsample_axes=s.upsample_axes).volume
            np.testing.assert_allclose(np.flip(flipped, axes), finer, atol=0.05)
        assert np.abs(superresolve(low, model, upsample_axes=s.upsample_axes, ensemble=False).volume - finer).max() > 1
        if s.upsample_axes == "in-plane":
            turned = superresolve(low.transpose(0, 2, 1), model).volume.transpose(0, 2, 1)
            np.testing.assert_allclose(turned, finer, atol=0.05)

    def test_an_image_and_what_is_constant(self) -> None:
        model = SRModel(stirred(build_scheme(settings())))
        image = superresolve(VOLUME[5], model).volume
        assert image.shape == (72, 70)
        np.testing.assert_allclose(Degradation.of_high((72, 70), (2, 2)).degrade(image), VOLUME[5], atol=0.02)
        constant = superresolve(np.full((3, 9, 9), 7), model).volume
        np.testing.assert_array_equal(constant, np.full((3, 18, 18), 7))
        assert constant.dtype == np.float32

    def test_a_part_of_a_volume(self) -> None:
        """In the intensities of the volume, it is as in the volume."""
        model = SRModel(stirred(build_scheme(settings(context=0))))
        whole = superresolve(VOLUME, model).volume
        part = superresolve(VOLUME[5:7], model, intensities=Intensities.of(VOLUME)).volume
        np.testing.assert_allclose(part, whole[5:7], rtol=1e-4, atol=1e-2)

    def test_progress_is_told(self) -> None:
        steps = superresolve_steps(VOLUME, SRModel(build_scheme(settings())), upsample_axes="through-plane")
        fractions = [step.fraction for step in steps]
        assert fractions == sorted(fractions)
        assert fractions[-1] == 1

    @pytest.mark.parametrize("model", [None, SRModel(build_scheme(settings()))])
    def test_stopping(self, model) -> None:
        """There is no result of a part."""
        asked = []
        steps = superresolve_steps(VOLUME, model, budget=Budget(stop=lambda: len(asked) > 2))
        for step in steps:
            assert not step.has_result
            asked.append(step)
        assert len(asked) == 3
        steps = superresolve_steps(VOLUME, model, budget=Budget(stop=lambda: True))
        with pytest.raises(StopIteration) as end:
            next(steps)
        assert end.value.value is None

    def test_a_measurement_of_its_own(self, refused) -> None:
        """What is denoised before is projected on what was measured."""
        low, denoised = VOLUME[:6, :14, :12], VOLUME[:6, :14, :12].round(-1)
        for model in (None, SRModel(stirred(build_scheme(settings())))):
            result = superresolve(denoised, model, factor=2.0, measurement=low)
            degraded = Degradation.of_low(low.shape, (1, 2, 2)).degrade(result.volume)
            assert np.abs(degraded - low).max() < 1e-5 * np.abs(low).max()
            assert result.deviation < 1e-5
        with refused(ValueError, "shape"):
            superresolve(denoised, measurement=low[:3])

    def test_the_spline_is_a_scheme_like_others(self, refused) -> None:
        low = VOLUME[:6, :14, :12]
        result = superresolve(low, factor=1.5, upsample_axes="through-plane", slice_axis="x")
        expected = upsample_bspline(low, (1, 1, 1.5), onto=Degradation.of_low(low.shape, (1, 1, 1.5)))
        np.testing.assert_allclose(result.volume, expected, atol=1e-2)
        assert result.factors == (1.0, 1.0, 1.5)
        with refused(ValueError, "needs a trained model"):
            superresolve(low, scheme="residual")
        with refused(ValueError, "factor 2, not 3"):
            superresolve(low, SRModel(build_scheme(settings())), factor=3)

    def test_what_is_refused(self, refused) -> None:
        model = SRModel(build_scheme(settings()))
        for volume, words in (
            (np.where(VOLUME > 100, np.nan, VOLUME), "NaN"),
            (np.zeros((5, 5, 5, 3)), "axes"),
            (VOLUME[:5, :3], "too small"),
        ):
            with refused(ValueError, words):
                superresolve(volume, model)
        with refused(ValueError, "takes 9 modes", "8 x 35 pixels have 8"):
            superresolve(VOLUME[:5, :8], SRModel(build_scheme(settings(rank=9))))
        with refused(ValueError, "two axes"):
            superresolve(VOLUME[0], model, upsample_axes="through-plane")
        with refused(ValueError, "through-plane"):
            superresolve(VOLUME, SRModel(build_scheme(settings(upsample_axes="through-plane"))))


class TestUnderstanding:
    def test_gradients_of_the_losses(self) -> None:
        model = SRModel(stirred(build_scheme(settings(project=False, l1_weight=1.0))))
        low, target = slices(3, 10, 12), slices(20, 24, seed=1)
        gradients = loss_gradients(model, low, target)
        assert set(gradients) == {"squared", "absolute", "consistency"}
        error = model.scheme(low[None]).raw[0].detach() - target
        np.testing.assert_allclose(gradients["squared"], 2 * error.numpy() / error.numel(), rtol=1e-4, atol=1e-8)
        np.testing.assert_allclose(gradients["absolute"], np.sign(error.numpy()) / error.numel(), rtol=1e-4)

    def test_of_scheme_a_the_losses_of_vectors_have_none(self) -> None:
        model = SRModel(build_scheme(settings(scheme="singular-vectors")))
        assert set(loss_gradients(model, slices(1, 10, 12), slices(20, 24, seed=1))) == {"squared", "consistency"}

    def test_with_the_projection_nothing_pulls_at_what_was_measured(self) -> None:
        model = SRModel(stirred(build_scheme(settings())))
        squared = loss_gradients(model, slices(3, 10, 12), slices(20, 24, seed=1))["squared"]
        assert np.abs(squared).max() > 1e-4
        np.testing.assert_allclose(Degradation.of_high((20, 24), (2, 2)).degrade(squared), 0, atol=1e-8)

    def test_contributions_of_modes(self, refused) -> None:
        model = SRModel(build_scheme(settings(scheme="singular-vectors")))
        low, target = slices(1, 10, 12), slices(20, 24, seed=1)
        facts = mode_contributions(model, low, target)
        np.testing.assert_allclose(facts["c"], facts["values"], rtol=1e-4)
        np.testing.assert_allclose(facts["values"], 2 * np.linalg.svd(low[0].numpy())[1], rtol=1e-4)
        raw = model.scheme(low[None]).raw[0].detach().numpy()
        assert facts["error"][-1] == pytest.approx(np.square(raw - target.numpy()).mean(), rel=1e-4)
        first = ContinuousImage.from_svd(decompose(low[0].numpy()), 1).resampled((2, 2))
        assert facts["error"][0] == pytest.approx(np.square(first - target.numpy()).mean(), rel=1e-4)
        with refused(ValueError, "scheme B"):
            mode_contributions(SRModel(build_scheme(settings())), slices(3, 10, 12), target)
