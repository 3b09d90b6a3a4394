"""Combo box of layers."""

from __future__ import annotations

from collections.abc import Callable

from magicgui.widgets import ComboBox
from napari.layers import Layer
from napari.viewer import Viewer


class LayerChoice(ComboBox):
    """Combo box of the viewer's layers of one kind, or none of them.

    Parameters
    ----------
    viewer : napari.Viewer
    label, tooltip : str
    accepts : callable
        Predicate: is a layer offered?
    none : str, optional
        Label of the choice of no layer; without it, a layer has to be chosen.
    prefers : callable, optional
        Predicate of the layers that come first.
    """

    def __init__(
        self,
        viewer: Viewer,
        label: str,
        accepts: Callable[[Layer], bool],
        tooltip: str,
        *,
        none: str | None = None,
        prefers: Callable[[Layer], bool] = lambda _: True,
    ) -> None:
        def offered(_: ComboBox) -> list[Layer]:
            return sorted(filter(accepts, viewer.layers), key=lambda layer: not prefers(layer))

        if none is not None:
            self.null_string = none
        super().__init__(label=label, tooltip=tooltip, nullable=none is not None, choices=offered)
