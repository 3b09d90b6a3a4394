"""Detectors of collapse, dead and redundant units, and new concepts of one layer: pure functions that return findings.

Each compares a statistic with a threshold. For tests that involve chance, see `group_comparisons`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ...svd.decomposition import effective_rank
from ...types import Float64Array
from .finding import Finding, Thresholds

_STANDARD = Thresholds()
_NAMED = 3  # units or pairs in a sentence


def find_collapse(
    layer: str,
    spectrum: ArrayLike,
    features: int,
    thresholds: Thresholds = _STANDARD,
    *,
    total: float | None = None,
    epoch: float | None = None,
) -> list[Finding]:
    """Find a collapsed layer, which uses almost none of its features.

    Parameters
    ----------
    layer : str
    spectrum : array_like, (r,)
        Singular values of the activations about their mean, descending.
    features : int
        Number of features; layers with two or fewer are skipped.
    thresholds : Thresholds
        ``collapse_share``, ``collapse_rank``.
    total : float, optional
        Sum of squares of all values, if the spectrum is truncated.
    epoch : float, optional
    """
    values = np.asarray(spectrum, dtype=np.float64)
    total = float(np.square(values).sum()) if total is None else total
    if features < 3:
        return []
    if total == 0:
        sentence = f"Layer {layer} has collapsed: its output is the same for every input."
        return [Finding("collapse", layer, sentence, 1.0, thresholds.collapse_share, epoch=epoch)]
    share, rank = float(values[0] ** 2 / total), float(effective_rank(values))
    if share >= thresholds.collapse_share:
        sentence = (
            f"Layer {layer} has collapsed: {percent(share)} of its variance is in one direction "
            f"(threshold {percent(thresholds.collapse_share)}; effective rank {rank:.1f} of {features})."
        )
        return [Finding("collapse", layer, sentence, share, thresholds.collapse_share, epoch=epoch)]
    if rank / features < thresholds.collapse_rank:
        sentence = (
            f"Layer {layer} has collapsed: its effective rank is {rank:.1f} of {features}, {percent(rank / features)} "
            f"(threshold {percent(thresholds.collapse_rank)})."
        )
        return [Finding("collapse", layer, sentence, rank / features, thresholds.collapse_rank, epoch=epoch)]
    return []


def find_dead_units(
    layer: str, deviations: ArrayLike, thresholds: Thresholds = _STANDARD, *, epoch: float | None = None
) -> list[Finding]:
    """Find dead units, which do not vary.

    Parameters
    ----------
    layer : str
    deviations : array_like, (features,)
        Standard deviation of each unit over all samples.
    thresholds : Thresholds
        ``dead_level``, ``dead_share``.
    epoch : float, optional
    """
    s = np.asarray(deviations, dtype=np.float64)
    dead = np.flatnonzero(s <= thresholds.dead_level * s.max(initial=0.0))
    share = len(dead) / max(1, len(s))
    if share < thresholds.dead_share:
        return []
    sentence = (
        f"Layer {layer} has {len(dead)} dead units of {len(s)} ({_join(dead)}): they vary by less than "
        f"{percent(thresholds.dead_level)} of the most active one ({percent(share)} of the units; threshold "
        f"{percent(thresholds.dead_share)})."
    )
    subject = ", ".join(map(str, dead))
    return [Finding("dead units", layer, sentence, share, thresholds.dead_share, epoch=epoch, subject=subject)]


def find_redundant_pairs(similarity: ArrayLike, threshold: float) -> list[tuple[int, int, float]]:
    """Return the pairs (i, j, value), i < j, of a symmetric matrix with |value| above a threshold, largest first."""
    matrix = np.asarray(similarity, dtype=np.float64)
    i, j = np.nonzero(np.triu(np.abs(matrix) >= threshold, 1))
    order = np.argsort(-np.abs(matrix[i, j]).round(9), kind="stable")
    return [(int(i[o]), int(j[o]), float(matrix[i[o], j[o]])) for o in order]


def find_redundant_units(
    layer: str, covariance: ArrayLike, thresholds: Thresholds = _STANDARD, *, epoch: float | None = None
) -> list[Finding]:
    """Find redundant units (correlated): one finding per layer, which names the closest pairs.

    Parameters
    ----------
    layer : str
    covariance : array_like, (features, features)
        Covariance of the units over all samples. Dead units are skipped.
    thresholds : Thresholds
        ``redundancy``, ``dead_level``.
    epoch : float, optional
    """
    C = np.asarray(covariance, dtype=np.float64)
    s = np.sqrt(np.clip(np.diag(C), 0, None))
    alive = s > thresholds.dead_level * s.max(initial=0.0)
    correlation = np.where(alive[:, None] & alive, C / np.where(alive, s, 1) / np.where(alive, s, 1)[:, None], 0.0)
    return _redundant("redundant units", "units", "|correlation|", layer, correlation, thresholds, epoch)


def find_redundant_heads(
    layer: str, similarity: ArrayLike, thresholds: Thresholds = _STANDARD, *, epoch: float | None = None
) -> list[Finding]:
    """Find redundant attention heads: one finding per layer, which names the closest pairs.

    Parameters
    ----------
    layer : str
    similarity : array_like, (heads, heads)
        Cosines of the maps of the heads.
    thresholds : Thresholds
        ``redundancy``.
    epoch : float, optional
    """
    return _redundant("redundant heads", "heads", "cosine", layer, np.asarray(similarity), thresholds, epoch)


def _redundant(
    kind: Any,
    what: str,
    measure: str,
    layer: str,
    similarity: Float64Array,
    thresholds: Thresholds,
    epoch: float | None,
) -> list[Finding]:
    pairs = find_redundant_pairs(similarity, thresholds.redundancy)
    if not pairs:
        return []
    closest: dict[int, tuple[int, float]] = {}  # units whose removal would leave no such pair
    for i, j, value in pairs:
        closest.setdefault(j, (i, value))
    named = "; ".join(f"{i} and {j} ({value:.3f})" for j, (i, value) in list(closest.items())[:_NAMED])
    sentence = (
        f"Layer {layer} has {len(closest)} of {len(similarity)} {what} that are redundant: "
        f"{named}{'; ...' * (len(closest) > _NAMED)} ({measure} at least {thresholds.redundancy:g})."
    )
    top = abs(pairs[0][2])
    subject = "; ".join(f"{i} and {j}" for j, (i, _) in closest.items())
    return [Finding(kind, layer, sentence, top, thresholds.redundancy, epoch=epoch, subject=subject)]


def find_new_concepts(
    layer: str,
    epochs: Sequence[float],
    concepts: Sequence[ArrayLike],
    shares: Sequence[ArrayLike],
    thresholds: Thresholds = _STANDARD,
) -> list[Finding]:
    """Find new components.

    The leading components of an epoch are compared with the spans of those of each recent epoch: a rotation among them
    is not new. Earlier epochs, such as random directions before training, do not count. Nothing is new at the first
    epoch.

    Parameters
    ----------
    layer : str
    epochs : sequence of float
        Ascending.
    concepts : sequence of array_like, (features, k)
        Unit columns of each epoch; k may differ.
    shares : sequence of array_like, (k,)
        Fractions of the variance of the layer.
    thresholds : Thresholds
        ``new_cosine``, ``recent``, ``energy``.
    """
    counted = [np.asarray(s, dtype=np.float64) >= thresholds.energy for s in shares]
    bases = [np.asarray(c, dtype=np.float64)[:, counts] for c, counts in zip(concepts, counted, strict=True)]
    found: list[Finding] = []
    for t in range(1, len(bases)):
        cosines = np.zeros(bases[t].shape[1])
        for before in bases[max(0, t - thresholds.recent) : t]:
            np.maximum(cosines, np.linalg.norm(before.T @ bases[t], axis=0), out=cosines)
        for component, cosine in zip(np.flatnonzero(counted[t]), cosines, strict=True):
            if cosine >= thresholds.new_cosine:
                continue
            share = float(np.asarray(shares[t])[component])
            before_it = "epoch" if min(t, thresholds.recent) == 1 else f"{min(t, thresholds.recent)} epochs"
            sentence = (
                f"A new concept appeared in layer {layer} at epoch {epochs[t]:g}: component {component + 1}, "
                f"{percent(share)} of the variance, has a cosine of at most {cosine:.2f} with the leading components "
                f"of the {before_it} before (threshold {thresholds.new_cosine:g})."
            )
            at = {"component": int(component), "epoch": float(epochs[t])}
            found.append(Finding("new concept", layer, sentence, float(cosine), thresholds.new_cosine, **at))  # type: ignore[arg-type]
    return found


def percent(fraction: float) -> str:
    """Return a fraction as a percentage."""
    return f"{100 * fraction:.3g} %"


def _join(units: NDArray[np.intp]) -> str:
    return ", ".join(map(str, units[:_NAMED])) + ", ..." * (len(units) > _NAMED)
