"""What a network computes, as a few directions: the SVD of its activations, of its Jacobians and of its attention.

The names below are loaded when first used: importing the package costs nothing, torch comes with what needs it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .alignment import aligned, principal_angles
    from .capture import activation_steps, activations
    from .decomposition import Decomposition, Places
    from .derivatives import gradients, jacobian
    from .findings import Finding, Thresholds
    from .following import compare, track_checkpoints, tracked
    from .heads import Attention, attention
    from .metrics import effective_rank, linear_cka, participation_ratio, rank_me, redundant_heads, stable_rank
    from .parts import Parts, nmf
    from .samples import CaptureStep
    from .streaming import StreamingSVD, streamed_svd
    from .tracker import Tracker

_HOMES = {
    "Attention": ".heads",
    "CaptureStep": ".samples",
    "Decomposition": ".decomposition",
    "Finding": ".findings",
    "Parts": ".parts",
    "Places": ".decomposition",
    "StreamingSVD": ".streaming",
    "Thresholds": ".findings",
    "Tracker": ".tracker",
    "activation_steps": ".capture",
    "activations": ".capture",
    "aligned": ".alignment",
    "attention": ".heads",
    "compare": ".following",
    "effective_rank": ".metrics",
    "gradients": ".derivatives",
    "jacobian": ".derivatives",
    "linear_cka": ".metrics",
    "nmf": ".parts",
    "participation_ratio": ".metrics",
    "principal_angles": ".alignment",
    "rank_me": ".metrics",
    "redundant_heads": ".metrics",
    "stable_rank": ".metrics",
    "streamed_svd": ".streaming",
    "track_checkpoints": ".following",
    "tracked": ".following",
}

__all__ = [
    "Attention",
    "CaptureStep",
    "Decomposition",
    "Finding",
    "Parts",
    "Places",
    "StreamingSVD",
    "Thresholds",
    "Tracker",
    "activation_steps",
    "activations",
    "aligned",
    "attention",
    "compare",
    "effective_rank",
    "gradients",
    "jacobian",
    "linear_cka",
    "nmf",
    "participation_ratio",
    "principal_angles",
    "rank_me",
    "redundant_heads",
    "stable_rank",
    "streamed_svd",
    "track_checkpoints",
    "tracked",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name], __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
