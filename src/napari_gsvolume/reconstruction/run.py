"""Reconstruction of a volume, as Gaussians, from measurements: `reconstruct` and `reconstruct_steps`.

First plug-and-play ADMM reconstructs voxels from measurements and an image prior (`plug_and_play`), then Gaussians are
fitted to the voxels (`napari_gsvolume.fitting`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from ..errors import InputError
from ..fitting import FitResult, FitStep, fit_steps
from ..grid import Grid
from ..metrics import psnr_between, ssim
from ..progress import Budget, finish, never
from ..settings import validated
from ..tomography.scan import Scan
from ..types import Float32Array
from .measurements import Measurement, ProjectionMeasurements
from .plug_and_play import admm_iterates, mean_squared_residual
from .problem import MeasurementInput, Problem, build_problem
from .result import ReconstructionResult, ReconstructPoint, ReconstructStep, Reprojection
from .settings import DEFAULT_ITERATIONS, VOXELS_PER_GAUSSIAN, ReconstructSettings

VOXEL_SHARE = 0.55
"""Share of the run, and of a time limit, for the voxels; the rest is for the fit of the Gaussians."""
_COMPARISON_INTERVAL = 1.0
"""Seconds between two comparisons with the true volume, which take time themselves."""
_NOISE_FRACTION = 0.02
"""Fraction of the values, and of their range, that noise may take below zero."""
_LAST_SECONDS = 5.0
"""Seconds for the fit of the Gaussians once a run is stopped while there are only voxels."""


def reconstruct(
    measurements: MeasurementInput | Sequence[MeasurementInput],
    *,
    scan: Scan | None = None,
    grid: Grid | None = None,
    truth: ArrayLike | None = None,
    support: ArrayLike | None = None,
    budget: Budget | None = None,
    **settings: Any,
) -> ReconstructionResult:
    """Reconstruct a volume, as Gaussians, from projections, from slices, or from both.

    Parameters
    ----------
    measurements : array_like (K, V, U), Projections, SliceStack, Measurement, or a sequence of these
        X-ray projections, as line integrals in intensity times mm; stacks of slices; or any other linear
        measurements. Several measurements are weighted by their noise, which is estimated from projections.
    scan : Scan, optional
        Acquisition geometry of projections that are an array.
    grid : Grid, optional
        Voxel grid of the reconstruction, 3D. The default is that of the first stack of slices, refined to isotropic
        voxels if all of its slices are known; without slices it is that of the scan.
    truth : array_like, (Z, Y, X), optional
        True volume on the grid, for PSNR and SSIM only.
    support : array_like of bool, (Z, Y, X), optional
        Mask of the voxels that may differ from zero.
    budget : Budget, optional
        Limits of the run and its stop request. A run that is stopped returns the best it has reached; one that is
        stopped before there are Gaussians still fits them for a few seconds.
    **settings
        Fields of `ReconstructSettings`, such as ``gaussians=2000``, ``time_limit=60`` or ``prior="tv"``.

    Returns
    -------
    ReconstructionResult
        Gaussians, voxels, quality and history.

    Raises
    ------
    ValueError
        If measurements, geometry, grid and settings do not fit each other.
    MemoryError
        If the grid has more voxels than the memory can take.

    See Also
    --------
    reconstruct_steps : The same as a generator, with previews.
    napari_gsvolume.tomography.project : The forward operator.
    napari_gsvolume.tomography.attenuation : Line integrals of raw intensities.

    Notes
    -----
    The voxels minimize the data fidelity ``sum_m |A_m x - y_m|^2 / variance_m`` together with an image prior, by the
    alternating direction method of multipliers with a denoiser in place of the proximal operator of the prior
    (plug-and-play ADMM [1]_). The denoiser is block matching with collaborative hard thresholding (BM4D [2]_), or total
    variation [3]_. The quadratic subproblem is solved by conjugate gradients. Projections are modelled by ray casting,
    slices by a Gaussian slice profile.

    References
    ----------
    .. [1] S. V. Venkatakrishnan, C. A. Bouman and B. Wohlberg, "Plug-and-play priors for model based reconstruction",
       IEEE GlobalSIP, 945-948, 2013.
    .. [2] M. Maggioni, V. Katkovnik, K. Egiazarian and A. Foi, "Nonlocal transform-domain filter for volumetric data
       denoising and reconstruction", IEEE Trans. Image Process. 22(1), 119-133, 2013.
    .. [3] L. I. Rudin, S. Osher and E. Fatemi, "Nonlinear total variation based noise removal algorithms", Physica D
       60, 259-268, 1992.

    Examples
    --------
    From projections and their geometry:

    >>> from napari_gsvolume import phantoms
    >>> from napari_gsvolume.reconstruction import SliceStack, reconstruct
    >>> from napari_gsvolume.tomography import circular_scan, project, spread_angles
    >>> volume, grid = phantoms.vessel_phantom(16)
    >>> scan = circular_scan(volume.shape, 1.0, spread_angles(8, 180))
    >>> images = project(volume, scan).images
    >>> result = reconstruct(images, scan=scan, gaussians=20, iterations=2, fit_iterations=2)
    >>> result.gaussians.grid.shape
    (16, 16, 16)

    From every second slice along z:

    >>> result = reconstruct(SliceStack(volume, grid, every=2), gaussians=20, iterations=2, fit_iterations=2)
    >>> result.reconstruction.shape
    (16, 16, 16)
    """
    return finish(
        reconstruct_steps(measurements, scan=scan, grid=grid, truth=truth, support=support, budget=budget, **settings)
    )


def reconstruct_steps(
    measurements: MeasurementInput | Sequence[MeasurementInput],
    *,
    scan: Scan | None = None,
    grid: Grid | None = None,
    truth: ArrayLike | None = None,
    support: ArrayLike | None = None,
    budget: Budget | None = None,
    **settings: Any,
) -> Generator[ReconstructStep, None, ReconstructionResult]:
    """Reconstruct a volume, step by step.

    Parameters and errors are those of `reconstruct`; errors of the input are raised by the call itself, before the
    first step.

    Yields
    ------
    ReconstructStep
        State after each iteration.

    Returns
    -------
    ReconstructionResult
        The return value of the generator.

    Examples
    --------
    >>> from napari_gsvolume import phantoms
    >>> from napari_gsvolume.reconstruction import SliceStack, reconstruct_steps
    >>> volume, grid = phantoms.vessel_phantom(16)
    >>> steps = reconstruct_steps(SliceStack(volume, grid, every=2), gaussians=20, iterations=2, fit_iterations=2)
    >>> [step.stage for step in steps]
    ['voxels', 'voxels', 'voxels', 'Gaussians', 'Gaussians']
    """
    checked = validated(ReconstructSettings, **settings)
    problem = build_problem(measurements, scan=scan, grid=grid, truth=truth, support=support)
    return _Run(problem, checked).steps(budget or Budget())


class _Run:
    """Reconstruction of one problem, in intensities relative to a unit."""

    def __init__(self, problem: Problem, settings: ReconstructSettings) -> None:
        self._measurements, self._grid = problem.measurements, problem.grid
        self._truth, self._support = problem.truth, problem.support
        self._unit = max(m.intensity_scale() for m in self._measurements)
        for m in self._measurements:
            m.normalize(self._unit)
        if any(_is_negative(m) for m in self._measurements):  # Hounsfield units, as a rule
            settings = settings.model_copy(update={"non_negative": False})
        self._settings = settings
        self._history: list[ReconstructPoint] = []
        self._psnr: float | None = None
        self._compared = -np.inf

    def steps(self, budget: Budget) -> Generator[ReconstructStep, None, ReconstructionResult]:
        began, s = time.perf_counter(), self._settings
        limits = budget.limited(s.iterations, s.time_limit)

        def seconds() -> float:
            return time.perf_counter() - began

        # First the voxels, from measurements and prior.
        volume = partial(self._in_intensities, torch.zeros(self._grid.shape))
        for iteration, iterate in enumerate(
            admm_iterates(
                self._measurements,
                self._grid.shape,
                s.prior,
                _voxel_budget(limits),
                non_negative=s.non_negative,
                support=self._support,
                seed=s.seed,
            )
        ):
            volume = partial(self._in_intensities, iterate.volume)
            history = self._record(seconds(), volume, iterate.data_fidelity, 0)
            yield ReconstructStep(
                fraction=VOXEL_SHARE * iterate.fraction,
                message="Measurements and prior",
                stage="voxels",
                iteration=iteration,
                history=history,
                volume=volume,
                voxels=volume,
                reproject=partial(self._reproject, volume),
            )

        # Then Gaussians, fitted to the voxels.
        voxels = volume()
        with closing(self._fit_steps(voxels, limits, seconds())) as fits:
            while True:
                try:
                    step = next(fits)
                except StopIteration as end:
                    return self._result(end.value, voxels, seconds())
                if step.n_gaussians:
                    history = self._record(seconds(), step.reconstruction, None, step.n_gaussians)
                    yield ReconstructStep(
                        fraction=VOXEL_SHARE + (1 - VOXEL_SHARE) * step.fraction,
                        message=step.message,
                        stage="Gaussians",
                        iteration=step.iteration,
                        history=history,
                        volume=step.reconstruction,
                        voxels=volume,
                        reproject=partial(self._reproject, step.reconstruction),
                        fit=step,
                    )

    def _fit_steps(self, voxels: Float32Array, limits: Budget, seconds: float) -> Generator[FitStep, None, FitResult]:
        """Fit Gaussians to the voxels in the time that is left; briefly if the run was stopped before."""
        s, stopped = self._settings, limits.stop()
        left = _LAST_SECONDS if stopped else None
        if not stopped and limits.time_limit is not None:
            left = max(limits.time_limit - seconds, 1.0)
        iterations = DEFAULT_ITERATIONS if s.fit_iterations is None and left is None else s.fit_iterations
        count = max(50, self._grid.size // VOXELS_PER_GAUSSIAN) if s.gaussians is None else s.gaussians
        return fit_steps(
            voxels,
            grid=self._grid,
            gaussians=count,
            seed=s.seed,
            time_limit=left,
            iterations=iterations,
            budget=Budget(stop=never if stopped else limits.stop),
            device="cpu",
            sparsity_weight=s.sparsity_weight,
            overlap_weight=s.overlap_weight,
            smoothness_weight=s.smoothness_weight,
        )

    def _result(self, fit: FitResult, voxels: Float32Array, seconds: float) -> ReconstructionResult:
        gaussians, reconstruction = fit.gaussians, fit.reconstruction
        if not len(gaussians):
            raise InputError("No Gaussians were fitted to the reconstructed volume.")
        predictions = self._predict(reconstruction)
        fidelity = mean_squared_residual(self._measurements, predictions)
        psnr = similarity = None
        if self._truth is not None:
            psnr, similarity = self._psnr_of(reconstruction), ssim(self._truth, reconstruction, self._data_range)
        gaussians.metadata["settings"] = self._settings.model_dump(exclude_defaults=True)
        gaussians.metadata["metrics"] = {"psnr_db": psnr, "ssim": similarity, "data_fidelity": fidelity}
        *earlier, last = self._history
        return ReconstructionResult(
            gaussians=gaussians,
            reconstruction=reconstruction,
            voxels=voxels,
            reprojection=self._reprojection(predictions),
            psnr_db=psnr,
            ssim=similarity,
            data_fidelity=fidelity,
            seconds=seconds,
            settings=self._settings,
            history=(*earlier, replace(last, data_fidelity=fidelity, psnr_db=psnr)),
            message=fit.message,
        )

    def _record(
        self, seconds: float, volume: Callable[[], Float32Array], fidelity: float | None, count: int
    ) -> tuple[ReconstructPoint, ...]:
        """Append to the history; compare with the true volume now and then."""
        if self._truth is not None and seconds - self._compared >= _COMPARISON_INTERVAL:
            self._psnr, self._compared = self._psnr_of(volume()), seconds
        self._history.append(ReconstructPoint(seconds, fidelity, self._psnr, count))
        return tuple(self._history)

    def _predict(self, volume: Float32Array) -> list[Tensor]:
        """Return the predicted values of all measurements."""
        relative = torch.from_numpy(volume / np.float32(self._unit))
        return [m.forward(relative) for m in self._measurements]

    def _reproject(self, volume: Callable[[], Float32Array]) -> Reprojection | None:
        if not any(isinstance(m, ProjectionMeasurements) for m in self._measurements):
            return None
        return self._reprojection(self._predict(volume()))

    def _reprojection(self, predictions: Sequence[Tensor]) -> Reprojection | None:
        for m, values in zip(self._measurements, predictions, strict=True):
            if isinstance(m, ProjectionMeasurements):
                images = m.line_integrals(values)
                return Reprojection(images, m.images - images)
        return None

    def _in_intensities(self, voxels: Tensor) -> Float32Array:
        intensities: Float32Array = (voxels * self._unit).numpy()
        return intensities

    @property
    def _data_range(self) -> float:
        return float(np.ptp(self._truth)) if self._truth is not None else 0.0

    def _psnr_of(self, volume: Float32Array) -> float:
        assert self._truth is not None
        return psnr_between(self._truth, volume, self._data_range)


def _voxel_budget(limits: Budget) -> Budget:
    """Return the limits of the first stage; a default number of iterations where there is no limit at all."""
    if limits.time_limit is None:
        return Budget(limits.iterations or DEFAULT_ITERATIONS, None, limits.stop)
    return Budget(limits.iterations, VOXEL_SHARE * limits.time_limit, limits.stop)


def _is_negative(measurement: Measurement) -> bool:
    """Return whether measured values are below zero by more than noise."""
    values = measurement.values.numpy()
    return float(np.quantile(values, _NOISE_FRACTION)) < -_NOISE_FRACTION * float(np.ptp(values))
