"""Quality of a reconstruction: PSNR and SSIM."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray


def psnr_db(mean_square: float) -> float:
    """Return the peak signal-to-noise ratio in dB of a mean squared error relative to the squared data range."""
    return -10 * math.log10(max(mean_square, 1e-20))


def psnr_between(truth: ArrayLike, volume: ArrayLike, data_range: float) -> float:
    """Return the PSNR in dB of a volume against the true one."""
    error = np.subtract(volume, truth, dtype=np.float64)
    return psnr_db(float(np.square(error).mean()) / data_range**2)


def ssim(
    volume: NDArray[np.float32],
    reconstruction: NDArray[np.float32],
    data_range: float,
    valid: NDArray[np.bool_] | None = None,
) -> float | None:
    """Return the mean structural similarity [1]_ with windows of 7 voxels; None if no window fits.

    Axes of one voxel are left out; on small volumes the window shrinks to the largest odd size that fits. Invalid
    voxels count as reconstructed in the windows of their neighbours, and are left out of the mean.

    References
    ----------
    .. [1] Z. Wang, A. C. Bovik, H. R. Sheikh, E. P. Simoncelli. Image Quality Assessment: From Error Visibility to
       Structural Similarity. IEEE Transactions on Image Processing 13(4), 2004.
    """
    from skimage.metrics import structural_similarity

    a, b = volume.squeeze(), reconstruction.squeeze()
    window = min((7, *a.shape))
    window -= 1 - window % 2
    if a.ndim == 0 or window < 3:
        return None
    if valid is None:
        return float(structural_similarity(a, b, data_range=data_range, win_size=window))
    inside = valid.squeeze()
    _, each = structural_similarity(np.where(inside, a, b), b, data_range=data_range, win_size=window, full=True)
    return float(each[inside].mean())
