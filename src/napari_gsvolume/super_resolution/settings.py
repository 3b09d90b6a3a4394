"""Settings of super-resolution, written once: keyword arguments, rows of the widget and options of the shell."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from ..errors import InputError
from ..grid import Axis
from ..settings import Count, NotNegative, Positive

DEFAULT_ITERATIONS = 3000
DEFAULT_PATCH_SIZE = 32
MAX_WHOLE_SLICE = 128
"""Largest side, in low-resolution pixels, of a training sample that is a whole slice."""
MIN_PATCH_SIZE = 8
"""Smallest side, in low-resolution pixels, of a training sample."""

Scheme = Literal["spline", "singular-vectors", "residual"]
TrainedScheme = Literal["singular-vectors", "residual"]
Backbone = Literal["edsr", "resnet", "unet", "rcan", "swinir", "hat"]
SPANDREL_BACKBONES = ("rcan", "swinir", "hat")
Orthogonality = Literal["penalty", "qr"]
Basis = Literal["bspline", "learned"]
UpsampleAxes = Literal["in-plane", "through-plane"]
DegradationKind = Literal["block-mean", "bicubic", "psf"]

_FACTOR = "Upsampling factor along each axis: above 1, at most 16, whole or not"
_DEGRADATION = "Degradation model: how low-resolution voxels arise from high-resolution ones"
_FWHM = "Full width at half maximum of the point spread function, in low-resolution voxels"
_SLICE_AXIS = "Axis along which the slices are stacked"


class SuperResolveSettings(BaseModel):
    """Settings of `superresolve`: factor, axes, scheme and degradation model.

    Examples
    --------
    >>> from napari_gsvolume.super_resolution import SuperResolveSettings
    >>> SuperResolveSettings(factor=3, upsample_axes="through-plane").scheme
    'spline'
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    factor: Annotated[float, Field(gt=1, le=16)] = Field(2.0, description=_FACTOR)
    scheme: Scheme = Field(
        "spline",
        description="Super-resolution method: cubic B-spline (spline), or a trained model that predicts singular "
        "vectors (scheme A, singular-vectors) or a residual image (scheme B, residual)",
    )
    upsample_axes: UpsampleAxes = Field(
        "in-plane", description="Axes to super-resolve: both axes of the slices (in-plane), or the slice axis"
    )
    slice_axis: Axis = Field("z", description=_SLICE_AXIS)
    degradation: DegradationKind = Field("block-mean", description=_DEGRADATION)
    fwhm: Positive = Field(1.0, description=_FWHM)
    project: bool = Field(True, description="Project the result so that its degradation equals the input exactly")
    ensemble: bool = Field(
        True, description="Self-ensemble: average the predictions over flips and rotations (slower; trained models)"
    )


class TrainSRSettings(BaseModel):
    """Settings of `train_superresolution`: scheme, network, degradation model, losses and limits.

    Examples
    --------
    >>> from napari_gsvolume.super_resolution import TrainSRSettings
    >>> settings = TrainSRSettings(scheme="residual", factor=2, upsample_axes="through-plane")
    >>> settings.factors
    (2.0, 1.0)
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    factor: Annotated[float, Field(gt=1, le=16)] = Field(2.0, description=_FACTOR, json_schema_extra={"panel": "Data"})
    scheme: TrainedScheme = Field(
        "residual",
        description="Training scheme: predict singular vectors and singular values (scheme A, singular-vectors), or "
        "add the output of a residual network to a low-rank interpolation (scheme B, residual)",
        json_schema_extra={"panel": "Network"},
    )
    backbone: Backbone = Field(
        "edsr",
        description="Residual network of scheme B; rcan, swinir and hat need the package spandrel",
        json_schema_extra={"panel": "Network"},
    )
    upsample_axes: UpsampleAxes = Field(
        "in-plane",
        description="Axes to train for: both axes of the slices (in-plane), or one (through-plane)",
        json_schema_extra={"panel": "Data"},
    )
    slice_axis: Axis = Field("z", description=_SLICE_AXIS, json_schema_extra={"panel": "Data"})
    degradation: DegradationKind = Field("block-mean", description=_DEGRADATION, json_schema_extra={"panel": "Data"})
    fwhm: Positive = Field(1.0, description=_FWHM, json_schema_extra={"panel": "Data"})
    project: bool = Field(
        True,
        description="Data-consistency projection as the last layer: degraded predictions equal the measurement",
        json_schema_extra={"panel": "Network"},
    )
    rank: Count | None = Field(
        None,
        description="Number of modes of a slice that are used; default: all",
        json_schema_extra={"panel": "Network"},
    )
    basis: Basis = Field(
        "bspline",
        description="Interpolation of the singular vectors in scheme B: B-splines, or learned decoders as in scheme A",
        json_schema_extra={"panel": "Network"},
    )
    spline_degree: Annotated[int, Field(ge=1, le=5)] = Field(
        3, description="B-spline degree: 1 linear, 3 cubic", json_schema_extra={"panel": "Network"}
    )
    smoothing: NotNegative = Field(
        0.0,
        description="Roughness penalty of the B-spline fit to the singular vectors; scaled by (s_1/s_k)^2 for mode k",
        json_schema_extra={"panel": "Network"},
    )
    context: Annotated[int, Field(ge=0, le=4)] = Field(
        1,
        description="Number of neighbouring slices on either side in the input of the network (scheme B)",
        json_schema_extra={"panel": "Data"},
    )
    patch_size: Annotated[int, Field(ge=MIN_PATCH_SIZE, le=1024)] | None = Field(
        None,
        description=f"Patch size in low-resolution pixels; default: {DEFAULT_PATCH_SIZE}, or whole slices where the "
        "prediction depends on the SVD of a slice",
        json_schema_extra={"panel": "Data"},
    )
    batch_size: Annotated[int, Field(ge=1, le=1024)] = Field(
        4, description="Number of patches or slices in a batch", json_schema_extra={"panel": "Data"}
    )
    channels: Annotated[int, Field(ge=4, le=256)] = Field(
        32, description="Number of feature channels of the network", json_schema_extra={"panel": "Network"}
    )
    blocks: Annotated[int, Field(ge=1, le=64)] = Field(
        6,
        description="Number of residual blocks, or of attention layers, of the network",
        json_schema_extra={"panel": "Network"},
    )
    learning_rate: Positive = Field(
        1e-3,
        description="Initial learning rate of Adam; cosine decay to 1 %",
        json_schema_extra={"panel": "Optimization"},
    )
    l2_weight: NotNegative = Field(
        1.0, description="Weight of the mean squared error", json_schema_extra={"panel": "Losses"}
    )
    l1_weight: NotNegative = Field(
        0.0, description="Weight of the mean absolute error", json_schema_extra={"panel": "Losses"}
    )
    consistency_weight: NotNegative = Field(
        0.1,
        description="Weight of the data-consistency loss: mean squared error after degradation, before projection",
        json_schema_extra={"panel": "Losses"},
    )
    orthogonality_weight: NotNegative = Field(
        1e-4,
        description="Weight of the orthogonality loss of predicted singular vectors, |U^T U - I|^2 for each mode",
        json_schema_extra={"panel": "Losses"},
    )
    perceptual_weight: NotNegative = Field(
        0.0, description="Weight of the perceptual loss (scheme B)", json_schema_extra={"panel": "Losses"}
    )
    perceptual_features: str = Field(
        "random",
        description="Feature network of the perceptual loss: random weights (random), MONAI's LPIPS (monai), or a "
        "VGG-16 .safetensors file",
        json_schema_extra={"panel": "Losses"},
    )
    adversarial_weight: NotNegative = Field(
        0.0,
        description="Weight of the adversarial loss of a patch discriminator (scheme B)",
        json_schema_extra={"panel": "Losses"},
    )
    uncertainty_weighting: bool = Field(
        False,
        description="Train the balance of the losses, too (uncertainty weighting, Kendall et al. 2018)",
        json_schema_extra={"panel": "Losses"},
    )
    orthogonality: Orthogonality = Field(
        "penalty",
        description="Orthogonality of predicted singular vectors: a loss term, or exact by QR decomposition",
        json_schema_extra={"panel": "Network"},
    )
    frequency_weighting: bool = Field(
        True,
        description="Train a weight for each frequency of the singular vectors (decoders)",
        json_schema_extra={"panel": "Network"},
    )
    sign_flips: bool = Field(
        False, description="Augment the training data with sign flips", json_schema_extra={"panel": "Data"}
    )
    time_limit: Positive | None = Field(
        None, description="Time limit of the training in seconds", json_schema_extra={"panel": "Optimization"}
    )
    iterations: Count | None = Field(
        None,
        description=f"Number of iterations; default: {DEFAULT_ITERATIONS} without a time limit",
        json_schema_extra={"panel": "Optimization"},
    )
    seed: Annotated[int, Field(ge=0)] = Field(
        0, description="Seed of the random numbers", json_schema_extra={"panel": "Optimization"}
    )
    validation_fraction: Annotated[float, Field(gt=0, le=0.5)] = Field(
        0.1,
        description="Fraction of the slices held out for validation",
        json_schema_extra={"panel": "Data"},
    )

    @model_validator(mode="after")
    def _check_combination(self) -> TrainSRSettings:
        fits_spandrel = self.factor in (2, 3, 4) and self.upsample_axes == "in-plane"
        if self.scheme == "residual" and self.backbone in SPANDREL_BACKBONES and not fits_spandrel:
            raise InputError(
                f"{self.backbone} needs factor 2, 3 or 4 and in-plane super-resolution; choose the backbone edsr"
            )
        if self.patch_size is not None and self.rank is not None and self.rank > self.patch_size:
            size = f"{self.patch_size} x {self.patch_size}"
            raise InputError(f"patches of {size} pixels have at most {self.patch_size} modes, not {self.rank}")
        features = self.perceptual_features
        if features not in ("random", "monai") and not features.lower().endswith(".safetensors"):
            raise InputError(
                f"perceptual_features is random, monai or a .safetensors file of VGG-16 weights; got {features}"
            )
        if self.basis == "learned" and (self.smoothing or self.spline_degree != 3):
            raise InputError("smoothing and spline_degree apply to B-splines only; omit them with learned decoders")
        weights = self.l2_weight + self.l1_weight
        if self.scheme == "residual":
            weights += self.perceptual_weight + self.adversarial_weight
        if weights == 0:
            raise InputError("all losses that compare with the target have weight 0; there is nothing to train")
        return self

    @property
    def factors(self) -> tuple[float, float]:
        """Upsampling factors (rows, columns) of a slice."""
        return self.factor, self.factor if self.upsample_axes == "in-plane" else 1.0

    @property
    def depth(self) -> int:
        """Number of slices in the input of the network; the middle one is predicted."""
        return 1 + 2 * self.context if self.scheme == "residual" else 1

    @property
    def has_decoders(self) -> bool:
        """Whether learned decoders predict singular vectors on the fine grid."""
        return self.scheme == "singular-vectors" or self.basis == "learned"

    @property
    def needs_whole_slices(self) -> bool:
        """Whether a prediction depends on the modes of a whole slice, which differ from those of a patch.

        Scheme A with all modes does not: to first order its details are those of an image, whatever the modes.
        """
        decoders = self.scheme == "residual" and self.basis == "learned"
        return decoders or self.rank is not None or self.smoothing > 0

    @property
    def patch_side(self) -> int | None:
        """Side of the patches in low-resolution pixels; None for whole slices."""
        return DEFAULT_PATCH_SIZE if self.patch_size is None and not self.needs_whole_slices else self.patch_size
