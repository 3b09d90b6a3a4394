"""Ways to a `Tracker`'s epochs: the steps of a training, saved checkpoints; and domains, of one model as it is."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
from torch import nn

from ...errors import InputError
from ..findings.finding import Finding, Thresholds
from ..findings.group_comparisons import find_drift
from ..findings.probe_inputs import SAMPLES, PrincipalComponents, ProbeInputs, input_moments
from .tracker import ProbeData, Tracker


class Judged(Protocol):
    """A step of a training: its iteration, and a history that grows whenever the model is judged."""

    @property
    def iteration(self) -> int:
        """Counted from 1."""

    @property
    def history(self) -> Sized:
        """One entry a judgment."""


Step = TypeVar("Step", bound=Judged)


def track_training_steps(steps: Iterator[Step], tracker: Tracker) -> Generator[Step]:
    """Yield the steps of a training, and record the model before the first one and whenever it has been judged.

    The iteration is the epoch. Closing this closes the steps. Where a later state cannot be recorded, as a model that
    has diverged, that is a warning, and the training goes on by itself.
    """
    try:
        tracker.record(0)
        judged = 1
        for step in steps:
            if 0 < judged < len(step.history):
                judged = len(step.history)
                try:
                    tracker.record(step.iteration)
                except ValueError as error:
                    warnings.warn(f"Tracking ended at iteration {step.iteration}: {error}", stacklevel=2)
                    judged = 0
            yield step
    finally:
        close = getattr(steps, "close", None)
        if close is not None:
            close()


@dataclass(frozen=True, eq=False)
class CheckpointStep:
    """How far the tracking of checkpoints is.

    Attributes
    ----------
    done, total : int
        Checkpoints.
    path : Path
        The last one.
    epoch : float
        What it was recorded as.
    tracker : Tracker
        With all up to this one.
    """

    done: int
    total: int
    path: Path
    epoch: float
    tracker: Tracker = field(repr=False)


def track_checkpoints(
    paths: Iterable[str | Path],
    load: Callable[[Path], nn.Module],
    layers: Sequence[str] | None,
    probe_inputs: ProbeData,
    groups: Sequence[Any] | None = None,
    **more: Any,
) -> Iterator[CheckpointStep]:
    """Yield a step after each of the checkpoints of a training, in their natural order ("epoch-2" before "epoch-10").

    Epochs are the last numbers in the files' names if each has one and no two have the same, else 0, 1, 2, ... One
    checkpoint at a time is in memory.

    Parameters
    ----------
    paths : iterable of path
    load : callable
        Returns the model of a path.
    layers, probe_inputs, groups, **more
        As of `Tracker`.

    Raises
    ------
    ValueError
        If there is no path; what `load` and `Tracker` raise.
    """
    ordered = sorted({Path(path) for path in paths}, key=natural_key)
    if not ordered:
        raise InputError("There are no checkpoints to track.")
    tracker: Tracker | None = None
    for done, (path, epoch) in enumerate(zip(ordered, parse_epochs(ordered), strict=True), 1):
        model = load(path)
        if tracker is None:
            tracker = Tracker(model, layers, probe_inputs, groups, **more)
        tracker.model = model
        tracker.record(epoch)
        yield CheckpointStep(done, len(ordered), path, epoch, tracker)


def natural_key(path: Path) -> list[tuple[int, int, str]]:
    """Return a key by which paths are sorted as people count: numbers by their value."""
    parts = re.split(r"(\d+)", str(path.with_suffix("")))
    return [(0, int(part), "") if k % 2 else (1, 0, part) for k, part in enumerate(parts)]


def parse_epochs(paths: Sequence[Path]) -> list[float]:
    """Return the last number in each name, or 0, 1, 2, ... where one has none or they do not ascend."""
    numbers = [re.findall(r"\d+", path.stem) for path in paths]
    if all(numbers):
        last = [float(found[-1]) for found in numbers]
        if all(a < b for a, b in pairwise(last)):
            return last
    return [float(k) for k in range(len(paths))]


def compare_domains(
    model: nn.Module,
    inputs_a: ProbeData,
    inputs_b: ProbeData,
    layers: Sequence[str] | None = None,
    *,
    names: tuple[str, str] = ("a", "b"),
    paired: bool = False,
    k: int = 16,
    max_samples: int = SAMPLES,
    thresholds: Thresholds | None = None,
    seed: int = 0,
    **more: Any,
) -> list[Finding]:
    """Find where a model treats two domains differently, or inputs and what a perturbation makes of them.

    Parameters
    ----------
    model : nn.Module
    inputs_a, inputs_b
        As of `Tracker`.
    layers : sequence of str, optional
    names : (str, str)
        Of the two, for the sentences.
    paired : bool
        Whether each input of b is that of a, in the same order, after something was done to it; see `find_drift`.
    k, max_samples, thresholds, seed, **more
        As of `Tracker`.

    Raises
    ------
    ValueError
        If there are fewer than 8 inputs together, or pairs of another number; and as of `activations`.
    """
    probe, t = ProbeInputs(inputs_a, inputs_b), thresholds or Thresholds()
    decomposed = probe.decomposed(model, layers, max_samples=max_samples, seed=seed, **more)
    a, b = probe.counts
    if paired and a != b:
        raise InputError(f"There are {a} and {b} inputs, which are no pairs.")
    probes = {}
    for layer, d in decomposed.items():
        principal = PrincipalComponents.of(d, k)
        probes[layer] = input_moments(d, principal.concepts, principal.shares, a + b)
    return find_drift(probes, np.repeat(names, (a, b)), t, paired=paired, seed=seed)
