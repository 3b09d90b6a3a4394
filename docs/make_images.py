"""Take the screenshots of these pages: widgets used in a real window, on the package's own phantoms.

All of them, or those named, for instance after a widget has changed::

    xvfb-run -a -s "-screen 0 1280x1024x24 +extension GLX" python docs/make_images.py
    xvfb-run -a -s "-screen 0 1280x1024x24 +extension GLX" python docs/make_images.py fit-2d svd

``--speed 10`` takes a tenth of the time for everything that runs under a time limit: to try the script.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import napari
import numpy as np
from PIL import Image
from qtpy.QtWidgets import QApplication, QScrollArea

IMAGES = Path(__file__).parent / "images"
SIZE = 1280, 720
PLUGIN = "napari-gsvolume"

speed = 1.0
pictures: dict[str, Callable[[], None]] = {}


def takes(*names: str) -> Callable[[Callable[[], None]], Callable[[], None]]:
    """Register what takes the pictures of these names."""

    def register(function: Callable[[], None]) -> Callable[[], None]:
        pictures.update(dict.fromkeys(names, function))
        return function

    return register


def wait(seconds: float) -> None:
    """Let the window live for a while."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        QApplication.processEvents()
        time.sleep(0.01)


def save_screenshot(viewer: napari.Viewer, name: str, bottom: bool = False) -> None:
    """Save the whole window, in a palette: that is small, and enough for a screenshot."""
    wait(1)
    if bottom:
        for area in viewer.window._qt_window.findChildren(QScrollArea):
            area.verticalScrollBar().setValue(area.verticalScrollBar().maximum())
        wait(0.5)
    picture = Image.fromarray(np.ascontiguousarray(viewer.screenshot(canvas_only=False)[..., :3]))
    picture.quantize(192).save(IMAGES / f"{name}.png", optimize=True)


def open_widget(viewer: napari.Viewer, name: str) -> Any:
    """Return a widget of the plugin, docked."""
    _, widget = viewer.window.add_plugin_dock_widget(PLUGIN, name)
    wait(1)
    return widget


def open_phantom(widget: str, sample: str = "anatomy") -> tuple[napari.Viewer, Any]:
    """Return a window with a phantom and a widget."""
    viewer = napari.Viewer()
    viewer.window.resize(*SIZE)
    viewer.open_sample(PLUGIN, sample)
    docked = open_widget(viewer, widget)
    show_front(viewer)
    return viewer, docked


def show_front(viewer: napari.Viewer) -> None:
    """Turn to the middle coronal slice, head up."""
    viewer.dims.order = (1, 0, 2)
    viewer.scene.camera.orientation2d = ("up", "right")
    viewer.dims.set_current_step(1, viewer.dims.nsteps[1] // 2)
    viewer.reset_view()
    wait(1)


def look_from_front(viewer: napari.Viewer, aside: float = 0.0) -> None:
    """Turn the camera of the 3D view to look along y, from the front of the body to its back, head up."""
    viewer.reset_view()
    viewer.scene.camera.set_view_direction((0, 1, aside), (1, 0, 0))


def run(widget: Any, seconds: float | None = None) -> None:
    """Press Run, with a time limit if one is given, and wait for the end."""
    if seconds is not None:
        widget.form.fields["time_limit"].value = seconds / speed
    widget.button.native.click()
    while widget.running:
        wait(0.1)
    wait(1)


def wait_until_idle(widget: Any) -> None:
    """Wait for what a widget does besides its runs."""
    while widget.busy:
        wait(0.1)


@takes("fit-2d", "fit-3d")
def fit() -> None:
    """Fit the anatomical phantom."""
    viewer, widget = open_phantom("Fit Gaussians")
    run(widget, 40)
    save_screenshot(viewer, "fit-2d")
    viewer.dims.order = (0, 1, 2)
    viewer.dims.ndisplay = 3
    for layer in viewer.layers:
        layer.visible = layer.name.endswith("gaussians")
    look_from_front(viewer, aside=0.5)
    save_screenshot(viewer, "fit-3d")
    viewer.close()


@takes("compare-support")
def compare() -> None:
    """Run the study of data terms."""
    viewer, widget = open_phantom("Compare fits")
    widget.study.value = "support"
    widget.form.fields["gaussians"].value = 400
    run(widget, 12)
    save_screenshot(viewer, "compare-support")
    viewer.close()


def make_projections(viewer: napari.Viewer, widget: Any) -> None:
    """Project the phantom 30 times."""
    widget.form.fields["views"].value = 30
    widget.form.fields["hounsfield"].value = True
    run(widget)
    wait(1)


@takes("project")
def project() -> None:
    """Project the anatomical phantom."""
    viewer, widget = open_phantom("Project")
    make_projections(viewer, widget)
    viewer.scene.camera.orientation2d = ("up", "right")
    viewer.dims.set_current_step(0, 6)
    viewer.reset_view()
    save_screenshot(viewer, "project")
    viewer.close()


@takes("reconstruct")
def reconstruct() -> None:
    """Reconstruct the phantom from 30 projections."""
    viewer, projecting = open_phantom("Project")
    volume = viewer.layers[0]
    make_projections(viewer, projecting)
    viewer.window.remove_dock_widget(projecting.native)
    widget = open_widget(viewer, "Reconstruct")
    widget.truth.value = volume
    widget.hounsfield.value = True
    run(widget, 60)
    show_front(viewer)
    save_screenshot(viewer, "reconstruct")
    viewer.close()


@takes("from-slices")
def from_slices() -> None:
    """Reconstruct the phantom from every fourth slice."""
    viewer, widget = open_phantom("From slices")
    widget.slices.fields["known"].value = "every k-th"
    run(widget, 60)
    show_front(viewer)
    save_screenshot(viewer, "from-slices")
    viewer.close()


@takes("views")
def views() -> None:
    """Train splats on the bones of the phantom."""
    viewer, widget = open_phantom("Views")
    viewer.dims.order = (0, 1, 2)
    viewer.dims.ndisplay = 3
    look_from_front(viewer)
    widget.transfer_panel.choice.value = "ct-bone"
    run(widget, 120)
    save_screenshot(viewer, "views", bottom=True)
    viewer.close()


@takes("svd")
def svd() -> None:
    """Decompose a slice."""
    viewer, widget = open_phantom("SVD")
    wait(2)
    widget.rank.value = 20
    widget.modes.k.value = 3
    widget.modes.smoothing.value = 2
    save_screenshot(viewer, "svd")
    viewer.close()


@takes("svd-learn")
def train_superresolution() -> None:
    """Train a super-resolution model."""
    viewer, widget = open_phantom("SVD")
    tab = widget.train
    widget.tabs.setCurrentWidget(tab)
    tab.form.fields["time_limit"].value = 300 / speed
    run(widget)
    save_screenshot(viewer, "svd-learn", bottom=True)
    viewer.close()


def train_model(path: Path) -> None:
    """Train the super-resolution model of the worked example in explain.md."""
    from napari_gsvolume.phantoms import anatomical_phantom
    from napari_gsvolume.super_resolution import train_superresolution

    iterations = max(20, round(240 / speed))
    volume = anatomical_phantom(96)[0]
    result = train_superresolution([volume], factor=2.0, channels=24, blocks=4, batch_size=8, iterations=iterations)
    result.model.save(path)


@takes("explain-samples", "explain-what-if")
def explain() -> None:
    """Explain a super-resolution model."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "SR.safetensors"
        train_model(path)
        viewer, widget = open_phantom("Explain")
        widget.model.model.value = str(path)
        widget.model.load.native.click()
        wait_until_idle(widget)
    widget.model.check(("network.head", "network.body.2.first", "network.body.4", "network.tail"))
    widget.model.form.fields["axis"].value = "y"
    widget.model.form.fields["slices"].value = 9
    run(widget)
    widget.layer.value = "network.body.2.first"
    widget.tabs.setCurrentWidget(widget.samples)
    wait(1)
    points = widget.samples.plot.points
    widget.samples.select(points[:, 1] > np.quantile(points[:, 1], 0.97))
    save_screenshot(viewer, "explain-samples")
    viewer.layers[-1].visible = False
    widget.tabs.setCurrentWidget(widget.what_if)
    widget.what_if.amount.value = 2
    wait_until_idle(widget)
    save_screenshot(viewer, "explain-what-if")
    viewer.close()


@takes("fit-demo")
def demo() -> None:
    """Run the demo without a window."""
    from napari_gsvolume.cli.app import main

    main(["demo", "--no-window", "--png", str(IMAGES / "fit-demo.png")])


def main() -> int:
    """Take the pictures asked for, each in a process of its own: one that fails leaves the others."""
    global speed
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"pictures to take; all if none: {', '.join(pictures)}"
    )
    parser.add_argument("--speed", type=float, default=1.0, help="divide time limits by this")
    asked = parser.parse_args()
    speed = asked.speed
    unknown = [name for name in asked.names if name not in pictures]
    if unknown:
        parser.error(f"There is no picture {unknown[0]}; there are {', '.join(pictures)}.")
    functions = list(dict.fromkeys(pictures[name] for name in asked.names or pictures))
    if len(functions) == 1:
        functions[0]()
        return 0
    failed = []
    for function in functions:
        name = next(name for name, other in pictures.items() if other is function)
        if subprocess.run([sys.executable, __file__, name, "--speed", str(speed)]).returncode:
            failed.append(name)
    if failed:
        print("Not taken:", ", ".join(failed), file=sys.stderr)
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
