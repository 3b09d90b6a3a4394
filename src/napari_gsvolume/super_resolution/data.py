"""Training data of super-resolution: slices of volumes as ground truth, and their degradations.

Every training pair is a high-resolution patch and its own degradation, so that borders, fractional factors and all
degradation models are treated alike: the low-resolution voxels lie at the same place within each patch.
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
from .schemes import cached_degradation, check_rank, middle_slice
from .settings import MAX_WHOLE_SLICE, MIN_PATCH_SIZE, TrainSRSettings

_VALIDATION_SLICES = 12  # of each volume: enough for a figure, and quick to predict
_SIMILAR = 1.2  # ratio of lengths that count as equal


@dataclass(frozen=True, eq=False)
class ValidationSet:
    """Slices of one volume held out for validation, normalized.

    Attributes
    ----------
    low : Tensor, (m, C, h, w)
        Degraded slices with their neighbours.
    target : Tensor, (m, H, W)
        Ground truth of the middle ones.
    data_range : float
        Range of the targets.
    slices : tuple of int, (m,)
        Slice indices in the volume.
    """

    low: Tensor
    target: Tensor
    data_range: float
    slices: tuple[int, ...]


class Batch(NamedTuple):
    """Batch of training pairs.

    Attributes
    ----------
    low : Tensor, (B, C, h, w)
        Degraded slices with their neighbours.
    target : Tensor, (B, H, W)
        Ground truth of the middle ones, degraded by `comparison` where there is one.
    comparison : Degradation or None
        Degradation applied to the predictions before they are compared with `target`.
    """

    low: Tensor
    target: Tensor
    comparison: Degradation | None


@dataclass(frozen=True, eq=False)
class _Stack:
    planes: Tensor  # (n, H, W)
    sharp_rows: bool = False  # rows are as close as super-resolved pixels, columns as far apart as the input's pixels


class TrainingData:
    """Training batches and validation sets of volumes.

    Slices are degraded along both axes, so the training pairs are one scale coarser than the later application. Where
    the slices are as close as the super-resolved pixels (factor 2, slices 1 mm apart, pixels of 2 mm), the planes
    across them are better training data: degraded along the sharp axis alone, they look like the later input, and
    predictions are compared at that very scale along that axis, after degradation along the other one.

    Parameters
    ----------
    volumes : sequence of array_like, (Z, Y, X)
        Real, finite, not constant. Each is normalized by its own `Intensities`.
    settings : TrainSRSettings
    voxel_sizes : sequence of (float, float, float), optional
        Voxel size of each volume along (z, y, x). For in-plane super-resolution, planes across the other axes are
        training data as well where voxels are (nearly) cubes, or slices are as close as above.

    Attributes
    ----------
    validation_sets : list of ValidationSet
        Slices held out of training, one set for each volume.

    Raises
    ------
    InputError
        If there is no volume, or one is not finite, is constant, has other axes, or is too small.
    """

    def __init__(
        self,
        volumes: Sequence[ArrayLike],
        settings: TrainSRSettings,
        voxel_sizes: Sequence[Sequence[float]] | None = None,
    ) -> None:
        self.settings = s = settings
        self.validation_sets: list[ValidationSet] = []
        self.stacks: list[_Stack] = []
        if not volumes:
            raise InputError("There is no volume to train on.")
        sizes = [(1.0, np.inf, np.inf)] * len(volumes) if voxel_sizes is None else voxel_sizes
        for volume, size in zip(volumes, sizes, strict=True):
            array = check_training_volume(volume)
            line = Intensities.of(array)
            stack = torch.from_numpy(np.moveaxis((array - line.centre) / line.scale, "zyx".index(s.slice_axis), 0))
            along = "zyx".index(s.slice_axis)
            self._divide(stack, size[along], [size[k] for k in range(3) if k != along])
        for part in self.stacks:
            sides = self._sides(part)
            factors = (s.factor, 1.0) if part.sharp_rows else s.factors
            check_rank([round(n / f) for n, f in zip(sides, factors, strict=True)], s.rank)
        pixels = np.array([stack.planes.numel() for stack in self.stacks], dtype=np.float64)
        self.shares = pixels / pixels.sum()

    def _divide(self, stack: Tensor, distance: float, pixel: Sequence[float]) -> None:
        """Hold out slices in the middle for validation, and keep those before and after them for training."""
        s, count = self.settings, len(stack)
        least = int(np.ceil(MIN_PATCH_SIZE * s.factor))
        held = max(1, round(s.validation_fraction * count))
        if min(stack.shape[1:]) < least or count < held + 2:
            raise InputError(
                f"A volume of {count} slices of {' x '.join(map(str, stack.shape[1:]))} pixels is too small to train "
                f"on: {held + 2} slices of {least} x {least} are needed."
            )
        first = (count - held) // 2
        which = np.unique(np.linspace(first, first + held - 1, min(held, _VALIDATION_SLICES)).round().astype(int))
        lengths = [divisible_length(n, s.factor)[1] for n in stack.shape[1:]]
        high = torch.stack([self._with_neighbours(stack, int(k)) for k in which])[..., : lengths[0], : lengths[1]]
        target = middle_slice(high)
        low = self.degradation(high.shape[2:]).degrade(high)
        data_range = max(float(target.max() - target.min()), 1e-6)
        self.validation_sets.append(ValidationSet(low, target, data_range, tuple(which.tolist())))
        for part in (stack[:first], stack[first + held :]):
            self.stacks.append(_Stack(part))
            if s.upsample_axes == "in-plane" and len(part) >= max(least, (1 + (s.rank or 0)) * s.factor + 1):
                for times in (1.0, s.factor):
                    if _are_similar(*pixel, times * distance):
                        self.stacks += [_Stack(part.movedim(k, 0), times > 1) for k in (1, 2)]

    def _with_neighbours(self, stack: Tensor, k: int) -> Tensor:
        # Neighbours are f slices away: as far, in pixels of the degraded slice, as neighbours are at application.
        s = self.settings
        away = (np.arange(s.depth) - s.depth // 2) * max(1, round(s.factor))
        return stack[torch.from_numpy((k + away).clip(0, len(stack) - 1))]

    def _between(self, stack: Tensor, k: int) -> Tensor:
        # Planes across slices are one low-resolution pixel apart; at application, slices are 1/f of that apart.
        s = self.settings
        at = np.clip(k + (np.arange(s.depth) - s.depth // 2) / s.factor, 0, len(stack) - 1)
        first = np.floor(at).astype(int)
        second = np.minimum(first + 1, len(stack) - 1)
        part = torch.from_numpy((at - first).astype(np.float32))[:, None, None]
        return torch.lerp(stack[first], stack[second], part)

    def degradation(self, high: Sequence[int]) -> Degradation:
        """Return the degradation of patches of a shape."""
        s = self.settings
        low = tuple(round(n / f) for n, f in zip(high, s.factors, strict=True))
        return cached_degradation((low[0], low[1]), s.factors, s.degradation, s.fwhm)

    def batches(self, random: np.random.Generator) -> Iterator[Batch]:
        """Yield batches without end."""
        s = self.settings
        while True:
            stack = self.stacks[random.choice(len(self.stacks), p=self.shares)]
            sides, crops = self._sides(stack), []
            for k in random.integers(len(stack.planes), size=s.batch_size):
                y, x = (int(random.integers(n - m + 1)) for n, m in zip(stack.planes.shape[1:], sides, strict=True))
                crop = stack.planes[:, y : y + sides[0], x : x + sides[1]]
                crops.append(self._between(crop, int(k)) if stack.sharp_rows else self._with_neighbours(crop, int(k)))
            high = torch.stack(crops)
            transpose, *flips = random.integers(2, size=3)
            high = high.flip([axis for axis, flip in zip((2, 3), flips, strict=True) if flip])
            if s.sign_flips:
                high = high * torch.from_numpy(
                    random.choice(np.array([-1, 1], dtype=np.float32), (s.batch_size, 1, 1, 1))
                )
            sharp = (s.factor, 1.0) if stack.sharp_rows else None
            if transpose:
                high, sharp = high.transpose(2, 3), sharp and (1.0, s.factor)
            high = high.contiguous()
            target = middle_slice(high)
            if sharp is None:
                yield Batch(self.degradation(high.shape[2:]).degrade(high), target, None)
            else:
                h, w = (round(n / f) for n, f in zip(high.shape[2:], sharp, strict=True))
                low = cached_degradation((h, w), sharp, s.degradation, s.fwhm).degrade(high)
                blind = (sharp[1], sharp[0])
                comparison = cached_degradation((high.shape[2], high.shape[3]), blind, s.degradation, s.fwhm)
                yield Batch(low, target, comparison)

    def _sides(self, stack: _Stack) -> tuple[int, int]:
        """Return the patch size for a stack, in high-resolution pixels."""
        rows, columns = stack.planes.shape[1:]
        if not stack.sharp_rows:
            return self._side(rows), self._side(columns)
        return self._side(rows), min(columns, self.settings.patch_side or max(MAX_WHOLE_SLICE, self.settings.rank or 0))

    def _side(self, n: int) -> int:
        """Return the patch side along an axis of n pixels; whole slices leave room for a random offset."""
        s = self.settings
        jitter = 0 if s.patch_side else min(int(np.ceil(s.factor)) - 1, n - int(np.ceil(MIN_PATCH_SIZE * s.factor)))
        return round(
            min(s.patch_side or max(MAX_WHOLE_SLICE, s.rank or 0), divisible_length(n - jitter, s.factor)[0]) * s.factor
        )


def divisible_length(n: int, factor: float) -> tuple[int, int]:
    """Return the largest number of whole low-resolution voxels in n voxels, and how many of n they cover."""
    low = int(n // factor)
    return low, round(low * factor)


def _are_similar(*lengths: float) -> bool:
    return max(lengths) <= _SIMILAR * min(lengths)


def check_training_volume(volume: ArrayLike) -> NDArray[np.float32]:
    """Return a volume as float32; raise InputError if it has other axes, is not real and finite, or is constant."""
    array = np.asarray(volume)
    if array.ndim != 3 or array.size == 0:
        raise InputError(f"A volume has three axes and one intensity a voxel; this has the shape {array.shape}.")
    if array.dtype.kind not in "biuf":
        raise InputError(f"Intensities are real numbers; got {array.dtype}.")
    if not np.isfinite(array).all():
        raise InputError("There are NaN or infinite intensities, which are no training data; replace them first.")
    if array.min() == array.max():
        raise InputError(f"The volume is constant (every voxel is {array.flat[0]:g}); there is nothing to train on.")
    return array.astype(np.float32)
