"""What is found in layers, and that nothing is found where nothing is: planted truths, on arrays."""

import numpy as np
import pytest
from scipy.stats import f_oneway, pearsonr

from napari_gsvolume.explain.findings.finding import Thresholds
from napari_gsvolume.explain.findings.group_comparisons import find_attributes, find_drift, find_sharpening, sharpness
from napari_gsvolume.explain.findings.input_moments import InputMoments
from napari_gsvolume.explain.findings.layer_detectors import (
    find_collapse,
    find_dead_units,
    find_new_concepts,
    find_redundant_heads,
    find_redundant_pairs,
    find_redundant_units,
)
from napari_gsvolume.explain.findings.permutation_tests import compute_associations, eta_interval, familywise_p_values
from napari_gsvolume.settings import validated

QUICK = Thresholds(permutations=199)
# For error rates: sizes do not matter, and significance alone decides.
ANY_SIZE = Thresholds(permutations=59, correlation=0, drift_shift=0, drift_overlap=0.999999, sharpening=1e-9)
NULLS = 250


def within_alpha(count, of=NULLS, alpha=0.05) -> bool:
    """Whether so many errors are what the stated rate gives, up to 3.5 standard errors either way."""
    return abs(count / of - alpha) < 3.5 * np.sqrt(alpha * (1 - alpha) / of)


def probe(samples) -> InputMoments:
    """Return the moments of samples (inputs, positions, features) in their principal components."""
    centred = samples - samples.mean((0, 1))
    flat = centred.reshape(-1, samples.shape[-1])
    _, values, Vh = np.linalg.svd(flat, full_matrices=False)
    scores = centred @ Vh.T
    seconds = np.einsum("npi,npj->nij", scores, scores) / samples.shape[1]
    return InputMoments(scores.mean(1), seconds, values**2 / (values**2).sum())


def inputs_of_pixels(rng, n=24, pixels=6, features=5):
    """Pixels of one input are alike, as those of images are: what permuting pixels would be fooled by."""
    scale = np.linspace(2, 1, features)
    return scale * (rng.normal(size=(n, 1, features)) + 0.5 * rng.normal(size=(n, pixels, features)))


class TestOneLayer:
    def test_collapse(self) -> None:
        [found] = find_collapse("body.3", [6.0, *[0.2] * 31], 32, epoch=4)
        assert (found.kind, found.layer, found.epoch) == ("collapse", "body.3", 4)
        assert found.statistic == pytest.approx(36 / (36 + 31 * 0.04))
        assert "96.7 % of its variance" in found.sentence
        assert "of 32" in found.sentence
        [found] = find_collapse("wide", [1.0] * 3, 512)
        assert found.statistic == pytest.approx(3 / 512)
        [found] = find_collapse("constant", [], 8)
        assert "the same for every input" in found.sentence
        assert find_collapse("fine", np.linspace(2, 1, 32), 32) == []
        assert find_collapse("one output", [3.0], 1) == []
        assert find_collapse("first values only", [6.0], 32, total=72.0) == []

    def test_dead_units(self) -> None:
        deviations = np.linspace(1, 2, 20)
        deviations[[3, 11]] = 0, 1e-5
        [found] = find_dead_units("relu", deviations)
        assert found.subject == "3, 11"
        assert found.statistic == 0.1
        assert find_dead_units("relu", np.linspace(1, 2, 20)) == []
        deviations[3] = 1
        assert find_dead_units("relu", deviations) == []

    def test_redundant_units(self) -> None:
        rng = np.random.default_rng(0)
        units = rng.normal(size=(500, 12))
        units[:, 7] = -3 * units[:, 2] + 0.05 * rng.normal(size=500)
        units[:, 9] = 0
        [found] = find_redundant_units("fc", np.cov(units.T))
        assert found.subject == "2 and 7"
        assert "1 of 12 units" in found.sentence
        assert find_redundant_units("fc", np.cov(rng.normal(size=(500, 12)).T)) == []
        units[:, 0] = units[:, 2]
        assert "2 of 12 units" in find_redundant_units("fc", np.cov(units.T))[0].sentence

    def test_redundant_pairs(self) -> None:
        matrix = np.array([[1, 0.5, -0.99], [0.5, 1, 0.7], [-0.99, 0.7, 1]])
        assert find_redundant_pairs(matrix, 0.6) == [(0, 2, -0.99), (1, 2, 0.7)]

    def test_duplicate_heads(self) -> None:
        likeness = np.eye(4)
        likeness[1, 3] = likeness[3, 1] = 0.999
        [found] = find_redundant_heads("attention", likeness)
        assert (found.kind, found.subject) == ("redundant heads", "1 and 3")

    def test_new_concepts(self) -> None:
        """Rotations, crossings and signs of what was there are nothing new; a direction from epoch 3 on is, once."""
        axes = np.eye(10)
        turned = axes[:, :2] @ np.array([[0.8, -0.6], [0.6, -0.8]])
        concepts = [axes[:, [0, 1, 5]], turned[:, [1, 0]], -axes[:, [1, 0]], axes[:, [2, 0, 1]], axes[:, [0, 2, 1]]]
        shares = [[0.6, 0.38, 0.02], [0.6, 0.4], [0.6, 0.4], [0.4, 0.3, 0.3], [0.4, 0.3, 0.3]]
        [found] = find_new_concepts("conv", [0, 1, 2, 3, 4], concepts, shares)
        assert (found.epoch, found.component) == (3, 0)
        assert "epoch 3" in found.sentence
        assert "40 % of the variance" in found.sentence

    def test_directions_of_long_ago_do_not_matter(self) -> None:
        concepts = [np.eye(9)[:, [j]] for j in (1, 0, 0, 0, 1)]
        assert [f.epoch for f in find_new_concepts("conv", range(5), concepts, [[1.0]] * 5)] == [1, 4]
        longer = Thresholds(recent=4)
        assert [f.epoch for f in find_new_concepts("conv", range(5), concepts, [[1.0]] * 5, longer)] == [1]

    def test_a_concept_that_grows_is_new_when_it_counts(self) -> None:
        concepts = [np.eye(20)[:, [0, 1, 2]]] * 9
        shares = [[0.6 - 0.01 * t, 0.35, 0.012 * t] for t in range(9)]
        assert [(f.epoch, f.component) for f in find_new_concepts("conv", range(9), concepts, shares)] == [(5, 2)]


class TestInference:
    def test_correlations_and_intervals(self) -> None:
        rng = np.random.default_rng(1)
        columns = rng.normal(size=(60, 3))
        age = columns[:, 1] + rng.normal(size=60)
        site = rng.choice(["a", "b", "c"], 60)
        columns[:, 2] += 3 * (site == "b")
        found = compute_associations(columns, {"age": age, "site": site}, permutations=199)
        assert found["age"].measure == "r"
        for j in range(3):
            expected = pearsonr(columns[:, j], age)
            assert found["age"].statistic[j] == pytest.approx(expected.statistic)
            interval = expected.confidence_interval(1 - 0.05 / 3)
            assert found["age"].interval(j) == pytest.approx((interval.low, interval.high), abs=0.06)
        assert found["site"].measure == "eta"
        F = f_oneway(*(columns[site == s, 2] for s in "abc")).statistic
        assert found["site"].statistic[2] ** 2 == pytest.approx(2 * F / (2 * F + 57))
        assert found["age"].p_values[1] == found["site"].p_values[2] == pytest.approx(1 / 200)
        assert found["age"].p_values[0] > 0.05
        assert found["site"].interval(2)[0] > 0.5

    def test_intervals_cover(self) -> None:
        """All of three correlations at once, with the stated probability; and a correlation ratio."""
        rng = np.random.default_rng(2)
        rho, n, missed = np.array([0.6, 0.0, -0.3]), 40, [0, 0]
        groups = np.repeat(np.arange(4), 10)
        effects = np.array([0, 0.5, 1, 1.5])
        eta = np.sqrt(effects.var() / (effects.var() + 1))
        for run in range(NULLS):
            x, noise = rng.normal(size=(n, 1)), rng.normal(size=(n, 3))
            [a] = compute_associations(
                rho * x + np.sqrt(1 - rho**2) * noise, {"x": x[:, 0]}, permutations=199, seed=run
            ).values()
            bounds = [a.interval(j) for j in range(3)]
            missed[0] += not all(low <= r <= high for r, (low, high) in zip(rho, bounds, strict=True))
            y = effects[groups] + rng.normal(size=n)
            between = np.square([y[groups == g].mean() - y.mean() for g in range(4)]).sum() * 10
            low, high = eta_interval(np.sqrt(between / np.square(y - y.mean()).sum()), n, 3)
            missed[1] += not low <= eta <= high
        assert all(map(within_alpha, missed))

    def test_familywise(self) -> None:
        T = np.random.default_rng(3).normal(size=(400, 5)) * [1, 10, 100, 1e-3, 1]
        T[0] = [9, 0, 0, 0, -9]
        p = familywise_p_values(T)
        assert p[0] == pytest.approx(1 / 400)
        assert p[1:].min() > 0.5
        np.testing.assert_array_equal(familywise_p_values(np.zeros((20, 2))), 1)

    @pytest.mark.parametrize("kind", ["numbers", "booleans", "categories"])
    def test_nothing_where_nothing_is(self, kind) -> None:
        """Skewed scores of 24 components in three layers, which depend on each other: errors at the stated rate."""
        rng = np.random.default_rng(4)
        errors = 0
        for run in range(NULLS):
            scores = np.exp(rng.normal(size=(30, 24)) + rng.normal(size=(30, 1)))
            values = {
                "numbers": {"age": rng.exponential(size=30), "dose": rng.normal(size=30)},
                "booleans": {"sex": rng.permutation(30) < 12},
                "categories": {"site": rng.permutation(np.repeat(["a", "b", "c"], 10)), "age": rng.normal(size=30)},
            }[kind]
            probes = {
                str(k): InputMoments(part, np.empty(0), np.ones(8) / 8) for k, part in enumerate(np.split(scores, 3, 1))
            }
            errors += bool(find_attributes(probes, values, ANY_SIZE, seed=run))
        assert within_alpha(errors)

    @pytest.mark.parametrize(
        ("values", "words"),
        [
            ([1.0] * 9, ("the same for all inputs",)),
            ([1.0] * 8, ("9 inputs", "(8,)")),
            ([np.nan, *range(8)], ("NaN",)),
            (list("abcdefghi"), ("9 categories",)),
        ],
    )
    def test_one_sentence(self, values, words, refused) -> None:
        with refused(ValueError, "site", *words):
            compute_associations(np.eye(9), {"site": values})

    def test_too_few_inputs(self, refused) -> None:
        with refused(ValueError, "7 inputs"):
            compute_associations(np.eye(7), {"age": range(7)})

    def test_thresholds(self, refused) -> None:
        with refused(ValueError, "alpha"):
            validated(Thresholds, alpha=0)
        assert all(field.description for field in Thresholds.model_fields.values())


class TestAttributes:
    def test_planted(self) -> None:
        rng = np.random.default_rng(5)
        samples = inputs_of_pixels(rng, 40)
        sex = rng.permutation(40) < 20
        samples[..., 1] += 2.5 * sex[:, None]
        found = find_attributes(
            {"a": probe(inputs_of_pixels(rng, 40)), "b": probe(samples)}, {"sex": sex}, QUICK, epoch=7
        )
        assert {(f.layer, f.subject, f.epoch) for f in found} == {("b", "sex", 7)}
        best = found[0]
        assert best.p_value <= 0.05
        assert best.interval[0] < best.statistic < best.interval[1]
        assert f"Component {best.component + 1} of layer b follows sex: r = " in best.sentence

    def test_small_effects_are_none(self) -> None:
        """What is significant with many inputs need not matter."""
        rng = np.random.default_rng(6)
        scores = rng.normal(size=(2000, 2))
        probes = {"a": InputMoments(scores, np.empty(0), np.ones(2) / 2)}
        age = 0.15 * scores[:, 0] + rng.normal(size=2000)
        assert find_attributes(probes, {"age": age}, QUICK) == []
        assert find_attributes(probes, {"age": age}, QUICK.model_copy(update={"correlation": 0.1}))


class TestDrift:
    def test_a_shift(self) -> None:
        rng = np.random.default_rng(7)
        samples = inputs_of_pixels(rng, 30)
        domains = np.repeat(["chest", "head"], 15)
        samples[15:, :, 0] += 5
        found = find_drift({"a": probe(inputs_of_pixels(rng, 30)), "b": probe(samples)}, domains, QUICK)
        assert {f.layer for f in found} == {"b"}
        assert found[0].component == 0
        assert abs(found[0].statistic) > 1
        assert "chest and head" in found[0].sentence
        assert all(f.component is not None for f in found)  # the directions are the same: only the mean has moved

    def test_other_directions(self) -> None:
        rng = np.random.default_rng(8)
        samples = rng.normal(size=(30, 20, 6)) * [4, 3, 0.5, 0.5, 0.5, 0.5]
        samples[15:] = samples[15:][..., [2, 3, 0, 1, 4, 5]]
        found = find_drift({"a": probe(samples)}, np.repeat([0, 1], 15), QUICK)
        assert [f.component for f in found] == [None]
        assert found[0].statistic < 0.8
        assert "principal angle" in found[0].sentence

    def test_one_of_three_domains(self) -> None:
        rng = np.random.default_rng(9)
        samples = inputs_of_pixels(rng, 45)
        samples[30:, :, 1] += 5
        found = find_drift({"a": probe(samples)}, np.repeat(["x", "y", "z"], 15), QUICK)
        assert max(found, key=lambda f: abs(f.statistic)).subject == "z and the others"

    def test_pairs_tell_smaller_shifts(self) -> None:
        rng = np.random.default_rng(10)
        samples = inputs_of_pixels(rng, 20)
        both = {"a": probe(np.concatenate([samples, samples + [0.6, 0, 0, 0, 0] + 0.1 * rng.normal(size=(20, 6, 5))]))}
        sides, lower = np.repeat(["before", "after"], 20), QUICK.model_copy(update={"drift_shift": 0.2})
        assert find_drift(both, sides, lower) == []
        assert find_drift(both, sides, lower, paired=True)

    @pytest.mark.parametrize("domains", [2, 3])
    def test_nothing_where_nothing_is(self, domains) -> None:
        rng = np.random.default_rng(11)
        errors = 0
        for run in range(NULLS):
            labels = rng.permutation(np.arange(24) % domains)
            probes = {str(k): probe(inputs_of_pixels(rng)) for k in range(2)}
            errors += bool(find_drift(probes, labels, ANY_SIZE, seed=run))
        assert within_alpha(errors)

    def test_pairs_hold_the_rate_too(self) -> None:
        rng = np.random.default_rng(12)
        errors = 0
        for run in range(NULLS):
            common = 2 * inputs_of_pixels(rng, 12)
            both = np.concatenate([common + inputs_of_pixels(rng, 12), common + inputs_of_pixels(rng, 12)])
            errors += bool(find_drift({"a": probe(both)}, np.repeat([0, 1], 12), ANY_SIZE, paired=True, seed=run))
        assert within_alpha(errors)

    def test_one_sentence(self, refused) -> None:
        probes = {"a": probe(inputs_of_pixels(np.random.default_rng(0), 9))}
        with refused(ValueError, "domain", "9 inputs"):
            find_drift(probes, ["x"] * 8)
        with refused(ValueError, "domain", "the same"):
            find_drift(probes, ["x"] * 9)
        with refused(ValueError, "pairs"):
            find_drift(probes, [*"xxxx", *"yyyyy"], paired=True)
        with refused(ValueError, "no layer"):
            find_drift({}, [0, 1])


class TestSharpening:
    def samples(self, rng, apart):
        """Return 20 trained and 20 held-out inputs of two classes, of which the former are further apart."""
        samples = rng.normal(size=(40, 4, 8))
        samples[..., 2] += np.where(np.arange(40) % 2, 3, -3)[:, None] * np.where(np.arange(40) < 20, apart, 1)[:, None]
        return samples

    def test_planted(self) -> None:
        rng = np.random.default_rng(13)
        held = np.arange(40) >= 20
        probes = {"a": probe(self.samples(rng, 1)), "b": probe(self.samples(rng, 1.5))}
        [found] = find_sharpening(probes, held, QUICK, epoch=9)
        assert (found.layer, found.epoch) == ("b", 9)
        assert found.statistic == pytest.approx(sharpness(probes["b"], held))
        assert find_sharpening(probes, held, QUICK, first={"b": 0.0})
        assert find_sharpening(probes, held, QUICK, first={"b": found.statistic - 0.1}) == []
        assert find_sharpening(probes, ~held, QUICK) == []

    def test_nothing_where_nothing_is(self) -> None:
        rng = np.random.default_rng(14)
        errors = sum(
            bool(
                find_sharpening({"a": probe(inputs_of_pixels(rng)), "b": probe(inputs_of_pixels(rng))}, held, ANY_SIZE)
            )
            for held in (rng.permutation(24) < 8 for _ in range(NULLS))
        )
        assert within_alpha(errors)
