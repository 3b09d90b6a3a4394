"""The parameters of an explanation, once: keyword arguments, rows of the widget, options of the shell."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from ..grid import Axis
from ..settings import Count

What = Literal["activations", "jacobian", "attention", "all"]
Normalise = Literal["standard", "unit", "robust", "none"]
Channels = Literal["repeat", "neighbours", "images"]
MODES = 8


def _names(value: Any) -> Any:
    """Return names from text that has commas between them, or from several such texts."""
    texts = [value] if isinstance(value, str) else [] if value is None else value
    if isinstance(texts, (list, tuple)) and all(isinstance(text, str) for text in texts):
        return tuple(name.strip() for text in texts for name in text.split(",") if name.strip())
    return value


class InputSettings(BaseModel):
    """How volumes become what a network is called with."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    layers: Annotated[tuple[str, ...], BeforeValidator(_names)] = Field(
        (), description="Names of layers, or patterns such as body.*; all that have weights if not given"
    )
    axis: Axis = Field("z", description="Along which the slices are stacked, for networks of 2D images")
    slices: Count | None = Field(None, description="Slices of each volume, evenly spread; all if not given")
    size: Count | None = Field(
        None,
        description="Voxels of the sides of what the network is given: tiles of an image that is larger, padded if it "
        "is smaller; whole slices, or volumes, if not given",
    )
    normalise: Normalise = Field(
        "standard",
        description="Intensities as the network was trained on (super-resolutions of train-sr know theirs): mean 0 and "
        "deviation 1, 0 to 1, the percentiles 1 and 99 to 0 and 1, or none of it",
    )
    channels: Channels = Field(
        "repeat",
        description="What the channels of a network are: the same slice again, neighbouring slices, or one image each",
    )
    seed: Annotated[int, Field(ge=0)] = Field(0, description="Seed of all that is random")
    device: str = Field("cpu", description="What to compute on: cpu, cuda, cuda:1, or auto")


class ExplainSettings(InputSettings):
    """What of a network is decomposed, and how."""

    what: What = Field("activations", description="What is decomposed; all is what the model has of these")
    k: Annotated[int, Field(ge=1, le=1024)] = Field(MODES, description="Modes of each layer")
    centre: bool = Field(False, description="Take the mean activation away first: principal components")
    max_samples: Annotated[int, Field(ge=16)] = Field(
        100_000, description="Positions of a layer that are decomposed, drawn evenly from all; maps have all positions"
    )
    maps: Annotated[int, Field(ge=0, le=64)] = Field(3, description="Concepts of each layer that become maps")
    patch: Annotated[int, Field(ge=4, le=1024)] = Field(
        32, description="Voxels of the sides, about the middle, of what a Jacobian is taken of"
    )


class TrackSettings(InputSettings):
    """What of a network is followed through its training."""

    slices: Count | None = Field(16, description="Slices of each volume, evenly spread")
    k: Annotated[int, Field(ge=1, le=256)] = Field(MODES, description="Components of each layer that are followed")
    max_samples: Annotated[int, Field(ge=16)] = Field(8192, description="Positions of a layer that are looked at")
