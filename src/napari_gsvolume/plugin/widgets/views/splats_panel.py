"""List of splat models: check models, render them from the viewer's camera, and save them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from pathlib import Path
from typing import Any

from magicgui.widgets import CheckBox, Container, PushButton, SpinBox
from napari.utils.notifications import show_warning
from napari.viewer import Viewer
from qtpy.QtCore import Qt
from qtpy.QtWidgets import QAbstractItemView, QFileDialog, QListWidget, QListWidgetItem
from rich.filesize import decimal as file_size

from ....errors import InputError
from ....rendering.splats.model import Splats
from ....rendering.splats.ply import write_splats
from ..shared.camera import ViewerCamera, viewer_camera
from ..shared.latest_task import Task
from ..shared.live_view import LiveView
from .worker import PictureKind, PictureRequest, SceneSource, SplatModel, film_problem, render_splat_picture

PIXELS = 512
_LIVE_PIXELS = 256
_ROWS_SHOWN = 4
_FILES = {"Splats (*.ply)": ".ply", "Picture (*.png)": ".png", "Film of the turntable (*.mp4)": ".mp4"}


class ModelPanel(Container[Any]):
    """Models with check boxes, and buttons that render the checked ones; hidden while there are no models.

    Attributes
    ----------
    live : LiveView
        Live rendering from the viewer's camera, to be placed by the owner.

    Parameters
    ----------
    viewer : napari.Viewer
        Viewer with the camera.
    render : callable
        Starts rendering the requested pictures.
    say : callable
        Shows a sentence to the user, as a notification if there is a second argument.
    """

    def __init__(self, viewer: Viewer, render: Callable[[PictureRequest], None], say: Callable[..., None]) -> None:
        self._viewer, self._render, self._say = viewer, render, say
        self._models: dict[str, SplatModel] = {}
        self.frames = SpinBox(value=36, min=2, max=1000, label="Frames", tooltip="Number of pictures of a turntable")
        self.pixels = SpinBox(
            value=PIXELS,
            min=16,
            max=4096,
            label="Pixels",
            tooltip="Longer side in pixels, of pictures and of the DVR view",
        )
        self.view = PushButton(text="View", tooltip="Render the checked models from the viewer's camera, as a layer")
        self.turntable = PushButton(
            text="Turntable", tooltip="Render pictures around the volume, starting at the viewer's camera, as a layer"
        )
        self.difference = PushButton(
            text="Difference to DVR",
            tooltip="Render the absolute difference of splats and direct volume rendering, as a layer",
        )
        self.save = PushButton(
            text="Save…", tooltip="Save the checked models as .ply, a picture as .png, or a turntable film as .mp4"
        )
        self.follow = CheckBox(
            text="Follow the camera", tooltip="Show the checked models live from the viewer's camera, in this dock"
        )
        self._buttons = Container(widgets=[self.view, self.turntable, self.save], layout="horizontal", labels=False)
        self._numbers = Container(widgets=[self.pixels, self.frames])
        for row in (self._buttons, self._numbers):
            row.margins = (0, 0, 0, 0)
        super().__init__(widgets=[self._numbers, self._buttons, self.difference, self.follow], labels=False)
        self.margins = (0, 0, 0, 0)
        self.boxes = QListWidget()
        self.boxes.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)  # it would cover the only row
        self.boxes.setTextElideMode(Qt.TextElideMode.ElideMiddle)
        self.boxes.setSelectionMode(QAbstractItemView.SelectionMode.NoSelection)
        self.native.layout().insertWidget(0, self.boxes)
        self.live = LiveView(viewer, self._live_task, say, framed=True)
        self.boxes.itemChanged.connect(self.live.changed)
        self.follow.changed.connect(self.live.switch)
        self.view.changed.connect(lambda: self._attempt(self._request, "view"))
        self.turntable.changed.connect(lambda: self._attempt(self._request, "turntable"))
        self.difference.changed.connect(lambda: self._attempt(self._request, "difference"))
        self.save.changed.connect(self._on_save)

    # Models -----------------------------------------------------------------------------------------------------------

    @property
    def models(self) -> dict[str, SplatModel]:
        """All models by name."""
        return dict(self._models)

    @property
    def checked(self) -> list[SplatModel]:
        """Models with a checked box."""
        items = (self.boxes.item(row) for row in range(self.boxes.count()))
        return [self._models[item.data(Qt.UserRole)] for item in items if item.checkState() == Qt.CheckState.Checked]

    def check(self, name: str, on: bool = True) -> None:
        """Check or uncheck the box of a model."""
        item = self._item(name)
        assert item is not None
        item.setCheckState(Qt.CheckState.Checked if on else Qt.CheckState.Unchecked)

    def add_model(self, model: SplatModel) -> None:
        """Add a model, checked, or replace the one of the same name; uncheck models of other volumes."""
        new = model.name not in self._models
        self._models[model.name] = model
        item = self._item(model.name)
        if item is None:
            item = QListWidgetItem()
            item.setFlags(item.flags() | Qt.ItemFlag.ItemIsUserCheckable)
            item.setData(Qt.UserRole, model.name)
            self.boxes.addItem(item)
        psnr = "" if model.trained is None else f", {model.trained.psnr_db:.1f} dB"
        item.setText(f"{model.name}  ({len(model.splats):,} Gaussians{psnr})")
        if new:
            self.check(model.name)
        for name, other in self._models.items():
            if other.source.name != model.source.name:
                self.check(name, False)
        rows = min(self.boxes.count(), _ROWS_SHOWN)
        self.boxes.setFixedHeight(rows * self.boxes.sizeHintForRow(0) + 2 * self.boxes.frameWidth() + 4)
        self.visible = True
        self.live.changed()

    def check_trained(self, volume: str, names: Sequence[str]) -> None:
        """Check the models of a volume that a run has trained and uncheck its others, which may overlap with them."""
        for name, model in self._models.items():
            if model.trained is not None and model.source.name == volume:
                self.check(name, name in names)

    def _item(self, name: str) -> QListWidgetItem | None:
        items = (self.boxes.item(row) for row in range(self.boxes.count()))
        return next((item for item in items if item.data(Qt.UserRole) == name), None)

    def _checked_models(self) -> list[SplatModel]:
        """Return the checked models; raise InputError if there are none."""
        models = self.checked
        if not models:
            raise InputError("No model is checked; check at least one in the list.")
        return models

    def _frame(self, size: int) -> tuple[ViewerCamera, Splats]:
        """Return the viewer's camera, and the splats of all checked models at its resolution."""
        models = self._checked_models()
        frame = viewer_camera(self._viewer, models[0].source.grid, size)
        return frame, Splats.concatenate([model.at_resolution(frame.cameras.pixel_size_mm) for model in models])

    def _scene_source(self) -> SceneSource:
        """Return the scene of the checked models, for direct volume rendering."""
        scene_sources = []
        for model in self.checked:
            if model.scene_source is None:
                raise InputError(f"'{model.name}' was not trained here, so that there is no volume to compare with.")
            scene_sources.append(model.scene_source)
        if len({id(scene_source.source.array) for scene_source in scene_sources}) > 1:
            raise InputError("The checked models are of several volumes; a difference needs models of one.")
        return reduce(SceneSource.union, scene_sources)

    # Pictures ---------------------------------------------------------------------------------------------------------

    def enable(self, on: bool) -> None:
        """Enable the buttons, or disable them during a run."""
        for button in (self.view, self.turntable, self.difference, self.save):
            button.enabled = on

    def _attempt(self, do: Callable[..., None], *args: Any) -> None:
        try:
            do(*args)
        except (ValueError, OSError, MemoryError) as error:
            self._say(str(error), show_warning)

    def _request(self, kind: PictureKind, path: Path | None = None) -> None:
        source = self._checked_models()[0].source
        scene_source = self._scene_source() if kind == "difference" else None
        frame, splats = self._frame(self.pixels.value)
        if kind == "turntable":
            frame = frame.orbit(self.frames.value)
        about = {
            model.name: {"settings": model.trained.settings.model_dump(), "metrics": metrics(model)}
            for model in self.checked
            if model.trained is not None
        }
        metadata = {"parts": about}
        self._render(PictureRequest(kind, source, frame, splats, scene_source, path=path, metadata=metadata))

    def _live_task(self) -> Task:
        frame, splats = self._frame(_LIVE_PIXELS)
        return lambda: render_splat_picture(splats, frame)

    # Files ------------------------------------------------------------------------------------------------------------

    def _on_save(self) -> None:
        name = f"{self.checked[0].source.name}.ply" if self.checked else "splats.ply"
        path, chosen = QFileDialog.getSaveFileName(self.native, "Save splats or pictures", name, ";;".join(_FILES))
        if path:
            self.save_as(path, _FILES.get(chosen, ".ply"))

    def save_as(self, path: str | Path, suffix: str = ".ply") -> None:
        """Save the checked models (.ply), a picture (.png) or a turntable film (.mp4), by the ending of the file name.

        Parameters
        ----------
        path : str or Path
            Output file.
        suffix : str
            Ending to add if the file name has none of these.
        """
        path = Path(path)
        if path.suffix.lower() not in _FILES.values():
            path = path.with_name(f"{path.name}{suffix}")
        self._attempt(self._save, path)

    def _save(self, path: Path) -> None:
        kind = path.suffix.lower()
        if kind == ".ply":
            splats = Splats.concatenate([model.splats for model in self._checked_models()])
            write_splats(path, splats)
            self._say(f"Saved {path.name}: {len(splats):,} Gaussians, {file_size(path.stat().st_size)}.")
            return
        if kind == ".mp4" and (problem := film_problem()):
            raise InputError(problem)
        self._request("view" if kind == ".png" else "turntable", path)


def metrics(model: SplatModel) -> dict[str, float]:
    """Return quality, size and speed of a trained model."""
    assert model.trained is not None
    figures = model.trained.report()
    return {name: figures[name] for name in ("psnr_db", "ssim", "n_gaussians", "fps", "seconds")}
