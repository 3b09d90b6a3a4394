"""Which component is which: bringing the singular vectors of one decomposition into line with those of another.

Singular vectors have no sign, no order where values cross, and no direction of their own where values are equal. What
can be compared between two decompositions is what is left after the three have been settled.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import subspace_angles
from scipy.optimize import linear_sum_assignment

from ...errors import InputError
from ...types import Float64Array

NEAR = 0.05
"""Values of which each is less than this part below the one before are taken for equal."""


@dataclass(frozen=True, eq=False)
class Alignment:
    """How components of another decomposition become those of a reference.

    Attributes
    ----------
    order : ndarray of int, (r,)
        Which column of the other stands for each of the reference's; -1 where none is left. Among near-equal values it
        is one choice of many: the rotation tells all.
    signs : ndarray, (r,)
        1 or -1: whether that column points the same way.
    rotation : ndarray, (k, r)
        ``other @ rotation`` is the other in the reference's order: permuted, with its signs, and rotated among
        near-equal values. Columns are orthonormal, those of -1 are 0.
    cosines : ndarray, (r,)
        Of each column of the reference with the one that stands for it, 0 where none does.
    """

    order: NDArray[np.intp]
    signs: Float64Array
    rotation: Float64Array
    cosines: Float64Array

    def columns(self, other: ArrayLike) -> Float64Array:
        """Return concepts or scores, (n, k), in the reference's order, (n, r)."""
        return np.asarray(np.asarray(other, dtype=np.float64) @ self.rotation)

    def values(self, values: ArrayLike) -> Float64Array:
        """Return singular values, (k,), in the reference's order, (r,): where rotated, the root mean squares there."""
        return np.asarray(np.sqrt(np.square(np.asarray(values, dtype=np.float64)) @ np.square(self.rotation)))


def align_components(
    reference: ArrayLike, other: ArrayLike, values: ArrayLike | None = None, *, near: float = NEAR
) -> Alignment:
    """Match the columns of another orthonormal basis to those of a reference.

    Components are matched by |cosine|, all at once (the assignment problem; Kuhn 1955), where near-equal values count
    as one subspace: a column's cosine with it is the length of its projection. Inside of it the rotation is that of
    the orthogonal Procrustes problem (Schönemann 1966); for a value that stands alone this is its sign.

    Parameters
    ----------
    reference : array_like, (n, r)
        Unit columns.
    other : array_like, (n, k)
        Orthonormal columns.
    values : array_like, (k,), optional
        The other's singular values, descending; all are taken for different when omitted.
    near : float
        Values of which each is less than this part below the one before are taken for equal.

    Returns
    -------
    Alignment

    Raises
    ------
    ValueError
        If the two have not the same number of features, or there are not as many values as columns.
    """
    R, Q = (np.asarray(a, dtype=np.float64) for a in (reference, other))
    if R.ndim != 2 or Q.ndim != 2 or len(R) != len(Q):
        raise InputError(f"Two bases of the same features are compared; these have the shapes {R.shape} and {Q.shape}.")
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


def group_near_equal(values: ArrayLike, near: float = NEAR) -> list[NDArray[np.intp]]:
    """Return the indices of descending values in groups: each less than a part `near` below the one before it."""
    s = np.asarray(values, dtype=np.float64)
    if len(s) == 0:
        return []
    apart = s[1:] < (1 - near) * s[:-1]
    return np.split(np.arange(len(s)), np.flatnonzero(apart) + 1)


def principal_angles(one: ArrayLike, other: ArrayLike) -> Float64Array:
    """Return the principal angles between the spans of two bases, (min(r, k),), degrees, ascending (Jordan 1875).

    Parameters
    ----------
    one, other : array_like, (n, r) and (n, k)
        Columns that span the subspaces.
    """
    A, B = (np.asarray(a, dtype=np.float64) for a in (one, other))
    return np.asarray(np.degrees(subspace_angles(A, B))[::-1], dtype=np.float64)
