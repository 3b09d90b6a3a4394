"""Functions of a continuous coordinate through singular vectors, which are samples at pixel centres.

Coordinates are in index units, with pixel centres at integers: the n samples of a vector lie at 0 to n - 1, and its
pixels cover [-1/2, n - 1/2]. Functions are mirrored or repeated at these borders.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.polynomial import legendre
from numpy.typing import ArrayLike
from scipy.fft import dct, idct, rfft
from scipy.interpolate import BSpline, RBFInterpolator

from ..errors import InputError
from ..types import Float64Array
from .decomposition import SliceSVD

BasisKind = Literal["bspline", "legendre", "periodic", "mirrored", "rbf"]

_Function = Callable[[Float64Array, int], Float64Array]

_ALL_AT_ONCE = 1000  # scattered samples; with more, only the nearest are used
_NEAREST = 64


@dataclass(frozen=True, eq=False)
class ContinuousBasis:
    """Functions of one coordinate, or of several for scattered samples, fitted to vectors by `fit`.

    Attributes
    ----------
    kind : str
        Kind of the basis.
    rank : int
        Number of functions.

    Examples
    --------
    >>> import numpy as np
    >>> from napari_gsvolume.svd import ContinuousBasis
    >>> basis = ContinuousBasis.fit(np.cos(np.arange(8.0))[:, None])
    >>> np.allclose(basis.evaluate([2, 5])[:, 0], np.cos([2, 5]))  # interpolates the samples
    True
    """

    kind: BasisKind
    rank: int
    _function: _Function

    @classmethod
    def fit(
        cls,
        vectors: ArrayLike,
        kind: BasisKind = "bspline",
        *,
        order: int = 3,
        degree: int | None = None,
        smoothing: float | Sequence[float] | Float64Array = 0.0,
        positions: ArrayLike | None = None,
    ) -> ContinuousBasis:
        """Fit functions to the samples of each mode: interpolation, or smoothing.

        Parameters
        ----------
        vectors : array_like, (n, r)
            Samples, one mode in each column.
        kind : {"bspline", "legendre", "periodic", "mirrored", "rbf"}
            - ``bspline``: uniform B-spline, mirrored about the outer faces [1]_.
            - ``legendre``: Legendre polynomials, by least squares. They grow fast outside of the pixels.
            - ``periodic``: Fourier series of period n. It rings if the ends differ.
            - ``mirrored``: cosine series (DCT-II), a Fourier series of the mirrored samples.
            - ``rbf``: thin-plate spline through scattered samples, in 1D (kernel r^3) or more (kernel r^2 log r); with
              more than 1000 samples, through the 64 nearest.
        order : int
            B-spline degree, 1 to 5.
        degree : int, optional
            Degree of the polynomials; ``2 sqrt(n)`` when omitted, as higher degrees oscillate between equidistant
            samples (Rakhmanov 2007).
        smoothing : float or sequence of float, (r,)
            Weight of the roughness penalty, for each mode or for all; 0 interpolates (except ``legendre``). The
            roughness is the integral of the squared second derivative; for B-splines of degree 1 or 2 the first, of
            degree 5 the third derivative (for even degrees: differences of coefficients); for ``rbf`` that of scipy;
            for ``legendre`` with the derivative of Legendre's equation, (d/dt)(1 - t^2)(d/dt).
        positions : array_like, (n,) or (n, d), optional
            Positions of the samples, for ``rbf`` (any d) and ``legendre``; 0 to n - 1 when omitted. For pixels in a
            mask, ``np.argwhere(mask)``.

        Raises
        ------
        InputError
            If vectors, positions, order, degree or smoothing are out of range.

        Notes
        -----
        The coefficients of the B-spline are the samples divided, frequency by frequency, by
        ``B(w) + smoothing (2 - 2 cos w)^m``, m = (order + 1) // 2 [1]_. For mirrored samples this is exact with the
        DCT.

        References
        ----------
        .. [1] M. Unser, A. Aldroubi & M. Eden, "B-spline signal processing", IEEE Transactions on Signal Processing 41,
           1993.
        """
        samples = _checked(vectors)
        n, r = samples.shape
        smooth = np.asarray(smoothing, dtype=np.float64)
        if smooth.shape not in ((), (r,)) or not (np.isfinite(smooth).all() and (smooth >= 0).all()):
            raise InputError(f"The smoothing is 0 or more: one number, or one for each of {r} modes.")
        weights = np.broadcast_to(smooth, (r,))
        if kind not in get_args(BasisKind):
            raise InputError(f"The basis is one of {', '.join(get_args(BasisKind))}; got {kind}.")
        if positions is not None and kind not in ("rbf", "legendre"):
            raise InputError("Only rbf and legendre accept positions of the samples; omit them.")
        places = np.arange(n, dtype=np.float64) if positions is None else np.asarray(positions, dtype=np.float64)
        if len(places) != n or not np.isfinite(places).all() or places.ndim != 1 + (kind == "rbf" and places.ndim == 2):
            raise InputError(f"There are {n} samples, but positions of the shape {places.shape}.")
        if kind == "bspline":
            function = _bspline(samples, order, weights)
        elif kind == "legendre":
            function = _legendre(samples, places, degree, weights)
        elif kind == "rbf":
            function = _rbf(samples, places.reshape(n, -1), weights)
        else:
            function = _mirrored(samples, weights) if kind == "mirrored" else _periodic(samples, weights)
        return cls(kind, r, function)

    def evaluate(self, x: ArrayLike, derivative: int = 0) -> Float64Array:
        """Return the values of all functions at coordinates.

        Parameters
        ----------
        x : array_like, (m,), or (m, d) for scattered samples in d dimensions
            Coordinates in index units.
        derivative : int
            Order of the derivative, per index unit; 0 for the functions themselves. Not for ``rbf``.

        Returns
        -------
        ndarray, (m, r)

        Raises
        ------
        InputError
            If coordinates are not finite or have another shape, or there is no such derivative.
        """
        places = np.asarray(x, dtype=np.float64)
        if places.ndim != 1 + (self.kind == "rbf" and places.ndim == 2) or not np.isfinite(places).all():
            raise InputError(f"Coordinates are a list of finite numbers; got the shape {places.shape}.")
        if derivative < 0 or (derivative and self.kind == "rbf"):
            raise InputError(f"The {self.kind} functions have no derivative of order {derivative} here.")
        return self._function(places, derivative)


@dataclass(frozen=True, eq=False)
class ContinuousImage:
    """Image ``f(x, y) = sum_k values[k] u_k(y) v_k(x)`` of finite rank, at continuous coordinates.

    Attributes
    ----------
    values : ndarray, (r,)
        Singular values.
    along_y, along_x : ContinuousBasis
        Functions u_k and v_k.
    shape : tuple of int
        Shape (Y, X) of the samples.

    Examples
    --------
    >>> import numpy as np
    >>> from napari_gsvolume.svd import ContinuousImage, decompose
    >>> image = np.outer(np.arange(1.0, 5), [1.0, 2.0, 4.0])
    >>> ContinuousImage.from_svd(decompose(image)).resampled((2, 2)).shape
    (8, 6)
    """

    values: Float64Array
    along_y: ContinuousBasis
    along_x: ContinuousBasis
    shape: tuple[int, int]

    @classmethod
    def from_svd(
        cls,
        decomposition: SliceSVD,
        rank: int | None = None,
        kind: BasisKind = "bspline",
        *,
        order: int = 3,
        degree: int | None = None,
        smoothing: float | Sequence[float] | Float64Array = 0.0,
    ) -> ContinuousImage:
        """Return the function of the first `rank` modes of an image (all when omitted); see `ContinuousBasis.fit`.

        With B-splines, at full rank and without smoothing, this is the tensor-product spline through the image.
        """
        rank = decomposition.rank if rank is None else rank
        if not 1 <= rank <= decomposition.rank:
            raise InputError(f"The rank is 1 to {decomposition.rank} here; got {rank}.")
        along_y, along_x = (
            ContinuousBasis.fit(vectors[:, :rank], kind, order=order, degree=degree, smoothing=smoothing)
            for vectors in (decomposition.U, decomposition.V)
        )
        return cls(decomposition.values[:rank], along_y, along_x, decomposition.shape)

    def on(self, y: ArrayLike, x: ArrayLike, derivative: tuple[int, int] = (0, 0)) -> Float64Array:
        """Return f, or a derivative with respect to (y, x), on the grid of y (m,) and x (l,), shape (m, l)."""
        return (self.along_y.evaluate(y, derivative[0]) * self.values) @ self.along_x.evaluate(x, derivative[1]).T

    def at(self, points: ArrayLike) -> Float64Array:
        """Return f at points (p, 2), each (y, x), shape (p,)."""
        places = np.asarray(points, dtype=np.float64)
        if places.ndim != 2 or places.shape[1] != 2:
            raise InputError(f"Points are rows (y, x); got the shape {places.shape}.")
        # (p, r), (r,), (p, r) -> (p,)
        return np.asarray((self.along_y.evaluate(places[:, 0]) * self.along_x.evaluate(places[:, 1])) @ self.values)

    def resampled(self, factors: tuple[float, float]) -> Float64Array:
        """Return f at the pixels of the grid ``Grid.resampled(factors)``, factors (y, x)."""
        y, x = (fine_centres(n, factor) for n, factor in zip(self.shape, factors, strict=True))
        return self.on(y, x)


def fine_centres(n: int, factor: float) -> Float64Array:
    """Return the centres of the fine voxels of an upsampled axis, in index units of the n coarse voxels.

    The first faces coincide, as in `Grid.resampled`: ``(i + 1/2) / factor - 1/2`` for i below ``round(n factor)``.
    """
    return np.asarray((np.arange(max(1, round(n * factor))) + 0.5) / factor - 0.5)


def _mirror_coordinates(x: Float64Array, n: int) -> tuple[Float64Array, Float64Array]:
    """Return coordinates mirrored into [-1/2, n - 1/2], and -1 where the direction is reversed, else 1."""
    phase = np.mod(x + 0.5, 2 * n)
    turned = phase > n
    return np.where(turned, 2 * n - phase, phase) - 0.5, np.where(turned, -1.0, 1.0)


def bspline_response(n: int, order: int) -> tuple[Float64Array, Float64Array]:
    """Return the frequency responses (n, 1), for a DCT-II, from B-spline coefficients to samples and to roughness."""
    w = np.pi * np.arange(n)[:, None] / n
    element = BSpline.basis_element(np.arange(order + 2) - (order + 1) / 2)
    offsets = np.arange(1, order // 2 + 1)
    gain = element(0.0) + 2 * (np.cos(w * offsets) * element(offsets)).sum(1, keepdims=True)
    return gain, (2 - 2 * np.cos(w)) ** ((order + 1) // 2)


def _bspline(samples: Float64Array, order: int, smoothing: Float64Array) -> _Function:
    if order not in range(1, 6):
        raise InputError(f"The order of a B-spline is 1 to 5; got {order}.")
    n = len(samples)
    gain, rough = bspline_response(n, order)
    coefficients = idct(dct(samples, axis=0) / (gain + smoothing * rough), axis=0)
    # Padded by the B-splines that overlap the borders; coefficient j is that of the B-spline centred at j.
    padded = np.pad(coefficients, ((order, order), (0, 0)), mode="symmetric")
    knots = np.arange(len(padded) + order + 1) - order - (order + 1) / 2
    spline = BSpline(knots, padded, order)

    def function(x: Float64Array, derivative: int) -> Float64Array:
        inside, sign = _mirror_coordinates(x, n)
        return np.asarray(spline(inside, nu=derivative) * sign[:, None] ** derivative)

    return function


def _mirrored(samples: Float64Array, smoothing: Float64Array) -> _Function:
    n = len(samples)
    w = np.pi * np.arange(n) / n  # (n,)
    coefficients = dct(samples, axis=0) / n
    coefficients[0] /= 2
    coefficients /= 1 + smoothing * w[:, None] ** 4

    def function(x: Float64Array, derivative: int) -> Float64Array:
        # The d-th derivative of cos(a) turns it by d quarters.
        return np.asarray((np.cos((x[:, None] + 0.5) * w + derivative * np.pi / 2) * w**derivative) @ coefficients)

    return function


def _periodic(samples: Float64Array, smoothing: Float64Array) -> _Function:
    n = len(samples)
    spectrum = np.asarray(rfft(samples, axis=0)) * (2 / n)  # (n // 2 + 1, r)
    w = 2 * np.pi * np.arange(len(spectrum)) / n
    spectrum[0] /= 2
    if n % 2 == 0:
        spectrum[-1] /= 2  # at the highest frequency, samples determine the cosine only
    spectrum /= 1 + smoothing * w[:, None] ** 4

    def function(x: Float64Array, derivative: int) -> Float64Array:
        angles = x[:, None] * w + derivative * np.pi / 2
        return (np.cos(angles) * w**derivative) @ spectrum.real - (np.sin(angles) * w**derivative) @ spectrum.imag

    return function


def _legendre(samples: Float64Array, places: Float64Array, degree: int | None, smoothing: Float64Array) -> _Function:
    n = len(samples)
    first, last = places.min() - 0.5, places.max() + 0.5
    degree = min(n - 1, int(2 * np.sqrt(n))) if degree is None else degree
    if not 0 <= degree < n:
        raise InputError(f"The degree of polynomials through {n} samples is 0 to {n - 1}; got {degree}.")
    half = (last - first) / 2
    k = np.arange(degree + 1)
    design = legendre.legvander((places - first) / half - 1, degree)  # (n, degree + 1)
    # int P_k^2 dt = 2 / (2 k + 1), and the operator in dx is that in dt over half^2.
    rough = np.sqrt(half * 2 / (2 * k + 1)) * k * (k + 1) / half**2
    coefficients = np.empty((degree + 1, samples.shape[1]))
    for weight in np.unique(smoothing):
        these = smoothing == weight
        rows = np.vstack([design, np.sqrt(weight) * np.diag(rough)])
        wanted = np.vstack([samples[:, these], np.zeros((degree + 1, these.sum()))])
        coefficients[:, these] = np.linalg.lstsq(rows, wanted)[0]

    def function(x: Float64Array, derivative: int) -> Float64Array:
        derived = legendre.legder(coefficients, derivative, scl=1 / half, axis=0)
        return np.asarray(legendre.legval((x - first) / half - 1, derived)).T

    return function


def _rbf(samples: Float64Array, places: Float64Array, smoothing: Float64Array) -> _Function:
    n, d = places.shape
    if len(np.unique(places, axis=0)) < n:
        raise InputError("Two samples are at the same position; a function has one value there.")
    if n <= d:
        raise InputError(f"A thin-plate spline in {d}D needs more than {d} samples; there are {n}.")
    kernel: Literal["cubic", "thin_plate_spline"] = "cubic" if d == 1 else "thin_plate_spline"
    neighbours = _NEAREST if n > _ALL_AT_ONCE else None
    interpolators = {
        weight: RBFInterpolator(
            places, samples[:, smoothing == weight], smoothing=weight, kernel=kernel, neighbors=neighbours
        )
        for weight in np.unique(smoothing)
    }

    def function(x: Float64Array, derivative: int) -> Float64Array:
        points = x.reshape(len(x), -1)
        if points.shape[1] != d:
            raise InputError(f"The samples are in {d}D; the shape of these coordinates is {x.shape}.")
        values = np.empty((len(x), samples.shape[1]))
        for weight, interpolator in interpolators.items():
            values[:, smoothing == weight] = interpolator(points)
        return values

    return function


def _checked(vectors: ArrayLike) -> Float64Array:
    samples = np.asarray(vectors, dtype=np.float64)
    if samples.ndim != 2 or samples.size == 0:
        raise InputError(f"Vectors are the columns of a matrix (n, r); got the shape {samples.shape}.")
    if not np.isfinite(samples).all():
        raise InputError("The vectors contain NaN or infinite numbers, which cannot be interpolated.")
    return samples
