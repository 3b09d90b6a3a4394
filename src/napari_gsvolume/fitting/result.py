"""What a fit yields: its state after each iteration, and its result."""

from __future__ import annotations

import importlib.metadata
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..gaussians import GaussianVolume
from ..io.gsv.format import encode
from ..memory import release_cache, run_on_device
from ..metrics import psnr_db, ssim
from ..operators.gaussian_sum import Gaussians
from .objective import Objective
from .refit import solve_weights
from .settings import FitSettings


@dataclass(frozen=True)
class HistoryPoint:
    """What was reached when."""

    seconds: float
    psnr_db: float
    n_gaussians: int
    terms: dict[str, float] = field(default_factory=dict)
    """The parts of the loss, each with its weight: "data", the mean squared error, and the penalties."""


@dataclass(frozen=True, eq=False)
class FitStep:
    """The state of a fit after one iteration. Cheap: nothing is computed before it is asked for.

    Attributes
    ----------
    iteration : int
        Iterations done.
    seconds : float
        Time since the fit began, kernels' compilation included.
    psnr_db : float
        Over all valid voxels, with the data range max - min.
    n_gaussians : int
        Number of Gaussians now.
    progress : float
        About how much of the fit is over, 0 to 1.
    message : str
        What is going on, or why the fit ended.
    """

    iteration: int
    seconds: float
    psnr_db: float
    n_gaussians: int
    progress: float
    message: str
    objective: Objective = field(repr=False)
    state: Gaussians = field(repr=False)
    history: tuple[HistoryPoint, ...] = field(repr=False)
    rounding: float | None = None
    """Step to which the Gaussians are rounded, for a file of a given size (`napari_gsvolume.io.gsv.format`)."""

    @property
    def settings(self) -> FitSettings:
        """What was asked for."""
        return self.objective.settings

    @property
    def device(self) -> str:
        """Where it is computed: "cpu", "cuda:0", ..."""
        return str(self.objective.target.values.device)

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences about input and device the user should know."""
        return self.objective.target.notes

    @property
    def gaussians(self) -> GaussianVolume:
        """The Gaussians now, in the intensities of the volume.

        With a data term that has no weights they carry the volume's values at their centres.
        """
        return self._volume(self.objective.with_weights(self.state))

    def _volume(self, state: Gaussians) -> GaussianVolume:
        target = self.objective.target
        metadata: dict[str, Any] = {
            "software": f"napari-gsvolume {importlib.metadata.version('napari-gsvolume')}",
            "settings": self.settings.model_dump(exclude_defaults=True),
            "metrics": {
                "psnr_db": self.psnr_db,
                "data_range": target.data_range,
                "seconds": self.seconds,
                "n_gaussians": self.n_gaussians,
            },
        }
        if self.rounding is not None:
            metadata["gsv"] = {"step": self.rounding}
        means, factors, weights = (tensor.cpu() for tensor in state)
        return GaussianVolume(means, factors, weights * target.data_range, target.grid, target.background, metadata)

    def reconstruction(self) -> NDArray[np.float32]:
        """Return the reconstruction of every voxel, in the volume's intensities, float32."""
        target = self.objective.target

        def compute() -> NDArray[np.float32]:
            prediction = self.objective.predict(self.state)
            return prediction.mul_(target.data_range).add_(target.background).cpu().numpy()

        return run_on_device(target.values.device, compute)

    def result(self) -> FitResult:
        """Return what is worth keeping of a fit that ended here; computes the SSIM."""
        target = self.objective.target
        reconstruction = self.reconstruction()
        volume = target.values.cpu().numpy() * np.float32(target.data_range) + np.float32(target.background)
        valid = None if target.valid is None else target.valid.cpu().numpy()
        similarity = ssim(volume, reconstruction, target.data_range, valid)
        state = self.state
        if self.objective.support is not None:
            state = run_on_device(target.values.device, lambda: solve_weights(self.objective, self.state))
        gaussians = self._volume(state)
        release_cache()
        gaussians.metadata["metrics"]["ssim"] = similarity
        return FitResult(
            gaussians, reconstruction, self.psnr_db, similarity, self.seconds, self.settings, self.history,
            self.notes, self.message, self.device,
        )  # fmt: skip


@dataclass(frozen=True, eq=False)
class FitResult:
    """A finished fit.

    Attributes
    ----------
    gaussians : GaussianVolume
        The Gaussians, in the intensities of the volume. With a data term that has no weights, these are solved for at
        the end, so that the Gaussians stand for a volume by themselves.
    reconstruction : ndarray, float32
        f at every voxel of the volume; with another data term than "weights", what that term predicts.
    psnr_db, ssim : float
        Against the volume, with the data range max - min; SSIM is None for volumes too small for its window.
    seconds : float
        Duration.
    settings : FitSettings
        What was asked for.
    history : tuple of HistoryPoint
        PSNR, N and the terms of the loss over time.
    notes : tuple of str
        Sentences about input and device the user should know.
    message : str
        Why the fit ended.
    device : str
        Where it was computed: "cpu", "cuda:0", ...
    """

    gaussians: GaussianVolume
    reconstruction: NDArray[np.float32] = field(repr=False)
    psnr_db: float
    ssim: float | None
    seconds: float
    settings: FitSettings
    history: tuple[HistoryPoint, ...] = field(repr=False)
    notes: tuple[str, ...]
    message: str
    device: str

    @property
    def n_gaussians(self) -> int:
        """Number of Gaussians."""
        return len(self.gaussians)

    @property
    def terms(self) -> dict[str, float]:
        """The parts of the loss at the end, each with its weight."""
        return self.history[-1].terms

    @cached_property
    def n_bytes(self) -> int:
        """Size of the Gaussians in a ``.gsv`` file."""
        return len(encode(self.gaussians))

    def with_gaussians(self, gaussians: GaussianVolume, volume: ArrayLike) -> FitResult:
        """Return the result with Gaussians that were read back from a file: how good these are on the volume."""
        original = np.asarray(volume)
        valid = np.isfinite(original) if original.dtype.kind == "f" else np.ones(original.shape, bool)
        reconstruction = gaussians.sample()
        span = float(original[valid].max()) - float(original[valid].min())
        error = np.where(valid, np.subtract(original, reconstruction, dtype=np.float64), 0)
        return replace(
            self,
            gaussians=gaussians,
            reconstruction=reconstruction,
            psnr_db=psnr_db(float((error * error).sum()) / span**2 / int(valid.sum())),
            ssim=ssim(
                np.where(valid, original, 0).astype(np.float32), reconstruction, span, None if valid.all() else valid
            ),
        )

    def report(self) -> dict[str, Any]:
        """Return the figures of the fit, ready for JSON."""
        return {
            "psnr_db": self.psnr_db,
            "ssim": self.ssim,
            "n_gaussians": self.n_gaussians,
            "seconds": self.seconds,
            "solver": self.settings.solver,
            "device": self.device,
            "message": self.message,
            "notes": list(self.notes),
            "terms": self.terms,
            "settings": self.settings.model_dump(),
            "history": [vars(point) for point in self.history],
        }
