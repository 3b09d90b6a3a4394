"""Steps of a fit, and its result."""

from __future__ import annotations

import importlib.metadata
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..gaussians import GaussianVolume
from ..io.gsv.format import encode
from ..memory import run_on_device
from ..metrics import psnr_db, ssim
from ..operators.gaussian_sum import Gaussians
from ..progress import Step
from .objective import Objective
from .refit import solve_weights
from .settings import FitSettings


@dataclass(frozen=True)
class HistoryPoint:
    """Quality of a fit after one iteration.

    Attributes
    ----------
    seconds : float
        Time since the start of the fit.
    psnr_db : float
        PSNR over all valid voxels, dB.
    n_gaussians : int
        Number of Gaussians.
    terms : dict of str to float
        Terms of the loss, multiplied by their weights: ``"data"`` (the mean squared error) and the penalties.
    """

    seconds: float
    psnr_db: float
    n_gaussians: int
    terms: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class FitStep(Step):
    """State of a fit after one iteration.

    Steps are cheap: `gaussians` and `reconstruction` are computed on access.

    Attributes
    ----------
    fraction : float
        Fraction of the fit that is done, 0 to 1; an estimate.
    message : str
        Current activity, or the reason why the fit ended.
    iteration : int
        Number of finished iterations.
    seconds : float
        Time since the start of the fit, compilation of the kernels included.
    psnr_db : float
        PSNR over all valid voxels, dB; the peak is the data range max - min.
    n_gaussians : int
        Number of Gaussians.
    objective : Objective
        Loss that the fit minimises.
    state : Gaussians
        Tensors of the Gaussians on the device; weights are relative to the data range.
    history : tuple of HistoryPoint
        One point per step; the last point belongs to this step.
    rounding : float, optional
        Quantisation step of a fit to a file size (see `napari_gsvolume.io.gsv.format`).
    is_last : bool
        True for the last step of a fit.

    See Also
    --------
    fit_steps : Generator of these steps.

    Examples
    --------
    >>> import napari_gsvolume as gsv
    >>> volume, grid = gsv.phantoms.vessel_phantom(16)
    >>> for step in gsv.fit_steps(volume, grid=grid, gaussians=10, iterations=3):
    ...     assert 0 <= step.fraction <= 1
    >>> step.iteration, step.n_gaussians <= 10, step.reconstruction().shape
    (3, True, (16, 16, 16))
    """

    iteration: int
    seconds: float
    psnr_db: float
    n_gaussians: int
    objective: Objective = field(repr=False)
    state: Gaussians = field(repr=False)
    history: tuple[HistoryPoint, ...] = field(repr=False)
    rounding: float | None = None
    is_last: bool = False

    @property
    def summary(self) -> str:
        """Number of Gaussians, PSNR and time, as shown beside a progress bar."""
        return f"{self.n_gaussians:,} Gaussians  {self.psnr_db:.2f} dB  {self.seconds:.0f} s"

    @property
    def has_result(self) -> bool:
        """True after the first iteration."""
        return self.iteration > 0

    @property
    def settings(self) -> FitSettings:
        """Settings of the fit."""
        return self.objective.settings

    @property
    def device(self) -> str:
        """Compute device: ``"cpu"``, ``"cuda:0"``, ..."""
        return str(self.objective.target.values.device)

    @property
    def notes(self) -> tuple[str, ...]:
        """Remarks about the input and the device, one sentence each."""
        return self.objective.target.notes

    @property
    def gaussians(self) -> GaussianVolume:
        """Current Gaussians, in the intensities of the volume.

        Under a data term without weights, they carry the values of the volume at their centres.
        """
        return self.volume_of(self.objective.with_weights(self.state))

    def volume_of(self, state: Gaussians) -> GaussianVolume:
        """Return tensors of Gaussians, with weights relative to the data range, in the intensities of the volume."""
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
        """Return the reconstruction at every voxel, float32, in the intensities of the volume."""
        target = self.objective.target

        def compute() -> NDArray[np.float32]:
            prediction = self.objective.predict(self.state)
            return prediction.mul_(target.data_range).add_(target.background).cpu().numpy()

        return run_on_device(target.values.device, compute)


@dataclass(frozen=True, eq=False)
class FitResult:
    """Result of a fit.

    Attributes
    ----------
    gaussians : GaussianVolume
        Gaussians in the intensities of the volume. After a fit with a data term without weights, the weights are
        solved for at the end, so that the Gaussians represent the volume by themselves.
    reconstruction : ndarray, (Z, Y, X) or (Y, X), float32
        Sum of the Gaussians at every voxel; under a data term other than ``"weights"``, the prediction of that term.
    psnr_db : float
        PSNR over all valid voxels, dB; the peak is the data range max - min.
    ssim : float or None
        Mean structural similarity; None for volumes that are too small for its window.
    seconds : float
        Duration.
    settings : FitSettings
        Settings of the fit.
    history : tuple of HistoryPoint
        PSNR, number of Gaussians and terms of the loss over time.
    notes : tuple of str
        Remarks about the input and the device, one sentence each.
    message : str
        Reason why the fit ended.
    device : str
        Compute device: ``"cpu"``, ``"cuda:0"``, ...

    See Also
    --------
    fit : Fit a volume and return this result.

    Examples
    --------
    >>> import napari_gsvolume as gsv
    >>> volume, grid = gsv.phantoms.vessel_phantom(16)
    >>> result = gsv.fit(volume, grid=grid, gaussians=10, iterations=3)
    >>> result.reconstruction.shape == volume.shape, result.message
    (True, 'All iterations are done.')
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
        """Final terms of the loss, multiplied by their weights."""
        return self.history[-1].terms

    @cached_property
    def n_bytes(self) -> int:
        """Size of the Gaussians in a ``.gsv`` file, bytes."""
        return len(encode(self.gaussians))

    def with_gaussians(self, gaussians: GaussianVolume, volume: ArrayLike) -> FitResult:
        """Return this result for other Gaussians, such as those read back from a file.

        Parameters
        ----------
        gaussians : GaussianVolume
            Gaussians on the grid of the volume.
        volume : array_like
            Volume that was fitted; reconstruction, PSNR and SSIM are computed against it.
        """
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
        """Return figures, settings and history as plain values, ready for JSON."""
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


def fit_result(step: FitStep) -> FitResult:
    """Return the result of a fit that ends with this step; computes the reconstruction and the SSIM."""
    target = step.objective.target
    reconstruction = step.reconstruction()
    volume = target.values.cpu().numpy() * np.float32(target.data_range) + np.float32(target.background)
    valid = None if target.valid is None else target.valid.cpu().numpy()
    similarity = ssim(volume, reconstruction, target.data_range, valid)
    state = step.state
    if step.objective.support is not None:
        state = run_on_device(target.values.device, lambda: solve_weights(step.objective, step.state))
    gaussians = step.volume_of(state)
    gaussians.metadata["metrics"]["ssim"] = similarity
    return FitResult(
        gaussians=gaussians,
        reconstruction=reconstruction,
        psnr_db=step.psnr_db,
        ssim=similarity,
        seconds=step.seconds,
        settings=step.settings,
        history=step.history,
        notes=step.notes,
        message=step.message,
        device=step.device,
    )
