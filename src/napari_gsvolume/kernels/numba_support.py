"""Shared parts of the numba kernels: one lock for parallel launches, floating-point flags and a fast exponential."""

from __future__ import annotations

import threading
from math import exp

import numpy as np
from numba import njit

from .constants import SUPPORT

f4 = np.float32
# Reassociation lets sums vectorise. "nnan" and "ninf" stay out: lanes beyond the support may overflow before they are
# masked.
FAST_MATH = {"reassoc", "contract", "nsz", "arcp"}
# The workqueue threading layer aborts the process when two threads launch parallel kernels at once.
launch_lock = threading.Lock()
_MIDDLE = SUPPORT**2 / 64
_Q1 = exp(-_MIDDLE)  # also the constant term
_Q2, _Q3, _Q4 = _Q1 / 2, _Q1 / 6, _Q1 / 24


@njit(cache=True, nogil=True, error_model="numpy", fastmath=FAST_MATH, inline="always")
def exp16(t):  # type: ignore[no-untyped-def]
    """Return exp(16 t) for 16 t in [-SUPPORT^2 / 2, 0], relative error 2e-5: a quartic, squared four times.

    The quartic is exp's expansion at the middle of the interval.
    """
    s = t + f4(_MIDDLE)
    p = f4(_Q4)
    p = f4(_Q3) + s * p
    p = f4(_Q2) + s * p
    p = f4(_Q1) + s * p
    p = f4(_Q1) + s * p
    p = p * p
    p = p * p
    p = p * p
    return p * p
