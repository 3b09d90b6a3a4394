"""Permutation tests over inputs, corrections for multiple tests, and confidence intervals.

Samples of one input (pixels, tokens) are not independent, so whole inputs are permuted and counted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq
from scipy.stats import ncf

from ...errors import InputError
from ...types import Float64Array

FEWEST = 8
"""Smallest number of inputs of a test."""
_CHUNK = 2**22  # numbers of permuted designs at once


@dataclass(frozen=True, eq=False)
class Association:
    """Association of columns of numbers with one attribute.

    Attributes
    ----------
    measure : str
        "r" (Pearson's; point-biserial for two categories), or "eta" (correlation ratio, for more).
    statistic : ndarray, (m,)
        -1 to 1, or 0 to 1 for eta.
    p_values : ndarray, (m,)
        p-values, corrected for all columns and all attributes.
    reach : float
        1 - alpha quantile of the largest |r| over permutations; 0 for eta.
    inputs, degrees : int
        Number of inputs, and degrees of freedom of the attribute: 1, or categories - 1.
    level : float
        Error rate of each interval of eta, with Bonferroni correction.
    """

    measure: str
    statistic: Float64Array
    p_values: Float64Array
    reach: float
    inputs: int
    degrees: int
    level: float

    def interval(self, column: int) -> tuple[float, float]:
        """Return the confidence interval of a statistic; all of them hold with probability ``1 - alpha``.

        For r it is ``tanh(artanh(r) -+ artanh(reach))``, on the scale of Fisher's z; for eta see `eta_interval`. Both
        assume normal columns given the attribute; p-values do not.
        """
        statistic = float(self.statistic[column])
        if self.measure == "eta":
            return eta_interval(statistic, self.inputs, self.degrees, self.level)
        z, half = np.arctanh(np.clip([statistic, self.reach], -1 + 1e-15, 1 - 1e-15))
        return float(np.tanh(z - half)), float(np.tanh(z + half))


def compute_associations(
    columns: ArrayLike,
    attributes: Mapping[str, ArrayLike],
    *,
    alpha: float = 0.05,
    permutations: int = 999,
    seed: int = 0,
) -> dict[str, Association]:
    """Test all columns at once for association with attributes, which are permuted among the inputs.

    Parameters
    ----------
    columns : array_like, (inputs, m)
        Columns; constant ones have correlation 0.
    attributes : mapping of str to array_like, (inputs,)
        Attributes by name: numbers or booleans; or texts, as categories.
    alpha : float
        Error rate of the intervals.
    permutations, seed : int

    Raises
    ------
    InputError
        If there are fewer than 8 inputs, or an attribute is not one finite value per input, or constant.
    """
    X = standardize(columns)
    n, m = X.shape
    designs = {name: design_matrix(values, n, name) for name, values in attributes.items()}
    orders = draw_permutations(n, permutations, seed)
    parts = [explained_variance(X, D, orders) for D in designs.values()]
    p_values = familywise_p_values(np.concatenate(parts, axis=1)).reshape(len(designs), m)
    chance = [part.max(1, initial=0.0) for part, D in zip(parts, designs.values(), strict=True) if D.shape[1] == 1]
    reach = np.sqrt(np.quantile(np.max(chance, axis=0), 1 - alpha, method="higher")) if chance else 0.0
    found = {}
    for (name, D), p in zip(designs.items(), p_values, strict=True):
        projected, degrees = D.T @ X, D.shape[1]
        if degrees == 1:
            found[name] = Association("r", np.clip(projected[0], -1, 1), p, float(reach), n, 1, 0.0)
        else:
            eta = np.sqrt(np.clip(np.square(projected).sum(0), 0, 1))
            found[name] = Association("eta", eta, p, 0.0, n, degrees, alpha / max(1, p_values.size))
    return found


def draw_permutations(inputs: int, permutations: int, seed: int = 0) -> NDArray[np.intp]:
    """Return orders of the inputs, (1 + permutations, inputs): the given one first, then random ones.

    Raises
    ------
    ValueError
        If there are fewer than 8 inputs.
    """
    if inputs < FEWEST:
        raise InputError(f"{inputs} inputs are too few for a permutation test; give {FEWEST} or more.")
    rng = np.random.default_rng(seed)
    return np.stack([np.arange(inputs), *(rng.permutation(inputs) for _ in range(permutations))])


def draw_swaps(inputs: int, permutations: int, seed: int = 0) -> NDArray[np.intp]:
    """Return random exchanges of inputs with their partners, (1 + permutations, inputs), half of all apart.

    Raises
    ------
    ValueError
        If there are fewer than 8 inputs, or they are no pairs.
    """
    if inputs < FEWEST or inputs % 2:
        raise InputError(f"{inputs} inputs are not 4 pairs or more; give pairs, or compare without pairing.")
    rng = np.random.default_rng(seed)
    swaps = rng.integers(2, size=(permutations, inputs // 2)).astype(bool)
    swaps = np.concatenate([np.zeros_like(swaps, shape=(1, inputs // 2)), swaps])
    here = np.arange(inputs // 2)
    first = np.where(swaps, here + inputs // 2, here)
    return np.concatenate([first, np.where(swaps, here, here + inputs // 2)], axis=1)


def familywise_p_values(statistics: ArrayLike) -> Float64Array:
    """Return p-values of m statistics, (m,), with family-wise correction by the largest statistic [1]_.

    Parameters
    ----------
    statistics : array_like, (1 + permutations, m)
        Observed statistics, then those under permutations, the same for all.

    Notes
    -----
    The probability of any false finding is limited by the distribution of the largest statistic, without assumptions
    about the distributions of the statistics or their dependence. Each is standardized by its mean and standard
    deviation over all rows, which no permutation changes.

    References
    ----------
    .. [1] P. Westfall & S. Young, "Resampling-based multiple testing", Wiley 1993.

    Examples
    --------
    >>> import numpy as np
    >>> from napari_gsvolume.explain.findings.permutation_tests import familywise_p_values
    >>> statistics = np.random.default_rng(0).normal(size=(100, 2))
    >>> statistics[0] = 9, 0
    >>> bool(familywise_p_values(statistics)[0] == 0.01)
    True
    """
    T = np.asarray(statistics, dtype=np.float64)
    deviation = T.std(0)
    Z = (T - T.mean(0)) / np.where(deviation > 1e-12, deviation, np.inf)
    largest = np.sort(Z.max(1, initial=-np.inf))
    return np.asarray((len(T) - np.searchsorted(largest, Z[0] - 1e-9)) / len(T))


def standardize(columns: ArrayLike) -> Float64Array:
    """Return columns, (inputs, m), of mean 0 and length 1; constant ones become 0."""
    X = np.asarray(columns, dtype=np.float64)
    X = X - X.mean(0)
    norms = np.linalg.norm(X, axis=0)
    return np.asarray(X / np.where(norms > 1e-12 * norms.max(initial=1e-300), norms, np.inf))


def explained_variance(X: Float64Array, D: Float64Array, orders: NDArray[np.intp]) -> Float64Array:
    """Return the explained variance of standardized columns X (n, m) by a design D (n, c) in each order."""
    (n, c), found = D.shape, []
    for chunk in np.array_split(orders, -(-orders.size * c // _CHUNK)):
        projected = D[chunk].transpose(0, 2, 1).reshape(-1, n) @ X
        found.append(np.square(projected).reshape(len(chunk), c, -1).sum(1))
    return np.concatenate(found)


def check_attribute(attribute: ArrayLike, inputs: int, name: str = "An attribute") -> NDArray[np.generic]:
    """Return an attribute, (inputs,); raise InputError if it cannot be used."""
    values = np.asarray(attribute)
    if values.shape != (inputs,):
        raise InputError(f"{name} has one value for each of the {inputs} inputs; this has the shape {values.shape}.")
    if values.dtype.kind in "biuf":
        if not np.isfinite(values.astype(np.float64)).all():
            raise InputError(f"{name} holds NaN or infinite numbers; leave those inputs out.")
    elif values.dtype.kind == "O":
        values = values.astype(str)
    elif values.dtype.kind not in "US":
        raise InputError(f"{name} is numbers, booleans or texts, not {values.dtype}.")
    if len(np.unique(values)) < 2:
        raise InputError(f"{name} is the same for all inputs; nothing can depend on it.")
    return values


def design_matrix(attribute: ArrayLike, inputs: int, name: str = "An attribute") -> Float64Array:
    """Return orthonormal columns of mean 0 that span an attribute, (inputs, c): 1 of numbers, else categories - 1."""
    values = check_attribute(attribute, inputs, name)
    if values.dtype.kind in "biuf":
        y = values.astype(np.float64)
        y -= y.mean()
        return (y / np.linalg.norm(y))[:, None]
    _, codes = np.unique(values, return_inverse=True)
    indicators = np.eye(codes.max() + 1)[codes]
    if indicators.shape[1] >= inputs - 1:
        raise InputError(f"{name} has {indicators.shape[1]} categories, too many for {inputs} inputs.")
    Q, _ = np.linalg.qr(indicators[:, 1:] - indicators[:, 1:].mean(0))
    return np.asarray(Q * np.sign((Q * indicators[:, 1:]).sum(0)))  # for two categories r > 0 if the second is larger


def eta_interval(eta: float, inputs: int, between: int, alpha: float = 0.05) -> tuple[float, float]:
    """Return the confidence interval of a correlation ratio of ``between + 1`` categories, by the noncentral F [1]_.

    References
    ----------
    .. [1] J. Steiger, "Beyond the F test", Psychological Methods 9, 2004.
    """
    within = inputs - between - 1
    if eta >= 1 - 1e-12:
        return 1.0, 1.0
    F = eta**2 / (1 - eta**2) * within / between

    def bound(level: float) -> float:
        def off(noncentrality: float) -> float:
            return float(ncf.cdf(F, between, within, noncentrality)) - level

        if off(0.0) <= 0:
            return 0.0
        top = 1.0
        while off(top) > 0:
            top *= 2
        root = float(brentq(off, 0.0, top, xtol=1e-6 * top))
        return float(np.sqrt(root / (root + inputs)))

    return bound(1 - alpha / 2), bound(alpha / 2)
