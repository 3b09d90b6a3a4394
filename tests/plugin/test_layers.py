"""Layers to grids and back: the same voxel stays at the same place in the world."""

from collections import Counter

import numpy as np
import pytest
import torch
from napari.layers import Image, Layer, Points, Surface
from scipy.spatial.transform import Rotation

from napari_gsvolume import GaussianVolume, Grid
from napari_gsvolume.plugin.layers import gaussians as gaussian_layers
from napari_gsvolume.plugin.layers.conversion import (
    METADATA_KEY,
    density_layer,
    grid_placement,
    level_shapes,
    residual_layer,
    residual_limit,
    series_placement,
    source_volume,
)
from napari_gsvolume.plugin.layers.gaussians import ellipsoids, gaussian_features, gaussian_layer, gaussians_of

pytestmark = pytest.mark.filterwarnings("ignore:Non-orthogonal slicing")

TURN = Rotation.from_rotvec([0.3, -0.5, 0.2]).as_matrix()
OBLIQUE = np.eye(4)
OBLIQUE[:3, :3] = TURN @ np.array([[2, 0.3, 0], [0, 1, 0.2], [0, 0, 0.5]])
OBLIQUE[:3, 3] = 40, -3, 7

PLACES = {
    "plain": {},
    "scale": {"scale": (3, 1, 2), "translate": (5, -2, 7)},
    "mirrored": {"scale": (-3, 1, 2), "translate": (5, -2, 7)},
    "rotate": {"scale": (3, 1, 2), "rotate": TURN, "translate": (1, 2, 3)},
    "shear": {"scale": (3, 1, 2), "shear": (0.2, -0.1, 0.4), "translate": (1, 2, 3)},
    "affine": {"affine": OBLIQUE},
    "all": {
        "scale": (3, 1, 2),
        "rotate": TURN,
        "shear": (0.2, -0.1, 0.4),
        "translate": (5, -2, 7),
        "affine": OBLIQUE,
        "units": ("mm", "um", "nm"),
        "axis_labels": ("depth", "row", "column"),
    },
}

GRIDS = {
    "2D": Grid((5, 6)),
    "2D diagonal": Grid((5, 6), np.diag([2, 0.5, 1]), ("mm", "mm"), ("row", "column")),
    "2D oblique": Grid((5, 6), [[1, 0.4, 3], [-0.2, 2, 1], [0, 0, 1]]),
    "diagonal": Grid((4, 5, 6), [[3, 0, 0, -7], [0, 2, 0, 5], [0, 0, 1, 0.5], [0, 0, 0, 1]], ("um",) * 3),
    "mirrored": Grid((4, 5, 6), np.diag([-1, 1, -2, 1]), ("mm",) * 3),
    "permuted": Grid((4, 5, 6), [[0, 0, 1, 0], [2, 0, 0, 0], [0, 3, 0, 4], [0, 0, 0, 1]]),
    "oblique": Grid((4, 5, 6), OBLIQUE, ("mm", "um", "nm"), ("a", "b", "c")),
}


def image(shape, **options):
    data = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    return Image(data, **{"rgb": False, "name": "volume", **options})


def to_world(layer_or_grid, index):
    if isinstance(layer_or_grid, Grid):
        return layer_or_grid.affine[:-1] @ [*index, 1]
    return np.asarray(layer_or_grid.data_to_world(index))


def assert_same_place(a, b, ndim=3):
    """Layers or grids take any index to the same point."""
    for index in np.random.default_rng(1).uniform(-5, 50, (5, ndim)):
        np.testing.assert_allclose(to_world(a, index), to_world(b, index), rtol=1e-9, atol=1e-9)


def gaussians(n, ndim=3, grid=None, *, mirrored=False):
    """Oblique ones of any sign; `mirrored` ones have factors of negative determinant."""
    random = np.random.default_rng(3)
    factors = np.linalg.qr(random.normal(size=(n, ndim, ndim)))[0] / random.uniform(0.5, 3, (n, 1, ndim))
    factors[:, 0] *= (np.sign(np.linalg.det(factors)) * (-1 if mirrored else 1))[:, None]
    means, weights = random.uniform(0, 12, (n, ndim)), random.normal(size=n)
    return GaussianVolume(
        *(torch.from_numpy(a) for a in (means, factors, weights)), grid or Grid((12,) * ndim), 2.0, {"from": "a test"}
    )


class TestSourceVolume:
    @pytest.mark.parametrize("place", PLACES)
    def test_a_volume_is_where_its_layer_is(self, place):
        layer = image((4, 5, 6), **PLACES[place])
        source = source_volume(layer)
        assert source.name == "volume"
        assert source.limits == tuple(layer.contrast_limits)
        np.testing.assert_array_equal(np.asarray(source.array), layer.data)
        assert_same_place(source.grid, layer)
        copy = image((4, 5, 6), **source.placement)
        assert_same_place(copy, layer)
        assert copy.units == layer.units
        assert copy.axis_labels == layer.axis_labels == source.grid.axis_labels
        assert source.grid.units == tuple(str(unit) for unit in layer.units)
        for name in ("scale", "translate", "rotate", "shear"):  # as the user set them, to be edited again
            np.testing.assert_allclose(getattr(copy, name), getattr(layer, name), atol=1e-12)

    def test_an_image_is_a_volume_of_two_axes(self):
        layer = image((5, 6), scale=(2, 3), rotate=30, translate=(1, -4), units=("mm", "mm"))
        source = source_volume(layer)
        assert source.grid.shape == (5, 6)
        assert_same_place(source.grid, layer, ndim=2)
        assert_same_place(image((5, 6), **source.placement), layer, ndim=2)

    @pytest.mark.parametrize("place", PLACES)
    def test_a_time_point_lies_where_the_series_is(self, place):
        options = dict(PLACES[place])
        affine = np.eye(5)
        affine[1:, 1:] = options.pop("affine", np.eye(4))
        rotate = np.eye(4)
        rotate[1:, 1:] = options.pop("rotate", np.eye(3))
        options.pop("shear", None)
        for name, first in (("scale", 10), ("translate", 4), ("units", "second"), ("axis_labels", "t")):
            if name in options:
                options[name] = (first, *options[name])
        layer = image((3, 4, 5, 6), affine=affine, rotate=rotate, **options)
        source = source_volume(layer, time_point=2)
        np.testing.assert_array_equal(np.asarray(source.array), layer.data[2])
        placed = image((4, 5, 6), **source.placement)
        for index in np.random.default_rng(1).uniform(-5, 50, (5, 3)):
            expected = to_world(layer, [2.0, *index])[1:]
            np.testing.assert_allclose(to_world(source.grid, index), expected)
            np.testing.assert_allclose(to_world(placed, index), expected)
        assert placed.units == layer.units[1:]
        assert placed.axis_labels == layer.axis_labels[1:]
        again = image((3, 4, 5, 6), **series_placement(layer, source.grid))
        assert_same_place(again, layer, ndim=4)
        assert again.units == layer.units
        assert again.axis_labels == layer.axis_labels

    @pytest.mark.parametrize("shape", [(8, 12, 16), (9, 12, 15)], ids=str)
    @pytest.mark.parametrize("place", ["plain", "all"])
    def test_levels_of_a_pyramid_cover_the_same_extent(self, shape, place):
        data = np.zeros(shape, np.float32)
        layer = Image([data, data[::2, ::2, ::2], data[::4, ::4, ::4]], multiscale=True, **PLACES[place])
        assert level_shapes(layer)[0] == shape
        finest = source_volume(layer)
        assert_same_place(finest.grid, layer)
        for level in (1, 2):
            source = source_volume(layer, level=level)
            assert source.grid.shape == source.array.shape == level_shapes(layer)[level]
            assert_same_place(source.grid, image(source.grid.shape, **source.placement))
            for corner in np.ndindex(2, 2, 2):
                faces = [np.where(corner, np.array(grid.shape) - 0.5, -0.5) for grid in (finest.grid, source.grid)]
                np.testing.assert_allclose(to_world(finest.grid, faces[0]), to_world(source.grid, faces[1]), atol=1e-9)

    def test_of_a_lazy_series_only_the_time_point_is_loaded_and_only_when_asked(self):
        da = pytest.importorskip("dask.array")
        loaded = []

        def load(block, block_id):
            loaded.append(block_id[0])
            return block + block_id[0]

        zeros = da.zeros((3, 4, 5, 6), chunks=(1, 4, 5, 6))
        layer = Image(zeros.map_blocks(load, dtype=float, meta=np.zeros(())), contrast_limits=(0, 1), cache=False)
        loaded.clear()
        source = source_volume(layer, time_point=2)
        assert loaded == []
        np.testing.assert_array_equal(np.asarray(source.array), np.full((4, 5, 6), 2.0))
        assert set(loaded) == {2}

    REFUSALS = (
        ((20, 20, 3), {"rgb": True}, {}, ["RGB", "split"]),
        ((2, 2, 4, 4, 4), {}, {}, ["5 axes"]),
        ((3, 4, 5, 6), {}, {}, ["3 time points"]),
        ((3, 4, 5, 6), {}, {"time_point": 3}, ["3 time points", "no 3"]),
        ((3, 4, 5, 6), {}, {"time_point": -1}, ["3 time points", "no -1"]),
        ((4, 5, 6), {}, {"level": 1}, ["level 1"]),
    )

    @pytest.mark.parametrize(("shape", "options", "choice", "words"), REFUSALS)
    def test_refusals_name_the_layer(self, refused, shape, options, choice, words):
        layer = Image(np.zeros(shape, np.uint8), name="mine", contrast_limits=(0, 1), **options)
        with refused(ValueError, "'mine'", *words):
            source_volume(layer, **choice)


class TestPlacement:
    @pytest.mark.parametrize("name", GRIDS)
    def test_round_trip(self, name):
        grid = GRIDS[name]
        layer = image(grid.shape, **grid_placement(grid))
        assert_same_place(layer, grid, ndim=grid.ndim)
        back = source_volume(layer).grid
        np.testing.assert_allclose(back.affine, grid.affine, atol=1e-12)
        assert back.shape == grid.shape
        assert back.axis_labels == grid.axis_labels
        assert layer.units == image(grid.shape, units=grid.units).units

    def test_a_plain_grid_is_said_in_scale_and_translate(self):
        layer = image((4, 5, 6), **grid_placement(GRIDS["diagonal"]))
        np.testing.assert_allclose(layer.scale, (3, 2, 1))
        np.testing.assert_allclose(layer.translate, (-7, 5, 0.5))


class TestLayers:
    @pytest.mark.parametrize("name", GRIDS)
    def test_density_and_residual(self, name):
        grid = GRIDS[name]
        data = np.random.default_rng(0).normal(size=grid.shape).astype(np.float32)
        density = Layer.create(*density_layer("T1", data, grid_placement(grid), (-1, 4), {"a": 1}))
        residual = Layer.create(*residual_layer("T1", data, grid_placement(grid), 0.25, {"a": 2}))
        for layer, words, limits in ((density, "T1 · density", (-1, 4)), (residual, "T1 · residual", (-0.25, 0.25))):
            assert isinstance(layer, Image)
            assert layer.name == words
            assert not layer.rgb
            assert tuple(layer.contrast_limits) == limits
            np.testing.assert_array_equal(layer.data, data)
            assert_same_place(layer, grid, ndim=grid.ndim)
        assert density.metadata[METADATA_KEY] == {"a": 1}

    def test_a_last_axis_of_three_is_no_colour(self):
        data = np.zeros((9, 9, 3), np.float32)
        for made in (density_layer("a", data, {}, (0, 1), {}), residual_layer("a", data, {}, 1, {})):
            assert Layer.create(*made).ndim == 3

    @pytest.mark.parametrize("values", [np.zeros((4, 4)), np.full((4, 4), np.nan), np.zeros((0, 4))], ids=str)
    def test_the_limit_of_a_residual_of_nothing_makes_a_layer(self, values):
        limit = residual_limit(values.astype(np.float32))
        assert 0 < limit < 1

    def test_the_limit_of_a_residual_ignores_a_few_outliers(self):
        residual = np.random.default_rng(0).uniform(-2, 1, 10_000).astype(np.float32)
        residual[:10] = 1000, -1000, np.nan, np.inf, -np.inf, 500, 500, 500, 500, 500
        assert residual_limit(residual) == pytest.approx(2, abs=0.05)

    @pytest.mark.parametrize("name", GRIDS)
    def test_gaussians_lie_on_their_grid(self, name):
        grid = GRIDS[name]
        model = gaussians(7, grid.ndim, grid)
        layer = Layer.create(*gaussian_layer("T1", model))
        assert isinstance(layer, Surface)
        assert layer.name == "T1 · gaussians"
        assert_same_place(layer, grid, ndim=grid.ndim)
        assert gaussians_of(layer.metadata) is model
        assert len(layer.features) == len(layer.vertices)
        np.testing.assert_allclose(layer.vertex_values, layer.features["weight"])
        index = np.asarray(layer.features["index"])
        np.testing.assert_allclose(layer.features["weight"], model.weights.numpy()[index])
        for i in range(7):
            np.testing.assert_allclose(layer.vertices[index == i].mean(0), model.means[i], atol=1e-4)

    @pytest.mark.parametrize("ndim", [2, 3])
    def test_many_gaussians_are_points(self, monkeypatch, ndim):
        monkeypatch.setattr(gaussian_layers, "most_ellipsoids", lambda: 6)
        assert gaussian_layer("T1", gaussians(6, ndim))[2] == "surface"
        model = gaussians(7, ndim)
        layer = Layer.create(*gaussian_layer("T1", model))
        assert isinstance(layer, Points)
        assert layer.name == "T1 · gaussians"
        np.testing.assert_allclose(layer.data, model.means)
        np.testing.assert_array_equal(layer.features["index"], range(7))
        np.testing.assert_allclose(layer.features["weight"], model.weights)
        assert gaussians_of(layer.metadata) is model
        assert_same_place(layer, model.grid, ndim=ndim)

    @pytest.mark.parametrize("ndim", [2, 3])
    def test_no_gaussians_are_an_empty_layer(self, ndim):
        model = gaussians(0, ndim)
        layer = Layer.create(*gaussian_layer("T1", model))
        assert len(layer.data) == 0
        assert layer.ndim == ndim
        assert gaussians_of(layer.metadata) is model

    def test_foreign_layers_hold_none(self):
        for metadata in (
            {},
            {METADATA_KEY: {}},
            {METADATA_KEY: "x"},
            {"gaussians": gaussians(1)},
        ):
            assert gaussians_of(metadata) is None


class TestFeatures:
    def test_sizes_are_in_the_units_of_the_world(self):
        grid = Grid((9, 9, 9), np.diag([3, 1, 2, 1]))
        factors = torch.diag(1 / torch.tensor([1.0, 2, 4]))[None]
        features = gaussian_features(GaussianVolume(torch.ones(1, 3), factors, torch.ones(1), grid))
        sizes = [features[f"sigma_{axis}"][0] for axis in (1, 2, 3)]
        np.testing.assert_allclose(sizes, [8, 3, 2], rtol=1e-6)
        assert features["sigma_mean"][0] == pytest.approx(2)  # of points, in voxels

    @pytest.mark.parametrize("name", ["oblique", "permuted", "2D oblique"])
    def test_they_are_the_axes_of_the_covariance_in_the_world(self, name):
        grid = GRIDS[name]
        model = gaussians(20, grid.ndim, grid)
        features = gaussian_features(model)
        world = grid.affine[:-1, :-1] @ model.covariances.double().numpy() @ grid.affine[:-1, :-1].T
        sizes = np.stack([features[f"sigma_{axis + 1}"] for axis in range(grid.ndim)], 1)
        assert (np.diff(sizes, axis=1) <= 0).all()
        np.testing.assert_allclose(sizes.prod(1), np.sqrt(np.linalg.det(world)), rtol=1e-3)
        np.testing.assert_allclose((sizes**2).sum(1), np.trace(world, axis1=1, axis2=2), rtol=1e-3)


class TestEllipsoids:
    @pytest.mark.parametrize("n", [20, 501])  # fine spheres, and coarser ones
    def test_vertices_lie_on_one_sigma(self, n):
        model = gaussians(n)
        vertices, _, owner = ellipsoids(model)
        y = np.einsum("vde,vd->ve", model.factors.numpy()[owner], vertices - model.means.numpy()[owner])
        np.testing.assert_allclose(np.linalg.norm(y, axis=1), 1, atol=1e-4)
        assert set(owner) == set(range(n))

    def test_of_a_disc_all_but_the_centre_do(self):
        model = gaussians(20, 2)
        vertices, faces, owner = ellipsoids(model)
        y = np.einsum("vde,vd->ve", model.factors.numpy()[owner], vertices - model.means.numpy()[owner])
        radius = np.linalg.norm(y, axis=1)
        rim = radius > 0.5
        np.testing.assert_allclose(radius[rim], 1, atol=1e-4)
        np.testing.assert_allclose(radius[~rim], 0, atol=1e-4)
        assert (~rim).sum() == 20
        a, b, c = (vertices[faces[:, i]].astype(np.float64) for i in range(3))
        areas = np.abs(np.linalg.det(np.stack([b - a, c - a], 1))) / 2
        expected = np.pi * np.sqrt(np.linalg.det(model.covariances.numpy()))
        np.testing.assert_allclose(np.bincount(owner[faces[:, 0]], areas), expected, rtol=0.03)

    @pytest.mark.parametrize("n", [20, 501])
    def test_the_surface_is_closed_and_each_triangle_has_one_owner(self, n):
        _, faces, owner = ellipsoids(gaussians(n))
        assert (owner[faces] == owner[faces[:, :1]]).all()
        edges = Counter((a, b) for face in faces.tolist() for a, b in zip(face, face[1:] + face[:1], strict=True))
        assert set(edges.values()) == {1}  # once in each direction: twice in all
        assert all((b, a) in edges for a, b in edges)

    @pytest.mark.parametrize("mirrored", [False, True])
    def test_normals_point_outwards(self, mirrored):
        model = gaussians(20, mirrored=mirrored)
        vertices, faces, owner = ellipsoids(model)
        a, b, c = (vertices[faces[:, i]] for i in range(3))
        outwards = (a + b + c) / 3 - model.means.numpy()[owner[faces[:, 0]]]
        assert ((np.cross(b - a, c - a) * outwards).sum(1) > 0).all()
