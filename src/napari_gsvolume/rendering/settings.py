"""The parameters of training splats, once: keyword arguments, rows of the widget, options of the shell."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from ..settings import Count, NotNegative, Positive

ITERATIONS = 3000
RenderMode = Literal["dvr", "mip", "minip", "mean", "xray"]
"""What a pixel shows: colours, the largest, smallest or mean intensity along its ray, or the line integral."""


class TrainSettings(BaseModel):
    """How splats are trained on views, and when to stop."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    gaussians: Count = Field(40_000, description="Number of Gaussians, at most", json_schema_extra={"panel": "Splats"})
    views: Annotated[int, Field(ge=2, le=2000)] = Field(
        128, description="Views to learn from, all around the volume", json_schema_extra={"panel": "Training views"}
    )
    size: Annotated[int, Field(ge=16, le=2048)] = Field(
        256, description="Pixels of a view's sides", json_schema_extra={"panel": "Training views"}
    )
    sh_degree: Annotated[int, Field(ge=0, le=3)] = Field(
        3,
        description="Degree of the spherical harmonics: how colours change with the direction of view",
        json_schema_extra={"panel": "Splats"},
    )
    time_limit: Positive | None = Field(
        None,
        description="Stop after this many seconds, those of the references too",
        json_schema_extra={"panel": "Optimization"},
    )
    iterations: Count | None = Field(
        None,
        description=f"Views learnt from, one after another; {ITERATIONS} if no time is given",
        json_schema_extra={"panel": "Optimization"},
    )
    solver: Literal["adam", "sgd"] = Field(
        "adam", description="Adam, or SGD with momentum", json_schema_extra={"panel": "Optimization"}
    )
    learning_rate: Positive = Field(
        1.0, description="Factor on the tuned rates", json_schema_extra={"panel": "Optimization"}
    )
    densify: bool = Field(
        True,
        description="Remove Gaussians that are not seen and split those that are pulled most",
        json_schema_extra={"panel": "Splats"},
    )
    lambda_l1: NotNegative = Field(
        0.0, description="Weight of the mean absolute difference", json_schema_extra={"panel": "Losses"}
    )
    lambda_dssim: NotNegative = Field(0.02, description="Weight of 1 - SSIM", json_schema_extra={"panel": "Losses"})
    lambda_sparsity: NotNegative = Field(
        0.0, description="Weight of the mean opacity", json_schema_extra={"panel": "Losses"}
    )
    lambda_overlap: NotNegative = Field(
        0.0,
        description="Weight of the mean overlap of a Gaussian with its neighbours",
        json_schema_extra={"panel": "Losses"},
    )
    lambda_smoothness: NotNegative = Field(
        0.0,
        description="Weight of the mean squared gradient of the Gaussians, lengths in pixels",
        json_schema_extra={"panel": "Losses"},
    )
    hold_out: Annotated[int, Field(ge=1, le=200)] = Field(
        8, description="Other views, which only judge", json_schema_extra={"panel": "Training views"}
    )
    orthographic: bool = Field(
        False, description="Parallel rays instead of perspective", json_schema_extra={"panel": "Training views"}
    )
    device: str = Field(
        "auto",
        description="auto: a GPU where gsplat can be used, else the CPU; cpu; or cuda",
        json_schema_extra={"panel": "Optimization"},
    )
    seed: Annotated[int, Field(ge=0)] = Field(
        0, description="Seed of all that is random", json_schema_extra={"panel": "Optimization"}
    )
