"""Ablation studies: the same volume fitted in several ways, side by side in one table."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, get_args

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray

from .errors import InputError
from .fitting import FitResult, FitSettings, FitStep, fit_steps
from .fitting.penalties import mean_overlap, spacings
from .fitting.settings import Population, Study
from .grid import Grid
from .kernels.constants import SUPPORT
from .operators.cut_artefacts import artefact_map, surface_artefact
from .operators.gaussian_sum import Gaussians
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
"""What a study measures, in the order of its table, and how it is called there."""
_DIGITS = {"psnr_db": 2, "ssim": 4, "mean_overlap": 3, "median_spacing": 3, "precision_trace": 3, "artefact": 3}


@dataclass(frozen=True, eq=False)
class CaseResult:
    """What one case of a study came to.

    Attributes
    ----------
    case : str
        Its name.
    psnr_db, ssim, n_gaussians, seconds
        As of `FitResult`.
    n_bytes : int
        Size of the Gaussians in a ``.gsv`` file.
    mean_overlap : float
        Of a Gaussian with all others: the sum over them of the normalised overlap, averaged.
    median_spacing : float
        Of neighbours: distance over the sum of their radii, at `FitSettings.spacing_radius` sigma.
    precision_trace : float
        Largest trace of an inverse covariance, in 1 / voxel^2.
    artefact : float
        How much the ellipsoids' cut surfaces show in the residual: the energy of its gradient across them over that
        elsewhere, divided by the same for surfaces of other radii, where nothing is cut. About 1 if they don't show.
    result : FitResult
        The fit.
    artefacts : ndarray, float32
        Where they show: the energy of the residual's gradient on the cut surfaces, 0 elsewhere.
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
class AblationStep:
    """Where a study stands: the case under way with its newest step, or with its outcome at its end."""

    index: int
    count: int
    case: str
    step: FitStep
    outcome: CaseResult | None = None

    @property
    def progress(self) -> float:
        """The share of all cases that is done."""
        return (self.index + (1.0 if self.outcome else self.step.progress)) / self.count


def cases(study: str) -> dict[str, dict[str, Any]]:
    """Return the cases of a study: names, and the settings in which they differ.

    Raises
    ------
    ValueError
        If there is no such study.
    """
    if study == "spacing":
        targets = {"overlapping, s = 0.6": 0.6, "tangent, s = 1": 1.0, "with a gap, s = 1.4": 1.4}
        asked = {name: {"lambda_spacing": 1e-3, "spacing": s} for name, s in targets.items()}
        return {"free": {}, **asked, "overlap penalty": {"lambda_overlap": 1e-4}}
    if study == "penalties":
        return {
            "none": {},
            "sparsity 0.001": {"lambda_sparsity": 1e-3},
            "sparsity 0.003": {"lambda_sparsity": 3e-3},
            "overlap 0.0001": {"lambda_overlap": 1e-4},
            "overlap 0.001": {"lambda_overlap": 1e-3},
            "smoothness 0.00001": {"lambda_smoothness": 1e-5},
            "smoothness 0.0001": {"lambda_smoothness": 1e-4},
        }
    if study == "support":
        plain: dict[str, dict[str, Any]] = {"weights": {}}
        for term in ("neighbourhood", "ellipsoid"):
            plain[term] = {"data_term": term}
            plain[f"{term}, normalised"] = {"data_term": term, "normalised": True}
        return plain
    if study == "population":
        return {name: {"population": name} for name in get_args(Population)}
    raise InputError(f"There is no study '{study}'; choose {', '.join(STUDIES)}.")


def ablate_steps(
    volume: ArrayLike,
    study: str,
    *,
    grid: Grid | None = None,
    stop: Callable[[], bool] = lambda: False,
    **settings: Any,
) -> Iterator[AblationStep]:
    """Fit a volume in all the ways of a study, one after another.

    Parameters
    ----------
    volume, grid, stop
        As in `napari_gsvolume.fit_steps`; once `stop` returns True the study ends, without the present case.
    study : {"spacing", "penalties", "support", "population"}
        What to vary.
    **settings
        Fields of `FitSettings` that all cases share.

    Yields
    ------
    AblationStep

    Raises
    ------
    ValueError
        If there is no such study, or the volume or a setting cannot be used.
    """
    todo = [(name, validated(FitSettings, **{**settings, **own})) for name, own in cases(study).items()]
    return _steps(volume, todo, grid, stop)


def _steps(
    volume: ArrayLike, todo: list[tuple[str, FitSettings]], grid: Grid | None, stop: Callable[[], bool]
) -> Iterator[AblationStep]:
    for index, (name, options) in enumerate(todo):
        step = None
        for step in fit_steps(volume, grid=grid, stop=stop, **options.model_dump()):
            yield AblationStep(index, len(todo), name, step)
        assert step is not None  # a fit yields at least once
        if stop():  # in the middle of this case: it would not compare
            return
        yield AblationStep(index, len(todo), name, step, _outcome(name, step))


def _outcome(name: str, step: FitStep) -> CaseResult:
    result, settings = step.result(), step.settings
    state = Gaussians(result.gaussians.means, result.gaussians.factors, result.gaussians.weights)
    target = step.objective.target
    residual = target.residual(step.objective.predict(step.state))
    # Where the data term cuts: the sum of Gaussians at the end of its support.
    k = settings.ellipsoid_radius if settings.data_term == "ellipsoid" else SUPPORT
    distances = spacings(state, settings.spacing_radius)
    trace = (state.factors**2).sum((1, 2))
    return CaseResult(
        name, result.psnr_db, result.ssim, result.n_gaussians, result.n_bytes, mean_overlap(state),
        float(distances.median()) if len(distances) else math.nan, float(trace.max()) if len(trace) else math.nan,
        surface_artefact(residual, state, k).excess, result.seconds, result, artefact_map(residual, state, k),
    )  # fmt: skip


# The table and the plot -----------------------------------------------------------------------------------------------


def format_row(outcome: CaseResult) -> list[str]:
    """Return a row of the table, as text."""
    row = []
    for name in COLUMNS:
        value = getattr(outcome, name)
        if value is None or (isinstance(value, float) and math.isnan(value)):
            row.append("-")
        elif isinstance(value, float):
            row.append(f"{value:.{_DIGITS.get(name, 1)}f}")
        else:
            row.append(f"{value:,}" if isinstance(value, int) else value)
    return row


def to_markdown(outcomes: list[CaseResult]) -> str:
    """Return the table in Markdown."""
    lines = [list(COLUMNS.values()), ["---"] * len(COLUMNS), *map(format_row, outcomes)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def to_csv(outcomes: list[CaseResult]) -> str:
    """Return the table as comma-separated values, unrounded, the names of `CaseResult`'s fields on top."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for outcome in outcomes:
        writer.writerow(["" if (value := getattr(outcome, name)) is None else value for name in COLUMNS])
    return text.getvalue()


def plot(outcomes: list[CaseResult], title: str) -> Figure:
    """Return a figure: PSNR over time of each case, and where each one ends, over bytes."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    histories, ends = figure.subplots(1, 2)
    for outcome in outcomes:
        history = outcome.result.history[1:]
        [line] = histories.plot([p.seconds for p in history], [p.psnr_db for p in history], label=outcome.case)
        ends.plot(outcome.n_bytes, outcome.psnr_db, "o", color=line.get_color())
        ends.annotate(
            f" {outcome.case}", (outcome.n_bytes, outcome.psnr_db), fontsize=7, va="center", color=line.get_color()
        )
    histories.set(title=title, xlabel="seconds", ylabel="PSNR (dB)")
    ends.set(title="At the end", xlabel="bytes (.gsv)", ylabel="PSNR (dB)")
    ends.margins(x=0.25)
    histories.legend(fontsize=7)
    return figure
