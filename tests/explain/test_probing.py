"""Probes find what was planted in a layer, and nothing where nothing is."""

import numpy as np
import pytest
import torch
from torch import nn

from helpers.long_runs import collect
from napari_gsvolume.explain import activations, linear_probe
from napari_gsvolume.explain.concepts.cross_validation import cross_validate
from napari_gsvolume.explain.concepts.labels import block_groups
from napari_gsvolume.explain.concepts.probing import probe_steps

pytestmark = pytest.mark.usefixtures("one_thread")

CLASS = np.tile([0, 1], 15)


def planted(count=30, side=6, seed=0, strength=1.0):
    """Return a 1 x 1 convolution and images of 4 channels; CLASS moves the third feature of each image."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Conv2d(4, 5, 1), nn.ReLU())
    rng = np.random.default_rng(seed)
    # Images differ from each other anyway: positions of one are no independent samples.
    images = rng.standard_normal((count, 4, 1, 1)) + 0.5 * rng.standard_normal((count, 4, side, side))
    weight = model[0].weight.detach().numpy()[:, :, 0, 0]
    images += strength * CLASS[:count, None, None, None] * np.linalg.pinv(weight)[:, 2][:, None, None]
    return model, torch.from_numpy(images.astype(np.float32))


class TestProbe:
    def test_a_planted_attribute_is_found(self) -> None:
        model, images = planted(strength=8.0)
        found = linear_probe(activations(model, images, ["0"], 5)["0"], CLASS, permutations=19, control=True)
        assert found.kind == "classes"
        assert (found.samples, found.groups, found.classes) == (30 * 36, 30, (0, 1))
        assert found.measures["auc"].mean > 0.95
        assert found.measures["accuracy"].mean > 0.85
        assert found.main.p == pytest.approx(1 / 20)
        assert found.selectivity > 0.3
        assert found.direction.shape == (5, 1)
        assert np.linalg.norm(found.direction) == pytest.approx(1)
        assert "above chance" in found.summary
        assert "not above" not in found.summary

    def test_none_is_found_where_there_is_none(self) -> None:
        """Positions of one image are alike: a probe that did not hold images out would find any labels of images."""
        found = []
        for seed in range(6):
            model, images = planted(side=3, seed=seed, strength=0.0)
            probe = linear_probe(activations(model, images, ["0"], 5)["0"], CLASS, permutations=19, seed=seed)
            found.append(probe)
            low, high = probe.main.interval
            assert low < high
        assert np.mean([p.main.p <= 0.05 for p in found]) <= 0.4  # of 6 tests at 0.05, 3 or more: P = 0.002
        assert abs(np.mean([p.main.mean for p in found]) - 0.5) < 0.12
        X = np.repeat(np.random.default_rng(0).standard_normal((30, 20)), 9, 0)
        leaking = cross_validate(X, np.repeat(CLASS, 9), np.arange(270), "classes")["auc"].mean
        honest = cross_validate(X, np.repeat(CLASS, 9), np.repeat(np.arange(30), 9), "classes")["auc"].mean
        assert leaking > 0.9
        assert honest < 0.75

    def test_values(self) -> None:
        model, images = planted(strength=0.0)
        truth = images[:, 0].numpy().astype(float)  # painted on the grid of the input
        read = linear_probe(activations(model, images, ["0"], 5)["0"], truth, permutations=9)
        assert read.kind == "values"
        assert read.main.mean > 0.999  # of 5 features of 4 channels all are known
        noise = np.random.default_rng(1).standard_normal(truth.shape)
        none = linear_probe(activations(model, images, ["0"], 5)["0"], noise, permutations=19)
        assert abs(none.main.mean) < 0.05
        assert none.main.p > 0.05 or none.main.mean < 0.01

    def test_the_direction_is_that_of_the_attribute(self) -> None:
        rng = np.random.default_rng(0)
        rows = torch.from_numpy(rng.standard_normal((400, 1, 6)) * [1, 2, 3, 4, 5, 6])
        direction = np.array([1.0, -1, 0, 0, 2, 0]) / np.sqrt(6)
        values = rows.numpy()[:, 0] @ direction
        found = activations(nn.Identity(), rows, [""], 6)[""]
        assert found.features == 6
        for kind, labels in (("values", values), ("classes", values > 0)):
            probe = linear_probe(found, labels, kind=kind, permutations=0)
            assert abs(probe.direction[:, 0] @ direction) > 0.98, kind
            assert np.isnan(probe.main.p)

    def test_painted_in_one_volume_by_blocks(self) -> None:
        rng = np.random.default_rng(0)
        painted = (np.add.outer(np.arange(24) // 4, np.arange(24) // 4) % 2).astype(int)
        image = np.stack([painted + 0.5 * rng.standard_normal((24, 24)), rng.standard_normal((24, 24))])
        found = activations(nn.Conv2d(2, 3, 1), torch.from_numpy(image[None].astype(np.float32)), k=3)[""]
        probe = linear_probe(found, painted[None], groups=block_groups(found.places, 3), permutations=19)
        assert probe.groups == 9
        assert probe.main.mean > 0.85
        assert probe.main.p <= 0.05

    def test_negative_labels_and_nan_are_left_out(self) -> None:
        model, images = planted()
        found = activations(model, images, ["0"], 5)["0"]
        assert linear_probe(found, np.where(np.arange(30) < 20, CLASS, -1), permutations=0).groups == 20
        values = np.where(np.arange(30) < 20, CLASS, np.nan)
        assert linear_probe(found, values, permutations=0).samples == 20 * 36

    def test_steps_over_layers_and_several_classes(self) -> None:
        model, images = planted(strength=8.0)
        labels = CLASS + (np.arange(30) % 3 == 0)
        steps, probes = collect(probe_steps(model, images, labels, ["0", "1"], max_samples=300, permutations=2))
        assert [s.fraction for s in steps] == sorted(s.fraction for s in steps)
        seen = list(probes.values())
        assert [p.layer for p in seen] == ["0", "1"]
        assert all(p.classes == (0, 1, 2) and p.direction.shape == (5, 3) and p.samples == 300 for p in seen)

    def test_refusals(self, refused) -> None:
        model, images = planted()
        found = activations(model, images, ["0"], 5)["0"]
        with refused(ValueError, "equal"):
            linear_probe(found, np.zeros(30, dtype=int))
        with refused(ValueError, "label 1", "one input"):
            linear_probe(found, (np.arange(30) == 3).astype(int))
        one = activations(model, images[:1], ["0"], 5)["0"]
        with refused(ValueError, "block_groups"):
            linear_probe(one, np.arange(36).reshape(1, 6, 6) % 2)
        with refused(ValueError, "groups of the shape"):
            linear_probe(found, CLASS, groups=np.arange(3))


def test_intervals_hold_the_true_figure() -> None:
    """Over many data sets, the 95 % interval has the accuracy on endless new inputs about so often."""
    hits = 0
    for seed in range(30):
        rng = np.random.default_rng(seed)
        y = np.arange(100) % 2
        X = rng.standard_normal((100, 1)) + 1.0 * y[:, None]
        low, high = cross_validate(X, y, np.arange(100), "classes", seed=seed)["accuracy"].interval
        hits += low <= 0.6915 <= high  # the cumulative normal at 0.5
    assert hits >= 25  # at 95 %, fewer: P = 0.003
