"""Ablation studies: the same volume fitted in several ways, side by side in one table."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any, get_args

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray

from .errors import InputError
from .fitting import FitResult, FitSettings, FitStep, fit_steps
from .fitting.penalties import mean_overlap, spacings
from .fitting.settings import Growth, Study
from .grid import Grid
from .kernels.constants import SUPPORT
from .operators.cut_artefacts import artefact_map, surface_artefact
from .operators.gaussian_sum import Gaussians
from .progress import Budget, Step, finish
from .settings import validated

STUDIES: tuple[str, ...] = get_args(Study)

COLUMNS = {
    "case": "Case",
    "psnr_db": "PSNR (dB)",
    "ssim": "SSIM",
    "n_gaussians": "N",
    "n_bytes": "Bytes (.gsv)",
    "mean_overlap": "Mean overlap",
    "median_spacing": "Median spacing",
    "precision_trace": "Largest precision trace",
    "artefact": "Artefact",
    "seconds": "Seconds",
}
"""Measured quantities of a case: attributes of `CaseResult`, and their column titles in the order of the table."""
_DIGITS = {"psnr_db": 2, "ssim": 4, "mean_overlap": 3, "median_spacing": 3, "precision_trace": 3, "artefact": 3}


@dataclass(frozen=True, eq=False)
class CaseResult:
    """Result of one case of a study.

    Attributes
    ----------
    case : str
        Name of the case.
    psnr_db, ssim, n_gaussians, seconds
        Figures of the fit, as in `FitResult`.
    n_bytes : int
        Size of the Gaussians in a ``.gsv`` file, bytes.
    mean_overlap : float
        Mean over the Gaussians of the summed normalised overlap with all others.
    median_spacing : float
        Median spacing of neighbours: distance over the sum of their radii, at `FitSettings.spacing_radius` sigma.
    precision_trace : float
        Largest trace of an inverse covariance, 1 / voxel^2.
    artefact : float
        Visibility of the ellipsoids' cut surfaces in the residual: energy of its gradient across these surfaces over
        that elsewhere, divided by the same ratio for surfaces of other radii, where nothing is cut. About 1 if the cuts
        do not show.
    result : FitResult
        Result of the fit.
    artefacts : ndarray, (Z, Y, X) or (Y, X), float32
        Map of the artefacts: energy of the residual's gradient on the cut surfaces, 0 elsewhere.
    """

    case: str
    psnr_db: float
    ssim: float | None
    n_gaussians: int
    n_bytes: int
    mean_overlap: float
    median_spacing: float
    precision_trace: float
    artefact: float
    seconds: float
    result: FitResult = field(repr=False)
    artefacts: NDArray[np.float32] = field(repr=False)


@dataclass(frozen=True, eq=False)
class AblationStep(Step):
    """State of a study.

    Attributes
    ----------
    fraction : float
        Fraction of all cases that is done, 0 to 1.
    message : str
        Name and number of the current case.
    index, count : int
        Position of the current case, from 0, and the number of cases.
    case : str
        Name of the current case.
    fit : FitStep
        Latest step of its fit.
    result : CaseResult, optional
        Result of the case; only in its last step.
    """

    index: int
    count: int
    case: str
    fit: FitStep
    result: CaseResult | None = None

    @property
    def summary(self) -> str:
        """Number of Gaussians, PSNR and time of the current fit."""
        return self.fit.summary

    @property
    def has_result(self) -> bool:
        """True once a fit has done an iteration."""
        return self.index > 0 or self.fit.has_result


def cases(study: str) -> dict[str, dict[str, Any]]:
    """Return the cases of a study: their names, and the settings in which they differ.

    Raises
    ------
    InputError
        If there is no such study.
    """
    if study == "spacing":
        targets = {"overlapping, s = 0.6": 0.6, "tangent, s = 1": 1.0, "with a gap, s = 1.4": 1.4}
        asked = {name: {"spacing_weight": 1e-3, "spacing": s} for name, s in targets.items()}
        return {"free": {}, **asked, "overlap penalty": {"overlap_weight": 1e-4}}
    if study == "penalties":
        return {
            "none": {},
            "sparsity 0.001": {"sparsity_weight": 1e-3},
            "sparsity 0.003": {"sparsity_weight": 3e-3},
            "overlap 0.0001": {"overlap_weight": 1e-4},
            "overlap 0.001": {"overlap_weight": 1e-3},
            "smoothness 0.00001": {"smoothness_weight": 1e-5},
            "smoothness 0.0001": {"smoothness_weight": 1e-4},
        }
    if study == "support":
        plain: dict[str, dict[str, Any]] = {"weights": {}}
        for term in ("neighbourhood", "ellipsoid"):
            plain[term] = {"data_term": term}
            plain[f"{term}, normalised"] = {"data_term": term, "normalised": True}
        return plain
    if study == "growth":
        return {name: {"growth": name} for name in get_args(Growth)}
    raise InputError(f"There is no study '{study}'; choose {', '.join(STUDIES)}.")


def ablate(volume: ArrayLike, study: str, *, grid: Grid | None = None, **settings: Any) -> list[CaseResult]:
    """Fit a volume in all the ways of a study; see `ablate_steps`.

    Examples
    --------
    >>> import napari_gsvolume as gsv
    >>> from napari_gsvolume import ablation
    >>> volume, grid = gsv.phantoms.vessel_phantom(16)
    >>> results = ablation.ablate(volume, "spacing", grid=grid, gaussians=5, iterations=1)
    >>> [result.case for result in results]
    ['free', 'overlapping, s = 0.6', 'tangent, s = 1', 'with a gap, s = 1.4', 'overlap penalty']
    """
    return finish(ablate_steps(volume, study, grid=grid, **settings))


def ablate_steps(
    volume: ArrayLike,
    study: str,
    *,
    grid: Grid | None = None,
    budget: Budget | None = None,
    **settings: Any,
) -> Generator[AblationStep, None, list[CaseResult]]:
    """Fit a volume in all the ways of a study, one after another, step by step.

    Parameters
    ----------
    volume : array_like, (Z, Y, X) or (Y, X)
        Real intensities.
    study : {"spacing", "penalties", "support", "growth"}
        Setting to vary.
    grid : Grid, optional
        Grid of the voxels.
    budget : Budget, optional
        Limits of the study. A stop request ends the study without the current case, whose result would not compare.
    **settings
        Fields of `FitSettings` that all cases share.

    Yields
    ------
    AblationStep

    Returns
    -------
    list of CaseResult
        Results of the finished cases.

    Raises
    ------
    InputError
        If there is no such study, or the volume or a setting cannot be used.
    """
    todo = [(name, validated(FitSettings, **{**settings, **own})) for name, own in cases(study).items()]
    return _steps(volume, todo, grid, budget or Budget())


def _steps(
    volume: ArrayLike, todo: list[tuple[str, FitSettings]], grid: Grid | None, budget: Budget
) -> Generator[AblationStep, None, list[CaseResult]]:
    results: list[CaseResult] = []
    for index, (name, options) in enumerate(todo):
        steps = fit_steps(volume, grid=grid, budget=budget, **options.model_dump())
        last, result = yield from _case_steps(steps, name, index, len(todo))
        if budget.stop():
            break
        results.append(_measure(name, last.fit, result))
        yield replace(last, fraction=(index + 1) / len(todo), result=results[-1])
    return results


def _case_steps(
    steps: Generator[FitStep, None, FitResult], name: str, index: int, count: int
) -> Generator[AblationStep, None, tuple[AblationStep, FitResult]]:
    """Yield the steps of one case; return the last of them, and the result of the fit."""
    message = f"{name} ({index + 1} of {count})"
    with closing(steps):
        step = None
        while True:
            try:
                fit = next(steps)
            except StopIteration as end:
                assert step is not None  # a fit yields at least once
                return step, end.value
            step = AblationStep((index + fit.fraction) / count, message, index, count, name, fit)
            yield step


def _measure(name: str, step: FitStep, result: FitResult) -> CaseResult:
    """Return the result of a case, from the last step and the result of its fit."""
    settings = step.settings
    state = Gaussians(result.gaussians.means, result.gaussians.factors, result.gaussians.weights)
    target = step.objective.target
    residual = target.residual(step.objective.predict(step.state))
    # Radius at which the data term cuts; a sum of Gaussians is cut at the end of its support.
    k = settings.ellipsoid_radius if settings.data_term == "ellipsoid" else SUPPORT
    distances = spacings(state, settings.spacing_radius)
    trace = (state.factors**2).sum((1, 2))
    return CaseResult(
        case=name,
        psnr_db=result.psnr_db,
        ssim=result.ssim,
        n_gaussians=result.n_gaussians,
        n_bytes=result.n_bytes,
        mean_overlap=mean_overlap(state),
        median_spacing=float(distances.median()) if len(distances) else math.nan,
        precision_trace=float(trace.max()) if len(trace) else math.nan,
        artefact=surface_artefact(residual, state, k).excess,
        seconds=result.seconds,
        result=result,
        artefacts=artefact_map(residual, state, k),
    )


# The table and the plot -----------------------------------------------------------------------------------------------


def format_row(case: CaseResult) -> list[str]:
    """Return a row of the table, as text."""
    row = []
    for name in COLUMNS:
        value = getattr(case, name)
        if value is None or (isinstance(value, float) and math.isnan(value)):
            row.append("-")
        elif isinstance(value, float):
            row.append(f"{value:.{_DIGITS.get(name, 1)}f}")
        else:
            row.append(f"{value:,}" if isinstance(value, int) else value)
    return row


def to_markdown(cases: list[CaseResult]) -> str:
    """Return the table in Markdown."""
    lines = [list(COLUMNS.values()), ["---"] * len(COLUMNS), *map(format_row, cases)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def to_csv(cases: list[CaseResult]) -> str:
    """Return the table as comma-separated values, unrounded; the header has the attribute names of `CaseResult`."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for case in cases:
        writer.writerow(["" if (value := getattr(case, name)) is None else value for name in COLUMNS])
    return text.getvalue()


def plot(cases: list[CaseResult], title: str) -> Figure:
    """Return a figure with two plots: PSNR of each case over time, and final PSNR over file size."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    histories, ends = figure.subplots(1, 2)
    for case in cases:
        history = case.result.history[1:]
        [line] = histories.plot([p.seconds for p in history], [p.psnr_db for p in history], label=case.case)
        ends.plot(case.n_bytes, case.psnr_db, "o", color=line.get_color())
        ends.annotate(f" {case.case}", (case.n_bytes, case.psnr_db), fontsize=7, va="center", color=line.get_color())
    histories.set(title=title, xlabel="seconds", ylabel="PSNR (dB)")
    ends.set(title="At the end", xlabel="bytes (.gsv)", ylabel="PSNR (dB)")
    ends.margins(x=0.25)
    histories.legend(fontsize=7)
    return figure
