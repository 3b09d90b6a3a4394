import itertools
from concurrent.futures import ThreadPoolExecutor

import numba
import numpy as np
import pytest
import torch
from torch import Tensor

from helpers.kernels import SIGMAS, TOLERANCE, assert_gather, assert_splat, contributions, gaussians, noise
from napari_gsvolume.kernels import gather, n_monomials, splat
from napari_gsvolume.kernels.constants import SUPPORT

SHAPES = [
    *[(1, 1), (9, 1), (1, 20), (13, 15), (8, 16), (7, 17), (21, 50)],
    *[(1, 1, 1), (9, 7, 1), (8, 1, 15), (1, 8, 16), (4, 5, 17), (5, 4, 31), (3, 7, 32), (7, 6, 33), (9, 8, 7)],
]


class TestAgainstTheFormulas:
    @pytest.mark.parametrize("kind", SIGMAS)
    @pytest.mark.parametrize("shape", SHAPES, ids=str)
    def test_any_shape(self, shape: tuple[int, ...], kind: str) -> None:
        means, factors, coefficients = gaussians(shape, SIGMAS[kind])
        assert assert_splat(means, factors, coefficients, shape).any()
        assert assert_gather(means, factors, noise(shape)).any()

    @pytest.mark.parametrize("shape", [(20, 18), (8, 9, 18)], ids=str)
    def test_each_monomial(self, shape: tuple[int, ...]) -> None:
        means, factors, _ = gaussians(shape, SIGMAS["anisotropic"])
        for coefficients in torch.eye(n_monomials(len(shape))):
            assert assert_splat(means, factors, coefficients.expand(len(means), -1), shape).any()

    @pytest.mark.parametrize("shape", [(150, 160), (60, 50, 24)], ids=str)
    @pytest.mark.parametrize("sigma", [(0.1, 0.1, 40), (0.3, 30, 300)], ids=str)
    def test_long_and_thin(self, shape: tuple[int, ...], sigma: tuple[float, ...]) -> None:
        """Far along such a Gaussian, its squared radius is a small difference of large numbers."""
        means, factors, coefficients = gaussians(shape, sigma)
        assert assert_splat(means, factors, coefficients, shape).any()
        assert assert_gather(means, factors, noise(shape)).any()

    @pytest.mark.parametrize("shape", [(12, 20), (6, 9, 20)], ids=str)
    def test_partly_outside(self, shape: tuple[int, ...]) -> None:
        _, factors, coefficients = gaussians(shape, SIGMAS["anisotropic"], 5)
        size, reach = torch.tensor(shape), torch.linspace(0.3, 0.8, len(factors))[:, None]  # 0.5 is at the faces
        for way in itertools.product((-1, 0, 1), repeat=len(shape)):
            means = (size - 1) / 2 + reach * size * torch.tensor(way)
            assert assert_splat(means, factors, coefficients, shape).any()
            assert assert_gather(means, factors, noise(shape)).any()

    @pytest.mark.parametrize("shape", [(12, 20), (6, 9, 20)], ids=str)
    @pytest.mark.parametrize("distance", [-1e9, -1000, -60, 60, 1000, 1e9])
    def test_out_of_reach(self, shape: tuple[int, ...], distance: float) -> None:
        means, factors, coefficients = gaussians(shape, SIGMAS["anisotropic"])
        for axis in range(len(shape)):
            far = means.clone()
            far[:, axis] += distance
            assert not splat(far, factors, coefficients, shape).any()
            assert not gather(far, factors, noise(shape)).any()

    @pytest.mark.parametrize("shape", [(20, 40), (12, 13, 40)], ids=str)
    def test_support_that_ends_on_voxels(self, shape: tuple[int, ...]) -> None:
        means = torch.tensor(shape).div(2).floor().expand(6, -1)
        factors = torch.eye(len(shape)) * (SUPPORT / torch.arange(1, 7))[:, None, None]
        coefficients = torch.ones(6, n_monomials(len(shape)))
        assert_splat(means, factors, coefficients, shape)
        assert_gather(means, factors, noise(shape))

    @pytest.mark.parametrize("x", np.arange(14, 19, 0.37))
    @pytest.mark.parametrize("width", [18, 31, 32, 33, 48])
    def test_rows_are_cut_anywhere(self, width: int, x: float) -> None:
        for sigma in (0.4, 2, 4.7, 5, 10):
            means = torch.tensor([[1.2, x]], dtype=torch.float32)
            assert_splat(means, torch.eye(2)[None] / sigma, torch.ones(1, 6), (3, width))

    @pytest.mark.parametrize("factor", [np.zeros((3, 3)), np.diag([0, 1, 1]), np.diag([1, 0, 1]), np.diag([1, 1, 0])])
    def test_singular_factors_touch_nothing(self, factor: np.ndarray) -> None:
        means, factors, coefficients = gaussians((8, 9, 18), SIGMAS["round"])
        factors[3] = torch.from_numpy(factor)
        others = torch.arange(len(means)) != 3
        values = splat(means, factors, coefficients, (8, 9, 18))
        assert torch.equal(values, splat(means[others], factors[others], coefficients[others], (8, 9, 18)))
        assert not gather(means, factors, torch.ones(8, 9, 18))[3].any()

    def test_all_kinds_at_once(self) -> None:
        shape = (20, 19, 35)
        kinds = [gaussians(shape, sigma, 6, seed) for seed, sigma in enumerate(SIGMAS.values())]
        means, factors, coefficients = (torch.cat(parts) for parts in zip(*kinds, strict=True))
        assert_splat(means, factors, coefficients, shape)
        assert_gather(means, factors, noise(shape))

    @pytest.mark.parametrize("shape", [(5, 6), (3, 5, 6)], ids=str)
    def test_none(self, shape: tuple[int, ...]) -> None:
        D = len(shape)
        values = splat(torch.zeros(0, D), torch.zeros(0, D, D), torch.zeros(0, n_monomials(D)), shape)
        assert torch.equal(values, torch.zeros(shape))
        assert gather(torch.zeros(0, D), torch.zeros(0, D, D), noise(shape)).shape == (0, n_monomials(D))

    @pytest.mark.parametrize("shape", [(5, 6), (3, 5, 6)], ids=str)
    def test_one_at_a_voxel(self, shape: tuple[int, ...]) -> None:
        D, place = len(shape), (1, 2, 3)[-len(shape) :]
        coefficients = torch.zeros(1, n_monomials(D))
        coefficients[0, 0] = 7
        values = splat(torch.tensor([place]).float(), 100 * torch.eye(D)[None], coefficients, shape)
        expected = torch.zeros(shape)
        expected[place] = 7
        torch.testing.assert_close(values, expected, rtol=TOLERANCE, atol=0)


class TestTranspose:
    @pytest.mark.parametrize("kind", SIGMAS)
    @pytest.mark.parametrize("shape", [(21, 50), (1, 20), (9, 8, 33), (5, 4, 7)], ids=str)
    def test_adjoint(self, shape: tuple[int, ...], kind: str) -> None:
        means, factors, coefficients = gaussians(shape, SIGMAS[kind], 40, seed=2)
        grid = noise(shape)
        left = (splat(means, factors, coefficients, shape).double() * grid).sum()
        right = (gather(means, factors, grid).double() * coefficients).sum()
        monomials, e, _ = contributions(means, factors, shape)
        size = torch.einsum("m,mn,mnk,nk->", grid.double().abs().flatten(), e, monomials, coefficients.double().abs())
        # The two evaluate the same Gaussians, to the last bit: float32 sums are all they differ by.
        assert abs(left - right) <= 1e-6 * size


class TestDeterminism:
    @pytest.fixture
    def crowd(self) -> tuple[tuple[Tensor, Tensor, Tensor], tuple[int, ...]]:
        shape = (31, 20, 40)
        return gaussians(shape, (1, 2, 4), 500), shape

    def test_threads_do_not_change_a_bit(self, crowd: tuple[tuple[Tensor, Tensor, Tensor], tuple[int, ...]]) -> None:
        (means, factors, coefficients), shape = crowd
        before, most = numba.get_num_threads(), numba.config.NUMBA_NUM_THREADS
        results = []
        try:
            for threads in {1, max(most // 2, 1), most}:
                numba.set_num_threads(threads)
                results.append((splat(means, factors, coefficients, shape), gather(means, factors, noise(shape))))
        finally:
            numba.set_num_threads(before)
        results.append((splat(means, factors, coefficients, shape), gather(means, factors, noise(shape))))
        for values, moments in results[1:]:
            assert torch.equal(values, results[0][0])
            assert torch.equal(moments, results[0][1])

    def test_calls_from_several_threads(self, crowd: tuple[tuple[Tensor, Tensor, Tensor], tuple[int, ...]]) -> None:
        gaussians_, shape = crowd
        expected = splat(*gaussians_, shape)
        with ThreadPoolExecutor(4) as pool:
            for values in pool.map(lambda _: splat(*gaussians_, shape), range(8)):
                assert torch.equal(values, expected)


class TestInputs:
    SHAPE = (6, 7, 18)

    @pytest.fixture
    def inputs(self) -> tuple[Tensor, Tensor, Tensor]:
        return gaussians(self.SHAPE, SIGMAS["anisotropic"])

    def test_memory_layout_and_gradients_do_not_matter(self, inputs: tuple[Tensor, Tensor, Tensor]) -> None:
        grid = noise(self.SHAPE)
        strided = [torch.stack([t, t], -1)[..., 0].requires_grad_() for t in inputs]
        assert not strided[0].is_contiguous()
        assert torch.equal(splat(*strided, list(self.SHAPE)), splat(*inputs, self.SHAPE))
        transposed = grid.permute(2, 1, 0).contiguous().permute(2, 1, 0)
        assert torch.equal(gather(*strided[:2], transposed), gather(*inputs[:2], grid))

    @pytest.mark.filterwarnings("ignore:The given NumPy array is not writ")
    def test_read_only_memory(self, inputs: tuple[Tensor, Tensor, Tensor]) -> None:
        arrays = [t.numpy().copy() for t in (*inputs, noise(self.SHAPE))]
        for array in arrays:
            array.setflags(write=False)
        means, factors, coefficients, grid = (torch.from_numpy(a) for a in arrays)
        assert torch.equal(splat(means, factors, coefficients, self.SHAPE), splat(*inputs, self.SHAPE))
        assert torch.equal(gather(means, factors, grid), gather(*inputs[:2], noise(self.SHAPE)))

    def test_double_precision_is_rounded(self, inputs: tuple[Tensor, Tensor, Tensor]) -> None:
        doubles = [t.double() for t in inputs]
        assert torch.equal(splat(*doubles, self.SHAPE), splat(*inputs, self.SHAPE))
        grid = noise(self.SHAPE)
        assert torch.equal(gather(*doubles[:2], grid.double()), gather(*inputs[:2], grid))

    def test_inputs_are_left_alone(self, inputs: tuple[Tensor, Tensor, Tensor]) -> None:
        grid = noise(self.SHAPE)
        before = [t.clone() for t in (*inputs, grid)]
        splat(*inputs, self.SHAPE)
        gather(*inputs[:2], grid)
        assert all(torch.equal(*pair) for pair in zip(before, (*inputs, grid), strict=True))

    @pytest.mark.parametrize(
        ("means", "factors", "coefficients", "shape", "message"),
        [
            ((4, 3), (4, 3, 3), (4, 10), (5,), "2 or 3 axes; this one has 1"),
            ((4, 4), (4, 4, 4), (4, 15), (5, 5, 5, 5), "2 or 3 axes; this one has 4"),
            ((4, 3), (4, 3, 3), (4, 10), (5, 5), r"2D grid .* got \(4, 3\) and \(4, 3, 3\)"),
            ((4, 2), (4, 2, 2), (4, 6), (5, 5, 5), r"3D grid .* got \(4, 2\) and \(4, 2, 2\)"),
            ((4, 3), (5, 3, 3), (4, 10), (5, 5, 5), r"got \(4, 3\) and \(5, 3, 3\)"),
            ((4, 3), (4, 3), (4, 10), (5, 5, 5), r"got \(4, 3\) and \(4, 3\)"),
            ((4, 3), (4, 3, 3), (4, 6), (5, 5, 5), r"coefficients of shape \(4, 10\); got \(4, 6\)"),
            ((4, 3), (4, 3, 3), (3, 10), (5, 5, 5), r"coefficients of shape \(4, 10\); got \(3, 10\)"),
            ((4, 3), (4, 3, 3), (4,), (5, 5, 5), r"coefficients of shape \(4, 10\); got \(4,\)"),
        ],
    )
    def test_shapes_that_do_not_fit(
        self,
        means: tuple[int, ...],
        factors: tuple[int, ...],
        coefficients: tuple[int, ...],
        shape: tuple[int, ...],
        message: str,
    ) -> None:
        with pytest.raises(ValueError, match=message):
            splat(torch.ones(means), torch.ones(factors), torch.ones(coefficients), shape)
        if "coefficients" not in message:
            with pytest.raises(ValueError, match=message):
                gather(torch.ones(means), torch.ones(factors), torch.ones(shape))

    @pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
    @pytest.mark.parametrize("which", [0, 1, 2])
    def test_numbers_that_are_not_finite(self, inputs: tuple[Tensor, Tensor, Tensor], which: int, bad: float) -> None:
        inputs[which].view(-1)[5] = bad
        with pytest.raises(ValueError, match="coefficient is NaN" if which == 2 else "mean or factor is NaN"):
            splat(*inputs, self.SHAPE)
        if which < 2:
            with pytest.raises(ValueError, match="mean or factor is NaN"):
                gather(*inputs[:2], noise(self.SHAPE))
