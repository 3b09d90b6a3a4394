"""Noise of projections: photon counts (Poisson) and electronic noise (Gaussian)."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import InputError
from ..types import Float32Array

DEPTH = 4.0
"""Optical depth of the largest line integral where intensities are no attenuation: 1.8 % of the photons come through"""
_MOST_COUNTS = 1e15  # numpy's Poisson numbers end at 9e18


def with_noise(
    images: ArrayLike,
    photons: float | None = None,
    sigma: float | None = None,
    seed: int = 0,
    depth: float | None = DEPTH,
) -> Float32Array:
    """Return projections with noise.

    Parameters
    ----------
    images : array_like, (K, V, U)
        Line integrals; with `sigma` alone, any images.
    photons : float, optional
        Counts a pixel where nothing is in the way. They are Poisson's, at least one, and become line integrals again,
        in the unit of `images`.
    sigma : float, optional
        Standard deviation of Gaussian noise that is added (after that of photons), in the unit of `images`.
    seed : int
    depth : float or None
        Line integrals of any intensity are no optical depths: they are scaled such that the largest of all views
        becomes this one. None if the intensities are attenuation in 1 / mm, and so nothing is to be scaled.

    Raises
    ------
    ValueError
        If a number is not positive, or no line integral is.
    """
    random = np.random.default_rng(seed)
    noisy = np.asarray(images, np.float64)
    if photons is not None:
        scale = _depth_scale(noisy, depth)
        counts = np.maximum(random.poisson(_mean_counts(noisy * scale, photons)), 1)
        noisy = -np.log(counts / photons) / scale
    if sigma is not None:
        if not 0 < sigma < math.inf:
            raise InputError(f"The standard deviation of noise has to be positive; got {sigma:g}.")
        noisy = noisy + random.normal(0, sigma, noisy.shape)
    return noisy.astype(np.float32)


def noise_variance(images: ArrayLike, photons: float, depth: float | None = DEPTH) -> Float32Array:
    """Return the variance of each line integral, 1 / counts, in the unit of `images` squared.

    The counts are those expected, at least one. Parameters are as in `with_noise`; noisy images, too, give about the
    variance of their pixels.
    """
    values = np.asarray(images, np.float64)
    scale = _depth_scale(values, depth)
    return (1 / np.maximum(_mean_counts(values * scale, photons), 1) / scale**2).astype(np.float32)


def _depth_scale(images: NDArray[np.float64], depth: float | None) -> float:
    """Return the factor that makes line integrals optical depths."""
    if depth is None:
        return 1.0
    largest = float(images.max())
    if not 0 < depth < math.inf:
        raise InputError(f"The optical depth of the largest line integral has to be positive; got {depth:g}.")
    if not largest > 0:
        raise InputError("No line integral is positive, so there is nothing that could absorb photons.")
    return depth / largest


def _mean_counts(depths: NDArray[np.float64], photons: float) -> NDArray[np.float64]:
    if not 0 < photons < math.inf:
        raise InputError(f"The number of photons a pixel has to be positive; got {photons:g}.")
    counts = photons * np.exp(-depths)
    if counts.max() > _MOST_COUNTS:
        raise InputError(f"Up to {counts.max():.0e} photons a pixel are too many to be counted; ask for fewer.")
    return counts
