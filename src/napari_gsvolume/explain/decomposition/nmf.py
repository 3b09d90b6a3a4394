"""Non-negative matrix factorization of non-negative activations, A ~ W H."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...errors import InputError
from ...types import Float64Array
from ..models.explained_model import Model
from ..models.forward import Inputs
from .activations import sample_activations
from .components import SampleLocations, check_modes


@dataclass(frozen=True, eq=False)
class NMFComponents:
    """Non-negative components of the activations of a layer, A ~ scores diag(values) concepts^T.

    Attributes
    ----------
    values : ndarray, (k,)
        Strengths of the components, descending: the norms of their terms.
    concepts : ndarray, (features, k)
        Unit columns, not orthogonal.
    scores : ndarray, (samples, k)
        Unit columns, not orthogonal.
    energy : float
        Fraction of the sum of squares of A that the components together explain.
    layer : str
    places : SampleLocations
        Locations of the samples.
    """

    values: Float64Array
    concepts: Float64Array
    scores: Float64Array
    energy: float
    layer: str
    places: SampleLocations


def nmf(
    model: Model,
    inputs: Inputs,
    layers: Sequence[str],
    k: int = 16,
    *,
    max_samples: int = 20_000,
    seed: int = 0,
    iterations: int = 400,
    **options: Any,
) -> dict[str, NMFComponents]:
    """Factorize non-negative activations, such as those after a ReLU.

    Coordinate descent of scikit-learn from a deterministic initialization by the SVD ("nndsvda"). Components of NMF
    [1]_ are often easier to interpret than those of the SVD [2]_.

    Parameters
    ----------
    model, inputs, layers, seed
        As in `activations`, as are ``features_axis`` and ``output``.
    k : int
        Number of components; no more than features or samples.
    max_samples : int
        Largest number of positions, drawn uniformly.
    iterations : int
        Largest number of iterations.

    Raises
    ------
    InputError
        If activations are negative somewhere, or all 0; or as in `activations`.

    References
    ----------
    .. [1] D. Lee & H. Seung, "Learning the parts of objects by non-negative matrix factorization", Nature 401, 1999.
    .. [2] T. Fel et al., "CRAFT: concept recursive activation factorization for explainability", CVPR 2023.

    Examples
    --------
    >>> import torch
    >>> from napari_gsvolume import explain
    >>> network = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.ReLU())
    >>> explain.nmf(network, torch.randn(2, 1, 8, 8), ["1"], k=2)["1"].concepts.shape
    (4, 2)
    """
    from sklearn.decomposition import NMF
    from sklearn.exceptions import ConvergenceWarning

    check_modes(k)
    result = {}
    for name, (matrix, places) in sample_activations(model, inputs, layers, max_samples, seed, **options).items():
        if matrix.min() < 0:
            raise InputError(
                f"The layer {name!r} has negative activations (down to {matrix.min():.3g}), which have no non-negative "
                "factorization; use the layer after its ReLU, or the SVD."
            )
        if not matrix.any():
            raise InputError(f"The layer {name!r} is 0 for all samples, so it has no components.")
        model_of = NMF(min(k, *matrix.shape), init="nndsvda", max_iter=iterations, random_state=seed)
        with warnings.catch_warnings():  # of the number of iterations; `energy` tells how well it fits
            warnings.simplefilter("ignore", ConvergenceWarning)
            W = model_of.fit_transform(matrix.astype(np.float64))  # (samples, k)
        H = model_of.components_.T  # (features, k)
        error = float(np.square(matrix - W @ H.T).sum() / np.square(matrix, dtype=np.float64).sum())
        w, h = np.linalg.norm(W, axis=0), np.linalg.norm(H, axis=0)
        order = [i for i in np.argsort(-w * h, kind="stable") if w[i] * h[i] > 0]
        w, h, W, H = w[order], h[order], W[:, order], H[:, order]
        result[name] = NMFComponents(w * h, H / h, W / w, 1 - error, name, places)
    return result
