"""What a scanner of lower resolution makes of an image, and images that agree with what it measured.

A degradation D is separable, one matrix (n_low, n_high) an axis, and linear. Voxels are cells: both grids begin at the
same face, cell j of the low one covers [j f, (j + 1) f] of the high one, f being the factor, so the grids are those of
`Grid.resampled`. Rows add up to one, near the border over the voxels there are: what is constant stays so.
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

_SIGMA = 1 / (2 * math.sqrt(2 * math.log(2)))  # of a Gaussian whose full width at half maximum is 1
_REACH = 4  # standard deviations after which the Gaussian is cut
_WORST_CONDITION = 200  # of one axis, up to which float32 can be made to agree


@dataclass(frozen=True, eq=False)
class Degradation:
    """A separable operator from images of high resolution to those of low, and its pseudo-inverse.

    It works on the last axes of numpy arrays and of torch tensors (which it keeps where they are, and through which
    gradients flow), in their precision; integers become float32. Axes before those are a batch: the two matrices of a
    slice degrade a stack of slices.

    Attributes
    ----------
    matrices : tuple of ndarray (n_low, n_high), or None
        One for each axis; None leaves it as it is.
    low, high : tuple of int
        Shapes.
    """

    matrices: tuple[Float64Array | None, ...]
    low: tuple[int, ...]
    high: tuple[int, ...]

    @classmethod
    def of_low(
        cls, low: Sequence[int], factors: Sequence[float], kind: DegradationKind = "block-mean", fwhm: float = 1.0
    ) -> Degradation:
        """Return the operator onto images of the shape `low` from those `Grid.resampled` makes of it.

        Parameters
        ----------
        low : sequence of int
            Shape of what was measured; of the high resolution there are ``round(n_low * factor)`` voxels an axis.
        factors : sequence of float
            One for each axis, 1 or more: whole or not.
        kind : {"block-mean", "bicubic", "psf"}
            - ``block-mean``: the mean over a low voxel, parts of high ones counting in part.
            - ``bicubic``: the cubic kernel of Keys 1981 with a = -1/2, stretched by the factor, as Pillow has it and
              torch with ``antialias=True`` (not OpenCV's, nor torch's without).
            - ``psf``: a Gaussian, centred on the low voxel, integrated over each high one, cut at 4 sigma.
        fwhm : float
            Full width at half maximum of the psf, in low voxels.

        Raises
        ------
        ValueError
            If factors, shape, kind or fwhm are not as above.
        """
        return cls._between(low, [max(1, round(n * f)) for n, f in _pairs(low, factors)], factors, kind, fwhm)

    @classmethod
    def of_high(
        cls, high: Sequence[int], factors: Sequence[float], kind: DegradationKind = "block-mean", fwhm: float = 1.0
    ) -> Degradation:
        """Return the operator from images of the shape `high`: to ``round(n_high / factor)`` voxels; see `of_low`."""
        return cls._between([max(1, round(n / f)) for n, f in _pairs(high, factors)], high, factors, kind, fwhm)

    @classmethod
    def _between(
        cls, low: Sequence[int], high: Sequence[int], factors: Sequence[float], kind: DegradationKind, fwhm: float
    ) -> Degradation:
        if kind not in get_args(DegradationKind):
            raise InputError(f"A degradation is one of {', '.join(get_args(DegradationKind))}; got {kind}.")
        if not (fwhm > 0 and math.isfinite(fwhm)):
            raise InputError(f"The full width at half maximum of a psf is positive; got {fwhm}.")
        matrices = tuple(
            None if f == 1 else _matrix(m, n, f, kind, fwhm) for m, n, f in zip(low, high, factors, strict=True)
        )
        return cls(matrices, tuple(low), tuple(high))

    @cached_property
    def inverses(self) -> tuple[Float64Array | None, ...]:
        """The pseudo-inverse (n_high, n_low) of each axis.

        Raises
        ------
        ValueError
            If an axis loses too much to be undone: a psf much wider than a voxel.
        """
        return tuple(None if matrix is None else _inverse(matrix) for matrix in self.matrices)

    def degrade(self, image: Array) -> Array:
        """Return D F, (..., *low), of an image F, (..., *high)."""
        return self._through(self.matrices, image, self.high)

    def adjoint(self, low: Array) -> Array:
        """Return D^T y, (..., *high), of y, (..., *low)."""
        return self._through([None if m is None else m.T for m in self.matrices], low, self.low)

    def restored(self, low: Array) -> Array:
        """Return D^+ y, (..., *high), the image of least norm that y, (..., *low), is a degradation of."""
        return self._through(self.inverses, low, self.low)

    def project(self, image: Array, low: Array) -> Array:
        """Return the image nearest to `image` (least squares) that degrades to exactly what was measured.

        It is ``F + D^+ (F_L - D F)``: what D does not see is left as it is. In float32 it holds to 1e-5 of the
        largest measurement, or better.

        Parameters
        ----------
        image : ndarray or Tensor, (..., *high)
            F, a prediction.
        low : ndarray or Tensor, (..., *low)
            F_L, the measurement.

        Raises
        ------
        ValueError
            If a shape is another one, or `inverses` does not exist.
        """
        prediction = floating(image)
        projected: Array = prediction + self.restored(floating(low) - self.degrade(prediction))
        return projected

    def _through(self, matrices: Sequence[Float64Array | None], array: Array, shape: tuple[int, ...]) -> Array:
        if tuple(array.shape[max(0, array.ndim - len(shape)) :]) != shape:
            raise InputError(
                f"An image of the last axes {shape} is needed; this one has the shape {tuple(array.shape)}."
            )
        return separable(array, matrices)


def separable(array: Array, matrices: Sequence[Float64Array | None]) -> Array:
    """Return an array or tensor with each of its last axes multiplied by a matrix (m, n), or by none."""
    array = floating(array)
    for axis, matrix in enumerate(matrices, array.ndim - len(matrices)):
        if matrix is not None:
            array = _along(array, matrix, axis)
    return array


def floating(array: Array) -> Array:
    """Return an array or tensor as it is if it is of floating-point numbers, else as float32."""
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
        weights: Float64Array = np.diff(np.clip(face, j * factor, (j + 1) * factor))  # how much of cell i is in cell j
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
            "This degradation loses too much to be undone: use a narrower psf, another degradation, or no projection."
        )
    return np.asarray(np.linalg.pinv(matrix), dtype=np.float64)


def _pairs(shape: Sequence[int], factors: Sequence[float]) -> list[tuple[int, float]]:
    if len(shape) != len(factors) or min(shape, default=0) < 1:
        raise InputError(
            f"An image has one voxel or more, and a factor, an axis; got {tuple(shape)}, {tuple(factors)}."
        )
    if not all(math.isfinite(f) and f >= 1 for f in factors):
        raise InputError(f"Factors are 1 or more; got {tuple(factors)}.")
    return list(zip(shape, factors, strict=True))
