"""Settings of a circular scan for a form: few numbers instead of a geometry file."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import BaseModel, Field

from .presets import spread_angles
from .scan import Beam, Scan, ScanError, circular_scan


class OrbitSettings(BaseModel):
    """Settings of a circular scan around z with evenly spread gantry angles."""

    beam: Beam = Field("parallel", description="Beam geometry: parallel, fan or cone")
    arc: float = Field(180.0, gt=0, le=360, description="Arc over which the gantry angles are evenly spread, degrees")
    source_to_axis: float | None = Field(
        None, gt=0, description="Distance from the source of a fan or cone to the rotation axis, mm"
    )
    source_to_detector: float | None = Field(
        None, gt=0, description="Distance from the source of a fan or cone to the detector, mm"
    )
    pixel_size: float = Field(1.0, gt=0, description="Pixel pitch of the detector, mm")
    offset: float = Field(0.0, description="Detector offset along the rows from the central ray, mm")
    voxel_size: float | None = Field(
        None, gt=0, description="Voxel size, mm (default: pixel pitch, demagnified to the rotation axis)"
    )
    width: int | None = Field(
        None, ge=1, le=4096, description="Number of voxels along y and x (default: field of view of the detector)"
    )
    height: int | None = Field(
        None, ge=1, le=4096, description="Number of voxels along z (default: field of view of the detector)"
    )

    def scan(self, stack: Sequence[int]) -> Scan:
        """Return the geometry of a stack of projections of shape (K, V, U).

        Raises
        ------
        ScanError
            If a fan or cone has no distances, or they do not fit the volume.
        """
        views, nv, nu = stack
        distances: dict[str, float] = {}
        magnification = 1.0
        if self.beam != "parallel":
            if self.source_to_axis is None or self.source_to_detector is None:
                raise ScanError(f"A {self.beam} needs the distances from its source to the axis and to the detector.")
            distances = {"source_to_axis": self.source_to_axis, "source_to_detector": self.source_to_detector}
            magnification = self.source_to_detector / self.source_to_axis
        voxel = self.pixel_size / magnification if self.voxel_size is None else self.voxel_size
        seen = self.pixel_size / magnification / voxel
        upright = seen * magnification if self.beam == "fan" else seen  # rows of a fan are not magnified
        width, height = self.width or max(1, round(nu * seen)), self.height or max(1, round(nv * upright))
        return circular_scan(
            (height, width, width),
            voxel,
            spread_angles(views, self.arc),
            self.beam,
            pixels=(nu, nv),
            pixel_size=(self.pixel_size, self.pixel_size),
            offset=(self.offset, 0.0),
            **distances,
        )
