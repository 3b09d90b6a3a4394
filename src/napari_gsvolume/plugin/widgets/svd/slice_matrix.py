"""Slices of a layer as matrices: SVD, truncation, and singular vectors as curves. No Qt here."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ....memory import require_memory
from ....metrics import psnr_db
from ....svd import decomposition
from ....svd.continuous_basis import BasisKind, ContinuousBasis
from ....svd.decomposition import SliceSVD
from ....types import Float64Array
from ...layers.conversion import SourceVolume

MatrixKind = Literal["slice", "unfolding"]

ALL_MODES_UP_TO = 1024  # pixels of the shorter side; for larger images only the first eighth of the modes
_MODES_OF_LARGE = 1 / 8
BYTES_A_PIXEL = 48  # at the peak of an SVD: the image, its copy for LAPACK, and V with its sign, in float64
_EXACT_DB = 190  # above, there are only rounding errors
_CURVE_POINTS = 8  # points of a function between two samples
_MOST_CURVE_POINTS = 4000


@dataclass(frozen=True, eq=False)
class Matrix:
    """Matrix of a volume: a slice, or the unfolding with one slice a row.

    Attributes
    ----------
    source : SourceVolume
    axis : int
        Axis along which the slices are stacked; not used for flat images.
    kind : {"slice", "unfolding"}
    index : int
        Slice index.
    """

    source: SourceVolume
    axis: int = 0
    kind: MatrixKind = "slice"
    index: int = 0

    @property
    def flat(self) -> bool:
        """Whether the source is an image of two axes."""
        return self.source.grid.ndim == 2

    @property
    def slab(self) -> int | None:
        """Axis along which the layers of this matrix are one voxel thick; None if they have the shape of the source."""
        return None if self.flat or self.kind == "unfolding" else self.axis

    @property
    def other_axes(self) -> tuple[int, ...]:
        """Axes of the source other than the slice axis."""
        n = self.source.grid.ndim
        return tuple(range(n)) if self.flat else tuple(k for k in range(n) if k != self.axis)

    @property
    def shape(self) -> tuple[int, int]:
        """Numbers of rows and columns."""
        others = [self.source.grid.shape[k] for k in self.other_axes]
        if self.kind == "slice" or self.flat:
            return others[0], others[1]
        return self.source.grid.shape[self.axis], others[0] * others[1]

    @property
    def labels(self) -> tuple[str, str]:
        """Axis labels of rows and columns."""
        names = self.source.grid.axis_labels
        others = [names[k] for k in self.other_axes]
        return (others[0], others[1]) if self.slab is not None or self.flat else (names[self.axis], " ".join(others))

    def load(self) -> NDArray[Any]:
        """Return the matrix; only this slice of lazy data is loaded."""
        array: Any = self.source.array
        if self.flat:
            return np.asarray(array)
        if self.kind == "slice":
            return np.asarray(array[(slice(None),) * self.axis + (self.index,)])
        return decomposition.unfold(np.asarray(array), self.axis)

    def folded(self, image: NDArray[Any]) -> NDArray[Any]:
        """Return an image of this shape with the axes of the source."""
        if self.flat:
            return image
        if self.kind == "slice":
            return np.expand_dims(image, self.axis)
        others = [self.source.grid.shape[k] for k in self.other_axes]
        return np.moveaxis(image.reshape(-1, *others), 0, self.axis)


@dataclass(frozen=True, eq=False)
class MatrixAnalysis:
    """SVD of a matrix, and its figures.

    Attributes
    ----------
    matrix : Matrix
    image : ndarray
        Entries of the matrix.
    decomposition : SliceSVD
        All modes, or the first ones of a large matrix.
    energy, best_psnr : ndarray, (r,)
        Fraction of the sum of squares in the first 1, 2, ... modes; upper bound of the PSNR for that rank.
    stable : float
        Stable rank.
    effective, threshold : float or None
        Effective rank, and threshold of Gavish & Donoho; None without all singular values.
    """

    matrix: Matrix
    image: Float64Array = field(repr=False)
    decomposition: SliceSVD
    energy: Float64Array
    best_psnr: Float64Array
    stable: float
    effective: float | None
    threshold: float | None

    @property
    def rank(self) -> int:
        """Number of modes."""
        return self.decomposition.rank

    @property
    def rank_above_threshold(self) -> int:
        """Number of modes above the threshold, at least one."""
        return max(1, int((self.decomposition.values > (self.threshold or 0)).sum()))


def analyse(matrix: Matrix) -> MatrixAnalysis:
    """Decompose a matrix; raise InputError if it is constant or not finite, MemoryError if it is too large."""
    shape = matrix.shape
    check_memory(shape[0] * shape[1] * BYTES_A_PIXEL, f"Decomposing a matrix of {shape[0]} x {shape[1]}")
    image = decomposition.check_slice(matrix.load())
    shorter = min(image.shape)
    all_modes = shorter <= ALL_MODES_UP_TO
    found = decomposition.decompose(image, None if all_modes else max(1, int(_MODES_OF_LARGE * shorter)))
    values, total = found.values, float(np.square(image).sum())
    largest = float(np.ptp(image))
    if all_modes:
        energy, best = decomposition.cumulative_energy(values), decomposition.best_psnr_db(values, found.shape, largest)
        effective, threshold = (
            float(decomposition.effective_rank(values)),
            float(decomposition.optimal_threshold(values, found.shape)),
        )
        return MatrixAnalysis(
            matrix, image, found, energy, best, float(decomposition.stable_rank(values)), effective, threshold
        )
    # Only the sum of squares of the other modes is known.
    captured = np.cumsum(np.square(values))
    best = np.array([psnr_db(max(total - part, 0.0) / (image.size * largest**2)) for part in captured])
    return MatrixAnalysis(matrix, image, found, captured / total, best, total / float(values[0]) ** 2, None, None)


def summarize(at: MatrixAnalysis, rank: int) -> str:
    """Return the figures of a matrix and of a rank in one line."""
    matrix, names = at.matrix, at.matrix.source.grid.axis_labels
    which = "Image" if matrix.flat else f"{names[matrix.axis]} {matrix.index}"
    which = f"Unfolding along {names[matrix.axis]}" if matrix.kind == "unfolding" else which
    effective = "" if at.effective is None else f"effective rank {at.effective:.1f}, "
    best = float(at.best_psnr[rank - 1])
    psnr = "exact" if best > _EXACT_DB else f"PSNR {best:.2f} dB"
    energy = f"{100 * float(at.energy[rank - 1]):.5g} % of the energy"
    return f"{which}: {effective}stable rank {at.stable:.2f}; rank {rank}: {energy}, {psnr}"


@dataclass(frozen=True, eq=False)
class RankApproximation:
    """Image of a rank and its residual, with the axes of the source."""

    analysis: MatrixAnalysis
    rank: int
    image: NDArray[Any] = field(repr=False)
    residual: NDArray[Any] = field(repr=False)


def truncate(analysis: MatrixAnalysis, rank: int) -> RankApproximation:
    """Return the best image of a rank, and its residual."""
    image = analysis.decomposition.truncate(rank)
    fold = analysis.matrix.folded
    return RankApproximation(
        analysis, rank, fold(image.astype(np.float32)), fold((analysis.image - image).astype(np.float32))
    )


@dataclass(frozen=True)
class BasisChoice:
    """Basis of the functions through singular vectors."""

    kind: BasisKind = "bspline"
    order: int = 3
    smoothing: float = 0.0


@dataclass(frozen=True, eq=False)
class Curve:
    """Samples of a singular vector, and the function through them."""

    label: str
    samples: Float64Array
    x: Float64Array
    function: Float64Array


def sample_curve(vector: Float64Array, label: str, basis: BasisChoice) -> Curve:
    """Return a vector and its function over the extent of its pixels."""
    n = len(vector)
    made = ContinuousBasis.fit(vector[:, None], basis.kind, order=basis.order, smoothing=basis.smoothing)
    x = np.linspace(-0.5, n - 0.5, min(_CURVE_POINTS * n, max(_MOST_CURVE_POINTS, n)) + 1)
    return Curve(label, vector, x, made.evaluate(x)[:, 0])


def check_memory(needed: float, what: str) -> None:
    """Raise MemoryError if more bytes are needed than are free; `what` begins the sentence."""
    require_memory(needed, f"{what} takes", "choose a smaller image or a smaller factor")
