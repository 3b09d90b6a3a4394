import gc
import os
from contextlib import contextmanager
from pathlib import Path

import numba
import pytest
import torch


def pytest_configure(config):
    """Give each of several processes its own compiled kernels, and one thread.

    Numba writes the list of a kernel's compiled versions and the versions themselves one after the other, unlocked: of
    two processes that compile a kernel for different types, one can load what the other compiled, and crash.
    """
    worker = os.environ.get("PYTEST_XDIST_WORKER")
    if worker is None:
        return
    caches = numba.config.CACHE_DIR or config.rootpath / ".pytest_cache" / "numba"
    numba.config.CACHE_DIR = os.environ["NUMBA_CACHE_DIR"] = str(Path(caches, worker))
    numba.set_num_threads(1)
    torch.set_num_threads(1)


def pytest_collection_finish():
    """Let the garbage collector pass by what is imported: napari runs it at every removal of a layer."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def own_settings(tmp_path_factory):
    """Keep widgets from reading and writing the settings of whoever runs the tests."""
    from qtpy.QtCore import QSettings

    folder = tmp_path_factory.mktemp("settings")
    QSettings.setPath(QSettings.Format.IniFormat, QSettings.Scope.UserScope, str(folder))
    return folder


@pytest.fixture(autouse=True)
def _own_context(request, monkeypatch):
    """Have napari delete a layer's shaders in the context of its canvas, which has them.

    Qt has another context current between two drawings. Where a vertex shader is deleted in that, Mesa (22.3) clears
    the one bound in the canvas, does not bind it again, and the next drawing crashes.
    """
    if "make_napari_viewer" not in request.fixturenames:
        return
    from napari._vispy.canvas import VispyCanvas

    delete = VispyCanvas._clean_and_update_scenegraph

    def delete_in_own_context(self):
        self._scene_canvas.set_current()
        delete(self)

    monkeypatch.setattr(VispyCanvas, "_clean_and_update_scenegraph", delete_in_own_context)


@pytest.fixture
def refused():
    """Return a context manager: its block raises `kind` with one sentence that has all the words."""

    @contextmanager
    def refused(kind, *words):
        with pytest.raises(kind) as caught:
            yield caught
        text = str(caught.value)
        assert "\n" not in text
        assert text.endswith(".")
        assert not text.endswith("..")
        for word in words:
            assert word in text

    return refused


@pytest.fixture
def statuses():
    """Return a function that collects what a viewer's status bar says; napari itself may say something else soon."""

    def statuses(viewer):
        said = []
        viewer.events.status.connect(lambda event: said.append(event.value))
        return said

    return statuses


@pytest.fixture(scope="module")
def one_thread():
    """Let numba and torch use one thread: tiny volumes gain nothing from more, which wait for each other when busy."""
    before = numba.get_num_threads(), torch.get_num_threads()
    numba.set_num_threads(1)
    torch.set_num_threads(1)
    yield
    numba.set_num_threads(before[0])
    torch.set_num_threads(before[1])


@pytest.fixture
def run(inputs, monkeypatch, capfd):
    """Return a function that runs a command line in the module's folder of inputs: exit code, stdout and stderr."""
    from napari_gsvolume.cli.app import main

    monkeypatch.chdir(inputs)

    def run(*args):
        code = main([str(arg) for arg in args])
        return code, *capfd.readouterr()

    return run


@pytest.fixture(scope="session")
def vgg16() -> dict[str, torch.Tensor]:
    """Return random weights, named and shaped as torchvision's vgg16 has them."""
    from helpers.super_resolving import slices

    before, tensors = 3, {}
    widths = [64] * 2 + [128] * 2 + [256] * 3 + [512] * 3
    for n, width in zip((0, 2, 5, 7, 10, 12, 14, 17, 19, 21), widths, strict=True):
        tensors[f"features.{n}.weight"] = slices(width, before, 3, 3, seed=n) * (2 / (9 * before)) ** 0.5
        tensors[f"features.{n}.bias"] = 0.1 * slices(width, seed=n)
        before = width
    return tensors
