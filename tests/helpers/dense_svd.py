"""Dense singular value decompositions to compare with."""

import numpy as np
import pytest


def assert_is_svd(d, A, tolerance=1e-10):
    """Compare a decomposition with LAPACK's."""
    _, s, Vh = np.linalg.svd(A, full_matrices=False)
    k = d.k
    np.testing.assert_allclose(d.values, s[:k], rtol=tolerance)
    assert np.abs(np.abs((d.concepts * Vh[:k].T).sum(0)) - 1).max() < 1e-9
    np.testing.assert_allclose(d.scores * d.values, A @ d.concepts, atol=1e-6 * s[0])
    np.testing.assert_allclose(d.concepts.T @ d.concepts, np.eye(k), atol=1e-12)
    np.testing.assert_allclose(d.scores.T @ d.scores, np.eye(k), atol=1e-4)
    assert d.total == pytest.approx(np.square(A).sum(), rel=tolerance)
    np.testing.assert_allclose(d.energy, np.cumsum(s**2)[:k] / np.square(s).sum(), rtol=tolerance)
