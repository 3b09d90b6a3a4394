"""Redundant attention heads."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..decomposition.attention import attention as attention_maps
from ..models.explained_model import Model
from ..models.forward import Inputs
from .finding import Finding, Thresholds
from .layer_detectors import find_redundant_heads

_ALL_HEADS = 2**16


def find_similar_heads(
    model: Model, inputs: Inputs, layers: Sequence[str] | None, thresholds: Thresholds, *, seed: int = 0
) -> list[Finding]:
    """Find heads of each layer with similar attention maps; see `find_redundant_heads`."""
    found_maps = attention_maps(model, inputs, _ALL_HEADS, layers=layers, seed=seed)
    # All maps are similar in that their weights are positive and add up to 1: heads are compared by the deviation from
    # the mean weight, 1 / keys.
    d = found_maps.modes
    assert d.places is not None
    gram = (d.concepts * np.square(d.values)) @ d.concepts.T - d.samples / float(d.places.grids[0, 1]) ** 2
    norms = np.sqrt(np.clip(gram.diagonal(), 1e-12 * d.samples, None))
    similarity = gram / np.outer(norms, norms)
    found: list[Finding] = []
    for layer in dict.fromkeys(name for name, _ in found_maps.heads):
        of_layer = [column for column, (name, _) in enumerate(found_maps.heads) if name == layer]
        found += find_redundant_heads(layer, similarity[np.ix_(of_layer, of_layer)], thresholds)
    return found
