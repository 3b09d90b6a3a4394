"""What a network computes, as a few directions: the SVD of its activations, of its Jacobians and of its attention.

The names below are loaded when first used: importing the package costs nothing, torch comes with what needs it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .alignment import aligned, principal_angles
    from .capture import activation_steps, activations
    from .concepts import Concept, Examples, concept_vector, sensitivities
    from .counterfactual import Counterfactual, Edit, edited, spread
    from .crossvalidation import Measure
    from .decomposition import Decomposition, Places
    from .derivatives import gradients, jacobian
    from .findings import Finding, Thresholds
    from .following import compare, track_checkpoints, tracked
    from .heads import Attention, attention
    from .labelled import block_groups, labels_at
    from .lens import ImageLens, Lens, image_lens, sr_lens
    from .lens_over import LensRecord, LensTracker, lens_over_layers
    from .meaning import ConceptMap, Patch, Patches, component_gradient, concept_map, top_patches
    from .metrics import effective_rank, linear_cka, participation_ratio, rank_me, redundant_heads, stable_rank
    from .parts import Parts, nmf
    from .probes import Probe, linear_probe, probe_steps
    from .samples import CaptureStep
    from .streaming import StreamingSVD, streamed_svd
    from .tcav import TCAV, TCAVStep, run_tcav, tcav_steps
    from .tracker import Tracker

_HOMES = {
    "Attention": ".heads",
    "CaptureStep": ".samples",
    "Concept": ".concepts",
    "ConceptMap": ".meaning",
    "Counterfactual": ".counterfactual",
    "Decomposition": ".decomposition",
    "Edit": ".counterfactual",
    "Examples": ".concepts",
    "Finding": ".findings",
    "ImageLens": ".lens",
    "Lens": ".lens",
    "LensRecord": ".lens_over",
    "LensTracker": ".lens_over",
    "Measure": ".crossvalidation",
    "Parts": ".parts",
    "Patch": ".meaning",
    "Patches": ".meaning",
    "Places": ".decomposition",
    "Probe": ".probes",
    "StreamingSVD": ".streaming",
    "TCAV": ".tcav",
    "TCAVStep": ".tcav",
    "Thresholds": ".findings",
    "Tracker": ".tracker",
    "activation_steps": ".capture",
    "activations": ".capture",
    "aligned": ".alignment",
    "attention": ".heads",
    "block_groups": ".labelled",
    "compare": ".following",
    "component_gradient": ".meaning",
    "concept_map": ".meaning",
    "concept_vector": ".concepts",
    "edited": ".counterfactual",
    "effective_rank": ".metrics",
    "gradients": ".derivatives",
    "image_lens": ".lens",
    "jacobian": ".derivatives",
    "labels_at": ".labelled",
    "lens_over_layers": ".lens_over",
    "linear_cka": ".metrics",
    "linear_probe": ".probes",
    "nmf": ".parts",
    "participation_ratio": ".metrics",
    "principal_angles": ".alignment",
    "probe_steps": ".probes",
    "rank_me": ".metrics",
    "redundant_heads": ".metrics",
    "run_tcav": ".tcav",
    "sensitivities": ".concepts",
    "spread": ".counterfactual",
    "sr_lens": ".lens",
    "stable_rank": ".metrics",
    "streamed_svd": ".streaming",
    "tcav_steps": ".tcav",
    "top_patches": ".meaning",
    "track_checkpoints": ".following",
    "tracked": ".following",
}

__all__ = [
    "TCAV",
    "Attention",
    "CaptureStep",
    "Concept",
    "ConceptMap",
    "Counterfactual",
    "Decomposition",
    "Edit",
    "Examples",
    "Finding",
    "ImageLens",
    "Lens",
    "LensRecord",
    "LensTracker",
    "Measure",
    "Parts",
    "Patch",
    "Patches",
    "Places",
    "Probe",
    "StreamingSVD",
    "TCAVStep",
    "Thresholds",
    "Tracker",
    "activation_steps",
    "activations",
    "aligned",
    "attention",
    "block_groups",
    "compare",
    "component_gradient",
    "concept_map",
    "concept_vector",
    "edited",
    "effective_rank",
    "gradients",
    "image_lens",
    "jacobian",
    "labels_at",
    "lens_over_layers",
    "linear_cka",
    "linear_probe",
    "nmf",
    "participation_ratio",
    "principal_angles",
    "probe_steps",
    "rank_me",
    "redundant_heads",
    "run_tcav",
    "sensitivities",
    "spread",
    "sr_lens",
    "stable_rank",
    "streamed_svd",
    "tcav_steps",
    "top_patches",
    "track_checkpoints",
    "tracked",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name], __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
