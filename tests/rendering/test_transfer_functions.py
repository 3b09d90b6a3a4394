"""Transfer functions: evaluation, presets, colormaps, intervals and files."""

import json
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from napari_gsvolume.rendering.volume.transfer_functions import (
    Preset,
    TransferFunction,
    combine_intervals,
    restrict_to_intervals,
)

TWO = TransferFunction([0, 10], [(1, 0, 0), (0, 0, 1)], [0.2, 0.6])
CT = np.array([-1000.0, 40, 1500]).reshape(1, 1, 3)


def ramp() -> TransferFunction:
    return TransferFunction([0, 4, 10], [(1, 0, 0), (0, 1, 0), (0, 0, 1)], [0.0, 0.8, 0.5], 2.0, True)


class TestValues:
    def test_linear_in_between_and_constant_outside(self) -> None:
        np.testing.assert_allclose(TWO.evaluate([-5, 0, 2.5, 10, 99])[:, 3], [0.2, 0.2, 0.3, 0.6, 0.6])
        np.testing.assert_allclose(TWO.evaluate(2.5)[:3], [0.75, 0, 0.25])
        np.testing.assert_allclose(TWO.lookup_table(0, 10, 5)[:, 3], [0.2, 0.3, 0.4, 0.5, 0.6])

    def test_two_points_at_one_intensity_are_an_edge(self) -> None:
        edge = TransferFunction([0, 1, 1, 2], np.ones((4, 3)), [0.1, 0.1, 0.9, 0.9])
        np.testing.assert_allclose(edge.evaluate([0.999, 1, 1.001])[:, 3], [0.1, 0.9, 0.9])

    def test_extinction_of_a_layer_absorbs_its_opacity(self) -> None:
        w = ramp().extinction([0.0, 0.5, 1.0], 300.0)
        np.testing.assert_allclose(1 - np.exp(-w * 2.0), [0, 0.5, 0.999])
        np.testing.assert_allclose(1 - np.exp(-TWO.extinction(0.3, 300.0) * 300 / 200), 0.3)

    def test_what_is_refused(self, refused) -> None:
        with refused(ValueError, "(2,)", "(1, 3)"):
            TransferFunction([0, 1], [(0, 0, 0)], [0, 1])
        with refused(ValueError, "at least 1"):
            TransferFunction([], np.zeros((0, 3)), [])
        for values in ([1, 0], [0, np.nan]):
            with refused(ValueError, "ascending"):
                TransferFunction(values, np.zeros((2, 3)), [0, 1])
        with refused(ValueError, "colors", "0 to 1"):
            TransferFunction([0], [(0, 0, 255)], [0])
        with refused(ValueError, "opacities", "0 to 1"):
            TransferFunction([0], [(0, 0, 0)], [np.nan])
        with refused(ValueError, "positive", "0 mm"):
            TransferFunction([0], [(0, 0, 0)], [0], 0.0)


class TestPresets:
    @pytest.mark.parametrize("name", [name for name in get_args(Preset) if name.startswith("ct")])
    def test_those_of_ct_hide_air_and_show_bone(self, name: Preset) -> None:
        transfer_function = TransferFunction.from_preset(name, CT)
        air, bone = transfer_function.evaluate([-1000, 1500])
        assert air[3] == 0
        assert bone[3] > 0.9
        assert bone[:3].min() > 0.8
        assert transfer_function.shading

    def test_only_vessels_are_red_and_only_soft_tissue_is_shown_by_its_own(self) -> None:
        opacities = {
            name: TransferFunction.from_preset(name, CT).evaluate(40)[3]
            for name in get_args(Preset)
            if name.startswith("ct")
        }
        assert [name for name, opacity in opacities.items() if opacity] == ["ct-soft-tissue"]
        vessel, bone = (
            TransferFunction.from_preset("ct-angio", CT).evaluate(300),
            TransferFunction.from_preset("ct-bone", CT).evaluate(300),
        )
        assert vessel[0] > 3 * vessel[1]
        assert bone[0] < 2 * bone[1]

    def test_gray_ramps_between_percentiles(self) -> None:
        transfer_function = TransferFunction.from_preset("gray", np.arange(101.0).reshape(101, 1, 1))
        np.testing.assert_allclose(transfer_function.values, [1, 99])
        np.testing.assert_allclose(transfer_function.evaluate(50)[:3], 0.5)
        assert not transfer_function.shading

    def test_mr_hides_the_air_around(self) -> None:
        volume = np.concatenate([np.zeros(3000), np.linspace(50, 150, 1000)]).reshape(10, 20, 20)
        transfer_function = TransferFunction.from_preset("mr", volume)
        assert transfer_function.evaluate(0)[3] == 0
        assert 0 < transfer_function.evaluate(100)[3] < transfer_function.evaluate(150)[3]

    @pytest.mark.parametrize("name", ["gray", "mr"])
    def test_one_intensity_alone(self, name: Preset) -> None:
        transfer_function = TransferFunction.from_preset(name, np.full((2, 2, 2), 7.0))
        assert transfer_function.values[0] < 7 < transfer_function.values[-1]

    def test_what_is_refused(self, refused) -> None:
        for name in ("ct-bone", "ct-soft-tissue", "ct-angio"):
            with refused(ValueError, name, "HU", "than 1."):
                TransferFunction.from_preset(name, np.linspace(0, 1, 8).reshape(2, 2, 2))
        with refused(ValueError, "HU", "than 60."):
            TransferFunction.from_preset("ct-bone", np.full((2, 2, 2), 60.0))
        with refused(ValueError, "ct-skin", "ct-bone"):
            TransferFunction.from_preset("ct-skin", CT)  # type: ignore[arg-type]
        for bad in (np.full((2, 2, 2), np.nan), np.zeros((0, 2, 2))):
            with refused(ValueError, "finite"):
                TransferFunction.from_preset("gray", bad)


class TestColormaps:
    def test_colors_run_between_the_limits(self) -> None:
        transfer_function = TransferFunction.from_colormap([(1, 0, 0), (0, 1, 0), (0, 0, 1)], (100, 300))
        np.testing.assert_allclose(transfer_function.evaluate([0, 100, 150, 200, 300, 400])[:, 0], [1, 1, 0.5, 0, 0, 0])
        opacities = transfer_function.evaluate([100, 200, 300])[:, 3]
        np.testing.assert_allclose(opacities, opacities[2] * np.array([0, 0.5, 1]))
        assert opacities[2] > 0

    def test_gamma_and_alpha(self) -> None:
        plain = TransferFunction.from_colormap([(0, 0, 0, 0.5), (1, 1, 1, 0.5)], (0, 1), 2.0)
        np.testing.assert_allclose(plain.evaluate(0.5)[:3], 0.25)
        solid = TransferFunction.from_colormap([(0, 0, 0), (1, 1, 1)], (0, 1), 2.0)
        np.testing.assert_allclose(plain.evaluate(0.5)[3], solid.evaluate(0.5)[3] / 2)
        np.testing.assert_allclose(solid.evaluate(0.5)[3], solid.evaluate(1)[3] / 4)

    def test_what_is_refused(self, refused) -> None:
        with refused(ValueError, "(2, 2)"):
            TransferFunction.from_colormap(np.zeros((2, 2)), (0, 1))
        with refused(ValueError, "1 and 1"):
            TransferFunction.from_colormap(np.zeros((2, 3)), (1, 1))
        with refused(ValueError, "Gamma", "0"):
            TransferFunction.from_colormap(np.zeros((2, 3)), (0, 1), 0)


class TestIntervals:
    def test_each_is_the_whole_within_and_nothing_outside(self) -> None:
        whole = ramp()
        parts = restrict_to_intervals(whole, {"low": (1, 4), "high": (4, 20)})
        assert list(parts) == ["low", "high"]
        inside = np.array([1, 2, 3.999])
        np.testing.assert_allclose(parts["low"].evaluate(inside), whole.evaluate(inside))
        np.testing.assert_array_equal(parts["low"].evaluate([0.0, 0.999, 4, 5])[:, 3], 0)
        inside = np.array([4, 7, 10, 19.999])
        np.testing.assert_allclose(parts["high"].evaluate(inside), whole.evaluate(inside))
        np.testing.assert_array_equal(parts["high"].evaluate([3.999, 20, 21])[:, 3], 0)
        assert (parts["low"].unit_mm, parts["low"].shading) == (whole.unit_mm, whole.shading)

    def test_what_is_refused(self, refused) -> None:
        for interval in ((3, 3), (0, np.inf)):
            with refused(ValueError, "bone", "ascending"):
                restrict_to_intervals(ramp(), {"bone": interval})


part = st.floats(0, 1)


class TestFiles:
    @settings(max_examples=50)
    @given(
        st.lists(st.tuples(st.floats(-1e9, 1e9), st.tuples(part, part, part), part), min_size=1, max_size=6),
        st.none() | st.floats(1e-6, 1e6),
        st.booleans(),
    )
    def test_there_and_back(self, points, unit_mm, shading) -> None:
        values, colors, opacities = zip(*sorted(points), strict=True)
        before = TransferFunction(values, colors, opacities, unit_mm, shading)
        after = TransferFunction.from_dict(json.loads(json.dumps(before.to_dict())))
        for name in ("values", "colors", "opacities", "unit_mm", "shading"):
            np.testing.assert_array_equal(getattr(after, name), getattr(before, name))

    def test_save_and_load(self, tmp_path) -> None:
        ramp().save(tmp_path / "bone.json")
        assert TransferFunction.load(tmp_path / "bone.json").to_dict() == ramp().to_dict()

    def test_what_is_refused(self, tmp_path, refused) -> None:
        good = ramp().to_dict()
        for change, words in (
            ({"points": []}, ["points"]),
            ({"points": good["points"][::-1]}, ["ascend"]),
            ({"points": [{"value": 0, "colour": [0, 0, 2], "opacity": 1}]}, ["points.0.colour.2", "2"]),
            ({"unit_mm": -1}, ["unit_mm"]),
            ({"version": 2}, ["version"]),
            ({"format": "something"}, ["format"]),
            ({"colour": 1}, ["colour"]),
        ):
            with refused(ValueError, *words):
                TransferFunction.from_dict(good | change)
        path = tmp_path / "bad.json"
        path.write_text("{", encoding="utf-8")
        with refused(ValueError, "bad.json", "not JSON"):
            TransferFunction.load(path)
        path.write_text("[]", encoding="utf-8")
        with refused(ValueError, "bad.json"):
            TransferFunction.load(path)


def test_intervals_together_show_what_each_does(refused) -> None:
    ramp = TransferFunction([0, 100], [(1, 0, 0), (0, 0, 1)], [0.2, 0.8])
    parts = restrict_to_intervals(ramp, {"high": (60, 90), "low": (10, 30), "next": (30, 40)})
    both = combine_intervals(list(parts.values()))
    at = np.array([5, 10, 20, 29.9, 30, 39, 50, 60, 75, 89, 95])
    expected = np.max([part.evaluate(at)[:, 3] for part in parts.values()], 0)
    np.testing.assert_allclose(both.evaluate(at)[:, 3], expected)
    np.testing.assert_allclose(both.evaluate([20, 75])[:, :3], ramp.evaluate([20, 75])[:, :3])
    with refused(ValueError, "overlap"):
        combine_intervals([*parts.values(), *restrict_to_intervals(ramp, {"across": (35, 70)}).values()])
