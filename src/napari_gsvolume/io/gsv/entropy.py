"""Integers as few bytes: models of what they are like, and constriction's range coder.

Probabilities are made with plus, times and divide only, which every machine rounds alike: a decoder elsewhere
must get the very same numbers. The parameters of the models travel with the data.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import constriction
import numpy as np

from ...errors import InputError
from ...types import Float64Array, IntArray

_Categorical, _Uniform = constriction.stream.model.Categorical, constriction.stream.model.Uniform


_LARGEST_UNIFORM = 1 << 23
_MOST_SYMBOLS = 1 << 12
_SHAPES = 32
_CONCENTRATIONS = 8


class Writer:
    """Encoder of integers; `Reader` decodes them in the same order."""

    def __init__(self) -> None:
        self._coder: Any = constriction.stream.queue.RangeEncoder()

    def content(self) -> bytes:
        """Return the encoded bytes."""
        return np.asarray(self._coder.get_compressed(), "<u4").tobytes()

    def number(self, value: int) -> None:
        """Write one signed integer of at most 40 bits, with a few bits of overhead."""
        digits = abs(value).bit_length()
        self.uniform(np.array([digits]), np.array([41]))
        rest = [(abs(value) >> shift) & 255 for shift in range(0, digits, 8)]
        self.uniform(np.array([*rest, value < 0]), np.array([256] * len(rest) + [2]))

    def uniform(self, values: IntArray, sizes: IntArray) -> None:
        """Write integers that are uniform from 0 to size - 1, with a size each."""
        several = sizes > 1
        self._coder.encode(values[several].astype(np.int32), _Uniform(), sizes[several].astype(np.int32))

    def table(self, values: IntArray, probabilities: Float64Array) -> None:
        """Write non-negative integers with given probabilities, up to a factor."""
        if len(values) and len(probabilities) > 1:
            self._coder.encode(values.astype(np.int32), _Categorical(probabilities, perfect=False))

    def counted(self, values: IntArray, size: int) -> None:
        """Write integers from 0 to size - 1 with their histogram, which is written first in coarse levels."""
        counts = np.bincount(values, minlength=size)
        levels = _level_of(counts)
        self.uniform(levels, np.full(size, _LEVELS))
        self.table(values, _count_of(levels))

    def centred(self, values: IntArray, *, from_zero: bool = False) -> None:
        """Write integers with a unimodal distribution (around a middle, or from zero on), by a fitted bell."""
        if not len(values):
            return
        low = 0 if from_zero else int(values.min())
        span = int(values.max()) - low + 1
        if span > _MOST_SYMBOLS:
            raise InputError("the numbers differ too much to be coded")
        if not from_zero:
            self.number(low)
        self.number(span)
        middle = 0 if from_zero else int(np.median(values)) - low
        if not from_zero:
            self.number(middle)
        costs = [_cost(values - low, _bell(span, middle, shape)) for shape in range(_SHAPES)]
        best = int(np.argmin(costs))
        self.uniform(np.array([best]), np.array([_SHAPES]))
        self.table(values - low, _bell(span, middle, best))

    def split(self, left: IntArray, totals: IntArray) -> None:
        """Write the left counts of splits of `totals`, with the best common beta-binomial distribution."""
        groups = [(int(total), left[totals == total]) for total in np.unique(totals)]
        costs = [
            sum(_cost(mine, _beta_binomial(total, concentration)) for total, mine in groups)
            for concentration in range(_CONCENTRATIONS)
        ]
        best = int(np.argmin(costs))
        self.uniform(np.array([best]), np.array([_CONCENTRATIONS]))
        for total, mine in groups:
            self.table(mine, _beta_binomial(total, best))


class Reader:
    """Decoder of `Writer`; damaged bytes give wrong integers within the given ranges, or a ValueError."""

    def __init__(self, content: bytes) -> None:
        self._coder: Any = constriction.stream.queue.RangeDecoder(np.frombuffer(content, "<u4").astype(np.uint32))

    def number(self) -> int:
        """Read one integer."""
        digits = int(self.uniform(np.array([41]))[0])
        count = -(-digits // 8)
        values = self.uniform(np.array([256] * count + [2]))
        size = sum(int(byte) << (8 * i) for i, byte in enumerate(values[:-1]))
        return -size if values[-1] else size

    def uniform(self, sizes: IntArray) -> IntArray:
        """Read as many integers as there are sizes."""
        if len(sizes) and sizes.max() > _LARGEST_UNIFORM:
            raise InputError("a range is too large")
        out = np.zeros(len(sizes), np.int64)
        several = sizes > 1
        out[several] = self._decode(_Uniform(), sizes[several].astype(np.int32))
        return out

    def table(self, count: int, probabilities: Float64Array) -> IntArray:
        """Read `count` integers with given probabilities."""
        if not count or len(probabilities) == 1:
            return np.zeros(count, np.int64)
        return self._decode(_Categorical(probabilities, perfect=False), count)

    def counted(self, count: int, size: int) -> IntArray:
        """Read `count` integers from 0 to size - 1."""
        levels = self.uniform(np.full(size, _LEVELS))
        return self.table(count, _count_of(levels))

    def centred(self, count: int, *, from_zero: bool = False) -> IntArray:
        """Read `count` integers of a unimodal distribution."""
        if not count:
            return np.zeros(0, np.int64)
        low = 0 if from_zero else self.number()
        span = self.number()
        middle = 0 if from_zero else self.number()
        if not (0 < span <= _MOST_SYMBOLS and 0 <= middle < span):
            raise InputError("a model is out of range")
        shape = int(self.uniform(np.array([_SHAPES]))[0])
        return low + self.table(count, _bell(span, middle, shape))

    def split(self, totals: IntArray) -> IntArray:
        """Read the left counts of splits of `totals`."""
        concentration = int(self.uniform(np.array([_CONCENTRATIONS]))[0])
        left = np.zeros_like(totals)
        for total in np.unique(totals):
            mine = totals == total
            left[mine] = self.table(int(mine.sum()), _beta_binomial(int(total), concentration))
        return left

    def _decode(self, *model: Any) -> IntArray:
        try:
            return np.asarray(self._coder.decode(*model), np.int64)
        except AssertionError as error:  # what constriction raises where no data can have led
            raise InputError("the coded numbers are damaged") from error


_LEVELS = 16


def _level_of(counts: IntArray) -> IntArray:
    """Return levels of counts: 0 for none, 15 for the largest, and half octaves between."""
    half_octaves = 2 * np.log2(np.maximum(counts, 1) / max(int(counts.max()), 1))
    levels = np.clip(np.rint(half_octaves + _LEVELS - 1), 1, _LEVELS - 1)
    return np.where(counts > 0, levels, 0).astype(np.int64)


def _count_of(levels: IntArray) -> Float64Array:
    half_octaves = np.array([1.0, 1.4142135623730951])
    sizes = half_octaves[levels % 2] * 2.0 ** (levels // 2)
    return np.where(levels > 0, sizes, 1e-3)


def _cost(values: IntArray, probabilities: Float64Array) -> float:
    """Return the code length of the values, bits."""
    p = probabilities[values] / probabilities.sum()
    return float(-np.log2(np.maximum(p, 2.0**-23)).sum())


def _bell(span: int, middle: int, shape: int) -> Float64Array:
    """Return probabilities of 0 .. span - 1 that fall from `middle` to both sides, in proportion.

    Half of the shapes fall as Gaussians do, half as exponentials; each falls less than the one before.
    """
    exponential, half_octaves = shape % 2, shape // 2
    width = 0.25 * 2 ** (half_octaves // 2) * (1.4142135623730951 if half_octaves % 2 else 1.0)
    steps = np.arange(max(middle, span - 1 - middle))
    if exponential:
        factors = np.full(len(steps), width / (1 + width))
    else:
        # exp(-((k + 1)^2 - k^2) / 2 s^2), of (1 + 1/n)^-n kind: a rational function that every machine rounds alike.
        t = (2 * steps + 1) / (2 * width * width)
        factors = 1 / (1 + t * (1 + t * (0.5 + t / 6)))
    falling = np.concatenate([[1.0], np.cumprod(factors)])
    return np.concatenate([falling[middle:0:-1], falling[: span - middle]]) + 1e-7


@lru_cache(4096)
def _beta_binomial(total: int, concentration: int) -> Float64Array:
    """Return the probabilities of 0 .. total, symmetric; the larger the concentration the nearer to the binomial."""
    a = 0.25 * 4.0**concentration
    k = np.arange(total)
    ratios = (total - k) / (k + 1) * ((k + a) / (total - k - 1 + a))  # p(k + 1) / p(k)
    # From the middle outwards, where the numbers are largest: a product from one end could leave the range of floats.
    middle = total // 2
    up = np.cumprod(ratios[middle:])
    down = np.cumprod(1 / ratios[:middle][::-1])[::-1]
    return np.concatenate([down, [1.0], up])
