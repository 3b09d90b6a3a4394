import pytest


@pytest.fixture(autouse=True)
def own_settings(tmp_path_factory):
    """Keep widgets from reading and writing the settings of whoever runs the tests."""
    from qtpy.QtCore import QSettings

    folder = tmp_path_factory.mktemp("settings")
    QSettings.setPath(QSettings.Format.IniFormat, QSettings.Scope.UserScope, str(folder))
    return folder
