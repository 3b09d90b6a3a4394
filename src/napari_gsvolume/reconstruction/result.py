"""State and result of a reconstruction."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from ..fitting import FitStep
from ..gaussians import GaussianVolume
from ..progress import Step
from ..types import Float32Array
from .settings import ReconstructSettings


class Reprojection(NamedTuple):
    """Projections of a reconstructed volume at the measured views.

    Attributes
    ----------
    images : ndarray, (K, V, U), float32
        Line integrals of the reconstructed volume, intensity times mm.
    residual : ndarray, (K, V, U), float32
        Measured projections minus `images`.
    """

    images: Float32Array
    residual: Float32Array


@dataclass(frozen=True)
class ReconstructPoint:
    """Quality of a reconstruction after one iteration.

    Attributes
    ----------
    seconds : float
        Time since the start of the run.
    data_fidelity : float or None
        Mean squared residual of the measurements over their variance; 1 is the noise level. None during the fit of
        the Gaussians, for which it is computed at the end only.
    psnr_db : float or None
        PSNR against the true volume, dB; None without one.
    n_gaussians : int
        Number of Gaussians; 0 while there are only voxels.
    """

    seconds: float
    data_fidelity: float | None
    psnr_db: float | None
    n_gaussians: int


@dataclass(frozen=True, eq=False)
class ReconstructStep(Step):
    """State of a reconstruction after one iteration.

    Attributes
    ----------
    fraction : float
        Fraction of the run that is done, 0 to 1.
    message : str
        Current activity, or the reason why the run ended.
    stage : "voxels" or "Gaussians"
        Reconstruction of voxels, or fit of Gaussians to the voxels.
    iteration : int
        Iteration of the stage.
    history : tuple of ReconstructPoint
        Quality over time; the last point belongs to this step.
    volume : callable
        Returns the current volume, (Z, Y, X), float32, in the measured intensities.
    voxels : callable
        Returns the voxels of the first stage.
    reproject : callable
        Returns the `Reprojection` of the current volume; None without projections.
    fit : FitStep or None
        State of the fit of the Gaussians; None while there are only voxels.
    """

    stage: Literal["voxels", "Gaussians"]
    iteration: int
    history: tuple[ReconstructPoint, ...] = field(repr=False)
    volume: Callable[[], Float32Array] = field(repr=False)
    voxels: Callable[[], Float32Array] = field(repr=False)
    reproject: Callable[[], Reprojection | None] = field(repr=False)
    fit: FitStep | None = field(repr=False, default=None)

    @property
    def current(self) -> ReconstructPoint:
        """Last point of the history."""
        return self.history[-1]

    @property
    def gaussians(self) -> GaussianVolume | None:
        """Current Gaussians; None while there are only voxels."""
        return None if self.fit is None else self.fit.gaussians

    @property
    def summary(self) -> str:
        """Number of Gaussians, PSNR and time, as shown beside a progress bar."""
        now = self.current
        psnr = "" if now.psnr_db is None else f"{now.psnr_db:.2f} dB  "
        return f"{now.n_gaussians:,} Gaussians  {psnr}{now.seconds:.0f} s"


@dataclass(frozen=True, eq=False)
class ReconstructionResult:
    """Result of a reconstruction.

    Attributes
    ----------
    gaussians : GaussianVolume
        Gaussians in the measured intensities.
    reconstruction : ndarray, (Z, Y, X), float32
        Sum of the Gaussians at every voxel of the grid.
    voxels : ndarray, (Z, Y, X), float32
        Voxels that the Gaussians were fitted to.
    reprojection : Reprojection or None
        Projections of the reconstruction, and their residual, for the first of the measured projections; None without
        projections.
    psnr_db, ssim : float or None
        Quality against the true volume, with its data range max - min; None without one.
    data_fidelity : float
        Mean squared residual of the measurements over their variance; 1 is the noise level.
    seconds : float
        Duration.
    settings : ReconstructSettings
        Settings of the run.
    history : tuple of ReconstructPoint
        Quality over time.
    message : str
        Reason why the run ended.
    """

    gaussians: GaussianVolume
    reconstruction: Float32Array = field(repr=False)
    voxels: Float32Array = field(repr=False)
    reprojection: Reprojection | None = field(repr=False)
    psnr_db: float | None
    ssim: float | None
    data_fidelity: float
    seconds: float
    settings: ReconstructSettings
    history: tuple[ReconstructPoint, ...] = field(repr=False)
    message: str

    def report(self) -> dict[str, Any]:
        """Return quality, settings and history, ready for JSON."""
        return {
            "psnr_db": self.psnr_db,
            "ssim": self.ssim,
            "data_fidelity": self.data_fidelity,
            "n_gaussians": len(self.gaussians),
            "seconds": self.seconds,
            "message": self.message,
            "settings": self.settings.model_dump(),
            "history": [vars(point) for point in self.history],
        }
