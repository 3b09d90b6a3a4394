"""Tabs of the Explain widget: maps and top patches of a concept, and outputs with a changed concept."""

from __future__ import annotations

from collections.abc import Sequence
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
from .worker import ALONE, EditedOutput, ExplainedImages, WhatIf, finished_maps, map_layer_steps, patch_box

_PATCHES = 6  # shown at each end of a concept


class MapsTab(Tab):
    """Map of the concept as a layer over each image, and the patches that express it most.

    Attributes
    ----------
    map, find : PushButton
    size : SpinBox
    """

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self.map = PushButton(
            text="Map concept", tooltip="Add a map of the projections of the layer on the concept, over the image"
        )
        self.find = PushButton(
            text="Top patches", tooltip="Show the patches with the strongest projections, in both directions"
        )
        self.size = SpinBox(label="Patch size", min=3, max=256, value=16, tooltip="Size of a patch in voxels")
        self._buttons: Container[Any] = Container(
            widgets=[self.map, self.find], layout="horizontal", labels=False, label=""
        )
        self._rows: Container[Any] = Container(widgets=[self._buttons, self.size])
        for rows in (self._buttons, self._rows):
            rows.margins = (0, 0, 0, 0)
        self.plot = PatchPlot(stage.viewer, self._on_patch)
        self.message = QLabel("Red: positive projection, blue: negative; the sign is a convention.")
        self.message.setWordWrap(True)
        super().__init__(self._rows.native, self.plot, self.message)
        self.latest = LatestTask(self._show_patches, stage.failed)
        self._maps: dict[str, Sequence[ConceptMaps]] = {}
        self.map.changed.connect(self._on_map)
        self.find.changed.connect(self._on_find)

    def forget(self) -> None:
        """Discard results of an earlier explanation."""
        self._maps = {}
        self.plot.show_patches((), ())

    def renew(self) -> None:
        """Enable the buttons if the layer is decomposed."""
        self._rows.enabled = self._stage.decomposition is not None

    def _on_map(self) -> None:
        stage = self._stage
        if stage.explained is None or stage.decomposition is None:
            return
        explanation, mode = stage.explained.explanation, min(stage.mode, stage.decomposition.k)
        maps = self._maps.get(stage.layer) or finished_maps(explanation, stage.layer, mode)
        if maps and maps[0].count >= mode:
            self.show_maps(maps)
        else:
            count = min(stage.decomposition.k, max(mode, explanation.settings.maps))
            stage.start(map_layer_steps, explanation, stage.layer, count, then=self.show_maps)

    def show_maps(self, made: Sequence[ConceptMaps]) -> None:
        """Keep the maps of a layer, and show that of the concept."""
        self._maps[made[0].layer] = made
        self._put(made)

    def _put(self, made: Sequence[ConceptMaps]) -> None:
        stage, viewer = self._stage, self._stage.viewer
        assert stage.explained is not None
        mode = min(stage.mode, made[0].count)
        for maps in made:
            source = stage.explained.sources[maps.volume]
            name = concept_name(source.name, maps.layer, mode)
            about = {"concept": mode, "model": stage.explained.explanation.model.name}
            layer = concept_layer(source, maps.layer, mode, maps.values[mode - 1], maps.grid, about)
            LayerUpdater(viewer, {name: find_earlier_layer(viewer.layers, name)}).put(name, layer)
        stage.say(f"'{name}' is the projection of the activations on concept {mode}.")

    def _on_find(self) -> None:
        stage = self._stage
        d = stage.decomposition
        if stage.explained is None or d is None:
            return
        images, mode, size = stage.explained.explanation.images, min(stage.mode, d.k) - 1, int(self.size.value)

        def found() -> tuple[ExplainedImages, Patches]:
            with ALONE:
                return explained, top_patches(d, images, mode, _PATCHES, size)

        explained = stage.explained
        self.latest.ask(found)

    def _show_patches(self, found: tuple[ExplainedImages, Patches]) -> None:
        explained, patches = found
        if explained is not self._stage.explained:
            return
        self.plot.show_patches(patches.positive, patches.negative)
        images, source = explained.explanation.images, explained.sources[0]
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
        """Move the viewer to the slice of a patch."""
        explained = self._stage.explained
        if explained is None:
            return
        images = explained.explanation.images
        place = images.places[patch.input]
        source = explained.sources[place.volume]
        across = images.layout.across
        if across is not None and source.grid.ndim == 3 and place.slice is not None:
            move_to(self._stage.viewer, source.grid, across, place.slice)


class WhatIfTab(Tab):
    """Output of the slice in the viewer, with the concept changed by a slider.

    Attributes
    ----------
    amount : FloatSlider
        Change in root mean squares of the projections on the concept.
    channel : SpinBox
    """

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self.amount = FloatSlider(
            label="Amount",
            min=-5,
            max=5,
            step=0.1,
            value=0,
            tooltip="Shift of the activations along the concept, in root mean squares of their projections",
        )
        self.reset = PushButton(text="Reset to 0", tooltip="Set the amount to 0")
        self.channel = SpinBox(
            label="Output channel", min=0, max=10_000, value=0, tooltip="Channel of outputs of several images"
        )
        self._rows: Container[Any] = Container(widgets=[self.amount, self.reset, self.channel])
        self._rows.margins = (0, 0, 0, 0)
        self.message = QLabel("")
        self.message.setWordWrap(True)
        super().__init__(self._rows.native, self.message)
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
        """Discard results of an earlier explanation."""
        self.latest.drop()
        self._key, self._what_if, self._shown, self._limits = (), None, None, {}
        self.message.setText("")

    def renew(self) -> None:
        """Enable the slider if the layer is decomposed, and update what is shown."""
        explained = self._stage.explained
        self._rows.enabled = self._stage.decomposition is not None
        self.channel.visible = explained is not None and explained.explanation.model.sr is None
        self.follow()

    def follow(self, *_: Any) -> None:
        """Update the output for another slice, layer or concept, if one is shown."""
        if self._shown is not None and any(layer in self._stage.viewer.layers for layer in self._shown.layers.values()):
            self.ask()

    def _on_reset(self) -> None:
        self.amount.value = 0

    def ask(self, *_: Any) -> None:
        """Compute the output in the background."""
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

        def edited_output() -> tuple[ExplainedImages, EditedOutput]:
            if key != self._key or self._what_if is None:
                self._what_if, self._key = WhatIf(explained.explanation, layer, place, channel), key
            return explained, self._what_if.at(mode, amount)

        self.latest.ask(edited_output)

    def _show(self, made: tuple[ExplainedImages, EditedOutput]) -> None:
        explained, at = made
        if explained is not self._stage.explained:
            return
        source, viewer = explained.sources[0], self._stage.viewer
        shift = f"{at.layer} shifted by {at.amount:+.1f} along concept {at.mode + 1}"
        if at.image is None or at.change is None or at.grid is None:
            assert at.numbers is not None
            order = np.argsort(-np.abs(at.numbers[:, 1] - at.numbers[:, 0]), kind="stable")[:5]
            rows = "; ".join(f"output {i}: {at.numbers[i, 0]:.4g} becomes {at.numbers[i, 1]:.4g}" for i in order)
            self.message.setText(f"{shift}. {rows}.")
            return
        finite = at.change[np.isfinite(at.change)]
        largest = float(np.abs(finite).max()) if finite.size else 0.0
        key = (at.layer, at.mode)
        limit = self._limits[key] = max(
            self._limits.get(key, 1e-6), largest
        )  # constant, so that amounts can be compared
        limits = source.limits
        if explained.explanation.model.sr is None:
            limits = (float(np.nanmin(at.image)), float(np.nanmax(at.image)) + 1e-6)
        present = self._shown is not None and any(one in viewer.layers for one in self._shown.layers.values())
        if self._shown is None or not present:
            names = {kind: f"{source.name} · {kind}" for kind in (WHAT_IF, CHANGE)}
            earlier = {kind: find_earlier_layer(viewer.layers, name) for kind, name in names.items()}
            self._shown = LayerUpdater(viewer, earlier)
        elif at.place != self._placed:
            self._shown = LayerUpdater(viewer, dict(self._shown.layers))  # places them again
        self._placed = at.place
        about = {"layer": at.layer, "concept": at.mode + 1, "amount": at.amount}
        both = what_if_layers(source, at.image, at.change, at.grid, limits, limit, about)
        for kind, data in zip((WHAT_IF, CHANGE), both, strict=True):
            self._shown.put(kind, data)
        rms = float(np.sqrt(np.square(finite).mean())) if finite.size else 0.0
        self.message.setText(f"{shift}: the output changes by {largest:.4g} at most, {rms:.4g} root mean square.")
