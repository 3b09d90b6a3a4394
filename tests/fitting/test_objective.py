"""The whole objective in fits, the ways of choosing N, and studies of both."""

import csv
import io

import numpy as np
import pytest
import torch

import napari_gsvolume as gsv
from helpers.long_runs import collect
from napari_gsvolume import ablation
from napari_gsvolume.fitting.penalties import mean_overlap, spacings
from napari_gsvolume.fitting.settings import FitSettings
from napari_gsvolume.kernels.reference import basis, grid_points
from napari_gsvolume.operators.gaussian_sum import Gaussians
from napari_gsvolume.progress import Budget, finish, mapped

WEIGHTS = {"sparsity": 2e-3, "overlap": 1e-3, "smoothness": 1e-4, "spacing": 1e-3}


@pytest.fixture(scope="module")
def volume():
    return gsv.phantoms.anatomical_phantom(28)[0]


@pytest.fixture(scope="module")
def free(volume):
    return gsv.fit(volume, gaussians=80, iterations=40)


def bare(result) -> Gaussians:
    g = result.gaussians
    return Gaussians(g.means, g.factors, g.weights)


class TestPenalties:
    @pytest.mark.parametrize("solver", ["gauss-newton", "adam", "sgd"])
    def test_every_term_is_in_the_history_and_adds_up(self, volume, solver):
        weights = {f"{name}_weight": value for name, value in WEIGHTS.items()}
        result = gsv.fit(volume, gaussians=40, iterations=8, solver=solver, **weights)
        for point in result.history[2:]:
            assert set(point.terms) == {"data", *WEIGHTS}
            assert all(np.isfinite(value) and value >= 0 for value in point.terms.values())
            assert point.psnr_db == pytest.approx(-10 * np.log10(point.terms["data"]), abs=1e-6)
        assert result.report()["terms"] == result.terms

    def test_sparsity_takes_gaussians_away_and_the_right_ones(self, volume, free):
        sparse = gsv.fit(volume, gaussians=80, iterations=40, sparsity_weight=1e-2)
        n = sparse.n_gaussians
        assert n < 0.8 * free.n_gaussians
        assert (sparse.gaussians.weights != 0).all()
        again = gsv.fit(volume, gaussians=n, iterations=40)
        assert sparse.psnr_db > again.psnr_db - 0.3

    def test_sparsity_means_the_same_for_another_range(self, volume):
        counts = [
            gsv.fit(scaled, gaussians=80, iterations=20, sparsity_weight=6e-3).n_gaussians
            for scaled in (volume, volume * 0.001 + 3)
        ]
        assert abs(counts[0] - counts[1]) <= 4  # float rounding grows in the course of a fit

    def test_overlap_lowers_the_overlap(self, volume, free):
        apart = gsv.fit(volume, gaussians=80, iterations=40, overlap_weight=1e-3)
        assert mean_overlap(bare(apart)) < 0.6 * mean_overlap(bare(free))

    def test_smoothness_thickens_the_thinnest(self, volume, free):
        smooth = gsv.fit(volume, gaussians=80, iterations=40, smoothness_weight=1e-4)

        def largest(result):
            return float((result.gaussians.factors**2).sum((1, 2)).max())

        assert largest(smooth) < 0.5 * largest(free)

    @pytest.mark.parametrize("target", [0.6, 1.5])
    def test_spacing_goes_where_it_is_asked_to(self, volume, free, target):
        asked = gsv.fit(volume, gaussians=80, iterations=40, spacing_weight=1e-2, spacing=target)

        def deviation(result):
            return float((spacings(bare(result), 2.0) - target).abs().median())

        assert deviation(asked) < 0.6 * deviation(free)


class TestDataTerms:
    @pytest.mark.parametrize("term", ["neighbourhood", "ellipsoid"])
    @pytest.mark.parametrize("solver", ["gauss-newton", "adam"])
    def test_a_normalised_fit_gets_better_and_its_gaussians_are_a_volume(self, volume, term, solver):
        iterations = 25 if solver == "gauss-newton" else 60
        result = gsv.fit(
            volume, gaussians=80, iterations=iterations, data_term=term, normalised=True, rounds=1, solver=solver
        )
        assert result.psnr_db > result.history[2].psnr_db + 0.5
        span = float(np.ptp(volume))
        psnr = 20 * np.log10(span / np.sqrt(((result.reconstruction - volume) ** 2).mean()))
        assert result.psnr_db == pytest.approx(psnr, abs=0.01)
        # The weights of the sum are those of the least squares fit, solved here densely.
        g = result.gaussians
        _, e = basis(grid_points(volume.shape), g.means.double(), g.factors.double())
        target = torch.from_numpy(volume.ravel()).double()[:, None] - g.background
        # A Gaussian may touch no voxel: the default driver of torch is wrong for such a matrix (6 dB worse).
        solved = torch.linalg.lstsq(e, target, driver="gelsd").solution
        best = float((target - e @ solved).square().mean().sqrt())
        assert result.with_gaussians(g, volume).psnr_db == pytest.approx(20 * np.log10(span / best), abs=0.02)

    @pytest.mark.parametrize(
        ("others", "word"),
        [
            ({"sparsity_weight": 1e-3}, "sparsity"),
            ({"batch_fraction": 0.5}, "batch"),
            ({"ratio": 100}, "file"),
            ({"growth": "mcmc"}, "residual"),
        ],
    )
    def test_what_does_not_go_together_is_said(self, volume, others, word):
        with pytest.raises(ValueError, match=word) as caught:
            gsv.fit(volume, data_term="ellipsoid", **others)
        assert str(caught.value).count("\n") == 0


class TestPopulations:
    @pytest.mark.parametrize("name", ["gradient", "saddle", "mcmc", "merge"])
    def test_every_strategy_reaches_its_count_and_a_like_quality(self, volume, free, name):
        result = gsv.fit(volume, gaussians=80, iterations=40, growth=name)
        assert 0.9 * 80 <= result.n_gaussians <= 80
        assert result.psnr_db > free.psnr_db - 3


class TestStudies:
    @pytest.mark.parametrize("study", ablation.STUDIES)
    def test_every_case_is_measured(self, study):
        tiny = gsv.phantoms.vessel_phantom(16)[0]
        steps, results = collect(ablation.ablate_steps(tiny, study, gaussians=12, iterations=4))
        assert [step.result for step in steps if step.result is not None] == results
        assert [result.case for result in results] == list(ablation.cases(study))
        assert [step.fraction for step in steps] == sorted(step.fraction for step in steps)
        for result in results:
            assert 0 < result.n_gaussians <= 12
            assert result.n_bytes > 0
            assert result.artefacts.shape == tiny.shape
        rows = list(csv.DictReader(io.StringIO(ablation.to_csv(results))))
        assert [float(row["psnr_db"]) for row in rows] == [result.psnr_db for result in results]
        assert ablation.to_markdown(results).count("\n") == len(results) + 2
        assert len(ablation.plot(results, study).axes) == 2

    def test_stopping_leaves_out_the_case_under_way(self):
        tiny = gsv.phantoms.vessel_phantom(16)[0]
        seen = []
        budget = Budget(stop=lambda: len(seen) > 8)
        steps = ablation.ablate_steps(tiny, "support", budget=budget, gaussians=12, iterations=4)
        results = finish(mapped(steps, lambda step: seen.append(step) or step))
        assert results == [step.result for step in seen if step.result is not None]
        assert 0 < len(results) < 5

    def test_there_is_no_such_study(self):
        with pytest.raises(ValueError, match="choose spacing, penalties"):
            ablation.ablate_steps(np.eye(9), "colour")

    def test_settings_of_cases_are_settings(self):
        for study in ablation.STUDIES:
            for own in ablation.cases(study).values():
                FitSettings(**own)
