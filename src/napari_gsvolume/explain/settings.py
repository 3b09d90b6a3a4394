"""Settings of explanations and of tracking: keyword arguments, rows of the widget, options of the command line."""

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
    """Return names from comma-separated text, or from several such texts."""
    texts = [value] if isinstance(value, str) else [] if value is None else value
    if isinstance(texts, (list, tuple)) and all(isinstance(text, str) for text in texts):
        return tuple(name.strip() for text in texts for name in text.split(",") if name.strip())
    return value


class InputSettings(BaseModel):
    """Settings that turn volumes into inputs of a network."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    layers: Annotated[tuple[str, ...], BeforeValidator(_names)] = Field(
        (), description="Names of layers, or patterns such as body.*; all with weights by default"
    )
    axis: Axis = Field("z", description="Stacking axis of the slices, for networks of 2D images")
    slices: Count | None = Field(None, description="Number of slices of each volume, evenly spaced; all by default")
    size: Count | None = Field(
        None,
        description="Input size of the network in voxels: larger images are tiled, smaller ones padded; whole slices "
        "or volumes by default",
    )
    normalise: Normalise = Field(
        "standard",
        description="Normalization of intensities, as in the training of the network: mean 0 and deviation 1, range 0 "
        "to 1, percentiles 1 and 99 to 0 and 1, or none; models of train-sr use their own",
    )
    channels: Channels = Field(
        "repeat",
        description="Channels of the input: the same slice repeated, neighbouring slices, or one image each",
    )
    seed: Annotated[int, Field(ge=0)] = Field(0, description="Random seed")
    device: str = Field("cpu", description="Compute device: cpu, cuda, cuda:1, or auto")


class ExplainSettings(InputSettings):
    """Settings of an explanation.

    Examples
    --------
    >>> from napari_gsvolume.explain import ExplainSettings
    >>> ExplainSettings(layers="encoder.*, bottleneck", k=4).layers
    ('encoder.*', 'bottleneck')
    """

    what: What = Field(
        "activations", description='Parts to decompose; "all" analyses every kind that the model provides'
    )
    k: Annotated[int, Field(ge=1, le=1024)] = Field(MODES, description="Number of components of each layer")
    centre: bool = Field(False, description="Subtract the mean activation: principal components")
    max_samples: Annotated[int, Field(ge=16)] = Field(
        100_000,
        description="Largest number of positions of a layer in the decomposition, drawn uniformly; maps have all",
    )
    maps: Annotated[int, Field(ge=0, le=64)] = Field(3, description="Number of concept maps of each layer; 0 for none")
    patch: Annotated[int, Field(ge=4, le=1024)] = Field(
        32, description="Size in voxels of the central patch the Jacobian is computed for"
    )


class TrackSettings(InputSettings):
    """Settings of the tracking of a network through its training."""

    slices: Count | None = Field(16, description="Number of slices of each volume, evenly spaced")
    k: Annotated[int, Field(ge=1, le=256)] = Field(MODES, description="Number of components of each layer")
    max_samples: Annotated[int, Field(ge=16)] = Field(
        8192, description="Largest number of positions of a layer, drawn uniformly"
    )
