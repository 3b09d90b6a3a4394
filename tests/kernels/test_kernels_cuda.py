"""The GPU's kernels: on a GPU (`pytest -m gpu`), or small cases in numba's simulator (see test_cuda_without_gpu.py)."""

import gc

import pytest
import torch
from numba import config
from torch import Tensor

from helpers.kernels import SIGMAS, assert_gather, assert_splat, contributions, gaussians, noise
from napari_gsvolume import kernels as room
from napari_gsvolume.devices import gpu_problem
from napari_gsvolume.kernels import gather, gather_flat, n_monomials, reference, splat, splat_flat
from napari_gsvolume.kernels.constants import SUPPORT

SIMULATED = bool(config.ENABLE_CUDASIM)
DEVICE = "cpu" if SIMULATED else "cuda"
ON = {"kernels": "cuda", "device": DEVICE}
if not SIMULATED:
    pytestmark = [pytest.mark.gpu, pytest.mark.skipif(bool(gpu_problem()), reason=gpu_problem() or "")]

SMALL = [(33, 20), (5, 4, 20), (1, 9, 3)]
# The simulator takes a second for what the GPU does in a microsecond.
SHAPES = SMALL if SIMULATED else [*SMALL, (250, 310), (21, 50), (70, 64, 81), (3, 7, 32), (64, 64, 64)]


@pytest.fixture(autouse=True)
def _simulated(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the simulator the GPU's kernels take tensors of the CPU."""
    if SIMULATED:
        from napari_gsvolume.kernels import cuda

        monkeypatch.setattr(room, "_kernels", lambda device: cuda)


def on_device(*tensors: Tensor) -> list[Tensor]:
    return [t.to(DEVICE) for t in tensors]


class TestAgainstTheFormulas:
    @pytest.mark.parametrize("kind", SIGMAS)
    @pytest.mark.parametrize("shape", SHAPES, ids=str)
    def test_any_shape(self, shape: tuple[int, ...], kind: str) -> None:
        means, factors, coefficients = gaussians(shape, SIGMAS[kind], 4 if SIMULATED else 40)
        assert assert_splat(means, factors, coefficients, shape, **ON).any()
        assert assert_gather(means, factors, noise(shape), **ON).any()

    @pytest.mark.parametrize("shape", [(9, 11), (3, 4, 5)], ids=str)
    def test_each_monomial(self, shape: tuple[int, ...]) -> None:
        means, factors, _ = gaussians(shape, SIGMAS["anisotropic"], 2)
        for coefficients in torch.eye(n_monomials(len(shape))):
            assert assert_splat(means, factors, coefficients.expand(len(means), -1), shape, **ON).any()

    @pytest.mark.parametrize("sigma", [(0.1, 0.1, 40), (0.3, 30, 300)], ids=str)
    @pytest.mark.parametrize("shape", [(3, 200), (2, 3, 150)] if SIMULATED else [(150, 160), (60, 50, 24)], ids=str)
    def test_long_and_thin(self, shape: tuple[int, ...], sigma: tuple[float, ...]) -> None:
        """Far along such a Gaussian, its squared radius is a small difference of large numbers."""
        means, factors, coefficients = gaussians(shape, sigma, 4)
        assert assert_splat(means, factors, coefficients, shape, **ON).any()
        assert assert_gather(means, factors, noise(shape), **ON).any()

    @pytest.mark.parametrize("shape", [(12, 20), (3, 4, 20)], ids=str)
    def test_outside(self, shape: tuple[int, ...]) -> None:
        means, factors, coefficients = gaussians(shape, SIGMAS["anisotropic"], 3)
        for shift in (-1e9, 40.0):
            far = means + shift
            assert not splat(*on_device(far, factors, coefficients), shape).any()
            assert not gather(*on_device(far, factors, noise(shape))).any()
        at_the_corner = torch.full_like(means, -0.7)
        assert assert_splat(at_the_corner, factors, coefficients, shape, **ON).any()
        assert assert_gather(at_the_corner, factors, noise(shape), **ON).any()

    @pytest.mark.parametrize("axis", [0, 1, 2])
    def test_singular_factors_touch_nothing(self, axis: int) -> None:
        means, factors, coefficients = gaussians((4, 5, 18), SIGMAS["round"], 4)
        factors[2] = torch.eye(3)
        factors[2, axis, axis] = 0
        others = torch.arange(4) != 2
        values = splat(*on_device(means, factors, coefficients), (4, 5, 18))
        expected = splat(*on_device(means[others], factors[others], coefficients[others]), (4, 5, 18))
        assert torch.equal(values, expected)
        assert not gather(*on_device(means, factors, torch.ones(4, 5, 18)))[2].any()

    def test_more_than_a_batch_in_a_tile(self) -> None:
        shape = (3, 4, 10)
        means, factors, coefficients = gaussians(shape, (1, 2, 4), 150)
        assert assert_splat(means, factors, coefficients, shape, **ON).any()

    @pytest.mark.parametrize("shape", [(5, 6), (3, 5, 6)], ids=str)
    def test_none(self, shape: tuple[int, ...]) -> None:
        D = len(shape)
        none = on_device(torch.zeros(0, D), torch.zeros(0, D, D))
        assert torch.equal(splat(*none, torch.zeros(0, n_monomials(D), device=DEVICE), shape).cpu(), torch.zeros(shape))
        assert gather(*none, noise(shape).to(DEVICE)).shape == (0, n_monomials(D))
        assert not splat_flat(*none, torch.zeros(0, device=DEVICE), shape, 2).any()
        assert gather_flat(*none, noise(shape).to(DEVICE), 2).shape == (0,)

    @pytest.mark.parametrize("shape", [(21, 50), (3, 4, 20)], ids=str)
    def test_adjoint(self, shape: tuple[int, ...]) -> None:
        means, factors, coefficients = gaussians(shape, SIGMAS["anisotropic"], 6, seed=2)
        grid = noise(shape)
        left = (splat(*on_device(means, factors, coefficients), shape).cpu().double() * grid).sum()
        right = (gather(*on_device(means, factors, grid)).cpu().double() * coefficients).sum()
        monomials, e, on_cut = contributions(means, factors, shape, "cuda")
        size = torch.einsum(
            "m,mn,mnk,nk->", grid.double().abs().flatten(), 2e-6 * e + on_cut, monomials, coefficients.double().abs()
        )
        assert abs(left - right) <= size


class TestFlat:
    @pytest.mark.parametrize("support", [1.0, 4.5])
    @pytest.mark.parametrize("shape", [(9, 20), (3, 4, 20)], ids=str)
    def test_against_the_formulas(self, shape: tuple[int, ...], support: float) -> None:
        means, factors, coefficients = gaussians(shape, SIGMAS["anisotropic"], 6)
        values, grid = coefficients[:, 0].contiguous(), noise(shape)
        got = splat_flat(*on_device(means, factors, values), shape, support).cpu()
        torch.testing.assert_close(got.double(), reference.splat_flat(means, factors, values, shape, support))
        sums = gather_flat(*on_device(means, factors, grid), support).cpu()
        expected = reference.gather_flat(means, factors, grid, support)
        torch.testing.assert_close(sums.double(), expected, rtol=1e-5, atol=1e-4)

    def test_integers_are_exact(self) -> None:
        means, factors, _ = gaussians((5, 4, 20), SIGMAS["anisotropic"], 6)
        names = torch.arange(6) * (2**60 + 7)
        got = splat_flat(*on_device(means, factors, names), (5, 4, 20), 2).cpu().flatten()
        inside = reference.inside(reference.grid_points((5, 4, 20)), means.double(), factors.double(), 2)
        assert torch.equal(got, (inside * names).sum(1))


class TestLists:
    """The lists of a set of Gaussians are made once."""

    SHAPE = (4, 5, 18)

    def test_are_kept_and_dropped(self) -> None:
        from napari_gsvolume.kernels import cuda

        means, factors, coefficients = on_device(*gaussians(self.SHAPE, SIGMAS["round"], 4))
        before = len(cuda._remembered)
        splat(means, factors, coefficients, self.SHAPE)
        made = cuda._remembered[means]
        splat(means, factors, 2 * coefficients, self.SHAPE)
        gather(means, factors, noise(self.SHAPE).to(DEVICE))
        assert cuda._remembered[means] is made
        assert len(made._lists) == 1
        del means, made
        gc.collect()
        assert len(cuda._remembered) == before

    @pytest.mark.parametrize("which", [0, 1])
    def test_follow_changes_in_place(self, which: int) -> None:
        tensors = gaussians(self.SHAPE, SIGMAS["round"], 4)
        mine = on_device(*(t.clone() for t in tensors))
        splat(*mine, self.SHAPE)
        mine[which].mul_(0.8)
        tensors[which].mul_(0.8)
        values = splat(*mine, self.SHAPE)
        assert torch.equal(values, splat(*on_device(*tensors), self.SHAPE))

    def test_depend_on_shape_and_support(self) -> None:
        means, factors, coefficients = gaussians(self.SHAPE, SIGMAS["anisotropic"], 4)
        mine = on_device(means, factors, coefficients)
        for shape in (self.SHAPE, (9, 6, 7)):
            for support in (1.5, SUPPORT):
                got = splat(*mine, shape, support=support).cpu().double()
                expected = reference.splat(means, factors, coefficients, shape, support=support)
                torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


class TestNumbersThatAreNotFinite:
    SHAPE = (4, 5, 18)

    @pytest.mark.parametrize("bad", [float("nan"), float("inf")])
    @pytest.mark.parametrize("which", [0, 1])
    def test_in_means_and_factors_are_refused(self, which: int, bad: float) -> None:
        from napari_gsvolume.kernels import cuda

        inputs = on_device(*gaussians(self.SHAPE, SIGMAS["round"], 4))
        inputs[which].view(-1)[4] = bad
        with pytest.raises(ValueError, match="mean or factor is NaN or infinite"):
            cuda.splat(*inputs, self.SHAPE, SUPPORT)
        moments = cuda.gather(*inputs[:2], noise(self.SHAPE).to(DEVICE), SUPPORT)
        assert torch.isfinite(moments).all()
        assert not moments[4 // inputs[which][0].numel()].any()

    def test_in_coefficients_show(self) -> None:
        from napari_gsvolume.kernels import cuda

        means, factors, coefficients = on_device(*gaussians(self.SHAPE, SIGMAS["round"], 4))
        coefficients[1, 0] = float("nan")
        values = cuda.splat(means, factors, coefficients, self.SHAPE, SUPPORT)
        assert values.isnan().any()


@pytest.mark.skipif(SIMULATED, reason="on a GPU only")
class TestOnTheGPU:
    def test_sums_are_the_same_every_time(self) -> None:
        shape = (64, 70, 81)
        inputs = on_device(*gaussians(shape, (1, 2, 4), 3000))
        grid = noise(shape).to(DEVICE)
        values, moments = splat(*inputs, shape), gather(*inputs[:2], grid)
        for _ in range(3):
            again = [t.clone() for t in inputs]
            assert torch.equal(splat(*again, shape), values)
            assert torch.equal(gather(*again[:2], grid), moments)

    def test_tensors_of_two_devices(self) -> None:
        means, factors, coefficients = gaussians((4, 5, 18), SIGMAS["round"], 4)
        with pytest.raises(ValueError, match="on one device; got cuda:0, cuda:0, cpu"):
            splat(means.cuda(), factors.cuda(), coefficients, (4, 5, 18))

    def test_another_stream(self) -> None:
        shape = (64, 64, 64)
        tensors = gaussians(shape, (1, 2, 4), 500)
        expected = splat(*on_device(*tensors), shape)
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            got = splat(*on_device(*tensors), shape)
        stream.synchronize()
        assert torch.equal(got, expected)

    def test_memory_comes_back(self) -> None:
        shape = (64, 64, 64)
        inputs = on_device(*gaussians(shape, (1, 2, 4), 500))
        gc.collect()
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        for _ in range(3):
            again = [t.clone() for t in inputs]
            splat(*again, shape)
            del again
        gc.collect()
        assert torch.cuda.memory_allocated() == before
