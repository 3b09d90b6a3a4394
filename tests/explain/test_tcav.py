"""Concept vectors and TCAV find the direction that a network was given, and no other."""

import numpy as np
import pytest
import torch
from scipy.stats import binom
from torch import nn

from helpers.long_runs import collect
from napari_gsvolume.explain import Examples, activations, concept_vector, tcav
from napari_gsvolume.explain.concepts.cav import fit_direction, fit_random_direction, sensitivities
from napari_gsvolume.explain.concepts.tcav import evaluate_tcav, holm_correction, tcav_steps

pytestmark = pytest.mark.usefixtures("one_thread")

STRIPES = np.array([1.0, -1])


class Planted(nn.Module):
    """Squares of six filters, of which the first alone responds to vertical stripes; the output always rises with it.

    With the means of the others over an image it rises or falls, as these are above or below those of noise.
    """

    def __init__(self, uses=True):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(1, 6, 5, padding=2, padding_mode="circular", bias=False).double()
        pattern = torch.from_numpy(np.outer(np.ones(5), [1, -1, 1, -1, 1]) / 5)
        with torch.no_grad():
            w = self.conv.weight[:, 0]
            w -= (w * pattern).sum((1, 2), keepdim=True) * pattern  # blind to stripes
            w *= 0.5 / w.norm(dim=(1, 2), keepdim=True)
            w[0] = 0.5 * pattern
        self.square = Square()
        self.uses = uses

    def forward(self, x):
        means = self.square(self.conv(x)).mean((2, 3))
        others = (means[:, 1:] - 0.25).square().sum(1) * 30
        return others + means[:, 0] if self.uses else others


class Square(nn.Module):
    def forward(self, x):
        return x * x


def noise(count, side=12, seed=0):
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.standard_normal((count, 1, side, side)))


def striped(count, side=12, seed=1):
    return noise(count, side, seed) + torch.from_numpy(np.tile(STRIPES, side // 2))


PATCHES = Examples.of_patches(striped(20), noise(20, seed=2))


class TestConcept:
    @pytest.mark.parametrize("fit", ["logistic", "difference"])
    def test_the_planted_direction_is_found_from_patches(self, fit) -> None:
        model = Planted()
        found = activations(model, PATCHES.inputs, ["square"], 6)["square"]
        concept = concept_vector(found, PATCHES.labels, fit=fit)
        assert concept.direction[0] > (0.97 if fit == "logistic" else 0.99)
        assert np.linalg.norm(concept.direction) == pytest.approx(1)
        assert concept.auc.mean == pytest.approx(1)

    def test_it_is_found_from_painted_labels(self) -> None:
        images, painted = noise(6, 24), np.zeros((6, 24, 24), dtype=int)
        painted[:, 8:16, 4:12] = 2
        painted[:, 7:17, 3:13][painted[:, 7:17, 3:13] == 0] = -1  # left open
        images[:, :, 8:16, 4:12] += torch.from_numpy(2 * np.tile(STRIPES, (8, 4)))
        found = activations(Planted(), images, ["square"], 6)["square"]
        concept = concept_vector(found, painted, fit="difference")
        assert concept.direction[0] > 0.99
        assert concept.auc.mean > 0.85

    def test_labels_that_mean_nothing_are_not_told_apart(self) -> None:
        found = activations(Planted(), [noise(40)], ["square"], 6)["square"]
        assert concept_vector(found, np.arange(40) % 2).auc.mean < 0.8

    def test_refusals(self, refused) -> None:
        found = activations(Planted(), noise(4), ["square"], 6)["square"]
        with refused(ValueError, "two or more without it"):
            concept_vector(found, [1, 1, -1, 1])


class TestDerivatives:
    def test_they_are_those_of_finite_differences(self) -> None:
        torch.manual_seed(1)
        model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(inplace=True), nn.Conv2d(3, 2, 3), nn.Tanh()).double()
        x = noise(5)

        def of(y):
            return y[:, 0].square().mean((1, 2)) - y[:, 1, 2:4, 3:5].sum((1, 2))

        found = sensitivities(model, [x[:2], x[2:]], "0", of)
        assert found.shape == (5, 3)
        h = model[0](x).detach()
        for feature in range(3):
            step = torch.zeros(3, 1, 1, dtype=torch.float64)
            step[feature] = 1e-6
            slope = (of(model[1:](h + step)) - of(model[1:](h - step))) / 2e-6
            np.testing.assert_allclose(found[:, feature], slope.detach().numpy(), atol=1e-6)

    def test_refusals(self, refused) -> None:
        model = Planted()
        with refused(ValueError, "one number per input", "()"):
            sensitivities(model, noise(2), "conv", torch.sum)
        with refused(ValueError, "does not depend"):
            sensitivities(model, noise(2), "conv", lambda y: torch.zeros(2))
        assert not model.conv._forward_hooks


class TestTCAV:
    def test_the_planted_dependence_is_significant(self) -> None:
        model, asked = Planted(), noise(40, seed=5)
        modes = activations(model, asked, ["square"], 6)
        found = tcav(model, asked, ["square"], PATCHES, lambda y: y, decompositions=modes, fit="difference")
        test = found["square"]
        assert test.score == 1
        assert test.sensitivity == pytest.approx(1, abs=0.2)  # of a mean over positions, all of which move
        assert test.is_significant
        assert test.p_corrected <= 0.05
        assert "NOT" not in test.summary
        np.testing.assert_allclose(test.cosines, modes["square"].concepts.T @ test.concept.direction)
        assert np.square(test.cosines).sum() == pytest.approx(1)  # all six components are known

    def test_what_is_not_used_is_not_significant_and_said_so(self) -> None:
        """A concept that the layer has, and the output does not depend on."""
        test = tcav(Planted(uses=False), noise(40, seed=5), ["square"], PATCHES, lambda y: y)["square"]
        assert test.concept.auc.mean == pytest.approx(1)
        assert not test.is_significant
        assert "NOT significant" in test.summary

    def test_a_concept_that_means_nothing_is_not_significant(self) -> None:
        examples = Examples(noise(40, seed=8), np.random.default_rng(3).permutation(np.arange(40) % 2))
        test = tcav(Planted(), noise(40, seed=5), ["square"], examples, lambda y: y, fit="difference")["square"]
        assert not test.is_significant

    def test_random_concepts_are_significant_no_more_often_than_stated(self) -> None:
        rng = np.random.default_rng(0)
        tests, randoms, small, small_sensitivity = 200, 39, 0, 0
        y = np.arange(24) % 2
        for _ in range(tests):
            gradients = rng.standard_normal((30, 5)) + rng.standard_normal(5)
            X = rng.standard_normal((24, 5)) * [1, 2, 3, 4, 5]
            of = X, y, np.arange(24), "difference", rng
            along = [gradients @ fit_random_direction(*of) for _ in range(randoms)]
            own = gradients @ fit_direction(X, y, "difference")
            test = evaluate_tcav(None, own, np.array(along), 0.05)
            small += test.p <= 0.05
            small_sensitivity += test.p_sensitivity <= 0.05
        most, least = binom.ppf([0.9999, 0.0001], tests, 0.05)
        assert small <= most
        assert least <= small_sensitivity <= most  # which has no ties

    def test_holm(self) -> None:
        np.testing.assert_allclose(holm_correction([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
        np.testing.assert_allclose(holm_correction([0.6, 0.5]), [1, 1])

    def test_layers_are_corrected_for_together_and_steps_end_with_the_result(self) -> None:
        layers = ["conv", "square"]
        settings = {"randoms": 39, "fit": "difference"}
        steps, result = collect(tcav_steps(Planted(), noise(20), layers, PATCHES, lambda y: y, **settings))
        assert len(steps) == 2 * 39
        assert [s.fraction for s in steps] == sorted(s.fraction for s in steps)
        assert list(result) == layers
        np.testing.assert_allclose(
            [t.p_corrected for t in result.values()], holm_correction([t.p for t in result.values()])
        )

    def test_refusals(self, refused) -> None:
        with refused(ValueError, "39 or more"):
            tcav(Planted(), noise(4), ["conv", "square"], PATCHES, lambda y: y, randoms=20)
        with refused(ValueError, "lists"):
            tcav(Planted(), iter([noise(4)]), ["conv"], PATCHES, lambda y: y)
