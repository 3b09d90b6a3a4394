"""Layers of projections and of reconstructed volumes."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ...grid import Grid
from ...tomography.scan import Mode, Scan
from ...units import mm_per_unit
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
    from ...reconstruction import Reprojection
    from ...tomography.projections import Projections


def reconstruction_layer(
    name: str, volume: NDArray[np.float32], grid: Grid, limits: tuple[float, float], metadata: dict[str, Any]
) -> LayerData:
    """Return a reconstructed volume as an image layer "name · reconstruction"."""
    _, options, kind = density_layer(name, volume, grid_placement(grid), limits, metadata)
    return volume, options | {"name": f"{name} · reconstruction"}, kind


def reprojection_layers(stack: SourceVolume, scan: Scan, reprojection: Reprojection) -> tuple[LayerData, LayerData]:
    """Return the projections of a reconstructed volume, and measured minus reprojected, as image layers.

    The layer "name · reprojection" has the contrast limits and the geometry of the measured stack, the layer "name ·
    projection residual" has a diverging colormap; both lie in the place of the stack.
    """
    _, options, kind = density_layer(
        stack.name, reprojection.images, stack.placement, stack.limits, _projection_metadata(scan, "xray")
    )
    images = reprojection.images, options | {"name": f"{stack.name} · reprojection"}, kind
    residual = reprojection.residual
    _, options, kind = residual_layer(stack.name, residual, stack.placement, residual_limit(residual), {})
    return images, (residual, options | {"name": f"{stack.name} · projection residual"}, kind)


def projection_layer(name: str, projections: Projections, grid: Grid) -> LayerData:
    """Return a stack of projections as an image layer "name · X-rays", centred on the volume.

    Its axes are view, v and u. The views span the extent of the first axis of the volume, so that they use the whole
    slider. The geometry is in the metadata (`scan_of`).
    """
    images, scan = projections.images, projections.scan
    corners = np.stack(np.meshgrid(*[(-0.5, n - 0.5) for n in grid.shape], indexing="ij"), -1).reshape(-1, 3)
    world = corners @ grid.affine[:-1, :-1].T + grid.affine[:-1, -1]
    mm = mm_per_unit(grid.units[0])  # mm per world unit
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
    """Return the acquisition geometry in the metadata of a layer; None if there is none."""
    entry = metadata.get(METADATA_KEY)
    found = entry.get("scan") if isinstance(entry, dict) else None
    return None if found is None else Scan.from_dict(found)


def projection_kind(metadata: dict[str, Any]) -> Mode:
    """Return the kind of projection in the metadata of a layer; line integrals by default."""
    entry = metadata.get(METADATA_KEY)
    kind: Mode = entry.get("kind", "xray") if isinstance(entry, dict) else "xray"
    return kind


def contrast_limits_of(volume: NDArray[np.float32]) -> tuple[float, float]:
    """Return robust contrast limits of a volume: its 0.5 and 99.8 percentiles, from 0 where that is near."""
    low, high = (float(v) for v in np.percentile(volume, (0.5, 99.8)))
    low = 0.0 if 0 <= low < 0.2 * high else low
    return low, high if high > low else low + max(math.ulp(low), 1e-6)
