"""Grids of voxels, and their affine map to the world."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .errors import InputError

Axis = Literal["z", "y", "x"]

_DEFAULT_LABELS = {2: ("y", "x"), 3: ("z", "y", "x")}


@dataclass(frozen=True, eq=False)
class Grid:
    """Regular grid of voxels, with its affine map to the world.

    Grids are immutable, comparable and hashable.

    Parameters
    ----------
    shape : sequence of int
        Number of voxels along each array axis: ``(Z, Y, X)`` or ``(Y, X)``.
    affine : array_like, (D + 1, D + 1), optional
        Affine from homogeneous index coordinates (array axis order, voxel centres at integers) to world
        coordinates in the same axis order. The identity by default.
    units : sequence of str, optional
        Unit of each world axis, in a spelling that pint reads (``"mm"``, ``"micrometer"``); ``"pixel"`` by default.
    axis_labels : sequence of str, optional
        Name of each array axis; ``("z", "y", "x")`` or ``("y", "x")`` by default.

    Raises
    ------
    InputError
        If the shape is not 2D or 3D or has an axis without voxels, or if the affine has another size, is not
        finite, is not affine, or cannot be inverted; a ValueError.

    Examples
    --------
    >>> import numpy as np
    >>> from napari_gsvolume import Grid
    >>> grid = Grid((10, 20, 30), np.diag([2.0, 0.5, 0.5, 1.0]), units=("mm",) * 3)
    >>> grid.voxel_size.tolist(), grid.size
    ([2.0, 0.5, 0.5], 6000)
    >>> grid.resampled(2).shape
    (20, 40, 60)
    """

    shape: tuple[int, ...]
    affine: NDArray[np.float64]
    units: tuple[str, ...]
    axis_labels: tuple[str, ...]

    def __init__(
        self,
        shape: Sequence[int],
        affine: ArrayLike | None = None,
        units: Sequence[str] | None = None,
        axis_labels: Sequence[str] | None = None,
    ) -> None:
        shape = tuple(int(n) for n in shape)
        ndim = len(shape)
        if ndim not in (2, 3):
            raise InputError(f"A grid has 2 or 3 axes; this one has {ndim} (shape {shape}).")
        if min(shape) < 1:
            raise InputError(f"The grid is empty: an axis of shape {shape} has no voxels.")
        units = ("pixel",) * ndim if units is None else tuple(str(u) for u in units)
        labels = _DEFAULT_LABELS[ndim] if axis_labels is None else tuple(str(a) for a in axis_labels)
        if len(units) != ndim or len(labels) != ndim:
            raise InputError(f"A {ndim}D grid needs {ndim} units and axis labels; got {units} and {labels}.")
        object.__setattr__(self, "shape", shape)
        object.__setattr__(self, "affine", _checked_affine(affine, ndim))
        object.__setattr__(self, "units", units)
        object.__setattr__(self, "axis_labels", labels)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Grid) and self.to_dict() == other.to_dict()

    def __hash__(self) -> int:
        return hash((self.shape, self.affine.tobytes(), self.units, self.axis_labels))

    @property
    def ndim(self) -> int:
        """Number of axes, 2 or 3."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of voxels."""
        return math.prod(self.shape)

    @property
    def voxel_size(self) -> NDArray[np.float64]:
        """Length of one index step along each array axis, in world units, shape ``(D,)``."""
        return np.asarray(np.linalg.norm(self.affine[:-1, :-1], axis=0))

    def resampled(self, scale: float | Sequence[float]) -> Grid:
        """Return the grid over the same extent with `scale` times as many voxels along each axis.

        Voxels are cells, so the outer faces stay in place: centres move by ``(1 / scale - 1) / 2`` of an old voxel. The
        number of voxels along an axis is rounded to the nearest integer, and the first face stays in place.
        """
        factors = np.broadcast_to(np.asarray(scale, dtype=np.float64), (self.ndim,))
        if not (np.isfinite(factors).all() and (factors > 0).all()):
            raise InputError(f"The scale must be positive; got {scale}.")
        shape = tuple(max(1, round(n * f)) for n, f in zip(self.shape, factors, strict=True))
        new_to_old = np.eye(self.ndim + 1)
        new_to_old[:-1, :-1] = np.diag(1 / factors)
        new_to_old[:-1, -1] = (1 / factors - 1) / 2
        return Grid(shape, self.affine @ new_to_old, self.units, self.axis_labels)

    def slab(self, axis: int, index: int, thickness: int = 1) -> Grid:
        """Return the part of the grid from `index` on along one axis, `thickness` voxels thick."""
        if not 0 <= index < index + thickness <= self.shape[axis]:
            raise InputError(
                f"There are {self.shape[axis]} voxels along {self.axis_labels[axis]}; there is no {index}."
            )
        shape, step = list(self.shape), np.eye(self.ndim + 1)
        shape[axis], step[axis, -1] = thickness, index
        return Grid(shape, self.affine @ step, self.units, self.axis_labels)

    def to_dict(self) -> dict[str, Any]:
        """Return the grid as lists and strings, ready for JSON."""
        return {
            "shape": list(self.shape),
            "affine": self.affine.tolist(),
            "units": list(self.units),
            "axis_labels": list(self.axis_labels),
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Grid:
        """Return the grid of a dictionary that `to_dict` returned."""
        return cls(data["shape"], data["affine"], data["units"], data["axis_labels"])


def _checked_affine(affine: ArrayLike | None, ndim: int) -> NDArray[np.float64]:
    # A copy, as the caller may change the array; + 0.0 turns -0.0 into 0.0, so that equal affines have equal bytes.
    matrix = np.array(np.eye(ndim + 1) if affine is None else affine, dtype=np.float64) + 0.0
    if matrix.shape != (ndim + 1, ndim + 1):
        raise InputError(f"The affine of a {ndim}D grid is {ndim + 1}x{ndim + 1}; got shape {matrix.shape}.")
    if not np.isfinite(matrix).all():
        raise InputError("The affine holds NaN or infinite numbers; mend the image's header.")
    if not np.array_equal(matrix[-1], np.eye(ndim + 1)[-1]):
        raise InputError(f"The last row of the affine must be 0 ... 0 1; got {matrix[-1].tolist()}.")
    lengths = np.linalg.norm(matrix[:-1, :-1], axis=0)
    if min(lengths) == 0 or abs(np.linalg.det(matrix[:-1, :-1] / lengths)) < 1e-6:
        raise InputError("The affine cannot be inverted (axes of zero length, or parallel); mend the image's header.")
    matrix.setflags(write=False)
    return matrix
