"""Background work of the SVD widget: spectra of all slices, and super-resolution. No Qt here."""

from __future__ import annotations

import time
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ....errors import InputError
from ....grid import Grid
from ....progress import Budget, Step, rescaled
from ....super_resolution.bspline import upsampling_factors
from ....super_resolution.model import SRModel
from ....super_resolution.settings import SuperResolveSettings
from ....super_resolution.upsampling import SuperResolved, SuperResolveStep, superresolve_steps
from ....svd import decomposition
from ....types import Float32Array, Float64Array
from ...layers.conversion import SourceVolume
from .slice_matrix import BYTES_A_PIXEL, Matrix, MatrixKind, check_memory

_BYTES_PER_FINE_VOXEL = 8  # the result, and its copy in the viewer
_BYTES_PER_PREDICTED_VOXEL = 20  # by a model, at the peak
_BYTES_PER_VOXEL = 12  # the source, its float32 copy and its truncated copy
_STEP_EVERY = 0.2  # seconds


@dataclass(frozen=True, eq=False)
class Spectra:
    """Singular values of the slices of a volume.

    Attributes
    ----------
    source : SourceVolume
    axis : int
        Axis along which the slices are stacked.
    key : object
        Identity of the volume, for the caller.
    values : ndarray, (slices, r)
        Singular values; NaN for slices that are not decomposed yet.
    done : int
        Number of slices that are decomposed.
    """

    source: SourceVolume
    axis: int
    key: Any
    values: Float64Array = field(repr=False)
    done: int

    @property
    def count(self) -> int:
        """Number of slices."""
        return len(self.values)


@dataclass(frozen=True, eq=False)
class SpectraStep(Step):
    """State of the decomposition of all slices.

    Attributes
    ----------
    spectra : Spectra
    """

    spectra: Spectra = field(repr=False)


def spectra_steps(
    source: SourceVolume, axis: int, key: Any, budget: Budget
) -> Generator[SpectraStep, None, Spectra | None]:
    """Decompose all slices of a volume; return the spectra so far, or None if no slice is decomposed."""
    shape = source.grid.shape
    values = np.full((shape[axis], min(n for k, n in enumerate(shape) if k != axis)), np.nan)
    due, done = 0.0, 0
    for done, one in enumerate(decomposition.iter_spectra(np.asarray(source.array), axis), 1):
        values[done - 1] = one
        if budget.stop():
            break
        if time.perf_counter() >= due:
            due = time.perf_counter() + _STEP_EVERY
            message = f"Decomposed {done} of {len(values)} slices"
            yield SpectraStep(done / len(values), message, Spectra(source, axis, key, values.copy(), done))
    return Spectra(source, axis, key, values, done) if done else None


@dataclass(frozen=True, eq=False)
class SuperResolveRequest:
    """Volume to super-resolve, possibly truncated to a rank before, and settings.

    Attributes
    ----------
    source : SourceVolume
    settings : SuperResolveSettings
    rank : int, optional
        Rank to truncate each slice, or the unfolding, to.
    kind : {"slice", "unfolding"}
        Matrix that is truncated.
    model : SRModel, optional
        Trained model, for the schemes other than spline.
    """

    source: SourceVolume
    settings: SuperResolveSettings
    rank: int | None = None
    kind: MatrixKind = "slice"
    model: SRModel | None = None

    @property
    def axis(self) -> int:
        """Array axis along which the slices are stacked."""
        return 0 if self.source.grid.ndim == 2 else "zyx".index(self.settings.slice_axis)

    @property
    def factors(self) -> tuple[float, ...]:
        """Upsampling factor of each array axis."""
        return upsampling_factors(self.settings.factor, self.axis, self.settings.upsample_axes, self.source.grid.ndim)

    @property
    def grid(self) -> Grid:
        """Grid of the super-resolved volume."""
        return self.source.grid.resampled(self.factors)

    def check(self) -> None:
        """Raise InputError or MemoryError if the request cannot be fulfilled."""
        by_model = self.settings.scheme != "spline"
        if by_model:
            if self.model is None:
                raise InputError(
                    f"The scheme {self.settings.scheme} needs a model; train or load one in the tab Train."
                )
            self.model.check(self.settings)
        grid, source = self.grid, self.source.grid
        needed = grid.size * (_BYTES_PER_PREDICTED_VOXEL if by_model else _BYTES_PER_FINE_VOXEL)
        needed += source.size * _BYTES_PER_VOXEL
        if self.rank is not None and self.kind == "unfolding":
            needed = max(needed, source.size * BYTES_A_PIXEL)
        check_memory(needed, f"A result of {' x '.join(map(str, grid.shape))} voxels")


def superresolve_request_steps(
    request: SuperResolveRequest, budget: Budget
) -> Generator[SuperResolveStep, None, SuperResolved | None]:
    """Super-resolve the volume of a request; return None if stopped."""
    volume = np.asarray(request.source.array)
    if volume.dtype.kind not in "biuf" or not np.isfinite(volume).all():
        raise InputError("The volume contains NaN or infinite intensities, which would spread; replace them first.")
    measurement = volume.astype(np.float32)
    low, start = measurement, 0.0
    if request.rank is not None:
        start = 0.5
        truncated = yield from rescaled(_truncate_steps(measurement, request, budget), 0.0, start)
        if truncated is None:
            return None
        low = truncated
    model = None if request.settings.scheme == "spline" else request.model
    steps = superresolve_steps(low, model, measurement=measurement, budget=budget, **request.settings.model_dump())
    return (yield from rescaled(steps, start, 1.0))


def _truncate_steps(
    volume: Float32Array, request: SuperResolveRequest, budget: Budget
) -> Generator[SuperResolveStep, None, Float32Array | None]:
    """Truncate each slice of a volume, or its unfolding, to the rank of a request; return None if stopped."""
    assert request.rank is not None
    out = volume.copy()
    if request.source.grid.ndim == 2 or request.kind == "unfolding":
        matrix = Matrix(request.source, request.axis, request.kind)
        image = volume if matrix.flat else decomposition.unfold(volume, request.axis)
        out[...] = matrix.folded(_truncate(image, request.rank))
        return None if budget.stop() else out
    slices, results = np.moveaxis(volume, request.axis, 0), np.moveaxis(out, request.axis, 0)
    for k, one in enumerate(slices):
        if budget.stop():
            return None
        yield SuperResolveStep(k / len(slices), f"Truncating to rank {request.rank}: slice {k + 1} of {len(slices)}")
        results[k] = _truncate(one, request.rank)
    return out


def _truncate(image: NDArray[np.float32], rank: int) -> NDArray[np.float32]:
    """Return the best image of a rank; a constant image stays, as its rank is 1 at most."""
    if image.min() == image.max():
        return image
    rank = min(rank, *image.shape)
    return decomposition.decompose(image, rank).truncate(rank).astype(np.float32)
