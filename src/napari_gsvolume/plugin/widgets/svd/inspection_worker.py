"""Background work of the SVD widget: inspection of a trained model on a validation slice. No Qt here."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from ....errors import InputError
from ....metrics import psnr_between
from ....progress import Budget, Step
from ....super_resolution.analysis import loss_gradients, mode_contributions
from ....super_resolution.bspline import upsample_bspline
from ....super_resolution.data import TrainingData, check_training_volume
from ....super_resolution.intensities import Intensities
from ....super_resolution.model import SRModel
from ....types import Float32Array
from ...layers.conversion import SourceVolume
from .training_worker import SliceSpectra, check_training_memory, slice_spectra


@dataclass(frozen=True, eq=False)
class InspectionRequest:
    """Model to inspect on the validation slice of a volume that is nearest to `index` along `axis`."""

    source: SourceVolume
    model: SRModel
    axis: int
    index: int

    def check(self) -> None:
        """Raise InputError or MemoryError if the request cannot be fulfilled."""
        if self.source.grid.ndim != 3:
            raise InputError(f"'{self.source.name}' is flat; a model is inspected on validation slices of a volume.")
        check_training_memory(self.source.grid.size)


@dataclass(frozen=True, eq=False)
class Inspection:
    """Inspection of a model on a validation slice.

    Attributes
    ----------
    request : InspectionRequest
    index : int
        Slice index.
    gradients : dict of ndarray, (H, W)
        Gradient of each loss with respect to the pixels, summed instead of averaged over pixels.
    residual : ndarray, (H, W)
        Slice minus prediction from its degradation, in the intensities of the volume.
    psnr_db : dict of float
        PSNR of spline, spline with projection, and model.
    spectra : SliceSpectra
    cumulative_db : ndarray, (r,), or None
        Scheme A: PSNR of the sum of the first 1, 2, ... modes, before the projection.
    """

    request: InspectionRequest
    index: int
    gradients: dict[str, Float32Array] = field(repr=False)
    residual: Float32Array = field(repr=False)
    psnr_db: dict[str, float]
    spectra: SliceSpectra = field(repr=False)
    cumulative_db: NDArray[np.float64] | None = field(repr=False)


def inspection_steps(request: InspectionRequest, budget: Budget) -> Generator[Step, None, Inspection | None]:
    """Inspect a model; return None if stopped."""
    yield Step(0.0, "Inspecting the model")
    model = request.model
    s = model.settings.model_copy(update={"slice_axis": "zyx"[request.axis]})
    volume = check_training_volume(np.asarray(request.source.array))
    # The validation set of a training on this volume, which the model has not seen if it was trained on it.
    [validation] = TrainingData([volume], s).validation_sets
    k = int(np.abs(np.array(validation.slices) - request.index).argmin())
    low, target = validation.low[k], validation.target[k].numpy()
    if budget.stop():
        return None
    with torch.no_grad():
        image = model.scheme.eval()(low[None]).image[0].numpy()
    middle = low[len(low) // 2].numpy()
    modes = mode_contributions(model, low.numpy(), target) if s.scheme == "singular-vectors" else None
    onto, data_range = model.scheme.degradation(middle.shape), validation.data_range
    images = {
        "cubic B-spline": upsample_bspline(middle, s.factors),
        "B-spline + projection": upsample_bspline(middle, s.factors, onto=onto),
        "model": image,
    }
    gradients = {name: g * target.size for name, g in loss_gradients(model, low.numpy(), target).items()}
    return Inspection(
        request,
        validation.slices[k],
        gradients,
        (target - image) * np.float32(Intensities.of(volume).scale),
        {name: psnr_between(target, one, data_range) for name, one in images.items()},
        slice_spectra(s, middle, image, target, modes),
        None if modes is None else -10 * np.log10(modes["error"] / data_range**2),
    )
