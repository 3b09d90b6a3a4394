"""Training of Gaussian splats on direct volume renderings: `train_splats` and its steps.

Differences from the original 3D Gaussian Splatting: the cameras are known, and the initial Gaussians lie on the visible
surfaces of the volume.

References
----------
B. Kerbl, G. Kopanas, T. Leimkuehler, G. Drettakis, "3D Gaussian Splatting for Real-Time Radiance Field Rendering", ACM
Transactions on Graphics 42 (4), 2023.
"""

from __future__ import annotations

import math
import time
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ...errors import InputError
from ...memory import require_memory
from ...metrics import psnr_between
from ...progress import Budget, Step, finish, rescaled
from ...settings import validated
from ...types import Float32Array
from ..cameras import Cameras
from ..scene import Scene
from ..settings import ITERATIONS, SplatTrainingSettings
from .densification import densify_and_prune
from .initialization import initialize_splats, pixel_contributions
from .losses import Penalties, image_loss, structural_similarity
from .model import Splats, select_render_device

_RATES = {"shapes": 0.03, "quaternions": 0.008, "opacity_logits": 0.1, "sh_constant": 0.02, "sh_rest": 0.004}
_POSITION_RATE = 0.06  # pixels per iteration
_MIN_SCALE = 0.3
"""Minimum standard deviation in pixels; smaller Gaussians would fall between the pixels of larger images."""
_FINAL_RATE = 0.05  # relative to the initial learning rates
_SGD_RATE = 200.0  # per Gaussian, because the gradient by a Gaussian is an average over all pixels
_INITIAL_FRACTION = 0.5  # of the maximum number of Gaussians
_DENSIFY_EVERY, _DENSIFY_UNTIL = 100, 0.6  # iterations; fraction of the training
_SH_DEGREE_EVERY = 0.08  # fraction of the training between increases of the SH degree
_VALIDATE_EVERY = 5.0  # seconds
_BYTES_PER_PIXEL = 12
_VISIBILITY_CAMERAS = 12
_REFERENCE_FRACTION = 0.1  # of the progress bar


@dataclass(frozen=True)
class SplatTrainingPoint:
    """Point of the training history.

    Attributes
    ----------
    seconds : float
        Time since the start.
    iteration : int
        Number of iterations.
    loss : float
        Mean training loss since the previous point.
    psnr_db, ssim : float
        Quality on the held-out views: PSNR over all their pixels (data range 1), and mean SSIM.
    n_gaussians : int
        Number of Gaussians.
    """

    seconds: float
    iteration: int
    loss: float
    psnr_db: float | None
    ssim: float | None
    n_gaussians: int


@dataclass(frozen=True, eq=False)
class SplatTrainingStep(Step):
    """State of a training: after each reference image, then after each iteration.

    Attributes
    ----------
    stage : "references" or "training"
        Rendering of the reference images, or training.
    iteration : int
        Number of rendered reference images, or of training iterations.
    seconds : float
        Time since the start.
    history : tuple of SplatTrainingPoint
        Validation results so far.
    splats : Splats or None
        Current splats; None while the references are rendered.
    reference : ndarray, (H, W, 3), float32
        Newest reference image, or reference of the newest training view.
    image : ndarray, (H, W, 3), float32, or None
        Rendering of the newest training view.
    """

    stage: Literal["references", "training"]
    iteration: int
    seconds: float
    history: tuple[SplatTrainingPoint, ...] = field(repr=False)
    splats: Splats | None = field(repr=False)
    reference: Float32Array = field(repr=False)
    image: Float32Array | None = field(repr=False)

    @property
    def summary(self) -> str:
        """Number of Gaussians, PSNR of the held-out views, and time."""
        if not self.history:
            return f"{self.seconds:.0f} s"
        last = self.history[-1]
        psnr = "" if last.psnr_db is None else f"{last.psnr_db:.2f} dB  "
        return f"{last.n_gaussians:,} Gaussians  {psnr}{self.seconds:.0f} s"

    @property
    def has_result(self) -> bool:
        """True once there are splats."""
        return self.splats is not None


@dataclass(frozen=True, eq=False)
class TrainedSplats:
    """Result of `train_splats`.

    Attributes
    ----------
    splats : Splats
        Trained splats, float32, on the CPU.
    psnr_db, ssim : float
        Quality on the held-out views: PSNR over all their pixels (data range 1), and mean SSIM with windows of
        7 x 7 pixels.
    fps : float
        Rendering speed, in views of the training size per second.
    seconds : float
        Duration of the training.
    settings : SplatTrainingSettings
        Settings of the training.
    history : tuple of SplatTrainingPoint
        Validation results over time.
    message : str
        Reason why the training ended.
    """

    splats: Splats
    psnr_db: float
    ssim: float
    fps: float
    seconds: float
    settings: SplatTrainingSettings
    history: tuple[SplatTrainingPoint, ...] = field(repr=False)
    message: str

    def report(self) -> dict[str, Any]:
        """Return settings, results and history as a dictionary for JSON."""
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


def train_splats(scene: Scene, **settings: Any) -> TrainedSplats:
    """Train Gaussian splats on direct volume renderings of a scene.

    Parameters
    ----------
    scene : Scene
        Volume (Z, Y, X) with voxel size, transfer function, and optionally a mask.
    **settings
        Fields of `SplatTrainingSettings`, such as ``gaussians``, ``views``, ``image_size`` and ``time_limit``.

    Returns
    -------
    TrainedSplats
        Splats, and their quality on held-out views.

    Raises
    ------
    InputError
        If a setting is out of its range, the volume cannot be rendered, or the transfer function makes it transparent.
    MemoryError
        If the reference images need more memory than is free.

    See Also
    --------
    train_splats_steps : the same with progress, previews and stop

    References
    ----------
    B. Kerbl, G. Kopanas, T. Leimkuehler, G. Drettakis, "3D Gaussian Splatting for Real-Time Radiance Field Rendering",
    ACM Transactions on Graphics 42 (4), 2023.

    Examples
    --------
    >>> import numpy as np
    >>> from napari_gsvolume.phantoms import vessel_phantom
    >>> from napari_gsvolume.rendering import Scene, TransferFunction, train_splats
    >>> volume = vessel_phantom(16)[0]
    >>> scene = Scene(volume, np.ones(3), TransferFunction.from_preset("mr", volume))
    >>> quick = dict(gaussians=50, views=4, image_size=16, held_out_views=1, iterations=10, sh_degree=0)
    >>> trained = train_splats(scene, **quick)
    >>> trained.message, trained.splats.render(scene.orbit_cameras(2, 16)).shape
    ('All iterations are done.', torch.Size([2, 16, 16, 3]))
    """
    return finish(train_splats_steps(scene, **settings))


def train_splats_steps(
    scene: Scene, *, budget: Budget | None = None, **settings: Any
) -> Generator[SplatTrainingStep, None, TrainedSplats]:
    """Train Gaussian splats and yield a step after each reference image and each iteration.

    Parameters
    ----------
    scene : Scene
        Volume (Z, Y, X) with voxel size, transfer function, and optionally a mask.
    budget : Budget, optional
        Limits and stop request; a training that is stopped returns the current splats.
    **settings
        Fields of `SplatTrainingSettings`.

    Returns
    -------
    generator of SplatTrainingStep
        Its return value is a `TrainedSplats`.

    Raises
    ------
    InputError
        As `train_splats`; also by the generator if it is stopped before there are splats.
    MemoryError
        If the reference images need more memory than is free.

    Examples
    --------
    >>> import numpy as np
    >>> from napari_gsvolume.phantoms import vessel_phantom
    >>> from napari_gsvolume.rendering import Scene, TransferFunction, train_splats_steps
    >>> volume = vessel_phantom(16)[0]
    >>> scene = Scene(volume, np.ones(3), TransferFunction.from_preset("mr", volume))
    >>> quick = dict(gaussians=50, views=2, image_size=16, held_out_views=1, iterations=5, sh_degree=0)
    >>> [step.stage for step in train_splats_steps(scene, **quick)][1:5]
    ['references', 'references', 'training', 'training']
    """
    return _Training(scene, validated(SplatTrainingSettings, **settings)).steps(budget or Budget())


class _Training:
    """Cameras, references and state of one training."""

    def __init__(self, scene: Scene, settings: SplatTrainingSettings) -> None:
        self.scene, self.settings = scene, settings
        s, views = settings, settings.views + settings.held_out_views
        require_memory(
            views * s.image_size**2 * _BYTES_PER_PIXEL,
            f"The reference images, {views} views of {s.image_size} x {s.image_size} pixels, take",
            "reduce their number or size",
        )
        self.cameras = scene.orbit_cameras(s.views, s.image_size, orthographic=s.orthographic)
        self.held_out_cameras = scene.held_out_cameras(s.held_out_views, s.image_size, orthographic=s.orthographic)
        self.random = np.random.default_rng(s.seed)
        self.device = select_render_device(s.device)

    def steps(self, budget: Budget) -> Generator[SplatTrainingStep, None, TrainedSplats]:
        """Render the references and train the splats."""
        s = self.settings
        self.began = time.perf_counter()
        references = yield from rescaled(self._render_references(budget), 0.0, _REFERENCE_FRACTION)
        self.held_out = references[: len(self.held_out_cameras)]
        views = references[len(self.held_out_cameras) :]
        n = max(1, round(_INITIAL_FRACTION * s.gaussians)) if s.densify else s.gaussians
        splats = initialize_splats(self.scene, n, self._visibility_cameras(), s.sh_degree, self.random)
        training = self._train(splats.to(self.device), views, budget)
        last = yield from rescaled(training, _REFERENCE_FRACTION, 1.0)
        return self._result(last)

    def _render_references(self, budget: Budget) -> Generator[SplatTrainingStep, None, list[Tensor]]:
        """Render the held-out references, then those of the training views."""
        references: list[Tensor] = []
        total = len(self.cameras) + len(self.held_out_cameras)
        for cameras in (self.held_out_cameras, self.cameras):
            for image in self.scene.reference_images(cameras):
                references.append(torch.from_numpy(image).to(self.device))
                k, seconds = len(references), time.perf_counter() - self.began
                message = f"Rendering reference {k} of {total}"
                yield SplatTrainingStep(k / total, message, "references", k, seconds, (), None, image, None)
                if budget.stop():
                    raise InputError("The training was stopped before there were any splats.")
        return references

    def _train(
        self, splats: Splats, views: list[Tensor], budget: Budget
    ) -> Generator[SplatTrainingStep, None, SplatTrainingStep]:
        """Train the splats; return the last step."""
        s = self.settings
        pixel_size = self.cameras.pixel_size_mm
        penalties, optimizer = Penalties(s, pixel_size), _SplatOptimizer(splats, s, pixel_size)
        generator = torch.Generator().manual_seed(s.seed)
        history: list[SplatTrainingPoint] = []
        losses: list[float] = []
        gradients = n_visible = torch.zeros(len(splats), device=self.device)
        order: list[int] = []
        started, validated_at = time.perf_counter() - self.began, -math.inf
        iterations = ITERATIONS if s.iterations is None and s.time_limit is None else s.iterations
        time_limit = None if s.time_limit is None else max(s.time_limit - started, 1e-3)  # references count, too
        budget = budget.limited(iterations, time_limit)
        iteration, fraction = 0, 0.0
        while True:
            # One view, in random order without repetition.
            order = order or self.random.permutation(len(views)).tolist()
            k = order.pop()
            sh_degree = min(s.sh_degree, int(fraction / _SH_DEGREE_EVERY))
            splats = optimizer.splats()
            view = splats.render_view(self.cameras[k], self.scene.background, sh_degree)
            loss = image_loss(view.image, views[k], s) + penalties(splats)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step(fraction)
            gradients, n_visible = gradients + view.positional_gradients(), n_visible + view.visible
            losses.append(float(loss.detach()))
            iteration += 1
            seconds = time.perf_counter() - self.began
            fraction = budget.fraction(iteration, seconds - started)
            reason = budget.reason_to_end(iteration, fraction)

            # Densification
            if not reason and s.densify and iteration % _DENSIFY_EVERY == 0 and fraction < _DENSIFY_UNTIL:
                splats = optimizer.detached_splats()
                contributions = pixel_contributions(splats, self._visibility_cameras())
                mean_gradients = gradients / n_visible.clamp_min(1)
                splats, kept = densify_and_prune(splats, mean_gradients, contributions, s.gaussians, generator)
                optimizer.replace_splats(splats, kept)
                penalties.reset_neighbours()
                gradients = n_visible = torch.zeros(len(splats), device=self.device)

            # Validation
            splats = optimizer.detached_splats()
            if reason or seconds - validated_at >= _VALIDATE_EVERY:
                validated_at = seconds
                psnr, ssim = self._validate(splats)
                mean_loss = float(np.mean(losses))
                history.append(SplatTrainingPoint(seconds, iteration, mean_loss, psnr, ssim, len(splats)))
                losses.clear()
            step = SplatTrainingStep(
                fraction=min(fraction, 1.0),
                message=reason or "Training",
                stage="training",
                iteration=iteration,
                seconds=seconds,
                history=tuple(history),
                splats=splats,
                reference=views[k].cpu().numpy(),
                image=view.image.detach().cpu().numpy(),
            )
            yield step
            if reason:
                return step

    def _result(self, step: SplatTrainingStep) -> TrainedSplats:
        splats, last = step.splats, step.history[-1]
        assert splats is not None
        assert last.psnr_db is not None
        assert last.ssim is not None
        began = time.perf_counter()
        for camera in self.held_out_cameras:
            splats.render_view(camera, self.scene.background).image.cpu()
        fps = len(self.held_out_cameras) / (time.perf_counter() - began)
        return TrainedSplats(
            splats=splats.to("cpu"),
            psnr_db=last.psnr_db,
            ssim=last.ssim,
            fps=fps,
            seconds=step.seconds,
            settings=self.settings,
            history=step.history,
            message=step.message,
        )

    def _visibility_cameras(self) -> Cameras:
        """Return some of the training cameras, from all sides."""
        return self.cameras[:: max(1, len(self.cameras) // _VISIBILITY_CAMERAS)]

    def _validate(self, splats: Splats) -> tuple[float, float]:
        """Return PSNR over all pixels of the held-out views, and their mean SSIM."""
        with torch.no_grad():
            images = splats.render(self.held_out_cameras, self.scene.background)
        references = torch.stack(self.held_out)
        ssim = [float(structural_similarity(a, b)) for a, b in zip(images, references, strict=True)]
        return psnr_between(references.cpu().numpy(), images.cpu().numpy(), 1.0), float(np.mean(ssim))


class _SplatOptimizer:
    """Parameters of splats, and the torch optimizer that updates them."""

    def __init__(self, splats: Splats, settings: SplatTrainingSettings, pixel_size: float) -> None:
        self.settings = settings
        self.rates = {name: settings.learning_rate * rate for name, rate in _RATES.items()}
        self.rates["means"] = settings.learning_rate * _POSITION_RATE * pixel_size
        self.min_log_variance = 2 * math.log(_MIN_SCALE * pixel_size)
        if settings.solver == "sgd":  # steps scale with the square of a parameter's unit, unlike those of Adam
            self.rates = {name: _SGD_RATE * settings.gaussians * rate**2 for name, rate in self.rates.items()}
        self._start(splats)

    def _start(self, splats: Splats) -> None:
        min_variance = math.exp(self.min_log_variance)
        excess = ((2 * splats.log_scales).exp() - min_variance).clamp_min(1e-3 * min_variance)
        values = {
            "means": splats.means,
            "shapes": excess.log() / 2,
            "quaternions": splats.quaternions,
            "opacity_logits": splats.opacity_logits,
            "sh_constant": splats.sh[:, :1],
            "sh_rest": splats.sh[:, 1:],
        }
        self.parameters = {name: tensor.detach().clone().requires_grad_() for name, tensor in values.items()}
        groups = [{"params": [leaf], "lr": self.rates[name], "name": name} for name, leaf in self.parameters.items()]
        self.optimizer: torch.optim.Optimizer
        if self.settings.solver == "sgd":
            self.optimizer = torch.optim.SGD(groups, lr=1.0, momentum=0.9)
        else:
            self.optimizer = torch.optim.Adam(groups, eps=1e-15)

    def splats(self) -> Splats:
        """Return the splats as a differentiable function of the parameters."""
        return self._to_splats(*self.parameters.values())

    def detached_splats(self) -> Splats:
        """Return the current splats without gradients."""
        return self._to_splats(*(parameter.detach() for parameter in self.parameters.values()))

    def _to_splats(
        self,
        means: Tensor,
        shapes: Tensor,
        quaternions: Tensor,
        opacity_logits: Tensor,
        sh_constant: Tensor,
        sh_rest: Tensor,
    ) -> Splats:
        log_scales = torch.logaddexp(2 * shapes, shapes.new_tensor(self.min_log_variance)) / 2
        return Splats(means, log_scales, quaternions, opacity_logits, torch.cat([sh_constant, sh_rest], 1))

    def step(self, fraction: float) -> None:
        """Update the parameters; learning rates decay exponentially with the fraction of the training."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.rates[group["name"]] * _FINAL_RATE ** min(fraction, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def replace_splats(self, splats: Splats, kept: Tensor) -> None:
        """Continue with other splats; the first of them are the kept ones, which keep their optimizer state."""
        parameters, before = self.parameters, self.optimizer.state
        self._start(splats)
        for name, parameter in self.parameters.items():
            state = before[parameters[name]]
            for key, value in state.items():
                if torch.is_tensor(value) and value.ndim:
                    added = value.new_zeros(len(parameter) - len(kept), *value.shape[1:])
                    state[key] = torch.cat([value[kept], added])
            self.optimizer.state[parameter] = state
