"""The tabs of the Explain widget that show where a concept is expressed, and what its change would change."""

from __future__ import annotations

from typing import Any

import numpy as np
from magicgui.widgets import Container, FloatSlider, PushButton, SpinBox
from qtpy.QtWidgets import QLabel

from ....explain.concepts.grids import ConceptMaps
from ....explain.concepts.patches import Patch, Patches, top_patches
from ....explain.models.inputs import Place
from ...layers.conversion import find_earlier_layer
from ...layers.explanation import CHANGE, PATCHES, WHAT_IF, concept_layer, concept_name, patches_layer, what_if_layers
from ..shared.dims import move_to
from ..shared.latest_task import LatestTask
from ..shared.layer_updater import LayerUpdater
from ..shared.tabs import Tab
from .plots import PatchPlot
from .sample_tabs import Stage
from .worker import ALONE, CaseResult, Explained, WhatIf, patch_box, run_maps

_PATCHES = 6  # at each end of a concept


class MapsTab(Tab):
    """The map of the concept as a layer over each image, and the patches that express it most.

    Attributes
    ----------
    map, find : PushButton
    size : SpinBox
    """

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self.map = PushButton(
            text="Map concept", tooltip="Where the layer expresses the concept, as a layer over the image"
        )
        self.find = PushButton(text="Top patches", tooltip="The patches that express it most, in both directions")
        self.size = SpinBox(label="Side of a patch", min=3, max=256, value=16, tooltip="Voxels")
        self._buttons: Container[Any] = Container(
            widgets=[self.map, self.find], layout="horizontal", labels=False, label=""
        )
        self._rows: Container[Any] = Container(widgets=[self._buttons, self.size])
        for rows in (self._buttons, self._rows):
            rows.margins = (0, 0, 0, 0)
        self.plot = PatchPlot(stage.viewer, self._on_patch)
        self.said = QLabel("Red one way, blue the other; the sign is a convention.")
        self.said.setWordWrap(True)
        super().__init__(self._rows.native, self.plot, self.said)
        self.latest = LatestTask(self._show_patches, stage.failed)
        self._made: dict[str, list[ConceptMaps]] = {}
        self.map.changed.connect(self._on_map)
        self.find.changed.connect(self._on_find)

    def forget(self) -> None:
        """Keep nothing of an earlier explanation."""
        self._made = {}
        self.plot.show_patches((), ())

    def renew(self) -> None:
        """Offer what there is of the layer."""
        self._rows.enabled = self._stage.decomposition is not None

    def _on_map(self) -> None:
        stage = self._stage
        made = self._made.get(stage.layer)
        if stage.explained is None or stage.decomposition is None:
            return
        if made is not None and len(made[0].values) >= stage.mode:
            self._put(made)
        else:
            count = min(stage.decomposition.k, max(stage.mode, stage.explained.of.settings.maps))
            stage.start(run_maps, stage.explained.of, [stage.layer], count)

    def show_maps(self, made: list[ConceptMaps]) -> None:
        """Keep the maps of a layer, and show that of the concept."""
        self._made[made[0].layer] = made
        self._put(made)

    def _put(self, made: list[ConceptMaps]) -> None:
        stage, viewer = self._stage, self._stage.viewer
        assert stage.explained is not None
        mode = min(stage.mode, len(made[0].values))
        for maps in made:
            source = stage.explained.sources[maps.volume]
            name = concept_name(source.name, maps.layer, mode)
            about = {"concept": mode, "model": stage.explained.of.loaded.name}
            layer = concept_layer(source, maps.layer, mode, maps.values[mode - 1], maps.grid, about)
            LayerUpdater(viewer, {name: find_earlier_layer(viewer.layers, name)}).put(name, layer)
        stage.say(f"'{name}' is the projection of what the layer says on concept {mode}.")

    def _on_find(self) -> None:
        stage = self._stage
        d = stage.decomposition
        if stage.explained is None or d is None:
            return
        images, mode, size = stage.explained.of.images, min(stage.mode, d.k) - 1, int(self.size.value)

        def found() -> tuple[Explained, Patches]:
            with ALONE:
                return explained, top_patches(d, images, mode, _PATCHES, size)

        explained = stage.explained
        self.latest.ask(found)

    def _show_patches(self, found: tuple[Explained, Patches]) -> None:
        explained, patches = found
        if explained is not self._stage.explained:
            return
        self.plot.show_patches(patches.positive, patches.negative)
        images, source = explained.of.images, explained.sources[0]
        labels = np.zeros(source.grid.shape, np.uint8)
        for number, patch in enumerate((*patches.positive, *patches.negative), 1):
            place = images.places[patch.input]
            if place.volume == 0:
                labels[patch_box(images, place, patch.start, patch.image.shape[1:])] = number
        viewer, name = self._stage.viewer, f"{source.name} · {PATCHES}"
        shown = LayerUpdater(viewer, {PATCHES: find_earlier_layer(viewer.layers, name)})
        if shown.put(PATCHES, patches_layer(source, labels, len(patches.positive))):
            shown.layers[PATCHES].contour = 1

    def _on_patch(self, patch: Patch) -> None:
        """Move the viewer to a patch."""
        explained = self._stage.explained
        if explained is None:
            return
        images = explained.of.images
        place = images.places[patch.input]
        source = explained.sources[place.volume]
        across = images.layout.across
        if across is not None and source.grid.ndim == 3 and place.slice is not None:
            move_to(self._stage.viewer, source.grid, across, place.slice)


class WhatIfTab(Tab):
    """The output of the slice that the viewer shows, with the concept moved by a slider.

    Attributes
    ----------
    amount : FloatSlider
        In root mean squares of the layer's projections on the concept.
    channel : SpinBox
    """

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self.amount = FloatSlider(
            label="Amount", min=-5, max=5, step=0.1, value=0,
            tooltip="How far the layer is moved along the concept, in root mean squares of what it has of it",
        )  # fmt: skip
        self.reset = PushButton(text="Back to 0")
        self.channel = SpinBox(
            label="Output channel", min=0, max=10_000, value=0, tooltip="Of outputs of several images"
        )
        self._rows: Container[Any] = Container(widgets=[self.amount, self.reset, self.channel])
        self._rows.margins = (0, 0, 0, 0)
        self.said = QLabel("")
        self.said.setWordWrap(True)
        super().__init__(self._rows.native, self.said)
        self.latest = LatestTask(self._show, stage.failed)
        self._key: tuple[Any, ...] = ()
        self._what_if: WhatIf | None = None
        self._limits: dict[tuple[str, int], float] = {}
        self._shown: LayerUpdater[str] | None = None
        self._placed: Place | None = None
        self.amount.changed.connect(self.ask)
        self.channel.changed.connect(self.follow)
        self.reset.changed.connect(self._on_reset)

    def forget(self) -> None:
        """Keep nothing of an earlier explanation."""
        self.latest.drop()
        self._key, self._what_if, self._shown, self._limits = (), None, None, {}
        self.said.setText("")

    def renew(self) -> None:
        """Offer what there is of the layer, and follow it where something is shown."""
        explained = self._stage.explained
        self._rows.enabled = self._stage.decomposition is not None
        self.channel.visible = explained is not None and explained.of.loaded.sr is None
        self.follow()

    def follow(self, *_: Any) -> None:
        """Show another slice, layer or concept, if there is something to be replaced."""
        if self._shown is not None and any(layer in self._stage.viewer.layers for layer in self._shown.layers.values()):
            self.ask()

    def _on_reset(self) -> None:
        self.amount.value = 0

    def ask(self, *_: Any) -> None:
        """Have the output computed beside the viewer."""
        stage = self._stage
        d, explained = stage.decomposition, stage.explained
        if d is None or explained is None or not self.isVisible():
            return
        try:
            place = stage.place()
        except ValueError as error:
            stage.say(str(error))
            return
        layer, mode, amount, channel = stage.layer, min(stage.mode, d.k) - 1, self.amount.value, int(self.channel.value)
        key = (explained, layer, place, channel)

        def outcome() -> tuple[Explained, CaseResult]:
            if key != self._key or self._what_if is None:
                self._what_if, self._key = WhatIf(explained.of, layer, place, channel), key
            return explained, self._what_if.at(mode, amount)

        self.latest.ask(outcome)

    def _show(self, made: tuple[Explained, CaseResult]) -> None:
        explained, at = made
        if explained is not self._stage.explained:
            return
        source, viewer = explained.sources[0], self._stage.viewer
        moved = f"{at.layer} moved by {at.amount:+.1f} along concept {at.mode + 1}"
        if at.image is None or at.change is None or at.grid is None:
            assert at.numbers is not None
            order = np.argsort(-np.abs(at.numbers[:, 1] - at.numbers[:, 0]), kind="stable")[:5]
            rows = "; ".join(f"output {i}: {at.numbers[i, 0]:.4g} becomes {at.numbers[i, 1]:.4g}" for i in order)
            self.said.setText(f"{moved}. {rows}.")
            return
        finite = at.change[np.isfinite(at.change)]
        largest = float(np.abs(finite).max()) if finite.size else 0.0
        key = (at.layer, at.mode)
        limit = self._limits[key] = max(self._limits.get(key, 1e-6), largest)  # steady, so that amounts compare
        limits = source.limits
        if explained.of.loaded.sr is None:
            limits = (float(np.nanmin(at.image)), float(np.nanmax(at.image)) + 1e-6)
        there = self._shown is not None and any(one in viewer.layers for one in self._shown.layers.values())
        if self._shown is None or not there:
            names = {kind: f"{source.name} · {kind}" for kind in (WHAT_IF, CHANGE)}
            earlier = {kind: find_earlier_layer(viewer.layers, name) for kind, name in names.items()}
            self._shown = LayerUpdater(viewer, earlier)
        elif at.place != self._placed:
            self._shown = LayerUpdater(viewer, dict(self._shown.layers))  # places them anew
        self._placed = at.place
        about = {"layer": at.layer, "concept": at.mode + 1, "amount": at.amount}
        both = what_if_layers(source, at.image, at.change, at.grid, limits, limit, about)
        for kind, data in zip((WHAT_IF, CHANGE), both, strict=True):
            self._shown.put(kind, data)
        rms = float(np.sqrt(np.square(finite).mean())) if finite.size else 0.0
        self.said.setText(f"{moved}: the output changes by {largest:.4g} at most, {rms:.4g} root mean square.")
