"""Tracking of trainings: steps of a running one, or its saved checkpoints; and the comparison of domains."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Generator, Iterable, Sequence, Sized
from contextlib import closing
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import ArrayLike
from torch import nn

from ...errors import InputError
from ...progress import Budget, Step, finish
from ...settings import validated
from ..findings.finding import Finding, Thresholds
from ..findings.group_comparisons import find_drift
from ..findings.probe_inputs import SAMPLES, PrincipalComponents, ProbeInputs, input_moments
from ..models.explained_model import ExplainedModel, Model
from ..models.inputs import Images, Volume, as_volumes, prepare_images
from ..models.loading import checkpoint_loader, load_model
from ..settings import TrackSettings
from .tracker import ProbeData, Tracker

_SAMPLES_PER_INPUT = 64  # smallest number


class ValidatedStep(Protocol):
    """Step of a training: its iteration, and a history that grows with each validation."""

    @property
    def iteration(self) -> int:
        """Number of the iteration, from 1."""

    @property
    def history(self) -> Sized:
        """One entry per validation."""


StepT = TypeVar("StepT", bound=ValidatedStep)
ResultT = TypeVar("ResultT")


def track_training_steps(steps: Generator[StepT, None, ResultT], tracker: Tracker) -> Generator[StepT, None, ResultT]:
    """Yield the steps of a training, record the model initially and after each validation, and return the result.

    The iteration is recorded as the epoch. Closing this generator closes the steps. If a later state cannot be
    recorded, such as a model that has diverged, a warning is issued and the training continues without tracking.
    """
    with closing(steps):
        tracker.record(0)
        validations = 1
        while True:
            try:
                step = next(steps)
            except StopIteration as end:
                return end.value  # type: ignore[no-any-return]
            if 0 < validations < len(step.history):
                validations = len(step.history)
                try:
                    tracker.record(step.iteration)
                except ValueError as error:
                    warnings.warn(f"Tracking ended at iteration {step.iteration}: {error}", stacklevel=2)
                    validations = 0
            yield step


@dataclass(frozen=True, eq=False)
class CheckpointStep(Step):
    """Step after each checkpoint that is tracked.

    Attributes
    ----------
    done, total : int
        Numbers of checkpoints.
    path : Path
        Last checkpoint.
    epoch : float
        Epoch that it is recorded as.
    tracker : Tracker
        Tracker with all checkpoints so far.
    """

    done: int
    total: int
    path: Path
    epoch: float
    tracker: Tracker = field(repr=False)

    @property
    def summary(self) -> str:
        """Number of checkpoints."""
        return f"{self.done} of {self.total} checkpoints"


def track_checkpoints(
    paths: Iterable[str | Path],
    load: Callable[[Path], nn.Module],
    layers: Sequence[str] | None,
    probe_inputs: ProbeData,
    groups: Sequence[Any] | None = None,
    **options: Any,
) -> Tracker:
    """Return a tracker of the checkpoints of a training; see `track_checkpoints_steps`."""
    return finish(track_checkpoints_steps(paths, load, layers, probe_inputs, groups, **options))


def track_checkpoints_steps(
    paths: Iterable[str | Path],
    load: Callable[[Path], nn.Module],
    layers: Sequence[str] | None,
    probe_inputs: ProbeData,
    groups: Sequence[Any] | None = None,
    *,
    budget: Budget | None = None,
    **options: Any,
) -> Generator[CheckpointStep, None, Tracker]:
    """Track the checkpoints of a training, in natural order ("epoch-2" before "epoch-10"), with a step after each.

    Epochs are the last numbers in the names of the files if each has one and they ascend, else 0, 1, 2, ... Only one
    checkpoint at a time is in memory.

    Parameters
    ----------
    paths : iterable of path
    load : callable
        Returns the model of a path.
    layers, probe_inputs, groups, **options
        As in `Tracker`.
    budget : Budget, optional
        Stop request: the checkpoints so far are kept.

    Raises
    ------
    InputError
        If there are no paths; also errors of `load` and `Tracker`.
    """
    ordered = sorted({Path(path) for path in paths}, key=natural_key)
    if not ordered:
        raise InputError("There are no checkpoints to track.")
    stop = (budget or Budget()).stop

    def steps() -> Generator[CheckpointStep, None, Tracker]:
        tracker: Tracker | None = None
        for done, (path, epoch) in enumerate(zip(ordered, parse_epochs(ordered), strict=True), 1):
            model = load(path)
            if tracker is None:
                tracker = Tracker(model, layers, probe_inputs, groups, **options)
            tracker.model = model
            tracker.record(epoch)
            message = f"{path.name} as epoch {epoch:g}"
            yield CheckpointStep(done / len(ordered), message, done, len(ordered), path, epoch, tracker)
            if stop():
                break
        assert tracker is not None
        return tracker

    return steps()


@dataclass(frozen=True, eq=False)
class Tracking:
    """Training that was tracked by its checkpoints.

    Attributes
    ----------
    model : ExplainedModel
        Model of the first checkpoint, or that of the factory.
    images : Images
        Inputs of the model.
    settings : TrackSettings
    checkpoints : tuple of Path
        Checkpoints that were tracked, in order.
    total : int
        Number of checkpoints that were given; larger if the run was stopped.
    tracker : Tracker
        Evolution of the layers, and findings.
    """

    model: ExplainedModel
    images: Images = field(repr=False)
    settings: TrackSettings
    checkpoints: tuple[Path, ...]
    total: int
    tracker: Tracker = field(repr=False)


def track(
    checkpoints: Iterable[str | Path],
    images: Sequence[Volume | ArrayLike],
    settings: TrackSettings | None = None,
    *,
    model: str | ExplainedModel | None = None,
    **options: Any,
) -> Tracking:
    """Follow a network through the checkpoints of its training, on images.

    Parameters
    ----------
    checkpoints : iterable of path
        Files of one training, which are taken in natural order: super-resolution models, or weights of `model`.
    images : sequence of Volume or array_like, (Z, Y, X) or (Y, X)
        Images that every checkpoint is run on.
    settings : TrackSettings, optional
        Settings; or give them as keywords, as in ``track(checkpoints, images, k=4)``.
    model : str or ExplainedModel, optional
        Model that the weights belong to, or its factory, ``package.module:function``; not needed for super-resolution
        models.

    Returns
    -------
    Tracking

    Raises
    ------
    OSError, FileFormatError
        If a checkpoint cannot be read.
    InputError
        If there are no checkpoints, their weights do not fit the model, or as in `explain`.

    See Also
    --------
    track_steps : The same as a long run.
    Tracker : Record a model during its training.

    Examples
    --------
    >>> import tempfile, numpy as np, torch
    >>> from pathlib import Path
    >>> from napari_gsvolume import explain
    >>> network = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for epoch in (1, 2):
    ...         torch.save(network.state_dict(), Path(folder) / f"epoch-{epoch}.pt")
    ...     volume = np.random.default_rng(0).normal(size=(8, 8, 8))
    ...     tracking = explain.track(Path(folder).glob("*.pt"), [volume], model=explain.ExplainedModel(network), k=2)
    >>> tracking.tracker.evolution("0").epochs
    array([1., 2.])
    """
    chosen = validated(TrackSettings, **options) if settings is None else settings
    return finish(track_steps(checkpoints, images, chosen, model=model))


def track_steps(
    checkpoints: Iterable[str | Path],
    images: Sequence[Volume | ArrayLike],
    settings: TrackSettings | None = None,
    *,
    model: str | ExplainedModel | None = None,
    budget: Budget | None = None,
) -> Generator[CheckpointStep, None, Tracking]:
    """Follow the checkpoints of a training as a long run, with a step after each; see `track`."""
    s = settings or TrackSettings()
    paths = sorted({Path(path) for path in checkpoints}, key=natural_key)
    if not paths:
        raise InputError("There are no checkpoints to track.")
    volumes = as_volumes(images)

    def steps() -> Generator[CheckpointStep, None, Tracking]:
        factory = load_model(model) if isinstance(model, str) else model
        load = checkpoint_loader(factory)
        if factory is None or factory.sr is not None:
            first = load_model(paths[0])
        else:
            first = ExplainedModel(load(paths[0]), factory.name)
        inputs = prepare_images(first, volumes, s)
        run = track_checkpoints_steps(
            paths,
            load,
            first.match(s.layers),
            inputs,
            k=s.k,
            max_samples=max(s.max_samples, _SAMPLES_PER_INPUT * len(inputs.places)),
            seed=s.seed,
            budget=budget,
        )
        tracker = yield from run
        return Tracking(first, inputs, s, tuple(paths[: tracker.epochs]), len(paths), tracker)

    return steps()


def natural_key(path: Path) -> list[tuple[int, int, str]]:
    """Return the key of the natural order of paths: numbers are compared by value."""
    parts = re.split(r"(\d+)", str(path.with_suffix("")))
    return [(0, int(part), "") if k % 2 else (1, 0, part) for k, part in enumerate(parts)]


def parse_epochs(paths: Sequence[Path]) -> list[float]:
    """Return the last number in each name, or 0, 1, 2, ... if one has none or they do not ascend."""
    numbers = [re.findall(r"\d+", path.stem) for path in paths]
    if all(numbers):
        last = [float(found[-1]) for found in numbers]
        if all(a < b for a, b in pairwise(last)):
            return last
    return [float(k) for k in range(len(paths))]


def compare_domains(
    model: Model,
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
    **options: Any,
) -> list[Finding]:
    """Find layers that represent two domains, or inputs and their perturbations, differently.

    Parameters
    ----------
    model : nn.Module or ExplainedModel
    inputs_a, inputs_b
        As in `Tracker`.
    layers : sequence of str, optional
    names : (str, str)
        Names of the domains, for messages.
    paired : bool
        True if the inputs of b are those of a, in the same order, after a perturbation; see `find_drift`.
    k, max_samples, thresholds, seed, **options
        As in `Tracker`.

    Raises
    ------
    InputError
        If there are fewer than 8 inputs together, or incomplete pairs; or as in `activations`.
    """
    probe, t = ProbeInputs(inputs_a, inputs_b), thresholds or Thresholds()
    decompositions = probe.decompose(model, layers, max_samples=max_samples, seed=seed, **options)
    a, b = probe.counts
    if paired and a != b:
        raise InputError(f"There are {a} and {b} inputs, which are no pairs.")
    probes = {}
    for layer, d in decompositions.items():
        principal = PrincipalComponents.of(d, k)
        probes[layer] = input_moments(d, principal.concepts, principal.shares, a + b)
    return find_drift(probes, np.repeat(names, (a, b)), t, paired=paired, seed=seed)
