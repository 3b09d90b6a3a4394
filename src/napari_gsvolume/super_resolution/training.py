"""Super-resolution trained on the slices of volumes themselves: a generator of steps.

The volume is taken for the truth, its slices are degraded, and what is learnt there is applied one scale finer, as
A. Shocher, N. Cohen & M. Irani, "Zero-shot super-resolution using deep internal learning" (CVPR 2018) and, across
slices, C. Zhao et al., "SMORE" (IEEE Transactions on Medical Imaging 40, 2021) do. No other data are needed.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from ..metrics import psnr_db
from ..progress import Budget
from ..settings import validated
from ..types import Float32Array
from .bspline import finer
from .data import Batch, HeldOut, Planes
from .degradation import separable
from .losses import Losses
from .model import SRModel
from .schemes import middle, scheme
from .settings import ITERATIONS, TrainSRSettings

_JUDGE_EVERY = 5.0  # seconds; of a training of given iterations, so that it can be repeated, a twentieth
_JUDGMENTS = 20
_LONGEST = 1.0  # gradient
_ADVERSARY_RATE = 1e-4


@dataclass(frozen=True)
class SRPoint:
    """What was reached when."""

    seconds: float
    iteration: int
    losses: dict[str, float]
    """Each term, unweighted, on average since the point before."""
    coefficients: dict[str, float]
    """What the terms are multiplied with."""
    psnr_db: float
    """Of the slices held out, relative to their range."""


@dataclass(frozen=True, eq=False)
class SRStep:
    """The state of a training.

    Attributes
    ----------
    iteration : int
    progress : float
        0 to 1.
    message : str
        What is going on, or why it ended.
    history : tuple of SRPoint
    best_db : float
        The best PSNR so far of the slices held out; the model kept is the one that reached it.
    low, prediction, target : ndarray, (h, w), (H, W) and (H, W)
        The middle one of the slices held out, when last judged, normalised.
    """

    iteration: int
    progress: float
    message: str
    seconds: float
    history: tuple[SRPoint, ...] = field(repr=False)
    best_db: float
    low: Float32Array = field(repr=False)
    prediction: Float32Array = field(repr=False)
    target: Float32Array = field(repr=False)


@dataclass(frozen=True, eq=False)
class TrainedSR:
    """A finished training.

    Attributes
    ----------
    model : SRModel
        The best one, by the slices held out.
    table : dict of float
        PSNR in dB of those slices: of the cubic B-spline, of it with the projection, of the model, and the most that
        an image of the rank can have (Eckart & Young 1936).
    """

    model: SRModel
    table: dict[str, float]
    seconds: float
    history: tuple[SRPoint, ...] = field(repr=False)
    message: str

    def report(self) -> dict[str, Any]:
        """Return the figures, ready for JSON."""
        return {
            "psnr_db": self.table,
            "seconds": self.seconds,
            "message": self.message,
            "parameters": sum(p.numel() for p in self.model.scheme.parameters()),
            "settings": self.model.settings.model_dump(),
            "history": [vars(point) for point in self.history],
        }


class SRTraining:
    """A super-resolution to be trained on volumes.

    Parameters
    ----------
    volumes : sequence of array_like, (Z, Y, X)
        Taken for the truth. Each is normalised by itself, so units may differ.
    voxel_sizes : sequence of (float, float, float), optional
        Of each along (z, y, x): where they are cubes, slices across all axes are learnt from.
    **settings
        Fields of `TrainSRSettings`.

    Raises
    ------
    ValueError
        If a setting is out of its range, a network cannot be had, or a volume is not finite, is constant, no volume, or
        too small; the sentence says what.
    """

    def __init__(
        self, volumes: Sequence[ArrayLike], voxel_sizes: Sequence[Sequence[float]] | None = None, **settings: Any
    ) -> None:
        self.settings = validated(TrainSRSettings, **settings)
        self.planes = Planes(volumes, self.settings, voxel_sizes)
        self.scheme = scheme(self.settings)
        self._best: dict[str, Tensor] = {}

    def steps(self, stop: Callable[[], bool] = lambda: False) -> Iterator[SRStep]:
        """Yield a step after each iteration; closing it, or `stop` returning True, ends it with the best so far."""
        s, began = self.settings, time.perf_counter()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(s.seed)
            losses = Losses(self.scheme)
        learner = _Learner(self, losses)
        batches = self.planes.batches(np.random.default_rng(s.seed))
        iterations = ITERATIONS if s.iterations is None and s.time_limit is None else s.iterations
        budget = Budget(iterations, s.time_limit, stop)
        best_db, shown = self._judged()
        history = [SRPoint(time.perf_counter() - began, 0, {}, losses.coefficients(), best_db)]
        self._keep()
        sums: dict[str, list[float]] = {}
        iteration, progress, message, judged = 0, 0.0, "", time.perf_counter() - began
        while not message:
            self.scheme.train()
            for name, value in learner.step(next(batches), progress).items():
                sums.setdefault(name, []).append(value)
            iteration += 1
            seconds = time.perf_counter() - began
            progress = budget.fraction(iteration, seconds)
            message = budget.reason_to_end(iteration, progress)
            due = seconds - judged >= _JUDGE_EVERY
            if s.time_limit is None and iterations is not None:
                due = iteration % max(1, iterations // _JUDGMENTS) == 0
            if message or due:
                psnr, shown = self._judged()
                seconds = judged = time.perf_counter() - began
                means = {name: float(np.mean(values)) for name, values in sums.items()}
                history.append(SRPoint(seconds, iteration, means, losses.coefficients(), psnr))
                sums.clear()
                if psnr > best_db:
                    best_db = psnr
                    self._keep()
            yield SRStep(
                iteration, min(progress, 1.0), message or "Training", seconds, tuple(history), best_db, *shown
            )  # fmt: skip

    def result(self, step: SRStep) -> TrainedSR:
        """Return the best model of a training that ended with this step."""
        table = self.baselines()
        last, ceiling = table.popitem()
        table |= {"model": step.best_db, last: ceiling}
        metrics = {"psnr_db": table, "seconds": step.seconds, "iterations": step.iteration}
        return TrainedSR(SRModel(self.best().scheme, metrics), table, step.seconds, step.history, step.message)

    def baselines(self) -> dict[str, float]:
        """Return what is known before: PSNR in dB, of the slices held out, of all in `TrainedSR.table` but the model.

        The last is what no model of the rank exceeds.
        """
        held = self.planes.held_out
        table = {"cubic B-spline": _psnr(held, [_spline(self.scheme, h, False) for h in held])}
        table["B-spline + projection"] = _psnr(held, [_spline(self.scheme, h, True) for h in held])
        rank = self.settings.rank or min(min(h.low.shape[2:]) for h in held)
        table[f"best of rank {rank}"] = psnr_db(float(np.mean([_beyond(h, rank) for h in held])))
        return table

    def best(self) -> SRModel:
        """Return a copy of the model that was the best so far, once there has been a step."""
        best = scheme(self.settings)
        best.load_state_dict(self._best)
        return SRModel(best.eval())

    def _keep(self) -> None:
        self._best = {name: tensor.detach().clone() for name, tensor in self.scheme.state_dict().items()}

    def _judged(self) -> tuple[float, tuple[Float32Array, Float32Array, Float32Array]]:
        """Return the PSNR of the slices held out; and of the middle one what was measured, is predicted, and is."""
        self.scheme.eval()
        with torch.no_grad():
            images = [torch.cat([self.scheme(one).image for one in held.low[:, None]]) for held in self.planes.held_out]
        first, k = self.planes.held_out[0], len(images[0]) // 2
        low = middle(first.low)[k]
        shown = low.numpy(), images[0][k].numpy(), first.target[k].numpy()
        return _psnr(self.planes.held_out, images), shown


class _Learner:
    """The optimisers, and a step of them."""

    def __init__(self, training: SRTraining, losses: Losses) -> None:
        self.scheme, self.losses, self.rate = training.scheme, losses, training.settings.learning_rate
        self.learned = [*training.scheme.parameters(), *losses.balance.parameters()]
        self.optimiser = torch.optim.Adam(self.learned, lr=self.rate)
        adversary = losses.discriminator
        self.adversary = None if adversary is None else torch.optim.Adam(adversary.parameters(), lr=_ADVERSARY_RATE)

    def step(self, batch: Batch, progress: float) -> dict[str, float]:
        """Learn from a batch, at a rate that falls as a cosine does; return the terms of the loss."""
        for group in self.optimiser.param_groups:
            group["lr"] = self.rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0))))
        made_of = self.scheme(batch.low)
        terms = self.losses.terms(made_of, middle(batch.low), batch.target, batch.seen)
        self.optimiser.zero_grad(set_to_none=True)
        self.losses.total(terms).backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.learned, _LONGEST)
        self.optimiser.step()
        if self.adversary is not None and self.losses.discriminator is not None:
            self.adversary.zero_grad(set_to_none=True)
            image = made_of.image.detach()
            image = image if batch.seen is None else batch.seen.degrade(image)
            self.losses.discriminator.loss(image, batch.target).backward()  # type: ignore[no-untyped-call]
            self.adversary.step()
        return {name: float(term.detach()) for name, term in terms.items()}


def train_sr(
    volumes: Sequence[ArrayLike], voxel_sizes: Sequence[Sequence[float]] | None = None, **settings: Any
) -> TrainedSR:
    """Train a super-resolution; parameters as of `SRTraining`."""
    training = SRTraining(volumes, voxel_sizes, **settings)
    [last] = deque(training.steps(), maxlen=1)
    return training.result(last)


def _spline(of: Any, held: HeldOut, project: bool) -> Tensor:
    low = middle(held.low)
    image = separable(low, [finer(n, f) for n, f in zip(low.shape[1:], of.settings.factors, strict=True)])
    projected: Tensor = of.degradation(low.shape[1:]).project(image, low) if project else image
    return projected


def _psnr(held: Sequence[HeldOut], images: Sequence[Tensor]) -> float:
    errors = [
        float((image - h.target).double().square().mean()) / h.data_range**2
        for h, image in zip(held, images, strict=True)
    ]
    return psnr_db(float(np.mean(errors)))


def _beyond(held: HeldOut, rank: int) -> float:
    """Return the mean squared error, relative to the range, of the best images of a rank."""
    values = torch.linalg.svdvals(held.target.double())
    return float(values[:, rank:].square().sum()) / held.target.numel() / held.data_range**2
