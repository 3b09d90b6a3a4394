"""Beer-Lambert law: attenuation and intensity; Hounsfield units."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, overload

import numpy as np
from numpy.typing import ArrayLike

from ..errors import InputError
from ..gaussians import GaussianVolume
from ..types import Float32Array

WATER = 0.0193
"""Linear attenuation coefficient of water at 70 keV, about the mean energy of a CT scanner, 1 / mm."""


def attenuation(intensities: ArrayLike, i0: float, flat: ArrayLike | None = None) -> Float32Array:
    """Return line integrals of attenuation from measured intensities, ``p = -log(I / (I0 flat))``.

    Parameters
    ----------
    intensities : array_like, (K, V, U)
        Detector counts, with the dark signal subtracted.
    i0 : float
        Unattenuated intensity; 1 if `flat` is an image of the open beam itself.
    flat : array_like, (V, U) or (K, V, U), optional
        Flat field: open-beam intensity of each pixel, relative to `i0`; 1 everywhere if omitted.

    Returns
    -------
    ndarray, (K, V, U), float32
        Line integrals, dimensionless; the optical depth along each ray.

    Raises
    ------
    ValueError
        If an intensity, `i0` or a pixel of the flat field is not a positive number, or the flat field has another
        shape.

    See Also
    --------
    intensities : The inverse.

    References
    ----------
    .. [1] A. C. Kak and M. Slaney, "Principles of Computerized Tomographic Imaging", IEEE Press, 1988, chapter 4.

    Examples
    --------
    >>> from napari_gsvolume.tomography import attenuation
    >>> attenuation([[[1000.0, 367.88]]], i0=1000.0).round(3) + 0.0
    array([[[0., 1.]]], dtype=float32)
    """
    images = np.asarray(intensities, np.float64)
    bad = int(np.count_nonzero(~(images > 0) | ~np.isfinite(images)))
    if bad:
        raise InputError(
            f"{bad:,} of {images.size:,} intensities are zero, negative or not finite and have no logarithm; set them "
            "to one count, or check that the dark signal was not subtracted twice."
        )
    return np.asarray(-np.log(images / _open(i0, flat, images.shape)), np.float32)


def intensities(line_integrals: ArrayLike, i0: float, flat: ArrayLike | None = None) -> Float32Array:
    """Return the transmitted intensities of line integrals, ``I = I0 flat exp(-p)`` (Beer-Lambert law).

    Parameters
    ----------
    line_integrals : array_like, (K, V, U)
        Line integrals of attenuation, dimensionless.
    i0 : float
        Unattenuated intensity.
    flat : array_like, (V, U) or (K, V, U), optional
        Flat field, relative to `i0`; 1 everywhere if omitted.

    Returns
    -------
    ndarray, (K, V, U), float32

    See Also
    --------
    attenuation : The inverse, with its reference.

    Examples
    --------
    >>> from napari_gsvolume.tomography import intensities
    >>> intensities([[[0.0, 1.0]]], i0=1000.0).round(1)
    array([[[1000. ,  367.9]]], dtype=float32)
    """
    images = np.asarray(line_integrals, np.float64)
    return np.asarray(np.exp(-images) * _open(i0, flat, images.shape), np.float32)


def _open(i0: float, flat: ArrayLike | None, shape: tuple[int, ...]) -> Any:
    """Return the open-beam intensity of each pixel."""
    if not 0 < i0 < math.inf:
        raise InputError(f"The unattenuated intensity I0 has to be positive; got {i0:g}.")
    if flat is None:
        return i0
    field = np.asarray(flat, np.float64)
    if field.shape not in (shape, shape[1:]):
        raise InputError(f"The flat field has shape {field.shape}, the images have {shape[1:]} pixels (v, u).")
    if not ((field > 0) & np.isfinite(field)).all():
        raise InputError("The flat field holds pixels that are not positive numbers; replace them by their neighbours.")
    return i0 * field


@overload
def hounsfield_to_attenuation(hu: GaussianVolume, water: float = WATER) -> GaussianVolume: ...


@overload
def hounsfield_to_attenuation(hu: ArrayLike, water: float = WATER) -> Float32Array: ...


def hounsfield_to_attenuation(hu: ArrayLike | GaussianVolume, water: float = WATER) -> Float32Array | GaussianVolume:
    """Return the linear attenuation coefficient of Hounsfield units, ``water (1 + HU / 1000)``.

    Parameters
    ----------
    hu : array_like or GaussianVolume
        Volume in Hounsfield units.
    water : float
        Linear attenuation coefficient of water; at 70 keV it is 0.0193 / mm.

    Returns
    -------
    ndarray or GaussianVolume
        Attenuation in the unit of `water`. Voxels are clipped at 0; Gaussians are not clipped and may fall slightly
        below 0.

    Examples
    --------
    >>> from napari_gsvolume.tomography import hounsfield_to_attenuation
    >>> hounsfield_to_attenuation([-1000, 0, 1000])
    array([0.    , 0.0193, 0.0386], dtype=float32)
    """
    if isinstance(hu, GaussianVolume):
        background = water * (1 + hu.background / 1000)
        return replace(hu, weights=hu.weights * (water / 1000), background=background)
    return np.maximum(water * (1 + np.asarray(hu, np.float32) / 1000), 0).astype(np.float32)
