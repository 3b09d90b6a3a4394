"""The parameters of a super-resolution, once: keyword arguments, rows of the widget, options of the shell."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from ..errors import InputError
from ..grid import Axis
from ..settings import Count, NotNegative, Positive

ITERATIONS = 3000
PATCH = 32
WHOLE = 128
"""Pixels, of low resolution, up to which slices are learnt from as a whole."""
SMALLEST = 8
"""Pixels, of low resolution, that a side of what is learnt from has at least."""
LearnedScheme = Literal["a", "b"]
Backbone = Literal["edsr", "resnet", "unet", "rcan", "swinir", "hat"]
Orthogonality = Literal["penalty", "qr"]
Functions = Literal["bspline", "decoders"]
FOREIGN = ("rcan", "swinir", "hat")

Axes = Literal["in-plane", "through-plane"]
DegradationKind = Literal["block-mean", "bicubic", "psf"]
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


class TrainSRSettings(BaseModel):
    """What is learnt, from what, and when to stop."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    factor: Annotated[float, Field(gt=1, le=16)] = Field(
        2.0, description="Times as many voxels along each axis", json_schema_extra={"panel": "Data"}
    )
    scheme: LearnedScheme = Field(
        "b",
        description="a: singular vectors and values are predicted; b: a spline is corrected by a residual network",
        json_schema_extra={"panel": "Network"},
    )
    backbone: Backbone = Field(
        "edsr",
        description="The residual network of b; rcan, swinir and hat are spandrel's",
        json_schema_extra={"panel": "Network"},
    )
    axes: Axes = Field(
        "in-plane",
        description="Learn to make both axes of slices finer, or one only",
        json_schema_extra={"panel": "Data"},
    )
    axis: Axis = Field("z", description="Along which the slices are stacked", json_schema_extra={"panel": "Data"})
    degradation: DegradationKind = Field(
        "block-mean", description="How a voxel measured the finer ones", json_schema_extra={"panel": "Data"}
    )
    fwhm: Positive = Field(
        1.0,
        description="Full width at half maximum of the psf, voxels of low resolution",
        json_schema_extra={"panel": "Data"},
    )
    project: bool = Field(
        True,
        description="Make the prediction agree exactly with what was measured, as last layer",
        json_schema_extra={"panel": "Network"},
    )
    rank: Count | None = Field(
        None,
        description="Modes of a slice that are interpolated; all of them if not given",
        json_schema_extra={"panel": "Network"},
    )
    functions: Functions = Field(
        "bspline",
        description="Of b: what makes singular vectors finer, B-splines or two learned decoders as of a",
        json_schema_extra={"panel": "Network"},
    )
    order: Annotated[int, Field(ge=1, le=5)] = Field(
        3, description="Of these B-splines: 1 is linear, 3 cubic", json_schema_extra={"panel": "Network"}
    )
    smoothing: NotNegative = Field(
        0.0,
        description="Weight of the roughness of a slice's strongest mode in them; of mode k (s_1/s_k)^2 times that",
        json_schema_extra={"panel": "Network"},
    )
    context: Annotated[int, Field(ge=0, le=4)] = Field(
        1, description="Slices on either side that the network sees, for b", json_schema_extra={"panel": "Data"}
    )
    patch: Annotated[int, Field(ge=SMALLEST, le=1024)] | None = Field(
        None,
        description=f"Low-resolution pixels of a patch's sides; {PATCH} if not given, whole slices where modes matter",
        json_schema_extra={"panel": "Data"},
    )
    batch: Annotated[int, Field(ge=1, le=1024)] = Field(
        4, description="Patches, or slices, of an iteration", json_schema_extra={"panel": "Data"}
    )
    channels: Annotated[int, Field(ge=4, le=256)] = Field(
        32, description="Features of a network's layers", json_schema_extra={"panel": "Network"}
    )
    blocks: Annotated[int, Field(ge=1, le=64)] = Field(
        6, description="Its residual blocks, or layers of attention", json_schema_extra={"panel": "Network"}
    )
    learning_rate: Positive = Field(
        1e-3, description="Of Adam, at first; it falls to nothing", json_schema_extra={"panel": "Optimization"}
    )
    lambda_squared: NotNegative = Field(
        1.0, description="Weight of the mean squared difference (L1 of scheme a)", json_schema_extra={"panel": "Losses"}
    )
    lambda_absolute: NotNegative = Field(
        0.0, description="Weight of the mean absolute difference", json_schema_extra={"panel": "Losses"}
    )
    lambda_consistency: NotNegative = Field(
        0.1,
        description="Weight of the mean squared difference once degraded, before the projection (L2 of a)",
        json_schema_extra={"panel": "Losses"},
    )
    lambda_orthogonality: NotNegative = Field(
        1e-4,
        description="Weight of |U^T U - I|^2 + |V^T V - I|^2, for each mode, of decoders (L3 of a)",
        json_schema_extra={"panel": "Losses"},
    )
    lambda_perceptual: NotNegative = Field(
        0.0, description="Weight of differences of features of a VGG, for b", json_schema_extra={"panel": "Losses"}
    )
    perceptual: str = Field(
        "random",
        description="Its weights: random, monai for MONAI's loss, or a .safetensors file of VGG-16",
        json_schema_extra={"panel": "Losses"},
    )
    lambda_adversarial: NotNegative = Field(
        0.0, description="Weight of what a patch discriminator tells, for b", json_schema_extra={"panel": "Losses"}
    )
    learn_weights: bool = Field(
        False,
        description="Learn the balance of the losses as well (Kendall et al. 2018)",
        json_schema_extra={"panel": "Losses"},
    )
    orthogonality: Orthogonality = Field(
        "penalty",
        description="Of the predicted vectors: penalised, or exact by QR",
        json_schema_extra={"panel": "Network"},
    )
    weighting: bool = Field(
        True,
        description="Learn W_y and W_x of decoders, a weight for each frequency",
        json_schema_extra={"panel": "Network"},
    )
    random_signs: bool = Field(False, description="Learn from negatives, too", json_schema_extra={"panel": "Data"})
    time_limit: Positive | None = Field(
        None, description="Stop after this many seconds", json_schema_extra={"panel": "Optimization"}
    )
    iterations: Count | None = Field(
        None, description=f"Iterations; {ITERATIONS} if no time is given", json_schema_extra={"panel": "Optimization"}
    )
    seed: Annotated[int, Field(ge=0)] = Field(
        0, description="Seed of all that is random", json_schema_extra={"panel": "Optimization"}
    )
    hold_out: Annotated[float, Field(gt=0, le=0.5)] = Field(
        0.1, description="Part of the slices, which only judge", json_schema_extra={"panel": "Data"}
    )

    @model_validator(mode="after")
    def _together(self) -> TrainSRSettings:
        whole = self.factor in (2, 3, 4) and self.axes == "in-plane"
        if self.scheme == "b" and self.backbone in FOREIGN and not whole:
            raise InputError(f"{self.backbone} makes images 2, 3 or 4 times finer in both axes; choose edsr instead")
        if self.patch is not None and self.rank is not None and self.rank > self.patch:
            raise InputError(f"patches of {self.patch} x {self.patch} pixels have no {self.rank} modes; lower the rank")
        if self.perceptual not in ("random", "monai") and not self.perceptual.lower().endswith(".safetensors"):
            raise InputError(f"perceptual is random, monai or a .safetensors file of VGG-16; got {self.perceptual}")
        if self.functions == "decoders" and (self.smoothing or self.order != 3):
            raise InputError("smoothing and order are those of B-splines; leave them out with decoders")
        telling = self.lambda_squared + self.lambda_absolute
        if self.scheme == "b":
            telling += self.lambda_perceptual + self.lambda_adversarial
        if telling == 0:
            raise InputError("without a weight of the difference to the target there is nothing to learn")
        return self

    @property
    def factors(self) -> tuple[float, float]:
        """The factor along the rows and along the columns of a slice."""
        return self.factor, self.factor if self.axes == "in-plane" else 1.0

    @property
    def depth(self) -> int:
        """Slices that the network sees at once; the middle one is predicted."""
        return 1 + 2 * self.context if self.scheme == "b" else 1

    @property
    def decodes(self) -> bool:
        """Whether singular vectors on the finer grid are learned."""
        return self.scheme == "a" or self.functions == "decoders"

    @property
    def modal(self) -> bool:
        """Whether what is learnt depends on the modes of a whole slice, of which a patch has others.

        Scheme a of all modes does not: to first order its details are those of an image, whatever the modes.
        """
        decoders = self.scheme == "b" and self.functions == "decoders"
        return decoders or self.rank is not None or self.smoothing > 0

    @property
    def side(self) -> int | None:
        """Pixels of low resolution of a patch's sides; None for whole slices."""
        return PATCH if self.patch is None and not self.modal else self.patch
