"""Noise model of projections: photon counting noise (Poisson) and electronic noise (Gaussian)."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import InputError
from ..types import Float32Array

OPTICAL_DEPTH = 4.0
"""Default optical depth of the largest line integral of arbitrary intensities: a transmission of 1.8 %."""
_MAX_COUNTS = 1e15  # numpy's Poisson generator is limited to 9e18


def add_noise(
    images: ArrayLike,
    photons: float | None = None,
    sigma: float | None = None,
    seed: int = 0,
    depth: float | None = OPTICAL_DEPTH,
) -> Float32Array:
    """Return projections with Poisson noise of photon counts, Gaussian noise, or both.

    Parameters
    ----------
    images : array_like, (K, V, U)
        Line integrals; with `sigma` alone, any images.
    photons : float, optional
        Unattenuated photons per pixel. Counts are drawn from a Poisson distribution, clipped at one, and converted
        back to line integrals in the unit of `images`.
    sigma : float, optional
        Standard deviation of additive Gaussian noise, in the unit of `images`.
    seed : int
        Seed of the random generator.
    depth : float or None
        Optical depth of the largest line integral of all views, for intensities in arbitrary units. None if the
        intensities are attenuation in 1 / mm: the line integrals are optical depths then.

    Returns
    -------
    ndarray, (K, V, U), float32

    Raises
    ------
    ValueError
        If a parameter is not positive, or no line integral is.

    References
    ----------
    .. [1] J. Hsieh, "Computed Tomography: Principles, Design, Artifacts, and Recent Advances", SPIE Press, 2nd ed.,
       2009, chapter 5.

    Examples
    --------
    >>> import numpy as np
    >>> from napari_gsvolume.tomography import add_noise
    >>> clean = np.full((1, 50, 50), 2.0)
    >>> noisy = add_noise(clean, photons=1e4, depth=None)
    >>> bool(abs(noisy.std() / np.sqrt(np.exp(2) / 1e4) - 1) < 0.1)
    True
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


def noise_variance(images: ArrayLike, photons: float, depth: float | None = OPTICAL_DEPTH) -> Float32Array:
    """Return the variance of each line integral due to photon noise, 1 / counts, in the unit of `images` squared.

    Counts are expected counts, clipped at one. Noisy images give an estimate of the variance of their own pixels.

    Parameters
    ----------
    images, photons, depth
        Projections and photon noise, as in `add_noise`.

    Returns
    -------
    ndarray, (K, V, U), float32
    """
    values = np.asarray(images, np.float64)
    scale = _depth_scale(values, depth)
    return (1 / np.maximum(_mean_counts(values * scale, photons), 1) / scale**2).astype(np.float32)


def _depth_scale(images: NDArray[np.float64], depth: float | None) -> float:
    """Return the factor from line integrals to optical depths."""
    if depth is None:
        return 1.0
    largest = float(images.max())
    if not 0 < depth < math.inf:
        raise InputError(f"The optical depth of the largest line integral has to be positive; got {depth:g}.")
    if not largest > 0:
        raise InputError("No line integral is positive, so no photon is absorbed.")
    return depth / largest


def _mean_counts(depths: NDArray[np.float64], photons: float) -> NDArray[np.float64]:
    if not 0 < photons < math.inf:
        raise InputError(f"The number of photons per pixel has to be positive; got {photons:g}.")
    counts = photons * np.exp(-depths)
    if counts.max() > _MAX_COUNTS:
        raise InputError(
            f"Up to {counts.max():.0e} photons per pixel are too many for the Poisson generator; reduce the number."
        )
    return counts
