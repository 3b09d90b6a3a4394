"""Non-negative activations as sums of non-negative parts, A ~ W H."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from ...errors import InputError
from ...types import Float64Array
from ..models.forward import Inputs
from .activations import sample_activations
from .components import SampleLocations, check_modes


@dataclass(frozen=True, eq=False)
class NMFComponents:
    """The parts of a layer's activations A ~ scores diag(values) concepts^T, none of which is negative.

    Attributes
    ----------
    values : ndarray, (k,)
        How strong each part is, descending: the norm of its term.
    concepts : ndarray, (features, k)
        Unit columns, not orthogonal.
    scores : ndarray, (samples, k)
        Unit columns, not orthogonal.
    energy : float
        Part of the sum of squares of A that all parts together explain.
    layer : str
    places : SampleLocations
        Where the samples lie.
    """

    values: Float64Array
    concepts: Float64Array
    scores: Float64Array
    energy: float
    layer: str
    places: SampleLocations


def nmf(
    model: nn.Module,
    inputs: Inputs,
    layers: Sequence[str],
    k: int = 16,
    *,
    max_samples: int = 20_000,
    seed: int = 0,
    iterations: int = 400,
    **more: Any,
) -> dict[str, NMFComponents]:
    """Factorise non-negative activations, as they are after a ReLU.

    D. Lee & H. Seung, "Learning the parts of objects by non-negative matrix factorization", Nature 401, 1999, as
    scikit-learn has it: coordinate descent from an initialisation by the SVD ("nndsvda"), so the same each time. T. Fel
    et al., "CRAFT" (CVPR 2023), find it the easier one for people to read.

    Parameters
    ----------
    model, inputs, layers, seed
        As of `activations`, as are ``features_axis`` and ``output``.
    k : int
        How many parts; at most as many as there are features and samples.
    max_samples : int
        At most so many positions, drawn by the seed.
    iterations : int
        At most.

    Raises
    ------
    ValueError
        If activations are negative somewhere, or all 0; or as of `activations`.
    """
    from sklearn.decomposition import NMF
    from sklearn.exceptions import ConvergenceWarning

    check_modes(k)
    result = {}
    for name, (matrix, places) in sample_activations(model, inputs, layers, max_samples, seed, **more).items():
        if matrix.min() < 0:
            raise InputError(
                f"The layer {name!r} has negative activations (down to {matrix.min():.3g}), of which there are no "
                "non-negative parts; take the layer after its ReLU, or the SVD."
            )
        if not matrix.any():
            raise InputError(f"The layer {name!r} is 0 for all samples, so it has no parts.")
        model_of = NMF(min(k, *matrix.shape), init="nndsvda", max_iter=iterations, random_state=seed)
        with warnings.catch_warnings():  # that it ends by the number of iterations; `energy` says how well it fits
            warnings.simplefilter("ignore", ConvergenceWarning)
            W = model_of.fit_transform(matrix.astype(np.float64))  # (samples, k)
        H = model_of.components_.T  # (features, k)
        error = float(np.square(matrix - W @ H.T).sum() / np.square(matrix, dtype=np.float64).sum())
        w, h = np.linalg.norm(W, axis=0), np.linalg.norm(H, axis=0)
        order = [i for i in np.argsort(-w * h, kind="stable") if w[i] * h[i] > 0]
        w, h, W, H = w[order], h[order], W[:, order], H[:, order]
        result[name] = NMFComponents(w * h, H / h, W / w, 1 - error, name, places)
    return result
