"""The SVD of a matrix that comes in blocks of rows and is never held: only what its rows span is.

Up to a number of features it is exact, by a sequential TSQR in float64 (J. Demmel, L. Grigori, M. Hoemmen & J. Langou,
"Communication-optimal parallel and sequential QR and LU factorizations", SIAM J. Sci. Comput. 34, 2012):
R <- qr([R; block]), whose singular values and right vectors are those of all rows so far. The Gram matrix would be
faster, and lose half of the digits. Beyond, the same with [S V^T; block], truncated after every block (M. Brand,
"Incremental singular value decomposition", ECCV 2002), which says by how much it may be wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import lapack

from ...errors import InputError
from ...types import Float64Array
from .components import Components, build_components, check_modes, count_significant

EXACT = 4096  # features
_ROWS = 8192  # that are taken in at once, at least


class StreamingSVD:
    """Singular values and right singular vectors of rows that come in blocks.

    Parameters
    ----------
    k : int
        How many modes are wanted. Fewer come back where the rows have no more.
    centre : bool
        Whether the mean of all rows is taken away. It is known at the end only; blocks are taken in centred by their
        own mean, with one more row for the difference of the means (D. Ross et al., "Incremental learning for robust
        visual tracking", IJCV 77, 2008), which is exact.
    exact : int
        Up to so many features it is exact and takes about ``24 * features**2`` bytes, 0.4 GiB at 4096. Beyond, only the
        first ``4 k + 64`` modes are carried along, and `missed` bounds what is lost.

    Raises
    ------
    ValueError
        If `k` is below 1.
    """

    def __init__(self, k: int, *, centre: bool = False, exact: int = EXACT) -> None:
        check_modes(k)
        self.k, self.centre, self.exact = int(k), centre, exact
        self.rows = 0
        """Rows taken in so far."""
        self.missed = 0.0
        """By how much the squares of the values may be too small."""
        self._lost = 0.0  # of the sum of squares
        self._features = 0
        self._factor: Float64Array = np.empty((0, 0))  # whose A^T A is that of all rows taken in
        self._mean: Float64Array = np.empty(0)
        self._factored = 0  # rows in _factor
        self._pending: list[NDArray[Any]] = []
        self._waiting = 0  # rows in _pending

    @property
    def features(self) -> int:
        """Number of columns; 0 before the first block."""
        return self._features

    def update(self, block: ArrayLike) -> None:
        """Take rows in.

        Parameters
        ----------
        block : array_like, (rows, features)
            Real and finite.

        Raises
        ------
        ValueError
            If it is no matrix, has another number of columns than those before, or holds NaN or infinite numbers.
        """
        array = np.asarray(block)
        if array.ndim != 2 or array.dtype.kind not in "biuf":
            raise InputError(f"A block is a matrix of real numbers, one sample a row; got {array.dtype} {array.shape}.")
        if self._features == 0:
            self._features = array.shape[1]
            self._mean = np.zeros(self._features)
            self._factor = np.empty((0, self._features))
        if array.shape[1] != self._features:
            raise InputError(f"A block has {array.shape[1]} features, those before had {self._features}.")
        if not np.isfinite(array).all():
            raise InputError("A block holds NaN or infinite numbers, which have no singular values.")
        step = self._step
        for first in range(0, len(array), step):
            # A copy: whoever gave the block may write into it before it is used.
            part = array[first : first + step].copy()
            self._pending.append(part)
            self._waiting += len(part)
            self.rows += len(part)
            if self._waiting >= step:
                self._take()

    def result(self) -> tuple[Float64Array, Float64Array, Float64Array]:
        """Return all values that are known (r,) descending, right vectors V (features, k'), and the mean (features,).

        k' is `k`, or less where there are no more modes. The mean is 0 unless the rows are centred.

        Raises
        ------
        ValueError
            If no row has been taken in.
        """
        if self.rows == 0:
            raise InputError("There are no samples to decompose.")
        self._take()
        _, spectrum, Vh = np.linalg.svd(self._factor, full_matrices=False)
        return spectrum, np.ascontiguousarray(Vh[: count_significant(spectrum, self.k)].T), self._mean.copy()

    @property
    def total(self) -> float:
        """Sum of squares of all rows so far (about their mean, if centred)."""
        self._take()
        return float(np.square(self._factor).sum()) + self._lost

    @property
    def gram(self) -> Float64Array:
        """A^T A of all rows so far, (features, features)."""
        self._take()
        return np.asarray(self._factor.T @ self._factor)

    @property
    def _step(self) -> int:
        return max(self._features, min(_ROWS, 2**22 // max(self._features, 1))) if self._all else self._carried

    @property
    def _all(self) -> bool:
        return self._features <= self.exact

    @property
    def _carried(self) -> int:
        return 4 * self.k + 64

    def _take(self) -> None:
        """Make one factor of it and the rows that wait."""
        if not self._pending:
            return
        had, more = len(self._factor), self._waiting
        rows = np.empty((had + more + int(self.centre), self._features), order="F")
        rows[:had] = self._factor
        np.concatenate(self._pending, out=rows[had : had + more], casting="unsafe")
        self._pending, self._waiting = [], 0
        if self.centre:
            mean = rows[had : had + more].mean(0)
            rows[had : had + more] -= mean
            both = self._factored + more
            rows[-1] = np.sqrt(self._factored / both * more) * (mean - self._mean)
            self._mean += (mean - self._mean) * (more / both)
        self._factored += more
        if self._all:
            if len(rows) > self._features:
                rows = _triangle(rows)
            self._factor = rows
        else:
            _, values, Vh = np.linalg.svd(rows, full_matrices=False)
            beyond = np.square(values[self._carried :])
            self.missed += float(beyond[:1].sum())
            self._lost += float(beyond.sum())
            self._factor = values[: self._carried, None] * Vh[: self._carried]


def compute_streaming_svd(
    blocks: Callable[[], Iterable[ArrayLike]] | Iterable[ArrayLike],
    k: int = 16,
    *,
    centre: bool = False,
    exact: int = EXACT,
) -> Components:
    """Decompose a matrix that comes in blocks of rows, in two passes: one for values and concepts, one for scores.

    Parameters
    ----------
    blocks : iterable of array_like, (rows, features), or a function that returns one
        The same blocks each time they are asked for. Scores, float32, are all that is kept of them.
    k, centre, exact
        As of `StreamingSVD`.

    Raises
    ------
    ValueError
        If the blocks can be had only once, are none, or are no finite matrices of the same number of columns.
    """
    again = blocks if callable(blocks) else lambda: _again(blocks)
    svd = StreamingSVD(k, centre=centre, exact=exact)
    for block in again():
        svd.update(block)
    spectrum, V, mean = svd.result()
    scores = Scores(spectrum, V, mean, svd.rows)
    for block in again():
        scores.update(block)
    return build_components(
        spectrum, V, scores.result(), svd.total, mean=mean if centre else None, missed=svd.missed
    )  # fmt: skip


class Scores:
    """Scores U = (A - mean) V / S of rows that come again: (rows, k), float32."""

    def __init__(self, spectrum: Float64Array, V: Float64Array, mean: Float64Array, rows: int) -> None:
        self._onto = V / spectrum[: V.shape[1]]
        self._offset = mean @ self._onto
        self._scores = np.empty((rows, V.shape[1]), dtype=np.float32)
        self._filled = 0

    def update(self, block: ArrayLike) -> None:
        """Take rows in, in the order of the first time."""
        array = np.asarray(block)
        for first in range(0, len(array), _ROWS):
            part = array[first : first + _ROWS]
            if self._filled + len(part) > len(self._scores):
                raise _differs()
            self._scores[self._filled : self._filled + len(part)] = part.astype(np.float64) @ self._onto - self._offset
            self._filled += len(part)

    def result(self) -> NDArray[np.float32]:
        """Return the scores; raise ValueError if the rows were others than the first time."""
        norms = np.sqrt([np.einsum("i,i", c, c, dtype=np.float64) for c in self._scores.T])
        # Truncation may leave values, and so norms, a little off; other rows would be far off.
        if self._filled != len(self._scores) or not (np.abs(norms - 1) < 0.5).all():
            raise _differs()
        return self._scores


def _differs() -> ValueError:
    return ValueError("The second pass gave other samples than the first; give inputs that are the same each time.")


def _again(blocks: Iterable[ArrayLike]) -> Iterator[ArrayLike]:
    made = iter(blocks)
    if made is blocks:
        raise InputError("The blocks are needed twice; give a list of them, or a function that returns them anew.")
    return made


def _triangle(rows: Float64Array) -> Float64Array:
    """Return R (n, n) of the QR decomposition of rows (m, n), m > n, in Fortran order, which are overwritten."""
    work, _ = lapack.dgeqrf_lwork(*rows.shape)
    packed, _, _, info = lapack.dgeqrf(rows, lwork=int(work), overwrite_a=True)
    assert info == 0
    return np.triu(packed[: rows.shape[1]])
