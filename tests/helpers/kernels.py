"""What the tests of kernels share: Gaussians of all kinds, and the comparison with the formulas."""

import numpy as np
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor

from napari_gsvolume.kernels import gather, n_monomials, reference, splat
from napari_gsvolume.kernels.constants import SUPPORT

# Of the sum of absolute contributions. The exponential is good to 2e-5; the rest is for float32 coordinates along x,
# which round to 1e-6 of a voxel, a hundred-thousandth of the thinnest Gaussian here.
TOLERANCE = 4e-5
# Voxels whose squared radius is this close to the cut may fall on either side of it. The GPU decides in float32.
ON_THE_CUT = {"cpu": 1e-6, "cuda": 1e-4}

# Standard deviations along the principal axes of a Gaussian in 3D; in 2D the last two of them.
SIGMAS = {
    "round": (1.5, 1.5, 1.5),
    "anisotropic": (1, 2, 4),
    "tiny": (0.1, 0.1, 0.1),
    "huge": (300, 300, 300),
    "needles": (0.3, 0.3, 40),
    "plates": (40, 40, 0.3),
}


def rotations(n: int, ndim: int, random: np.random.Generator) -> np.ndarray:
    if ndim == 3:
        return Rotation.random(n, random).as_matrix()
    c, s = np.cos(angle := random.uniform(0, 2 * np.pi, n)), np.sin(angle)
    return np.stack([c, -s, s, c], 1).reshape(n, 2, 2)


def gaussians(
    shape: tuple[int, ...], sigma: tuple[float, ...], n: int = 12, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """Return means near voxel centres, factors in any orientation, coefficients of polynomials of about 1."""
    random = np.random.default_rng(seed)
    ndim = len(shape)
    sigma = np.asarray(sigma[-ndim:])
    means = random.integers(0, shape, (n, ndim)) + random.uniform(-0.2, 0.2, (n, ndim))
    # Any rotation on the right leaves the Gaussian as it is: factors need not be symmetric.
    factors = rotations(n, ndim, random) / sigma @ rotations(n, ndim, random)
    degree = np.array([0] + [1] * ndim + [2] * (n_monomials(ndim) - 1 - ndim))
    coefficients = random.normal(size=(n, len(degree))) / sigma.max() ** degree
    return tuple(torch.from_numpy(a.astype(np.float32)) for a in (means, factors, coefficients))


def contributions(
    means: Tensor, factors: Tensor, shape: tuple[int, ...], kernels: str = "cpu"
) -> tuple[Tensor, Tensor, Tensor]:
    """Return absolute monomials (M, N, K), Gaussians up to the cut and those on it (M, N), in float64."""
    d = reference.grid_points(shape)[:, None] - means.double()
    q = torch.einsum("nab,mna->mnb", factors.double(), d).square().sum(-1)
    e, beyond = torch.exp(-q / 2), q - SUPPORT**2
    return reference.monomials(d).abs(), e * (beyond < ON_THE_CUT[kernels]), e * (beyond.abs() < ON_THE_CUT[kernels])


def assert_splat(
    means: Tensor,
    factors: Tensor,
    coefficients: Tensor,
    shape: tuple[int, ...],
    kernels: str = "cpu",
    device: str = "cpu",
) -> Tensor:
    """Compare with the formulas and return what these say; `kernels` are "cpu" or "cuda", the tensors on `device`."""
    got = splat(*(t.to(device) for t in (means, factors, coefficients)), shape).cpu()
    expected = reference.splat(means, factors, coefficients, shape)
    assert got.shape == shape
    assert got.dtype == torch.float32
    monomials, e, on_cut = contributions(means, factors, shape, kernels)
    size = (monomials * coefficients.double().abs()).sum(-1)
    allowed = (size * (TOLERANCE * e + on_cut)).sum(-1).reshape(shape)
    assert ((got - expected).abs() <= allowed).all()
    return expected


def assert_gather(means: Tensor, factors: Tensor, grid: Tensor, kernels: str = "cpu", device: str = "cpu") -> Tensor:
    """Compare with the formulas, as `assert_splat` does."""
    got = gather(*(t.to(device) for t in (means, factors, grid))).cpu()
    expected = reference.gather(means, factors, grid)
    assert got.shape == expected.shape == (len(means), n_monomials(grid.ndim))
    assert got.dtype == torch.float32
    monomials, e, on_cut = contributions(means, factors, tuple(grid.shape), kernels)
    allowed = torch.einsum("m,mn,mnk->nk", grid.double().abs().flatten(), TOLERANCE * e + on_cut, monomials)
    assert ((got - expected).abs() <= allowed).all()
    return expected


def noise(shape: tuple[int, ...], seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))
