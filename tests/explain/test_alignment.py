"""Which component is which: planted permutations, signs and rotations are undone."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import ortho_group

from napari_gsvolume.explain.decomposition.alignment import align_components, group_near_equal, principal_angles

SEEDS = st.integers(0, 2**32 - 1)


def basis(n, k, rng):
    return np.linalg.qr(rng.normal(size=(n, k)))[0]


def rotation(n, rng):
    return ortho_group.rvs(n, random_state=rng) if n > 1 else np.array([[-1.0]])


@settings(deadline=None, max_examples=40)
@given(SEEDS, st.integers(1, 12), st.integers(0, 20))
def test_permutation_and_signs_are_undone(seed, k, more) -> None:
    rng = np.random.default_rng(seed)
    reference = basis(k + more, k, rng)
    order, signs = rng.permutation(k), rng.choice([-1.0, 1.0], k)
    found = align_components(reference, (reference * signs)[:, order])
    np.testing.assert_array_equal(order[found.order], np.arange(k))
    np.testing.assert_array_equal(found.signs, signs)
    np.testing.assert_allclose(found.columns((reference * signs)[:, order]), reference, atol=1e-12)
    np.testing.assert_allclose(found.cosines, 1)


@settings(deadline=None, max_examples=40)
@given(SEEDS, st.lists(st.integers(1, 4), min_size=1, max_size=4))
def test_rotations_among_equal_values_are_undone(seed, sizes) -> None:
    """Whole blocks change places, and their directions are arbitrary: both are settled, and nothing else is mixed."""
    rng = np.random.default_rng(seed)
    reference = basis(sum(sizes) + 5, sum(sizes), rng)
    blocks = np.split(reference, np.cumsum(sizes)[:-1], axis=1)
    turned = [b @ rotation(n, rng) for b, n in zip(blocks, sizes, strict=True)]
    order = rng.permutation(len(sizes))
    other = np.hstack([turned[j] for j in order])
    values = np.concatenate([np.full(sizes[j], 2.0**-i) for i, j in enumerate(order)])
    found = align_components(reference, other, values)
    np.testing.assert_allclose(found.columns(other), reference, atol=1e-10)
    np.testing.assert_allclose(found.rotation.T @ found.rotation, np.eye(sum(sizes)), atol=1e-10)
    went = np.concatenate([np.full(n, j) for j, n in enumerate(sizes)])
    came = np.concatenate([np.full(sizes[j], 2.0**-i) for i, j in enumerate(order)])
    expected = [came[np.concatenate([np.full(sizes[j], j) for j in order]) == j][0] for j in went]
    np.testing.assert_allclose(found.values(values), expected)


def test_values_that_differ_are_not_rotated() -> None:
    rng = np.random.default_rng(0)
    reference = basis(9, 2, rng)
    turned = reference @ np.array([[0.8, -0.6], [0.6, 0.8]])
    np.testing.assert_allclose(align_components(reference, turned, [2.0, 1.0]).cosines, 0.8)
    np.testing.assert_allclose(align_components(reference, turned, [2.0, 1.99]).cosines, 1.0)


def test_more_and_fewer_components() -> None:
    reference = np.eye(6)[:, :3]
    found = align_components(reference, np.eye(6)[:, [2, 0]])
    np.testing.assert_array_equal(found.order, [1, -1, 0])
    np.testing.assert_allclose(found.cosines, [1, 0, 1])
    np.testing.assert_allclose(found.values([5.0, 4.0]), [4, 0, 5])
    found = align_components(reference, np.eye(6)[:, [4, 2, 0, 5, 1]])
    np.testing.assert_array_equal(found.order, [2, 4, 1])


def test_near_equal_values() -> None:
    assert [list(b) for b in group_near_equal([10, 9.9, 9.8, 5, 1, 1, 0, 0])] == [[0, 1, 2], [3], [4, 5], [6, 7]]
    assert group_near_equal([]) == []


@settings(deadline=None, max_examples=20)
@given(st.floats(0, 90), st.floats(0, 90), SEEDS)
def test_principal_angles(first, second, seed) -> None:
    rng = np.random.default_rng(seed)
    axes = ortho_group.rvs(7, random_state=rng)
    a, b = np.radians([first, second])
    other = np.stack([np.cos(a) * axes[0] + np.sin(a) * axes[1], np.cos(b) * axes[2] + np.sin(b) * axes[3]], 1)
    found = principal_angles(axes[[0, 2]].T @ ortho_group.rvs(2, random_state=rng), other)
    np.testing.assert_allclose(found, sorted([first, second]), atol=1e-5)


def test_one_sentence(refused) -> None:
    with refused(ValueError, "(5, 2)", "(6, 2)"):
        align_components(np.eye(5)[:, :2], np.eye(6)[:, :2])
    with refused(ValueError, "2 components", "3 values"):
        align_components(np.eye(5)[:, :2], np.eye(5)[:, :2], [3, 2, 1])
