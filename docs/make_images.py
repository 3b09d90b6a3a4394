"""Make the pictures of these pages: the Fit widget clicked in a real window, on the package's own phantom.

Run it as ``xvfb-run -a -s "-screen 0 1600x1000x24 +extension GLX" python docs/make_images.py``.
"""

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import napari
import numpy as np
from PIL import Image
from qtpy.QtWidgets import QApplication

from napari_gsvolume import anatomical_phantom
from napari_gsvolume.cli.app import main
from napari_gsvolume.super_resolution import train_superresolution

IMAGES = Path(__file__).parent / "images"


def wait(seconds: float) -> None:
    """Let the window live for a while."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        QApplication.processEvents()
        time.sleep(0.01)


def shoot(viewer: napari.Viewer, name: str) -> None:
    """Save the whole window, in a palette: it is small, and enough for a screenshot."""
    wait(1)
    picture = Image.fromarray(np.ascontiguousarray(viewer.screenshot(canvas_only=False)[..., :3]))
    picture.quantize(192).save(IMAGES / name, optimize=True)


def opened(name: str) -> tuple[napari.Viewer, Any]:
    """Return a window with the anatomical phantom, seen from the front, and a widget of that name."""
    viewer = napari.Viewer()
    viewer.window.resize(1400, 880)
    viewer.open_sample("napari-gsvolume", "anatomy")
    _, widget = viewer.window.add_plugin_dock_widget("napari-gsvolume", name)
    viewer.dims.order = (1, 0, 2)
    viewer.scene.camera.orientation2d = ("up", "right")
    viewer.dims.set_current_step(1, viewer.dims.nsteps[1] // 2)
    viewer.reset_view()
    wait(1)
    return viewer, widget


def run(widget: Any) -> None:
    """Press Run and wait for the end."""
    widget.button.native.click()
    while widget.running:
        wait(0.1)


def fit(seconds: float) -> None:
    """Fit the anatomical phantom from the widget and take pictures in 2D and 3D."""
    viewer, widget = opened("Fit Gaussians")
    widget.form.fields["time_limit"].value = seconds
    run(widget)
    shoot(viewer, "fit-2d.png")
    viewer.dims.order = (0, 1, 2)
    viewer.dims.ndisplay = 3
    for layer in viewer.layers:
        layer.visible = layer.name.endswith("gaussians")
    viewer.scene.camera.angles = (5, 25, 80)
    viewer.reset_view()
    shoot(viewer, "fit-3d.png")
    viewer.close()


def compare(seconds: float) -> None:
    """Run the study of data terms from its widget and take a picture with the ellipsoids' artefacts."""
    viewer, widget = opened("Compare fits")
    widget.study.value = "support"
    widget.form.fields["gaussians"].value = 400
    widget.form.fields["time_limit"].value = seconds
    run(widget)
    shoot(viewer, "compare-support.png")
    viewer.close()


def reconstruct(seconds: float) -> None:
    """Project the anatomical phantom 30 times, recover it, and take a picture."""
    viewer, project = opened("Project")
    volume = viewer.layers[0]
    project.form.fields["views"].value = 30
    project.form.fields["hounsfield"].value = True
    run(project)
    viewer.window.remove_dock_widget(project.native)
    _, widget = viewer.window.add_plugin_dock_widget("napari-gsvolume", "Reconstruct")
    widget.truth.value = volume
    widget.hounsfield.value = True
    widget.form.fields["time_limit"].value = seconds
    run(widget)
    viewer.dims.order = (1, 0, 2)
    viewer.dims.set_current_step(1, viewer.dims.nsteps[1] // 2)
    viewer.reset_view()
    shoot(viewer, "reconstruct.png")
    viewer.close()


def svd() -> None:
    """Decompose a slice of the anatomical phantom from the SVD widget and take a picture at rank 20."""
    viewer, widget = opened("SVD")
    viewer.window.resize(1400, 960)
    wait(2)
    widget.rank.value = 20
    widget.modes.k.value = 3
    widget.modes.smoothing.value = 2
    shoot(viewer, "svd.png")
    viewer.close()


def svd_learn(seconds: float) -> None:
    """Train a super-resolution on the anatomical phantom from the SVD widget, and take a picture of its end."""
    viewer, widget = opened("SVD")
    viewer.window.resize(1400, 1000)
    widget.tabs.setCurrentWidget(widget.train)
    widget.train.form.fields["time_limit"].value = seconds
    run(widget)
    shoot(viewer, "svd-learn.png")
    viewer.close()


def trained(path: Path) -> None:
    """Train the super-resolution of the worked example in explain.md."""
    volume = anatomical_phantom(96)[0]
    result = train_superresolution([volume], factor=2.0, channels=24, blocks=4, batch_size=8, iterations=240)
    result.model.save(path)


def explain(model: Path) -> None:
    """Explain a super-resolution from the Explain widget, and take pictures of samples and of what if."""
    viewer, widget = opened("Explain")
    viewer.window.resize(1400, 960)
    widget.model.model.value = str(model)
    widget.model.load.native.click()
    while widget.busy:
        wait(0.1)
    widget.model.check(("network.head", "network.body.2.first", "network.body.4", "network.tail"))
    widget.model.form.fields["axis"].value = "y"
    widget.model.form.fields["slices"].value = 9
    run(widget)
    widget.layer.value = "network.body.2.first"
    widget.tabs.setCurrentWidget(widget.samples)
    wait(1)
    points = widget.samples.plot.points
    widget.samples.select(points[:, 1] > np.quantile(points[:, 1], 0.97))
    shoot(viewer, "explain-samples.png")
    viewer.layers[-1].visible = False
    widget.tabs.setCurrentWidget(widget.what_if)
    widget.what_if.amount.value = 2
    while widget.busy:
        wait(0.1)
    shoot(viewer, "explain-what-if.png")
    viewer.close()


if __name__ == "__main__":
    IMAGES.mkdir(exist_ok=True)
    fit(40)
    compare(12)
    reconstruct(60)
    svd()
    svd_learn(300)
    with tempfile.TemporaryDirectory() as folder:
        trained(Path(folder) / "SR.safetensors")
        explain(Path(folder) / "SR.safetensors")
    sys.exit(main(["demo", "--no-window", "--png", str(IMAGES / "fit-demo.png")]))
