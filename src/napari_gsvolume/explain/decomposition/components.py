"""Result of the analyses of a network: A = U S V^T, and the locations of its samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import InputError
from ...svd.decomposition import canonical_signs, cumulative_energy
from ...types import Float64Array, IntArray

# Modes below this fraction of the first one are rounding errors of a matrix of lower rank.
ROUNDING = 1e-10


@dataclass(frozen=True, eq=False)
class SampleLocations:
    """Locations of the samples of a layer.

    A piece is the output of the layer for one input in one call; a sample is one position of the grid of a piece.

    Attributes
    ----------
    piece : ndarray of int64, (samples,)
        Piece of each sample.
    position : ndarray of int64, (samples,)
        Position of each sample in the grid of its piece, in C order.
    inputs : ndarray of int64, (pieces,)
        Input of each piece, counted through all batches from 0; -1 for one output of a whole batch.
    parts : ndarray of int64, (pieces,)
        Part of each piece, where a layer has several outputs for an input: calls of the module in one pass, and windows
        folded into the axis of the batch.
    grids : ndarray of int64, (pieces, d)
        Shape of each grid: d is 0 for vectors, 1 for tokens, 2 for images, 3 for volumes.
    strides : ndarray of float64, (pieces, d)
        Extent of the input over that of the grid. Position i lies at the input's index ``(i + 0.5) * stride - 0.5``.
        NaN where the input has other axes.
    """

    piece: IntArray
    position: IntArray
    inputs: IntArray
    parts: IntArray
    grids: IntArray
    strides: Float64Array

    @property
    def input(self) -> IntArray:
        """Input of each sample, (samples,)."""
        return self.inputs[self.piece]

    @property
    def index(self) -> IntArray:
        """Index of each sample in the grid of its piece, (samples, d)."""
        extents = self.grids[self.piece]
        index = np.empty_like(extents)
        rest = self.position.copy()
        for axis in reversed(range(extents.shape[1])):
            rest, index[:, axis] = np.divmod(rest, extents[:, axis])
        return index

    @property
    def coordinates(self) -> Float64Array:
        """Index of each sample in its input, (samples, d), voxel centres at integers; NaN where there is none."""
        return (self.index + 0.5) * self.strides[self.piece] - 0.5


@dataclass(frozen=True, eq=False)
class Components:
    """First k modes of a matrix A (samples x features) = U diag(S) V^T.

    Attributes
    ----------
    values : ndarray of float64, (k,)
        Singular values S, descending, in the unit of A.
    concepts : ndarray of float64, (features, k)
        V: orthonormal columns, the directions that are used. Signs are canonical, as in `svd.decompose`.
    scores : ndarray of float32 or float64, (samples, k)
        U: orthonormal columns; how strongly each sample expresses each concept. ``scores * values`` are the
        coordinates of the samples, A V.
    energy : ndarray of float64, (k,)
        Fraction of the sum of squares of *all* of A in the first 1, 2, ... modes.
    total : float
        Sum of squares of A.
    spectrum : ndarray of float64, (r,)
        All known singular values of A; see `complete`.
    layer : str
        Name of the module, as in `named_modules`.
    mean : ndarray of float64, (features,), or None
        Mean that was subtracted from every row of A, if `centre` was requested.
    places : SampleLocations or None
        Locations of the samples.
    missed : float
        Bound of the error of the squared values, which may be too small by it; 0 if they are exact up to rounding.
    feature_shape, sample_shape : tuple of int, or None
        Shapes of the columns of `concepts` and of `scores` as tensors, where they are tensors (of a Jacobian).

    Examples
    --------
    >>> import numpy as np
    >>> from napari_gsvolume.explain.decomposition.streaming_svd import compute_streaming_svd
    >>> components = compute_streaming_svd([np.eye(3) * [3, 2, 1]], k=2)
    >>> components.values, components.complete
    (array([3., 2.]), True)
    """

    values: Float64Array
    concepts: Float64Array
    scores: NDArray[Any]
    energy: Float64Array
    total: float
    spectrum: Float64Array
    layer: str = ""
    mean: Float64Array | None = None
    places: SampleLocations | None = None
    missed: float = 0.0
    feature_shape: tuple[int, ...] | None = None
    sample_shape: tuple[int, ...] | None = None

    @property
    def k(self) -> int:
        """Number of modes; fewer than requested if the rank of A is lower."""
        return len(self.values)

    @property
    def samples(self) -> int:
        """Number of samples, rows of A."""
        return len(self.scores)

    @property
    def features(self) -> int:
        """Number of features, columns of A."""
        return len(self.concepts)

    @property
    def complete(self) -> bool:
        """True if `spectrum` has all singular values that are not 0."""
        return bool(np.square(self.spectrum).sum() >= (1 - 1e-9) * self.total)

    def map(self, mode: int, piece: int = 0) -> Float64Array:
        """Return the scores of one mode as an image on the grid of one piece, NaN where no sample was taken.

        Raises
        ------
        InputError
            If there is no such mode or piece, or the samples have no locations.
        """
        if self.places is None:
            raise InputError("These samples have no locations, so there is no map of them.")
        if not 0 <= mode < self.k:
            raise InputError(f"There is no mode {mode}; they are 0 to {self.k - 1}.")
        if not 0 <= piece < len(self.places.grids):
            raise InputError(f"There is no piece {piece}; they are 0 to {len(self.places.grids) - 1}.")
        grid = tuple(self.places.grids[piece])
        image = np.full(int(np.prod(grid)), np.nan)
        here = self.places.piece == piece
        image[self.places.position[here]] = self.scores[here, mode]
        return image.reshape(grid)

    def column(self, mode: int, of: str = "concepts") -> NDArray[Any]:
        """Return a column of ``concepts`` or ``scores`` as a tensor: an image, for the Jacobian of an image.

        Raises
        ------
        InputError
            If there is no such mode, or the columns are no tensors.
        """
        columns, shape = {
            "concepts": (self.concepts, self.feature_shape),
            "scores": (self.scores, self.sample_shape),
        }[of]
        if shape is None:
            raise InputError(f"The {of} of this decomposition are vectors, not tensors of a shape.")
        if not 0 <= mode < self.k:
            raise InputError(f"There is no mode {mode}; they are 0 to {self.k - 1}.")
        return np.asarray(columns[:, mode]).reshape(shape)


def build_components(
    spectrum: Float64Array, V: Float64Array, U: NDArray[Any], total: float | None = None, **options: Any
) -> Components:
    """Return the decomposition of the modes in V (features, k) and U (samples, k), with canonical signs.

    `spectrum` (r,), r >= k, has all known values, and `total` is the sum of squares of all of A, by default that of the
    spectrum. U and V are changed in place.
    """
    for k in range(V.shape[1]):  # one by one: U may be most of the memory
        sign = canonical_signs(U[:, k : k + 1].astype(np.float64), V[:, k : k + 1])[0]
        if sign < 0:
            U[:, k] *= -1
            V[:, k] *= -1
    values = spectrum[: V.shape[1]]
    known = float(np.square(spectrum).sum())
    total = max(known, total or 0.0)
    energy = cumulative_energy(spectrum)[: len(values)] * (known / total if total else 1.0)
    return Components(values.copy(), V, U, energy, total, spectrum, **options)


def count_significant(spectrum: Float64Array, k: int) -> int:
    """Return the number of the first k modes that exceed rounding."""
    return int((spectrum[:k] > ROUNDING * spectrum[:1].max(initial=0.0)).sum())


def check_modes(k: int) -> None:
    """Raise InputError if k is no number of modes."""
    if isinstance(k, bool) or not isinstance(k, (int, np.integer)) or k < 1:
        raise InputError(f"The number of modes is 1 or more; got {k!r}.")
