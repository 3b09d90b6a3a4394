"""The parameters of a recovery, once: keyword arguments, rows of the widget, options of the shell."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from ..settings import Count, NotNegative, Positive

VOXELS_PER_GAUSSIAN = 30
"""Of an open number of Gaussians: more are slower, and what few views tell does not fill them."""
DEFAULT_ITERATIONS = 60
Prior = Literal["blocks", "tv"]


class ReconstructSettings(BaseModel):
    """How a volume is recovered from measurements, and when to stop."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    gaussians: Count | None = Field(
        None, description=f"Number of Gaussians; one for every {VOXELS_PER_GAUSSIAN} voxels if not given"
    )
    time_limit: Positive | None = Field(None, description="Stop after this many seconds; about half are for the voxels")
    prior: Prior = Field(
        "blocks", description="What volumes look like: similar blocks repeat, or total variation is small"
    )
    non_negative: bool = Field(True, description="Intensities are not below zero, unless measurements are")
    iterations: Annotated[int, Field(ge=1, le=1000)] | None = Field(
        None,
        description=f"Iterations between measurements and prior; {DEFAULT_ITERATIONS} if neither is given",
    )
    fit_iterations: Annotated[int, Field(ge=1, le=1000)] | None = Field(
        None, description=f"Iterations of the fit of the Gaussians; {DEFAULT_ITERATIONS} likewise"
    )
    seed: Annotated[int, Field(ge=0)] = Field(0, description="Seed of all that is random")
    lambda_sparsity: NotNegative = Field(0.0, description="Weight of the mean |weight| of the Gaussians")
    lambda_overlap: NotNegative = Field(0.0, description="Weight of their mean overlap")
    lambda_smoothness: NotNegative = Field(0.0, description="Weight of their mean squared gradient")
