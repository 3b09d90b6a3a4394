"""The SVD of what comes in blocks, and the figures of spectra, against dense float64."""

import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.dense_svd import assert_is_svd
from napari_gsvolume import explain
from napari_gsvolume.explain.decomposition.metrics import participation_ratio, rank_me, redundant_heads, stable_rank
from napari_gsvolume.explain.decomposition.streaming_svd import StreamingSVD, compute_streaming_svd


def matrix(rows, features, decades=2.0, seed=0, offset=0.0):
    rng = np.random.default_rng(seed)
    U = np.linalg.qr(rng.normal(size=(rows, min(rows, features))))[0]
    V = np.linalg.qr(rng.normal(size=(features, min(rows, features))))[0]
    return (U * np.logspace(0, -decades, U.shape[1])) @ V.T * rows**0.5 + offset


@settings(max_examples=25, deadline=None)
@given(
    rows=st.integers(1, 200),
    features=st.integers(1, 40),
    parts=st.integers(1, 7),
    centre=st.booleans(),
    seed=st.integers(0, 99),
)
def test_blocks_of_any_size_are_one_matrix(rows, features, parts, centre, seed) -> None:
    A = matrix(rows, features, seed=seed, offset=2.0)
    blocks = [b for b in np.array_split(A, parts) if len(b)]
    d = compute_streaming_svd(blocks, 3, centre=centre)
    centred = A - A.mean(0) if centre else A
    s = np.linalg.svd(centred, compute_uv=False)
    present = s[s > 1e-9 * np.abs(A).max()]
    assert d.k <= min(3, rows, features)
    np.testing.assert_allclose(d.values[: len(present)], present[:3], rtol=1e-8)
    np.testing.assert_allclose(d.total, np.square(centred).sum(), rtol=1e-9, atol=1e-18 * np.square(A).sum())
    if centre:
        np.testing.assert_allclose(d.mean, A.mean(0), atol=1e-12 * np.abs(A).max())


@pytest.mark.parametrize("centre", [False, True])
def test_small_values_keep_their_digits(centre) -> None:
    """The Gram matrix would have lost those below 1e-8 of the first."""
    A = matrix(30_000, 12, decades=9)
    assert_is_svd(compute_streaming_svd(np.array_split(A, 9), 12), A, 1e-6)
    B = A + 3.0
    assert_is_svd(compute_streaming_svd(np.array_split(B, 9), 6, centre=True), B - B.mean(0), 1e-6)


def test_fewer_modes_than_asked_for() -> None:
    A = matrix(50, 8)
    assert compute_streaming_svd([A], 20).k == 8
    assert compute_streaming_svd([A[:, :3] @ A[:3]], 20).k == 3
    d = compute_streaming_svd([np.zeros((5, 4))], 2)
    assert (d.k, d.total, d.scores.shape) == (0, 0.0, (5, 0))


def test_more_features_than_are_exact_says_by_how_much_it_may_be_wrong() -> None:
    A = matrix(900, 300, decades=6)
    exact = np.linalg.svd(A, compute_uv=False)[:4]
    d = compute_streaming_svd(np.array_split(A, 23), 4, exact=100)
    assert 0 < d.missed < 0.05 * exact[0] ** 2
    assert (d.values <= exact * (1 + 1e-12)).all()
    assert (exact**2 - d.values**2 <= d.missed).all()
    assert d.total == pytest.approx(np.square(A).sum())
    assert not d.complete
    few = compute_streaming_svd(np.array_split(A[:60], 5), 4, exact=100)
    assert few.missed == 0
    assert_is_svd(few, A[:60])


def test_blocks_may_be_written_into_afterwards() -> None:
    A = matrix(500, 10)
    svd, block = StreamingSVD(10), np.empty((50, 10))
    for part in np.split(A, 10):
        block[:] = part
        svd.update(block)
    np.testing.assert_allclose(svd.result()[0], np.linalg.svd(A, compute_uv=False))


def test_memory_does_not_grow_with_rows() -> None:
    def peak(rows):
        svd, rng = StreamingSVD(4), np.random.default_rng(0)
        tracemalloc.start()
        for _ in range(rows // 5000):
            svd.update(rng.standard_normal((5000, 32), dtype=np.float32))
        svd.result()
        high = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert svd.rows == rows
        return high

    assert peak(400_000) < 1.1 * peak(50_000)
    assert peak(400_000) < 400_000 * 32 * 4 / 5


def test_what_is_refused(refused) -> None:
    A = matrix(9, 4)
    with refused(ValueError, "1 or more", "0"):
        StreamingSVD(0)
    svd = StreamingSVD(2)
    with refused(ValueError, "no samples"):
        svd.result()
    svd.update(A)
    for block, words in ((A[:, :3], "3 features"), (A[0], "matrix"), (A * np.nan, "NaN"), (A * 1j, "complex")):
        with refused(ValueError, words):
            svd.update(block)
    with refused(ValueError, "twice"):
        compute_streaming_svd(iter([A]), 2)
    times = iter([1.0, 5.0])
    with refused(ValueError, "second pass"):
        compute_streaming_svd(lambda: [A * next(times)], 2)


def test_importing_costs_nothing() -> None:
    code = "import sys, napari_gsvolume.explain as e; assert 'torch' not in sys.modules and 'activations' in dir(e)"
    subprocess.run([sys.executable, "-c", code], check=True)


class TestMetrics:
    def test_ranks_of_known_spectra(self) -> None:
        for function in (explain.effective_rank, stable_rank, participation_ratio, rank_me):
            np.testing.assert_allclose(function([[3.0] * 7, [3.0] + [0] * 6, [0.0] * 7]), [7, 1, 0], rtol=1e-4)
        s = np.array([2.0, 1.0])
        assert participation_ratio(s) == pytest.approx(25 / 17)
        p = s / 3
        assert rank_me(s) == pytest.approx(np.exp(-(p * np.log(p)).sum()), rel=1e-6)

    def test_the_participation_ratio_is_that_of_the_covariance(self) -> None:
        A = matrix(300, 9)
        A = A - A.mean(0)
        C = np.cov(A.T)
        expected = np.trace(C) ** 2 / np.trace(C @ C)
        assert participation_ratio(np.linalg.svd(A, compute_uv=False)) == pytest.approx(expected)

    @pytest.mark.parametrize("debiased", [False, True])
    def test_cka_is_that_of_kernels(self, debiased) -> None:
        X, Y = matrix(40, 6), matrix(40, 9, seed=1) + np.pad(matrix(40, 6), ((0, 0), (0, 3)))
        n, one = 40, np.ones(40)

        def hsic(a, b):
            K, L = a @ a.T, b @ b.T
            if not debiased:
                H = np.eye(n) - 1 / n
                return np.trace(K @ H @ L @ H)
            K, L = K - np.diag(np.diag(K)), L - np.diag(np.diag(L))
            return (
                np.trace(K @ L)
                + (one @ K @ one) * (one @ L @ one) / ((n - 1) * (n - 2))
                - 2 / (n - 2) * (one @ K @ L @ one)
            )

        expected = hsic(X, Y) / np.sqrt(hsic(X, X) * hsic(Y, Y))
        assert explain.linear_cka(X, Y, debiased=debiased) == pytest.approx(expected)
        turned = np.linalg.qr(np.random.default_rng(2).normal(size=(6, 6)))[0]
        assert explain.linear_cka(X, 3 * X @ turned + 5, debiased=debiased) == pytest.approx(1)

    def test_cka_of_independent_samples(self, refused) -> None:
        X, Y = np.random.default_rng(0).normal(size=(2, 60, 200))
        assert explain.linear_cka(X, Y) > 0.6
        assert abs(explain.linear_cka(X, Y, debiased=True)) < 0.1
        for a, b, words in ((X, Y[:5], "shapes"), (X, np.ones((60, 3)), "same for all")):
            with refused(ValueError, words):
                explain.linear_cka(a, b)

    def test_redundant_heads(self) -> None:
        S = np.array([[1, 0.96, 0.2], [0.96, 1, 0.99], [0.2, 0.99, 1]])
        assert redundant_heads(S) == [(1, 2, 0.99), (0, 1, 0.96)]
        assert redundant_heads(S, 0.97) == [(1, 2, 0.99)]
