"""What a network computes, as a few directions: the SVD of its activations, of its Jacobians and of its attention.

The names below are loaded when first used: importing the package costs nothing, torch comes with what needs it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .concepts.attribution import component_gradient
    from .concepts.cav import Concept, Examples, concept_vector, sensitivities
    from .concepts.concept_maps import concept_maps
    from .concepts.cross_validation import Measure
    from .concepts.interventions import Counterfactual, Edit, apply_edits, component_rms
    from .concepts.labels import block_groups, labels_at
    from .concepts.patches import ConceptMap, Patch, Patches, concept_map, top_patches
    from .concepts.probing import LinearProbe, linear_probe, probe_steps
    from .concepts.tcav import TCAV, TCAVStep, tcav, tcav_steps
    from .decomposition.activations import activation_steps, activations
    from .decomposition.alignment import align_components, principal_angles
    from .decomposition.attention import Attention, attention
    from .decomposition.components import Components, SampleLocations
    from .decomposition.jacobian import gradients, jacobian
    from .decomposition.metrics import (
        effective_rank,
        linear_cka,
        participation_ratio,
        rank_me,
        redundant_heads,
        stable_rank,
    )
    from .decomposition.nmf import NMFComponents, nmf
    from .decomposition.sampling import ActivationStep
    from .decomposition.streaming_svd import StreamingSVD, compute_streaming_svd
    from .explanation import Explanation, explain_steps
    from .findings.finding import Finding, Thresholds
    from .lens.restoration import ImageLens, Lens, image_lens, sr_lens
    from .lens.restoration_by_layer import LensRecord, LensTracker, lens_over_layers
    from .models.inputs import Volume, prepare_images
    from .models.loading import ExplainedModel, load_model
    from .settings import ExplainSettings, TrackSettings
    from .tracking.checkpoints import compare_domains, track_checkpoints, track_training_steps
    from .tracking.tracker import Tracker

_HOMES = {
    "Attention": ".decomposition.attention",
    "ActivationStep": ".decomposition.sampling",
    "Concept": ".concepts.cav",
    "ConceptMap": ".concepts.patches",
    "Counterfactual": ".concepts.interventions",
    "Components": ".decomposition.components",
    "Edit": ".concepts.interventions",
    "Examples": ".concepts.cav",
    "ExplainSettings": ".settings",
    "Explanation": ".explanation",
    "Finding": ".findings.finding",
    "ImageLens": ".lens.restoration",
    "Lens": ".lens.restoration",
    "LensRecord": ".lens.restoration_by_layer",
    "LensTracker": ".lens.restoration_by_layer",
    "ExplainedModel": ".models.loading",
    "Measure": ".concepts.cross_validation",
    "NMFComponents": ".decomposition.nmf",
    "Patch": ".concepts.patches",
    "Patches": ".concepts.patches",
    "SampleLocations": ".decomposition.components",
    "LinearProbe": ".concepts.probing",
    "StreamingSVD": ".decomposition.streaming_svd",
    "TCAV": ".concepts.tcav",
    "TCAVStep": ".concepts.tcav",
    "Thresholds": ".findings.finding",
    "TrackSettings": ".settings",
    "Tracker": ".tracking.tracker",
    "Volume": ".models.inputs",
    "activation_steps": ".decomposition.activations",
    "activations": ".decomposition.activations",
    "align_components": ".decomposition.alignment",
    "attention": ".decomposition.attention",
    "block_groups": ".concepts.labels",
    "compare_domains": ".tracking.checkpoints",
    "component_gradient": ".concepts.attribution",
    "concept_map": ".concepts.patches",
    "concept_maps": ".concepts.concept_maps",
    "concept_vector": ".concepts.cav",
    "apply_edits": ".concepts.interventions",
    "effective_rank": ".decomposition.metrics",
    "explain_steps": ".explanation",
    "gradients": ".decomposition.jacobian",
    "image_lens": ".lens.restoration",
    "prepare_images": ".models.inputs",
    "jacobian": ".decomposition.jacobian",
    "labels_at": ".concepts.labels",
    "lens_over_layers": ".lens.restoration_by_layer",
    "linear_cka": ".decomposition.metrics",
    "linear_probe": ".concepts.probing",
    "load_model": ".models.loading",
    "nmf": ".decomposition.nmf",
    "participation_ratio": ".decomposition.metrics",
    "principal_angles": ".decomposition.alignment",
    "probe_steps": ".concepts.probing",
    "rank_me": ".decomposition.metrics",
    "redundant_heads": ".decomposition.metrics",
    "tcav": ".concepts.tcav",
    "sensitivities": ".concepts.cav",
    "component_rms": ".concepts.interventions",
    "sr_lens": ".lens.restoration",
    "stable_rank": ".decomposition.metrics",
    "compute_streaming_svd": ".decomposition.streaming_svd",
    "tcav_steps": ".concepts.tcav",
    "top_patches": ".concepts.patches",
    "track_checkpoints": ".tracking.checkpoints",
    "track_training_steps": ".tracking.checkpoints",
}

__all__ = [
    "TCAV",
    "ActivationStep",
    "Attention",
    "Components",
    "Concept",
    "ConceptMap",
    "Counterfactual",
    "Edit",
    "Examples",
    "ExplainSettings",
    "ExplainedModel",
    "Explanation",
    "Finding",
    "ImageLens",
    "Lens",
    "LensRecord",
    "LensTracker",
    "LinearProbe",
    "Measure",
    "NMFComponents",
    "Patch",
    "Patches",
    "SampleLocations",
    "StreamingSVD",
    "TCAVStep",
    "Thresholds",
    "TrackSettings",
    "Tracker",
    "Volume",
    "activation_steps",
    "activations",
    "align_components",
    "apply_edits",
    "attention",
    "block_groups",
    "compare_domains",
    "component_gradient",
    "component_rms",
    "compute_streaming_svd",
    "concept_map",
    "concept_maps",
    "concept_vector",
    "effective_rank",
    "explain_steps",
    "gradients",
    "image_lens",
    "jacobian",
    "labels_at",
    "lens_over_layers",
    "linear_cka",
    "linear_probe",
    "load_model",
    "nmf",
    "participation_ratio",
    "prepare_images",
    "principal_angles",
    "probe_steps",
    "rank_me",
    "redundant_heads",
    "sensitivities",
    "sr_lens",
    "stable_rank",
    "tcav",
    "tcav_steps",
    "top_patches",
    "track_checkpoints",
    "track_training_steps",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name], __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
