"""The arithmetic of small matrices, against torch.linalg."""

import pytest
import torch

from napari_gsvolume.operators.small_matrices import cofactors, determinant, exponential, inverse, orthogonalised

NDIMS = pytest.mark.parametrize("ndim", [2, 3])


def some(ndim, spread=1.0, dtype=torch.float64):
    """Matrices with singular values from 1 to exp(spread)."""
    random = torch.Generator().manual_seed(ndim)
    U, V = (torch.linalg.qr(torch.randn(500, ndim, ndim, generator=random, dtype=dtype))[0] for _ in range(2))
    return U * torch.exp(spread * torch.rand(500, 1, ndim, generator=random, dtype=dtype)) @ V


@NDIMS
class TestAgainstLinalg:
    def test_determinant_cofactors_and_inverse(self, ndim):
        M = some(ndim)
        expected = torch.linalg.inv(M)
        torch.testing.assert_close(determinant(M), torch.linalg.det(M), rtol=1e-12, atol=0)
        torch.testing.assert_close(inverse(M), expected, rtol=0, atol=1e-12)
        torch.testing.assert_close(cofactors(M), torch.linalg.det(M)[:, None, None] * expected.mT, rtol=0, atol=1e-11)

    def test_singular_ones_have_no_inverse(self, ndim):
        assert not inverse(torch.zeros(1, ndim, ndim)).isfinite().any()

    # The steps of Gauss-Newton are of norm 1/4 at most, Adam's angles much less at the usual rates.
    @pytest.mark.parametrize(("norm", "error"), [(0.0, 0.0), (0.25, 5e-12), (1.0, 1e-7), (2.0, 1e-5)])
    @pytest.mark.parametrize("sign", [1, -1], ids=["symmetric", "antisymmetric"])
    def test_exponential(self, ndim, norm, error, sign):
        X = some(ndim)
        X = X + sign * X.mT
        X *= norm / torch.linalg.matrix_norm(X, 2)[:, None, None]
        expected = torch.linalg.matrix_exp(X)
        off = torch.linalg.matrix_norm(exponential(X) - expected) / torch.linalg.matrix_norm(expected)
        assert off.max() <= error + 1e-15

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
    @pytest.mark.parametrize("spread", [0.0, 1e-6, 1.0, 8.0])
    def test_singular_values(self, ndim, spread, dtype):
        M, tolerance = some(ndim, spread, dtype), 1e3 * torch.finfo(dtype).eps
        columns, V = orthogonalised(M)
        s = columns.norm(dim=1)
        one = torch.eye(ndim, dtype=dtype).expand_as(M)
        torch.testing.assert_close(
            columns @ V.mT / M.norm(dim=(1, 2), keepdim=True),
            M / M.norm(dim=(1, 2), keepdim=True),
            rtol=0,
            atol=tolerance,
        )
        torch.testing.assert_close(V.mT @ V, one, rtol=0, atol=tolerance)
        unit = columns / s[:, None]
        torch.testing.assert_close(unit.mT @ unit, one, rtol=0, atol=30 * tolerance)
        expected = torch.linalg.svdvals(M.double())
        torch.testing.assert_close(s.sort(descending=True)[0].double(), expected, rtol=30 * tolerance, atol=0)

    @pytest.mark.parametrize("value", [0.0, 1.0])
    def test_diagonal_ones_are_left_alone(self, ndim, value):
        M = value * torch.eye(ndim)[None]
        columns, V = orthogonalised(M)
        torch.testing.assert_close(columns, M, rtol=0, atol=0)
        torch.testing.assert_close(V, torch.eye(ndim)[None], rtol=0, atol=0)
