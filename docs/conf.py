"""The documentation site: MyST pages, a reference made from the public names, and a gallery of executed examples.

``tox -e docs`` builds it; a warning is an error.
"""

import importlib
import importlib.metadata
import os
import re
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

os.environ.setdefault("MPLBACKEND", "Agg")

from pydantic import BaseModel
from pydantic_core import PydanticUndefined
from sphinx.application import Sphinx

project = "napari-gsvolume"
author = "The napari-gsvolume developers"
project_copyright = author
release = version = importlib.metadata.version("napari-gsvolume")

extensions = [
    "myst_parser",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinx_gallery.gen_gallery",
]
exclude_patterns = ["_build", "_templates", "gallery/**/*.ipynb"]
templates_path = ["_templates"]

# Pages
myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 4
copybutton_exclude = ".linenos, .gp, .go"

# Reference: what it has is what the faces of the package list in __all__ (docs/reference/index.md names the faces).
autosummary_generate = True
autosummary_ignore_module_all = False
autosummary_imported_members = True
autodoc_typehints = "none"  # the numpydoc sections say it
autodoc_member_order = "bysource"
autodoc_default_options = {"exclude-members": "model_config, model_post_init"}
numpydoc_show_class_members = False
numpydoc_class_members_toctree = False

# Gallery
sphinx_gallery_conf = {
    "examples_dirs": "../examples",
    "gallery_dirs": "gallery",
    "filename_pattern": "/plot_",
    "within_subsection_order": "FileNameSortKey",
    "image_scrapers": ("matplotlib",),
    "backreferences_dir": "reference/backreferences",
    "doc_module": ("napari_gsvolume",),
    "download_all_examples": False,
    "remove_config_comments": True,
    "abort_on_example_error": True,
    "min_reported_time": 1,
    "matplotlib_animations": False,
}
suppress_warnings = ["config.cache"]  # sphinx-gallery's settings hold classes

html_theme = "pydata_sphinx_theme"
html_title = "napari-gsvolume"
html_theme_options = {
    "show_prev_next": False,
    "header_links_before_dropdown": 6,
    "navigation_with_keys": False,
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": ["theme-version"],
}
html_sidebars = {"index": [], "gallery/index": [], "changelog": []}
html_static_path: list[str] = []


def type_name(annotation: Any) -> str:
    """Return a type as numpydoc writes it: alternatives with "or", choices in braces."""
    if get_origin(annotation) is Literal:
        return f"{{{', '.join(map(repr, get_args(annotation)))}}}"
    if get_origin(annotation) in (Union, UnionType):
        return " or ".join(map(type_name, get_args(annotation)))
    if get_origin(annotation) is Annotated:
        return type_name(get_args(annotation)[0])
    return "None" if annotation is NoneType else getattr(annotation, "__name__", str(annotation))


def describe_settings(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Add the fields of a settings model, with their descriptions and defaults, to its docstring."""
    if what != "class" or not (isinstance(obj, type) and issubclass(obj, BaseModel)) or "Attributes" in lines:
        return
    lines += ["", "Attributes", "----------"]
    for field, info in obj.model_fields.items():
        annotation = type_name(info.annotation)
        default = "" if info.default is PydanticUndefined else f", default {info.default!r}"
        lines += [f"{field} : {annotation}{default}", f"    {info.description or ''}"]


def escape_markup(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Keep |x|, shapes such as (B, C, *extent), and initials of authors from being read as markup."""
    for number, line in enumerate(lines):
        parts = re.split(r"(``.*?``|`[^`]*`)", line)
        parts[::2] = [re.sub(r"(?<!\\)\||(?<=[(\s])\*(?=\w+[,)])", r"\\\g<0>", part) for part in parts[::2]]
        lines[number] = re.sub(r"^(\s*[A-Z])\. ", r"\1\\. ", "".join(parts))


def public_names(module: str) -> list[str]:
    """Return the names of a face that no face before it has, so that each is documented once."""
    face = importlib.import_module(module)
    root = set() if module == project.replace("-", "_") else set(importlib.import_module("napari_gsvolume").__all__)
    own = (name for name, thing in vars(face).items() if getattr(thing, "__module__", None) == module)
    return [name for name in getattr(face, "__all__", own) if name not in root and not name.startswith("_")]


autosummary_context = {"public_names": public_names}


def setup(app: Sphinx) -> None:
    """Register the handler of settings models before numpydoc's, which formats what it adds."""
    Path(app.srcdir, "reference", "backreferences").mkdir(exist_ok=True)
    app.connect("autodoc-process-docstring", describe_settings, priority=100)
    app.connect("autodoc-process-docstring", escape_markup, priority=101)
