"""The parameters of a super-resolution, once: keyword arguments, rows of the widget, options of the shell."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from ..settings import Positive

Axis = Literal["z", "y", "x"]
Axes = Literal["in-plane", "through-plane"]
DegradationKind = Literal["block-mean", "bicubic", "psf"]
BasisKind = Literal["bspline", "legendre", "periodic", "mirrored", "rbf"]
Of = Literal["slice", "slices", "unfolding"]
Scheme = Literal["spline", "a", "b"]


class SuperResolveSettings(BaseModel):
    """What is made finer, how, and what the scanner is taken to have done."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    factor: Annotated[float, Field(gt=1, le=16)] = Field(2.0, description="Times as many voxels along each axis")
    scheme: Scheme = Field(
        "spline", description="What predicts the finer voxels: a cubic B-spline, or a model trained by scheme a or b"
    )
    axes: Axes = Field("in-plane", description="Make pixels of the slices finer, or make more slices")
    axis: Axis = Field("z", description="Along which the slices are stacked")
    degradation: DegradationKind = Field("block-mean", description="How a voxel measured the finer ones")
    fwhm: Positive = Field(1.0, description="Full width at half maximum of the psf, voxels of the input")
    project: bool = Field(True, description="Make the result agree exactly with the input, once degraded")
    ensemble: bool = Field(
        True, description="Of a model: the mean of what it makes of flipped and turned slices, which takes longer"
    )
