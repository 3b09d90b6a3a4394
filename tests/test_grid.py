import json

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from napari_gsvolume.grid import Grid


@st.composite
def grids(draw: st.DrawFn) -> Grid:
    """Oblique, anisotropic, flipped and sheared, with any names."""
    ndim = draw(st.sampled_from([2, 3]))
    numbers = st.lists(st.floats(-10, 10), min_size=ndim, max_size=ndim)
    linear = np.array(draw(st.lists(numbers, min_size=ndim, max_size=ndim)))
    lengths = np.linalg.norm(linear, axis=0)
    assume(lengths.min() > 1e-3)
    assume(abs(np.linalg.det(linear / lengths)) > 1e-3)
    affine = np.eye(ndim + 1)
    affine[:-1, :-1], affine[:-1, -1] = linear, draw(numbers)
    words = st.lists(st.text(max_size=5), min_size=ndim, max_size=ndim)
    return Grid(draw(st.lists(st.integers(1, 300), min_size=ndim, max_size=ndim)), affine, draw(words), draw(words))


def world(grid: Grid, index: np.ndarray) -> np.ndarray:
    return grid.affine[:-1, :-1] @ index + grid.affine[:-1, -1]


def faces(grid: Grid) -> tuple[np.ndarray, np.ndarray]:
    """Return the two opposite outer corners in the world: half a voxel beyond the outer centres."""
    return world(grid, np.full(grid.ndim, -0.5)), world(grid, np.array(grid.shape) - 0.5)


class TestGrid:
    def test_defaults(self) -> None:
        grid = Grid((4, 5, 6))
        assert (grid.shape, grid.ndim, grid.size) == ((4, 5, 6), 3, 120)
        assert grid.axis_labels == ("z", "y", "x")
        assert grid.units == ("pixel",) * 3
        np.testing.assert_array_equal(grid.affine, np.eye(4))
        assert Grid((4, 5)).axis_labels == ("y", "x")

    def test_numpy_integers_become_plain(self) -> None:
        assert [type(n) for n in Grid(np.array([4, 5])).shape] == [int, int]

    def test_a_large_size_does_not_overflow(self) -> None:
        assert Grid((2000, 2000, 2000)).size == 8_000_000_000

    def test_voxel_size_is_the_length_of_a_step(self) -> None:
        c, s = np.cos(0.3), np.sin(0.3)
        linear = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ np.diag([3, -2, 0.5])
        affine = np.eye(4)
        affine[:3, :3], affine[:3, 3] = linear, (10, 20, 30)
        np.testing.assert_allclose(Grid((4, 5, 6), affine).voxel_size, [3, 2, 0.5])

    def test_the_affine_is_a_copy_that_cannot_change(self) -> None:
        affine = np.diag([2.0, 2.0, 1.0])
        grid = Grid((4, 5), affine)
        affine[0, 0] = 7
        assert grid.affine[0, 0] == 2
        with pytest.raises(ValueError, match="read-only"):
            grid.affine[0, 0] = 7
        with pytest.raises(ValueError, match="read-only"):
            Grid((4, 5)).affine[0, 0] = 7


class TestIdentity:
    @given(grids())
    @settings(deadline=None)
    def test_round_trip_through_json(self, grid: Grid) -> None:
        again = Grid.from_dict(json.loads(json.dumps(grid.to_dict())))
        assert again == grid
        assert hash(again) == hash(grid)
        np.testing.assert_array_equal(again.affine, grid.affine)

    def test_zeros_of_either_sign_are_equal(self) -> None:
        affine = np.eye(3)
        affine[0, 1] = -0.0
        assert Grid((2, 3), affine) == Grid((2, 3))
        assert hash(Grid((2, 3), affine)) == hash(Grid((2, 3)))

    @pytest.mark.parametrize(
        "other",
        [
            Grid((4, 6)),
            Grid((4, 5, 1)),
            Grid((4, 5), np.diag([1, 2, 1])),
            Grid((4, 5), units=("mm", "mm")),
            Grid((4, 5), axis_labels=("z", "x")),
            (4, 5),
            None,
        ],
    )
    def test_each_part_counts(self, other: object) -> None:
        assert Grid((4, 5)) != other
        assert Grid((4, 5)) == Grid([4, 5], np.eye(3), ["pixel", "pixel"], ["y", "x"])


class TestResampled:
    @given(grids(), st.data())
    @settings(deadline=None)
    def test_whole_numbers_of_voxels_keep_the_outer_faces(self, grid: Grid, data: st.DataObject) -> None:
        wanted = tuple(data.draw(st.integers(1, 600)) for _ in grid.shape)
        again = grid.resampled([m / n for m, n in zip(wanted, grid.shape, strict=True)])
        assert again.shape == wanted
        assert (again.units, again.axis_labels) == (grid.units, grid.axis_labels)
        size = np.abs(grid.affine[:-1, :-1]).max() * 300
        np.testing.assert_allclose(faces(again), faces(grid), atol=1e-12 * size)

    @given(grids(), st.floats(0.05, 20))
    @settings(deadline=None)
    def test_any_scale_keeps_the_first_face_and_is_right_to_half_a_voxel(self, grid: Grid, scale: float) -> None:
        again = grid.resampled(scale)
        size = np.abs(grid.affine[:-1, :-1]).max() * 300
        np.testing.assert_allclose(faces(again)[0], faces(grid)[0], atol=1e-12 * size)
        np.testing.assert_allclose(again.voxel_size * scale, grid.voxel_size)
        for new, old in zip(again.shape, grid.shape, strict=True):
            assert abs(new - old * scale) <= 0.5 or (new == 1 and old * scale < 0.5)

    def test_twice_as_fine(self) -> None:
        again = Grid((4, 5), np.diag([3, 1, 1])).resampled(2)
        assert again.shape == (8, 10)
        np.testing.assert_allclose(again.affine, [[1.5, 0, -0.75], [0, 0.5, -0.25], [0, 0, 1]])

    def test_one_axis_only(self) -> None:
        again = Grid((4, 5, 6)).resampled((4, 1, 0.5))
        assert again.shape == (16, 5, 3)
        np.testing.assert_allclose(again.affine[:3, 3], [-0.375, 0, 0.5])

    @pytest.mark.parametrize("scale", [0, -1, np.nan, np.inf, (2, 0)])
    def test_scales_that_are_none(self, scale: float) -> None:
        with pytest.raises(ValueError, match="scale must be positive"):
            Grid((4, 5)).resampled(scale)


class TestRefusals:
    @pytest.mark.parametrize("shape", [(), (5,), (2, 3, 4, 5)])
    def test_number_of_axes(self, shape: tuple[int, ...]) -> None:
        with pytest.raises(ValueError, match=f"2 or 3 axes; this one has {len(shape)}"):
            Grid(shape)

    @pytest.mark.parametrize("shape", [(0, 5), (4, -1), (4, 5, 0)])
    def test_empty(self, shape: tuple[int, ...]) -> None:
        with pytest.raises(ValueError, match="empty"):
            Grid(shape)

    @pytest.mark.parametrize("affine", [np.eye(4), np.eye(2), np.ones(9), 1.0])
    def test_affine_of_another_size(self, affine: object) -> None:
        with pytest.raises(ValueError, match="affine of a 2D grid is 3x3"):
            Grid((4, 5), affine)

    @pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
    @pytest.mark.parametrize("place", [(0, 0), (1, 2), (2, 2)])
    def test_affine_that_is_not_finite(self, place: tuple[int, int], bad: float) -> None:
        affine = np.eye(3)
        affine[place] = bad
        with pytest.raises(ValueError, match="NaN or infinite"):
            Grid((4, 5), affine)

    @pytest.mark.parametrize("last", [(0, 0, 2), (0.1, 0, 1), (0, 0, 0)])
    def test_affine_that_is_a_projection(self, last: tuple[float, ...]) -> None:
        with pytest.raises(ValueError, match="last row"):
            Grid((4, 5), [[1, 0, 0], [0, 1, 0], last])

    @pytest.mark.parametrize("linear", [[[0, 0], [0, 1]], [[1, 2], [1, 2]], [[1, 1], [1, 1 + 1e-9]], [[0, 0], [0, 0]]])
    def test_affine_without_inverse(self, linear: list[list[float]]) -> None:
        affine = np.eye(3)
        affine[:2, :2] = linear
        with pytest.raises(ValueError, match="cannot be inverted"):
            Grid((4, 5), affine)

    @pytest.mark.parametrize("size", [1e-9, 1e9])
    def test_tiny_and_huge_voxels_are_fine(self, size: float) -> None:
        affine = np.diag([size, size, size / 100, 1])
        np.testing.assert_allclose(Grid((2, 3, 4), affine).voxel_size, np.diag(affine)[:3])

    @pytest.mark.parametrize("names", [{"units": ("mm",)}, {"axis_labels": ("z", "y", "x")}])
    def test_a_name_for_each_axis(self, names: dict[str, tuple[str, ...]]) -> None:
        with pytest.raises(ValueError, match="needs 2 units and axis labels"):
            Grid((4, 5), **names)


def test_a_slab_is_where_its_voxels_are(refused):
    grid = Grid((4, 5, 6), np.diag([2.0, 3, 4, 1]) + np.pad([[1], [2], [3]], ((0, 1), (3, 0))), ("mm",) * 3)
    slab = grid.slab(1, 3)
    assert (slab.shape, slab.units, slab.axis_labels) == ((4, 1, 6), grid.units, grid.axis_labels)
    np.testing.assert_allclose(slab.affine @ [2, 0, 1, 1], grid.affine @ [2, 3, 1, 1])
    thick = grid.slab(1, 2, 3)
    assert thick.shape == (4, 3, 6)
    np.testing.assert_allclose(thick.affine @ [2, 2, 1, 1], grid.affine @ [2, 4, 1, 1])
    for beyond in ((5, 1), (3, 3), (-1, 1)):
        with refused(ValueError, "5 voxels", "y"):
            grid.slab(1, *beyond)
