"""Degradation model of a scanner of lower resolution, and projection on the images that agree with a measurement.

A degradation D is linear and separable, with one matrix (n_low, n_high) for each axis. Voxels are cells: both grids
begin at the same face, and cell j of the low one covers [j f, (j + 1) f] of the high one, with the factor f, as in
`Grid.resampled`. Rows sum to one, near the border over the existing voxels: constant images stay constant.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import ndtr

from ..errors import InputError
from ..types import Float64Array
from .settings import DegradationKind

Array = TypeVar("Array", NDArray[Any], torch.Tensor)

_SIGMA = 1 / (2 * math.sqrt(2 * math.log(2)))  # standard deviation of a Gaussian with a full width at half maximum of 1
_REACH = 4  # standard deviations after which the Gaussian is truncated
_WORST_CONDITION = 200  # condition number of one axis up to which the projection holds in float32


@dataclass(frozen=True, eq=False)
class Degradation:
    """Separable linear operator from high-resolution to low-resolution images, with adjoint and pseudo-inverse.

    The operator applies to the last axes of numpy arrays and torch tensors, in their precision, on their device and
    differentiably; integers become float32. Axes before these are a batch: the two matrices of a slice degrade a stack
    of slices.

    Attributes
    ----------
    matrices : tuple of ndarray (n_low, n_high), or None
        Matrix of each axis; None is the identity.
    low, high : tuple of int
        Shapes of low-resolution and high-resolution images.

    References
    ----------
    .. [1] R. Keys, "Cubic convolution interpolation for digital image processing", IEEE Transactions on Acoustics,
       Speech, and Signal Processing 29, 1981.

    Examples
    --------
    >>> import numpy as np
    >>> from napari_gsvolume.super_resolution import Degradation
    >>> D = Degradation.of_low((2, 2), (2, 2))
    >>> D.degrade(np.arange(16.0).reshape(4, 4))
    array([[ 2.5,  4.5],
           [10.5, 12.5]])
    >>> measurement = np.eye(2)
    >>> projected = D.project(np.zeros((4, 4)), measurement)
    >>> np.allclose(D.degrade(projected), measurement)
    True
    """

    matrices: tuple[Float64Array | None, ...]
    low: tuple[int, ...]
    high: tuple[int, ...]

    @classmethod
    def of_low(
        cls, low: Sequence[int], factors: Sequence[float], kind: DegradationKind = "block-mean", fwhm: float = 1.0
    ) -> Degradation:
        """Return the degradation to images of the shape `low`, from images on the grid ``Grid.resampled(factors)``.

        Parameters
        ----------
        low : sequence of int
            Shape of the measurement; the high resolution has ``round(n_low * factor)`` voxels along each axis.
        factors : sequence of float
            Factor of each axis, 1 or more, whole or not.
        kind : {"block-mean", "bicubic", "psf"}
            - ``block-mean``: mean over a low voxel; high voxels count by their overlap.
            - ``bicubic``: cubic kernel of Keys (1981) with a = -1/2, stretched by the factor, as in Pillow and in torch
              with ``antialias=True`` (not as in OpenCV, nor in torch without).
            - ``psf``: Gaussian point spread function, centred on the low voxel, integrated over each high one,
              truncated at 4 sigma.
        fwhm : float
            Full width at half maximum of the point spread function, in low-resolution voxels.

        Raises
        ------
        InputError
            If factors, shape, kind or fwhm are out of range.
        """
        return cls._between(low, [max(1, round(n * f)) for n, f in _pairs(low, factors)], factors, kind, fwhm)

    @classmethod
    def of_high(
        cls, high: Sequence[int], factors: Sequence[float], kind: DegradationKind = "block-mean", fwhm: float = 1.0
    ) -> Degradation:
        """Return the degradation of images of the shape `high` to ``round(n_high / factor)`` voxels; see `of_low`."""
        return cls._between([max(1, round(n / f)) for n, f in _pairs(high, factors)], high, factors, kind, fwhm)

    @classmethod
    def _between(
        cls, low: Sequence[int], high: Sequence[int], factors: Sequence[float], kind: DegradationKind, fwhm: float
    ) -> Degradation:
        if kind not in get_args(DegradationKind):
            raise InputError(f"The degradation model is one of {', '.join(get_args(DegradationKind))}; got {kind}.")
        if not (fwhm > 0 and math.isfinite(fwhm)):
            raise InputError(f"The full width at half maximum of the psf is positive; got {fwhm}.")
        matrices = tuple(
            None if f == 1 else _matrix(m, n, f, kind, fwhm) for m, n, f in zip(low, high, factors, strict=True)
        )
        return cls(matrices, tuple(low), tuple(high))

    @cached_property
    def inverses(self) -> tuple[Float64Array | None, ...]:
        """The pseudo-inverse (n_high, n_low) of each axis.

        Raises
        ------
        InputError
            If an axis is ill-conditioned: a point spread function much wider than a voxel.
        """
        return tuple(None if matrix is None else _inverse(matrix) for matrix in self.matrices)

    def degrade(self, image: Array) -> Array:
        """Return the degraded image D F, (..., *low), of an image F, (..., *high)."""
        return self._through(self.matrices, image, self.high)

    def adjoint(self, low: Array) -> Array:
        """Return the adjoint D^T y, (..., *high), of y, (..., *low)."""
        return self._through([None if m is None else m.T for m in self.matrices], low, self.low)

    def pseudo_inverse(self, low: Array) -> Array:
        """Return D^+ y, (..., *high): the image of least norm of which y, (..., *low), is the degradation."""
        return self._through(self.inverses, low, self.low)

    def project(self, image: Array, low: Array) -> Array:
        """Return the image nearest to `image` (least squares) of which the degradation equals the measurement.

        It is ``F + D^+ (F_L - D F)``: the null space of D is unchanged. In float32 the agreement is 1e-5 of the
        largest measurement, or better.

        Parameters
        ----------
        image : ndarray or Tensor, (..., *high)
            F, a prediction.
        low : ndarray or Tensor, (..., *low)
            F_L, the measurement.

        Raises
        ------
        InputError
            If a shape does not fit, or the degradation is ill-conditioned.
        """
        prediction = as_floating(image)
        projected: Array = prediction + self.pseudo_inverse(as_floating(low) - self.degrade(prediction))
        return projected

    def _through(self, matrices: Sequence[Float64Array | None], array: Array, shape: tuple[int, ...]) -> Array:
        if tuple(array.shape[max(0, array.ndim - len(shape)) :]) != shape:
            raise InputError(f"The last axes of the image have to be {shape}; its shape is {tuple(array.shape)}.")
        return apply_separable(array, matrices)


def apply_separable(array: Array, matrices: Sequence[Float64Array | None]) -> Array:
    """Return an array or tensor with each of its last axes multiplied by a matrix (m, n); None is the identity."""
    array = as_floating(array)
    for axis, matrix in enumerate(matrices, array.ndim - len(matrices)):
        if matrix is not None:
            array = _along(array, matrix, axis)
    return array


def as_floating(array: Array) -> Array:
    """Return an array or tensor of floating-point numbers unchanged, others as float32."""
    if isinstance(array, torch.Tensor):
        return array if array.is_floating_point() else array.to(torch.float32)
    return array if array.dtype.kind == "f" else array.astype(np.float32)


def _along(array: Any, matrix: Float64Array, axis: int) -> Any:
    before, n, after = array.shape[:axis], array.shape[axis], array.shape[axis + 1 :]
    if isinstance(array, torch.Tensor):
        M: Any = torch.as_tensor(np.ascontiguousarray(matrix), dtype=array.dtype, device=array.device)
    else:
        M = matrix.astype(array.dtype)
    # Products of whole matrices, without copies: (m, n) @ (batch, n, after), and of the last axis (batch, n) @ (n, m).
    product = M @ array.reshape(-1, n, math.prod(after)) if after else array.reshape(-1, n) @ M.T
    return product.reshape(*before, len(matrix), *after)


def _matrix(n_low: int, n_high: int, factor: float, kind: DegradationKind, fwhm: float) -> Float64Array:
    j = np.arange(n_low)[:, None]
    face = np.arange(n_high + 1)
    if kind == "block-mean":
        weights: Float64Array = np.diff(np.clip(face, j * factor, (j + 1) * factor))  # overlap of the cells i and j
    elif kind == "bicubic":
        distance = np.abs(face[:-1] + 0.5 - (j + 0.5) * factor) / factor
        weights = _keys(distance)
    else:
        sigma = fwhm * factor * _SIGMA
        z = np.clip((face - (j + 0.5) * factor) / sigma, -_REACH, _REACH)
        weights = np.diff(ndtr(z))
    return np.asarray(weights / weights.sum(1, keepdims=True))


def _keys(t: Float64Array, a: float = -0.5) -> Float64Array:
    """Return the cubic convolution kernel of Keys 1981 at distances t >= 0."""
    near = ((a + 2) * t - (a + 3)) * t**2 + 1
    far = (((t - 5) * t + 8) * t - 4) * a
    return np.where(t < 1, near, np.where(t < 2, far, 0.0))


def _inverse(matrix: Float64Array) -> Float64Array:
    values = np.linalg.svd(matrix, compute_uv=False)
    if len(matrix) > matrix.shape[1] or values[-1] * _WORST_CONDITION < values[0]:
        raise InputError(
            "This degradation is too ill-conditioned for the projection: use a narrower psf, another degradation, or "
            "no projection."
        )
    return np.asarray(np.linalg.pinv(matrix), dtype=np.float64)


def _pairs(shape: Sequence[int], factors: Sequence[float]) -> list[tuple[int, float]]:
    if len(shape) != len(factors) or min(shape, default=0) < 1:
        raise InputError(
            f"Each axis needs one voxel or more, and a factor; got shape {tuple(shape)} and factors {tuple(factors)}."
        )
    if not all(math.isfinite(f) and f >= 1 for f in factors):
        raise InputError(f"Factors are 1 or more; got {tuple(factors)}.")
    return list(zip(shape, factors, strict=True))
