"""Constants of all kernels."""

from __future__ import annotations

SUPPORT = 3.3
"""Radius, in standard deviations, beyond which a Gaussian is zero (it has fallen to 0.4 % of its peak)."""
NOT_FINITE = "A Gaussian's mean or factor is NaN or infinite."
