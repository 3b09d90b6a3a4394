"""Choice of a layer."""

from __future__ import annotations

from collections.abc import Callable

from magicgui.widgets import ComboBox
from napari.layers import Layer
from napari.viewer import Viewer


class LayerChoice(ComboBox):
    """A choice among the viewer's layers of a kind, or none of them.

    Parameters
    ----------
    viewer : napari.Viewer
    label, tooltip : str
    accepts : callable
        Whether a layer is offered.
    none : str, optional
        What it is called that no layer is chosen; if not given, one has to be.
    prefers : callable, optional
        Which layers come before the others.
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
