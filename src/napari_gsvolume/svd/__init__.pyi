from .continuous_basis import ContinuousBasis, ContinuousImage
from .decomposition import (
    SliceSVD,
    best_psnr_db,
    cumulative_energy,
    decompose,
    effective_rank,
    optimal_threshold,
    spectra,
    stable_rank,
    unfold,
)

__all__ = [
    "ContinuousBasis",
    "ContinuousImage",
    "SliceSVD",
    "best_psnr_db",
    "cumulative_energy",
    "decompose",
    "effective_rank",
    "optimal_threshold",
    "spectra",
    "stable_rank",
    "unfold",
]
