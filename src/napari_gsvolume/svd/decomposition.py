"""Singular value decomposition of slices, and figures of their singular values.

A slice F (Y, X) is a matrix F = U diag(s) V^T. Singular values descend; every spectrum is along the last axis of an
array, so the same functions apply to a slice, (r,), and to all slices of a volume, (slices, r).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.integrate import quad
from scipy.optimize import brentq

from ..errors import InputError
from ..metrics import psnr_db
from ..types import Float64Array

# Shorter side from which random projections are used, and the fraction of modes up to which they are faster.
_LARGE, _FEW = 1024, 1 / 8
_OVERSAMPLING, _POWER_ITERATIONS = 10, 8
_AMBIGUOUS = 1e-6  # relative difference of squares above and below zero, up to which a mode has no majority


@dataclass(frozen=True, eq=False)
class SliceSVD:
    """Singular value decomposition of an image, or its first modes.

    Attributes
    ----------
    U : ndarray, (Y, r)
        Left singular vectors, along y, one in each column.
    values : ndarray, (r,)
        Singular values, descending, in the unit of the intensities.
    V : ndarray, (X, r)
        Right singular vectors, along x, one in each column.
    """

    U: Float64Array
    values: Float64Array
    V: Float64Array

    @property
    def rank(self) -> int:
        """Number of modes."""
        return len(self.values)

    @property
    def shape(self) -> tuple[int, int]:
        """Shape (Y, X) of the image."""
        return len(self.U), len(self.V)

    def truncate(self, rank: int) -> Float64Array:
        """Return the sum of the first `rank` modes, (Y, X): the best image of that rank (Eckart & Young 1936).

        Raises
        ------
        InputError
            If `rank` is not 1 to the number of modes.
        """
        _check_rank(rank, self.rank)
        return (self.U[:, :rank] * self.values[:rank]) @ self.V[:, :rank].T

    def mode(self, k: int) -> Float64Array:
        """Return the rank-1 image ``values[k] u_k v_k^T`` of mode k, counted from 0, (Y, X).

        Raises
        ------
        InputError
            If there is no such mode.
        """
        if not 0 <= k < self.rank:
            raise InputError(f"There is no mode {k}; they are 0 to {self.rank - 1}.")
        return np.outer(self.values[k] * self.U[:, k], self.V[:, k])


def decompose(matrix: ArrayLike, rank: int | None = None) -> SliceSVD:
    """Return the singular value decomposition of an image, with canonical signs.

    Parameters
    ----------
    matrix : array_like, (Y, X)
        Image: real, finite, and not constant.
    rank : int, optional
        Number of modes; all ``min(Y, X)`` when omitted.

    Returns
    -------
    SliceSVD
        Singular vectors and singular values.

    Raises
    ------
    InputError
        If the matrix has other axes (a volume, colours), contains NaN or infinite numbers, or is constant, or if `rank`
        is not 1 to the shorter side.

    See Also
    --------
    optimal_threshold : Threshold of the singular values for denoising.
    ContinuousImage.from_svd : Function of continuous coordinates through an image.

    Notes
    -----
    LAPACK in float64 computes all modes, and few modes of an image with a shorter side below 1024. Few modes (an eighth
    of the shorter side, or less) of a larger image are computed by random projections with 8 power iterations [1]_ and
    a fixed seed. Their values are too small by a fraction of the order of ``(s[rank + 10] / s[k])**34``: negligible for
    modes above the noise; where the spectrum is flat, the last of the requested modes are a few percent off and mixed
    with their neighbours. The error of the image of that rank is less than 1 % above the smallest one.

    The sign of a pair of singular vectors is arbitrary. Here a vector points where the majority of the data does [2]_:
    the rows and columns of F, projected on u_k and v_k, are s_k times the entries of v_k and u_k, so the sign is such
    that ``sum(sign(u_k) u_k^2) + sum(sign(v_k) v_k^2) > 0``. Without a majority (odd functions), the first of the
    largest entries of u_k is positive.

    References
    ----------
    .. [1] N. Halko, P. Martinsson & J. Tropp, "Finding structure with randomness: probabilistic algorithms for
       constructing approximate matrix decompositions", SIAM Review 53, 2011.
    .. [2] R. Bro, E. Acar & T. Kolda, "Resolving the sign ambiguity in the singular value decomposition", Journal of
       Chemometrics 22, 2008.

    Examples
    --------
    >>> import numpy as np
    >>> from napari_gsvolume.svd import decompose
    >>> image = np.outer([1.0, 2.0, 2.0], [3.0, 4.0])
    >>> svd = decompose(image)
    >>> np.round(svd.values, 6)
    array([15.,  0.])
    >>> np.allclose(svd.truncate(1), image)
    True
    """
    array = check_slice(matrix)
    shorter = min(array.shape)
    if rank is not None:
        _check_rank(rank, shorter)
    if rank is not None and shorter >= _LARGE and rank <= _FEW * shorter:
        U, values, V = _randomised(array, rank)
    else:
        U, values, Vh = np.linalg.svd(array, full_matrices=False)
        U, values, V = U[:, :rank], values[:rank], Vh[:rank].T
    signs = canonical_signs(U, V)
    return SliceSVD(U * signs, values, V * signs)


def canonical_signs(U: Float64Array, V: Float64Array) -> Float64Array:
    """Return the canonical sign, 1 or -1, of each pair of columns of U (Y, r) and V (X, r); see `decompose`."""
    majority = (np.sign(U) * U**2).sum(0) + (np.sign(V) * V**2).sum(0)
    largest = np.abs(U) >= (1 - _AMBIGUOUS) * np.abs(U).max(0)
    first = np.take_along_axis(U, largest.argmax(0)[None], 0)[0]
    return np.where(np.where(np.abs(majority) > _AMBIGUOUS, majority, first) < 0, -1.0, 1.0)


def check_slice(matrix: ArrayLike) -> Float64Array:
    """Return an image (Y, X) as float64; raise InputError if it has other axes, is constant or not finite."""
    array = np.asarray(matrix)
    if array.ndim != 2:
        raise InputError(
            f"A slice has two axes and one intensity a pixel; got {array.ndim} axes (shape {array.shape})."
        )
    array = _finite(array)
    if array.min() == array.max():
        raise InputError(f"The slice is constant (every pixel is {array.flat[0]:g}); there is nothing to decompose.")
    return array


def iter_spectra(volume: ArrayLike, axis: int) -> Iterator[Float64Array]:
    """Yield the singular values of the slices of a volume (Z, Y, X) across an axis, (min side,) each; see `spectra`."""
    slices = np.moveaxis(_checked_volume(volume), axis, 0)
    for one in slices:
        yield np.asarray(np.linalg.svd(_finite(one), compute_uv=False), dtype=np.float64)


def spectra(volume: ArrayLike, axis: int) -> Float64Array:
    """Return the singular values of all slices of a volume across an axis.

    Constant slices, as outside of a body, are allowed: they have at most one nonzero singular value.

    Parameters
    ----------
    volume : array_like, (Z, Y, X)
        Real and finite.
    axis : int
        Axis along which the slices are stacked, 0 to 2.

    Returns
    -------
    ndarray, (slices, r)
        Singular values; r is the shorter side of the slices.

    Raises
    ------
    InputError
        If the volume has other axes, or contains NaN or infinite numbers.

    Examples
    --------
    >>> from napari_gsvolume.phantoms import vessel_phantom
    >>> from napari_gsvolume.svd import spectra
    >>> spectra(vessel_phantom(16)[0], axis=0).shape
    (16, 16)
    """
    _check_axis(axis)
    return np.stack(list(iter_spectra(volume, axis)))


def unfold(volume: ArrayLike, axis: int) -> NDArray[Any]:
    """Return the mode-n unfolding of a volume (Kolda & Bader 2009): each slice becomes a row.

    Parameters
    ----------
    volume : array_like, (Z, Y, X)
        Any numbers.
    axis : int
        Axis of the rows, 0 to 2.

    Returns
    -------
    ndarray, (slices, pixels)
        Matrix; pixels in the order of the two other axes, the last one fastest.

    Raises
    ------
    InputError
        If the volume has other axes.
    """
    _check_axis(axis)
    array = _checked_volume(volume)
    return np.moveaxis(array, axis, 0).reshape(array.shape[axis], -1)


def cumulative_energy(values: ArrayLike) -> Float64Array:
    """Return the fraction of the sum of squares in the first 1, 2, ... modes, (..., r); 1 where all values are 0."""
    squares = np.square(np.asarray(values, dtype=np.float64))
    total = squares.sum(-1, keepdims=True)
    return np.where(total > 0, np.cumsum(squares, -1) / np.where(total > 0, total, 1), 1.0)


def effective_rank(values: ArrayLike) -> Float64Array:
    """Return the effective rank [1]_, (...): exponential of the entropy of the normalized singular values.

    It is 1 for a single mode, r for r equal values, and 0 where all values are 0.

    References
    ----------
    .. [1] O. Roy & M. Vetterli, "The effective rank: a measure of effective dimensionality", EUSIPCO 2007.

    Examples
    --------
    >>> from napari_gsvolume.svd import effective_rank
    >>> round(float(effective_rank([2.0, 2.0, 2.0, 0.0])), 6)
    3.0
    """
    s = np.asarray(values, dtype=np.float64)
    total = s.sum(-1, keepdims=True)
    p = s / np.where(total > 0, total, 1)
    entropy = -(p * np.log(np.where(p > 0, p, 1))).sum(-1)
    return np.where(total[..., 0] > 0, np.exp(entropy), 0.0)


def stable_rank(values: ArrayLike) -> Float64Array:
    """Return the stable rank ``sum(s^2) / max(s)^2``, (...), at most the rank; 0 where all values are 0."""
    squares = np.square(np.asarray(values, dtype=np.float64))
    largest = squares.max(-1)
    return np.where(largest > 0, squares.sum(-1) / np.where(largest > 0, largest, 1), 0.0)


def optimal_threshold(values: ArrayLike, shape: tuple[int, int], noise: float | None = None) -> Float64Array:
    """Return the optimal hard threshold of singular values for denoising [1]_.

    For white noise of standard deviation sigma it is ``lambda(b) sqrt(max(shape)) sigma``, with
    ``b = min(shape) / max(shape)`` and ``lambda(b)^2 = 2 (b + 1) + 8 b / (b + 1 + sqrt(b^2 + 14 b + 1))``. For unknown
    noise it is ``omega(b) median(values)``, ``omega(b) = lambda(b) / sqrt(mu_b)``; mu_b is the exact median of the
    Marchenko-Pastur law, instead of the cubic approximation of omega in the paper.

    Parameters
    ----------
    values : array_like, (..., r)
        All ``r = min(shape)`` singular values, which the median needs; any of them for known noise.
    shape : tuple of int
        Shape of the matrix.
    noise : float, optional
        Standard deviation of the noise of a pixel; estimated from the median when omitted.

    Returns
    -------
    ndarray, (...)
        Threshold in the unit of `values`.

    Raises
    ------
    InputError
        If values are missing for the median, or `noise` is negative.

    References
    ----------
    .. [1] M. Gavish & D. Donoho, "The optimal hard threshold for singular values is 4/sqrt(3)", IEEE Transactions on
       Information Theory 60, 2014.

    Examples
    --------
    >>> from napari_gsvolume.svd import optimal_threshold
    >>> round(float(optimal_threshold([5.0, 1.0], (2, 2), noise=1.0)), 4)  # 4 / sqrt(3) * sqrt(2)
    3.266
    """
    s = np.asarray(values, dtype=np.float64)
    short, long = sorted(shape)
    ratio = short / long
    factor = np.sqrt(2 * (ratio + 1) + 8 * ratio / (ratio + 1 + np.sqrt(ratio**2 + 14 * ratio + 1)))
    if noise is not None:
        if not (np.isfinite(noise) and noise >= 0):
            raise InputError(f"The standard deviation of the noise is 0 or more; got {noise}.")
        return np.full(s.shape[:-1], factor * np.sqrt(long) * noise)
    if s.shape[-1] != short:
        raise InputError(f"The median is that of all {short} singular values; {s.shape[-1]} are given.")
    return np.asarray(factor / np.sqrt(_marchenko_pastur_median(ratio)) * np.median(s, -1))


def best_psnr_db(values: ArrayLike, shape: tuple[int, int], data_range: float) -> Float64Array:
    """Return the highest PSNR in dB of an image of rank 1, 2, ..., (r,) (Eckart & Young 1936).

    The squared error of the best image of rank k is the sum of squares of the other singular values.

    Parameters
    ----------
    values : array_like, (r,)
        All singular values of the image.
    shape : tuple of int
        Shape of the image.
    data_range : float
        Range of the intensities that the PSNR refers to.
    """
    squares = np.square(np.asarray(values, dtype=np.float64))
    beyond = np.append(np.cumsum(squares[::-1])[::-1][1:], 0.0)  # summed from the smallest, for precision
    return np.array([psnr_db(error / (shape[0] * shape[1] * data_range**2)) for error in beyond])


def _randomised(array: Float64Array, rank: int) -> tuple[Float64Array, Float64Array, Float64Array]:
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        q = min(rank + _OVERSAMPLING, *array.shape)
        U, values, V = torch.svd_lowrank(torch.from_numpy(array), q=q, niter=_POWER_ITERATIONS)
    return U[:, :rank].numpy(), values[:rank].numpy(), V[:, :rank].numpy()


@lru_cache(maxsize=64)
def _marchenko_pastur_median(ratio: float) -> float:
    """Return the median eigenvalue of W W^T / n for W (m, n) of white unit noise, ratio = m / n."""
    lower, width = (1 - np.sqrt(ratio)) ** 2, 4 * np.sqrt(ratio)

    def density(
        angle: float,
    ) -> float:  # with x = lower + width sin^2 it is smooth, while the density of x has infinite slopes
        sine, cosine = np.sin(angle), np.cos(angle)
        return float(width**2 * (sine * cosine) ** 2 / (np.pi * ratio * (lower + width * sine**2 + 1e-300)))

    def excess(angle: float) -> float:
        return float(quad(density, 0, angle, epsabs=1e-11, limit=200)[0]) - 0.5

    return float(lower + width * np.sin(brentq(excess, 0, np.pi / 2)) ** 2)


def _finite(array: NDArray[Any]) -> Float64Array:
    if array.dtype.kind not in "biuf" or array.size == 0:
        raise InputError(
            f"The matrix has to contain real numbers, one or more; got {array.dtype} of shape {array.shape}."
        )
    if not np.isfinite(array).all():
        raise InputError("There are NaN or infinite intensities, which have no singular values; replace them first.")
    return array.astype(np.float64)


def _checked_volume(volume: ArrayLike) -> NDArray[Any]:
    array = np.asarray(volume)
    if array.ndim != 3 or array.size == 0:
        raise InputError(f"A volume has three axes and one intensity a voxel; this has the shape {array.shape}.")
    return array


def _check_axis(axis: int) -> None:
    if axis not in (0, 1, 2):
        raise InputError(f"A volume has the axes 0 to 2; got {axis}.")


def _check_rank(rank: int, largest: int) -> None:
    if not 1 <= rank <= largest:
        raise InputError(f"The rank is 1 to {largest} here; got {rank}.")
