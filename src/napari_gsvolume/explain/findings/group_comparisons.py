"""Tests for differences between inputs: attributes, drift of domains, sharpening. Pure functions that return findings.

All layers are tested at once, and the probability of any false finding over all of them is limited. A finding is both
significant and large.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ...errors import InputError
from ...svd.decomposition import effective_rank
from ...types import Float64Array
from ..decomposition.alignment import principal_angles
from .finding import Finding, Thresholds
from .input_moments import InputMoments
from .layer_detectors import percent
from .permutation_tests import (
    compute_associations,
    design_matrix,
    draw_permutations,
    draw_swaps,
    explained_variance,
    familywise_p_values,
    standardize,
)

_STANDARD = Thresholds()


def find_attributes(
    probes: Mapping[str, InputMoments],
    values: Mapping[str, ArrayLike],
    thresholds: Thresholds = _STANDARD,
    *,
    epoch: float | None = None,
    seed: int = 0,
) -> list[Finding]:
    """Find components with mean scores that follow an attribute of the input.

    Parameters
    ----------
    probes : mapping of str to InputMoments
        By layer.
    values : mapping of str to array_like, (inputs,)
        Values by attribute: numbers or booleans (Pearson's r), or texts (r for two categories, else correlation ratio).
    thresholds : Thresholds
        ``alpha``, over all layers, components and attributes; ``correlation``, ``trace``.
    epoch : float, optional
    seed : int

    Raises
    ------
    InputError
        As in `compute_associations`.
    """
    t = thresholds
    columns, which = _columns(probes, t.trace)
    found = []
    tests = (
        compute_associations(columns, values, alpha=t.alpha, permutations=t.permutations, seed=seed) if values else {}
    )
    for name, a in tests.items():
        for j in map(int, np.flatnonzero((a.p_values <= t.alpha) & (np.abs(a.statistic) >= t.correlation))):
            layer, component = which[j]
            tested = f"corrected for {a.p_values.size * len(tests)} tests"
            interval = a.interval(j)
            sentence = (
                f"Component {component + 1} of layer {layer} follows {name}: {a.measure} = {a.statistic[j]:.2f} "
                f"[{interval[0]:.2f}, {interval[1]:.2f}], p = {a.p_values[j]:.2g}, {tested} "
                f"({len(columns)} inputs; thresholds {t.correlation:g} and {t.alpha:g})."
            )
            found.append(
                Finding(
                    "attribute",
                    layer,
                    sentence,
                    float(a.statistic[j]),
                    t.correlation,
                    component=component,
                    epoch=epoch,
                    subject=name,
                    interval=interval,
                    p_value=float(a.p_values[j]),
                )
            )
    return sorted(found, key=lambda f: -abs(f.statistic))


def find_drift(
    probes: Mapping[str, InputMoments],
    domains: ArrayLike,
    thresholds: Thresholds = _STANDARD,
    *,
    paired: bool = False,
    epoch: float | None = None,
    seed: int = 0,
) -> list[Finding]:
    """Find domain drift: means or directions that differ between domains.

    Two domains are compared with each other, several each with all the others. Shifts are differences of the mean
    scores of inputs, in standard deviations over inputs (Cohen's d). Directions are the leading ones of the samples
    about the mean of their domain; the overlap of two subspaces is the mean squared cosine of their principal angles.
    Labels are permuted among inputs, never among the pixels of one.

    Parameters
    ----------
    probes : mapping of str to InputMoments
        Moments by layer, for the inputs of all domains together.
    domains : array_like, (inputs,)
        Domain of each input.
    thresholds : Thresholds
        ``alpha``, over all layers, components and domains; ``drift_shift``, ``drift_overlap``, ``energy``,
        ``trace``.
    paired : bool
        True if the second half of the inputs is the first, in the same order, after a perturbation: labels are then
        exchanged within pairs only, which detects smaller effects.
    epoch : float, optional
    seed : int

    Raises
    ------
    InputError
        If there are fewer than 8 inputs or two domains, or not one label per input.
    """
    t = thresholds
    columns, which = _columns(probes, t.trace)
    n = len(columns)
    design_matrix(np.asarray(domains).astype(str), n, "The domain")
    names, codes = np.unique(np.asarray(domains).astype(str), return_inverse=True)
    orders = (draw_swaps if paired else draw_permutations)(n, t.permutations, seed)
    X = standardize(columns)
    contrasts = [codes == g for g in range(len(names))][: 1 if len(names) == 2 else None]
    titles = [f"{names[0]} and {names[1]}"] if len(names) == 2 else [f"{name} and the others" for name in names]
    counts = {layer: _leading(probe, t.energy) for layer, probe in probes.items()}
    shifts, overlaps = [], []
    for mask in contrasts:
        shifts.append(explained_variance(X, design_matrix(mask, n), orders))
        apart = [_overlap(probe, mask, orders, counts[layer]) for layer, probe in probes.items()]
        overlaps.append(np.stack(apart, axis=1))
    p = familywise_p_values(np.concatenate([*shifts, *(1 - o for o in overlaps)], axis=1))
    p_shift, p_overlap = np.split(p, [len(contrasts) * len(which)])
    found = []
    for c, (mask, title) in enumerate(zip(contrasts, titles, strict=True)):
        within = [columns[side].var(0, ddof=1) * (side.sum() - 1) if side.sum() > 1 else 0.0 for side in (mask, ~mask)]
        deviation = np.sqrt(np.sum(within, axis=0) / (n - 2))
        moved = columns[~mask].mean(0) - columns[mask].mean(0)
        shift = moved / np.where(deviation > 0, deviation, np.where(moved == 0, 1, 1e-300))
        for j in np.flatnonzero(
            (p_shift[c * len(which) :][: len(which)] <= t.alpha) & (np.abs(shift) >= t.drift_shift)
        ):
            layer, component = which[j]
            corrected = float(p_shift[c * len(which) + j])
            sentence = (
                f"Layer {layer} drifts between {title}: the mean of component {component + 1} shifts by {shift[j]:.2f} "
                f"standard deviations of inputs (threshold {t.drift_shift:g}; p = {corrected:.2g})."
            )
            found.append(
                Finding(
                    "drift",
                    layer,
                    sentence,
                    float(shift[j]),
                    t.drift_shift,
                    component=component,
                    epoch=epoch,
                    subject=title,
                    p_value=corrected,
                )
            )
        for k, (layer, probe) in enumerate(probes.items()):
            overlap, corrected = float(overlaps[c][0, k]), float(p_overlap[c * len(probes) + k])
            if corrected <= t.alpha and overlap <= t.drift_overlap:
                angles = principal_angles(*_bases(probe, mask, counts[layer]))
                sentence = (
                    f"Layer {layer} uses other directions for {title}: the subspaces of its {counts[layer]} leading "
                    f"components overlap by {percent(overlap)} (threshold {percent(t.drift_overlap)}; largest "
                    f"principal angle {angles[-1]:.0f} degrees; p = {corrected:.2g})."
                )
                found.append(
                    Finding(
                        "drift",
                        layer,
                        sentence,
                        overlap,
                        t.drift_overlap,
                        epoch=epoch,
                        subject=title,
                        p_value=corrected,
                    )
                )
    return found


def find_sharpening(
    probes: Mapping[str, InputMoments],
    held_out: ArrayLike,
    thresholds: Thresholds = _STANDARD,
    *,
    first: Mapping[str, float] | None = None,
    epoch: float | None = None,
    seed: int = 0,
) -> list[Finding]:
    """Find layers with a larger leading singular value on training inputs than on held-out inputs.

    A network that memorizes its training examples moves them to a few class means [1]_; held-out examples of the same
    kind fall between them and vary less along the leading direction. The null hypothesis is that both are
    exchangeable, which is tested one-sided by permuting inputs.

    Parameters
    ----------
    probes : mapping of str to InputMoments
        Moments by layer, for training and held-out inputs together.
    held_out : array_like of bool, (inputs,)
        True for inputs outside the training set, which must be of the same kind as the others.
    thresholds : Thresholds
        ``alpha``, over all layers; ``sharpening``.
    first : mapping of str to float, optional
        `sharpness` of the layers before training, which a finding must exceed by the threshold, as the two sets may
        differ to begin with.
    epoch : float, optional
    seed : int

    Raises
    ------
    InputError
        If there are fewer than 8 inputs, or all or none are held out.

    References
    ----------
    .. [1] V. Papyan, X. Han & D. Donoho, "Prevalence of neural collapse during the terminal phase of deep learning
       training", PNAS 117, 2020.
    """
    mask = np.asarray(held_out, dtype=bool)
    t = thresholds
    design_matrix(mask, len(mask), "The attribute held_out")
    orders = draw_permutations(len(mask), t.permutations, seed)
    statistics = np.stack([_sharpness(probe, mask, orders) for probe in probes.values()], axis=1)
    found = []
    for layer, current, p in zip(probes, statistics[0], familywise_p_values(statistics), strict=True):
        before = (first or {}).get(layer, 0.0)
        if p > t.alpha or current < t.sharpening or current - before < t.sharpening:
            continue
        here = np.arange(len(mask))[None]
        ranks = [
            float(effective_rank(_values(_side_covariances(probes[layer], mask, here, side)))[0])
            for side in (False, True)
        ]
        sentence = (
            f"Layer {layer} is sharper on training inputs: its leading singular value is {percent(current)} above that "
            f"on held-out inputs (threshold {percent(t.sharpening)}; {percent(before)} initially; effective ranks "
            f"{ranks[0]:.2f} and {ranks[1]:.2f}; p = {p:.2g})."
        )
        found.append(
            Finding("sharpening", layer, sentence, float(current), t.sharpening, epoch=epoch, p_value=float(p))
        )
    return found


def sharpness(probe: InputMoments, held_out: NDArray[np.bool_]) -> float:
    """Return the relative excess of the leading singular value on training over held-out inputs, about their means."""
    return float(_sharpness(probe, held_out, np.arange(len(held_out))[None])[0])


def _sharpness(probe: InputMoments, mask: NDArray[np.bool_], orders: NDArray[np.intp]) -> Float64Array:
    trained, held = (_values(_side_covariances(probe, mask, orders, side))[:, -1] for side in (False, True))
    return np.asarray(trained / np.maximum(held, 1e-12 * trained.max(initial=1e-300)) - 1)


def _values(covariances: Float64Array) -> Float64Array:
    """Return the standard deviations, ascending, (..., k), along the principal axes of covariances (..., k, k)."""
    return np.asarray(np.sqrt(np.clip(np.linalg.eigvalsh(covariances), 0, None)))


def _side_covariances(
    probe: InputMoments, mask: NDArray[np.bool_], orders: NDArray[np.intp], side: bool
) -> Float64Array:
    """Return the covariance of the samples of one side of a mask, in each order, (orders, k, k)."""
    k = probe.means.shape[1]
    weights = np.where(mask[orders] == side, 1 / (mask == side).sum(), 0.0)  # (P, n)
    centred = probe.centred(mask.astype(np.intp))
    groups = np.stack([probe.means[mask == g].mean(0) for g in (False, True)])[mask.astype(np.intp)]
    mean = weights @ (probe.means - groups)
    return np.asarray((weights @ centred.reshape(len(mask), -1)).reshape(-1, k, k) - mean[:, :, None] * mean[:, None])


def _overlap(probe: InputMoments, mask: NDArray[np.bool_], orders: NDArray[np.intp], count: int) -> Float64Array:
    """Return the mean squared cosine of the leading directions of both sides of a mask, in each order, (orders,)."""
    one, other = (
        np.linalg.eigh(_side_covariances(probe, mask, orders, side))[1][..., -count:] for side in (True, False)
    )
    return np.asarray(np.square(one.transpose(0, 2, 1) @ other).sum((1, 2)) / count)


def _bases(probe: InputMoments, mask: NDArray[np.bool_], count: int) -> list[Float64Array]:
    here = np.arange(len(mask))[None]
    return [np.linalg.eigh(_side_covariances(probe, mask, here, side))[1][0, :, -count:] for side in (True, False)]


def _leading(probe: InputMoments, energy: float) -> int:
    """Return the number of leading components; never all, as their span is the whole space."""
    return max(1, min(int((probe.shares >= energy).sum()), len(probe.shares) - 1))


def _columns(probes: Mapping[str, InputMoments], trace: float) -> tuple[Float64Array, list[tuple[str, int]]]:
    """Return the mean scores of all layers side by side, (inputs, m), and the layer and component of each column."""
    if not probes:
        raise InputError("There is no layer to test.")
    which = [(layer, int(k)) for layer, probe in probes.items() for k in np.flatnonzero(probe.shares >= trace)]
    return np.stack([probes[layer].means[:, k] for layer, k in which], axis=1), which
