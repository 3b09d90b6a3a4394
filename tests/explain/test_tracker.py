"""Networks followed while they learn: what is planted is found, at its epoch, and training is left alone."""

import csv
import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from helpers.long_runs import collect
from napari_gsvolume.explain.tracking.checkpoints import (
    compare_domains,
    natural_key,
    parse_epochs,
    track_checkpoints_steps,
    track_training_steps,
)
from napari_gsvolume.explain.tracking.records import COLUMNS
from napari_gsvolume.explain.tracking.tracker import Tracker
from napari_gsvolume.phantoms import vessel_phantom
from napari_gsvolume.super_resolution.training import train_superresolution_steps

pytestmark = pytest.mark.usefixtures("one_thread")


def linear(matrix) -> nn.Module:
    """Return a network whose layer "0" gives matrix @ x."""
    layer = nn.Linear(*reversed(matrix.shape), bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.as_tensor(matrix))
    return nn.Sequential(layer)


def normal(*shape, seed=0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@dataclass(frozen=True)
class Step:
    iteration: int
    history: tuple


def kinds(findings) -> set[str]:
    return {finding.kind for finding in findings}


class TestPlanted:
    def test_a_known_direction(self) -> None:
        """The concept that a layer gains most along is its first one; the others follow in their order."""
        axes = np.linalg.qr(np.random.default_rng(0).normal(size=(12, 4)))[0]
        tracker = Tracker(linear(axes * [8, 4, 2, 1]), ["0"], normal(4000, 4))
        [record] = tracker.record(0)
        np.testing.assert_allclose(np.abs((record.concepts[:, :4] * axes).sum(0)), 1, atol=0.01)
        np.testing.assert_allclose(record.values[:4], [8, 4, 2, 1], rtol=0.05)
        np.testing.assert_allclose(record.shares.sum(), 1)
        assert tracker.findings() == []

    def test_components_keep_their_places(self) -> None:
        """Two cross while a third one turns: places follow directions, not values."""
        axes = np.linalg.qr(np.random.default_rng(1).normal(size=(9, 3)))[0]
        tracker = Tracker(linear(axes), ["0"], normal(2000, 3))
        for epoch in range(6):
            turn = np.radians(8 * epoch)
            now = axes.copy()
            now[:, 2] = np.cos(turn) * axes[:, 2] + np.sin(turn) * np.linalg.qr(np.c_[axes, np.ones(9)])[0][:, 3]
            tracker.record(epoch, linear(now * [5 - 0.7 * epoch, 3 + 0.1 * epoch, 1]))
        seen = tracker.evolution("0")
        np.testing.assert_allclose(seen.values[:, 0], 5 - 0.7 * np.arange(6), rtol=0.1)
        np.testing.assert_allclose(seen.values[:, 1], 3 + 0.1 * np.arange(6), rtol=0.1)
        np.testing.assert_allclose(seen.to_first[1:, :2], 1, atol=0.02)
        np.testing.assert_allclose(seen.to_first[1:, 2], np.cos(np.radians(8 * np.arange(1, 6))), atol=0.02)
        np.testing.assert_allclose(seen.to_previous[1:, 2], np.cos(np.radians(8)), atol=0.02)
        assert np.isnan(seen.to_first[0]).all()
        assert seen.concepts.shape == (6, 9, 9)

    def test_a_component_that_vanishes_comes_back_to_its_place(self) -> None:
        axes = np.linalg.qr(np.random.default_rng(2).normal(size=(8, 3)))[0]
        tracker = Tracker(linear(axes), ["0"], normal(500, 3), k=3)
        for epoch, gains in enumerate([[3, 2, 1], [3, 0, 1], [3, 2, 1]]):
            tracker.record(epoch, linear(axes * gains))
        seen = tracker.evolution("0")
        np.testing.assert_allclose(seen.values, [[3, 2, 1], [3, 0, 1], [3, 2, 1]], atol=0.3)
        np.testing.assert_allclose(seen.to_first[2], 1, atol=0.01)

    def test_an_attribute(self) -> None:
        """One direction of the input is the age, the layer passes it on; of another attribute it knows nothing."""
        inputs = normal(80, 6, seed=1)
        given = {"age": 40 + 10 * inputs[:, 2].numpy(), "noise": np.random.default_rng(3).normal(size=80)}
        model = linear(np.eye(6) * [1, 1.5, 4, 1, 0.7, 0.5])
        tracker = Tracker(model, ["0"], list(inputs.split(16)), attributes=given)
        tracker.record(0)
        found = tracker.findings()
        assert {(f.kind, f.subject) for f in found} == {("attribute", "age")}
        assert (found[0].component, found[0].layer, found[0].epoch) == (0, "0", 0)
        assert found[0].interval[0] > 0.9
        assert found[0].p_value < 0.05

    def test_collapse_dead_and_redundant_units(self) -> None:
        good = np.random.default_rng(4).normal(size=(20, 20))
        repeated, dead, collapsed = good.copy(), good.copy(), 0.01 * good
        repeated[[5, 11]] = -2 * good[3], 0.5 * good[3]
        dead[[2, 7, 9]] = 0
        collapsed += np.outer(np.ones(20), good[0])
        tracker = Tracker(linear(good), ["0"], normal(400, 20))
        expected = [
            (good, None, None),
            (repeated, "redundant units", "3 and 5; 3 and 11"),
            (dead, "dead units", "2, 7, 9"),
        ]
        for epoch, (matrix, kind, subject) in enumerate([*expected, (collapsed, "collapse", "")]):
            tracker.record(epoch, linear(matrix))
            found = [f for f in tracker.findings() if f.kind != "new concept"]
            assert kinds(found) == (set() if kind is None else {kind})
            assert all((f.subject, f.epoch) == (subject, epoch) for f in found)
        tracker.record(10, linear(collapsed))
        assert [f.epoch for f in tracker.findings() if f.kind == "collapse"] == [3]  # since when, not when last seen

    def test_a_domain(self) -> None:
        inputs, groups = normal(60, 5, seed=2), ["chest"] * 30 + ["head"] * 30
        model = linear(np.diag([3.0, 2, 1, 1, 1]))
        shifted = inputs.clone()
        shifted[30:, 0] += 2.5
        for given, expected in ((inputs, set()), (shifted, {"drift"})):
            tracker = Tracker(model, ["0"], given, groups)
            tracker.record(0)
            assert kinds(tracker.findings()) == expected
        [_, chest, head] = tracker.history
        assert (chest.group, head.group) == ("chest", "head")
        assert abs(head.means[:, 0].mean() - chest.means[:, 0].mean()) > 1
        np.testing.assert_allclose(
            chest.values.max(), np.linalg.svd(np.cov(inputs[:30].T.numpy()))[1][0] ** 0.5 * 3, rtol=0.4
        )
        assert len(tracker.evolution("0", "head").epochs) == 1

    def test_duplicate_heads(self) -> None:
        torch.manual_seed(1)
        model = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)
        inputs = normal(10, 7, 16)  # weights before training are nearly uniform: alike, but not the same
        tracker = Tracker(model, ["linear2"], inputs, attention=True)
        tracker.record(0)
        assert "redundant heads" not in kinds(tracker.findings())
        with torch.no_grad():  # queries and keys of head 3 become those of head 1
            for part in (0, 16):
                for of in (model.self_attn.in_proj_weight, model.self_attn.in_proj_bias):
                    of[part + 12 : part + 16] = of[part + 4 : part + 8]
        tracker.record(1)
        tracker.record(2)
        [found] = [f for f in tracker.findings() if f.kind == "redundant heads"]
        assert (found.layer, found.subject, found.epoch) == ("self_attn", "1 and 3", 1)

    def test_a_perturbation(self) -> None:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3))
        images = normal(12, 1, 10, 10, seed=3)
        found = compare_domains(model, images, images + 1, ["0", "2"], names=("as it was", "brighter"), paired=True)
        assert kinds(found) == {"drift"}
        assert "brighter" in found[0].subject
        assert compare_domains(model, images, normal(12, 1, 10, 10, seed=4), ["0", "2"]) == []


class TestRealTraining:
    def textures(self, kinds_, count, generator):
        """Return noisy images (n, 1, 16, 16) of gratings along rows, columns or the diagonal, and which they are."""
        y, x = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")
        waves = (1.6 * y, 1.6 * x, 1.1 * (x + y))
        phase = 2 * math.pi * torch.rand(len(kinds_), count, 1, 1, generator=generator)
        images = torch.stack([torch.sin(waves[k] + phase[j]) for j, k in enumerate(kinds_)]).flatten(0, 1)
        images = images + 0.5 * torch.randn(images.shape, generator=generator)
        return images[:, None], torch.tensor(kinds_).repeat_interleave(count)

    def trained(self, appears):
        """Train a small CNN on two textures, and on a third one from an epoch on; return its tracker."""
        generator = torch.Generator().manual_seed(0)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = nn.Sequential(
                nn.Conv2d(1, 8, 3, padding=1),
                nn.ReLU(),
                nn.Conv2d(8, 16, 3, padding=1),
                nn.ReLU(),
                nn.AdaptiveAvgPool2d(1),
                nn.Flatten(),
                nn.Linear(16, 16),
                nn.Tanh(),
                nn.Linear(16, 3),
            )
        probe, labels = self.textures([0, 1, 2], 16, generator)
        tracker = Tracker(model, ["7"], list(probe.split(16)), attributes={"diagonal": (labels == 2).numpy()})
        optimiser = torch.optim.Adam(model.parameters(), lr=5e-3)
        for epoch in range(7):
            tracker.record(epoch)
            images, truth = self.textures([0, 1, 2] if epoch + 1 >= appears else [0, 1], 64, generator)
            for _ in range(3):
                for batch in torch.randperm(len(images), generator=generator).split(32):
                    optimiser.zero_grad()
                    nn.functional.cross_entropy(model(images[batch]), truth[batch]).backward()
                    optimiser.step()
        return tracker

    def test_a_concept_appears(self) -> None:
        """After the first epoch of all, in which everything turns, there is one new concept, at the epoch it came."""
        tracker = self.trained(5)
        [found] = [f for f in tracker.findings() if f.kind == "new concept" and f.epoch > 1]
        assert (found.epoch, found.layer) == (5, "7")
        assert "diagonal" in {f.subject for f in tracker.findings() if f.component == found.component and f.subject}
        assert [f for f in self.trained(99).findings() if f.kind == "new concept" and f.epoch > 1] == []

    @pytest.mark.parametrize("by_heart", [True, False])
    def test_learning_by_heart(self, by_heart) -> None:
        """Forty examples with random labels are learnt by heart; forty among thousands, of a rule, are not."""
        generator = torch.Generator().manual_seed(0)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 2))
        seen, unseen, rule = (torch.randn(n, 20, generator=generator) for n in (40, 40, 1))
        inputs = seen if by_heart else torch.cat([seen, torch.randn(4000, 20, generator=generator)])
        labels = (inputs @ rule[0] > 0).long()
        if by_heart:
            labels = (torch.rand(40, generator=generator) < 0.5).long()
        tracker = Tracker(model, ["3", "4"], seen, held_out=unseen)
        optimiser = torch.optim.Adam(model.parameters(), lr=2e-3)
        for epoch in range(5):
            tracker.record(epoch)
            for _ in range(40):
                batch = torch.randint(len(inputs), (32,), generator=generator)
                optimiser.zero_grad()
                nn.functional.cross_entropy(model(inputs[batch]), labels[batch]).backward()
                optimiser.step()
        assert ("sharpening" in kinds(tracker.findings())) == by_heart
        assert tracker.evolution("3").sharpness[-1] > 0.3 or not by_heart


class TestTracker:
    def test_the_model_is_left_alone(self) -> None:
        """Training with a tracker ends at the very same weights as without."""

        def trained(follow):
            torch.manual_seed(5)
            model = nn.Sequential(
                nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.3), nn.Flatten(), nn.Linear(144, 2)
            )
            tracker = Tracker(model.train(), None, normal(10, 1, 8, 8))
            optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
            for epoch in range(3):
                if follow:
                    tracker.record(epoch)
                assert model.training
                optimiser.zero_grad()
                model(torch.randn(6, 1, 8, 8)).square().mean().backward()
                optimiser.step()
            return model.state_dict(), tracker

        without, _ = trained(False)
        followed, tracker = trained(True)
        assert all(torch.equal(without[name], followed[name]) for name in without)
        assert {r.layer for r in tracker.history} == {"0", "1", "4"}

    def test_generators_and_functions(self) -> None:
        model, inputs = linear(np.eye(4)), normal(24, 4)
        probes = inputs, (part for part in inputs.split(5)), lambda: (part for part in inputs.split(7))
        records = []
        for probe in probes:
            tracker = Tracker(model, None, probe)
            tracker.record(0)
            records.append(tracker.record(1)[0])
        for record in records[1:]:
            np.testing.assert_allclose(record.values, records[0].values, rtol=1e-6)
            np.testing.assert_allclose(record.means, records[0].means, atol=1e-5)
        assert records[0].means.shape == (24, 4)

    def test_what_is_kept_does_not_grow_with_pixels(self) -> None:
        torch.manual_seed(0)
        model = nn.Conv2d(1, 8, 3)
        for size in (16, 64):
            tracker = Tracker(model, [""], normal(9, 1, size, size), k=4, max_samples=1000)
            [record] = tracker.record(0)
            arrays = [a for a in vars(record).values() if isinstance(a, np.ndarray)]
            assert sum(a.nbytes for a in arrays) == 4 * 4 * (8 + 9) + 4 * 4 * 8

    def test_a_table(self, tmp_path) -> None:
        tracker = Tracker(linear(np.diag([3.0, 2, 1])), None, normal(20, 3), ["a"] * 10 + ["b"] * 10)
        tracker.record(0)
        tracker.record(2, linear(np.diag([2.0, 3, 1])))
        tracker.to_csv(tmp_path / "track.csv")
        with (tmp_path / "track.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert tuple(rows[0]) == COLUMNS
        assert len(rows) == 2 * 3 * 3
        assert {(r["epoch"], r["group"]) for r in rows} == {(e, g) for e in "02" for g in ("", "a", "b")}
        last = [r for r in rows if r["epoch"] == "2" and r["group"] == ""]
        record = tracker.history[3]
        np.testing.assert_array_equal([float(r["value"]) for r in last], record.values)
        np.testing.assert_array_equal([float(r["cosine_to_first"]) for r in last], record.to_first)
        assert sorted(r["place"] for r in last) == ["0", "1", "2"]
        assert rows[0]["cosine_to_previous"] == rows[0]["angle"] == ""

    def test_a_table_that_cannot_be_written(self, tmp_path, refused) -> None:
        tracker = Tracker(linear(np.eye(3)), None, normal(20, 3))
        tracker.record(0)
        with refused(OSError, "track.csv"):
            tracker.to_csv(tmp_path / "no" / "track.csv")

    def test_one_sentence(self, refused) -> None:
        model, inputs = linear(np.eye(3)), normal(20, 3)
        with refused(ValueError, "modes"):
            Tracker(model, None, inputs, k=0)
        with refused(ValueError, "age", "the same"):
            Tracker(model, None, inputs, attributes={"age": [1] * 20})
        with refused(ValueError, "age", "20 inputs", "(3,)"):
            Tracker(model, None, inputs, attributes={"age": [1, 2, 3]}).record(0)
        with refused(ValueError, "Groups", "20 inputs", "(2,)"):
            Tracker(model, None, inputs, ["a", "b"]).record(0)
        with refused(ValueError, "4 inputs"):
            Tracker(model, None, inputs[:4], [*"aabb"]).record(0)
        with refused(ValueError, "max_samples"):
            Tracker(model, None, inputs, max_samples=5).record(0)
        with refused(ValueError, "no layer 'nine'"):
            Tracker(model, ["nine"], inputs).record(0)
        tracker = Tracker(model, None, inputs)
        assert tracker.findings() == []
        with refused(ValueError, "Nothing is recorded of 0"):
            tracker.evolution("0")
        tracker.record(3)
        with refused(ValueError, "3 cannot be recorded after 3"):
            tracker.record(3)
        with refused(ValueError, "Nothing is recorded of 0 head"):
            tracker.evolution("0", "head")
        with torch.no_grad():
            model[0].weight[:] = float("nan")
        with refused(ValueError, "NaN"):
            tracker.record(4)
        assert len(tracker.history) == 1


class TestFollowing:
    def test_checkpoints(self, tmp_path) -> None:
        model = linear(np.eye(3))
        for epoch in (10, 2, 1):
            save_file({"0.weight": epoch * torch.eye(3)}, tmp_path / f"epoch-{epoch}.safetensors")

        def load(path):
            model.load_state_dict(load_file(path))
            return model

        steps, tracker = collect(track_checkpoints_steps(tmp_path.glob("*.safetensors"), load, None, normal(20, 3)))
        assert [(s.done, s.total, s.epoch) for s in steps] == [(1, 3, 1), (2, 3, 2), (3, 3, 10)]
        values = tracker.evolution("0").values
        np.testing.assert_allclose(values / values[:1], [[1] * 3, [2] * 3, [10] * 3], rtol=1e-5)

    def test_order_and_epochs(self, tmp_path) -> None:
        names = ["run2/e1.pt", "run10/e1.pt", "run2/e10.pt", "run2/e9.pt"]
        ordered = sorted((tmp_path / name for name in names), key=natural_key)
        assert [str(p.relative_to(tmp_path)) for p in ordered] == [names[0], names[3], names[2], names[1]]
        assert parse_epochs(ordered) == [0, 1, 2, 3]  # the number of the epoch starts anew
        assert parse_epochs(ordered[:3]) == [1, 9, 10]
        assert parse_epochs([tmp_path / "first.pt", tmp_path / "last.pt"]) == [0, 1]

    def test_no_checkpoints(self, refused) -> None:
        with refused(ValueError, "no checkpoints"):
            next(track_checkpoints_steps([], linear, None, normal(9, 3)))

    def test_our_own_training(self) -> None:
        """A super-resolution is followed at its judgments, and learns the very same."""
        volume = vessel_phantom(24)[0]
        settings = {"channels": 8, "blocks": 1, "batch_size": 2, "iterations": 5}
        alone = list(train_superresolution_steps([volume], **settings))[1:]
        training = train_superresolution_steps([volume], **settings)
        first = next(training)
        tracker = Tracker(first.scheme, None, [validation.low for validation in first.validation_sets])
        steps = list(track_training_steps(training, tracker))
        assert [s.best_db for s in steps] == [s.best_db for s in alone]
        seen = tracker.evolution("network.body.0.first")
        np.testing.assert_array_equal(seen.epochs, [p.iteration for p in steps[-1].history])
        assert (seen.to_previous[1:, 0] > 0.5).all()

    def test_a_training_that_diverges_goes_on(self) -> None:
        model = linear(np.eye(3))

        def steps():
            for k in range(4):
                with torch.no_grad():
                    model[0].weight.mul_(1 if k < 2 else float("nan"))
                yield Step(k + 1, (0,) * (k + 2))

        tracker = Tracker(model, None, normal(20, 3))
        with pytest.warns(UserWarning, match=r"ended at iteration 3: .*NaN"):
            assert len(list(track_training_steps(steps(), tracker))) == 4
        np.testing.assert_array_equal(tracker.evolution("0").epochs, [0, 1, 2])

    def test_closing_closes_the_steps(self) -> None:
        closed = []

        def steps():
            try:
                for k in range(9):
                    yield Step(k + 1, (0,) * (1 + (k + 1) // 2))
            finally:
                closed.append(True)

        tracker = Tracker(linear(np.eye(3)), None, normal(20, 3))
        following = track_training_steps(steps(), tracker)
        for _ in range(5):
            next(following)
        following.close()
        assert closed == [True]
        np.testing.assert_array_equal(tracker.evolution("0").epochs, [0, 2, 4])
