"""The kernels on an NVIDIA GPU: numba-cuda, on torch's tensors as they lie in its memory.

`splat` gives each tile of the grid a block, which passes its Gaussians through shared memory; which Gaussians reach
into which tile is listed on the device, by a prefix sum and a sort. `gather` gives each Gaussian a warp, which walks
its rows. Nothing is written by two blocks, so there are no atomics and sums come out the same every time.

The host waits once for each set of Gaussians that is splatted, to learn how long their lists are; it learns then, too,
whether all are finite. The lists are kept for as long as the tensor of means lives, so that sums of the same Gaussians
with other coefficients do not wait. To see whether coefficients or grids are finite it would have to: they are not
checked, and NaN spreads as it does in torch.

Images are volumes of shape (1, Y, X) here: a Gaussian of any thickness centred on that one plane is a 2D one.
"""

from __future__ import annotations

import math
import weakref
from typing import Any

import torch
from numba import cuda
from numba.cuda.core import config
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from ..errors import InputError
from . import cuda_kernels as kernels
from .constants import NOT_FINITE

_SIMULATED = bool(config.ENABLE_CUDASIM)  # numba's simulator runs kernels in Python, on tensors of the CPU
config.CUDA_LOW_OCCUPANCY_WARNINGS = 0  # numba's advice on small launches is not for users
_BLOCK = 128  # threads a block of the kernels with a thread a Gaussian
_TILES = {2: (1, 32, 32), 3: (8, 8, 16)}
"""Of `splat`, four voxels a thread; `splat_flat` has one a thread, and a quarter of the tile."""
_FLAT_TILES = {2: (1, 16, 16), 3: (4, 8, 8)}
_WARPS_WANTED = 1 << 13
"""Fewer Gaussians than this have several warps each: it is about what a large GPU runs at a time."""
_MOST_PARTS = 32

Volume = tuple[int, int, int]


def splat(means: Tensor, factors: Tensor, coefficients: Tensor, shape: tuple[int, ...], support: float) -> Tensor:
    """Run `napari_gsvolume.kernels.splat` on the GPU."""
    C = coefficients.detach().float()
    if len(shape) == 2:
        none = C.new_zeros(len(C), 3)
        C = torch.cat([C[:, :1], none[:, :1], C[:, 1:3], none, C[:, 3:]], 1)
    return _by_tiles(kernels.splat, means, factors, C.contiguous(), shape, _TILES[len(shape)], support)


def gather(means: Tensor, factors: Tensor, grid: Tensor, support: float) -> Tensor:
    """Run `napari_gsvolume.kernels.gather` on the GPU."""
    moments = _by_warps(kernels.gather, means, factors, grid, support, (10,))
    return torch.cat([moments[:, :1], moments[:, 2:4], moments[:, 7:]], 1) if grid.ndim == 2 else moments


def splat_flat(means: Tensor, factors: Tensor, values: Tensor, shape: tuple[int, ...], support: float) -> Tensor:
    """Run `napari_gsvolume.kernels.splat_flat` on the GPU."""
    amounts = values.detach().to(torch.float32 if values.is_floating_point() else torch.int64).contiguous()
    return _by_tiles(kernels.splat_flat, means, factors, amounts, shape, _FLAT_TILES[len(shape)], support)


def gather_flat(means: Tensor, factors: Tensor, grid: Tensor, support: float) -> Tensor:
    """Run `napari_gsvolume.kernels.gather_flat` on the GPU."""
    return _by_warps(kernels.gather_flat, means, factors, grid, support, ())


def _by_tiles(
    kernel: Any, means: Tensor, factors: Tensor, amounts: Tensor, shape: tuple[int, ...], tile: Volume, support: float
) -> Tensor:
    """Run a kernel that sums the amounts of each tile's ellipsoids, a tile a block."""
    volume = _as_volume(shape)
    out = torch.zeros(volume, dtype=amounts.dtype, device=amounts.device)
    if len(means):
        ellipsoids = _ellipsoids(means, factors)
        starts, members = ellipsoids.lists(volume, tile, support)
        _launch(
            kernel,
            len(starts) - 1,
            kernels.TILE_THREADS,
            ellipsoids.squares,
            amounts,
            starts,
            members,
            volume,
            tile,
            support**2,
            out,
        )
    return out.reshape(shape)


def _by_warps(
    kernel: Any, means: Tensor, factors: Tensor, grid: Tensor, support: float, each: tuple[int, ...]
) -> Tensor:
    """Run a kernel that sums over each ellipsoid's voxels, one or several warps an ellipsoid."""
    volume = grid.detach().float().reshape(_as_volume(tuple(grid.shape))).contiguous()
    n = len(means)
    parts = min(max(_WARPS_WANTED // max(n, 1), 1), _MOST_PARTS, volume.shape[0])
    sums = torch.empty(parts, n, *each, device=volume.device)
    if n:
        _launch(kernel, (n, parts), kernels.WARP, _ellipsoids(means, factors).squares, volume, support, sums)
    total: Tensor = sums.sum(0)
    return total


class _Ellipsoids:
    """The supports of Gaussians made ready for the kernels, and which tiles of a grid they reach into."""

    def __init__(self, means: Tensor, factors: Tensor) -> None:
        self._factors, self._versions = weakref.ref(factors), (means._version, factors._version)
        mu, W = means.detach().float(), factors.detach().float()
        if mu.shape[1] == 2:
            mu = torch.nn.functional.pad(mu, (1, 0))
            W = torch.nn.functional.pad(W, (1, 0, 1, 0))
            W[:, 0, 0] = 1
        self.squares = torch.empty(len(mu), 9, dtype=torch.float64, device=mu.device)
        self._flaws = torch.zeros(1, dtype=torch.int64, device=mu.device)
        self._lists: dict[tuple[Volume, Volume, float], tuple[Tensor, Tensor]] = {}
        self._launch(kernels.complete_squares, mu.contiguous(), W.contiguous(), self.squares, self._flaws)

    def are_of(self, means: Tensor, factors: Tensor) -> bool:
        """Return whether these are still the ellipsoids of these tensors."""
        return self._factors() is factors and self._versions == (means._version, factors._version)

    def lists(self, volume: Volume, tile: Volume, support: float) -> tuple[Tensor, Tensor]:
        """Return starts (T + 1,) and members: ``members[starts[t]:starts[t + 1]]`` reach into tile t."""
        key = volume, tile, support
        if key not in self._lists:
            self._lists[key] = self._listed(*key)
        return self._lists[key]

    def _listed(self, volume: Volume, tile: Volume, support: float) -> tuple[Tensor, Tensor]:
        device = self.squares.device
        counts = torch.zeros(len(self.squares), dtype=torch.int64, device=device)
        self._launch(kernels.count_tiles, self.squares, volume, tile, support, counts)
        ends = counts.cumsum(0)
        n_pairs, flaws = torch.cat([ends[-1:], self._flaws]).tolist()  # the host waits here, and nowhere else
        if flaws:
            raise InputError(NOT_FINITE)
        tiles, members = torch.empty(2, max(n_pairs, 1), dtype=torch.int32, device=device)
        self._launch(kernels.list_tiles, self.squares, volume, tile, support, ends, tiles, members)
        tiles, order = tiles[:n_pairs].sort(stable=True)  # stable: the sums' order is that of the Gaussians
        n_tiles = math.prod(math.ceil(n / t) for n, t in zip(volume, tile, strict=True))
        bounds = torch.arange(n_tiles + 1, dtype=torch.int32, device=device)
        return torch.searchsorted(tiles, bounds), members[order] if n_pairs else members

    def _launch(self, kernel: Any, *arguments: Any) -> None:
        _launch(kernel, math.ceil(len(self.squares) / _BLOCK), _BLOCK, *arguments)


_remembered: Any = WeakTensorKeyDictionary()


def _ellipsoids(means: Tensor, factors: Tensor) -> _Ellipsoids:
    """Return the ellipsoids of Gaussians, the same ones as last time if nothing has changed."""
    known: _Ellipsoids | None = _remembered.get(means)
    if known is None or not known.are_of(means, factors):
        known = _remembered[means] = _Ellipsoids(means, factors)
    return known


def _as_volume(shape: tuple[int, ...]) -> Volume:
    z, y, x = (1, *shape) if len(shape) == 2 else shape
    return z, y, x


def _launch(kernel: Any, blocks: int | tuple[int, int], threads: int, *arguments: Any) -> None:
    """Start a kernel where the tensors among its arguments are, on torch's stream and memory."""
    if _SIMULATED:
        kernel[blocks, threads](*(a.numpy() if isinstance(a, Tensor) else a for a in arguments))
        return
    device = next(a.device for a in arguments if isinstance(a, Tensor))
    with cuda.gpus[device.index]:
        stream = cuda.external_stream(torch.cuda.current_stream(device).cuda_stream)
        kernel[blocks, threads, stream](*(cuda.as_cuda_array(a) if isinstance(a, Tensor) else a for a in arguments))
