"""What a network computes, as a few directions: the SVD of its activations, of its Jacobians and of its attention.

The names below are loaded when first used: importing the package costs nothing, torch comes with what needs it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .capture import activation_steps, activations
    from .decomposition import Decomposition, Places
    from .derivatives import gradients, jacobian
    from .heads import Attention, attention
    from .metrics import effective_rank, linear_cka, participation_ratio, rank_me, redundant_heads, stable_rank
    from .parts import Parts, nmf
    from .samples import CaptureStep
    from .streaming import StreamingSVD, streamed_svd

_HOMES = {
    "Attention": ".heads",
    "CaptureStep": ".samples",
    "Decomposition": ".decomposition",
    "Parts": ".parts",
    "Places": ".decomposition",
    "StreamingSVD": ".streaming",
    "activation_steps": ".capture",
    "activations": ".capture",
    "attention": ".heads",
    "effective_rank": ".metrics",
    "gradients": ".derivatives",
    "jacobian": ".derivatives",
    "linear_cka": ".metrics",
    "nmf": ".parts",
    "participation_ratio": ".metrics",
    "rank_me": ".metrics",
    "redundant_heads": ".metrics",
    "stable_rank": ".metrics",
    "streamed_svd": ".streaming",
}

__all__ = [
    "Attention",
    "CaptureStep",
    "Decomposition",
    "Parts",
    "Places",
    "StreamingSVD",
    "activation_steps",
    "activations",
    "attention",
    "effective_rank",
    "gradients",
    "jacobian",
    "linear_cka",
    "nmf",
    "participation_ratio",
    "rank_me",
    "redundant_heads",
    "stable_rank",
    "streamed_svd",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name], __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
