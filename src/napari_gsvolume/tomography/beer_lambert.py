"""Attenuation and intensity (Beer-Lambert law), Hounsfield units."""

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
"""Attenuation of water at 70 keV, about the mean energy of a CT scanner's beam, in 1 / mm."""


def attenuation(intensities: ArrayLike, i0: float, flat: ArrayLike | None = None) -> Float32Array:
    """Return line integrals of attenuation, ``-log(I / (I0 flat))``.

    Parameters
    ----------
    intensities : array_like, (K, V, U)
        What the detector has counted, its dark signal subtracted.
    i0 : float
        The intensity where nothing is in the way; 1 if `flat` has it.
    flat : array_like, (V, U) or (K, V, U), optional
        How much of `i0` each pixel shows where nothing is in the way; 1 everywhere if omitted.

    Raises
    ------
    ValueError
        If an intensity, `i0` or a pixel of the flat field is not a positive number, or the flat field is of another
        detector.
    """
    images = np.asarray(intensities, np.float64)
    bad = int(np.count_nonzero(~(images > 0) | ~np.isfinite(images)))
    if bad:
        raise InputError(
            f"{bad:,} of {images.size:,} intensities are zero, negative or no numbers and have no logarithm; set them "
            "to one count, or check that the dark signal was not subtracted twice."
        )
    return np.asarray(-np.log(images / _open(i0, flat, images.shape)), np.float32)


def intensities(line_integrals: ArrayLike, i0: float, flat: ArrayLike | None = None) -> Float32Array:
    """Return what comes through, ``I0 flat exp(-p)``: the inverse of `attenuation`."""
    images = np.asarray(line_integrals, np.float64)
    return np.asarray(np.exp(-images) * _open(i0, flat, images.shape), np.float32)


def _open(i0: float, flat: ArrayLike | None, shape: tuple[int, ...]) -> Any:
    """Return the intensity where nothing is in the way."""
    if not 0 < i0 < math.inf:
        raise InputError(f"The intensity I0 where nothing is in the way has to be positive; got {i0:g}.")
    if flat is None:
        return i0
    field = np.asarray(flat, np.float64)
    if field.shape not in (shape, shape[1:]):
        raise InputError(f"The flat field is of shape {field.shape}, the images are of {shape[1:]} pixels (v, u).")
    if not ((field > 0) & np.isfinite(field)).all():
        raise InputError("The flat field holds pixels that are not positive numbers; replace them by their neighbours.")
    return i0 * field


@overload
def hounsfield_to_attenuation(hu: GaussianVolume, water: float = WATER) -> GaussianVolume: ...


@overload
def hounsfield_to_attenuation(hu: ArrayLike, water: float = WATER) -> Float32Array: ...


def hounsfield_to_attenuation(hu: ArrayLike | GaussianVolume, water: float = WATER) -> Float32Array | GaussianVolume:
    """Return the attenuation ``water (1 + HU / 1000)``, in the unit of `water`: 1 / mm.

    Voxels get at least 0; Gaussians stay a sum of Gaussians, which may fall a little below.
    """
    if isinstance(hu, GaussianVolume):
        background = water * (1 + hu.background / 1000)
        return replace(hu, weights=hu.weights * (water / 1000), background=background)
    return np.maximum(water * (1 + np.asarray(hu, np.float32) / 1000), 0).astype(np.float32)
