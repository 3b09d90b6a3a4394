"""Display of a fit: in napari, or as a picture without a display."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..fitting import FitResult
from ..gaussians import GaussianVolume
from ..grid import Grid

_NAME = "Anatomical phantom"
_CORNERS = 32  # corners of the outline of an ellipse


def has_display() -> bool:
    """Return True if a window can be opened: there is a screen and a Qt binding."""
    if sys.platform == "linux" and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        return False
    try:
        import qtpy.QtWidgets  # noqa: F401
    except ImportError:
        return False
    return True


def show_in_napari(volume: NDArray[np.float32], grid: Grid, result: FitResult) -> None:
    """Open napari with the volume, the density, the residual and the Gaussians; return when it is closed."""
    import napari
    from napari.layers import Layer

    from .layers.conversion import density_layer, grid_placement, residual_layer, residual_limit
    from .layers.gaussians import gaussian_layer

    place, metadata = grid_placement(grid), result.gaussians.metadata
    limits = _limits(volume)
    residual = volume - result.reconstruction
    viewer = napari.Viewer(title=_title(grid, result))
    viewer.add_image(volume, name=_NAME, contrast_limits=limits, rgb=False, **place)
    for layer in (
        density_layer(_NAME, result.reconstruction, place, limits, metadata),
        residual_layer(_NAME, residual, place, residual_limit(residual), metadata),
        gaussian_layer(_NAME, result.gaussians),
    ):
        viewer.add_layer(Layer.create(*layer))
    napari.run()


def save_picture(path: Path, volume: NDArray[np.float32], grid: Grid, result: FitResult) -> None:
    """Save the middle slice across the second axis: volume, reconstruction, residual, outlines of the Gaussians."""
    from matplotlib.collections import LineCollection
    from matplotlib.figure import Figure

    middle = grid.shape[1] // 2
    source, reconstruction = volume[:, middle], result.reconstruction[:, middle]
    residual = source - reconstruction
    low, high = _limits(volume)
    limit = max(float(np.percentile(np.abs(residual), 99.5)), 1e-6)
    grey: dict[str, Any] = {"cmap": "gray", "vmin": low, "vmax": high}
    panels: list[tuple[str, NDArray[np.float32], dict[str, Any]]] = [
        ("Volume", source, grey),
        ("Reconstruction", reconstruction, grey),
        (f"Residual, ± {limit:.3g}", residual, {"cmap": "RdBu_r", "vmin": -limit, "vmax": limit}),
        ("Gaussians, one sigma", source, grey),
    ]
    figure = Figure(figsize=(16, 4.7), layout="constrained")
    figure.suptitle(_title(grid, result))
    aspect = grid.voxel_size[0] / grid.voxel_size[2]
    for axes, (name, image, look) in zip(figure.subplots(1, len(panels)), panels, strict=True):
        axes.imshow(image, origin="lower", aspect=aspect, interpolation="nearest", **look)
        axes.set(title=name, autoscale_on=False)  # Gaussians may reach beyond the image
        axes.set_axis_off()
    outlines, weights = _outlines(result.gaussians, axis=1, position=middle)
    # Red for positive, blue for negative weights, as in the residual.
    colours = np.where(weights[:, None] > 0, [[0.84, 0.19, 0.15, 0.8]], [[0.27, 0.46, 0.71, 0.8]])
    axes.add_collection(LineCollection(list(outlines[:, :, ::-1]), colors=colours, linewidths=0.6))
    figure.savefig(path, dpi=120)


def _limits(volume: NDArray[np.float32]) -> tuple[float, float]:
    return float(volume.min()), float(volume.max())


def _title(grid: Grid, result: FitResult) -> str:
    similarity = "" if result.ssim is None else f", SSIM {result.ssim:.3f}"
    return (
        f"{_NAME}, {' x '.join(map(str, grid.shape))} voxels as {result.n_gaussians:,} Gaussians: "
        f"PSNR {result.psnr_db:.1f} dB{similarity}, {result.seconds:.0f} s"
    )


def _outlines(gaussians: GaussianVolume, axis: int, position: float) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
    """Return the intersections of the one-sigma ellipsoids with the plane at `position` along an axis.

    Returns
    -------
    outlines : ndarray, (M, corners, 2)
        Index coordinates on the two other axes, in their order.
    weights : ndarray, (M,)
        Weights of the M Gaussians in the plane.
    """
    others = [other for other in range(gaussians.ndim) if other != axis]
    means, W = gaussians.means.double().numpy(), gaussians.factors.double().numpy()
    P = W @ W.transpose(0, 2, 1)
    # With d = (u, t), t the distance to the plane: d^T P d = |L^T (u - c)|^2 + rest, where P_uu = L L^T.
    t = position - means[:, axis]
    P_uu, P_ut = P[:, others][:, :, others], P[:, others, axis]
    c = -np.linalg.solve(P_uu, P_ut[:, :, None])[:, :, 0] * t[:, None]
    rest = P[:, axis, axis] * t**2 + (P_ut * c).sum(1) * t
    met = rest < 1
    angles = np.linspace(0, 2 * np.pi, _CORNERS)
    circle = np.stack([np.cos(angles), np.sin(angles)])
    ellipses = np.linalg.solve(np.linalg.cholesky(P_uu[met]).transpose(0, 2, 1), circle)  # (M, 2, corners)
    ellipses *= np.sqrt(1 - rest[met])[:, None, None]
    ellipses += (means[:, others] + c)[met][:, :, None]
    return ellipses.transpose(0, 2, 1), gaussians.weights.numpy()[met]
