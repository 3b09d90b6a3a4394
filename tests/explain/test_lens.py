"""The lens: modes that were planted in a prediction are found again, and energies add up."""

from itertools import islice

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import ortho_group
from torch import nn

from napari_gsvolume.explain import image_lens, sr_lens
from napari_gsvolume.explain.lens.restoration_by_layer import LensTracker, lens_over_layers
from napari_gsvolume.phantoms import anatomical_phantom
from napari_gsvolume.super_resolution.bspline import upsample_bspline
from napari_gsvolume.super_resolution.model import SRModel
from napari_gsvolume.super_resolution.training import train_superresolution_steps

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = {"channels": 8, "blocks": 1, "batch_size": 2, "iterations": 8}
VALUES = 100 * 0.8 ** np.arange(16)


def planted(seed=0, shape=(30, 36), values=VALUES):
    rng = np.random.default_rng(seed)
    U, V = (ortho_group.rvs(n, random_state=rng) for n in shape)

    def image(modes, factors=1.0):
        modes = np.asarray(modes)
        return (U[:, modes] * (values[modes] * factors)) @ V[:, modes].T

    return U, V, image


class TestImage:
    @pytest.mark.parametrize("seed", range(5))
    def test_what_was_planted_is_classified_exactly(self, seed) -> None:
        """The spline has the modes 0-3 of 16, the prediction 0-9 and one that is not in the target."""
        U, V, image = planted(seed)
        made_up = 30.0 * np.outer(U[:, 20], V[:, 25])
        found = image_lens(image(range(16)), image(range(10)) + made_up, image(range(4)))
        assert found.of_fate("kept") == (0, 1, 2, 3)
        assert found.of_fate("restored") == (4, 5, 6, 7, 8, 9)
        assert found.of_fate("lost") == (10, 11, 12, 13, 14, 15)
        assert found.of_fate("worsened") == ()
        # By its value, 30, it is the mode number 6 of the prediction: 26.2 is next.
        assert found.invented == (6,)
        energy = VALUES**2
        assert found.beyond == pytest.approx(energy[4:].sum())
        assert found.E_restored == pytest.approx(energy[4:10].sum() / energy[4:].sum())
        assert found.E_lost == pytest.approx(energy[10:].sum() / energy[4:].sum())
        assert found.E_invented == pytest.approx(900 / energy[4:].sum())
        np.testing.assert_allclose(found.ratio[:6], 1)
        np.testing.assert_allclose(found.alignment_u[:6], 1)
        np.testing.assert_allclose(found.alignment_v[6], 0, atol=1e-9)

    def test_modes_paired_otherwise_are_invented(self) -> None:
        """Vectors that are all the target's, and an image that is not."""
        U, V, image = planted()
        found = image_lens(image(range(4)), image(range(3)) + 50 * np.outer(U[:, 3], V[:, 15]), image([0]))
        assert found.of_fate("lost") == (3,)
        assert len(found.invented) == 1

    def test_a_mode_half_there_and_one_against(self) -> None:
        _, _, image = planted()
        found = image_lens(image(range(6)), image(range(6), [1, 1, 1, 0.6, 0.4, -1]), image(range(3)))
        assert found.fates == ("kept", "kept", "kept", "restored", "lost", "lost")
        np.testing.assert_allclose(found.amplitude, [1, 1, 1, 0.6, 0.4, -1])
        squares = VALUES[3:6] ** 2
        assert found.E_lost == pytest.approx((squares * [0.16, 0.36, 1]).sum() / squares.sum())
        assert found.E_invented == pytest.approx(squares[2] / squares.sum())

    def test_equal_values_are_taken_together(self) -> None:
        """Any rotation of vectors of equal values is as good: nothing that is told may depend on it."""
        values = np.array([10.0, 5, 5, 5, 2])
        U, V, image = planted(values=values)
        turn = ortho_group.rvs(3, random_state=1)
        target, base = image(range(5)), image([0])
        turned = image([0]) + 5 * (U[:, 1:4] @ turn) @ (V[:, 1:4] @ turn).T
        found = image_lens(target, turned + 1e-9 * image([4]), base)
        assert found.fates == ("kept", "restored", "restored", "restored", "lost")
        np.testing.assert_allclose(found.alignment_u[:4], 1)
        np.testing.assert_allclose(found.amplitude[:4], 1)
        assert found.invented == ()
        part = image_lens(target, image([0, 1, 2]), base)
        np.testing.assert_allclose(part.amplitude[1:4], 2 / 3)

    @settings(deadline=None, max_examples=40)
    @given(st.integers(0, 10**6), st.integers(5, 14), st.integers(5, 14))
    def test_energies_add_up_and_signs_do_not_matter(self, seed, rows, columns) -> None:
        rng = np.random.default_rng(seed)
        T, P, S = rng.standard_normal((3, rows, columns))
        found = image_lens(T, P, S)
        assert found.E_restored + found.E_lost == pytest.approx(1)
        assert 0 <= found.E_restored <= 1
        assert found.E_invented >= 0
        # What is wrong in the end is what is lost and what is invented, or more: where one works against the other.
        error = np.square(T - P).sum() / np.square(T - S).sum()
        assert error >= found.E_lost + found.E_invented - 1e-9
        flipped = image_lens(T[::-1, ::-1], P[::-1, ::-1], S[::-1, ::-1])
        np.testing.assert_allclose(flipped.amplitude, found.amplitude, atol=1e-8)
        minus = image_lens(-T, -P, -S)
        assert (minus.fates, minus.invented) == (found.fates, found.invented)

    def test_the_ends(self) -> None:
        _, _, image = planted()
        T, S = image(range(8)), image(range(3))
        perfect, nothing = image_lens(T, T, S), image_lens(T, S, S)
        assert (perfect.E_restored, perfect.invented) == (pytest.approx(1), ())
        assert perfect.E_invented == pytest.approx(0, abs=1e-12)
        assert (nothing.E_restored, nothing.E_invented) == (pytest.approx(0), pytest.approx(0))
        assert image_lens(T, T, T).beyond == 0

    def test_refusals(self, refused) -> None:
        _, _, image = planted()
        with refused(ValueError, "one shape"):
            image_lens(image(range(3)), image(range(3))[:-1], image(range(3)))
        with refused(ValueError, "constant"):
            image_lens(image(range(3)), np.zeros((30, 36)), image(range(3)))


def slices(count=6, side=16, seed=0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((count, 1, side, side)).astype(np.float32)


class TestModels:
    def test_the_spline_restores_nothing_and_the_truth_all(self) -> None:
        lows = slices(2)
        base = upsample_bspline(torch.from_numpy(lows[:, 0]).double(), (2, 2)).numpy()
        targets = base + 0.3 * np.random.default_rng(1).standard_normal(base.shape)
        nothing = sr_lens(lambda low: torch.from_numpy(base), lows, targets)
        everything = sr_lens(lambda low: torch.from_numpy(targets)[:, None], lows, targets)
        assert nothing.energies["restored"] == pytest.approx(0, abs=1e-9)
        assert everything.energies["restored"] == pytest.approx(1, abs=1e-5)
        np.testing.assert_allclose(everything.amplitudes, 1, atol=1e-4)
        assert "100.0% is restored" in everything.summary

    def test_over_a_training_of_each_scheme(self) -> None:
        volume = anatomical_phantom(40)[0][:, 2:38, 1:36]
        for more in ({"scheme": "residual"}, {"scheme": "singular-vectors", "context": 0}):
            training = train_superresolution_steps([volume], **SMALL | more)
            start = next(training)
            tracker = LensTracker.of_training(start)
            start.scheme.train()
            tracker.record(0, start.scheme)
            assert start.scheme.training
            for step in islice(training, 8):
                last = step
            tracker.record(last.iteration, last.scheme)
            assert [r.epoch for r in tracker.history] == [0, 8]
            first, now = (r.lens for r in tracker.history)
            held = last.validation_sets[0]
            whole = sr_lens(SRModel(last.scheme), held.low, held.target, last.scheme.settings.factors)
            assert whole.energies == now.energies
            assert now.energies != first.energies
            tracker.record(8, last.scheme)
            assert len(tracker.history) == 2

    def test_layers(self) -> None:
        """Features that are the target's pixels, folded; and a layer that knows half of them, and one none."""
        targets = slices(6, 16)[:, 0]
        shuffled = nn.functional.pixel_unshuffle(torch.from_numpy(targets)[:, None], 2)  # (6, 4, 8, 8)

        class Knows(nn.Module):
            def __init__(self):
                super().__init__()
                self.full, self.part, self.none = nn.Identity(), nn.Identity(), nn.Identity()
                self.odd, self.image = nn.Identity(), nn.PixelShuffle(2)

            def forward(self, low):
                self.part(shuffled[:, :2])
                self.none(torch.from_numpy(slices(6, 8, seed=9)))
                self.odd(shuffled[:, :, :7])
                return self.image(self.full(shuffled))

        model, low = Knows(), shuffled.mean(1, keepdim=True)
        found = lens_over_layers(model, low, targets, ["full", "part", "none", "image"], ridge=1e-3)
        restored = {name: lens.energies["restored"] for name, lens in found.items()}
        # Not all: the spline, which is taken away, is made of pixels elsewhere too.
        assert restored["full"] > 0.8
        assert restored["none"] < 0.1
        assert restored["none"] < restored["part"] < restored["full"]
        assert found["part"].label == "part"

    def test_layers_of_a_scheme_by_default(self) -> None:
        volume = anatomical_phantom(40)[0][:, :36, :36]
        start = next(train_superresolution_steps([volume], **SMALL))
        held, factors = start.validation_sets[0], start.scheme.settings.factors
        found = lens_over_layers(SRModel(start.scheme), held.low, held.target, factors=factors)
        assert found
        assert all(0 <= lens.energies["restored"] <= 1 for lens in found.values())

    def test_refusals(self, refused) -> None:
        targets, model = slices(6, 16)[:, 0], nn.Sequential(nn.Conv2d(1, 2, 2), nn.Upsample(scale_factor=2))
        with refused(ValueError, "(B, C, h, w)"):
            sr_lens(model, slices()[:, 0], targets)
        with refused(ValueError, "two or more"):
            lens_over_layers(model, slices(1, 8), targets[:1])
        with refused(ValueError, "'0'", "16 x 16"):
            lens_over_layers(model, slices(6, 8), targets, ["0"])
        with refused(ValueError, "(6, 2, 14, 14)", "(6, 16, 16)"):
            sr_lens(model, slices(6, 8), targets)
