"""The parameters of a fit, once: the form of the widget, the options of the shell, the arguments of the Python call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


def make_settings(**values: Any) -> FitSettings:
    """Return the settings; raise ValueError, in one sentence naming the field, if a value does not fit."""
    try:
        return FitSettings(**values)
    except ValidationError as error:
        raise ValueError(one_sentence(error)) from error


def one_sentence(error: ValidationError, label: Callable[[str], str] = str) -> str:
    """Return what is wrong with the first value that does not fit; `label` names its field to the user."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"][:1])
    return f"{label(where)}: {first['msg'].rstrip('.')} (it is {first['input']!r})."


class FitSettings(BaseModel):
    """What to fit, how, and when to stop.

    With `gaussians` the fit works towards that many. Without it, the number grows until `target_psnr` is reached or
    `time_limit` is over; with neither of the two either, it is 2,000. Whatever is reached first ends the fit: the
    target, the time, the iterations, or convergence.

    Given the same seed, threads or not, a fit that the clock does not shape gives the same numbers; with a
    `time_limit` the moments when Gaussians are added follow the clock.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    gaussians: Count | None = Field(
        None, description="Number of Gaussians; as many as the other limits ask for if not given"
    )
    target_psnr: Positive | None = Field(None, description="Stop at this PSNR, in dB over the data range max - min")
    time_limit: Positive | None = Field(None, description="Stop after this many seconds")
    solver: Literal["gauss-newton", "adam", "sgd"] = Field("gauss-newton", description="How the Gaussians are improved")
    seed: Annotated[int, Field(ge=0)] = Field(0, description="Seed of the random placement")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="Where to compute")
    iterations: Count | None = Field(
        None, description="Stop after this many iterations; if nothing else ends it, 150, or 3000 for adam and sgd"
    )
    rounds: Annotated[int, Field(ge=1, le=50)] = Field(6, description="Rounds in which the Gaussians are added")
    cg_steps: Annotated[int, Field(ge=1, le=100)] = Field(
        8, description="Conjugate gradient steps an iteration (gauss-newton)"
    )
    learning_rate: Positive = Field(1.0, description="Factor on the tuned learning rates (adam, sgd)")
    batch_fraction: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0, description="Share of the voxels drawn at random for each iteration (adam, sgd)"
    )

    @property
    def n_iterations(self) -> int:
        """The number of iterations to plan for."""
        if self.iterations is not None:
            return self.iterations
        return 150 if self.solver == "gauss-newton" else 3000
