"""What is done with trained splats: choose parts, see them along the viewer's camera, save and open them."""

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
from .worker import Kind, Order, Part, Subject, film_problem, view_of

PIXELS = 512
_LIVE_PIXELS = 256
_ROWS_SHOWN = 4
_FILES = {"Splats (*.ply)": ".ply", "Picture (*.png)": ".png", "Film of the turntable (*.mp4)": ".mp4"}


class ModelPanel(Container[Any]):
    """Trained parts with check boxes, and what shows those that are checked; hidden as long as there is none.

    Attributes
    ----------
    live : LiveView
        Follows the camera; to be placed by the owner.

    Parameters
    ----------
    viewer : napari.Viewer
        Its camera is where they are seen from.
    make : callable
        Makes pictures beside the viewer.
    say : callable
        Tells the user a sentence, and notifies where there is a second argument.
    """

    def __init__(self, viewer: Viewer, make: Callable[[Order], None], say: Callable[..., None]) -> None:
        self._viewer, self._make, self._say = viewer, make, say
        self._parts: dict[str, Part] = {}
        self.frames = SpinBox(value=36, min=2, max=1000, label="Frames", tooltip="Pictures of a turntable")
        self.pixels = SpinBox(
            value=PIXELS, min=16, max=4096, label="Pixels", tooltip="Longer side of pictures, and of the DVR view"
        )
        self.view = PushButton(text="View", tooltip="A picture from the viewer's camera, as a layer")
        self.turntable = PushButton(text="Turntable", tooltip="Pictures all around, the first from the viewer's camera")
        self.difference = PushButton(
            text="Difference to DVR", tooltip="How far the splats are off direct volume rendering, from the same camera"
        )
        self.save = PushButton(text="Save…", tooltip="The checked parts as .ply, a picture as .png, a film as .mp4")
        self.follow = CheckBox(
            text="Follow the camera", tooltip="Show the checked parts along the viewer's camera, live, here in the dock"
        )
        self._buttons = Container(widgets=[self.view, self.turntable, self.save], layout="horizontal", labels=False)
        self._numbers = Container(widgets=[self.pixels, self.frames])
        for row in (self._buttons, self._numbers):
            row.margins = (0, 0, 0, 0)
        super().__init__(widgets=[self._numbers, self._buttons, self.difference, self.follow], labels=False)
        self.margins = (0, 0, 0, 0)
        self.boxes = QListWidget()
        self.boxes.setSelectionMode(QAbstractItemView.SelectionMode.NoSelection)
        self.native.layout().insertWidget(0, self.boxes)
        self.live = LiveView(viewer, self._live_task, say, framed=True)
        self.boxes.itemChanged.connect(self.live.changed)
        self.follow.changed.connect(self.live.switch)
        self.view.changed.connect(lambda: self._tried(self._ask, "view"))
        self.turntable.changed.connect(lambda: self._tried(self._ask, "turntable"))
        self.difference.changed.connect(lambda: self._tried(self._ask, "difference"))
        self.save.changed.connect(self._on_save)

    # Parts ------------------------------------------------------------------------------------------------------------

    @property
    def parts(self) -> dict[str, Part]:
        """All parts by their names."""
        return dict(self._parts)

    @property
    def checked(self) -> list[Part]:
        """Those whose boxes are checked."""
        items = (self.boxes.item(row) for row in range(self.boxes.count()))
        return [self._parts[item.data(Qt.UserRole)] for item in items if item.checkState() == Qt.CheckState.Checked]

    def check(self, name: str, on: bool = True) -> None:
        """Check the box of a part, or uncheck it."""
        item = self._item(name)
        assert item is not None
        item.setCheckState(Qt.CheckState.Checked if on else Qt.CheckState.Unchecked)

    def put(self, part: Part) -> None:
        """Add a part, checked, or put it in the place of the one of its name; uncheck those of other volumes."""
        new = part.name not in self._parts
        self._parts[part.name] = part
        item = self._item(part.name)
        if item is None:
            item = QListWidgetItem()
            item.setFlags(item.flags() | Qt.ItemFlag.ItemIsUserCheckable)
            item.setData(Qt.UserRole, part.name)
            self.boxes.addItem(item)
        judged = "" if part.trained is None else f", {part.trained.psnr_db:.1f} dB"
        item.setText(f"{part.name}  ({len(part.splats):,} Gaussians{judged})")
        if new:
            self.check(part.name)
        for name, other in self._parts.items():
            if other.source.name != part.source.name:
                self.check(name, False)
        rows = min(self.boxes.count(), _ROWS_SHOWN)
        self.boxes.setFixedHeight(rows * self.boxes.sizeHintForRow(0) + 2 * self.boxes.frameWidth() + 4)
        self.visible = True
        self.live.changed()

    def check_trained(self, volume: str, names: Sequence[str]) -> None:
        """Check those parts of a volume that a run has trained, and no others: parts may be in the place of others."""
        for name, part in self._parts.items():
            if part.trained is not None and part.source.name == volume:
                self.check(name, name in names)

    def _item(self, name: str) -> QListWidgetItem | None:
        items = (self.boxes.item(row) for row in range(self.boxes.count()))
        return next((item for item in items if item.data(Qt.UserRole) == name), None)

    def _chosen(self) -> list[Part]:
        """Return the checked parts; raise ValueError if there is none."""
        parts = self.checked
        if not parts:
            raise InputError("No part is checked; check at least one in the list.")
        return parts

    def _seen(self, size: int) -> tuple[ViewerCamera, Splats]:
        """Return how the viewer sees the checked parts, and all of their Gaussians as they look from there."""
        parts = self._chosen()
        seen = viewer_camera(self._viewer, parts[0].source.grid, size)
        return seen, Splats.joined([part.seen_at(seen.cameras.pixel_mm) for part in parts])

    def _subject(self) -> Subject:
        """Return what DVR shows of the checked parts."""
        subjects = []
        for part in self.checked:
            if part.subject is None:
                raise InputError(f"'{part.name}' was not trained here, so there is no volume to compare with.")
            subjects.append(part.subject)
        if len({id(subject.source.array) for subject in subjects}) > 1:
            raise InputError("The checked parts are of several volumes; a difference is to one.")
        return reduce(Subject.beside, subjects)

    # Pictures ---------------------------------------------------------------------------------------------------------

    def enable(self, on: bool) -> None:
        """Let pictures be asked for, or not as something is running."""
        for button in (self.view, self.turntable, self.difference, self.save):
            button.enabled = on

    def _tried(self, do: Callable[..., None], *args: Any) -> None:
        try:
            do(*args)
        except (ValueError, OSError, MemoryError) as error:
            self._say(str(error), show_warning)

    def _ask(self, kind: Kind, path: Path | None = None) -> None:
        source = self._chosen()[0].source
        subject = self._subject() if kind == "difference" else None
        seen, splats = self._seen(self.pixels.value)
        if kind == "turntable":
            seen = seen.orbit(self.frames.value)
        about = {
            part.name: {"settings": part.trained.settings.model_dump(), "metrics": metrics(part)}
            for part in self.checked
            if part.trained is not None
        }
        self._make(Order(kind, source, seen, splats, subject, path=path, about={"parts": about}))

    def _live_task(self) -> Task:
        seen, splats = self._seen(_LIVE_PIXELS)
        return lambda: view_of(splats, seen)

    # Files ------------------------------------------------------------------------------------------------------------

    def _on_save(self) -> None:
        name = f"{self.checked[0].source.name}.ply" if self.checked else "splats.ply"
        path, chosen = QFileDialog.getSaveFileName(self.native, "Save splats or pictures", name, ";;".join(_FILES))
        if path:
            self.save_as(path, _FILES.get(chosen, ".ply"))

    def save_as(self, path: str | Path, suffix: str = ".ply") -> None:
        """Save the checked parts, a picture or a film, as the ending says.

        Parameters
        ----------
        path : str or Path
        suffix : str
            The ending to add where there is none of these.
        """
        path = Path(path)
        if path.suffix.lower() not in _FILES.values():
            path = path.with_name(f"{path.name}{suffix}")
        self._tried(self._save, path)

    def _save(self, path: Path) -> None:
        kind = path.suffix.lower()
        if kind == ".ply":
            splats = Splats.joined([part.splats for part in self._chosen()])
            write_splats(path, splats)
            self._say(f"Saved {path.name}: {len(splats):,} Gaussians, {file_size(path.stat().st_size)}.")
            return
        if kind == ".mp4" and (problem := film_problem()):
            raise InputError(problem)
        self._ask("view" if kind == ".png" else "turntable", path)


def metrics(part: Part) -> dict[str, float]:
    """Return the figures of a trained part."""
    assert part.trained is not None
    figures = part.trained.report()
    return {name: figures[name] for name in ("psnr_db", "ssim", "n_gaussians", "fps", "seconds")}
