"""Cross-validated accuracy of linear models on features of held-out inputs, and its distribution by chance."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import sklearn
from numpy.typing import NDArray
from scipy.stats import t as student
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import accuracy_score, r2_score, roc_auc_score
from sklearn.model_selection import GroupKFold, StratifiedGroupKFold
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from ...errors import InputError
from ...types import Float64Array, IntArray
from .labels import permute_labels

Kind = Literal["classes", "values"]


@dataclass(frozen=True, eq=False)
class Measure:
    """Metric of held-out samples.

    Attributes
    ----------
    folds : ndarray, (folds,)
        Metric of each fold; NaN where undefined (AUC of a single class).
    chance : ndarray, (permutations,)
        Means over folds for permuted labels.
    """

    folds: Float64Array
    chance: Float64Array
    _shares: Float64Array = field(repr=False)  # fractions of the samples in the folds

    @property
    def mean(self) -> float:
        """Mean over folds."""
        return _mean(self.folds)

    @property
    def interval(self) -> tuple[float, float]:
        """95 % confidence interval of the mean, from the variance over folds.

        Folds share training samples; the variance is corrected for that (C. Nadeau & Y. Bengio, "Inference for the
        generalization error", Machine Learning 52, 2003). It is still an approximation; `p` is not.
        """
        folds = self.folds[np.isfinite(self.folds)]
        if len(folds) < 2:
            return -np.inf, np.inf
        share = float(self._shares.mean())
        deviation = float(np.sqrt((1 / len(folds) + share / (1 - share)) * folds.var(ddof=1)))
        half = float(student.ppf(0.975, len(folds) - 1)) * deviation
        return self.mean - half, self.mean + half

    @property
    def p(self) -> float:
        """One-sided p-value of the permutation test, which counts the observed labels; NaN without permutations."""
        if len(self.chance) == 0:
            return float("nan")
        return float((1 + (self.chance >= self.mean).sum()) / (1 + len(self.chance)))


def cross_validate(
    X: Float64Array,
    y: NDArray[Any],
    groups: IntArray,
    kind: Kind,
    folds: int = 5,
    regularisation: float = 1.0,
    seed: int = 0,
    *,
    permutations: int = 0,
) -> dict[str, Measure]:
    """Return metrics of a logistic regression or ridge on standardized features, with whole groups held out.

    Parameters
    ----------
    X : ndarray, (samples, features)
    y, groups : ndarray, (samples,)
    kind, folds, regularisation, seed, permutations
        As in `linear_probe`.

    Raises
    ------
    InputError
        If all labels are equal, or there are too few groups to hold one out.
    """
    if len(np.unique(y)) < 2:
        raise InputError("All labels are equal; there is nothing to classify.")
    folds = min(folds, len(np.unique(groups)))
    if folds < 2:
        raise InputError("Whole inputs are held out: two or more are needed, or groups= (block_groups).")
    if kind == "classes":
        few = [c for c in np.unique(y).tolist() if len(np.unique(groups[y == c])) < 2]
        if few:
            raise InputError(f"The label {few[0]} is in one input or group alone, so it cannot be held out.")
    rng = np.random.default_rng(seed)
    fitted = (kind, folds, regularisation, seed)
    with sklearn.config_context(assume_finite=True, skip_parameter_validation=True):  # small fits, many times
        true, shares = _cross_validate(X, y, groups, *fitted)
        chance = [_cross_validate(X, permute_labels(y, groups, rng), groups, *fitted)[0] for _ in range(permutations)]
    return {
        name: Measure(np.array(values), np.array([_mean(c[name]) for c in chance]), shares)
        for name, values in true.items()
    }


def fit_linear_directions(X: Float64Array, y: NDArray[Any], kind: Kind, regularisation: float = 1.0) -> Float64Array:
    """Return the unit directions (features, outputs) along which the prediction changes fastest."""
    fitted = _fit(X, y, kind, regularisation)
    weights = np.atleast_2d(fitted[-1].coef_) / fitted[0].scale_
    return np.asarray((weights / np.maximum(np.linalg.norm(weights, axis=1, keepdims=True), 1e-300)).T)


def _fit(X: Float64Array, y: NDArray[Any], kind: Kind, regularisation: float) -> Pipeline:
    model = Ridge(regularisation) if kind == "values" else LogisticRegression(C=1 / regularisation, max_iter=300)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # of weights that hardly change any more
        return make_pipeline(StandardScaler(), model).fit(X, y)


def _cross_validate(
    X: Float64Array, y: NDArray[Any], groups: IntArray, kind: Kind, folds: int, regularisation: float, seed: int
) -> tuple[dict[str, list[float]], Float64Array]:
    """Return the metrics of the folds, and the fraction of the samples in each."""
    split: Any = GroupKFold(folds, shuffle=True, random_state=seed)
    if kind == "classes":
        split = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    found: dict[str, list[float]] = {"r2": []} if kind == "values" else {"auc": [], "accuracy": []}
    shares = []
    classes = np.unique(y)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a class in fewer groups than there are folds
        parts = list(split.split(X, y, groups))
    for train, test in parts:
        shares.append(len(test) / len(y))
        if kind == "values":
            fitted = _fit(X[train], y[train], kind, regularisation)
            found["r2"].append(float(r2_score(y[test], fitted.predict(X[test]))))
            continue
        if len(np.unique(y[train])) < len(classes):
            found["auc"].append(np.nan)
            found["accuracy"].append(np.nan)
            continue
        fitted = _fit(X[train], y[train], kind, regularisation)
        chances = fitted.predict_proba(X[test])
        found["accuracy"].append(float(accuracy_score(y[test], classes[chances.argmax(1)])))
        if len(np.unique(y[test])) < len(classes):
            found["auc"].append(np.nan)
        elif len(classes) == 2:
            found["auc"].append(float(roc_auc_score(y[test], chances[:, 1])))
        else:
            found["auc"].append(float(roc_auc_score(y[test], chances, multi_class="ovr")))
    return found, np.array(shares)


def _mean(values: Sequence[float] | Float64Array) -> float:
    finite = np.asarray(values)[np.isfinite(values)]
    return float(finite.mean()) if len(finite) else float("nan")
