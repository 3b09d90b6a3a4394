"""The import contract: packages import in one direction, as docs/architecture.md says, and only public names.

The page is read by this test: its layout lists every package and nothing else, and its table of rows is the order in
which packages may import each other.
"""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import napari_gsvolume

NAME = "napari_gsvolume"
PACKAGE = Path(napari_gsvolume.__file__).parent
PAGE = Path(__file__).parents[1] / "docs" / "architecture.md"
GUI = {"napari", "napari_matplotlib", "npe2", "app_model", "qtpy", "PyQt5", "PyQt6", "PySide2", "PySide6", "magicgui"}
GUI |= {"superqt", "vispy"}
LATE = {"function", "typing"}


@dataclass(frozen=True)
class Import:
    """One imported module or name; `when` is "module", "function", or "typing" (under TYPE_CHECKING)."""

    source: str
    target: str
    name: str | None
    when: str
    line: int

    def __str__(self) -> str:
        name = f" ({self.name})" if self.name else ""
        return f"{self.source}:{self.line} imports {self.target}{name}"


def module_name(path: Path) -> str:
    parts = [NAME, *path.relative_to(PACKAGE).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def modules() -> dict[str, Path]:
    return {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


@cache
def tree(module: str) -> ast.Module:
    return ast.parse(modules()[module].read_text(encoding="utf-8"))


def statements(node: ast.AST, when: str = "module") -> Iterator[tuple[ast.Import | ast.ImportFrom, str]]:
    """Yield the imports under a node, and when each is executed."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child, when
        elif isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING"):
            for branch, at in ((child.body, "typing"), (child.orelse, when)):
                for statement in branch:
                    yield from statements(ast.Module([statement], []), at)
        else:
            inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from statements(child, "function" if inside and when == "module" else when)


@cache
def imports(module: str) -> tuple[Import, ...]:
    package = module.split(".") if modules()[module].name == "__init__.py" else module.split(".")[:-1]
    found = []
    for node, when in statements(tree(module)):
        if isinstance(node, ast.Import):
            found += [Import(module, alias.name, None, when, node.lineno) for alias in node.names]
            continue
        base = ".".join(
            [*(package[: len(package) - node.level + 1] if node.level else []), *filter(None, [node.module])]
        )
        for alias in node.names:
            is_module = f"{base}.{alias.name}" in modules()
            target, name = (f"{base}.{alias.name}", None) if is_module else (base, alias.name)
            found.append(Import(module, target, name, when, node.lineno))
    return tuple(found)


def internal(when: set[str]) -> list[Import]:
    """Return the imports of this package's modules by others of them."""
    every = (found for module in modules() for found in imports(module))
    return [found for found in every if found.target.split(".")[0] == NAME and found.when in when]


def top(module: str) -> str:
    """Return the package right under the root that a module is in; the root itself for its own ``__init__``."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else NAME


def section(title: str) -> str:
    text = PAGE.read_text(encoding="utf-8")
    return re.split(r"^## ", text.partition(f"## {title}\n")[2], flags=re.MULTILINE)[0]


def rows() -> list[list[str]]:
    """Return the packages of each row of the page's table, lowest first."""
    table = re.findall(r"^\| (\d+) \| (.*?) \|", section("Direction of imports"), re.MULTILINE)
    assert [int(number) for number, _ in table] == list(range(1, len(table) + 1))
    return [re.findall(r"`(\w+)`", packages) for _, packages in table]


def exceptions() -> set[tuple[str, str]]:
    """Return the pairs of packages, each written `a` -> `b`, that the page exempts."""
    return set(re.findall(r"^- `(\w+)` -> `(\w+)`", section("Direction of imports"), re.MULTILINE))


def layout() -> set[str]:
    """Return the packages and modules of the page's layout, as paths."""
    block = section("Layout").split("```")[1]
    listed, folders = set(), []
    for line in filter(str.strip, block.splitlines()[1:]):
        depth = (len(line) - len(line.lstrip())) // 2
        names = line.strip().split("  ")[0]
        if names.startswith("src/"):
            continue
        folders = folders[: depth - 1]
        for name in names.split(", "):
            listed.add("".join(folders) + name)
        if names.endswith("/"):
            folders.append(names)
    return listed


class TestPage:
    def test_its_layout_lists_every_package_and_nothing_else(self):
        folders = {f"{path.parent.relative_to(PACKAGE).as_posix()}/" for path in PACKAGE.rglob("*/__init__.py")} - {
            "./"
        }
        files = {path.name for path in PACKAGE.glob("*.py")} - {"__init__.py"}
        assert layout() == folders | files

    def test_its_table_has_every_package_once(self):
        listed = [package for row in rows() for package in row]
        assert sorted(listed) == sorted({top(module) for module in modules()})

    def test_the_files_it_names_are_there(self):
        text = PAGE.read_text(encoding="utf-8")
        for path in re.findall(r"`([\w/]+\.(?:py|yaml|md))`", text):
            places = (PACKAGE / path, PAGE.parents[1] / path, PAGE.parent / path)
            assert any(place.exists() for place in places), path

    def test_it_is_short(self):
        assert PAGE.read_text(encoding="utf-8").count("\n") < 120


class TestDirection:
    def test_packages_import_only_from_rows_below(self):
        row = {package: number for number, packages in enumerate(rows()) for package in packages}
        wrong = [
            str(found)
            for found in internal({"module", *LATE})
            if (a := top(found.source)) != (b := top(found.target))
            and row[b] >= row[a]
            and not (found.when in LATE and (a, b) in exceptions())
            and a != NAME  # the root's names are those of all packages, loaded on first use
        ]
        assert wrong == []

    def test_every_exception_is_in_use_and_late(self):
        late = {(top(found.source), top(found.target)) for found in internal(LATE)}
        at_once = {(top(found.source), top(found.target)) for found in internal({"module"})}
        assert exceptions() <= late
        assert not exceptions() & at_once

    def test_no_circle_between_modules(self):
        graph: dict[str, set[str]] = {module: set() for module in modules()}
        for found in internal({"module"}):
            parts = found.target.split(".")
            loaded = {".".join(parts[:n]) for n in range(1, len(parts) + 1)}  # with the packages around it
            around = {found.source.rsplit(".", n)[0] for n in range(found.source.count(".") + 1)}
            graph[found.source] |= {module for module in loaded if module in graph} - around - {NAME}
        try:
            TopologicalSorter(graph).prepare()
        except CycleError as error:
            pytest.fail(" -> ".join(error.args[1]))

    def test_only_the_plugin_imports_a_gui(self):
        wrong = [
            str(found)
            for module in modules()
            for found in imports(module)
            if found.target.split(".")[0] in GUI and top(module) != "plugin"
        ]
        assert wrong == []


def is_private(name: str | None) -> bool:
    return name is not None and name.startswith("_") and not name.endswith("__")


class TestPrivateNames:
    def test_none_is_imported_from_another_module(self):
        wrong = [str(found) for found in internal({"module", *LATE}) if is_private(found.name)]
        wrong += [str(found) for found in internal({"module", *LATE}) if any(map(is_private, found.target.split(".")))]
        assert wrong == []

    def test_none_is_read_from_another_module(self):
        wrong = []
        for module in modules():
            names = {
                (alias.asname or alias.name)
                for node, _ in statements(tree(module))
                if isinstance(node, ast.ImportFrom) and node.level
                for alias in node.names
            }
            wrong += [
                f"{module}:{node.lineno} reads {ast.unparse(node)}"
                for node in ast.walk(tree(module))
                if isinstance(node, ast.Attribute) and is_private(node.attr)
                if isinstance(node.value, ast.Name) and node.value.id in names
            ]
        assert wrong == []
