"""Super-resolution of volumes, by a cubic B-spline or by a trained model."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from ..errors import InputError
from ..progress import Budget, Step, finish, rescaled
from ..settings import validated
from ..types import Float32Array
from .bspline import upsample_bspline, upsampling_factors
from .degradation import Degradation
from .intensities import Intensities
from .model import SRModel, check_axes
from .settings import SuperResolveSettings

_MODEL_SETTINGS = ("scheme", "factor", "degradation", "fwhm")
_BATCH_PIXELS = 2**18  # low-resolution pixels of a batch of slices
_SMALLEST_SLICE = 5  # pixels of the shorter side; networks pad with up to 8 mirrored pixels
_PARTS = 40  # parts of a volume, for the progress bar and Stop
_FLIPS: tuple[tuple[int, ...], ...] = (), (-1,), (-2,), (-1, -2)


@dataclass(frozen=True, eq=False)
class SuperResolveStep(Step):
    """State of a super-resolution; there is no result before its end."""

    @property
    def has_result(self) -> bool:
        """False: a part of a super-resolved volume is not worth keeping."""
        return False


@dataclass(frozen=True, eq=False)
class SuperResolved:
    """A super-resolved volume.

    Attributes
    ----------
    volume : ndarray of float32, (round(Z f_z), round(Y f_y), round(X f_x)) or (round(Y f_y), round(X f_x))
        Intensities in the unit of the input.
    factors : tuple of float
        Upsampling factor of each array axis; the grid is ``grid.resampled(factors)``.
    deviation : float
        Data consistency: largest deviation of the degraded result from the input, relative to the largest intensity.
    seconds : float
        Duration.
    """

    volume: Float32Array = field(repr=False)
    factors: tuple[float, ...]
    deviation: float
    seconds: float


def superresolve_steps(
    volume: ArrayLike,
    model: SRModel | None = None,
    *,
    measurement: ArrayLike | None = None,
    intensities: Intensities | None = None,
    budget: Budget | None = None,
    **settings: Any,
) -> Generator[SuperResolveStep, None, SuperResolved | None]:
    """Super-resolve a volume step by step.

    Parameters
    ----------
    volume, model, measurement, intensities, **settings
        As in `superresolve`.
    budget : Budget, optional
        Stop request; its limits do not apply.

    Yields
    ------
    SuperResolveStep
        Fraction of the work that is done.

    Returns
    -------
    SuperResolved or None
        None if the run was stopped before its end.

    Raises
    ------
    InputError
        As in `superresolve`, at the call.

    Examples
    --------
    >>> from napari_gsvolume.phantoms import vessel_phantom
    >>> from napari_gsvolume.super_resolution import superresolve_steps
    >>> steps = superresolve_steps(vessel_phantom(16)[0], factor=2)
    >>> all(0 <= step.fraction <= 1 for step in steps)
    True
    """
    array = _check_volume(volume)
    if model is not None:
        trained = {name: getattr(model.settings, name) for name in _MODEL_SETTINGS}
        settings = trained | settings
    s = validated(SuperResolveSettings, **settings)
    if model is None and s.scheme != "spline":
        raise InputError(f"The scheme {s.scheme} needs a trained model.")
    if model is not None:
        model.check(s)
    axis = "zyx".index(s.slice_axis)
    factors = upsampling_factors(s.factor, axis, s.upsample_axes, array.ndim)
    target = array if measurement is None else _check_volume(measurement)
    if target.shape != array.shape:
        raise InputError(f"The measurement has the shape {target.shape}, and the volume the shape {array.shape}.")
    budget = budget or Budget()
    if model is None:
        upsampled = _upsample_by_spline(array, factors, budget)
    else:
        _check_slices(array, model, axis, s)
        upsampled = _upsample_by_model(array, model, axis, s, intensities, budget)
    return _steps(upsampled, target, factors, s)


def superresolve(
    volume: ArrayLike,
    model: SRModel | None = None,
    *,
    measurement: ArrayLike | None = None,
    intensities: Intensities | None = None,
    **settings: Any,
) -> SuperResolved:
    """Super-resolve a volume by a cubic B-spline, or by a trained model, slice by slice.

    Through-plane, the slices across both other axes are super-resolved and averaged. A model trained in-plane
    super-resolves both axes of them, and the axis that was sharp enough is degraded again.

    Parameters
    ----------
    volume : array_like, (Z, Y, X) or (Y, X)
        Finite intensities. A constant volume stays constant.
    model : SRModel, optional
        Trained model. Its scheme, factor and degradation model are the defaults of the settings of the same names.
    measurement : array_like, optional
        Volume that the result is projected on, and compared with, after degradation; `volume` if omitted. It differs
        from `volume` where that was denoised or truncated before.
    intensities : Intensities, optional
        Intensity normalization for the model; derived from `volume` if omitted. Pass that of the whole volume if
        `volume` is a part of it.
    **settings
        Fields of `SuperResolveSettings`, such as ``factor=2``, ``upsample_axes="through-plane"``, ``slice_axis="z"``,
        ``degradation="block-mean"``, ``project=True``, ``ensemble=True``.

    Returns
    -------
    SuperResolved
        Volume, factors and data consistency.

    Raises
    ------
    InputError
        If the volume is not finite, has other axes or is too small for the model, if a setting is out of range, or if
        the model was trained for other settings.

    See Also
    --------
    superresolve_steps : The same, step by step, and stoppable.
    train_superresolution : Trains a model.

    Notes
    -----
    With ``project=True`` the result is the nearest image, in the least-squares sense, of which the degradation equals
    the measurement: ``F + D^+ (F_L - D F)`` with the degradation D and its pseudo-inverse; see `Degradation`. The
    self-ensemble [2]_ averages the predictions over 4 flips, and over transposition where both axes of a slice are
    super-resolved.

    References
    ----------
    .. [1] M. Unser, "Splines: a perfect fit for signal and image processing", IEEE Signal Processing Magazine 16,
       1999.
    .. [2] B. Lim et al., "Enhanced deep residual networks for single image super-resolution", CVPR workshops, 2017.

    Examples
    --------
    >>> from napari_gsvolume.phantoms import vessel_phantom
    >>> from napari_gsvolume.super_resolution import superresolve
    >>> volume, grid = vessel_phantom(16)
    >>> result = superresolve(volume, factor=2, upsample_axes="through-plane")
    >>> result.volume.shape
    (32, 16, 16)
    >>> result.deviation < 1e-5  # degraded again, it equals the input
    True
    >>> grid.resampled(result.factors).shape
    (32, 16, 16)
    """
    steps = superresolve_steps(volume, model, measurement=measurement, intensities=intensities, **settings)
    result = finish(steps)
    assert result is not None  # nobody can have stopped it
    return result


def _steps(
    upsampled: Generator[SuperResolveStep, None, Float32Array | None],
    measurement: Float32Array,
    factors: tuple[float, ...],
    settings: SuperResolveSettings,
) -> Generator[SuperResolveStep, None, SuperResolved | None]:
    began = time.perf_counter()
    volume = yield from upsampled
    if volume is None:
        return None
    constant = volume.min() == volume.max() and measurement.min() == measurement.max()
    yield SuperResolveStep(1.0, "Projecting on the measurement" if settings.project else "Checking data consistency")
    low, high, factors_of_slices = _as_stacks(measurement, volume, factors)
    degradation = Degradation.of_low(low.shape[1:], factors_of_slices, settings.degradation, settings.fwhm)
    deviation = 0.0
    for here in _parts(len(low)):  # a part at a time, as the projection needs several copies
        if settings.project and not constant:  # a constant volume stays exactly constant
            high[here] = degradation.project(high[here], low[here])
        deviation = max(deviation, float(np.abs(degradation.degrade(high[here]) - low[here]).max()))
    largest = max(float(np.abs(measurement).max()), 1e-30)
    return SuperResolved(volume, factors, deviation / largest, time.perf_counter() - began)


def _as_stacks(
    low: Float32Array, high: Float32Array, factors: tuple[float, ...]
) -> tuple[Float32Array, Float32Array, tuple[float, ...]]:
    """Return views of both volumes as stacks along an axis that keeps its voxels, and the factors of the others."""
    axis = next((k for k, f in enumerate(factors) if f == 1), None)
    if axis is None:
        return low[None], high[None], factors
    return np.moveaxis(low, axis, 0), np.moveaxis(high, axis, 0), factors[:axis] + factors[axis + 1 :]


def _parts(count: int) -> Iterator[slice]:
    """Yield slices that divide a stack into parts."""
    for part in np.array_split(np.arange(count), min(count, _PARTS)):
        yield slice(int(part[0]), int(part[-1]) + 1)


def _upsample_by_spline(
    array: Float32Array, factors: tuple[float, ...], budget: Budget
) -> Generator[SuperResolveStep, None, Float32Array | None]:
    """Upsample by a cubic B-spline; None if stopped."""
    out = np.empty([max(1, round(n * f)) for n, f in zip(array.shape, factors, strict=True)], np.float32)
    low, high, factors_of_slices = _as_stacks(array, out, factors)
    for here in _parts(len(low)):
        if budget.stop():
            return None
        yield SuperResolveStep(here.start / len(low), "Super-resolving")
        high[here] = upsample_bspline(low[here], factors_of_slices)
    return out


def _upsample_by_model(
    array: Float32Array,
    model: SRModel,
    axis: int,
    settings: SuperResolveSettings,
    intensities: Intensities | None,
    budget: Budget,
) -> Generator[SuperResolveStep, None, Float32Array | None]:
    """Upsample by a model, without the final projection; None if stopped."""
    s = model.settings
    if array.min() == array.max():  # no network was trained on constant volumes
        factors = upsampling_factors(s.factor, axis, settings.upsample_axes, array.ndim)
        return np.full([max(1, round(n * f)) for n, f in zip(array.shape, factors, strict=True)], array.flat[0])
    line = Intensities.of(array) if intensities is None else intensities
    normalized = torch.from_numpy((array - np.float32(line.centre)) / np.float32(line.scale))
    if settings.upsample_axes == "in-plane" or array.ndim == 2:
        stack = normalized[None] if array.ndim == 2 else normalized.movedim(axis, 0)
        slices = yield from _predict(model, stack, settings, budget)
        if slices is None:
            return None
        upsampled = slices[0] if array.ndim == 2 else slices.movedim(0, axis)
    else:
        upsampled = torch.zeros(())
        others = [k for k in range(3) if k != axis]
        for k, (across, columns) in enumerate((others, others[::-1])):
            # Slices (across, axis, columns): their rows are along the axis to super-resolve.
            stack = normalized.permute(across, axis, columns)
            slices = yield from rescaled(_predict(model, stack, settings, budget), k / 2, (k + 1) / 2)
            if slices is None:
                return None
            if s.upsample_axes == "in-plane":
                again = Degradation.of_low((array.shape[columns],), (s.factor,), s.degradation, s.fwhm)
                slices = again.degrade(slices)
            upsampled = upsampled + slices.movedim((0, 1, 2), (across, axis, columns)) / 2
    return np.ascontiguousarray(upsampled.numpy()) * np.float32(line.scale) + np.float32(line.centre)


def _predict(
    model: SRModel, slices: Tensor, settings: SuperResolveSettings, budget: Budget
) -> Generator[SuperResolveStep, None, Tensor | None]:
    """Predict slices (n, H, W) from normalized slices (n, h, w); None if stopped."""
    count, *shape = slices.shape
    depth = model.settings.depth
    batch = max(1, _BATCH_PIXELS // (shape[0] * shape[1]))
    transpositions = (False, True) if model.settings.upsample_axes == "in-plane" else (False,)
    views = list(product(_FLIPS, transpositions)) if settings.ensemble else [((), False)]
    parts = []
    model.scheme.eval()
    for first in range(0, count, batch):
        indices = torch.arange(first, min(count, first + batch))[:, None] + torch.arange(depth) - depth // 2
        low = slices[indices.clamp(0, count - 1)].contiguous()
        total = torch.zeros(())
        for k, (flips, transposed) in enumerate(views, 1):
            if budget.stop():
                return None
            view = low.flip(flips)
            with torch.no_grad():  # not around the yield: it would be in force in the consumer, too
                prediction = model.scheme(view.transpose(-1, -2).contiguous() if transposed else view)
            image = prediction.image if settings.project else prediction.raw
            total = total + (image.transpose(-1, -2) if transposed else image).flip(flips)
            yield SuperResolveStep((first + len(low) * k / len(views)) / count, "Super-resolving")
        parts.append(total / len(views))
    return torch.cat(parts)


def _check_volume(volume: ArrayLike) -> Float32Array:
    array = np.asarray(volume)
    if array.ndim not in (2, 3) or array.size == 0 or array.dtype.kind not in "biuf":
        raise InputError(f"A volume has 2 or 3 axes and one intensity a voxel; got the shape {array.shape}.")
    if not np.isfinite(array).all():
        raise InputError("The volume contains NaN or infinite intensities, which would spread; replace them first.")
    return array.astype(np.float32)


def _check_slices(array: Float32Array, model: SRModel, axis: int, settings: SuperResolveSettings) -> None:
    """Raise InputError if slices are too small for a model."""
    check_axes(model.settings.upsample_axes, settings.upsample_axes)
    if array.min() == array.max():
        return
    if array.ndim == 2:
        stacks = [array.shape]
    elif settings.upsample_axes == "in-plane":
        stacks = [tuple(n for k, n in enumerate(array.shape) if k != axis)]
    else:
        stacks = [(array.shape[axis], array.shape[k]) for k in range(3) if k != axis]
    rank = model.settings.rank
    for shape in stacks:
        size = " x ".join(map(str, shape))
        if min(shape) < _SMALLEST_SLICE:
            raise InputError(
                f"Slices of {size} pixels are too small for a model, which needs {_SMALLEST_SLICE} on each side."
            )
        if rank is not None and rank > min(shape):
            raise InputError(f"This model takes {rank} modes of slices; slices of {size} pixels have {min(shape)}.")
