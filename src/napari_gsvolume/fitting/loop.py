"""The one loop behind every fit: a generator of steps."""

from __future__ import annotations

import importlib.metadata
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from ..gaussians import GaussianVolume
from ..geometry import Grid
from ..observe.voxels import Gaussians, predict
from ..splat import available_device, prepare
from .first_order import FirstOrder
from .gauss_newton import GaussNewton
from .metrics import psnr_db, ssim
from .population import Plan, births, make_plan, seeds, useful
from .settings import FitSettings, make_settings
from .target import Target, check_volume, make_target


@dataclass(frozen=True)
class HistoryPoint:
    """What was reached when."""

    seconds: float
    psnr_db: float
    n_gaussians: int


@dataclass(frozen=True, eq=False)
class FitStep:
    """The state of a fit after one iteration. Cheap: nothing is computed before it is asked for.

    Attributes
    ----------
    iteration : int
        Iterations done.
    seconds : float
        Time since the fit began, kernels' compilation included.
    psnr_db : float
        Over all valid voxels, with the data range max - min.
    n_gaussians : int
        Number of Gaussians now.
    progress : float
        About how much of the fit is over, 0 to 1.
    message : str
        What is going on, or why the fit ended.
    """

    iteration: int
    seconds: float
    psnr_db: float
    n_gaussians: int
    progress: float
    message: str
    settings: FitSettings
    target: Target = field(repr=False)
    state: Gaussians = field(repr=False)
    history: tuple[HistoryPoint, ...] = field(repr=False)

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences about the input the user should know."""
        return self.target.notes

    @property
    def gaussians(self) -> GaussianVolume:
        """The Gaussians now, in the intensities of the volume."""
        t = self.target
        metadata = {
            "software": f"napari-gsvolume {importlib.metadata.version('napari-gsvolume')}",
            "settings": self.settings.model_dump(),
            "metrics": {"psnr_db": self.psnr_db, "seconds": self.seconds, "n_gaussians": self.n_gaussians},
        }
        means, factors, weights = (tensor.cpu() for tensor in self.state)
        return GaussianVolume(means, factors, weights * t.data_range, t.grid, t.background, metadata)

    def reconstruction(self) -> NDArray[np.float32]:
        """Return f at every voxel of the volume, in its intensities, float32."""
        values = predict(self.state, self.target.grid.shape).mul_(self.target.data_range).add_(self.target.background)
        return values.cpu().numpy()

    def result(self) -> FitResult:
        """Return what is worth keeping of a fit that ended here; computes the SSIM."""
        t = self.target
        reconstruction = self.reconstruction()
        volume = t.values.cpu().numpy() * np.float32(t.data_range) + np.float32(t.background)
        valid = None if t.valid is None else t.valid.cpu().numpy()
        similarity = ssim(volume, reconstruction, t.data_range, valid)
        gaussians = self.gaussians
        gaussians.metadata["metrics"]["ssim"] = similarity
        return FitResult(
            gaussians, reconstruction, self.psnr_db, similarity, self.seconds, self.settings, self.history, t.notes,
            self.message,
        )  # fmt: skip


@dataclass(frozen=True, eq=False)
class FitResult:
    """A finished fit.

    Attributes
    ----------
    gaussians : GaussianVolume
        The Gaussians, in the intensities of the volume.
    reconstruction : ndarray, float32
        f at every voxel of the volume.
    psnr_db, ssim : float
        Against the volume, with the data range max - min; SSIM is None for volumes too small for its window.
    seconds : float
        Duration.
    settings : FitSettings
        What was asked for.
    history : tuple of HistoryPoint
        PSNR and N over time.
    notes : tuple of str
        Sentences about the input the user should know.
    message : str
        Why the fit ended.
    """

    gaussians: GaussianVolume
    reconstruction: NDArray[np.float32] = field(repr=False)
    psnr_db: float
    ssim: float | None
    seconds: float
    settings: FitSettings
    history: tuple[HistoryPoint, ...] = field(repr=False)
    notes: tuple[str, ...]
    message: str

    @property
    def n_gaussians(self) -> int:
        """Number of Gaussians."""
        return len(self.gaussians)

    def report(self) -> dict[str, Any]:
        """Return the figures of the fit, ready for JSON."""
        return {
            "psnr_db": self.psnr_db,
            "ssim": self.ssim,
            "n_gaussians": self.n_gaussians,
            "seconds": self.seconds,
            "solver": self.settings.solver,
            "message": self.message,
            "notes": list(self.notes),
            "settings": self.settings.model_dump(),
            "history": [vars(point) for point in self.history],
        }


def fit(volume: ArrayLike, *, affine: ArrayLike | None = None, grid: Grid | None = None, **settings: Any) -> FitResult:
    """Fit Gaussians to a volume.

    Parameters
    ----------
    volume : array_like, (Z, Y, X) or (Y, X)
        Real intensities of any type. NaN and infinite voxels are left out.
    affine : array_like, (D + 1, D + 1), optional
        Takes index coordinates (array axis order) to world coordinates in the same order; kept with the Gaussians.
    grid : Grid, optional
        Instead of `affine`: with units and axis labels too.
    **settings
        Fields of `FitSettings`: ``gaussians``, ``target_psnr``, ``time_limit``, ``solver``, ``seed``, ``device``, ...

    Returns
    -------
    FitResult

    Raises
    ------
    ValueError
        If the volume, the affine or a setting cannot be used; the sentence says why.
    MemoryError
        If the fit would take more memory than is free.

    Examples
    --------
    >>> import napari_gsvolume as gsv
    >>> volume, grid = gsv.vessel_phantom(32)
    >>> result = gsv.fit(volume, gaussians=50, iterations=5, grid=grid)
    >>> result.gaussians.sample(scale=2).shape
    (64, 64, 64)
    """
    [last] = deque(fit_steps(volume, affine=affine, grid=grid, **settings), maxlen=1)
    return last.result()


def fit_steps(
    volume: ArrayLike,
    *,
    affine: ArrayLike | None = None,
    grid: Grid | None = None,
    stop: Callable[[], bool] = lambda: False,
    **settings: Any,
) -> Iterator[FitStep]:
    """Fit Gaussians to a volume, step by step.

    Takes and raises what `fit` does; what is wrong with the input is raised here, before the first step. The first step
    comes at once, before the kernels are compiled. To end the fit just stop asking: the last step has all that was
    reached. `stop` ends it from elsewhere.

    Parameters
    ----------
    volume, affine, grid, **settings
        As in `fit`.
    stop : callable, optional
        Asked between the kernels' calls, also in the middle of an iteration; once it returns True, the step before is
        the last but for one that repeats it with the useless Gaussians removed.

    Yields
    ------
    FitStep
    """
    options = make_settings(**settings)
    array = check_volume(volume)
    if affine is not None and grid is not None:
        raise ValueError("Give an affine or a grid, not both.")
    grid = grid or Grid(array.shape, affine)
    if grid.shape != array.shape:
        raise ValueError(f"The grid is of shape {grid.shape}, the volume of {array.shape}.")
    target = make_target(array, grid, available_device(options.device))
    return _saying_memory_ran_out(_steps(target, options, make_plan(options, target.n_valid), stop))


def _saying_memory_ran_out(steps: Iterator[FitStep]) -> Iterator[FitStep]:
    """Pass the steps on; turn NumPy's and torch's ways of running out of memory into one sentence."""
    try:
        yield from steps
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "allocate memory" not in str(error):
            raise
        raise MemoryError("Memory ran out during the fit; crop the volume or ask for fewer Gaussians.") from error


def _steps(target: Target, settings: FitSettings, plan: Plan, stop: Callable[[], bool]) -> Iterator[FitStep]:
    started = time.perf_counter()
    random = np.random.default_rng(settings.seed)
    solver = _solver(settings, stop)
    state, residual = _nothing(target), target.values
    loss = target.mean_square(residual)
    first_loss = loss
    history: list[HistoryPoint] = []
    iteration, size = 0, 0
    gains: list[float] = []  # dB of each iteration since the last births

    def clock() -> float:
        return time.perf_counter() - started

    def step(message: str) -> FitStep:
        point = HistoryPoint(clock(), psnr_db(loss), len(state.weights))
        history.append(point)
        return FitStep(
            iteration, point.seconds, point.psnr_db, point.n_gaussians, progress(), message, settings, target, state,
            tuple(history),
        )  # fmt: skip

    def progress() -> float:
        shares = [0.0]
        if settings.time_limit is not None:
            shares.append(clock() / settings.time_limit)
        # An open number of Gaussians ends by itself with gauss-newton, which converges; the others need a schedule.
        scheduled = settings.time_limit is None and not (plan.open_ended and settings.solver == "gauss-newton")
        if settings.iterations is not None or scheduled:
            shares.append(iteration / settings.n_iterations)
        if plan.open_ended and settings.target_psnr is not None:
            shares.append((psnr_db(loss) - psnr_db(first_loss)) / max(settings.target_psnr - psnr_db(first_loss), 1e-9))
        return min(1.0, max(shares))

    yield step("Loading the kernels (compiled the very first time: some seconds)")
    prepare(target.values.device)

    ended = ""
    while not ended:
        wanted = plan.wanted(size, progress(), gains) if size else plan.start
        if wanted > size:
            state = _grow(state, residual, loss, wanted, target, random, solver)
            residual = target.residual(predict(state, target.grid.shape))
            loss = target.mean_square(residual)
            size, gains = wanted, []
        before, began = loss, clock()
        state, residual, loss = solver.iterate(state, residual, loss, target, progress())
        iteration += 1
        if solver.evaluated:
            gains.append(psnr_db(loss) - psnr_db(before))

        if stop():
            ended = "Stopped."
        elif settings.target_psnr is not None and psnr_db(loss) >= settings.target_psnr:
            ended = "The target PSNR is reached."
        elif settings.time_limit is not None and clock() + (clock() - began) / 2 > settings.time_limit:
            ended = "The time limit is reached."
        elif progress() >= 1 or iteration == settings.iterations:
            ended = "All iterations are done."
        elif size == plan.final and (solver.stuck or (len(gains) >= 10 and sum(gains[-10:]) < solver.converged_db)):
            ended = "The fit has converged."
        else:
            yield step("Fitting")

    # Afresh: with batches the loss may be some iterations old.
    loss = target.mean_square(target.residual(predict(state, target.grid.shape)))
    keep = _worth_keeping(state, loss, target, solver)
    if not keep.all():
        thinned = state.select(keep)
        residual = target.residual(predict(thinned, target.grid.shape))
        # A target that was reached stays reached: then the few useless ones may stay.
        if settings.target_psnr is None or psnr_db(target.mean_square(residual)) >= min(
            settings.target_psnr, psnr_db(loss)
        ):
            state, loss = thinned, target.mean_square(residual)
    yield step(ended)


def _solver(settings: FitSettings, stop: Callable[[], bool]) -> GaussNewton | FirstOrder:
    if settings.solver == "gauss-newton":
        return GaussNewton(settings.cg_steps, stop)
    return FirstOrder(settings, stop)


def _nothing(target: Target) -> Gaussians:
    ndim = target.grid.ndim
    zeros = target.values.new_zeros
    return Gaussians(zeros(0, ndim), zeros(0, ndim, ndim), zeros(0))


def _worth_keeping(state: Gaussians, loss: float, target: Target, solver: GaussNewton | FirstOrder) -> Tensor:
    """Return a mask of the Gaussians that are useful, or too young to tell."""
    return useful(state, loss, target.n_valid, target.grid.shape) | ~solver.settled(len(state.weights))


def _grow(
    state: Gaussians, residual: Tensor, loss: float, wanted: int, target: Target, random: np.random.Generator,
    solver: GaussNewton | FirstOrder,
) -> Gaussians:  # fmt: skip
    """Return the useful ones of the Gaussians, and as many new ones as make `wanted`."""
    if not len(state.weights):
        return seeds(target.values, wanted, random)
    keep = _worth_keeping(state, loss, target, solver)
    kept = state.select(keep)
    born = births(residual, wanted - len(kept.weights), len(kept.weights), random)
    solver.population_changed(keep, len(born.weights))
    return kept.join(born)
