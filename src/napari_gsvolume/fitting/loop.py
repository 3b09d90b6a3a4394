"""Loop of a fit: a generator of steps."""

from __future__ import annotations

import time
from collections.abc import Generator
from dataclasses import replace
from typing import Any

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from ..devices import unused_gpu_note
from ..errors import InputError
from ..grid import Grid
from ..kernels import available_device, prepare
from ..memory import check_device, is_out_of_memory, out_of_memory_error, release_cache
from ..metrics import psnr_db
from ..operators.gaussian_sum import Gaussians, empty
from ..progress import Budget, finish
from ..settings import validated
from .file_size import check_size, fit_to_size
from .first_order import FirstOrder
from .gauss_newton import EXACT_FROM, GaussNewton
from .growth import Plan, initial_gaussians, make_growth_plan, random_generator, useful_mask
from .objective import Evaluation, Objective
from .result import FitResult, FitStep, HistoryPoint, fit_result
from .settings import FitSettings
from .split_merge import Change
from .strategies import Strategy, strategy
from .target import Target, check_volume, make_target

FIT_TIME_FRACTION = 0.88
"""Fraction of the time limit for the fit itself if a file size is given; the rest is for rounding and refitting."""
RELAXED_FROM = 0.75
"""Fraction of a fit after which sparsity removes no more Gaussians, and no longer shrinks the other weights."""
REARRANGE_EVERY = 5
"""Iterations between two rearrangements after all Gaussians are there, for growth strategies that have them."""


def fit(volume: ArrayLike, *, affine: ArrayLike | None = None, grid: Grid | None = None, **settings: Any) -> FitResult:
    """Fit Gaussians to a volume.

    Parameters
    ----------
    volume : array_like, (Z, Y, X) or (Y, X)
        Real intensities of any numeric type. NaN and infinite voxels are left out of the fit.
    affine : array_like, (D + 1, D + 1), optional
        Affine from index coordinates (array axis order) to world coordinates in the same order; it is stored with the
        Gaussians. The identity by default.
    grid : Grid, optional
        Grid with affine, units and axis labels, instead of `affine`.
    **settings
        Fields of `FitSettings`: ``gaussians``, ``target_psnr``, ``time_limit``, ``solver``, ``seed``, ``device``, ...

    Returns
    -------
    FitResult
        Gaussians, reconstruction, PSNR, SSIM and history.

    Raises
    ------
    InputError
        If the volume, the affine or a setting cannot be used; a ValueError, the message says why.
    OutOfMemoryError
        If the fit needs more memory than is free; a MemoryError.

    See Also
    --------
    fit_steps : Fit step by step, with previews and a way to stop.

    References
    ----------
    .. [1] B. Kerbl, G. Kopanas, T. Leimkuehler, G. Drettakis. 3D Gaussian Splatting for Real-Time Radiance Field
       Rendering. ACM Transactions on Graphics 42(4), 2023.
    .. [2] K. Levenberg. A Method for the Solution of Certain Non-Linear Problems in Least Squares. Quarterly of Applied
       Mathematics 2(2), 1944.

    Examples
    --------
    >>> import napari_gsvolume as gsv
    >>> volume, grid = gsv.phantoms.vessel_phantom(16)
    >>> result = gsv.fit(volume, gaussians=20, iterations=3, grid=grid)
    >>> result.gaussians.sample(scale=2).shape
    (32, 32, 32)
    """
    return finish(fit_steps(volume, affine=affine, grid=grid, **settings))


def fit_steps(
    volume: ArrayLike,
    *,
    affine: ArrayLike | None = None,
    grid: Grid | None = None,
    budget: Budget | None = None,
    **settings: Any,
) -> Generator[FitStep, None, FitResult]:
    """Fit Gaussians to a volume, step by step.

    Input errors are raised by the call itself, before the first step. The first step comes at once, before the kernels
    are compiled, and shows the background alone.

    Parameters
    ----------
    volume, affine, grid, **settings
        Parameters of `fit`.
    budget : Budget, optional
        Limits in addition to those of the settings. Its stop request is read between the calls of the kernels, also in
        the middle of an iteration. A stopped fit yields one more step, without useless Gaussians, and returns its
        result.

    Yields
    ------
    FitStep
        State after each iteration.

    Returns
    -------
    FitResult
        Return value of the generator (``value`` of the StopIteration): the same result as of `fit`.

    Raises
    ------
    InputError
        If the volume, the affine or a setting cannot be used; a ValueError.
    OutOfMemoryError
        If the fit needs more memory than is free; a MemoryError.

    See Also
    --------
    fit : The same fit in one call.
    napari_gsvolume.progress : Protocol of long runs.

    Examples
    --------
    >>> import napari_gsvolume as gsv
    >>> from napari_gsvolume.progress import finish
    >>> volume, grid = gsv.phantoms.vessel_phantom(16)
    >>> steps = gsv.fit_steps(volume, grid=grid, gaussians=20, iterations=3)
    >>> next(steps).n_gaussians
    0
    >>> finish(steps).n_gaussians <= 20
    True
    """
    options = validated(FitSettings, **settings)
    budget = (budget or Budget()).limited(options.iterations, options.time_limit)
    options = options.model_copy(update={"iterations": budget.iterations, "time_limit": budget.time_limit})
    array = check_volume(volume)
    if affine is not None and grid is not None:
        raise InputError("Give an affine or a grid, not both.")
    grid = grid or Grid(array.shape, affine)
    if grid.shape != array.shape:
        raise InputError(f"The grid is of shape {grid.shape}, the volume of {array.shape}.")
    device = available_device(options.device)
    target = make_target(array, grid)
    if options.device == "auto" and (note := unused_gpu_note()):
        target = replace(target, notes=(*target.notes, note))
    plan = make_growth_plan(options, target.n_valid, array.size, array.ndim)
    check_device(device, grid.shape, options.data_term, 0 if plan.open_ended else plan.final)
    if plan.n_bytes is not None:
        check_size(plan.n_bytes, grid)
    return _on_device(target, options, plan, torch.device(device), budget)


def _on_device(
    target: Target, settings: FitSettings, plan: Plan, device: torch.device, budget: Budget
) -> Generator[FitStep, None, FitResult]:
    """Pass on the steps of a fit on a device, and release the memory of the device however the fit ends."""
    try:
        return (yield from _steps(Objective(target.to(device), settings), plan, budget))
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
    finally:
        release_cache()
    # Raised here, not in the handler: the traceback of the original error keeps tensors alive.
    raise out_of_memory_error(device)


def _steps(objective: Objective, plan: Plan, budget: Budget) -> Generator[FitStep, None, FitResult]:
    started = time.perf_counter()
    target, settings = objective.target, objective.settings
    random = random_generator(settings.seed, target.values.device)
    solver = _solver(settings, budget)
    growth = strategy(settings.growth)
    state = empty(target.grid.ndim, target.values.device)
    now = objective.evaluate(state)
    first_psnr = psnr_db(now.mean_square)
    # A file of a given size is made at the end, and needs its share of the time.
    seconds = (
        None
        if settings.time_limit is None
        else settings.time_limit * (1 if plan.n_bytes is None else FIT_TIME_FRACTION)
    )
    history: list[HistoryPoint] = []
    iteration, size = 0, 0
    gains: list[float] = []  # dB gained by each iteration since the number of Gaussians last changed
    rounding: float | None = None

    def clock() -> float:
        return time.perf_counter() - started

    def step(message: str) -> FitStep:
        point = HistoryPoint(clock(), psnr_db(now.mean_square), len(state.weights), now.terms)
        history.append(point)
        return FitStep(
            progress(),
            message,
            iteration=iteration,
            seconds=point.seconds,
            psnr_db=point.psnr_db,
            n_gaussians=point.n_gaussians,
            objective=objective,
            state=state,
            history=tuple(history),
            rounding=rounding,
        )

    def progress() -> float:
        shares = [0.0]
        if seconds is not None:
            shares.append(clock() / seconds)
        # Without a fixed number of Gaussians, gauss-newton ends by convergence; the other solvers need a schedule.
        scheduled = seconds is None and not (plan.open_ended and settings.solver == "gauss-newton")
        if settings.iterations is not None or scheduled:
            shares.append(iteration / settings.n_iterations)
        if plan.open_ended and settings.target_psnr is not None:
            shares.append((psnr_db(now.mean_square) - first_psnr) / max(settings.target_psnr - first_psnr, 1e-9))
        return min(1.0, max(shares))

    def apply(change: Change) -> None:
        nonlocal state, now, gains
        state, gains = change.gaussians, []
        solver.gaussians_changed(change.kept, change.n_new)
        now = evaluate()

    def evaluate() -> Evaluation:
        objective.refresh(state)
        return objective.evaluate(state)

    yield step("Loading the kernels (the first time they are compiled, which takes some seconds)")
    prepare(target.values.device)

    ended, converged = "", False
    while not ended:
        wanted = plan.target_count(size, progress(), gains) if size else plan.start
        if wanted > size:
            objective.set_count(wanted)
            apply(_grown(state, now.residual, now.mean_square, wanted, objective, random, solver, growth))
            size = wanted
        elif size == plan.final and len(gains) >= REARRANGE_EVERY and progress() < EXACT_FROM:
            change = growth.rearrange(state, now.residual, random)
            if change is not None:
                apply(change)
        if objective.sparsity > 0 and (progress() > RELAXED_FROM or converged):
            objective.lift_sparsity()
            solver.objective_changed()
            now, gains, converged = evaluate(), [], False
        now = objective.refreshed(state, now)
        before, began = now, clock()
        state, now = solver.iterate(state, now, objective, progress())
        iteration += 1
        if solver.evaluated:
            gains.append(psnr_db(now.loss) - psnr_db(before.loss))
        zeroed = objective.zeroed_mask(state, now.residual)
        if zeroed is not None:
            state = state.select(~zeroed)
            solver.gaussians_changed(~zeroed, 0)

        if budget.stop():
            ended = "Stopped."
        elif settings.target_psnr is not None and psnr_db(now.mean_square) >= settings.target_psnr:
            ended = "The target PSNR is reached."
        elif seconds is not None and clock() + (clock() - began) / 2 > seconds:
            ended = "The time limit is reached."
        elif progress() >= 1 or iteration == settings.iterations:
            ended = "All iterations are done."
        else:
            still = len(gains) >= 10 and sum(gains[-10:]) < solver.converged_db
            converged = size == plan.final and (solver.stuck or still)
            if converged and objective.sparsity == 0:
                ended = "The fit has converged."
            else:
                yield step("Fitting")

    now = evaluate()  # with batches the evaluation may be some iterations old
    keep = _worth_keeping(state, now.mean_square, objective, solver)
    if not keep.all():
        thinned = state.select(keep)
        objective.refresh(thinned)
        without = objective.evaluate(thinned)
        # The useless Gaussians stay if the fit would fall below the target PSNR without them.
        if settings.target_psnr is None or psnr_db(without.mean_square) >= min(
            settings.target_psnr, psnr_db(now.mean_square)
        ):
            state, now = thinned, without
    if plan.n_bytes is not None:
        whole = step("Rounding to the size of the file")
        yield whole
        left = None if settings.time_limit is None else max(settings.time_limit - clock(), 1e-9)
        state, rounding = fit_to_size(
            objective, whole.gaussians, plan.n_bytes, Budget(time_limit=left, stop=budget.stop)
        )
        now = evaluate()
    last = replace(step(ended), is_last=True)
    yield last
    return fit_result(last)


def _solver(settings: FitSettings, budget: Budget) -> GaussNewton | FirstOrder:
    if settings.solver == "gauss-newton":
        return GaussNewton(settings.cg_steps, budget)
    return FirstOrder(settings, budget)


def _worth_keeping(
    state: Gaussians, mean_square: float, objective: Objective, solver: GaussNewton | FirstOrder
) -> Tensor:
    """Return a mask of the Gaussians that are useful, or too new to decide."""
    if objective.support is not None:  # without weights usefulness is not defined
        return torch.ones_like(state.weights, dtype=torch.bool)
    target = objective.target
    new = ~solver.settled(len(state.weights)).to(state.weights.device)
    return useful_mask(state, mean_square, target.n_valid, target.grid.shape) | new


def _grown(
    state: Gaussians,
    residual: Tensor,
    mean_square: float,
    wanted: int,
    objective: Objective,
    random: torch.Generator,
    solver: GaussNewton | FirstOrder,
    growth: Strategy,
) -> Change:
    """Return the useful Gaussians, and new ones up to the number `wanted`."""
    if not len(state.weights):
        change = Change(
            torch.zeros_like(state.weights, dtype=torch.bool),
            initial_gaussians(objective.target.values, wanted, random),
        )
    else:
        keep = _worth_keeping(state, mean_square, objective, solver)
        grown = growth.grow(state.select(keep), residual, wanted, random)
        kept = keep.clone()
        kept[keep] = grown.kept
        change = Change(kept, grown.gaussians)
    if objective.support is None:
        return change
    # Without weights every Gaussian has full height: new ones start small enough not to dominate.
    means, factors, weights = change.gaussians
    sigma = objective.support.initial_sigma(residual.numel(), wanted, residual.ndim)
    born = change.n_new
    isotropic = torch.eye(residual.ndim, device=residual.device).div(max(sigma, 0.3)).expand(born, -1, -1)
    factors = torch.cat([factors[: len(factors) - born], isotropic])
    return Change(change.kept, Gaussians(means, factors, torch.ones_like(weights)))
