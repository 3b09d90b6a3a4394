"""Splats trained against direct volume rendering: a generator of steps.

After B. Kerbl et al., "3D Gaussian Splatting for Real-Time Radiance Field Rendering", ACM Transactions on Graphics 42
(4), 2023; cameras are known here, and the first Gaussians lie on what can be seen of the volume.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ...errors import InputError
from ...memory import require_memory
from ...metrics import psnr_between
from ...progress import Budget
from ...settings import validated
from ...types import Float32Array
from ..cameras import Cameras
from ..scene import Scene
from ..settings import ITERATIONS, TrainSettings
from .densification import renewed
from .initialization import contributions, seeds
from .losses import Penalties, image_loss, structural_similarity
from .model import Splats, drawing_device

_RATES = {"shapes": 0.03, "quaternions": 0.008, "logits": 0.1, "constant": 0.02, "harmonics": 0.004}
_PLACE_RATE = 0.06  # pixels an iteration
_LEAST_SCALE = 0.3
"""Pixels that a standard deviation has at least: finer ones would fall between the pixels of larger images."""
_FINAL_RATE = 0.05
_SGD_RATE = 200.0  # times the number of Gaussians, each of which sees so small a part of all pixels
_FIRST = 0.5  # of all Gaussians there are to be, at first
_RENEW_EVERY, _RENEW_UNTIL = 100, 0.6
_DEGREE_EVERY = 0.08  # of the training, before colours depend on the direction by one more degree
_JUDGE_EVERY = 5.0  # seconds
_BYTES_A_PIXEL = 12  # of a reference
_JUDGES = 12  # cameras that tell which Gaussians are seen


@dataclass(frozen=True)
class TrainPoint:
    """What was reached when."""

    seconds: float
    iteration: int
    loss: float
    """Of the views learnt from since the point before, on average."""
    psnr_db: float | None
    """Of the views held out, of all their pixels; range 1."""
    ssim: float | None
    n_gaussians: int


@dataclass(frozen=True, eq=False)
class TrainStep:
    """The state of a training.

    Attributes
    ----------
    stage : "references" or "training"
    iteration : int
        Reference images made, or views learnt from.
    progress : float
        0 to 1.
    message : str
        What is going on, or why it ended.
    history : tuple of TrainPoint
    splats : Splats or None
        None while references are made.
    reference, image : ndarray, (H, W, 3), or None
        The newest view beside what it should be.
    """

    stage: Literal["references", "training"]
    iteration: int
    progress: float
    message: str
    seconds: float
    history: tuple[TrainPoint, ...] = field(repr=False)
    splats: Splats | None = field(repr=False)
    reference: Float32Array | None = field(repr=False)
    image: Float32Array | None = field(repr=False)


@dataclass(frozen=True, eq=False)
class Trained:
    """A finished training.

    Attributes
    ----------
    splats : Splats
    psnr_db, ssim : float
        Of the views held out: over all their pixels, range 1; and the mean SSIM, in windows of 7 x 7 pixels.
    fps : float
        Views a second, of the same size.
    """

    splats: Splats
    psnr_db: float
    ssim: float
    fps: float
    seconds: float
    settings: TrainSettings
    history: tuple[TrainPoint, ...] = field(repr=False)
    message: str

    def report(self) -> dict[str, Any]:
        """Return the figures, ready for JSON."""
        return {
            "psnr_db": self.psnr_db,
            "ssim": self.ssim,
            "n_gaussians": len(self.splats),
            "fps": self.fps,
            "seconds": self.seconds,
            "message": self.message,
            "settings": self.settings.model_dump(),
            "history": [vars(point) for point in self.history],
        }


class Training:
    """Splats to be trained on views of a scene.

    Parameters
    ----------
    scene : Scene
    **settings
        Fields of `TrainSettings`.

    Raises
    ------
    ValueError
        If a setting is out of its range, or the volume cannot be rendered; the sentence says what.
    MemoryError
        If the reference images would take more memory than is free.
    """

    def __init__(self, scene: Scene, **settings: Any) -> None:
        self.scene, self.settings = scene, validated(TrainSettings, **settings)
        s = self.settings
        views = s.views + s.hold_out
        require_memory(
            views * s.size**2 * _BYTES_A_PIXEL,
            f"The references, {views} views of {s.size} x {s.size} pixels, take",
            "ask for fewer, or smaller ones",
        )
        self.cameras = scene.cameras(s.views, s.size, orthographic=s.orthographic)
        self.judges = scene.held_out(s.hold_out, s.size, orthographic=s.orthographic)
        self.random = np.random.default_rng(s.seed)
        self.device = drawing_device(s.device)

    def steps(self, stop: Callable[[], bool] = lambda: False) -> Iterator[TrainStep]:
        """Yield a step after each image; closing it, or `stop` returning True, ends it with what there is.

        There is something once the references are made; a training stopped before that has no splats.
        """
        s, began = self.settings, time.perf_counter()
        references: list[Tensor] = []
        total = len(self.cameras) + len(self.judges)
        for images in (self.scene.images(self.judges), self.scene.images(self.cameras)):
            for image in images:
                references.append(torch.from_numpy(image).to(self.device))
                seconds = time.perf_counter() - began
                yield TrainStep(
                    "references", len(references), 0.0, f"Rendering reference {len(references)} of {total}", seconds,
                    (), None, image, None,
                )  # fmt: skip
                if stop():
                    return
        self.held_out = references[: len(self.judges)]
        views = references[len(self.judges) :]
        at_first = max(1, round(_FIRST * s.gaussians)) if s.densify else s.gaussians
        splats = seeds(self.scene, at_first, self._few(), s.sh_degree, self.random)
        yield from self._train(splats.to(self.device), views, began, stop)

    def result(self, step: TrainStep) -> Trained:
        """Return what is worth keeping of a training that ended with this step."""
        if step.splats is None:
            raise InputError("There are no splats yet.")
        psnr, ssim = self._judged(step.splats)
        began = time.perf_counter()
        for camera in self.judges:
            step.splats.view(camera, self.scene.background).image.cpu()
        fps = len(self.judges) / (time.perf_counter() - began)
        return Trained(step.splats.to("cpu"), psnr, ssim, fps, step.seconds, self.settings, step.history, step.message)

    def _few(self) -> Cameras:
        """Return some of the cameras, from all around."""
        return self.cameras[:: max(1, len(self.cameras) // _JUDGES)]

    def _train(
        self, splats: Splats, views: list[Tensor], began: float, stop: Callable[[], bool]
    ) -> Iterator[TrainStep]:
        s = self.settings
        pixel = self.cameras.pixel_mm
        penalties, learner = Penalties(s, pixel), _Learner(splats, s, pixel)
        generator = torch.Generator().manual_seed(s.seed)
        history: list[TrainPoint] = []
        losses: list[float] = []
        pulls = sightings = torch.zeros(len(splats), device=self.device)
        order: list[int] = []
        started, judged = time.perf_counter() - began, -math.inf
        iterations = ITERATIONS if s.iterations is None and s.time_limit is None else s.iterations
        budget = Budget(iterations, None if s.time_limit is None else max(s.time_limit - started, 1e-3), stop)
        iteration, progress, message = 0, 0.0, ""
        while not message:
            order = order or self.random.permutation(len(views)).tolist()
            k = order.pop()
            degree = min(s.sh_degree, int(progress / _DEGREE_EVERY))
            splats = learner.splats()
            view = splats.view(self.cameras[k], self.scene.background, degree)
            loss = image_loss(view.image, views[k], s) + penalties(splats)
            loss.backward()  # type: ignore[no-untyped-call]
            learner.step(progress)
            pulls, sightings = pulls + view.pulls(), sightings + view.visible
            losses.append(float(loss.detach()))
            iteration += 1
            seconds = time.perf_counter() - began
            progress = budget.fraction(iteration, seconds - started)
            message = budget.reason_to_end(iteration, progress)
            if not message and s.densify and iteration % _RENEW_EVERY == 0 and progress < _RENEW_UNTIL:
                splats = learner.plain()
                seen = contributions(splats, self._few())
                splats, kept = renewed(splats, pulls / sightings.clamp_min(1), seen, s.gaussians, generator)
                learner.renew(splats, kept)
                penalties.population_changed()
                pulls = sightings = torch.zeros(len(splats), device=self.device)
            splats = learner.plain()
            if message or seconds - judged >= _JUDGE_EVERY:
                judged = seconds
                psnr, ssim = self._judged(splats)
                history.append(TrainPoint(seconds, iteration, float(np.mean(losses)), psnr, ssim, len(splats)))
                losses.clear()
            yield TrainStep(
                "training", iteration, min(progress, 1.0), message or "Training", seconds, tuple(history), splats,
                views[k].cpu().numpy(), view.image.detach().cpu().numpy(),
            )  # fmt: skip

    def _judged(self, splats: Splats) -> tuple[float, float]:
        """Return PSNR over all pixels of the views held out, and their mean SSIM."""
        with torch.no_grad():
            images = splats.render(self.judges, self.scene.background)
        references = torch.stack(self.held_out)
        similar = [float(structural_similarity(a, b)) for a, b in zip(images, references, strict=True)]
        return psnr_between(references.cpu().numpy(), images.cpu().numpy(), 1.0), float(np.mean(similar))


class _Learner:
    """The numbers of splats, and the optimiser that moves them."""

    def __init__(self, splats: Splats, settings: TrainSettings, pixel: float) -> None:
        self.settings = settings
        self.rates = {name: settings.learning_rate * rate for name, rate in _RATES.items()}
        self.rates["means"] = settings.learning_rate * _PLACE_RATE * pixel
        self.least = 2 * math.log(_LEAST_SCALE * pixel)
        if settings.solver == "sgd":  # in the square of what is learnt, unlike Adam's
            self.rates = {name: _SGD_RATE * settings.gaussians * rate**2 for name, rate in self.rates.items()}
        self._begin(splats)

    def _begin(self, splats: Splats) -> None:
        excess = ((2 * splats.log_scales).exp() - math.exp(self.least)).clamp_min(1e-3 * math.exp(self.least))
        parts = {
            "means": splats.means,
            "shapes": excess.log() / 2,
            "quaternions": splats.quaternions,
            "logits": splats.logits,
            "constant": splats.sh[:, :1],
            "harmonics": splats.sh[:, 1:],
        }
        self.leaves = {name: tensor.detach().clone().requires_grad_() for name, tensor in parts.items()}
        groups = [{"params": [leaf], "lr": self.rates[name], "name": name} for name, leaf in self.leaves.items()]
        self.optimiser: torch.optim.Optimizer
        if self.settings.solver == "sgd":
            self.optimiser = torch.optim.SGD(groups, lr=1.0, momentum=0.9)
        else:
            self.optimiser = torch.optim.Adam(groups, eps=1e-15)

    def splats(self) -> Splats:
        """Return the splats as a function of what is learnt."""
        return self._made_of(*self.leaves.values())

    def plain(self) -> Splats:
        """Return the splats as they are, without gradients."""
        return self._made_of(*(leaf.detach() for leaf in self.leaves.values()))

    def _made_of(
        self, means: Tensor, shapes: Tensor, quaternions: Tensor, logits: Tensor, constant: Tensor, harmonics: Tensor
    ) -> Splats:
        log_scales = torch.logaddexp(2 * shapes, shapes.new_tensor(self.least)) / 2
        return Splats(means, log_scales, quaternions, logits, torch.cat([constant, harmonics], 1))

    def step(self, progress: float) -> None:
        """Move along the gradients; rates fall to a twentieth as training proceeds."""
        for group in self.optimiser.param_groups:
            group["lr"] = self.rates[group["name"]] * _FINAL_RATE ** min(progress, 1.0)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)

    def renew(self, splats: Splats, kept: Tensor) -> None:
        """Go on with other splats, of which the first are those that were kept: these keep their moments."""
        leaves, before = self.leaves, self.optimiser.state
        self._begin(splats)
        for name, leaf in self.leaves.items():
            state = before[leaves[name]]
            for key, value in state.items():
                if torch.is_tensor(value) and value.ndim:
                    state[key] = torch.cat([value[kept], value.new_zeros(len(leaf) - len(kept), *value.shape[1:])])
            self.optimiser.state[leaf] = state


def train(scene: Scene, **settings: Any) -> Trained:
    """Train splats on views of a scene; parameters as of `Training`."""
    training = Training(scene, **settings)
    [last] = deque(training.steps(), maxlen=1)
    return training.result(last)
