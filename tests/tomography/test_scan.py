"""Scanner geometry: where presets put rays, what the file says, and what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from napari_gsvolume.tomography.presets import spread_angles
from napari_gsvolume.tomography.scan import Scan, ScanError, circular_scan

SHAPE, VOXEL = (20, 24, 28), (2.0, 1.5, 1.0)


def pixel_of(scan: Scan, view: int, point: np.ndarray) -> np.ndarray:
    """Return where a point (z, y, x), mm, is seen, in pixels (u, v), by intersecting its ray with the detector."""
    c, u, v, s = scan.centres[view], scan.u[view], scan.v[view], scan.sources[view]
    middle = (np.array(scan.pixels) - 1) / 2
    if scan.beam == "parallel":
        a, b, _ = np.linalg.solve(np.stack([u, v, -s], 1), point - c)
    elif scan.beam == "cone":
        a, b, _ = np.linalg.solve(np.stack([u, v, -(point - s)], 1), s - c)
    else:  # the source has moved along v by as much as the pixel
        b = np.dot(point - s, np.cross(u, c - s)) / np.dot(v, np.cross(u, c - s))
        a, _, _ = np.linalg.solve(np.stack([u, v, -(point - s - b * v)], 1), s + b * v - c)
    return np.array([a, b]) + middle


class TestOrbit:
    def test_parallel_is_as_documented(self) -> None:
        """The view at angle a integrates along (x, y) = (-sin a, cos a), u is along (cos a, sin a)."""
        scan = circular_scan(SHAPE, VOXEL, [0, 30])
        a = np.deg2rad(30)
        np.testing.assert_allclose(scan.sources[1], [0, np.cos(a), -np.sin(a)], atol=1e-15)
        np.testing.assert_allclose(scan.u[1] / np.linalg.norm(scan.u[1]), [0, np.sin(a), np.cos(a)], atol=1e-15)
        np.testing.assert_allclose(scan.v[1], [2, 0, 0])
        np.testing.assert_allclose(scan.centres, 0)

    @pytest.mark.parametrize("beam", ["parallel", "fan", "cone"])
    def test_detector_sees_the_whole_volume(self, beam: str) -> None:
        scan = circular_scan(SHAPE, VOXEL, spread_angles(12, 360), beam)
        corners = np.array(np.meshgrid(*[[-1, 1]] * 3)).reshape(3, -1).T * np.array(SHAPE) * VOXEL / 2
        seen = np.array([pixel_of(scan, k, corner) for k in range(12) for corner in corners])
        assert (seen >= -0.5 - 1e-9).all()
        assert (seen <= np.array(scan.pixels) - 0.5 + 1e-9).all()

    @pytest.mark.parametrize("beam", ["fan", "cone"])
    def test_source_and_detector_are_opposite(self, beam: str) -> None:
        scan = circular_scan(SHAPE, VOXEL, spread_angles(5, 360), beam, source_to_axis=300, source_to_detector=700)
        np.testing.assert_allclose(np.linalg.norm(scan.sources, axis=1), 300)
        np.testing.assert_allclose(np.linalg.norm(scan.centres - scan.sources, axis=1), 700)
        np.testing.assert_allclose(pixel_of(scan, 3, np.zeros(3)), (np.array(scan.pixels) - 1) / 2)

    def test_offset_moves_the_image_the_other_way(self) -> None:
        plain = circular_scan(SHAPE, VOXEL, [20], "cone", pixels=(50, 40), pixel_size=(2, 3))
        moved = circular_scan(SHAPE, VOXEL, [20], "cone", pixels=(50, 40), pixel_size=(2, 3), offset=(4, -6))
        point = np.array([3.0, -2, 5])
        np.testing.assert_allclose(pixel_of(moved, 0, point) - pixel_of(plain, 0, point), [-2, 2])

    def test_tilt_turns_the_detector(self) -> None:
        scan = circular_scan(SHAPE, VOXEL, [0], pixels=(9, 9), pixel_size=(1, 1), tilt=90)
        np.testing.assert_allclose(scan.u[0], [1, 0, 0], atol=1e-15)
        np.testing.assert_allclose(scan.v[0], [0, 0, -1], atol=1e-15)

    @pytest.mark.parametrize(
        "angles",
        [[], [[1, 2]], [0, np.nan]],
    )
    def test_bad_angles(self, refused, angles) -> None:
        with refused(ScanError, "angles"):
            circular_scan(SHAPE, VOXEL, angles)

    def test_source_inside_the_volume(self, refused) -> None:
        with refused(ScanError, "10 mm", "further from the axis"):
            circular_scan(SHAPE, VOXEL, [0], "cone", source_to_axis=10)


class TestFile:
    @settings(max_examples=30, deadline=None)
    @given(st.data())
    def test_round_trip(self, tmp_path_factory, data) -> None:
        number = st.floats(-500, 500).filter(lambda v: abs(v) > 1e-3)
        n = data.draw(st.integers(1, 4))
        vectors = st.lists(st.tuples(number, number, number), min_size=n, max_size=n)
        beam = data.draw(st.sampled_from(["parallel", "fan", "cone"]))
        arguments = [np.array(data.draw(vectors)) for _ in range(4)]
        try:
            scan = Scan(beam, *arguments, (5, 7), (3, 4, 5), np.array([1.0, 2.0, 3.0]))
        except ScanError:  # vectors in a plane: not a scan
            return
        path = tmp_path_factory.mktemp("scan") / "g.json"
        scan.save(path)
        again = Scan.load(path)
        assert (again.beam, again.pixels, again.shape) == (scan.beam, scan.pixels, scan.shape)
        for name in ("sources", "centres", "u", "v", "voxel_size"):
            np.testing.assert_array_equal(getattr(again, name), getattr(scan, name))

    def test_angles_make_an_orbit(self) -> None:
        scan = Scan.from_dict(
            {
                "beam": "cone",
                "volume": {"shape": [28, 24, 20], "voxel_size": [1.0, 1.5, 2.0]},
                "angles": [0, 45, 90],
                "source_to_axis": 300,
                "source_to_detector": 600,
                "detector": {"pixels": [50, 40], "pixel_size": [2, 3], "offset": [4, -6]},
            }
        )
        same = circular_scan(
            SHAPE,
            VOXEL,
            [0, 45, 90],
            "cone",
            source_to_axis=300,
            source_to_detector=600,
            pixels=(50, 40),
            pixel_size=(2, 3),
            offset=(4, -6),
        )
        for name in ("sources", "centres", "u", "v"):
            np.testing.assert_array_equal(getattr(scan, name), getattr(same, name))

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"beam": "pencil"}, ["beam", "parallel"]),
            ({"angles": None}, ["views or angles"]),
            ({"volume": {"shape": [0, 2, 3]}}, ["greater than or equal to 1"]),
            ({"angles": ["x"]}, ["number"]),
            ({"detector": {"pixels": [3, 4], "colour": 1}}, ["colour"]),
            ({"version": 9}, ["version"]),
            ({"angles": None, "views": [{"centre": [0, 0, 0], "u": [1, 0, 0], "v": [0, 0, 1]}]}, ["direction"]),
            (
                {
                    "angles": None,
                    "views": [{"direction": [1, 0, 0], "centre": [0, 0, 0], "u": [1, 0, 0], "v": [0, 0, 1]}],
                    "detector": {"pixels": [3, 4]},
                },
                ["view 0", "along the detector"],
            ),
        ],
    )
    def test_what_is_refused(self, refused, tmp_path: Path, change, words) -> None:
        data = {"beam": "parallel", "volume": {"shape": [4, 5, 6]}, "angles": [0, 90]} | change
        path = tmp_path / "geometry.json"
        path.write_text(json.dumps({k: v for k, v in data.items() if v is not None}))
        with refused(ScanError, "geometry.json", *words):
            Scan.load(path)

    def test_not_json(self, refused, tmp_path: Path) -> None:
        path = tmp_path / "geometry.json"
        path.write_text("{")
        with refused(ScanError, "geometry.json", "not JSON"):
            Scan.load(path)


def test_select() -> None:
    scan = circular_scan(SHAPE, VOXEL, spread_angles(10, 180))
    np.testing.assert_array_equal(scan.select([1, 4]).u, scan.u[[1, 4]])
