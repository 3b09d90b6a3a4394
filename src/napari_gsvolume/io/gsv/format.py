"""Compact files of Gaussians: quantised, ordered along a Morton curve, entropy coded (``.gsv``; docs/formats.md).

A file is ``GSV1``, the CRC-32 of all that follows, the length of the header, the header (JSON, deflated with a preset
dictionary) and the coded integers. Decoding is reproducible on every machine (docs/formats.md specifies how far).
"""

from __future__ import annotations

import json
import math
import os
import struct
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ...errors import FileFormatError, InputError
from ...gaussians import GaussianVolume
from ...grid import Grid
from ...kernels import n_monomials
from ...types import Float64Array, IntArray
from ..atomic import atomic_write
from .entropy import Reader, Writer
from .quantization import LARGEST_CLASS, Codes, classes, dequantise, fraction_levels, orientation_sizes, quantise

MAGIC = b"GSV1"
MAX_GAUSSIANS_PER_BYTE = 1
"""Largest plausible number of Gaussians per byte: a file that claims more is damaged."""
NOISE = 0.02
"""Energy of the quantisation error relative to the squared error of the fit, without a given size: 0.09 dB."""
_ASSUMED_PSNR_DB = 45.0
_PREFIX = struct.Struct("<4sIH")
CELL = 1
_DICTIONARY = (
    b'"ssim":null,"time_limit":60.0,"target_psnr":"ratio":300.0,"gaussians":2000,"seconds":12.5,"n_gaussians":'
    b'"data_range":1.0,"psnr_db":30.0"metrics":{"settings":{"software":"napari-gsvolume 0.1.0"},"metadata":{'
    b'"step":0.1,"cell":1,"n":2000,"background":0.0,"axis_labels":["z","y","x"],'
    b'"units":["micrometer","millimeter","pixel","pixel","pixel"],'
    b'{"shape":[128,128,128],"affine":[[1.0,0.0,0.0,0.0],[0.0,1.0,0.0,0.0],[0.0,0.0,1.0,0.0],[0.0,0.0,0.0,1.0]],'
)


def write_gsv(path: str | os.PathLike[str], gaussians: GaussianVolume) -> None:
    """Write Gaussians to a ``.gsv`` file; an existing one is replaced in one step, or not at all.

    The quantisation step is ``metadata["gsv"]["step"]``, which fits to a file size and the reader set: such Gaussians
    are written without further change. Otherwise the step is such that the squared error of the fit (or that of 45 dB
    without a fit) grows by about `NOISE`.

    Raises
    ------
    ValueError
        If the file's name does not end in ``.gsv``, or the metadata cannot be written as JSON.
    OSError
        If the folder does not exist or cannot be written to.
    """
    path = Path(path)
    if path.suffix.lower() != ".gsv":
        raise InputError(f"The name of a compact file of Gaussians ends in .gsv; got {path.name}.")
    content = encode(gaussians)
    with atomic_write(path) as temporary:
        temporary.write_bytes(content)


def read_gsv(path: str | os.PathLike[str]) -> GaussianVolume:
    """Read what `write_gsv` wrote.

    Raises
    ------
    OSError
        If the file does not exist or may not be read.
    FileFormatError
        If the file is damaged, or was written by another program.
    """
    path = Path(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise type(error)(f"{path} cannot be read: {error.strerror or error}.") from error
    try:
        return decode(content)
    except ValueError as error:
        raise FileFormatError(f"{path} cannot be read: {str(error).rstrip('.')}.") from error


def encode(gaussians: GaussianVolume, step: float | None = None) -> bytes:
    """Return the content of a file; the default of the quantisation step is that of `write_gsv`."""
    step = step or (gaussians.metadata.get("gsv") or {}).get("step") or default_step(gaussians)
    return pack(rounded(gaussians, step)[0], step, gaussians)


def pack(codes: Codes, step: float, like: GaussianVolume) -> bytes:
    """Return the content of a file of these codes, with the grid, background and metadata of `like`."""
    metadata = _shortened({name: value for name, value in like.metadata.items() if name != "gsv"})
    header = {
        **like.grid.to_dict(),
        "background": float(like.background),
        "step": step,
        "n": len(codes.amplitudes),
        "metadata": metadata,
    }
    try:
        text = json.dumps(header, separators=(",", ":"), allow_nan=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"The metadata of the Gaussians cannot be written as JSON: {error}.") from error
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15, 9, zdict=_DICTIONARY)
    head = deflate.compress(text) + deflate.flush()
    if len(head) > 65535:
        raise InputError(f"The metadata of the Gaussians take {len(head):,} bytes; a .gsv file has room for 65,535.")
    body = head + _coded(codes)
    rest = struct.pack("<H", len(head)) + body
    return MAGIC + struct.pack("<I", zlib.crc32(rest)) + rest


def decode(content: bytes) -> GaussianVolume:
    """Return the Gaussians of a file's content; a ValueError says what is wrong with it."""
    if len(content) < _PREFIX.size or content[:3] != MAGIC[:3]:
        raise InputError("it is no .gsv file")
    if content[:4] != MAGIC:
        raise InputError("its version is not one that this version reads; try a newer napari-gsvolume")
    _, checksum, length = _PREFIX.unpack_from(content)
    if zlib.crc32(content[8:]) != checksum:
        raise InputError("it is damaged (its checksum does not fit)")
    header = _header(content[_PREFIX.size : _PREFIX.size + length])
    coded = content[_PREFIX.size + length :]
    try:
        grid, n, step = Grid.from_dict(header), int(header["n"]), float(header["step"])
        background, metadata = float(header["background"]), dict(header["metadata"])
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise InputError(f"its header is damaged ({error!r})") from error
    if not 0 <= n <= MAX_GAUSSIANS_PER_BYTE * len(coded) or not (math.isfinite(step) and step > 0) or len(coded) % 4:
        raise InputError("its header is damaged")
    if not n:
        codes = Codes(*(np.zeros((0, grid.ndim), np.int64) for _ in range(5)))
        means, factors, weights = np.zeros((0, grid.ndim)), np.zeros((0, grid.ndim, grid.ndim)), np.zeros(0)
    else:
        codes = _decoded(coded, n, grid.ndim)
        with np.errstate(over="ignore", invalid="ignore"):  # GaussianVolume refuses what is not finite
            means, factors, weights = dequantise(codes, step, CELL)
    return _model((means, factors, weights), step, grid, background, metadata)


def default_step(gaussians: GaussianVolume) -> float:
    """Return the step with which rounding adds about `NOISE` to the squared error; see `write_gsv`."""
    metrics = gaussians.metadata.get("metrics") or {}
    n_voxels = math.prod(gaussians.grid.shape)
    try:
        error = float(metrics["data_range"]) ** 2 * 10 ** (-float(metrics["psnr_db"]) / 10)
    except (KeyError, TypeError, ValueError):
        values = gaussians.sample()
        error = float(values.max() - values.min()) ** 2 * 10 ** (-_ASSUMED_PSNR_DB / 10)
    return short(rounding_step(NOISE * error * n_voxels, len(gaussians), gaussians.ndim))


def short(number: float) -> float:
    """Return a number of six digits, near enough and short to write."""
    return float(f"{number:.6g}")


def _shortened(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _shortened(entry) for name, entry in value.items()}
    return short(value) if isinstance(value, float) and math.isfinite(value) else value


def rounding_step(energy: float, count: int, ndim: int) -> float:
    """Return the step at which rounding `count` Gaussians makes errors of an energy: each number's is step^2 / 12."""
    numbers = max(count, 1) * n_monomials(ndim)
    return math.sqrt(12 * max(energy, 1e-30) / numbers)


def rounded(gaussians: GaussianVolume, step: float) -> tuple[Codes, NDArray[np.intp]]:
    """Return the codes of Gaussians, and of which ones: those too weak for the step are left out."""
    means, factors, weights = gaussians.means, gaussians.factors, gaussians.weights
    return quantise(floats(means), floats(factors), floats(weights), step, CELL)


def floats(tensor: torch.Tensor) -> Float64Array:
    """Return a tensor's numbers, float64."""
    return tensor.detach().cpu().double().numpy()


def decoded(codes: Codes, step: float, like: GaussianVolume) -> GaussianVolume:
    """Return what a file of these codes will be read as."""
    return _model(dequantise(codes, step, CELL), step, like.grid, like.background, like.metadata)


def _model(
    numbers: tuple[Float64Array, Float64Array, Float64Array],
    step: float,
    grid: Grid,
    background: float,
    metadata: dict[str, Any],
) -> GaussianVolume:
    means, factors, weights = (torch.from_numpy(array.astype(np.float32)) for array in numbers)
    return GaussianVolume(means, factors, weights, grid, background, {**metadata, "gsv": {"step": step}})


def _header(deflated: bytes) -> dict[str, Any]:
    inflate = zlib.decompressobj(-15, zdict=_DICTIONARY)
    try:
        text = inflate.decompress(deflated, 1 << 22)  # a damaged one could unpack without end
        header = json.loads(text)
    except (zlib.error, ValueError, RecursionError) as error:
        raise InputError("its header is damaged") from error
    if not isinstance(header, dict):
        raise InputError("its header is damaged")
    return header


# The coded integers ---------------------------------------------------------------------------------------------------


def _coded(codes: Codes) -> bytes:
    """Return the codes as bytes, in the order of a Morton curve."""
    if not len(codes.amplitudes):
        return b""
    writer = Writer()
    low = codes.cells.min(0)
    bits = max(int((codes.cells - low).max()).bit_length(), 1)
    if bits * codes.cells.shape[1] > 62:
        raise InputError("A Gaussian lies too far outside of its grid to be written to a .gsv file.")
    for number in (*low.tolist(), bits):
        writer.number(number)
    morton = _interleaved(codes.cells - low, bits)
    order = np.lexsort((codes.amplitudes, morton))
    codes = Codes(*(field[order] for field in vars(codes).values()))
    _write_positions(writer, morton[order], bits * codes.cells.shape[1])
    kind = classes(codes.amplitudes)
    writer.counted(kind, LARGEST_CLASS + 1)
    writer.counted((codes.amplitudes < 0).astype(np.int64), 2)
    size = np.exp2(kind).astype(np.int64)
    writer.uniform(np.abs(codes.amplitudes) - size, size)
    for k in np.unique(kind):
        mine = codes.radii[kind == k]
        writer.centred(mine[:, -2])
        for axis in range(1, mine.shape[1]):
            writer.centred(mine[:, axis] - mine[:, axis - 1], from_zero=True)
    writer.uniform(codes.orientations.ravel(), orientation_sizes(codes).ravel())
    writer.uniform(codes.fractions.ravel(), fraction_levels(codes, CELL).ravel())
    return writer.content()


def _decoded(content: bytes, n: int, ndim: int) -> Codes:
    """Return the `n` Gaussians' codes."""
    reader = Reader(content)
    low = np.array([reader.number() for _ in range(ndim)])
    bits = reader.number()
    if not 1 <= bits * ndim <= 62 or np.abs(low).max() > 1 << 31:
        raise InputError("its positions are damaged")
    cells = low + _separated(_read_positions(reader, n, bits * ndim), bits, ndim)
    kind = reader.counted(n, LARGEST_CLASS + 1)
    negative = reader.counted(n, 2)
    size = np.exp2(kind).astype(np.int64)
    m = (reader.uniform(size) + size) * np.where(negative == 1, -1, 1)
    radii = np.zeros((n, ndim), np.int64)
    for k in np.unique(kind):
        mine = np.zeros((int((kind == k).sum()), ndim), np.int64)
        mine[:, -2] = reader.centred(len(mine))
        differences = [reader.centred(len(mine), from_zero=True) for _ in range(1, ndim)]
        mine[:, -1] = mine[:, -2] + differences[-1]
        if ndim == 3:
            mine[:, 0] = mine[:, 1] - differences[0]
        radii[kind == k] = mine
    blank = np.zeros((n, ndim), np.int64)
    codes = Codes(cells, m, radii, blank[:, 1:], blank)
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        sizes = orientation_sizes(codes)
        codes = replace(codes, orientations=reader.uniform(sizes.ravel()).reshape(sizes.shape))
        levels = fraction_levels(codes, CELL)
    return replace(codes, fractions=reader.uniform(levels.ravel()).reshape(levels.shape))


def _interleaved(cells: IntArray, bits: int) -> IntArray:
    """Return Morton codes ``(N,)``: the bits of the axes in turn, the highest first."""
    ndim = cells.shape[1]
    code = np.zeros(len(cells), np.int64)
    for bit in range(bits):
        for axis in range(ndim):
            code |= ((cells[:, axis] >> bit) & 1) << (bit * ndim + ndim - 1 - axis)
    return code


def _separated(code: IntArray, bits: int, ndim: int) -> IntArray:
    """Return the cells ``(N, D)`` of Morton codes."""
    cells = np.zeros((len(code), ndim), np.int64)
    for bit in range(bits):
        for axis in range(ndim):
            cells[:, axis] |= ((code >> (bit * ndim + ndim - 1 - axis)) & 1) << bit
    return cells


def _write_positions(writer: Writer, morton: IntArray, depth: int) -> None:
    """Write sorted Morton codes: how many are in the first half of each part of the curve, from all of it to cells."""
    for bit in reversed(range(depth)):
        _, starts, totals = np.unique(morton >> (bit + 1), return_index=True, return_counts=True)
        writer.split(np.add.reduceat(1 - ((morton >> bit) & 1), starts), totals)


def _read_positions(reader: Reader, n: int, depth: int) -> IntArray:
    prefix, totals = np.zeros(1, np.int64), np.array([n])
    for _ in range(depth):
        left = reader.split(totals)
        prefix = np.stack([2 * prefix, 2 * prefix + 1], 1).ravel()
        totals = np.stack([left, totals - left], 1).ravel()
        prefix, totals = prefix[totals > 0], totals[totals > 0]
    return np.repeat(prefix, totals)
