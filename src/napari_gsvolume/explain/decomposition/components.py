"""What every analysis of a network returns: A = U S V^T, and where its samples lie."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import InputError
from ...svd.decomposition import canonical_signs, cumulative_energy
from ...types import Float64Array, IntArray

# Modes below this part of the first one are what rounding leaves of a matrix of a lower rank.
ROUNDING = 1e-10


@dataclass(frozen=True, eq=False)
class SampleLocations:
    """Where each sample of a layer lies.

    A piece is what the layer gave for one input in one go; a sample is one position of the grid of a piece.

    Attributes
    ----------
    piece : ndarray of int64, (samples,)
        Which piece.
    position : ndarray of int64, (samples,)
        Which position of its grid, counted in C order.
    inputs : ndarray of int64, (pieces,)
        Which input, counted through all batches from 0; -1 where the layer gave one thing for a whole batch.
    parts : ndarray of int64, (pieces,)
        Which of several things that the layer gave for that input: calls of the module in one pass, and windows folded
        into the batch's axis.
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
        """Which input each sample belongs to, (samples,)."""
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
    """The first k modes of a matrix A (samples x features) = U diag(S) V^T.

    Attributes
    ----------
    values : ndarray of float64, (k,)
        Singular values S, descending: how strong each mode is, in the unit of A.
    concepts : ndarray of float64, (features, k)
        V: unit columns, orthogonal to each other; the directions that are used. Signs are canonical, as of
        `spectral.spectra.decompose`.
    scores : ndarray of float32 or float64, (samples, k)
        U: unit columns, orthogonal to each other; how each sample expresses each concept. ``scores * values`` are the
        samples' coordinates, A V.
    energy : ndarray of float64, (k,)
        Part of the sum of squares of *all* of A that is in the first 1, 2, ... modes.
    total : float
        That sum of squares.
    spectrum : ndarray of float64, (r,)
        All singular values of A where they are known (see `complete`), else those that are.
    layer : str
        Name of the module, as in `named_modules`.
    mean : ndarray of float64, (features,), or None
        What was taken from every row of A, if that was asked for.
    places : SampleLocations or None
        Where the samples lie.
    missed : float
        By how much the squares of the values may be too small; 0 where they are exact but for rounding.
    feature_shape, sample_shape : tuple of int, or None
        Of the tensors that a column of `concepts` and of `scores` is, where they are tensors (a Jacobian's).
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
        """Number of modes; fewer than were asked for where A has no more."""
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
        """Whether `spectrum` has all singular values that are not 0."""
        return bool(np.square(self.spectrum).sum() >= (1 - 1e-9) * self.total)

    def map(self, mode: int, piece: int = 0) -> Float64Array:
        """Return the scores of one mode as an image on the grid of one piece, NaN where no sample was taken.

        Raises
        ------
        ValueError
            If there is no such mode or piece, or the samples have no places.
        """
        if self.places is None:
            raise InputError("These samples have no places, so there is no map of them.")
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
        """Return a column of ``concepts`` or ``scores`` as the tensor that it is: an image, of an image's Jacobian.

        Raises
        ------
        ValueError
            If there is no such mode, or these are no tensors.
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
    spectrum: Float64Array, V: Float64Array, U: NDArray[Any], total: float | None = None, **more: Any
) -> Components:
    """Return the decomposition of the modes in V (features, k) and U (samples, k), with canonical signs.

    `spectrum` (r,), r >= k, has all values that are known, and `total`, the sum of squares of all of A, is that of them
    when omitted. U and V are changed in place.
    """
    for k in range(V.shape[1]):  # one by one: U may be most of the memory
        sign = canonical_signs(U[:, k : k + 1].astype(np.float64), V[:, k : k + 1])[0]
        if sign < 0:
            U[:, k] *= -1
            V[:, k] *= -1
    values = spectrum[: V.shape[1]]
    of_known = float(np.square(spectrum).sum())
    total = max(of_known, total or 0.0)
    energy = cumulative_energy(spectrum)[: len(values)] * (of_known / total if total else 1.0)
    return Components(values.copy(), V, U, energy, total, spectrum, **more)


def count_significant(spectrum: Float64Array, k: int) -> int:
    """Return how many of the first k modes are there: not mere rounding."""
    return int((spectrum[:k] > ROUNDING * spectrum[:1].max(initial=0.0)).sum())


def check_modes(k: int) -> None:
    """Raise ValueError if k modes cannot be asked for."""
    if isinstance(k, bool) or not isinstance(k, (int, np.integer)) or k < 1:
        raise InputError(f"The number of modes is 1 or more; got {k!r}.")
