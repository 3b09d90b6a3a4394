"""Alignment of the components of two decompositions.

Singular vectors have no sign, no order where values cross, and no direction of their own where values are equal. Two
decompositions can be compared after these three ambiguities have been resolved.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import subspace_angles
from scipy.optimize import linear_sum_assignment

from ...errors import InputError
from ...types import Float64Array

NEAR_EQUAL = 0.05
"""Relative gap below which consecutive singular values count as equal."""


@dataclass(frozen=True, eq=False)
class Alignment:
    """Transformation of the components of another decomposition to those of a reference.

    Attributes
    ----------
    order : ndarray of int, (r,)
        Column of the other that matches each column of the reference; -1 if none is left. Among near-equal values it is
        one choice of many; the rotation is complete.
    signs : ndarray, (r,)
        1 or -1: orientation of that column.
    rotation : ndarray, (k, r)
        ``other @ rotation`` is the other in the order of the reference: permuted, with its signs, and rotated among
        near-equal values. Columns are orthonormal; those without a match are 0.
    cosines : ndarray, (r,)
        Cosine of each column of the reference with its match, 0 without a match.
    """

    order: NDArray[np.intp]
    signs: Float64Array
    rotation: Float64Array
    cosines: Float64Array

    def columns(self, other: ArrayLike) -> Float64Array:
        """Return concepts or scores, (n, k), in the order of the reference, (n, r)."""
        return np.asarray(np.asarray(other, dtype=np.float64) @ self.rotation)

    def values(self, values: ArrayLike) -> Float64Array:
        """Return singular values, (k,), in the order of the reference, (r,); root mean squares where rotated."""
        return np.asarray(np.sqrt(np.square(np.asarray(values, dtype=np.float64)) @ np.square(self.rotation)))


def align_components(
    reference: ArrayLike, other: ArrayLike, values: ArrayLike | None = None, *, near: float = NEAR_EQUAL
) -> Alignment:
    """Match the columns of another orthonormal basis to those of a reference.

    Components are matched by |cosine|, all at once (assignment problem [1]_). Near-equal values count as one subspace:
    the cosine of a column with it is the length of its projection. Inside the subspace the rotation is that of the
    orthogonal Procrustes problem [2]_; for a single value this is its sign.

    Parameters
    ----------
    reference : array_like, (n, r)
        Unit columns.
    other : array_like, (n, k)
        Orthonormal columns.
    values : array_like, (k,), optional
        Singular values of the other, descending; all count as different if omitted.
    near : float
        Relative gap below which consecutive values count as equal.

    Returns
    -------
    Alignment

    Raises
    ------
    InputError
        If the numbers of features differ, or there are not as many values as columns.

    References
    ----------
    .. [1] H. W. Kuhn, "The Hungarian method for the assignment problem", Naval Research Logistics Quarterly 2, 1955.
    .. [2] P. Schönemann, "A generalized solution of the orthogonal Procrustes problem", Psychometrika 31, 1966.

    Examples
    --------
    >>> import numpy as np
    >>> from napari_gsvolume.explain import align_components
    >>> align_components(np.eye(3)[:, :2], -np.eye(3)[:, [1, 0]]).order
    array([1, 0])
    """
    R, Q = (np.asarray(a, dtype=np.float64) for a in (reference, other))
    if R.ndim != 2 or Q.ndim != 2 or len(R) != len(Q):
        raise InputError(
            f"Two bases of the same features can be aligned; these have the shapes {R.shape} and {Q.shape}."
        )
    r, k = R.shape[1], Q.shape[1]
    blocks = [np.array([j]) for j in range(k)] if values is None else group_near_equal(values, near)
    if sum(map(len, blocks)) != k:
        raise InputError(f"There are {k} components and {sum(map(len, blocks))} values.")
    overlap = Q.T @ R  # (k, r)
    likeness = np.abs(overlap)
    for block in blocks:
        likeness[block] = np.linalg.norm(overlap[block], axis=0)
    rows, columns = linear_sum_assignment(likeness, maximize=True)
    rotation, order = np.zeros((k, r)), np.full(r, -1, dtype=np.intp)
    order[columns] = rows
    for block in blocks:
        matched = columns[np.isin(rows, block)]
        if len(matched):
            left, _, right = np.linalg.svd(overlap[np.ix_(block, matched)], full_matrices=False)
            rotation[np.ix_(block, matched)] = left @ right
    cosines = (overlap * rotation).sum(0)
    signs = np.ones(r)
    signs[columns] = np.where(rotation[rows, columns] < 0, -1.0, 1.0)
    return Alignment(order, signs, rotation, cosines)


def group_near_equal(values: ArrayLike, near: float = NEAR_EQUAL) -> list[NDArray[np.intp]]:
    """Return the indices of descending values in groups with relative gaps below `near`."""
    s = np.asarray(values, dtype=np.float64)
    if len(s) == 0:
        return []
    apart = s[1:] < (1 - near) * s[:-1]
    return np.split(np.arange(len(s)), np.flatnonzero(apart) + 1)


def principal_angles(one: ArrayLike, other: ArrayLike) -> Float64Array:
    """Return the principal angles between the spans of two bases, (min(r, k),), in degrees, ascending.

    Parameters
    ----------
    one, other : array_like, (n, r) and (n, k)
        Columns that span the subspaces.

    References
    ----------
    .. [1] A. Björck & G. Golub, "Numerical methods for computing angles between linear subspaces", Mathematics of
       Computation 27, 1973.
    """
    A, B = (np.asarray(a, dtype=np.float64) for a in (one, other))
    return np.asarray(np.degrees(subspace_angles(A, B))[::-1], dtype=np.float64)
