import os
import re
import struct
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from napari_gsvolume import GaussianVolume, Grid
from napari_gsvolume.errors import FileFormatError
from napari_gsvolume.io.gaussian_ply import write_ply
from napari_gsvolume.rendering.splats.model import Splats
from napari_gsvolume.rendering.splats.ply import read_splats, write_splats

Refused = Callable[..., AbstractContextManager[Any]]

TENSORS = ("means", "log_scales", "quaternions", "opacity_logits", "sh")
LETTERS = {"char": "b", "uchar": "B", "short": "h", "ushort": "H", "int": "i", "uint": "I", "float": "f", "double": "d"}


def some(n: int = 5, degree: int = 3, seed: int = 0, dtype: torch.dtype = torch.float32) -> Splats:
    generator = torch.Generator().manual_seed(seed)
    shapes = [(n, 3), (n, 3), (n, 4), (n,), (n, (degree + 1) ** 2, 3)]
    return Splats(*(torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes))


def bits(splats: Splats) -> dict[str, Any]:
    """Return all numbers by their bits, which tell -0 from 0."""
    tensors = {name: getattr(splats, name) for name in TENSORS}
    assert {t.dtype for t in tensors.values()} == {torch.float32}
    return {name: (tuple(t.shape), t.numpy().tobytes()) for name, t in tensors.items()}


def parse(path: Path) -> tuple[list[str], list[list[float]]]:
    """Return names and rows of a file of floats, by what the convention says and nothing of the package."""
    header, _, body = path.read_bytes().partition(b"end_header\n")
    lines = header.decode("ascii").splitlines()
    assert lines[:2] == ["ply", "format binary_little_endian 1.0"]
    n = int(lines[2].removeprefix("element vertex "))
    names = [line.removeprefix("property float ") for line in lines[3:]]
    assert all(re.fullmatch("[a-z]+(_[a-z]+)?(_[0-9]+)?", name) for name in names)
    row = struct.Struct(f"<{len(names)}f")
    assert len(body) == n * row.size
    return names, [list(values) for values in row.iter_unpack(body)]


def conventional(degree: int) -> list[str]:
    """Return the properties in the order of the first program."""
    names = ["x", "y", "z", "nx", "ny", "nz", "f_dc_0", "f_dc_1", "f_dc_2"]
    names += [f"f_rest_{i}" for i in range(3 * degree * (degree + 2))]
    return [*names, "opacity", "scale_0", "scale_1", "scale_2", "rot_0", "rot_1", "rot_2", "rot_3"]


def built(
    columns: dict[str, list[float]],
    types: dict[str, str] | None = None,
    order: str = "little",
    newline: str = "\n",
    notes: tuple[bytes, ...] = (),
    before: tuple[str, bytes] = ("", b""),
    after: tuple[str, bytes] = ("", b""),
) -> bytes:
    """Return a file as another program may write it: columns in their order, other elements as header and bytes."""
    types = {name: (types or {}).get(name, "float") for name in columns}
    n = len(next(iter(columns.values())))
    lines = ["ply", f"format binary_{order}_endian 1.0", *before[0].splitlines(), f"element vertex {n}"]
    lines += [f"property {kind} {name}" for name, kind in types.items()]
    lines += [*after[0].splitlines(), "end_header", ""]
    raw = [line.encode() for line in lines]
    row = struct.Struct("<>"[order == "big"] + "".join(LETTERS[kind] for kind in types.values()))
    body = b"".join(row.pack(*values) for values in zip(*columns.values(), strict=True))
    return newline.encode().join([*raw[:2], *notes, *raw[2:]]) + before[1] + body + after[1]


def table(n: int = 3, degree: int = 1) -> dict[str, list[float]]:
    """Return columns of small whole numbers, which all types can hold; no two columns are alike."""
    return {name: [i + 40 * row for row in range(n)] for i, name in enumerate(conventional(degree), 1)}


def read(path: Path, content: bytes) -> Splats:
    path.write_bytes(content)
    return read_splats(path)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("splats") / "a.ply"


class TestWriting:
    @pytest.mark.parametrize("degree", range(4))
    def test_field_by_field(self, path: Path, degree: int) -> None:
        splats = some(4, degree)
        write_splats(path, splats)
        names, rows = parse(path)
        assert names == conventional(degree)
        K = (degree + 1) ** 2
        for i, values in enumerate(rows):
            found = dict(zip(names, values, strict=True))
            expected = dict.fromkeys(("nx", "ny", "nz"), 0.0)
            expected |= {axis: splats.means[i, j].item() for j, axis in enumerate("xyz")}
            expected |= {f"scale_{j}": splats.log_scales[i, j].item() for j in range(3)}
            expected |= {f"rot_{j}": splats.quaternions[i, j].item() for j in range(4)}
            expected |= {f"f_dc_{c}": splats.sh[i, 0, c].item() for c in range(3)}
            expected |= {"opacity": splats.opacity_logits[i].item()}
            for c in range(3):
                for k in range(1, K):
                    expected[f"f_rest_{c * (K - 1) + k - 1}"] = splats.sh[i, k, c].item()
            assert found == expected

    def test_header(self, path: Path) -> None:
        """The first program's viewer takes the third line for the count, others only understand line feeds."""
        write_splats(str(path), some(7, 0))
        content = path.read_bytes()
        assert content.startswith(b"ply\nformat binary_little_endian 1.0\nelement vertex 7\nproperty float x\n")
        assert b"\r" not in content.partition(b"end_header\n")[0]

    def test_double_precision_that_is_being_trained(self, path: Path) -> None:
        double = some(dtype=torch.float64)
        write_splats(path, Splats(*(getattr(double, name).requires_grad_() for name in TENSORS)))
        assert bits(read_splats(path)) == bits(Splats(*(getattr(double, n).detach().float() for n in TENSORS)))

    @pytest.mark.parametrize("name", ["a.splat", "a.ply.gz", "a", "ply"])
    def test_names(self, tmp_path: Path, name: str, refused: Refused) -> None:
        with refused(ValueError, "ends in .ply", name):
            write_splats(tmp_path / name, some())
        assert not list(tmp_path.iterdir())

    def test_none(self, tmp_path: Path, refused: Refused) -> None:
        with refused(ValueError, "no splats"):
            write_splats(tmp_path / "a.ply", some(0))
        assert not list(tmp_path.iterdir())

    def test_beyond_float32(self, tmp_path: Path, refused: Refused) -> None:
        splats = some(dtype=torch.float64)
        splats.means[2, 1] = 1e39
        with refused(ValueError, "beyond float32"):
            write_splats(tmp_path / "a.ply", splats)
        assert not list(tmp_path.iterdir())

    def test_no_rotation(self, tmp_path: Path, refused: Refused) -> None:
        splats = some()
        splats.quaternions[3] = 0
        with refused(ValueError, "quaternion"):
            write_splats(tmp_path / "a.ply", splats)
        assert not list(tmp_path.iterdir())

    def test_an_existing_file_is_replaced(self, tmp_path: Path) -> None:
        (tmp_path / "a.ply").write_bytes(bytes(10**6))
        write_splats(tmp_path / "a.ply", some())
        assert bits(read_splats(tmp_path / "a.ply")) == bits(some())
        assert [path.name for path in tmp_path.iterdir()] == ["a.ply"]

    def test_a_failure_leaves_the_existing_file(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Refused
    ) -> None:
        (tmp_path / "a.ply").write_bytes(b"old")

        def full(source: Path, target: Path) -> None:
            assert source.stat().st_size > 1000  # all is written before the old file goes
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "replace", full)
        with refused(OSError, "a.ply", "No space left"):
            write_splats(tmp_path / "a.ply", some())
        assert [path.name for path in tmp_path.iterdir()] == ["a.ply"]
        assert (tmp_path / "a.ply").read_bytes() == b"old"

    def test_no_folder(self, tmp_path: Path, refused: Refused) -> None:
        with refused(FileNotFoundError, "a.ply", "nowhere"):
            write_splats(tmp_path / "nowhere" / "a.ply", some())


class TestThereAndBack:
    @given(st.data(), st.integers(1, 6), st.integers(0, 3))
    @settings(max_examples=60, deadline=None)
    def test_bit_by_bit(self, path: Path, data: st.DataObject, n: int, degree: int) -> None:
        finite = st.floats(width=32, allow_nan=False, allow_infinity=False)

        def numbers(*shape: int) -> torch.Tensor:
            return torch.from_numpy(data.draw(hnp.arrays(np.float32, shape, elements=finite)))

        quaternions = numbers(n, 4)
        quaternions[~quaternions.any(1), 0] = 1
        splats = Splats(numbers(n, 3), numbers(n, 3), quaternions, numbers(n), numbers(n, (degree + 1) ** 2, 3))
        write_splats(path, splats)
        found = read_splats(path)
        assert bits(found) == bits(splats)
        assert found.sh_degree == degree

    def test_what_is_read_is_in_memory_of_its_own(self, path: Path) -> None:
        write_splats(path, some())
        splats = read_splats(path)
        path.write_bytes(b"")
        for name in TENSORS:
            tensor = getattr(splats, name)
            assert tensor.is_contiguous()
            tensor += 1  # a file mapped, or constant memory, would not bear it
        torch.testing.assert_close(splats.sh, some().sh + 1)

    def test_gaussians_that_were_written_for_viewers(self, path: Path) -> None:
        factors = np.diag([1, 1, 0.5])[None].repeat(2, 0)  # z, y, x
        gaussians = GaussianVolume([[1, 2, 3], [4, 4, 4]], factors, [5, -1], Grid((9, 9, 9)))
        write_ply(path, gaussians)
        splats = read_splats(path)
        assert splats.sh_degree == 0
        torch.testing.assert_close(splats.means, torch.tensor([[3.0, 2, 1], [4, 4, 4]]))
        torch.testing.assert_close(splats.log_scales.exp().sort(1).values, torch.tensor([[1.0, 1, 2]] * 2))
        torch.testing.assert_close(splats.opacity_logits.sigmoid(), torch.tensor([0.99, 0.2]))
        assert splats.sh.shape == (2, 1, 3)
        assert (splats.sh[1, 0] - splats.sh[1, 0, 0]).abs().max() > 0.5  # blue


class TestFilesOfOthers:
    """Every file says the same as `table` in another way."""

    def check(self, splats: Splats, columns: dict[str, list[float]], degree: int = 1) -> None:
        expected = {
            "means": ["x", "y", "z"],
            "log_scales": ["scale_0", "scale_1", "scale_2"],
            "quaternions": ["rot_0", "rot_1", "rot_2", "rot_3"],
            "opacity_logits": ["opacity"],
            "sh": ["f_dc_0", "f_dc_1", "f_dc_2"],
        }
        others = degree * (degree + 2)
        expected["sh"] += [f"f_rest_{c * others + k}" for k in range(others) for c in range(3)]
        for name, fields in expected.items():
            found = getattr(splats, name).numpy()
            np.testing.assert_array_equal(found.reshape(len(found), -1).T, [columns[field] for field in fields])

    @pytest.mark.parametrize("order", ["little", "big"])
    @pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"], ids=repr)
    @pytest.mark.parametrize("degree", range(4))
    def test_byte_orders_and_line_ends(self, path: Path, order: str, newline: str, degree: int) -> None:
        columns = table(degree=degree)
        self.check(read(path, built(columns, order=order, newline=newline)), columns, degree)

    def test_a_body_that_begins_with_a_line_feed(self, path: Path) -> None:
        columns: dict[str, list[float]] = {"first": [10, 10, 10], **table()}
        for newline in ("\n", "\r\n", "\r"):
            self.check(read(path, built(columns, {"first": "uchar"}, newline=newline)), columns)

    @given(st.data())
    @settings(max_examples=40, deadline=None)
    def test_any_order_and_types_and_further_properties(self, path: Path, data: st.DataObject) -> None:
        columns: dict[str, list[float]] = {**table(), "red": [1, 2, 3], "f_dc": [4, 5, 6], "t": [7, 8, 9]}
        columns = {name: columns[name] for name in data.draw(st.permutations(list(columns)))}
        types = {name: data.draw(st.sampled_from(sorted(LETTERS))) for name in columns}
        order = data.draw(st.sampled_from(["little", "big"]))
        self.check(read(path, built(columns, types, order)), columns)

    def test_types_by_their_other_names(self, path: Path) -> None:
        columns = table()
        others = {"float": "float32", "double": "float64", "uchar": "uint8", "short": "int16", "uint": "uint32"}
        types = dict(zip(columns, list(others) * len(columns), strict=False))
        content = built(columns, types)
        for kind, other in others.items():
            content = content.replace(f"property {kind} ".encode(), f"property {other} ".encode())
        self.check(read(path, content), columns)

    def test_without_normals_and_harmonics(self, path: Path) -> None:
        columns = {name: values for name, values in table().items() if not re.match("n[xyz]|f_rest", name)}
        self.check(read(path, built(columns)), columns, degree=0)

    def test_normals_that_are_no_numbers(self, path: Path) -> None:
        columns = {**table(), "nx": [np.nan, np.inf, 0]}
        self.check(read(path, built(columns)), columns)

    def test_comments(self, path: Path) -> None:
        notes = (
            b"comment element vertex 99",
            b"obj_info end_header",
            b"comment a\rb",
            b"",
            b"comment \xe2\x80\xa6 \x85 \xff\x1c x",
            b"comment",
        )
        self.check(read(path, built(table(), notes=notes)), table())

    def test_other_elements(self, path: Path) -> None:
        faces = "element face 2\nproperty list uchar int vertex_indices\nproperty float x"
        content = built(
            table(),
            before=("element camera 2\nproperty double x\nproperty short y", bytes(range(20))),
            after=(faces, struct.pack("<B3if", 3, 0, 1, 2, 9.0) * 2),
        )
        self.check(read(path, content), table())


class TestRefusals:
    def check(self, path: Path, content: bytes, refused: Refused, *words: str) -> None:
        path.write_bytes(content)
        with refused(FileFormatError, str(path), *words):
            read_splats(path)

    @pytest.mark.parametrize(
        "content", [b"", b"pl", b"ply", b"ply format", b"plyx\n", b"\x89PNG\r\n", b"\nply\n", bytes(10**4)]
    )
    def test_no_ply(self, path: Path, content: bytes, refused: Refused) -> None:
        self.check(path, content, refused, "no PLY file")

    def test_text(self, path: Path, refused: Refused) -> None:
        content = built(table()).replace(b"binary_little_endian", b"ascii")
        self.check(path, content, refused, "of text")

    def test_no_end_of_the_header(self, path: Path, refused: Refused) -> None:
        self.check(path, built(table()).replace(b"end_header", b"comment e"), refused, "no end")
        self.check(path, built(table()).replace(b"end_header", b"comment end_header"), refused, "no end")

    def test_a_header_is_not_read_for_ever(self, path: Path, refused: Refused) -> None:
        lines = (b"comment " + b"x" * 100,) * 12_000
        self.check(path, built(table(), notes=lines), refused, "no end")
        TestFilesOfOthers().check(read(path, built(table(), notes=lines[:9_000])), table())

    @pytest.mark.parametrize(
        "line", [b"format binary_little_endian 2.0", b"format binary 1.0", b"format", b"made by me"]
    )
    def test_senseless_lines(self, path: Path, line: bytes, refused: Refused) -> None:
        content = built(table()).replace(b"format binary_little_endian 1.0", line)
        self.check(path, content, refused, "makes no sense", line.decode())

    @pytest.mark.parametrize("count", [b"-1", b"1e3", b"3.0", b"1_0", b"", b"9" * 5000, b"\xb2", b"3 3"])
    def test_counts_that_are_no_numbers(self, path: Path, count: bytes, refused: Refused) -> None:
        content = built(table()).replace(b"vertex 3", b"vertex " + count)
        self.check(path, content, refused, "makes no sense", "element vertex")

    @pytest.mark.parametrize("prop", [b"float", b"half x", b"list uchar x", b"float x y"])
    def test_properties_that_are_none(self, path: Path, prop: bytes, refused: Refused) -> None:
        content = built(table()).replace(b"property float opacity", b"property " + prop)
        self.check(path, content, refused, "makes no sense", "property")

    def test_a_property_of_nothing(self, path: Path, refused: Refused) -> None:
        content = built(table(), notes=(b"property float x",))
        self.check(path, content, refused, "makes no sense", "property float x")

    def test_no_format(self, path: Path, refused: Refused) -> None:
        content = built(table()).replace(b"format binary_little_endian 1.0\n", b"")
        self.check(path, content, refused, "format")

    @pytest.mark.parametrize("count", [4, 10**6, 10**17])
    def test_more_vertices_than_bytes(self, path: Path, count: int, refused: Refused) -> None:
        content = built(table()).replace(b"vertex 3", b"vertex %d" % count)
        self.check(path, content, refused, "cut short")

    def test_more_before_the_vertices_than_bytes(self, path: Path, refused: Refused) -> None:
        before = (f"element camera {10**17}\nproperty double x", b"")
        self.check(path, built(table(), before=before), refused, "cut short")

    def test_no_vertices(self, path: Path, refused: Refused) -> None:
        self.check(path, built({name: [] for name in table()}), refused, "no vertices")
        self.check(path, built(table()).replace(b"element vertex", b"element point"), refused, "no vertices")
        self.check(path, re.sub(rb"property float \w+\n", b"", built(table())), refused, "no vertices")

    @pytest.mark.parametrize("n_rest", [1, 3, 8, 10, 44, 46, 72])
    def test_harmonics_of_no_degree(self, path: Path, n_rest: int, refused: Refused) -> None:
        columns = table(degree=0) | {f"f_rest_{i}": [0.0] * 3 for i in range(n_rest)}
        self.check(path, built(columns), refused, f"has {n_rest} f_rest")

    def test_harmonics_with_a_gap(self, path: Path, refused: Refused) -> None:
        content = built(table()).replace(b"f_rest_4", b"f_rest_9")
        self.check(path, content, refused, "missing f_rest_4")

    @pytest.mark.parametrize("name", [name for name in conventional(0) if not name.startswith("n")])
    def test_missing_properties(self, path: Path, name: str, refused: Refused) -> None:
        columns = table()
        del columns[name]
        self.check(path, built(columns), refused, f"missing {name}.")

    def test_a_cloud_of_points(self, path: Path, refused: Refused) -> None:
        columns = {name: table()[name] for name in "xyz"}
        self.check(path, built(columns), refused, "not splats", "f_dc_0", "opacity", "rot_3")

    def test_two_of_one_name(self, path: Path, refused: Refused) -> None:
        content = built(table()).replace(b"property float ny\n", b"property float nx\n")
        self.check(path, content, refused, "two properties")

    @pytest.mark.parametrize("element", ["vertex", "camera"])
    def test_lists(self, path: Path, element: str, refused: Refused) -> None:
        note = f"element {element} 3\nproperty list uchar int things"
        content = built(table(), before=("" if element == "vertex" else note, b""))
        if element == "vertex":
            content = content.replace(b"property float nx", b"property list uchar int nx")
        self.check(path, content, refused, element, "list")

    @pytest.mark.parametrize("name", ["y", "f_dc_1", "f_rest_5", "opacity", "scale_2", "rot_0"])
    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e39, -1e300])
    def test_no_numbers(self, path: Path, name: str, value: float, refused: Refused) -> None:
        columns = table()
        columns[name][1] = value
        self.check(path, built(columns, {name: "double"}), refused, name, "NaN, infinite")

    def test_no_rotation(self, path: Path, refused: Refused) -> None:
        columns = table()
        for i in range(4):
            columns[f"rot_{i}"][2] = -0.0
        self.check(path, built(columns), refused, "quaternion")

    def test_no_file(self, tmp_path: Path, refused: Refused) -> None:
        with refused(FileNotFoundError, str(tmp_path / "a.ply")):
            read_splats(tmp_path / "a.ply")
        with refused(IsADirectoryError if os.name == "posix" else OSError, str(tmp_path)):
            read_splats(tmp_path)


class TestDamage:
    def test_cut_anywhere(self, path: Path, refused: Refused) -> None:
        write_splats(path, some(2, 1))
        content = path.read_bytes()
        end = content.index(b"end_header\n") + len(b"end_header\n")
        for length in range(len(content)):
            path.write_bytes(content[:length])
            reason = "no PLY file" if length < 4 else "no end" if length < end else "cut short"
            with refused(FileFormatError, str(path), reason):
                read_splats(path)

    @given(st.data(), st.sampled_from(["\n", "\r\n", "\r"]))
    @settings(max_examples=300, deadline=None)
    def test_flipped_bytes_in_the_header(self, path: Path, data: st.DataObject, newline: str) -> None:
        faces = ("element face 1\nproperty list uchar int vertex_indices", struct.pack("<B3i", 3, 0, 1, 2))
        content = bytearray(built(table(1, 0), newline=newline, notes=(b"comment x",), after=faces))
        end = content.index(b"end_header") + len("end_header" + newline)
        places = st.lists(st.tuples(st.integers(0, end - 1), st.integers(1, 255)), min_size=1, max_size=4)
        for place, mask in data.draw(places):
            content[place] ^= mask
        path.write_bytes(content)
        try:
            splats = read_splats(path)
        except FileFormatError as error:
            text = str(error)
            assert text.startswith(f"{path} cannot be read: ")
            assert text.isprintable()  # one line, whatever the header holds
            assert text.endswith(".")
        else:
            assert len(splats) == 1

    @given(st.binary(max_size=300))
    @settings(max_examples=100, deadline=None)
    def test_any_bytes_behind_the_first_line(self, path: Path, content: bytes) -> None:
        path.write_bytes(b"ply\nformat binary_big_endian 1.0\n" + content + b"\nend_header\n")
        with pytest.raises(FileFormatError):
            read_splats(path)
