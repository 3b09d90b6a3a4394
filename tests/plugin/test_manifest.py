"""The manifest as napari uses it: menus, icon, command palette, keys and preferences."""

import subprocess
import sys
import threading
from importlib import resources

import numba
import numpy as np
import pytest
import torch
from app_model.types import KeyBinding
from napari._app_model import get_app_model
from napari._app_model.constants import MenuId
from napari._qt.dialogs.preferences_dialog import PreferencesDialog
from napari.settings import get_plugin_settings
from napari.utils.shortcuts import default_shortcuts
from npe2 import PluginManifest
from qtpy.QtCore import Qt
from qtpy.QtGui import QIcon
from qtpy.QtWidgets import QApplication, QLabel, QListWidget

from helpers.clicking import SLOW
from napari_gsvolume import GaussianVolume, Grid
from napari_gsvolume.plugin import preferences
from napari_gsvolume.plugin.commands import KEYS, visible_widgets
from napari_gsvolume.plugin.layers.gaussians import gaussian_layer
from napari_gsvolume.plugin.widgets.fit.widget import FitWidget
from napari_gsvolume.plugin.widgets.shared import form, worker
from napari_gsvolume.plugin.widgets.tomography.project import ProjectWidget

PLUGIN = preferences.PLUGIN


@pytest.fixture
def manifest():
    return PluginManifest.from_distribution(PLUGIN)


def docked(viewer):
    widget = FitWidget(viewer)
    viewer.window.add_dock_widget(widget)
    return widget


def test_npe2_finds_it_valid():
    command = [sys.executable, "-m", "npe2", "validate", "--imports", PLUGIN]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_icon_is_a_picture(manifest, qapp):
    package, _, name = manifest.icon.partition(":")
    with resources.as_file(resources.files(package) / name) as path:
        pixmap = QIcon(str(path)).pixmap(64, 64)
    assert not pixmap.isNull()
    image = pixmap.toImage()
    assert len({image.pixel(x, y) for x in range(64) for y in range(64)}) > 100


class TestMenus:
    def test_every_widget_is_in_a_menu_of_its_task(self, manifest):
        menus = manifest.contributions.menus
        assert {MenuId(menu) for menu in menus} <= MenuId.contributables()
        placed = [item.command for items in menus.values() for item in items]
        assert sorted(placed) == sorted(widget.command for widget in manifest.contributions.widgets)

    def test_a_menu_opens_the_widget(self, make_napari_viewer, qtbot):
        viewer = make_napari_viewer(show=True)
        bar = viewer.window._qt_window.menuBar()
        [layers] = [action.menu() for action in bar.actions() if action.text().replace("&", "") == "Layers"]
        [submenu] = [action.menu() for action in layers.actions() if action.text() == "Layer Type"]
        submenu.aboutToShow.emit()
        [action] = [action for action in submenu.actions() if action.text() == "Fit Gaussians (Gaussian volumes)"]
        action.trigger()
        qtbot.waitUntil(lambda: [type(widget) for widget in visible_widgets(viewer)] == [FitWidget], timeout=5000)


class TestCommands:
    @pytest.fixture
    def opened(self, make_napari_viewer, qtbot):
        viewer = make_napari_viewer(show=True)
        viewer.add_image(np.random.default_rng(0).normal(size=(24, 24, 24)).astype(np.float32), rgb=False)
        _, widget = viewer.window.add_plugin_dock_widget(PLUGIN, "Fit Gaussians")
        widget.form.fields["gaussians"].value = 40
        widget.form.fields["iterations"].value = 500
        return viewer, widget

    def test_they_are_in_the_command_palette(self, make_napari_viewer):
        make_napari_viewer()
        model = get_app_model()
        palette = {item.command.id: item.command.title for item in model.menus.get_menu(model.menus.COMMAND_PALETTE_ID)}
        assert palette[f"{PLUGIN}.run"].startswith("Run the visible widget")
        assert palette[f"{PLUGIN}.stop"].startswith("Stop the visible widget")

    def test_they_run_and_stop_the_visible_widget(self, opened, qtbot):
        viewer, widget = opened
        commands = get_app_model().commands
        commands.execute_command(f"{PLUGIN}.run").result()
        assert widget.running
        commands.execute_command(f"{PLUGIN}.run").result()  # not once more, nor the other way round
        assert widget.running
        assert widget.button.text == "Stop"
        qtbot.waitUntil(lambda: "density" in str(list(viewer.layers)), timeout=SLOW)
        commands.execute_command(f"{PLUGIN}.stop").result()
        qtbot.waitUntil(lambda: not widget.running, timeout=SLOW)
        assert widget.results

    def test_keys_run_and_stop_it(self, opened, qtbot):
        viewer, widget = opened
        window = viewer.window._qt_window
        for place in (viewer.window._qt_viewer.canvas.native, widget.form.fields["gaussians"].number.native):
            qtbot.keyClick(place, Qt.Key.Key_Return, Qt.KeyboardModifier.ControlModifier)
            assert widget.running, place
            qtbot.waitUntil(lambda: "density" in str(list(viewer.layers)), timeout=SLOW)
            qtbot.keyClick(
                window, Qt.Key.Key_X, Qt.KeyboardModifier.ControlModifier | Qt.KeyboardModifier.ShiftModifier
            )
            qtbot.waitUntil(lambda: not widget.running, timeout=SLOW)
            viewer.layers.remove("Image · density")

    def test_without_a_widget_they_say_what_to_do(self, make_napari_viewer, monkeypatch):
        make_napari_viewer()
        said = []
        monkeypatch.setattr("napari_gsvolume.plugin.commands.show_info", said.append)
        for name in ("run", "stop"):
            get_app_model().commands.execute_command(f"{PLUGIN}.{name}").result()
        assert len(said) == 2
        assert "Open a widget first" in said[0]

    def test_the_one_with_the_focus_comes_first(self, opened, qtbot, monkeypatch):
        viewer, first = opened
        second = ProjectWidget(viewer)
        viewer.window.add_dock_widget(second, area="bottom")
        qtbot.waitUntil(lambda: visible_widgets(viewer) == [second, first], timeout=5000)
        row = first.form.fields["gaussians"].number.native
        monkeypatch.setattr(QApplication, "focusWidget", lambda: row)  # without a window manager none has it
        assert visible_widgets(viewer) == [first, second]

    def test_their_keys_are_those_of_the_manifest_and_free_in_napari(self, manifest, make_napari_viewer):
        make_napari_viewer()
        keys = {KeyBinding.from_str(key.replace("Control", "Ctrl").replace("-", "+")) for key in KEYS}
        assert keys == {KeyBinding.from_str(binding.key) for binding in manifest.contributions.keybindings}
        assert {binding.command for binding in manifest.contributions.keybindings} == {
            f"{PLUGIN}.run",
            f"{PLUGIN}.stop",
        }
        taken = {binding for bindings in default_shortcuts.values() for binding in bindings}
        taken |= {binding.keybinding for binding in get_app_model().keybindings}
        assert len(taken) > 50
        assert not keys & taken


class TestPreferences:
    @pytest.fixture
    def known(self, plugin_settings, npe2pm):
        """Our plugin's page of the preferences, stored in a temporary folder."""
        with npe2pm.tmp_plugin(package=PLUGIN):
            yield get_plugin_settings(PLUGIN)

    def test_defaults_are_those_outside_napari(self, known, monkeypatch):
        def values():
            return (
                *(preferences.preferred_device(), preferences.most_ellipsoids()),
                *(preferences.remembers_settings(), preferences.settings_folder()),
            )

        inside = values()
        monkeypatch.setattr(preferences, "PLUGIN", "not-installed")
        assert values() == inside == (None, preferences.MOST_ELLIPSOIDS, True, None)

    def test_they_are_in_the_dialog_of_napari(self, known, make_napari_viewer):
        viewer = make_napari_viewer()
        dialog = PreferencesDialog(parent=viewer.window._qt_window)
        pages = dialog.findChild(QListWidget)
        assert "Gaussian volumes" in [pages.item(row).text() for row in range(pages.count())]
        labels = {label.text() for label in dialog.findChildren(QLabel)}
        assert {"Device", "Number of CPU threads", "Largest number of ellipsoids", "Remember settings"} <= labels
        dialog.close()

    def test_the_number_of_ellipsoids(self, known, gaussians):
        assert gaussian_layer("a", gaussians)[2] == "surface"
        known.display.most_ellipsoids = 2
        assert gaussian_layer("a", gaussians)[2] == "points"
        assert "most_ellipsoids: 2" in known.config_path.read_text()

    def test_the_device_of_new_widgets(self, known, make_napari_viewer):
        viewer = make_napari_viewer()
        assert docked(viewer).form.fields["device"].value == "auto"
        known.computing.device = "cpu"
        assert docked(viewer).form.fields["device"].value == "cpu"

    def test_whether_and_where_settings_are_remembered(self, known, make_napari_viewer, tmp_path):
        viewer = make_napari_viewer()

        def use(rounds):
            widget = docked(viewer)
            before = widget.form.fields["rounds"].value
            widget.form.fields["rounds"].value = rounds
            widget.form.settings()
            form._store().sync()
            return before

        assert [use(5), use(6)] == [12, 5]
        known.settings.remember = False
        assert [use(7), use(8)] == [12, 12]
        known.settings.remember = True
        assert use(9) == 6
        known.settings.folder = str(tmp_path / "mine")
        assert [use(10), use(11)] == [12, 10]
        assert (tmp_path / "mine").is_dir()
        assert "rounds" in next((tmp_path / "mine").iterdir()).read_text()

    def test_the_number_of_threads_of_a_run(self, known, monkeypatch):
        monkeypatch.setattr(preferences, "_threads_of_torch", None)
        before = torch.get_num_threads()

        def steps():
            yield numba.get_num_threads(), torch.get_num_threads()

        def used():
            found = []
            thread = threading.Thread(target=lambda: found.extend(worker.run_in_background(steps)))
            thread.start()
            thread.join()
            return found[0]

        known.computing.threads = 1
        assert used() == (1, 1)
        known.computing.threads = 0
        assert used() == (numba.config.NUMBA_NUM_THREADS, before)
        assert torch.get_num_threads() == before

    @pytest.fixture
    def gaussians(self):
        return GaussianVolume(torch.zeros(3, 3), torch.eye(3)[None].repeat(3, 1, 1), torch.ones(3), Grid((4, 4, 4)))
