"""The one loop behind every fit: a generator of steps."""

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

FITTING_SHARE = 0.88
"""Of the time for a file of a given size; the rest is for rounding and fitting again what is still free."""
RELAXED_FROM = 0.75
"""After this share of a fit sparsity takes no more Gaussians away, and no longer pulls at the weights of the others."""
REARRANGE_EVERY = 5
"""Iterations between two rearrangements of a complete population, for strategies that have them."""


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
    """Pass on the steps of a fit on a device, whose memory is given back at the end, whatever ends it."""
    try:
        return (yield from _steps(Objective(target.to(device), settings), plan, budget))
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
    finally:
        release_cache()
    # Here, not above: the functions that the error's traceback leads to hold tensors.
    raise out_of_memory_error(device)


def _steps(objective: Objective, plan: Plan, budget: Budget) -> Generator[FitStep, None, FitResult]:
    started = time.perf_counter()
    target, settings = objective.target, objective.settings
    random = random_generator(settings.seed, target.values.device)
    solver = _solver(settings, budget)
    places = strategy(settings.growth)
    state = empty(target.grid.ndim, target.values.device)
    now = objective.evaluate(state)
    first_psnr = psnr_db(now.mean_square)
    # A file of a given size is made at the end, and takes its share of the time.
    seconds = (
        None if settings.time_limit is None else settings.time_limit * (1 if plan.n_bytes is None else FITTING_SHARE)
    )
    history: list[HistoryPoint] = []
    iteration, size = 0, 0
    gains: list[float] = []  # dB of each iteration since the population last changed
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
        # An open number of Gaussians ends by itself with gauss-newton, which converges; the others need a schedule.
        scheduled = seconds is None and not (plan.open_ended and settings.solver == "gauss-newton")
        if settings.iterations is not None or scheduled:
            shares.append(iteration / settings.n_iterations)
        if plan.open_ended and settings.target_psnr is not None:
            shares.append((psnr_db(now.mean_square) - first_psnr) / max(settings.target_psnr - first_psnr, 1e-9))
        return min(1.0, max(shares))

    def become(change: Change) -> None:
        nonlocal state, now, gains
        state, gains = change.gaussians, []
        solver.gaussians_changed(change.kept, change.born)
        now = evaluated()

    def evaluated() -> Evaluation:
        objective.refresh(state)
        return objective.evaluate(state)

    yield step("Loading the kernels (compiled the very first time: some seconds)")
    prepare(target.values.device)

    ended, converged = "", False
    while not ended:
        wanted = plan.wanted(size, progress(), gains) if size else plan.start
        if wanted > size:
            objective.set_count(wanted)
            become(_grown(state, now.residual, now.mean_square, wanted, objective, random, solver, places))
            size = wanted
        elif size == plan.final and len(gains) >= REARRANGE_EVERY and progress() < EXACT_FROM:
            change = places.rearrange(state, now.residual, random)
            if change is not None:
                become(change)
        if objective.sparsity > 0 and (progress() > RELAXED_FROM or converged):
            objective.lift_sparsity()
            solver.objective_changed()
            now, gains, converged = evaluated(), [], False
        now = objective.refreshed(state, now)
        before, began = now, clock()
        state, now = solver.iterate(state, now, objective, progress())
        iteration += 1
        if solver.evaluated:
            gains.append(psnr_db(now.loss) - psnr_db(before.loss))
        idle = objective.idle(state, now.residual)
        if idle is not None:
            state = state.select(~idle)
            solver.gaussians_changed(~idle, 0)

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

    now = evaluated()  # afresh: with batches it may be some iterations old
    keep = _worth_keeping(state, now.mean_square, objective, solver)
    if not keep.all():
        thinned = state.select(keep)
        objective.refresh(thinned)
        without = objective.evaluate(thinned)
        # A target that was reached stays reached: then the few useless ones may stay.
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
        now = evaluated()
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
    """Return a mask of the Gaussians that are useful, or too young to tell."""
    if objective.support is not None:  # without weights there is no telling
        return torch.ones_like(state.weights, dtype=torch.bool)
    target = objective.target
    young = ~solver.settled(len(state.weights)).to(state.weights.device)
    return useful_mask(state, mean_square, target.n_valid, target.grid.shape) | young


def _grown(
    state: Gaussians, residual: Tensor, mean_square: float, wanted: int, objective: Objective,
    random: torch.Generator, solver: GaussNewton | FirstOrder, places: Strategy,
) -> Change:  # fmt: skip
    """Return the useful ones of the Gaussians, and as many new ones as make `wanted`."""
    if not len(state.weights):
        change = Change(
            torch.zeros_like(state.weights, dtype=torch.bool),
            initial_gaussians(objective.target.values, wanted, random),
        )
    else:
        keep = _worth_keeping(state, mean_square, objective, solver)
        grown = places.grow(state.select(keep), residual, wanted, random)
        kept = keep.clone()
        kept[keep] = grown.kept
        change = Change(kept, grown.gaussians)
    if objective.support is None:
        return change
    # Without weights: every Gaussian counts once, and a new one must not be too much from the start.
    means, factors, weights = change.gaussians
    sigma = objective.support.initial_sigma(residual.numel(), wanted, residual.ndim)
    born = change.born
    round_ones = torch.eye(residual.ndim, device=residual.device).div(max(sigma, 0.3)).expand(born, -1, -1)
    factors = torch.cat([factors[: len(factors) - born], round_ones])
    return Change(change.kept, Gaussians(means, factors, torch.ones_like(weights)))
