"""The parameters of a fit, once: the form of the widget, the options of the shell, the arguments of the Python call."""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from ..errors import InputError
from ..settings import Count, NotNegative, Positive

Population = Literal["residual", "gradient", "saddle", "mcmc", "merge"]
Study = Literal["spacing", "penalties", "support", "population"]
"""What `napari_gsvolume.ablation` can vary."""


def _device_name(name: str) -> str:
    """Return the name if it can be that of a device, whether this machine has it or not."""
    if not re.fullmatch(r"auto|cpu|cuda(:[0-9]+)?", name):
        raise PydanticCustomError("device", "choose auto, cpu, cuda, or cuda:1 for the second GPU")
    return name


class FitSettings(BaseModel):
    """What to fit, how, and when to stop.

    With `gaussians` the fit works towards that many. Without it, the number grows until `target_psnr` is reached or
    `time_limit` is over; with neither of the two either, it is 2,000. Whatever is reached first ends the fit: the
    target, the time, the iterations, or convergence.

    Given the same seed and device, threads or not, a fit that the clock does not shape gives the same numbers; with a
    `time_limit` the moments when Gaussians are added follow the clock.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    gaussians: Count | None = Field(
        None,
        description="Number of Gaussians; as many as the other limits ask for if not given",
        json_schema_extra={"panel": "Size and stopping"},
    )
    target_psnr: Positive | None = Field(
        None,
        description="Stop at this PSNR, in dB over the data range max - min",
        json_schema_extra={"panel": "Size and stopping"},
    )
    ratio: Positive | None = Field(
        None,
        description="Fit for a .gsv file so many times smaller than the volume in float32",
        json_schema_extra={"panel": "Size and stopping"},
    )
    target_bytes: Count | None = Field(
        None,
        description="Fit for a .gsv file of at most so many bytes",
        json_schema_extra={"panel": "Size and stopping"},
    )
    time_limit: Positive | None = Field(
        None, description="Stop after this many seconds", json_schema_extra={"panel": "Size and stopping"}
    )
    solver: Literal["gauss-newton", "adam", "sgd"] = Field(
        "gauss-newton", description="How the Gaussians are improved", json_schema_extra={"panel": "Solver"}
    )
    seed: Annotated[int, Field(ge=0)] = Field(
        0, description="Seed of the random placement", json_schema_extra={"panel": "Solver"}
    )
    device: Annotated[str, AfterValidator(_device_name)] = Field(
        "auto",
        description="Where to compute: auto (a GPU where there is one), cpu, cuda, or cuda:1 for the second GPU",
        json_schema_extra={"panel": "Solver"},
    )
    iterations: Count | None = Field(
        None,
        description="Stop after this many iterations; if nothing else ends it, 150, or 3000 for adam and sgd",
        json_schema_extra={"panel": "Size and stopping"},
    )
    rounds: Annotated[int, Field(ge=1, le=50)] = Field(
        12, description="Rounds in which the Gaussians are added", json_schema_extra={"panel": "Growth"}
    )
    cg_steps: Annotated[int, Field(ge=1, le=100)] = Field(
        8,
        description="Conjugate gradient steps an iteration, more of them late in a fit (gauss-newton)",
        json_schema_extra={"panel": "Solver"},
    )
    learning_rate: Positive = Field(
        1.0, description="Factor on the tuned learning rates (adam, sgd)", json_schema_extra={"panel": "Solver"}
    )
    batch_fraction: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0,
        description="Share of the voxels drawn at random for each iteration (adam, sgd)",
        json_schema_extra={"panel": "Solver"},
    )

    population: Population = Field(
        "residual", description="How places for new Gaussians are chosen", json_schema_extra={"panel": "Growth"}
    )
    lambda_sparsity: NotNegative = Field(
        0.0, description="Weight of the mean |weight|: useless Gaussians go", json_schema_extra={"panel": "Penalties"}
    )
    lambda_overlap: NotNegative = Field(
        0.0,
        description="Weight of the mean overlap of a Gaussian with the others",
        json_schema_extra={"panel": "Penalties"},
    )
    lambda_smoothness: NotNegative = Field(
        0.0,
        description="Weight of the mean squared gradient of the Gaussians",
        json_schema_extra={"panel": "Penalties"},
    )
    lambda_spacing: NotNegative = Field(
        0.0,
        description="Weight of the squared deviation from the spacing asked for",
        json_schema_extra={"panel": "Penalties"},
    )
    spacing: Positive = Field(
        1.0,
        description="Distance of neighbours over the sum of their radii: below 1 overlapping, 1 tangent",
        json_schema_extra={"panel": "Penalties"},
    )
    spacing_radius: Annotated[float, Field(gt=0, le=10)] = Field(
        2.0, description="Radius for the spacing, in sigma", json_schema_extra={"panel": "Penalties"}
    )
    data_term: Literal["weights", "neighbourhood", "ellipsoid"] = Field(
        "weights",
        description="How Gaussians support a voxel: by learned weights, or by the voxels' own values",
        json_schema_extra={"panel": "Data term"},
    )
    normalised: bool = Field(
        False,
        description="Weights of the supporting voxels sum to one (not with 'weights')",
        json_schema_extra={"panel": "Data term"},
    )
    neighbourhood_radius: Annotated[float, Field(ge=0, le=16)] = Field(
        2.0, description="Radius of a voxel's neighbourhood, in voxels", json_schema_extra={"panel": "Data term"}
    )
    ellipsoid_radius: Annotated[float, Field(gt=0, le=3.3)] = Field(
        3.0, description="Radius of an ellipsoid, in sigma", json_schema_extra={"panel": "Data term"}
    )

    @model_validator(mode="after")
    def _go_together(self) -> Self:
        if self.ratio is not None and self.target_bytes is not None:
            raise InputError("give a ratio or a number of bytes, not both")
        if self.data_term != "weights":
            if self.batch_fraction < 1:
                raise InputError(f"the data term '{self.data_term}' needs all voxels; leave the batch fraction at 1")
            if self.population != "residual":
                raise InputError(f"the data term '{self.data_term}' has no weights to share; choose residual births")
            if self.lambda_sparsity > 0:
                raise InputError(f"the data term '{self.data_term}' has no weights that sparsity could lower")
            if self.ratio is not None or self.target_bytes is not None:
                raise InputError(f"the data term '{self.data_term}' has no file of its own; leave ratio and bytes out")
        return self

    @property
    def n_iterations(self) -> int:
        """The number of iterations to plan for."""
        if self.iterations is not None:
            return self.iterations
        return 150 if self.solver == "gauss-newton" else 3000
