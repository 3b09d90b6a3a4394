"""Layers of projections and of reconstructed volumes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ...grid import Grid
from ...tomography.scan import Mode, Scan
from ...units import voxel_size_mm
from .conversion import (
    METADATA_KEY,
    PROJECTION_KINDS,
    LayerData,
    SourceVolume,
    density_layer,
    grid_placement,
    residual_layer,
    residual_limit,
    value_limits,
)

if TYPE_CHECKING:
    from ...tomography.projections import Projections


def recovered_layer(
    name: str, volume: NDArray[np.float32], grid: Grid, limits: tuple[float, float], metadata: dict[str, Any]
) -> LayerData:
    """Return a volume recovered on a grid as an image layer "name · recovered"."""
    _, options, kind = density_layer(name, volume, grid_placement(grid), limits, metadata)
    return volume, options | {"name": f"{name} · recovered"}, kind


def reprojected_layers(
    stack: SourceVolume, scan: Scan, reprojected: NDArray[np.float32], residual: NDArray[np.float32]
) -> tuple[LayerData, LayerData]:
    """Return what a recovered volume's projections are, and measured - reprojected, where the measured stack is.

    Image layers "name · reprojected", in the stack's contrast limits and with its geometry, and "name · projection
    residual", diverging.
    """
    _, options, kind = density_layer(
        stack.name, reprojected, stack.placement, stack.limits, _projection_metadata(scan, "xray")
    )
    again = reprojected, options | {"name": f"{stack.name} · reprojected"}, kind
    _, options, kind = residual_layer(stack.name, residual, stack.placement, residual_limit(residual), {})
    return again, (residual, options | {"name": f"{stack.name} · projection residual"}, kind)


def projection_layer(name: str, projections: Projections, grid: Grid) -> LayerData:
    """Return a stack of views as an image layer "name · X-rays", around the middle of the voxels that it is of.

    Its axes are view, v and u. The views are spread over the extent of the voxels' first axis, so that they take all of
    the slider. The geometry is in the metadata (`scan_of`).
    """
    images, scan = projections.images, projections.scan
    corners = np.stack(np.meshgrid(*[(-0.5, n - 0.5) for n in grid.shape], indexing="ij"), -1).reshape(-1, 3)
    world = corners @ grid.affine[:-1, :-1].T + grid.affine[:-1, -1]
    mm = float((voxel_size_mm(grid) / grid.voxel_size)[0])  # a unit of the world
    pixel = np.linalg.norm([scan.v[0], scan.u[0]], axis=1) / mm
    scale = np.array([np.ptp(world[:, 0]) / len(images), *pixel])
    options = {
        "name": f"{name} · {PROJECTION_KINDS[projections.kind]}",
        "contrast_limits": value_limits(images),
        "colormap": "gray",
        "scale": tuple(scale),
        "translate": tuple((world.min(0) + world.max(0)) / 2 - scale * (np.array(images.shape) - 1) / 2),
        "units": grid.units,
        "axis_labels": ("view", "v", "u"),
        "rgb": False,
    }
    return images, {**options, "metadata": {METADATA_KEY: _projection_metadata(scan, projections.kind)}}, "image"


def _projection_metadata(scan: Scan, kind: Mode) -> dict[str, Any]:
    return {"scan": scan.to_dict(), "kind": kind}


def scan_of(metadata: dict[str, Any]) -> Scan | None:
    """Return the geometry of the projections whose metadata this is; None if it has none."""
    entry = metadata.get(METADATA_KEY)
    found = entry.get("scan") if isinstance(entry, dict) else None
    return None if found is None else Scan.from_dict(found)


def projection_kind(metadata: dict[str, Any]) -> Mode:
    """Return what the pixels of projections are whose metadata this is; line integrals if it does not say."""
    entry = metadata.get(METADATA_KEY)
    kind: Mode = entry.get("kind", "xray") if isinstance(entry, dict) else "xray"
    return kind
