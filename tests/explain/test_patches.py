"""Components brought back to the inputs: planted structures are found where they were put."""

import numpy as np
import pytest
import torch
from torch import nn

from napari_gsvolume.explain import activations, top_patches
from napari_gsvolume.explain.concepts.attribution import component_gradient
from napari_gsvolume.explain.concepts.labels import block_groups, labels_at, permute_labels, resample_labels
from napari_gsvolume.explain.concepts.patches import concept_map
from napari_gsvolume.grid import Grid

pytestmark = pytest.mark.usefixtures("one_thread")


class Detector(nn.Module):
    """Responds to vertical stripes in its first feature, to horizontal ones in the second."""

    def __init__(self, stride=2):
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 4, stride=stride, padding=(4 - stride) // 2, bias=False).double()
        stripes = torch.tensor([1.0, -1, 1, -1]).double() / 8
        with torch.no_grad():
            self.conv.weight.copy_(torch.stack([stripes.expand(4, 4), stripes[:, None].expand(4, 4)])[:, None])
        self.energy = nn.Softplus()

    def forward(self, x):
        return self.energy(self.conv(x)).mean((2, 3))


def planted(count=4, side=32, seed=0):
    """Return noise images with an 8 x 8 patch of vertical stripes each, and the patches' first voxels."""
    rng = np.random.default_rng(seed)
    images = 0.05 * rng.standard_normal((count, 1, side, side))
    starts = 4 * rng.integers(1, side // 4 - 2, size=(count, 2))
    for image, (y, x) in zip(images, starts, strict=True):
        image[0, y : y + 8, x : x + 8] += np.tile([1.0, -1.0], 4)
    return torch.from_numpy(images), starts


class TestMaps:
    def test_the_map_shows_where_the_concept_is_in_the_world(self) -> None:
        images, starts = planted()
        found = activations(Detector(), images, ["conv"], 2)["conv"]
        source = Grid((32, 32), np.array([[0.5, 0, 7], [0, 2.0, -3], [0, 0, 1]]))
        for number, start in enumerate(starts):
            map_ = concept_map(found, 0, number)
            assert map_.image.shape == (16, 16)
            np.testing.assert_allclose(map_.translate, 0.5)  # (2 - 1) / 2
            grid = map_.grid(source)
            peak = np.abs(map_.image) ** 2
            centre = np.array([(peak * i).sum() / peak.sum() for i in np.indices(peak.shape)])
            world = (grid.affine @ [*centre, 1])[:2]
            expected = (source.affine @ [*(start + 3.5), 1])[:2]
            np.testing.assert_allclose(world, expected, atol=0.5)
            np.testing.assert_allclose((grid.affine @ [0, 0, 1])[:2], (source.affine @ [0.5, 0.5, 1])[:2])

    def test_values_are_projections_and_are_resampled_about_voxel_centres(self) -> None:
        images, _ = planted(2)
        model = Detector()
        found = activations(model, images, ["conv"], 2)["conv"]
        expected = np.einsum("cyx,c->yx", model.conv(images)[1].detach().numpy(), found.concepts[:, 1])
        map_ = concept_map(found, 1, 1)
        np.testing.assert_allclose(map_.image, expected, atol=1e-12)
        nearest, linear = (concept_map(found, 1, 1, order=order) for order in (0, 1))
        np.testing.assert_array_equal(nearest.image, np.repeat(np.repeat(map_.image, 2, 0), 2, 1))
        # Voxel 1 lies a quarter of a position beyond the centre of the first one.
        np.testing.assert_allclose(linear.image[0, 1], 0.75 * map_.image[0, 0] + 0.25 * map_.image[0, 1])
        np.testing.assert_array_equal(linear.scale, 1)

    def test_refusals(self, refused) -> None:
        images, _ = planted(2)
        found = activations(Detector(), images, ["conv", "energy"], 2, max_samples=50)["conv"]
        with refused(ValueError, "input 5"):
            concept_map(found, 0, 5)
        with refused(ValueError, "left out"):
            concept_map(found, 0, 0, order=1)
        with refused(ValueError, "no mode 2"):
            top_patches(found, images, 2)
        with refused(ValueError, "32 x 32", "16 x 16"):
            concept_map(found, 0).grid(Grid((16, 16)))
        linear = activations(nn.Linear(3, 2), torch.ones(4, 3), k=1)[""]
        with refused(ValueError, "one vector"):
            concept_map(linear, 0)


class TestPatches:
    def test_they_are_the_planted_ones(self) -> None:
        images, starts = planted(5)
        found = activations(Detector(), [images[:2], images[2:]], ["conv"], 2)["conv"]
        patches = top_patches(found, [images[:2], images[2:]], 0, count=5, size=8, per_input=1)
        ends = max(patches.positive, patches.negative, key=lambda end: sum(abs(p.strength) for p in end))
        assert {p.input for p in ends} == set(range(5))
        for p in ends:
            assert np.abs(np.array(p.start) - starts[p.input]).max() <= 4
            y, x = p.start
            np.testing.assert_array_equal(p.image, images[p.input, :, y : y + 8, x : x + 8].numpy())

    def test_they_do_not_overlap_lie_inside_and_are_sorted(self) -> None:
        images, _ = planted(3)
        found = activations(Detector(), images, ["conv"], 2)["conv"]
        patches = top_patches(found, images, 1, count=12, size=9, per_input=5)
        for sign, end in ((1, patches.positive), (-1, patches.negative)):
            strengths = [sign * p.strength for p in end]
            assert strengths == sorted(strengths, reverse=True)
            assert min(strengths) > 0
            for i, p in enumerate(end):
                assert p.image.shape == (1, 9, 9)
                assert sum(q.input == p.input for q in end) <= 5
                for q in end[:i]:
                    assert p.input != q.input or max(np.abs(np.subtract(p.start, q.start))) >= 9


class TestGradient:
    @pytest.mark.parametrize("position", [None, (3, 5)])
    @pytest.mark.parametrize("inplace", [False, True])
    def test_it_is_that_of_finite_differences(self, position, inplace) -> None:
        torch.manual_seed(0)
        layers = [nn.Conv2d(1, 3, 3), nn.ReLU(inplace=inplace), nn.Conv2d(3, 4, 3, stride=2), nn.ReLU(inplace=inplace)]
        model = nn.Sequential(*layers).double()
        concept = np.array([0.5, -1.0, 2.0, 0.25])
        x = torch.randn(2, 1, 18, 17, dtype=torch.float64)
        gradient = component_gradient(model, x, "2", concept, position=position)
        before = x.clone()

        def projection(x):
            h = np.einsum("bcyx,c->byx", model[:3](x.clone()).detach().numpy(), concept)
            return (h.mean((1, 2)) if position is None else h[:, position[0], position[1]]).sum()

        assert gradient.shape == x.shape
        assert np.abs(gradient).max() > 1e-4
        rng = np.random.default_rng(0)
        for index in rng.integers((2, 1, 18, 17), size=(20, 4)) if position is None else [(0, 0, 8, 12), (1, 0, 9, 13)]:
            step = torch.zeros_like(x)
            step[tuple(index)] = 1e-6
            slope = (projection(x + step) - projection(x - step)) / 2e-6
            np.testing.assert_allclose(gradient[tuple(index)], slope, atol=1e-7)
        torch.testing.assert_close(x, before, rtol=0, atol=0)
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
        assert all(p.grad is None for p in model.parameters())

    def test_refusals(self, refused) -> None:
        model, x = Detector(), torch.randn(1, 1, 8, 8).double()
        with refused(ValueError, "3 features", "'conv'"):
            component_gradient(model, x, "conv", np.ones(3))
        with refused(ValueError, "no position (9, 0)"):
            component_gradient(model, x, "conv", np.ones(2), position=(9, 0))
        with refused(ValueError, "real numbers"):
            component_gradient(model, x.long(), "conv", np.ones(2))
        assert not model._forward_pre_hooks


class TestLabels:
    def test_of_inputs_and_painted(self) -> None:
        images, _ = planted(3)
        places = activations(Detector(), images, ["conv"], 2)["conv"].places
        np.testing.assert_array_equal(labels_at(places, [4, 5, 6]), np.repeat([4, 5, 6], 256))
        rng = np.random.default_rng(0)
        painted = rng.integers(0, 3, size=(3, 32, 32))
        found = labels_at(places, painted).reshape(3, 16, 16)
        for n, y, x in rng.integers((3, 16, 16), size=(50, 3)):
            votes = np.bincount(painted[n, 2 * y : 2 * y + 2, 2 * x : 2 * x + 2].ravel(), minlength=3)
            assert found[n, y, x] == votes.argmax()
        means = labels_at(places, painted.astype(float), "mean").reshape(3, 16, 16)
        np.testing.assert_allclose(means, painted.reshape(3, 16, 2, 16, 2).mean((2, 4)))

    def test_of_chosen_samples(self) -> None:
        images, _ = planted(3)
        places = activations(Detector(), images, ["conv"], 2, max_samples=100)["conv"].places
        rows = np.broadcast_to(np.arange(32)[:, None] // 2, (3, 32, 32))
        np.testing.assert_array_equal(labels_at(places, rows), places.index[:, 0])

    def test_onto_finer_and_other_grids(self) -> None:
        array = np.arange(6).reshape(2, 3)
        np.testing.assert_array_equal(resample_labels(array, (4, 6)), np.repeat(np.repeat(array, 2, 0), 2, 1))
        np.testing.assert_array_equal(resample_labels(np.array([0, 0, 1, 1, 1]), (2,)), [0, 1])

    def test_permuted_labels_stay_as_they_are_within_inputs(self) -> None:
        rng = np.random.default_rng(0)
        groups = np.repeat(np.arange(6), 10)
        of_inputs = np.repeat([0, 0, 0, 1, 1, 2], 10)
        seen = {tuple(permute_labels(of_inputs, groups, rng)[::10]) for _ in range(900)}
        assert {tuple(sorted(s)) for s in seen} == {(0, 0, 0, 1, 1, 2)}
        assert len(seen) == 60  # 6! / (3! 2!)
        painted = np.tile([0] * 7 + [1] * 3, 6)
        moved = permute_labels(painted, groups, rng).reshape(6, 10)
        assert (moved.sum(1) == 3).all()
        assert (np.abs(np.diff(np.column_stack([moved, moved[:, :1]]))).sum(1) == 2).all()

    def test_blocks(self) -> None:
        images, _ = planted(2)
        places = activations(Detector(), images, ["conv"], 2)["conv"].places
        groups = block_groups(places, 2).reshape(2, 2, 8, 2, 8)
        assert (groups == groups[:, :, :1, :, :1]).all()
        assert len(np.unique(groups)) == 8

    def test_refusals(self, refused) -> None:
        images, _ = planted(2)
        places = activations(Detector(), images, ["conv"], 2)["conv"].places
        with refused(ValueError, "1 inputs", "samples of 2"):
            labels_at(places, [1])
        with refused(ValueError, "(16, 16)", "32 x 32"):
            labels_at(places, np.zeros((2, 16, 16)))
