"""Settings of splat training: one model for keyword arguments, widget rows and command-line options."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from ..settings import Count, NotNegative, Positive

ITERATIONS = 3000
"""Number of training iterations if neither iterations nor a time limit are given."""
RenderMode = Literal["dvr", "mip", "minip", "mean", "xray"]
"""Direct volume rendering (colours); maximum, minimum or mean intensity along each ray; or line integral."""


class SplatTrainingSettings(BaseModel):
    """Settings of `train_splats`: model size, training views, optimizer, loss weights and limits."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    gaussians: Count = Field(40_000, description="Maximum number of Gaussians", json_schema_extra={"panel": "Splats"})
    views: Annotated[int, Field(ge=2, le=2000)] = Field(
        128,
        description="Number of training views, evenly distributed around the volume",
        json_schema_extra={"panel": "Training views"},
    )
    image_size: Annotated[int, Field(ge=16, le=2048)] = Field(
        256,
        description="Width and height of the training views in pixels",
        json_schema_extra={"panel": "Training views"},
    )
    sh_degree: Annotated[int, Field(ge=0, le=3)] = Field(
        3,
        description="Spherical harmonics (SH) degree of the view-dependent colours; 0: the same from all directions",
        json_schema_extra={"panel": "Splats"},
    )
    time_limit: Positive | None = Field(
        None,
        description="Time limit in seconds, including the rendering of the reference images",
        json_schema_extra={"panel": "Optimization"},
    )
    iterations: Count | None = Field(
        None,
        description=f"Number of iterations, one view each; {ITERATIONS} if there is no time limit either",
        json_schema_extra={"panel": "Optimization"},
    )
    solver: Literal["adam", "sgd"] = Field(
        "adam", description="Optimizer: Adam, or SGD with momentum", json_schema_extra={"panel": "Optimization"}
    )
    learning_rate: Positive = Field(
        1.0,
        description="Factor on the default learning rates of all parameters",
        json_schema_extra={"panel": "Optimization"},
    )
    densify: bool = Field(
        True,
        description="Densification: prune invisible Gaussians, split those with the largest positional gradient",
        json_schema_extra={"panel": "Splats"},
    )
    l1_weight: NotNegative = Field(
        0.0, description="Weight of the L1 loss (mean absolute error)", json_schema_extra={"panel": "Losses"}
    )
    dssim_weight: NotNegative = Field(
        0.02, description="Weight of the structural dissimilarity 1 - SSIM", json_schema_extra={"panel": "Losses"}
    )
    sparsity_weight: NotNegative = Field(
        0.0, description="Weight of the sparsity penalty (mean opacity)", json_schema_extra={"panel": "Losses"}
    )
    overlap_weight: NotNegative = Field(
        0.0,
        description="Weight of the overlap penalty (mean overlap of a Gaussian with its neighbours)",
        json_schema_extra={"panel": "Losses"},
    )
    smoothness_weight: NotNegative = Field(
        0.0,
        description="Weight of the smoothness penalty (mean squared gradient of the Gaussians, lengths in pixels)",
        json_schema_extra={"panel": "Losses"},
    )
    held_out_views: Annotated[int, Field(ge=1, le=200)] = Field(
        8, description="Number of held-out views for validation", json_schema_extra={"panel": "Training views"}
    )
    orthographic: bool = Field(
        False,
        description="Orthographic cameras (parallel rays) instead of perspective",
        json_schema_extra={"panel": "Training views"},
    )
    device: str = Field(
        "auto",
        description="Device: auto (a GPU where gsplat can be used, else the CPU), cpu or cuda",
        json_schema_extra={"panel": "Optimization"},
    )
    seed: Annotated[int, Field(ge=0)] = Field(
        0, description="Seed of the random numbers", json_schema_extra={"panel": "Optimization"}
    )
