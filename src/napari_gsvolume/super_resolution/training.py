"""Training of super-resolution models on the slices of volumes: a generator of steps.

The volume is the ground truth: its slices are degraded, and the model trained on these pairs is applied one scale
finer, as in A. Shocher, N. Cohen & M. Irani, "Zero-shot super-resolution using deep internal learning" (CVPR 2018) and,
across slices, C. Zhao et al., "SMORE" (IEEE Transactions on Medical Imaging 40, 2021). No other data are needed.
"""

from __future__ import annotations

import math
import time
from collections.abc import Generator, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from ..errors import GSVolumeError
from ..metrics import psnr_db
from ..progress import Budget, Step, finish
from ..settings import validated
from ..types import Float32Array
from .bspline import upsample_matrix
from .data import Batch, TrainingData, ValidationSet
from .degradation import apply_separable
from .losses import Losses
from .model import SRModel
from .schemes import Scheme, build_scheme, middle_slice
from .settings import DEFAULT_ITERATIONS, TrainSRSettings

_VALIDATE_EVERY = 5.0  # seconds; of a training with given iterations, to be repeatable, a twentieth of these
_VALIDATIONS = 20
_GRADIENT_CLIP = 1.0  # norm
_DISCRIMINATOR_RATE = 1e-4


@dataclass(frozen=True)
class SRPoint:
    """One validation in the history of a training.

    Attributes
    ----------
    seconds : float
    iteration : int
    losses : dict of float
        Unweighted loss terms, averaged since the previous validation.
    coefficients : dict of float
        Weight of each term.
    psnr_db : float
        PSNR of the validation set, relative to its range.
    """

    seconds: float
    iteration: int
    losses: dict[str, float]
    coefficients: dict[str, float]
    psnr_db: float


@dataclass(frozen=True, eq=False)
class SRTrainingStep(Step):
    """State of a training after an iteration; the first step precedes the first iteration.

    Attributes
    ----------
    iteration : int
        Number of iterations done.
    seconds : float
    history : tuple of SRPoint
        All validations so far; it grows by one at each validation.
    best_db : float
        Highest validation PSNR so far.
    best_model : SRModel
        Copy of the model that reached it.
    scheme : Scheme
        The module in training; its weights change with the next step.
    validation_sets : list of ValidationSet
        Slices held out, one set for each volume.
    baselines : dict of float
        Baseline PSNR in dB of the validation set: cubic B-spline, B-spline with projection, and the upper bound for
        images of the rank.
    low, prediction, target : ndarray, (h, w), (H, W) and (H, W)
        Middle slice of the first validation set at the last validation, normalized.
    """

    iteration: int
    seconds: float
    history: tuple[SRPoint, ...] = field(repr=False)
    best_db: float
    best_model: SRModel = field(repr=False)
    scheme: Scheme = field(repr=False)
    validation_sets: list[ValidationSet] = field(repr=False)
    baselines: dict[str, float]
    low: Float32Array = field(repr=False)
    prediction: Float32Array = field(repr=False)
    target: Float32Array = field(repr=False)

    @property
    def summary(self) -> str:
        """Best validation PSNR and time."""
        return f"{self.best_db:.2f} dB  {self.seconds:.0f} s"


@dataclass(frozen=True, eq=False)
class TrainedSR:
    """Result of a training.

    Attributes
    ----------
    model : SRModel
        Model with the highest validation PSNR.
    table : dict of float
        PSNR in dB of the validation set: cubic B-spline, B-spline with projection, model, and the upper bound for
        images of the rank (Eckart & Young 1936).
    seconds : float
        Duration.
    history : tuple of SRPoint
        All validations.
    message : str
        Reason why the training ended.
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


class TrainingFailedError(GSVolumeError):
    """Error in the middle of a training.

    Attributes
    ----------
    result : TrainedSR
        Best model up to the error.
    """

    def __init__(self, message: str, result: TrainedSR) -> None:
        super().__init__(message)
        self.result = result


def train_superresolution_steps(
    volumes: Sequence[ArrayLike],
    voxel_sizes: Sequence[Sequence[float]] | None = None,
    *,
    budget: Budget | None = None,
    **settings: Any,
) -> Generator[SRTrainingStep, None, TrainedSR]:
    """Train a super-resolution model step by step.

    Parameters
    ----------
    volumes, voxel_sizes, **settings
        As in `train_superresolution`.
    budget : Budget, optional
        Limits beside those of the settings, and the stop request.

    Yields
    ------
    SRTrainingStep
        State before the first iteration, and after each iteration.

    Returns
    -------
    TrainedSR
        The best model so far, also if the training was stopped.

    Raises
    ------
    InputError
        As in `train_superresolution`, at the call.
    TrainingFailedError
        If an iteration fails; the best model so far is its attribute ``result``.

    Examples
    --------
    >>> from napari_gsvolume.phantoms import anatomical_phantom
    >>> from napari_gsvolume.progress import finish
    >>> from napari_gsvolume.super_resolution import train_superresolution_steps
    >>> volume = anatomical_phantom(18)[0]
    >>> steps = train_superresolution_steps([volume], iterations=2, channels=4, blocks=1, patch_size=8, batch_size=1)
    >>> next(steps).iteration, next(steps).iteration
    (0, 1)
    >>> finish(steps).history[-1].iteration
    2
    """
    s = validated(TrainSRSettings, **settings)
    data = TrainingData(volumes, s, voxel_sizes)
    scheme = build_scheme(s)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(s.seed)
        losses = Losses(scheme)
    return _steps(data, scheme, losses, budget or Budget())


def train_superresolution(
    volumes: Sequence[ArrayLike], voxel_sizes: Sequence[Sequence[float]] | None = None, **settings: Any
) -> TrainedSR:
    """Train a super-resolution model on the slices of volumes.

    The volumes are the ground truth: patches of their slices are degraded, and the model is trained to restore them
    [1]_, [2]_. Applied to the same volumes, it super-resolves them one scale further.

    Parameters
    ----------
    volumes : sequence of array_like, (Z, Y, X)
        Training data. Each volume is normalized by itself, so units may differ.
    voxel_sizes : sequence of (float, float, float), optional
        Voxel size of each volume along (z, y, x). Where voxels are cubes, slices across all axes are training data.
    **settings
        Fields of `TrainSRSettings`, such as ``factor=2``, ``scheme="residual"``, ``iterations=3000``.

    Returns
    -------
    TrainedSR
        Best model, PSNR of the validation set, and history.

    Raises
    ------
    InputError
        If a setting is out of range, a network is not available, or a volume is not finite, is constant, has other
        axes or is too small.
    TrainingFailedError
        If an iteration fails; the best model so far is its attribute ``result``.

    See Also
    --------
    superresolve : Applies a model to a volume.

    Notes
    -----
    Scheme A (``singular-vectors``) predicts the singular vectors and singular values of a slice on the fine grid.
    Scheme B (``residual``) adds the output of a residual network, by default EDSR [3]_, to an interpolation of the
    slice. In both, the last layer projects the prediction on the measurement (``project``). Optional losses are
    perceptual [4]_ and adversarial, with the least-squares objective of LSGAN [5]_ after SRGAN [6]_.

    References
    ----------
    .. [1] A. Shocher, N. Cohen & M. Irani, "Zero-shot super-resolution using deep internal learning", CVPR 2018.
    .. [2] C. Zhao et al., "SMORE: a self-supervised anti-aliasing and super-resolution algorithm for MRI using deep
       learning", IEEE Transactions on Medical Imaging 40, 2021.
    .. [3] B. Lim et al., "Enhanced deep residual networks for single image super-resolution", CVPR workshops, 2017.
    .. [4] J. Johnson, A. Alahi & L. Fei-Fei, "Perceptual losses for real-time style transfer and super-resolution",
       ECCV 2016.
    .. [5] X. Mao et al., "Least squares generative adversarial networks", ICCV 2017.
    .. [6] C. Ledig et al., "Photo-realistic single image super-resolution using a generative adversarial network",
       CVPR 2017.

    Examples
    --------
    >>> from napari_gsvolume.phantoms import anatomical_phantom
    >>> from napari_gsvolume.super_resolution import superresolve, train_superresolution
    >>> volume, grid = anatomical_phantom(18)
    >>> small = {"channels": 4, "blocks": 1, "patch_size": 8, "batch_size": 1}
    >>> trained = train_superresolution([volume], [grid.voxel_size], factor=2, iterations=2, **small)
    >>> trained.table["model"] >= trained.table["B-spline + projection"] - 1e-6
    True
    >>> superresolve(volume, trained.model, ensemble=False).volume.shape
    (18, 36, 36)
    """
    return finish(train_superresolution_steps(volumes, voxel_sizes, **settings))


def _steps(
    data: TrainingData, scheme: Scheme, losses: Losses, budget: Budget
) -> Generator[SRTrainingStep, None, TrainedSR]:
    s, began = data.settings, time.perf_counter()
    iterations = DEFAULT_ITERATIONS if s.iterations is None and s.time_limit is None else s.iterations
    budget = budget.limited(iterations, s.time_limit)
    baselines = _baselines(data.validation_sets, scheme)
    optimization = _Optimization(scheme, losses, s.learning_rate)
    batches = data.batches(np.random.default_rng(s.seed))
    best_db, preview = _validate(data.validation_sets, scheme)
    best = _copy(scheme)
    history = [SRPoint(time.perf_counter() - began, 0, {}, losses.coefficients(), best_db)]
    sums: dict[str, list[float]] = {}
    iteration, fraction, message, seconds = 0, 0.0, "", history[0].seconds
    validated_at = seconds

    def step(text: str) -> SRTrainingStep:
        return SRTrainingStep(
            min(fraction, 1.0),
            text,
            iteration,
            seconds,
            tuple(history),
            best_db,
            best,
            scheme,
            data.validation_sets,
            baselines,
            *preview,
        )

    def result(text: str) -> TrainedSR:
        *rows, (bound_name, bound) = baselines.items()
        table = {**dict(rows), "model": best_db, bound_name: bound}
        metrics = {"psnr_db": table, "seconds": seconds, "iterations": iteration}
        return TrainedSR(SRModel(best.scheme, metrics), table, seconds, tuple(history), text)

    yield step("Training")
    while not message:
        scheme.train()
        try:
            for name, value in optimization.step(next(batches), fraction).items():
                sums.setdefault(name, []).append(value)
        except Exception as error:
            reason = f"The training failed in iteration {iteration + 1}: {' '.join(str(error).split()).rstrip('.')}."
            raise TrainingFailedError(reason, result(reason)) from error
        iteration += 1
        seconds = time.perf_counter() - began
        fraction = budget.fraction(iteration, seconds)
        message = budget.reason_to_end(iteration, fraction)
        due = seconds - validated_at >= _VALIDATE_EVERY
        if s.time_limit is None and iterations is not None:
            due = iteration % max(1, iterations // _VALIDATIONS) == 0
        if message or due:
            psnr, preview = _validate(data.validation_sets, scheme)
            seconds = validated_at = time.perf_counter() - began
            means = {name: float(np.mean(values)) for name, values in sums.items()}
            history.append(SRPoint(seconds, iteration, means, losses.coefficients(), psnr))
            sums.clear()
            if psnr > best_db:
                best_db, best = psnr, _copy(scheme)
        yield step(message or "Training")
    return result(message)


def _copy(scheme: Scheme) -> SRModel:
    return SRModel(deepcopy(scheme).eval())


class _Optimization:
    """Optimizers of a training."""

    def __init__(self, scheme: Scheme, losses: Losses, learning_rate: float) -> None:
        self.scheme, self.losses, self.learning_rate = scheme, losses, learning_rate
        self.parameters = [*scheme.parameters(), *losses.balance.parameters()]
        self.optimizer = torch.optim.Adam(self.parameters, lr=learning_rate)
        discriminator = losses.discriminator
        self.discriminator_optimizer = (
            None if discriminator is None else torch.optim.Adam(discriminator.parameters(), lr=_DISCRIMINATOR_RATE)
        )

    def step(self, batch: Batch, fraction: float) -> dict[str, float]:
        """Do one iteration, with cosine decay of the learning rate; return the loss terms."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(fraction, 1.0))))
        prediction = self.scheme(batch.low)
        terms = self.losses.terms(prediction, middle_slice(batch.low), batch.target, batch.comparison)
        self.optimizer.zero_grad(set_to_none=True)
        self.losses.total(terms).backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.parameters, _GRADIENT_CLIP)
        self.optimizer.step()
        if self.discriminator_optimizer is not None and self.losses.discriminator is not None:
            self.discriminator_optimizer.zero_grad(set_to_none=True)
            image = prediction.image.detach()
            image = image if batch.comparison is None else batch.comparison.degrade(image)
            self.losses.discriminator.loss(image, batch.target).backward()  # type: ignore[no-untyped-call]
            self.discriminator_optimizer.step()
        return {name: float(term.detach()) for name, term in terms.items()}


def _validate(
    sets: Sequence[ValidationSet], scheme: Scheme
) -> tuple[float, tuple[Float32Array, Float32Array, Float32Array]]:
    """Return the PSNR of the validation sets; and low, prediction and target of the middle slice of the first."""
    scheme.eval()
    with torch.no_grad():
        images = [torch.cat([scheme(one).image for one in each.low[:, None]]) for each in sets]
    first, k = sets[0], len(images[0]) // 2
    preview = middle_slice(first.low)[k].numpy(), images[0][k].numpy(), first.target[k].numpy()
    return _psnr(sets, images), preview


def _baselines(sets: Sequence[ValidationSet], scheme: Scheme) -> dict[str, float]:
    """Return the PSNR in dB of the B-spline, with and without projection, and last the upper bound for the rank."""
    table = {"cubic B-spline": _psnr(sets, [_upsample_by_spline(scheme, each, False) for each in sets])}
    table["B-spline + projection"] = _psnr(sets, [_upsample_by_spline(scheme, each, True) for each in sets])
    rank = scheme.settings.rank or min(min(each.low.shape[2:]) for each in sets)
    table[f"best of rank {rank}"] = psnr_db(float(np.mean([_truncation_error(each, rank) for each in sets])))
    return table


def _upsample_by_spline(scheme: Scheme, validation: ValidationSet, project: bool) -> Tensor:
    low = middle_slice(validation.low)
    matrices = [upsample_matrix(n, f) for n, f in zip(low.shape[1:], scheme.settings.factors, strict=True)]
    image = apply_separable(low, matrices)
    return scheme.degradation(low.shape[1:]).project(image, low) if project else image


def _psnr(sets: Sequence[ValidationSet], images: Sequence[Tensor]) -> float:
    errors = [
        float((image - each.target).double().square().mean()) / each.data_range**2
        for each, image in zip(sets, images, strict=True)
    ]
    return psnr_db(float(np.mean(errors)))


def _truncation_error(validation: ValidationSet, rank: int) -> float:
    """Return the mean squared error, relative to the range, of the best images of a rank."""
    values = torch.linalg.svdvals(validation.target.double())
    return float(values[:, rank:].square().sum()) / validation.target.numel() / validation.data_range**2
