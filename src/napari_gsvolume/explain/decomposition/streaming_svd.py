"""Streaming SVD of a matrix that arrives in blocks of rows and is never held in memory.

Up to a number of features it is exact, by a sequential TSQR in float64 [1]_: R <- qr([R; block]) has the singular
values and right vectors of all rows so far. The Gram matrix would be faster, and lose half of the digits. Beyond,
[S V^T; block] is truncated after every block [2]_, with a bound of the error.

References
----------
.. [1] J. Demmel, L. Grigori, M. Hoemmen & J. Langou, "Communication-optimal parallel and sequential QR and LU
   factorizations", SIAM J. Sci. Comput. 34, 2012.
.. [2] M. Brand, "Incremental singular value decomposition of uncertain data with missing values", ECCV 2002.
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

EXACT_FEATURES = 4096
"""Largest number of features for which the streaming SVD is exact."""
_ROWS = 8192  # smallest number of rows of a factorization


class StreamingSVD:
    """Singular values and right singular vectors of rows that arrive in blocks.

    Parameters
    ----------
    k : int
        Number of modes; fewer are returned if the rank is lower.
    centre : bool
        Subtract the mean of all rows. As it is known only at the end, blocks are centred by their own mean, with one
        more row for the difference of the means, which is exact [1]_.
    exact : int
        Largest number of features for which it is exact; it takes about ``24 * features**2`` bytes, 0.4 GiB at 4096.
        Beyond, only the first ``4 k + 64`` modes are carried along, and `missed` bounds the error.

    Raises
    ------
    InputError
        If `k` is below 1.

    References
    ----------
    .. [1] D. Ross et al., "Incremental learning for robust visual tracking", IJCV 77, 2008.

    Examples
    --------
    >>> import numpy as np
    >>> from napari_gsvolume.explain.decomposition.streaming_svd import StreamingSVD
    >>> svd = StreamingSVD(k=2)
    >>> for block in np.split(np.diag([4.0, 3.0, 2.0, 1.0]), 2):
    ...     svd.update(block)
    >>> svd.result()[0]
    array([4., 3., 2., 1.])
    """

    def __init__(self, k: int, *, centre: bool = False, exact: int = EXACT_FEATURES) -> None:
        check_modes(k)
        self.k, self.centre, self.exact = int(k), centre, exact
        self.rows = 0
        """Number of rows so far."""
        self.missed = 0.0
        """Bound of the error of the squared values, which may be too small by it."""
        self._lost = 0.0  # of the sum of squares
        self._features = 0
        self._factor: Float64Array = np.empty((0, 0))  # its A^T A is that of all rows so far
        self._mean: Float64Array = np.empty(0)
        self._factored = 0  # rows in _factor
        self._pending: list[NDArray[Any]] = []
        self._waiting = 0  # rows in _pending

    @property
    def features(self) -> int:
        """Number of columns; 0 before the first block."""
        return self._features

    def update(self, block: ArrayLike) -> None:
        """Take in a block of rows.

        Parameters
        ----------
        block : array_like, (rows, features)
            Real and finite.

        Raises
        ------
        InputError
            If it is no matrix, has a different number of columns than earlier blocks, or holds NaN or infinite numbers.
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
            # A copy: the caller may write into the block before it is used.
            part = array[first : first + step].copy()
            self._pending.append(part)
            self._waiting += len(part)
            self.rows += len(part)
            if self._waiting >= step:
                self._take()

    def result(self) -> tuple[Float64Array, Float64Array, Float64Array]:
        """Return all known values (r,), descending, right vectors V (features, k'), and the mean (features,).

        k' is `k`, or less if the rank is lower. The mean is 0 unless the rows are centred.

        Raises
        ------
        InputError
            If there are no rows.
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
        """Combine the factor and the pending rows."""
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
    exact: int = EXACT_FEATURES,
) -> Components:
    """Decompose a matrix that arrives in blocks of rows, in two passes: values and concepts, then scores.

    Parameters
    ----------
    blocks : iterable of array_like, (rows, features), or a function that returns one
        The same blocks in each pass. Only their scores, float32, are kept.
    k, centre, exact
        As in `StreamingSVD`.

    Raises
    ------
    InputError
        If the blocks are a generator, there are none, or they are no finite matrices with the same number of columns.

    Examples
    --------
    >>> import numpy as np
    >>> from napari_gsvolume.explain.decomposition.streaming_svd import compute_streaming_svd
    >>> compute_streaming_svd([np.eye(2), 2 * np.eye(2)], k=1).scores.shape
    (4, 1)
    """
    again = blocks if callable(blocks) else lambda: _again(blocks)
    svd = StreamingSVD(k, centre=centre, exact=exact)
    for block in again():
        svd.update(block)
    spectrum, V, mean = svd.result()
    scores = Scores(spectrum, V, mean, svd.rows)
    for block in again():
        scores.update(block)
    return build_components(spectrum, V, scores.result(), svd.total, mean=mean if centre else None, missed=svd.missed)


class Scores:
    """Scores U = (A - mean) V / S of the rows of a second pass, (rows, k), float32."""

    def __init__(self, spectrum: Float64Array, V: Float64Array, mean: Float64Array, rows: int) -> None:
        self._onto = V / spectrum[: V.shape[1]]
        self._offset = mean @ self._onto
        self._scores = np.empty((rows, V.shape[1]), dtype=np.float32)
        self._filled = 0

    def update(self, block: ArrayLike) -> None:
        """Take in rows, in the order of the first pass."""
        array = np.asarray(block)
        for first in range(0, len(array), _ROWS):
            part = array[first : first + _ROWS]
            if self._filled + len(part) > len(self._scores):
                raise _differs()
            self._scores[self._filled : self._filled + len(part)] = part.astype(np.float64) @ self._onto - self._offset
            self._filled += len(part)

    def result(self) -> NDArray[np.float32]:
        """Return the scores; raise InputError if the rows differ from those of the first pass."""
        norms = np.sqrt([np.einsum("i,i", c, c, dtype=np.float64) for c in self._scores.T])
        # Truncation may leave values, and so norms, a little off; other rows would be far off.
        if self._filled != len(self._scores) or not (np.abs(norms - 1) < 0.5).all():
            raise _differs()
        return self._scores


def _differs() -> InputError:
    return InputError("The second pass had other samples than the first; give inputs that are the same each time.")


def _again(blocks: Iterable[ArrayLike]) -> Iterator[ArrayLike]:
    made = iter(blocks)
    if made is blocks:
        raise InputError("The blocks are needed twice; give a list of them, or a function that returns them.")
    return made


def _triangle(rows: Float64Array) -> Float64Array:
    """Return R (n, n) of the QR decomposition of rows (m, n), m > n, in Fortran order, which are overwritten."""
    work, _ = lapack.dgeqrf_lwork(*rows.shape)
    packed, _, _, info = lapack.dgeqrf(rows, lwork=int(work), overwrite_a=True)
    assert info == 0
    return np.triu(packed[: rows.shape[1]])
