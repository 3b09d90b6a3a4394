"""Settings of a reconstruction: keyword arguments, rows of the widgets, options of the shell commands."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from ..settings import Count, NotNegative, Positive

VOXELS_PER_GAUSSIAN = 30
"""Voxels per Gaussian where no number of Gaussians is given; few views do not support more detail."""
DEFAULT_ITERATIONS = 60
Prior = Literal["bm4d", "tv"]


class ReconstructSettings(BaseModel):
    """Settings of a reconstruction: image prior, number of Gaussians, and limits of the run.

    Attributes
    ----------
    gaussians : int, optional
        Number of Gaussians; one per 30 voxels if omitted.
    time_limit : float, optional
        Time limit, seconds; about half of it is for the voxels.
    prior : "bm4d" or "tv"
        Image prior: block matching and 4D filtering, or total variation.
    non_negative : bool
        Constrain intensities to be non-negative; ignored if measurements are negative.
    iterations : int, optional
        Number of ADMM iterations; 60 without a time limit.
    fit_iterations : int, optional
        Number of iterations of the Gaussian fit; 60 without a time limit.
    seed : int
        Seed of all random numbers.
    sparsity_weight, overlap_weight, smoothness_weight : float
        Weights of the penalties of the fit; see `napari_gsvolume.fitting.settings.FitSettings`.

    Examples
    --------
    >>> from napari_gsvolume.reconstruction import ReconstructSettings
    >>> ReconstructSettings(gaussians=2000, time_limit=60).prior
    'bm4d'
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    gaussians: Count | None = Field(
        None, description=f"Number of Gaussians (default: one per {VOXELS_PER_GAUSSIAN} voxels)"
    )
    time_limit: Positive | None = Field(None, description="Time limit, seconds; about half of it is for the voxels")
    prior: Prior = Field("bm4d", description="Image prior: BM4D block matching, or total variation")
    non_negative: bool = Field(
        True, description="Constrain intensities to be non-negative; ignored if measurements are negative"
    )
    iterations: Annotated[int, Field(ge=1, le=1000)] | None = Field(
        None, description=f"Number of ADMM iterations for the voxels ({DEFAULT_ITERATIONS} without a time limit)"
    )
    fit_iterations: Annotated[int, Field(ge=1, le=1000)] | None = Field(
        None, description=f"Number of iterations of the Gaussian fit ({DEFAULT_ITERATIONS} without a time limit)"
    )
    seed: Annotated[int, Field(ge=0)] = Field(0, description="Seed of all random numbers")
    sparsity_weight: NotNegative = Field(0.0, description="Sparsity penalty: weight of the mean |weight| of a Gaussian")
    overlap_weight: NotNegative = Field(0.0, description="Overlap penalty: weight of the mean overlap of Gaussians")
    smoothness_weight: NotNegative = Field(
        0.0, description="Smoothness penalty: weight of the mean squared gradient of the sum of Gaussians"
    )
