"""What decomposes all slices and makes volumes finer beside the viewer. No Qt here."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ....errors import GSVolumeError, InputError
from ....grid import Grid
from ....super_resolution.bspline import upsample_bspline, upsampling_factors
from ....super_resolution.degradation import Degradation
from ....super_resolution.model import SRModel, superresolve
from ....super_resolution.settings import SuperResolveSettings
from ....svd import decomposition
from ....types import Float64Array
from ...layers.conversion import SourceVolume
from ..shared.worker import run_in_background
from .slice_matrix import BYTES_A_PIXEL, Matrix, MatrixKind, check_memory

_BYTES_A_FINE_VOXEL = 8  # the result, and what the viewer makes of it
_BYTES_OF_A_MODEL = 20  # a finer voxel, at the peak of the projection of all of it
_BYTES_A_VOXEL = 12  # the source in float32, what is truncated of it, and the source's own
_NEWS_EVERY = 0.2
_PARTS = 40  # into how many a volume is cut to be made finer, for the bar to move and Stop to be heard


@dataclass(frozen=True, eq=False)
class Spectra:
    """The singular values of the slices so far, (slices, r), NaN of those to come, and how many are done.

    `key` is whatever the caller knows the volume by.
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


def run_spectra(source: SourceVolume, axis: int, key: Any, stop: Callable[[], bool]) -> Iterator[Spectra]:
    """Decompose all slices of a volume; yield what there is a few times a second, and at the end."""
    yield from run_in_background(_spectra(source, axis, key, stop))


def _spectra(source: SourceVolume, axis: int, key: Any, stop: Callable[[], bool]) -> Iterator[Spectra]:
    shape = source.grid.shape
    values = np.full((shape[axis], min(n for k, n in enumerate(shape) if k != axis)), np.nan)
    due = 0.0
    done = 0
    for done, one in enumerate(decomposition.iter_spectra(np.asarray(source.array), axis), 1):
        values[done - 1] = one
        if stop():
            break
        if time.perf_counter() >= due:
            due = time.perf_counter() + _NEWS_EVERY
            yield Spectra(source, axis, key, values.copy(), done)
    yield Spectra(source, axis, key, values, done)


# Finer ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class FinerOrder:
    """What is to be made finer: a volume, or what is left of it at a rank of each slice or of its unfolding."""

    source: SourceVolume
    settings: SuperResolveSettings
    rank: int | None = None
    kind: MatrixKind = "slice"
    model: SRModel | None = None
    """For the schemes a and b."""

    @property
    def axis(self) -> int:
        """The array axis along which the slices are stacked."""
        return 0 if self.source.grid.ndim == 2 else "zyx".index(self.settings.slice_axis)

    @property
    def factors(self) -> tuple[float, ...]:
        """For each array axis."""
        return upsampling_factors(self.settings.factor, self.axis, self.settings.upsample_axes, self.source.grid.ndim)

    @property
    def grid(self) -> Grid:
        """Where the finer voxels are."""
        return self.source.grid.resampled(self.factors)

    def check(self) -> None:
        """Raise ValueError or MemoryError if it cannot be done."""
        learned = self.settings.scheme != "spline"
        if learned:
            if self.model is None:
                raise InputError(
                    f"Scheme {self.settings.scheme} needs a model; train one in the tab Learn, or load one there."
                )
            self.model.check(self.settings)
        grid, source = self.grid, self.source.grid
        needed = grid.size * (_BYTES_OF_A_MODEL if learned else _BYTES_A_FINE_VOXEL) + source.size * _BYTES_A_VOXEL
        if self.rank is not None and self.kind == "unfolding":
            needed = max(needed, source.size * BYTES_A_PIXEL)
        check_memory(needed, f"Making {' x '.join(map(str, grid.shape))} voxels")


@dataclass(frozen=True, eq=False)
class Finer:
    """How far a super-resolution is; at its end the volume.

    Attributes
    ----------
    order : FinerOrder
    doing : str
    progress : float
    volume : ndarray, float32, or None
    misfit : float
        The largest difference from the source, degraded again, as a part of the source's largest intensity.
    seconds : float
    """

    order: FinerOrder
    doing: str
    progress: float
    volume: NDArray[np.float32] | None = field(default=None, repr=False)
    misfit: float = 0.0
    seconds: float = 0.0


def run_finer(order: FinerOrder, stop: Callable[[], bool]) -> Iterator[Finer]:
    """Make a volume finer, a part at a time; yield how far it is, and last the volume if it was not stopped."""
    yield from run_in_background(_finer(order, stop))


def _finer(order: FinerOrder, stop: Callable[[], bool]) -> Iterator[Finer]:
    began, due = time.perf_counter(), 0.0
    volume = np.asarray(order.source.array)
    if volume.dtype.kind not in "biuf" or not np.isfinite(volume).all():
        raise InputError("There are NaN or infinite intensities, which would spread; replace them first.")
    measured = volume.astype(np.float32)
    shown = measured
    share = 0.0
    if order.rank is not None:
        share = 0.5
        # A loop: a generator cannot yield what another returns otherwise.
        for done, count, shown in _at_rank(measured, order):  # noqa: B007
            if stop():
                return
            yield Finer(order, f"At rank {order.rank}: slice {done} of {count}", share * done / count)
    made = (_by_spline if order.settings.scheme == "spline" else _by_model)(order, measured, shown, stop)
    for part, out, worst in made:
        if out is not None:
            misfit = worst / max(float(np.abs(measured).max()), 1e-30)
            yield Finer(order, "Finished", 1.0, out, misfit, time.perf_counter() - began)
        elif time.perf_counter() >= due:
            due = time.perf_counter() + _NEWS_EVERY
            yield Finer(order, "Making it finer", share + (1 - share) * part)


Made = tuple[float, NDArray[np.float32] | None, float]
"""The part that is done; at the end what was made, and the largest difference of it, degraded, from the source."""


def _by_spline(
    order: FinerOrder, measured: NDArray[np.float32], shown: NDArray[np.float32], stop: Callable[[], bool]
) -> Iterator[Made]:
    factors, s = order.factors, order.settings
    out = np.empty(order.grid.shape, np.float32)
    # Slices along an axis that stays as it is are a batch, taken a few at a time; a flat image is one of its own.
    along = next((k for k, f in enumerate(factors) if f == 1), None)
    if along is None:
        low, given, high = measured[None], shown[None], out[None]
    else:
        low, given, high = (np.moveaxis(array, along, 0) for array in (measured, shown, out))
        factors = tuple(f for k, f in enumerate(factors) if k != along)
    onto = Degradation.of_low(low.shape[1:], factors, s.degradation, s.fwhm)
    worst, n = 0.0, len(low)
    for part in np.array_split(np.arange(n), min(n, _PARTS)):
        if stop():
            return
        yield int(part[0]) / n, None, 0.0
        here = slice(int(part[0]), int(part[-1]) + 1)
        finer = upsample_bspline(given[here], factors)
        finer = onto.project(finer, low[here]) if s.project else finer
        worst = max(worst, float(np.abs(onto.degrade(finer) - low[here]).max()))
        high[here] = finer
    yield 1.0, out, worst


class _StoppedError(GSVolumeError):
    """Stop was pressed."""


def _by_model(
    order: FinerOrder, measured: NDArray[np.float32], shown: NDArray[np.float32], stop: Callable[[], bool]
) -> Iterator[Made]:
    s, done = order.settings, 0.0
    assert order.model is not None

    def tell(part: float) -> None:
        nonlocal done
        done = part
        if stop():
            raise _StoppedError

    # In a thread of its own: what tells how far it is cannot yield it.
    with ThreadPoolExecutor(1) as thread:
        work = thread.submit(
            superresolve,
            shown,
            order.model,
            order.axis,
            s.upsample_axes,
            project=s.project,
            ensemble=s.ensemble,
            tell=tell,
        )
        while wait([work], _NEWS_EVERY).not_done:
            yield done, None, 0.0
    try:
        finer = work.result()
    except _StoppedError:
        return
    onto = Degradation.of_low(measured.shape, order.factors, s.degradation, s.fwhm)
    if s.project and order.rank is not None:  # on the image itself, not what is left of it at the rank
        finer = onto.project(finer, measured)
    yield 1.0, finer, float(np.abs(onto.degrade(finer) - measured).max())


def _at_rank(volume: NDArray[np.float32], order: FinerOrder) -> Iterator[tuple[int, int, NDArray[np.float32]]]:
    """Yield how many slices of how many are truncated, and the volume they are in."""
    assert order.rank is not None
    out = volume.copy()
    if order.source.grid.ndim == 2 or order.kind == "unfolding":
        matrix = Matrix(order.source, order.axis, order.kind)
        image = volume if matrix.flat else decomposition.unfold(volume, order.axis)
        out[...] = matrix.folded(_best(image, order.rank))
        yield 1, 1, out
        return
    slices, results = np.moveaxis(volume, order.axis, 0), np.moveaxis(out, order.axis, 0)
    for k, one in enumerate(slices):
        results[k] = _best(one, order.rank)
        yield k + 1, len(slices), out


def _best(image: NDArray[np.float32], rank: int) -> NDArray[np.float32]:
    """Return the best image of a rank; one that is constant has rank 1 at most, and stays."""
    if image.min() == image.max():
        return image
    return decomposition.decompose(image, min(rank, *image.shape)).truncate(min(rank, *image.shape)).astype(np.float32)
