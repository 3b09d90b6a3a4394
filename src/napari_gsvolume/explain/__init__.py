"""What a network computes, as a few directions: the SVD of its activations, of its Jacobians and of its attention.

The names below are loaded when first used: importing the package costs nothing, torch comes with what needs it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .capture import activation_steps, activations
    from .decomposition import Decomposition, Places
    from .samples import CaptureStep
    from .streaming import StreamingSVD, streamed_svd

_HOMES = {
    "CaptureStep": ".samples",
    "Decomposition": ".decomposition",
    "Places": ".decomposition",
    "StreamingSVD": ".streaming",
    "activation_steps": ".capture",
    "activations": ".capture",
    "streamed_svd": ".streaming",
}

__all__ = [
    "CaptureStep",
    "Decomposition",
    "Places",
    "StreamingSVD",
    "activation_steps",
    "activations",
    "streamed_svd",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name], __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
