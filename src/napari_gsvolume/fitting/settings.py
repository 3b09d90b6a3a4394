"""Settings of a fit: one model for the form of the widget, the options of the shell and the arguments in Python."""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from ..errors import InputError
from ..settings import Count, NotNegative, Positive

Growth = Literal["residual", "gradient", "saddle", "mcmc", "merge"]
"""Growth strategies: where new Gaussians are placed."""
Study = Literal["spacing", "penalties", "support", "growth"]
"""Ablation studies of `napari_gsvolume.ablation`."""


def _device_name(name: str) -> str:
    """Return the name if it is a possible name of a device, present or not."""
    if not re.fullmatch(r"auto|cpu|cuda(:[0-9]+)?", name):
        raise PydanticCustomError("device", "choose auto, cpu, cuda, or cuda:1 for the second GPU")
    return name


class FitSettings(BaseModel):
    """Settings of a fit: number of Gaussians, solver, penalties and limits.

    With `gaussians`, the fit works towards that number. Without it, the number grows until `target_psnr` or
    `time_limit` is reached; without any of the three, the number is 2,000. The fit ends at the target, at a limit, or
    at convergence, whichever comes first.

    Fits with the same seed on the same device give the same numbers, with any number of threads. The exception is
    `time_limit`: the clock then decides when Gaussians are added.

    Parameters
    ----------
    **settings
        Values of the fields; ``FitSettings.model_fields`` lists them with descriptions and defaults.

    Raises
    ------
    pydantic.ValidationError
        If a value is out of range, or values exclude each other; a ValueError. `fit` and `fit_steps` raise an
        `InputError` of one sentence instead.

    See Also
    --------
    fit : Fit with these settings as keyword arguments.

    Examples
    --------
    >>> import napari_gsvolume as gsv
    >>> settings = gsv.FitSettings(gaussians=500, solver="adam", iterations=100)
    >>> settings.model_dump(exclude_defaults=True)
    {'gaussians': 500, 'solver': 'adam', 'iterations': 100}
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    gaussians: Count | None = Field(
        None,
        description="Number of Gaussians; without it, the number follows from target PSNR, file size and time",
        json_schema_extra={"panel": "Size and stopping"},
    )
    target_psnr: Positive | None = Field(
        None,
        description="PSNR in dB at which the fit stops (peak: max - min)",
        json_schema_extra={"panel": "Size and stopping"},
    )
    ratio: Positive | None = Field(
        None,
        description="Compression ratio of the .gsv file to aim at, relative to the volume in float32",
        json_schema_extra={"panel": "Size and stopping"},
    )
    target_bytes: Count | None = Field(
        None,
        description="Largest size of the .gsv file to aim at, in bytes",
        json_schema_extra={"panel": "Size and stopping"},
    )
    time_limit: Positive | None = Field(
        None, description="Time limit in seconds", json_schema_extra={"panel": "Size and stopping"}
    )
    solver: Literal["gauss-newton", "adam", "sgd"] = Field(
        "gauss-newton",
        description="Solver: Gauss-Newton, Adam, or SGD with momentum",
        json_schema_extra={"panel": "Solver"},
    )
    seed: Annotated[int, Field(ge=0)] = Field(
        0, description="Seed of the random placement of Gaussians", json_schema_extra={"panel": "Solver"}
    )
    device: Annotated[str, AfterValidator(_device_name)] = Field(
        "auto",
        description="Compute device: auto (a GPU where there is one), cpu, cuda, or cuda:1 for the second GPU",
        json_schema_extra={"panel": "Solver"},
    )
    iterations: Count | None = Field(
        None,
        description="Number of iterations; without any other limit 150, or 3000 for adam and sgd",
        json_schema_extra={"panel": "Size and stopping"},
    )
    rounds: Annotated[int, Field(ge=1, le=50)] = Field(
        12, description="Number of rounds in which Gaussians are added", json_schema_extra={"panel": "Growth"}
    )
    cg_steps: Annotated[int, Field(ge=1, le=100)] = Field(
        8,
        description="Conjugate gradient steps per iteration of gauss-newton; late iterations take more",
        json_schema_extra={"panel": "Solver"},
    )
    learning_rate: Positive = Field(
        1.0, description="Factor on the tuned learning rates of adam and sgd", json_schema_extra={"panel": "Solver"}
    )
    batch_fraction: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0, description="Fraction of the voxels in each batch of adam and sgd", json_schema_extra={"panel": "Solver"}
    )

    growth: Growth = Field(
        "residual", description="Growth strategy: where new Gaussians are placed", json_schema_extra={"panel": "Growth"}
    )
    sparsity_weight: NotNegative = Field(
        0.0,
        description="Weight of the sparsity penalty (mean absolute weight); it removes useless Gaussians",
        json_schema_extra={"panel": "Penalties"},
    )
    overlap_weight: NotNegative = Field(
        0.0,
        description="Weight of the overlap penalty (mean overlap of a Gaussian with all others)",
        json_schema_extra={"panel": "Penalties"},
    )
    smoothness_weight: NotNegative = Field(
        0.0,
        description="Weight of the smoothness penalty (mean squared gradient of the Gaussians)",
        json_schema_extra={"panel": "Penalties"},
    )
    spacing_weight: NotNegative = Field(
        0.0,
        description="Weight of the spacing penalty (squared deviation of neighbours from the target spacing)",
        json_schema_extra={"panel": "Penalties"},
    )
    spacing: Positive = Field(
        1.0,
        description="Target spacing: distance of neighbours over the sum of their radii (1: they touch)",
        json_schema_extra={"panel": "Penalties"},
    )
    spacing_radius: Annotated[float, Field(gt=0, le=10)] = Field(
        2.0,
        description="Radius of a Gaussian in the spacing penalty, in sigma",
        json_schema_extra={"panel": "Penalties"},
    )
    data_term: Literal["weights", "neighbourhood", "ellipsoid"] = Field(
        "weights",
        description="Data term: learned weights, or values of the voxels in a neighbourhood or in the ellipsoids",
        json_schema_extra={"panel": "Data term"},
    )
    normalised: bool = Field(
        False,
        description="Normalise the weights of the supporting voxels to sum 1 (not for data term 'weights')",
        json_schema_extra={"panel": "Data term"},
    )
    neighbourhood_radius: Annotated[float, Field(ge=0, le=16)] = Field(
        2.0, description="Radius of the neighbourhood of a voxel, in voxels", json_schema_extra={"panel": "Data term"}
    )
    ellipsoid_radius: Annotated[float, Field(gt=0, le=3.3)] = Field(
        3.0, description="Radius of the ellipsoids, in sigma", json_schema_extra={"panel": "Data term"}
    )

    @model_validator(mode="after")
    def _are_compatible(self) -> Self:
        if self.ratio is not None and self.target_bytes is not None:
            raise InputError("give a ratio or a number of bytes, not both")
        if self.data_term != "weights":
            if self.batch_fraction < 1:
                raise InputError(f"the data term '{self.data_term}' needs all voxels; leave the batch fraction at 1")
            if self.growth != "residual":
                raise InputError(f"the data term '{self.data_term}' has no weights to share; choose residual growth")
            if self.sparsity_weight > 0:
                raise InputError(f"the data term '{self.data_term}' has no weights that sparsity could lower")
            if self.ratio is not None or self.target_bytes is not None:
                raise InputError(f"the data term '{self.data_term}' has no file of its own; leave ratio and bytes out")
        return self

    @property
    def n_iterations(self) -> int:
        """Planned number of iterations."""
        if self.iterations is not None:
            return self.iterations
        return 150 if self.solver == "gauss-newton" else 3000
