"""The examples in the docstrings of all public names run, and give what they say."""

import doctest
import importlib
import inspect

import pytest

FACES = ["", ".explain", ".io", ".phantoms", ".reconstruction", ".rendering", ".super_resolution", ".svd"]
FACES.append(".tomography")
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def docstring_examples(face):
    """Yield the examples of a face's own docstring, and of what it exports."""
    parse, find = doctest.DocTestParser().get_doctest, doctest.DocTestFinder(exclude_empty=True).find
    yield parse(face.__doc__ or "", {}, face.__name__, face.__file__, 0)
    for name in getattr(face, "__all__", ()):
        thing = getattr(face, name)
        if inspect.isroutine(thing) or inspect.isclass(thing):
            yield from find(thing, f"{face.__name__}.{name}", globs={})


@pytest.mark.parametrize("face", FACES)
def test_examples_of_docstrings_give_what_they_say(face, tmp_path, monkeypatch, one_thread):
    monkeypatch.chdir(tmp_path)
    said = []
    for test in docstring_examples(importlib.import_module(f"napari_gsvolume{face}")):
        doctest.DocTestRunner(optionflags=FLAGS).run(test, out=said.append)
    assert not said, "".join(said)
