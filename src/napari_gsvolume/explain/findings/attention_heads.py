"""Attention heads that attend alike."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import nn

from ..decomposition.attention import attention as attention_maps
from ..models.forward import Inputs
from .finding import Finding, Thresholds
from .layer_detectors import find_redundant_heads

_ALL_HEADS = 2**16


def find_similar_heads(
    model: nn.Module, inputs: Inputs, layers: Sequence[str] | None, thresholds: Thresholds, *, seed: int = 0
) -> list[Finding]:
    """Return the heads of each layer that attend alike; see `detectors.duplicate_heads`."""
    seen = attention_maps(model, inputs, _ALL_HEADS, layers=layers, seed=seed)
    # Weights of all heads are alike in that they are not negative and add up to 1: compared is what is left of
    # them without the 1 / keys that each has on average.
    d = seen.modes
    assert d.places is not None
    gram = (d.concepts * np.square(d.values)) @ d.concepts.T - d.samples / float(d.places.grids[0, 1]) ** 2
    norms = np.sqrt(np.clip(gram.diagonal(), 1e-12 * d.samples, None))
    likeness = gram / np.outer(norms, norms)
    found: list[Finding] = []
    for layer in dict.fromkeys(name for name, _ in seen.heads):
        of_layer = [column for column, (name, _) in enumerate(seen.heads) if name == layer]
        found += find_redundant_heads(layer, likeness[np.ix_(of_layer, of_layer)], thresholds)
    return found
