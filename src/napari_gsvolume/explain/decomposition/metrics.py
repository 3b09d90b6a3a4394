"""Metrics of spectra and of representations: ranks, similarity of layers, redundancy of heads."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from ...errors import InputError
from ...svd.decomposition import effective_rank, stable_rank
from ...types import Float64Array

__all__ = ["effective_rank", "linear_cka", "participation_ratio", "rank_me", "redundant_heads", "stable_rank"]


def participation_ratio(values: ArrayLike) -> Float64Array:
    """Return the participation ratio ``sum(s^2)^2 / sum(s^4)``, (...), of singular values (..., r).

    Dimension of a cloud of samples by the eigenvalues s^2 of its covariance [1]_: r for r equal values, 1 for a single
    one, 0 if all are 0.

    References
    ----------
    .. [1] P. Gao et al., "A theory of multineuronal dimensionality, dynamics and measurement", bioRxiv 2017.

    Examples
    --------
    >>> from napari_gsvolume.explain.decomposition.metrics import participation_ratio
    >>> float(participation_ratio([2.0, 2.0, 0.0]))
    2.0
    """
    squares = np.square(np.asarray(values, dtype=np.float64))
    squares = squares / np.where(squares.max(-1, keepdims=True) > 0, squares.max(-1, keepdims=True), 1)
    fourth = np.square(squares).sum(-1)
    return np.where(fourth > 0, squares.sum(-1) ** 2 / np.where(fourth > 0, fourth, 1), 0.0)


def rank_me(values: ArrayLike, epsilon: float = 1e-7) -> Float64Array:
    """Return RankMe, (...), of all singular values (..., r) of the embeddings of many samples.

    ``exp(-sum(p log p))`` with ``p = s / sum(s) + epsilon`` [1]_: `effective_rank` up to epsilon.

    It compares models of one kind, trained alike, on the same samples: a low rank goes with poor results, a high rank
    alone promises nothing, as noise has the highest. It depends on the number of samples (25,600 in the paper), and
    needs *all* values: see `Components.complete`.

    References
    ----------
    .. [1] Q. Garrido et al., "RankMe: assessing the downstream performance of pretrained self-supervised
       representations by their rank", ICML 2023.
    """
    s = np.asarray(values, dtype=np.float64)
    total = s.sum(-1, keepdims=True)
    p = s / np.where(total > 0, total, 1) + epsilon
    return np.where(total[..., 0] > 0, np.exp(-(p * np.log(p)).sum(-1)), 0.0)


def linear_cka(X: ArrayLike, Y: ArrayLike, *, debiased: bool = False) -> float:
    """Return the linear centred kernel alignment of two representations of the same samples, 0 to 1.

    ``|Y^T X|_F^2 / (|X^T X|_F |Y^T Y|_F)`` of centred features [1]_, invariant to rotations and to one scale. With
    fewer samples than features it is high for any two representations; `debiased` uses the unbiased estimate of HSIC
    [2]_ [3]_, about 0 for independent ones.

    Parameters
    ----------
    X, Y : array_like, (samples, p) and (samples, q)
        Features of the same samples, one sample per row.
    debiased : bool
        Use the unbiased estimate, which needs at least four samples and may be slightly below 0.

    Raises
    ------
    InputError
        If the numbers of samples differ, are too small, or a representation is the same for all samples.

    References
    ----------
    .. [1] S. Kornblith et al., "Similarity of neural network representations revisited", ICML 2019.
    .. [2] L. Song et al., "Feature selection via dependence maximization", JMLR 13, 2012.
    .. [3] T. Nguyen, M. Raghu & S. Kornblith, "Do wide and deep networks learn the same things?", ICLR 2021.

    Examples
    --------
    >>> import numpy as np
    >>> from napari_gsvolume.explain import linear_cka
    >>> X = np.random.default_rng(0).normal(size=(50, 3))
    >>> round(linear_cka(X, X @ [[0, 2, 0], [2, 0, 0], [0, 0, 2]]), 6)
    1.0
    """
    a, b = (np.asarray(m, dtype=np.float64) for m in (X, Y))
    if a.ndim != 2 or b.ndim != 2 or len(a) != len(b) or len(a) < (4 if debiased else 2):
        raise InputError(
            f"Two representations of the same samples, at least {4 if debiased else 2}, one a row, are compared; got "
            f"the shapes {a.shape} and {b.shape}."
        )
    a, b = a - a.mean(0), b - b.mean(0)
    if not (a.any() and b.any()):
        raise InputError("A representation that is the same for all samples cannot be compared.")
    xy, xx, yy = (_hsic(p, q, debiased) for p, q in ((a, b), (a, a), (b, b)))
    if debiased and min(xx, yy) <= 0:
        raise InputError("The samples are too few for a debiased estimate.")
    return float(xy / np.sqrt(xx * yy))


def _hsic(a: Float64Array, b: Float64Array, debiased: bool) -> float:
    n = len(a)
    whole = float(np.square(a.T @ b).sum())
    if not debiased:
        return whole
    # Kernels K - diag(K) and L - diag(L) of centred features, whose whole rows sum to 0.
    k, m = np.square(a).sum(1), np.square(b).sum(1)
    both = float(k @ m)
    return whole - both + float(k.sum() * m.sum()) / ((n - 1) * (n - 2)) - 2 * both / (n - 2)


def redundant_heads(similarity: ArrayLike, threshold: float = 0.95) -> list[tuple[int, int, float]]:
    """Return pairs (i, j, cosine) of heads with similar attention maps, i < j, the most similar first.

    Similarity of maps as a measure of redundancy follows [1]_. Maps are not negative, so cosines are high to begin
    with, even more so under a causal mask.

    Parameters
    ----------
    similarity : array_like, (heads, heads)
        Cosines, as of `Attention.similarity`.
    threshold : float
        Smallest cosine of the pairs.

    References
    ----------
    .. [1] Y. Bian et al., "On attention redundancy: a comprehensive study", NAACL 2021.
    """
    S = np.asarray(similarity, dtype=np.float64)
    pairs = [(int(i), int(j), float(S[i, j])) for i, j in zip(*np.triu_indices(len(S), 1), strict=True)]
    return sorted((pair for pair in pairs if pair[2] >= threshold), key=lambda pair: -pair[2])
