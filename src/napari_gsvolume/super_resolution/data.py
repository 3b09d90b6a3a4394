"""What a super-resolution learns from: slices of volumes, taken for the truth, and degraded.

Every pair is made of a patch of high resolution, which is degraded by itself, so that borders, factors that are not
whole and every degradation are alike: wherever the patch lies, so do the voxels of low resolution.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from ..errors import InputError
from .degradation import Degradation
from .intensities import Intensities
from .schemes import check_rank, degradation_of, middle
from .settings import SMALLEST, WHOLE, TrainSRSettings

_JUDGES = 12  # slices held out, of each volume, that are looked at
_ALIKE = 1.2  # lengths that differ less are taken for equal


@dataclass(frozen=True, eq=False)
class HeldOut:
    """Slices of one volume that only judge.

    Attributes
    ----------
    low : Tensor, (m, C, h, w)
        Degraded, with their neighbours.
    target : Tensor, (m, H, W)
        The middle ones before that.
    data_range : float
        Of the targets.
    slices : tuple of int, (m,)
        Which slices of the volume they are.
    """

    low: Tensor
    target: Tensor
    data_range: float
    slices: tuple[int, ...]


class Batch(NamedTuple):
    """What was measured, and what is known of what should be predicted from it.

    Attributes
    ----------
    low : Tensor, (B, C, h, w)
        Slices and their neighbours.
    target : Tensor, (B, H, W)
        The middle ones, finer; or, where something is `seen`, what that makes of them.
    seen : Degradation, or None
        What predictions have to go through before they are compared with `target`.
    """

    low: Tensor
    target: Tensor
    seen: Degradation | None


@dataclass(frozen=True, eq=False)
class _Stack:
    planes: Tensor  # (n, H, W)
    sharp_rows: bool = False  # the distance of rows is that of pixels once finer; columns are no closer than pixels now


class Planes:
    """Batches of patches, and slices held out, of volumes.

    Slices are degraded in both directions, so what is learnt is one scale coarser than what it is applied to. Where
    slices are as close as pixels are to become (factor 2, and slices 1 mm apart with pixels of 2 mm), the planes across
    them tell more: degraded along that one axis they are just what will be made finer, and predictions from them can be
    compared at that very scale, along that axis. The other axis is degraded again for that.

    Parameters
    ----------
    volumes : sequence of array_like, (Z, Y, X)
        Real, finite, not constant. Each is normalised by its own `Intensities`.
    settings : TrainSRSettings
    voxel_sizes : sequence of (float, float, float), optional
        Of each volume along (z, y, x). Where voxels are cubes, or nearly, or slices as close as above, and slices are
        to be made finer in-plane, planes across the other axes are learnt from as well.

    Raises
    ------
    ValueError
        If there is no volume, one is not as above, or is too small; the sentence says what.
    """

    def __init__(
        self,
        volumes: Sequence[ArrayLike],
        settings: TrainSRSettings,
        voxel_sizes: Sequence[Sequence[float]] | None = None,
    ) -> None:
        self.settings = s = settings
        self.held_out: list[HeldOut] = []
        self.stacks: list[_Stack] = []
        if not volumes:
            raise InputError("There is no volume to learn from.")
        sizes = [(1.0, np.inf, np.inf)] * len(volumes) if voxel_sizes is None else voxel_sizes
        for volume, size in zip(volumes, sizes, strict=True):
            array = checked_volume(volume)
            line = Intensities.of(array)
            stack = torch.from_numpy(np.moveaxis((array - line.centre) / line.scale, "zyx".index(s.axis), 0))
            along = "zyx".index(s.axis)
            self._divide(stack, size[along], [size[k] for k in range(3) if k != along])
        for part in self.stacks:
            sides = self._sides(part)
            factors = (s.factor, 1.0) if part.sharp_rows else s.factors
            check_rank([round(n / f) for n, f in zip(sides, factors, strict=True)], s.rank)
        pixels = np.array([stack.planes.numel() for stack in self.stacks], dtype=np.float64)
        self.shares = pixels / pixels.sum()

    def _divide(self, stack: Tensor, distance: float, pixel: Sequence[float]) -> None:
        """Hold slices in the middle out, and keep what is before and after them."""
        s, count = self.settings, len(stack)
        least = int(np.ceil(SMALLEST * s.factor))
        held = max(1, round(s.hold_out * count))
        if min(stack.shape[1:]) < least or count < held + 2:
            raise InputError(
                f"A volume of {count} slices of {' x '.join(map(str, stack.shape[1:]))} pixels is too small to learn "
                f"from: {held + 2} slices of {least} x {least} are needed."
            )
        first = (count - held) // 2
        which = np.unique(np.linspace(first, first + held - 1, min(held, _JUDGES)).round().astype(int))
        lengths = [fitting(n, s.factor)[1] for n in stack.shape[1:]]
        high = torch.stack([self._with_neighbours(stack, int(k)) for k in which])[..., : lengths[0], : lengths[1]]
        target = middle(high)
        low = self.degradation(high.shape[2:]).degrade(high)
        data_range = max(float(target.max() - target.min()), 1e-6)
        self.held_out.append(HeldOut(low, target, data_range, tuple(which.tolist())))
        for part in (stack[:first], stack[first + held :]):
            self.stacks.append(_Stack(part))
            if s.axes == "in-plane" and len(part) >= max(least, (1 + (s.rank or 0)) * s.factor + 1):
                for times in (1.0, s.factor):
                    if _alike(*pixel, times * distance):
                        self.stacks += [_Stack(part.movedim(k, 0), times > 1) for k in (1, 2)]

    def _with_neighbours(self, stack: Tensor, k: int) -> Tensor:
        # As far away as neighbours will be once the pixels of the slices themselves are those of low resolution.
        s = self.settings
        away = (np.arange(s.depth) - s.depth // 2) * max(1, round(s.factor))
        return stack[torch.from_numpy((k + away).clip(0, len(stack) - 1))]

    def _between(self, stack: Tensor, k: int) -> Tensor:
        # Of planes across slices, the next is a pixel of low resolution away, f times as far as slices are.
        s = self.settings
        at = np.clip(k + (np.arange(s.depth) - s.depth // 2) / s.factor, 0, len(stack) - 1)
        first = np.floor(at).astype(int)
        second = np.minimum(first + 1, len(stack) - 1)
        part = torch.from_numpy((at - first).astype(np.float32))[:, None, None]
        return torch.lerp(stack[first], stack[second], part)

    def degradation(self, high: Sequence[int]) -> Degradation:
        """Return the operator from patches of a shape."""
        s = self.settings
        low = tuple(round(n / f) for n, f in zip(high, s.factors, strict=True))
        return degradation_of((low[0], low[1]), s.factors, s.degradation, s.fwhm)

    def batches(self, random: np.random.Generator) -> Iterator[Batch]:
        """Yield batches for ever."""
        s = self.settings
        while True:
            stack = self.stacks[random.choice(len(self.stacks), p=self.shares)]
            sides, crops = self._sides(stack), []
            for k in random.integers(len(stack.planes), size=s.batch):
                y, x = (int(random.integers(n - m + 1)) for n, m in zip(stack.planes.shape[1:], sides, strict=True))
                crop = stack.planes[:, y : y + sides[0], x : x + sides[1]]
                crops.append(self._between(crop, int(k)) if stack.sharp_rows else self._with_neighbours(crop, int(k)))
            high = torch.stack(crops)
            transpose, *flips = random.integers(2, size=3)
            high = high.flip([axis for axis, flip in zip((2, 3), flips, strict=True) if flip])
            if s.random_signs:
                high = high * torch.from_numpy(random.choice(np.array([-1, 1], dtype=np.float32), (s.batch, 1, 1, 1)))
            sharp = (s.factor, 1.0) if stack.sharp_rows else None
            if transpose:
                high, sharp = high.transpose(2, 3), sharp and (1.0, s.factor)
            high = high.contiguous()
            target = middle(high)
            if sharp is None:
                yield Batch(self.degradation(high.shape[2:]).degrade(high), target, None)
            else:
                h, w = (round(n / f) for n, f in zip(high.shape[2:], sharp, strict=True))
                low = degradation_of((h, w), sharp, s.degradation, s.fwhm).degrade(high)
                blind = (sharp[1], sharp[0])
                seen = degradation_of((high.shape[2], high.shape[3]), blind, s.degradation, s.fwhm)
                yield Batch(low, target, seen)

    def _sides(self, stack: _Stack) -> tuple[int, int]:
        """Return the sides of patches of a stack."""
        rows, columns = stack.planes.shape[1:]
        if not stack.sharp_rows:
            return self._side(rows), self._side(columns)
        return self._side(rows), min(columns, self.settings.side or max(WHOLE, self.settings.rank or 0))

    def _side(self, n: int) -> int:
        """Return how long, of n pixels, a patch is; of whole slices all but what lets the voxels of low ones lie."""
        s = self.settings
        jitter = 0 if s.side else min(int(np.ceil(s.factor)) - 1, n - int(np.ceil(SMALLEST * s.factor)))
        return round(min(s.side or max(WHOLE, s.rank or 0), fitting(n - jitter, s.factor)[0]) * s.factor)


def fitting(n: int, factor: float) -> tuple[int, int]:
    """Return the most voxels of low resolution that n can be degraded to without parts, and how many of n they take."""
    low = int(n // factor)
    return low, round(low * factor)


def _alike(*lengths: float) -> bool:
    return max(lengths) <= _ALIKE * min(lengths)


def checked_volume(volume: ArrayLike) -> NDArray[np.float32]:
    """Return a volume as float32; raise ValueError if it has other axes, is not real and finite, or is constant."""
    array = np.asarray(volume)
    if array.ndim != 3 or array.size == 0:
        raise InputError(f"A volume has three axes and one intensity a voxel; this has the shape {array.shape}.")
    if array.dtype.kind not in "biuf":
        raise InputError(f"Intensities are real numbers; got {array.dtype}.")
    if not np.isfinite(array).all():
        raise InputError("There are NaN or infinite intensities, which cannot be learnt from; replace them first.")
    if array.min() == array.max():
        raise InputError(f"The volume is constant (every voxel is {array.flat[0]:g}); there is nothing to learn.")
    return array.astype(np.float32)
