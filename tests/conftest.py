from contextlib import contextmanager

import pytest


@pytest.fixture(autouse=True)
def own_settings(tmp_path_factory):
    """Keep widgets from reading and writing the settings of whoever runs the tests."""
    from qtpy.QtCore import QSettings

    folder = tmp_path_factory.mktemp("settings")
    QSettings.setPath(QSettings.Format.IniFormat, QSettings.Scope.UserScope, str(folder))
    return folder


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
