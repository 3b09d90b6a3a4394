"""Training of super-resolution models: training data, and training."""

import json
from itertools import islice

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from helpers.super_resolving import QUICK, SMALL, VOLUME, settings
from napari_gsvolume.metrics import psnr_between
from napari_gsvolume.phantoms import vessel_phantom
from napari_gsvolume.progress import Budget
from napari_gsvolume.super_resolution.bspline import upsample_bspline
from napari_gsvolume.super_resolution.data import TrainingData
from napari_gsvolume.super_resolution.degradation import Degradation
from napari_gsvolume.super_resolution.intensities import Intensities
from napari_gsvolume.super_resolution.model import SRModel
from napari_gsvolume.super_resolution.schemes import build_scheme
from napari_gsvolume.super_resolution.training import (
    TrainingFailedError,
    train_superresolution,
    train_superresolution_steps,
)
from napari_gsvolume.svd.decomposition import best_psnr_db, decompose

pytestmark = pytest.mark.usefixtures("one_thread")


def run_all(training, at_step=lambda step: None):
    """Return all steps of a training, and its result."""
    steps = []
    while True:
        try:
            steps.append(next(training))
        except StopIteration as end:
            return steps, end.value
        at_step(steps[-1])


class TestTrainingData:
    def test_pairs_are_degradations(self) -> None:
        for more in (
            {},
            {"factor": 1.5, "patch_size": 9},
            {"upsample_axes": "through-plane"},
            {"scheme": "singular-vectors"},
            {"rank": 4},
        ):
            s = settings(**more)
            planes = TrainingData([VOLUME], s, [(1, 1, 1)])
            for low, target, _ in islice(planes.batches(np.random.default_rng(0)), 8):
                assert len(low) == s.batch_size
                assert low.shape[1] == s.depth
                again = Degradation.of_low(low.shape[2:], s.factors).degrade(target)
                torch.testing.assert_close(again, low[:, s.depth // 2])
                if s.patch_side is not None:
                    assert max(low.shape[2:]) <= round(s.patch_side * s.factor)

    def test_slices_held_out_are_not_learnt_from(self) -> None:
        """The intensity of a voxel tells its slice, and a patch is in one, whichever way it is cut."""
        volume = np.broadcast_to(np.arange(40.0)[:, None, None], (40, 36, 36)) + 0.0
        for size in ((1, 1, 1), (3, 1, 1)):
            planes = TrainingData([volume], settings(validation_fraction=0.2, context=0), [size])
            line = Intensities.of(volume)
            [held] = planes.validation_sets
            out = np.unique(np.round(held.target.numpy() * line.scale + line.centre))
            np.testing.assert_array_equal(out, np.arange(16, 24))
            seen = set()
            for _, target, _ in islice(planes.batches(np.random.default_rng(0)), 30):
                seen |= set(np.round(target.numpy() * line.scale + line.centre).ravel())
            assert seen <= set(range(16)) | set(range(24, 40))
            assert len(seen) > 20

    def test_neighbours_are_as_far_as_pixels_of_low_resolution(self) -> None:
        volume = np.broadcast_to(np.arange(40.0)[:, None, None], (40, 36, 36)) + 0.0
        planes = TrainingData([volume], settings(factor=3, context=2, validation_fraction=0.1), [(3, 1, 1)])
        low = planes.validation_sets[0].low[0] * Intensities.of(volume).scale
        np.testing.assert_allclose(np.diff(low.mean((1, 2)).numpy()), 3, rtol=1e-4)

    def test_neighbours_of_planes_across_slices_are_as_far_as_slices(self) -> None:
        volume = np.broadcast_to(np.arange(40.0)[None, :, None], (40, 40, 40)) + 0.0
        planes = TrainingData([volume], settings(batch_size=1, patch_size=8, validation_fraction=0.1), [(1, 2, 2)])
        scale = Intensities.of(volume).scale
        steps = set()
        for low, _, seen in islice(planes.batches(np.random.default_rng(0)), 60):
            if seen is not None:
                steps |= set(np.round(np.diff(low[0].mean((1, 2)).numpy() * scale), 3))
        assert steps == {0.0, 0.5}  # planes across x have 0, and those across y at the border

    def test_all_directions_where_voxels_are_cubes(self) -> None:
        counts = {
            size: len(TrainingData([VOLUME], settings(), [size]).stacks) for size in ((1, 1, 1), (1.1, 1, 1), (2, 1, 1))
        }
        assert list(counts.values()) == [6, 6, 2]
        assert len(TrainingData([VOLUME], settings()).stacks) == 2
        assert len(TrainingData([VOLUME], settings(upsample_axes="through-plane"), [(1, 1, 1)]).stacks) == 2

    @pytest.mark.parametrize(
        "more", [{}, {"factor": 1.5, "patch_size": 9}, {"scheme": "singular-vectors", "degradation": "bicubic"}]
    )
    def test_where_slices_are_close_predictions_are_compared_along_that_axis(self, more) -> None:
        s = settings(**more)
        planes = TrainingData([VOLUME], s, [(1, s.factor, s.factor)])
        made_of = build_scheme(s)
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
            alone = upsample_bspline(middle, sharp, onto=once)
            assert (compared - target).square().mean() < 1.1 * (alone - target).square().mean()
        assert kinds == {None, True, False}

    def test_how_large_what_is_learnt_from_is(self) -> None:
        large = np.random.default_rng(0).normal(size=(4, 420, 300)).astype(np.float32)
        for more, expected in (
            ({}, (32, 32)),
            ({"patch_size": 20}, (20, 20)),
            ({"scheme": "singular-vectors"}, (32, 32)),
            ({"basis": "learned"}, (128, 128)),
            ({"smoothing": 0.1}, (128, 128)),
            ({"basis": "learned"}, (128, 128)),
            ({"rank": 145}, (145, 145)),
            ({"basis": "learned", "factor": 3}, (128, 99)),
        ):
            batches = TrainingData([large], settings(validation_fraction=0.25, **more)).batches(
                np.random.default_rng(0)
            )
            assert sorted(next(batches).low.shape[2:]) == sorted(expected)

    def test_units_do_not_matter(self) -> None:
        a, b = (TrainingData([v], settings()).validation_sets[0].low for v in (VOLUME, VOLUME * 3 + 500))
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)

    def test_signs(self) -> None:
        for signs in (False, True):
            planes = TrainingData([VOLUME], settings(sign_flips=signs, batch_size=1))
            means = [float(high.mean()) for _, high, _ in islice(planes.batches(np.random.default_rng(0)), 40)]
            dark = TrainingData([VOLUME], settings(batch_size=1)).stacks[0].planes.min()
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
            train_superresolution_steps([volume], **more)

    def test_nothing_to_learn_from(self, refused) -> None:
        with refused(ValueError, "no volume"):
            train_superresolution_steps([])


class TestTraining:
    @pytest.mark.parametrize(
        ("more", "gain"),
        [
            ({}, 0.4),
            ({"scheme": "singular-vectors"}, 0.7),
            ({"scheme": "singular-vectors", "orthogonality": "qr"}, 0.4),
            ({"basis": "learned"}, 0.4),
            ({"factor": 1.5}, 0.4),
            ({"upsample_axes": "through-plane", "context": 0}, 1.5),
        ],
    )
    def test_it_learns_what_a_spline_lacks(self, more, gain) -> None:
        quick = {"iterations": 150, "channels": 16, "blocks": 2, "batch_size": 4, "patch_size": 12}
        result = train_superresolution([vessel_phantom(48, noise=0)[0]], [(1, 1, 1)], **quick | more)
        assert result.table["model"] > result.table["B-spline + projection"] + gain
        assert result.table["B-spline + projection"] > result.table["cubic B-spline"]

    def test_the_table(self) -> None:
        steps, result = run_all(train_superresolution_steps([VOLUME], **QUICK, rank=5))
        last = steps[-1]
        [held] = last.validation_sets
        low, target = held.low[:, 1].numpy(), held.target.numpy()
        line = Intensities.of(VOLUME)
        np.testing.assert_allclose(target * line.scale + line.centre, VOLUME[list(held.slices)][:, :36, :34], atol=0.02)
        assert last.baselines == {name: db for name, db in result.table.items() if name != "model"}
        best = last.best_model.scheme.state_dict()
        assert all(torch.equal(t, best[name]) for name, t in result.model.scheme.state_dict().items())
        span = float(np.ptp(target))
        degradation = Degradation.of_high(target.shape[1:], (2, 2))
        plain, projected = (
            psnr_between(target, upsample_bspline(low, (2, 2), onto=p), span) for p in (None, degradation)
        )
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

    @pytest.mark.parametrize("which", ["singular-vectors", "residual"])
    def test_equal_seeds_give_equal_models(self, which) -> None:
        runs = [train_superresolution([VOLUME], **QUICK, scheme=which, seed=seed) for seed in (1, 1, 2)]
        first, again, other = (torch.cat([t.flatten() for t in r.model.scheme.state_dict().values()]) for r in runs)
        assert torch.equal(first, again)
        assert not torch.equal(first, other)
        assert [p.psnr_db for p in runs[0].history] == [p.psnr_db for p in runs[1].history]

    def test_the_best_is_kept(self) -> None:
        result = train_superresolution([VOLUME], **QUICK | {"iterations": 20}, learning_rate=3.0)
        reached = [point.psnr_db for point in result.history]
        assert reached[-1] < max(reached) - 1, "it was made to diverge"
        assert result.table["model"] == max(reached) >= result.table["B-spline + projection"] - 1e-6

    def test_stopping(self) -> None:
        stop = []
        budget = Budget(stop=lambda: bool(stop))
        training = train_superresolution_steps([VOLUME], budget=budget, **QUICK | {"iterations": 10_000})
        steps, result = run_all(training, lambda step: step.iteration == 5 and stop.append(True))
        step = steps[-1]
        assert (step.message, step.iteration) == ("Stopped.", 6)
        assert result.table["model"] == max(point.psnr_db for point in step.history)
        training = train_superresolution_steps([VOLUME], **QUICK)
        next(training)
        step = next(training)
        training.close()
        assert step.best_model.settings.iterations == 6

    def test_an_error_keeps_the_best(self, monkeypatch) -> None:
        batches = TrainingData.batches

        def failing(self, random):
            yield from islice(batches(self, random), 4)
            raise MemoryError("no memory")

        monkeypatch.setattr(TrainingData, "batches", failing)
        with pytest.raises(TrainingFailedError, match=r"failed in iteration 5: no memory\.") as caught:
            train_superresolution([VOLUME], **QUICK)
        result = caught.value.result
        assert result.history[-1].iteration == result.model.metrics["iterations"] == 4
        assert result.table["model"] == max(point.psnr_db for point in result.history)

    def test_a_time_limit(self) -> None:
        result = train_superresolution([VOLUME], **SMALL, time_limit=1.0)
        assert result.message == "The time limit is reached."
        assert 0.9 < result.seconds < 10

    def test_what_is_shown(self) -> None:
        *_, step = train_superresolution_steps([VOLUME], **QUICK)
        assert step.prediction.shape == step.target.shape == tuple(2 * n for n in step.low.shape)
        np.testing.assert_allclose(
            Degradation.of_low(step.low.shape, (2, 2)).degrade(step.prediction), step.low, atol=1e-5
        )
        np.testing.assert_allclose(Degradation.of_low(step.low.shape, (2, 2)).degrade(step.target), step.low, atol=1e-5)

    @pytest.mark.parametrize(
        "more", [{"perceptual_weight": 0.1}, {"adversarial_weight": 0.01}, {"uncertainty_weighting": True}]
    )
    def test_other_losses(self, more) -> None:
        result = train_superresolution([VOLUME], **QUICK, patch_size=16, **more)
        plain = train_superresolution([VOLUME], **QUICK, patch_size=16)
        assert np.isfinite(list(result.history[-1].losses.values())).all()
        assert set(result.history[-1].losses) == set(result.history[-1].coefficients)
        assert [p.psnr_db for p in result.history] != [p.psnr_db for p in plain.history]

    @pytest.mark.parametrize("learn", [False, True])
    def test_each_loss_of_scheme_a_has_its_coefficient(self, learn) -> None:
        more = {
            "scheme": "singular-vectors",
            "l1_weight": 0.5,
            "orthogonality_weight": 0.01,
            "frequency_weighting": False,
        }
        result = train_superresolution([VOLUME], **QUICK, uncertainty_weighting=learn, **more)
        first, last = (json.loads(json.dumps(result.report()["history"][k]["coefficients"])) for k in (0, -1))
        assert first == {"squared": 1.0, "absolute": 0.5, "consistency": 0.1, "orthogonality": 0.01}
        assert set(result.history[-1].losses) == set(last) == set(first)
        assert all((last[name] != first[name]) == learn for name in first)

    def test_a_perceptual_loss_of_given_weights(self, tmp_path, vgg16) -> None:
        path = tmp_path / "VGG.safetensors"
        save_file(vgg16, path)
        quick = SMALL | {"iterations": 2, "patch_size": 8, "perceptual_weight": 0.1}
        result, plain = (
            train_superresolution([VOLUME], **quick, perceptual_features=kind) for kind in (str(path), "random")
        )
        assert result.history[-1].losses["perceptual"] != plain.history[-1].losses["perceptual"]
        assert not any("perceptual" in name for name in result.model.scheme.state_dict())
        result.model.save(tmp_path / "SR.safetensors")
        path.unlink()
        assert SRModel.load(tmp_path / "SR.safetensors").settings.perceptual_features == str(path), (
            "a model does without them"
        )

    def test_several_volumes(self) -> None:
        steps, result = run_all(train_superresolution_steps([VOLUME, 5 * VOLUME[:, :30]], **QUICK))
        assert len(steps[-1].validation_sets) == 2
        assert result.table["model"] > 10
