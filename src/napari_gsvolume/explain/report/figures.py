"""Figures of a report, drawn by matplotlib without pyplot or a display."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import colormaps, rc_context
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray

from ...svd.decomposition import effective_rank
from ..decomposition.attention import Attention
from ..decomposition.components import Components
from ..models.outputs import layer_label
from ..tracking.records import Evolution

_LINES = 24  # largest number of lines in one plot
_PANEL = 2.0  # inches
_ROUNDING = 1e-6  # relative rounding error of float32: smaller values are not drawn


@dataclass(frozen=True)
class Picture:
    """Picture for HTML: a data URL, and the alternative text."""

    source: str
    alternative: str


def spectra(layers: Mapping[str, Components]) -> Picture:
    """Return the figure of the singular values of layers, relative to their first, and of their effective ranks."""
    known = {name: d for name, d in layers.items() if d.k}
    figure = Figure(figsize=(9.5, 3.6), layout="constrained")
    values, ranks = figure.subplots(1, 2)
    colours = colormaps["viridis"](np.linspace(0, 0.92, max(2, len(known))))
    for colour, (name, d) in list(zip(colours, known.items(), strict=False))[:: math.ceil(len(known) / _LINES) or 1]:
        s = d.spectrum[d.spectrum > _ROUNDING * d.spectrum[0]]
        values.plot(np.arange(1, len(s) + 1), s / s[0], color=colour, lw=1.2, marker=".", ms=3, label=_short(name))
    values.set(yscale="log", xlabel="mode", ylabel="singular value / first", title="Singular values")
    if max((len(d.spectrum) for d in known.values()), default=0) > 32:
        values.set_xscale("log")
    depth = np.arange(len(known))
    ranks.plot(depth, [effective_rank(d.spectrum) / d.features for d in known.values()], "o-", color="#3b6ea8", ms=4)
    ranks.set(ylabel="effective rank / features", ylim=(0, 1.02), title="Fraction of the features in use")
    step = math.ceil(len(known) / 16) or 1
    ranks.set_xticks(depth[::step], [_short(name) for name in list(known)[::step]], rotation=60, ha="right", fontsize=7)
    if len(known) <= 12:
        values.legend(fontsize=6.5, frameon=False)
    return _svg(figure, "Singular values of each layer, and effective rank by layer")


def concepts(image: NDArray[Any], maps: NDArray[Any], name: str) -> Picture:
    """Return the figure of a slice (y, x), and of concept maps (k, y', x') over the same extent laid over it."""
    figure = Figure(figsize=(_PANEL * (len(maps) + 1), _height(image) + 0.3), layout="constrained")
    axes = figure.subplots(1, len(maps) + 1, squeeze=False)[0]
    low, high = np.percentile(image, (0.5, 99.5))
    extent = (-0.5, image.shape[1] - 0.5, image.shape[0] - 0.5, -0.5)
    for ax in axes:
        ax.imshow(image, cmap="gray", vmin=low, vmax=max(high, low + 1e-12), extent=extent)
        ax.set_axis_off()
    axes[0].set_title("slice", fontsize=8)
    for mode, (ax, values) in enumerate(zip(axes[1:], maps, strict=True)):
        limit = float(np.nanpercentile(np.abs(values), 99.5)) if np.isfinite(values).any() else 0.0
        part = np.nan_to_num(values / limit) if limit else np.zeros_like(values)
        colours = colormaps["RdBu_r"](np.clip(part / 2 + 0.5, 0, 1))
        colours[..., 3] = 0.9 * np.clip(np.abs(part), 0, 1)
        ax.imshow(colours, extent=extent, interpolation="nearest")
        ax.set_title(f"concept {mode + 1}, ±{limit:.3g}", fontsize=8)
    return _png(figure, f"Concept maps of {name} over a slice")


def patterns(shown: NDArray[Any], pairs: Sequence[tuple[float, NDArray[Any], NDArray[Any]]], name: str) -> Picture:
    """Return the figure of a Jacobian: the input, with input patterns above and output patterns below."""
    images = all(after.ndim == 2 for _, _, after in pairs)
    count = len(pairs) + 1
    figure = Figure(figsize=(_PANEL * count, 2 * _height(shown) + 0.5), layout="constrained")
    axes = figure.subplots(2, count, squeeze=False)
    axes[0, 0].imshow(shown, cmap="gray")
    axes[0, 0].set_title("at this input", fontsize=8)
    for mode, (value, before, after) in enumerate(pairs, 1):
        _diverging(axes[0, mode], before)
        axes[0, mode].set_title(f"input {mode}: σ = {value:.4g}", fontsize=8)
        if images:
            _diverging(axes[1, mode], after)
        else:
            axes[1, mode].bar(np.arange(after.size), after.ravel(), color="#3b6ea8")
            axes[1, mode].tick_params(labelsize=6)
        axes[1, mode].set_title(f"output {mode}", fontsize=8)
    for ax in [*axes[0], *(axes[1] if images else axes[1, :1])]:
        ax.set_axis_off()
    return _png(figure, f"Input and output patterns of the Jacobian of {name}")


def attention(found: Attention, inputs: int) -> Picture:
    """Return the figure of attention: similarity of heads, their weights in the modes, and maps of the first modes."""
    shown = min(3, found.modes.k)
    figure = Figure(figsize=(_PANEL * (2 + shown) + 1.5, _PANEL + 0.6), layout="constrained")
    axes = figure.subplots(1, 2 + shown, squeeze=False)[0]
    picture = axes[0].imshow(found.similarity, vmin=0, vmax=1, cmap="magma")
    axes[0].set_title("similarity of heads", fontsize=8)
    figure.colorbar(picture, ax=axes[0], shrink=0.7).ax.tick_params(labelsize=6)
    limit = float(np.abs(found.modes.concepts).max()) or 1.0
    axes[1].imshow(found.modes.concepts, cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto")
    axes[1].set_title("heads in modes", fontsize=8)
    for ax, (x, y) in zip(axes, (("head", "head"), ("mode", "head")), strict=False):
        ax.set_xlabel(x, fontsize=7)
        ax.set_ylabel(y, fontsize=7)
        ax.tick_params(labelsize=6)
    for mode in range(shown):
        values = np.mean([found.modes.map(mode, number) for number in range(inputs)], axis=0)
        _diverging(axes[2 + mode], values)
        axes[2 + mode].set_title(f"mode {mode + 1}", fontsize=8)
        axes[2 + mode].set_xlabel("key", fontsize=7)
        axes[2 + mode].set_ylabel("query", fontsize=7)
        axes[2 + mode].tick_params(labelsize=6)
    return _png(figure, "Similarity of attention heads, and their modes")


def evolution(layer: str, found: Evolution) -> Picture:
    """Return the figure of a layer over epochs: deviations, cosines with the first and the previous record, ranks."""
    figure = Figure(figsize=(9.5, 2.7), layout="constrained")
    values, cosines, ranks = figure.subplots(1, 3)
    present = np.flatnonzero(found.values.max(0) > 0)[:8]
    colours = colormaps["tab10"](np.arange(10))
    for colour, j in zip(colours, present, strict=False):
        values.plot(found.epochs, found.values[:, j], "-", marker=".", ms=4, lw=1.2, color=colour, label=str(j + 1))
        cosines.plot(found.epochs, found.to_first[:, j], "-", marker=".", ms=4, lw=1.2, color=colour)
        cosines.plot(found.epochs, found.to_previous[:, j], ":", lw=1.0, color=colour)
    values.set(xlabel="epoch", ylabel="standard deviation", ylim=(0, None), title=_short(layer))
    values.legend(fontsize=6, ncols=2, frameon=False, title="component", title_fontsize=6)
    cosines.set(
        xlabel="epoch", ylabel="cosine", ylim=(-1.05, 1.05), title="with the first (—) and previous (···) epoch"
    )
    ranks.plot(found.epochs, found.effective_ranks, "o-", ms=4, label="effective rank", color="#3b6ea8")
    ranks.plot(found.epochs, found.stable_ranks, "s-", ms=3, label="stable rank", color="#c46a2d")
    ranks.set(xlabel="epoch", ylim=(0, None), title="ranks")
    ranks.legend(fontsize=6.5, frameon=False)
    for ax in (values, cosines, ranks):
        ax.title.set_fontsize(9)
    return _svg(figure, f"Evolution of the layer {layer}")


def ranks_over_epochs(layers: Mapping[str, Evolution]) -> Picture:
    """Return the figure of the effective ranks of all layers over epochs."""
    figure = Figure(figsize=(9.5, 3.4), layout="constrained")
    ax = figure.subplots()
    names = list(layers)[:: math.ceil(len(layers) / _LINES) or 1]
    colours = colormaps["viridis"](np.linspace(0, 0.92, max(2, len(names))))
    for colour, name in zip(colours, names, strict=False):
        ax.plot(layers[name].epochs, layers[name].effective_ranks, ".-", color=colour, label=_short(name))
    ax.set(xlabel="epoch", ylabel="effective rank", ylim=(0, None), title="Effective rank of each layer")
    ax.legend(fontsize=6.5, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return _svg(figure, "Effective rank of each layer over epochs")


def plane(tensor: ArrayLike) -> NDArray[Any]:
    """Return the image of a pattern, (1, channels, *axes): its strongest channel, and the strongest slice of that.

    Patterns with fewer than two axes are returned as a row of numbers.
    """
    array = np.asarray(tensor)
    array = array[0] if array.ndim > 1 and len(array) == 1 else array
    if array.ndim < 2:
        return array.ravel()
    if array.ndim > 2:
        array = array[int(np.argmax(np.square(array).reshape(len(array), -1).sum(1)))]
    if array.ndim > 2:
        array = array[int(np.argmax(np.square(array).reshape(len(array), -1).sum(1)))]
    return array


def _diverging(ax: Any, values: NDArray[Any]) -> None:
    limit = float(np.nanmax(np.abs(values))) or 1.0
    ax.imshow(values, cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="nearest")


def _height(image: NDArray[Any]) -> float:
    return float(np.clip(_PANEL * image.shape[0] / image.shape[1], 0.6, 4.0))


def _short(name: str) -> str:
    name = layer_label(name)
    return name if len(name) <= 28 else f"…{name[-27:]}"


def _svg(figure: Figure, alternative: str) -> Picture:
    # As an image: the ids of several drawings would collide if they were parts of the page.
    file = io.BytesIO()
    with rc_context({"svg.fonttype": "path", "svg.hashsalt": "gsvolume"}):
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    return _image("image/svg+xml", file.getvalue(), alternative)


def _png(figure: Figure, alternative: str) -> Picture:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=110, metadata={"Software": None})
    return _image("image/png", file.getvalue(), alternative)


def _image(kind: str, content: bytes, alternative: str) -> Picture:
    return Picture(f"data:{kind};base64,{base64.b64encode(content).decode()}", alternative)
