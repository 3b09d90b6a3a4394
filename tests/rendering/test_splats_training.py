"""Splats trained on views: what they begin with, what is minimised, who is split, and what is reached."""

import json

import numpy as np
import pytest
import torch
from skimage.metrics import structural_similarity as skimage_ssim

from helpers.pretended_device import DEVICE, OnCard, pretended
from napari_gsvolume.devices import gpu_problem, gsplat_problem
from napari_gsvolume.phantoms import anatomical_phantom
from napari_gsvolume.progress import Budget, finish
from napari_gsvolume.rendering.cameras import fibonacci_directions, orbit_cameras
from napari_gsvolume.rendering.scene import Scene
from napari_gsvolume.rendering.settings import SplatTrainingSettings
from napari_gsvolume.rendering.splats import model as splats_module
from napari_gsvolume.rendering.splats import reference
from napari_gsvolume.rendering.splats.densification import densify_and_prune
from napari_gsvolume.rendering.splats.initialization import initialize_splats, pixel_contributions
from napari_gsvolume.rendering.splats.losses import Penalties, image_loss, structural_similarity
from napari_gsvolume.rendering.splats.model import Splats
from napari_gsvolume.rendering.splats.training import train_splats, train_splats_steps
from napari_gsvolume.rendering.volume.transfer_functions import TransferFunction

QUICK = {"gaussians": 600, "views": 12, "image_size": 48, "iterations": 150, "held_out_views": 3}


@pytest.fixture(scope="module")
def ball():
    """An opaque red ball of radius 8 mm with a blue core that nobody sees, voxels of 1 x 1 x 2 mm along x, y, z."""
    z, y, x = np.meshgrid(*(np.arange(n) - (n - 1) / 2 for n in (16, 28, 28)), indexing="ij")
    distance = np.sqrt((2 * z) ** 2 + y**2 + x**2)
    volume = np.clip(9 - distance, 0, 1) + (distance < 4)
    colors = [(0, 0, 0), (1, 0.2, 0.2), (1, 0.2, 0.2), (0, 0, 1)]
    return Scene(
        volume, np.array([2.0, 1, 1]), TransferFunction([0.3, 0.7, 1.2, 1.8], colors, [0, 0.95, 0.95, 0.95], 1.0)
    )


def some(n=40, seed=0, spread=10.0):
    random = torch.Generator().manual_seed(seed)
    return Splats(
        torch.randn(n, 3, generator=random) * spread / 3,
        torch.randn(n, 3, generator=random) / 3,
        torch.randn(n, 4, generator=random),
        torch.randn(n, generator=random),
        torch.randn(n, 4, 3, generator=random) / 5,
    )


class TestSeeds:
    def test_they_lie_on_what_is_seen(self, ball):
        cameras = ball.orbit_cameras(8, 48)
        first = initialize_splats(ball, 400, cameras, 2, np.random.default_rng(0))
        assert len(first) == 400
        assert first.sh.shape == (400, 9, 3)
        far = first.means.norm(dim=1)
        assert (far > 6.5).double().mean() > 0.98, "the core cannot be seen"
        assert (far < 10.5).all()
        red, green, blue = first.sh[:, 0].T
        assert (red > green).all()
        assert (red > blue).all()

    def test_they_are_flat_on_surfaces(self, ball):
        first = initialize_splats(ball, 400, ball.orbit_cameras(8, 48), 0, np.random.default_rng(0))
        thin = reference.rotation_matrices(first.quaternions)[:, :, 2]
        assert (thin * first.means / first.means.norm(dim=1, keepdim=True)).sum(1).abs().median() > 0.95
        assert (first.log_scales[:, 2] < first.log_scales[:, 0]).all()

    def test_a_mask_and_nothing_to_see(self, ball, refused):
        half = np.zeros(ball.volume.shape)
        half[:8] = 1
        masked = Scene(ball.volume, ball.voxel_size, ball.transfer_function, mask=half)
        first = initialize_splats(masked, 100, ball.orbit_cameras(4, 48), 0, np.random.default_rng(0))
        assert (first.means[:, 2] < 0.1).all()
        with refused(ValueError, "transparent"):
            initialize_splats(
                Scene(0 * ball.volume, ball.voxel_size, ball.transfer_function), 9, ball.orbit_cameras(2, 16), 0, None
            )

    def test_contributions_are_sums_of_weights(self):
        splats, cameras = some(), orbit_cameras(fibonacci_directions(3), 15.0, (20, 24))
        expected = torch.zeros(len(splats))
        for camera in cameras:
            leaf = torch.ones(len(splats), 3, requires_grad=True)
            means, covariances, depths = reference.project(splats.means, splats.log_scales, splats.quaternions, camera)
            image, _ = reference.rasterize(
                means, covariances, depths, leaf, splats.opacity_logits.sigmoid(), camera.image_size
            )
            image[:, :, 1].sum().backward()
            expected += leaf.grad[:, 1]
        torch.testing.assert_close(pixel_contributions(splats, cameras), expected, rtol=1e-3, atol=1e-3)


class TestLosses:
    def test_ssim_is_that_of_scikit_image(self):
        random = np.random.default_rng(0)
        a, b = random.random((2, 30, 41, 3)).astype(np.float32)
        b = (a + 0.3 * b) / 1.3
        expected = skimage_ssim(a, b, data_range=1, win_size=7, channel_axis=2)
        assert float(structural_similarity(*map(torch.from_numpy, (a, b)))) == pytest.approx(expected, abs=1e-4)

    def test_terms(self):
        a, b = torch.rand(2, 20, 20, 3, generator=torch.Generator().manual_seed(0)).unbind(0)
        only = float((a - b).square().mean())
        assert float(image_loss(a, b, SplatTrainingSettings(dssim_weight=0))) == pytest.approx(only)
        more = image_loss(a, b, SplatTrainingSettings(dssim_weight=0.5, l1_weight=2))
        expected = only + 2 * float((a - b).abs().mean()) + 0.5 * (1 - float(structural_similarity(a, b)))
        assert float(more) == pytest.approx(expected, rel=1e-5)

    def test_overlap_is_the_integral(self):
        two = some(2, spread=2.0)
        found = float(Penalties(SplatTrainingSettings(overlap_weight=1), 1.0)(two))
        axis = torch.linspace(-12, 12, 97)
        points = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), -1).reshape(-1, 3).double()
        S = reference.covariance_matrices(two.log_scales, two.quaternions).double()
        g = []
        for mean, covariance in zip(two.means.double(), S, strict=True):
            d = points - mean
            g.append(torch.exp(-((d @ torch.linalg.inv(covariance)) * d).sum(1) / 2))
        share = (g[0] * g[1]).sum() / (g[0].square().sum() * g[1].square().sum()).sqrt()
        assert found == pytest.approx(float(share * two.opacity_logits.sigmoid().prod().sqrt()), rel=1e-3)

    def test_smoothness_and_sparsity(self):
        splats = some(5)
        o, S = splats.opacity_logits.sigmoid(), reference.covariance_matrices(splats.log_scales, splats.quaternions)
        traces = torch.linalg.inv(S).diagonal(dim1=1, dim2=2).sum(1)
        assert float(Penalties(SplatTrainingSettings(sparsity_weight=3), 1.0)(splats)) == pytest.approx(
            3 * float(o.mean())
        )
        smooth = float(Penalties(SplatTrainingSettings(smoothness_weight=1), 0.5)(splats))
        assert smooth == pytest.approx(float((o**2 * traces).mean()) / 8, rel=1e-4)

    @pytest.mark.parametrize("name", ["sparsity_weight", "overlap_weight", "smoothness_weight"])
    def test_penalties_lower_what_they_are_of(self, ball, name):
        free, held = (train_splats(ball, **QUICK, **{name: weight}) for weight in (0.0, 0.01))
        measure = Penalties(SplatTrainingSettings(**{name: 1.0}), 1.0)
        assert float(measure(held.splats)) < 0.9 * float(measure(free.splats))


class TestPopulation:
    def test_who_stays_and_who_is_split(self):
        splats = some(10)
        contributed = torch.ones(10)
        contributed[3] = 0
        positional_gradients = torch.zeros(10)
        positional_gradients[[5, 7]] = 1.0
        new, kept = densify_and_prune(splats, positional_gradients, contributed, 50, torch.Generator().manual_seed(0))
        assert kept.tolist() == [0, 1, 2, 4, 6, 8, 9]
        assert len(new) == 7 + 4
        torch.testing.assert_close(new.means[:7], splats.means[kept])
        middles = (new.means[7:9] + new.means[9:11]) / 2  # of twins
        order = middles[:, 0].argsort(), splats.means[[5, 7], 0].argsort()
        torch.testing.assert_close(middles[order[0]], splats.means[[5, 7]][order[1]])
        assert (new.log_scales[7:].exp().prod(1) < splats.log_scales[[5, 7]].exp().prod(1).max()).all()

    def test_no_more_than_there_may_be(self):
        splats = some(10)
        new, kept = densify_and_prune(splats, torch.ones(10), torch.ones(10), 11, torch.Generator().manual_seed(0))
        assert len(new) == 11
        assert len(kept) == 9
        new, kept = densify_and_prune(splats, torch.ones(10), torch.ones(10), 5, torch.Generator().manual_seed(0))
        assert len(new) == len(kept) == 10


class TestOnAGPU:
    """What of it needs no gradients, which the pretended device has none of: nothing mixes devices."""

    def test_views_penalties_and_population_stay_there(self, monkeypatch):
        with pretended(monkeypatch):
            monkeypatch.setattr(splats_module, "_select_backend", lambda backend, device: "reference")
            there = some().to(DEVICE)
            view = there.render_view(orbit_cameras(fibonacci_directions(1), 15.0, (20, 24)))
            loss = image_loss(view.image, torch.zeros(20, 24, 3).to(DEVICE), SplatTrainingSettings(l1_weight=1))
            weights = SplatTrainingSettings(sparsity_weight=1, overlap_weight=1, smoothness_weight=1)
            penalty = Penalties(weights, 1.0)(there)
            positional_gradients, seen = (torch.rand(40).to(DEVICE) for _ in range(2))
            new, kept = densify_and_prune(there, positional_gradients, seen, 50, torch.Generator().manual_seed(0))
            for tensor in (view.image, loss, penalty, new.means, new.sh, kept):
                assert isinstance(tensor, OnCard)
            assert not isinstance(new.to("cpu").means, OnCard)

    @pytest.mark.skipif(gsplat_problem() is None, reason="gsplat can be used here")
    def test_it_is_said_why_it_cannot_be_used(self, ball, refused):
        with refused(ValueError, gsplat_problem() if gpu_problem() is None else "'cuda' cannot be used"):
            train_splats_steps(ball, device="cuda")
        assert splats_module.select_render_device("auto") == "cpu"


class TestTraining:
    def test_a_ball_is_learnt(self, ball):
        result = train_splats(ball, **QUICK)
        assert result.psnr_db > 28
        assert result.ssim > 0.93
        assert 100 < len(result.splats) <= 600
        assert result.history[-1].iteration == 150
        assert result.message == "All iterations are done."
        report = json.loads(json.dumps(result.report(), allow_nan=False))
        assert report["psnr_db"] == result.psnr_db
        assert report["settings"]["gaussians"] == 600
        assert {"psnr_db", "ssim", "n_gaussians", "fps", "history", "seconds"} <= set(report)

    def test_the_figures_are_those_of_other_views(self, ball):
        result = train_splats(ball, **QUICK)
        held_out = ball.held_out_cameras(3, 48)
        directions = ball.orbit_cameras(12, 48).directions @ held_out.directions.T
        assert directions.max() < 0.99, "no view held out is among those learnt from"
        images = np.stack([result.splats.render(c).numpy()[0] for c in held_out])
        references = np.stack(list(ball.reference_images(held_out)))
        assert result.psnr_db == pytest.approx(-10 * np.log10(np.square(images - references).mean()), abs=1e-3)

    def test_equal_seeds_give_equal_splats(self, ball):
        quick = QUICK | {"iterations": 110}
        a, b, c = (train_splats(ball, **quick, seed=seed).splats for seed in (1, 1, 2))
        torch.testing.assert_close(a.means, b.means, rtol=0, atol=0)
        assert a.means.shape != c.means.shape or not torch.equal(a.means, c.means)

    def test_harmonics_learn_a_light_that_turns_with_the_camera(self, ball):
        lit = Scene(ball.volume, ball.voxel_size, ball.transfer_function, shading=True)
        plain, turning = (train_splats(lit, **QUICK, sh_degree=degree).psnr_db for degree in (0, 3))
        assert turning > plain + 0.3

    @pytest.mark.parametrize("more", [{"solver": "sgd"}, {"orthographic": True}, {"densify": False}])
    def test_other_ways(self, ball, more):
        first = initialize_splats(ball, 300, ball.orbit_cameras(8, 48), 0, np.random.default_rng(0))
        held_out = ball.held_out_cameras(3, 48, orthographic=more.get("orthographic", False))
        with torch.no_grad():
            before = first.render(held_out).numpy()
        began = -10 * np.log10(np.square(before - np.stack(list(ball.reference_images(held_out)))).mean())
        assert train_splats(ball, **QUICK, **more).psnr_db > began + 1

    def test_stopping(self, ball):
        stop = []
        steps = train_splats_steps(ball, budget=Budget(stop=lambda: bool(stop)), **QUICK | {"iterations": 10_000})
        taken = []
        while True:
            try:
                taken.append(next(steps))
            except StopIteration as end:
                result = end.value
                break
            if taken[-1].iteration == 20 and taken[-1].stage == "training":
                stop.append(True)
        assert taken[-1].message == "Stopped."
        assert taken[-1].iteration == 21
        assert result.psnr_db > 10
        fractions = [step.fraction for step in taken]
        assert fractions == sorted(fractions)
        assert [step.has_result for step in taken] == [step.stage == "training" for step in taken]
        early = train_splats_steps(ball, budget=Budget(stop=lambda: True), **QUICK)
        assert next(early).splats is None
        with pytest.raises(ValueError, match="before there were any splats"):
            finish(early)

    def test_a_budget_limits_the_iterations_of_the_settings(self, ball):
        result = finish(train_splats_steps(ball, budget=Budget(iterations=5), **QUICK))
        assert result.history[-1].iteration == 5
        assert result.message == "All iterations are done."

    def test_a_time_limit(self, ball):
        result = train_splats(ball, **QUICK | {"iterations": None}, time_limit=3)
        assert result.message == "The time limit is reached."
        assert 2.5 < result.seconds < 6

    def test_a_phantom_by_presets(self):
        volume = anatomical_phantom(32)[0]
        for name in ("ct-bone", "gray"):
            scene = Scene(volume, np.ones(3), TransferFunction.from_preset(name, volume))
            assert train_splats(scene, **QUICK).psnr_db > 20

    def test_what_is_refused(self, ball, refused):
        with refused(MemoryError, "GiB are free"):
            train_splats_steps(ball, views=2000, held_out_views=200, image_size=2048)
        with refused(ValueError, "sh_degree"):
            train_splats_steps(ball, sh_degree=4)
        with refused(ValueError, "transparent"):
            train_splats(Scene(0 * ball.volume, ball.voxel_size, ball.transfer_function), **QUICK)
        holes = np.where(np.asarray(ball.volume) > 1.5, np.nan, ball.volume)
        with refused(ValueError, "NaN"):
            train_splats(Scene(holes, ball.voxel_size, ball.transfer_function), **QUICK)
