"""From measurements to Gaussians: a generator of steps.

First the voxels that measurements and a prior agree on are found (`voxels`), then Gaussians are fitted to them
(`napari_gsvolume.fitting`).
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from ..errors import InputError
from ..fitting import FitStep, fit_steps
from ..gaussians import GaussianVolume
from ..grid import Grid
from ..metrics import psnr_between, ssim
from ..progress import Budget
from ..settings import validated
from .measurements import Measurement
from .plug_and_play import estimates
from .plug_and_play import misfit as mean_misfit
from .settings import ITERATIONS, VOXELS_A_GAUSSIAN, RecoverSettings

VOXELS_SHARE = 0.55
"""Of the time, for the voxels."""
_COMPARE_EVERY = 1.0
"""Seconds between two comparisons with the true volume, which take time themselves."""
_NOT_BY_NOISE = 0.02
"""Part of the values, and of their range, that noise may take below zero."""
_LAST_SECONDS = 5.0
"""For Gaussians, once one is stopped while there are only voxels."""


@dataclass(frozen=True)
class RecoverPoint:
    """What was reached when."""

    seconds: float
    misfit: float | None
    """Mean squared difference from the measurements over its variance; of the Gaussians it is told at the end."""
    psnr_db: float | None
    """Against the true volume, if there is one."""
    n_gaussians: int


@dataclass(frozen=True, eq=False)
class RecoverStep:
    """The state of a recovery.

    Attributes
    ----------
    stage : "voxels" or "Gaussians"
    iteration : int
        Of the stage.
    progress : float
        About how much of all is over, 0 to 1.
    message : str
        What is going on, or why it ended.
    history : tuple of RecoverPoint
        The last one is of this step.
    """

    stage: Literal["voxels", "Gaussians"]
    iteration: int
    progress: float
    message: str
    history: tuple[RecoverPoint, ...] = field(repr=False)
    volume: Callable[[], NDArray[np.float32]] = field(repr=False)
    """Returns the volume now, in the intensities measured."""
    voxels: Callable[[], NDArray[np.float32]] = field(repr=False)
    """Returns the voxels that measurements and prior agree on."""
    settings: RecoverSettings = field(repr=False)
    fit: FitStep | None = field(repr=False, default=None)

    @property
    def now(self) -> RecoverPoint:
        """What is reached."""
        return self.history[-1]

    @property
    def gaussians(self) -> GaussianVolume | None:
        """The Gaussians now; None while there are only voxels."""
        return None if self.fit is None else self.fit.gaussians


@dataclass(frozen=True, eq=False)
class Recovered:
    """A finished recovery.

    Attributes
    ----------
    gaussians : GaussianVolume
    reconstruction : ndarray, float32
        The Gaussians at every voxel of the grid.
    voxels : ndarray, float32
        What measurements and prior agreed on, to which the Gaussians were fitted.
    psnr_db, ssim : float or None
        Against the true volume, with its data range max - min, if there is one.
    misfit : float
        Mean squared difference of the measurements from those of the reconstruction, over their variance.
    """

    gaussians: GaussianVolume
    reconstruction: NDArray[np.float32] = field(repr=False)
    voxels: NDArray[np.float32] = field(repr=False)
    psnr_db: float | None
    ssim: float | None
    misfit: float
    seconds: float
    settings: RecoverSettings
    history: tuple[RecoverPoint, ...] = field(repr=False)
    message: str

    def report(self) -> dict[str, Any]:
        """Return the figures, ready for JSON."""
        return {
            "psnr_db": self.psnr_db,
            "ssim": self.ssim,
            "misfit": self.misfit,
            "n_gaussians": len(self.gaussians),
            "seconds": self.seconds,
            "message": self.message,
            "settings": self.settings.model_dump(),
            "history": [vars(point) for point in self.history],
        }


class Recovery:
    """A volume to be recovered.

    Parameters
    ----------
    measurements : sequence of Measurement
        One or more; together they are weighted by their noise.
    grid : Grid
        Of the volume, 3D, each axis as the measurements have it.
    truth : array_like, optional
        The volume itself, to see how near one comes.
    support : array_like, bool, optional
        Where the volume may differ from zero.
    **settings
        Fields of `RecoverSettings`.

    Raises
    ------
    ValueError
        If something does not fit; the sentence says what.
    """

    def __init__(
        self,
        measurements: Sequence[Measurement],
        grid: Grid,
        *,
        truth: ArrayLike | None = None,
        support: ArrayLike | None = None,
        **settings: Any,
    ) -> None:
        self.settings = validated(RecoverSettings, **settings)
        if grid.ndim != 3:
            raise InputError(f"A volume has three axes; this grid has {grid.ndim}.")
        if not measurements:
            raise InputError("There is nothing to recover a volume from: give projections or slices.")
        for name, array in (("true volume", truth), ("support", support)):
            if array is not None and np.shape(array) != grid.shape:
                raise InputError(f"The {name} is of shape {np.shape(array)}, the volume of {grid.shape}.")
        self.measurements, self.grid = list(measurements), grid
        self._truth = None if truth is None else np.asarray(truth, np.float32)
        self._support = None if support is None else torch.from_numpy(np.asarray(support, bool))
        self._unit = max(m.unit() for m in self.measurements)
        for m in self.measurements:
            m.scale(self._unit)
        if any(_below_zero(m) for m in self.measurements):  # Hounsfield units, as a rule
            self.settings = self.settings.model_copy(update={"non_negative": False})

    def steps(self, stop: Callable[[], bool] = lambda: False) -> Iterator[RecoverStep]:
        """Yield a step after each iteration; closing it, or `stop` returning True, ends it with what there is.

        Once stopped while there are only voxels, a quick fit still makes Gaussians of them.
        """
        began, history = time.perf_counter(), list[RecoverPoint]()
        s = self.settings
        voxel_seconds = None if s.time_limit is None else VOXELS_SHARE * s.time_limit
        compared = -np.inf
        psnr: float | None = None
        iteration = 0

        def seconds() -> float:
            return time.perf_counter() - began

        def share() -> float:
            shares = [] if voxel_seconds is None else [seconds() / voxel_seconds]
            if s.iterations is not None or not shares:
                shares.append(iteration / (s.iterations or ITERATIONS))
            return min(1.0, max(shares))

        def point(volume: Callable[[], NDArray[np.float32]], misfit: float | None, n: int) -> None:
            nonlocal compared, psnr
            if self._truth is not None and seconds() - compared >= _COMPARE_EVERY:
                psnr, compared = self._psnr(volume()), seconds()
            history.append(RecoverPoint(seconds(), misfit, psnr, n))

        volume = partial(self._intensities, torch.zeros(self.grid.shape))
        for estimate in estimates(
            self.measurements, self.grid.shape, s.prior, share,
            non_negative=s.non_negative, support=self._support, seed=s.seed, stop=stop,
        ):  # fmt: skip
            volume = partial(self._intensities, estimate.volume)
            point(volume, estimate.misfit, 0)
            yield RecoverStep(
                "voxels", iteration, VOXELS_SHARE * share(), "Measurements and prior", tuple(history),
                volume, volume, s,
            )  # fmt: skip
            iteration += 1
        stopped = stop()
        left = _LAST_SECONDS if stopped else None if s.time_limit is None else max(s.time_limit - seconds(), 1.0)
        iterations = ITERATIONS if s.fit_iterations is None and left is None else s.fit_iterations
        for step in fit_steps(
            volume(), grid=self.grid, gaussians=self._count(), seed=s.seed, time_limit=left, iterations=iterations,
            budget=Budget() if stopped else Budget(stop=stop), device="cpu",
            lambda_sparsity=s.lambda_sparsity, lambda_overlap=s.lambda_overlap, lambda_smoothness=s.lambda_smoothness,
        ):  # fmt: skip
            if step.n_gaussians:
                point(step.reconstruction, None, step.n_gaussians)
                yield RecoverStep(
                    "Gaussians", step.iteration, VOXELS_SHARE + (1 - VOXELS_SHARE) * step.fraction, step.message,
                    tuple(history), step.reconstruction, volume, s, step,
                )  # fmt: skip

    def result(self, step: RecoverStep) -> Recovered:
        """Return what is worth keeping of a recovery that ended with this step."""
        if step.fit is None:
            raise InputError("There are no Gaussians yet.")
        reconstruction = step.volume()
        similarity = None
        if self._truth is not None:
            similarity = ssim(self._truth, reconstruction, float(np.ptp(self._truth)))
        gaussians = step.fit.gaussians
        psnr = None if self._truth is None else self._psnr(reconstruction)
        misfit = mean_misfit(self.measurements, torch.from_numpy(reconstruction / np.float32(self._unit)))
        gaussians.metadata["settings"] = self.settings.model_dump(exclude_defaults=True)
        gaussians.metadata["metrics"] = {"psnr_db": psnr, "ssim": similarity, "misfit": misfit}
        history = *step.history[:-1], replace(step.now, misfit=misfit, psnr_db=psnr)
        return Recovered(
            gaussians, reconstruction, step.voxels(), psnr, similarity, misfit, step.now.seconds, self.settings,
            history, step.message,
        )  # fmt: skip

    def measured_again(self, volume: NDArray[np.float32]) -> list[Tensor]:
        """Return what each measurement would be of a volume, as the measurement has its values, in its own units."""
        relative = torch.from_numpy(volume / np.float32(self._unit))
        return [m.forward(relative) for m in self.measurements]

    def _count(self) -> int:
        n = self.settings.gaussians
        return max(50, self.grid.size // VOXELS_A_GAUSSIAN) if n is None else n

    def _intensities(self, voxels: Tensor) -> NDArray[np.float32]:
        intensities: NDArray[np.float32] = (voxels * self._unit).numpy()
        return intensities

    def _psnr(self, volume: NDArray[np.float32]) -> float:
        assert self._truth is not None
        return psnr_between(self._truth, volume, float(np.ptp(self._truth)))


def recover(measurements: Sequence[Measurement], grid: Grid, **others: Any) -> Recovered:
    """Recover a volume from measurements; parameters as of `Recovery`."""
    recovery = Recovery(measurements, grid, **others)
    [last] = deque(recovery.steps(), maxlen=1)
    return recovery.result(last)


def _below_zero(measurement: Measurement) -> bool:
    """Whether what was measured is below zero, and not by noise."""
    values = measurement.values.numpy()
    return float(np.quantile(values, _NOT_BY_NOISE)) < -_NOT_BY_NOISE * float(np.ptp(values))
