"""How well Gaussians keep a volume at a given file size, next to codecs made for compression.

    python benchmarks/rate_distortion.py CT.nii.gz MRI.nii.gz MICRO.tif --time-limit 180 --out rd.png
    python benchmarks/rate_distortion.py --phantom --codecs gaussians sperr cubic --ratios 100 300

Volumes are cropped to their middle, clipped to their 0.5 and 99.5 percentiles and scaled to [0, 1] as float32; a codec
may use their bytes over the ratio, and of its settings within that the best is taken. One that has none leaves a gap.
What is decoded is clipped to [0, 1]. PSNR has a data range of 1; the foreground is what lies above Otsu's threshold.

    gaussians   ours: the size of the .gsv file, and what is sampled from it when it is read again
    sperr       SPERR: 3D wavelets, at a rate
    avif        AV1: the slices as frames of a film, 8 bits, at a quality
    sz3         SZ3: prediction by interpolation, within an absolute error
    zfp         ZFP: transforms of blocks of 4^3, within an absolute error
    jpeg2000    JPEG 2000: 2D wavelets; the slices as one image, below one another, 16 bits, at a PSNR
    jpegxl      JPEG XL: 2D cosines; the same image, at a perceptual distance of at most 25
    cubic       fewer voxels (anti-aliased, 8 bits, zlib), cubic splines between them

Prints tables, draws the plot, and writes tables and numbers to .md, .csv and .json beside it. Codecs need the packages
imagecodecs and pysz, and are skipped without. Nothing else should run meanwhile.
"""

from __future__ import annotations

import argparse
import csv
import importlib
import json
import math
import platform
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numba
import numpy as np
import tifffile
from matplotlib.figure import Figure
from numpy.typing import NDArray
from rich.console import Console
from skimage.filters import threshold_otsu
from skimage.transform import resize

from napari_gsvolume import __version__
from napari_gsvolume.io.nifti import read_nifti
from napari_gsvolume.phantoms import anatomical_phantom

Json = dict[str, Any]
Volume = NDArray[np.float32]
Decode = Callable[[bytes, tuple[int, ...]], NDArray[Any]]

MEASURES = {"psnr_db": "PSNR (dB), whole volume", "psnr_foreground_db": "PSNR (dB), foreground"}
TRIALS = 12  # of a codec's setting, for each budget
CLOSE = 0.99  # of the budget is as good as all of it

console = Console()


class Codec(NamedTuple):
    """A codec with one setting, in order of falling error: the more towards `fine`, the more bytes."""

    package: str  # that pip installs
    coarse: float
    fine: float
    encode: Callable[[Any, Volume, float], bytes]  # the module, what to encode, the setting
    decode: Callable[[Any, bytes, tuple[int, ...]], NDArray[Any]]


def integers(volume: NDArray[Any], dtype: type[np.unsignedinteger[Any]]) -> NDArray[Any]:
    """Return [0, 1] as all of an integer type's range."""
    return (volume * np.iinfo(dtype).max).round().astype(dtype)


def strip(volume: Volume) -> NDArray[np.uint16]:
    """Return the slices as one image, below one another: image codecs then have one header, and no padding."""
    return integers(volume, np.uint16).reshape(-1, volume.shape[-1])


def encode_avif(ic: Any, volume: Volume, x: float) -> bytes:
    frames = np.repeat(integers(volume, np.uint8)[..., None], 3, axis=-1)  # grey ones it would store losslessly
    return ic.avif_encode(frames, round(x) - 1, pixelformat="420", speed=4)


def encode_sz3(pysz: Any, volume: Volume, error: float) -> bytes:
    config = pysz.szConfig(volume.shape)
    config.errorBoundMode = pysz.szErrorBoundMode.ABS
    config.absErrorBound = error
    return pysz.sz.compress(volume, config)[0].tobytes()


def decode_sz3(pysz: Any, data: bytes, shape: tuple[int, ...]) -> NDArray[Any]:
    return pysz.sz.decompress(np.frombuffer(data, np.uint8), np.float32, shape)[0]


def encode_cubic(zlib: Any, volume: Volume, scale: float) -> bytes:
    shape = [max(1, round(n * scale)) for n in volume.shape]
    small = np.clip(resize(volume, shape, order=3, mode="edge", anti_aliasing=True), 0, 1)
    return np.array(shape, "<u2").tobytes() + zlib.compress(integers(small, np.uint8).tobytes(), 9)


def decode_cubic(zlib: Any, data: bytes, shape: tuple[int, ...]) -> NDArray[Any]:
    small = np.frombuffer(zlib.decompress(data[6:]), np.uint8).reshape(np.frombuffer(data[:6], "<u2"))
    return resize(small / np.float32(255), shape, order=3, mode="edge", anti_aliasing=False)


IC = "imagecodecs"
J2K = {"codecformat": "j2k", "reversible": False}
CODECS = {
    "sperr": Codec(IC, 1e-3, 32, lambda ic, v, x: ic.sperr_encode(v, x, "bpp"), lambda ic, b, _: ic.sperr_decode(b)),
    "avif": Codec(IC, 1, 101, encode_avif, lambda ic, b, _: ic.avif_decode(b)[..., 1] / 255),  # x: quality + 1, > 0
    "sz3": Codec("pysz", 1, 1e-4, encode_sz3, decode_sz3),
    # Not through zfpy: numcodecs 0.16 cannot parse its version 1.0.1.post0, and neither zarr nor napari start.
    "zfp": Codec(IC, 1e3, 1e-4, lambda ic, v, x: ic.zfp_encode(v, x, mode="a"), lambda ic, b, _: ic.zfp_decode(b)),
    "jpeg2000": Codec(
        IC, 12, 90, lambda ic, v, x: ic.jpeg2k_encode(strip(v), x, **J2K), lambda ic, b, _: ic.jpeg2k_decode(b) / 65535
    ),
    "jpegxl": Codec(
        IC, 25, 0.1, lambda m, v, x: m.jpegxl_encode(strip(v), distance=x), lambda m, b, _: m.jpegxl_decode(b) / 65535
    ),
    "cubic": Codec("zlib", 0.01, 1, encode_cubic, decode_cubic),
}
GAUSSIANS = "gaussians"
NAMES = [GAUSSIANS, *CODECS]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="*", type=Path, metavar="PATH", help="NIfTI or TIFF; of a series the first")
    parser.add_argument("--phantom", action="store_true", help="take the package's anatomical phantom; so if no PATH")
    parser.add_argument("--ratios", nargs="+", type=float, default=[20, 100, 300, 1000], help="(%(default)s)")
    parser.add_argument("--codecs", nargs="+", choices=NAMES, default=NAMES, metavar="CODEC", help="(%(default)s)")
    parser.add_argument("--time-limit", type=float, default=180, help="seconds a fit (%(default)s)")
    parser.add_argument("--size", type=int, default=128, help="crop volumes to so many voxels an axis (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("rate-distortion.png"), help="the plot (%(default)s)")
    options = parser.parse_args()
    volumes = {path.name: scaled(read(path), options.size) for path in options.paths}
    if options.phantom or not volumes:
        volumes["phantom"] = scaled(anatomical_phantom(options.size)[0], options.size)
    modules: dict[str, Any] = {}
    for name in options.codecs:
        package = CODECS[name].package if name in CODECS else "torch"
        try:
            modules[name] = importlib.import_module(package)
        except ImportError:
            console.print(f"{name} is skipped: it needs pip install {package}.")
    rows: list[Json] = []
    texts: list[str] = []
    for name, volume in volumes.items():
        found = measured(volume, modules, options)
        shape = "x".join(map(str, volume.shape))
        texts.append("\n".join([f"## {name}, {shape}", *tables(found, options.ratios)]))
        console.print(texts[-1], markup=False, highlight=False, soft_wrap=True)
        rows += [{"volume": name, "shape": shape, **row} for row in found]
    options.out.with_suffix(".md").write_text("\n".join(texts), encoding="utf-8")
    write_numbers(rows, options)
    plot(rows, list(volumes), options.out)
    console.print(f"Wrote {options.out}, and .md, .csv and .json beside it")


def read(path: Path) -> NDArray[Any]:
    """Return the volume in a file, the first of a series."""
    if path.name.lower().endswith((".tif", ".tiff")):
        data = tifffile.imread(path)
        data = data[(0,) * (data.ndim - 3)]
    else:
        image = read_nifti(path)
        data = image.data if image.time_step is None else image.data[0]
    if data.ndim != 3:
        raise SystemExit(f"{path.name} is no volume: its shape is {data.shape}.")
    return data


def scaled(data: NDArray[Any], size: int) -> Volume:
    """Return the middle, at most `size` voxels an axis, with its [0.5, 99.5] percentiles at 0 and 1."""
    starts = [max(0, (n - size) // 2) for n in data.shape]
    volume = data[tuple(slice(s, s + size) for s in starts)].astype(np.float32)
    low, high = np.nanpercentile(volume, (0.5, 99.5))
    return np.ascontiguousarray(np.nan_to_num(np.clip((volume - low) / (high - low), 0, 1)), dtype=np.float32)


def measured(volume: Volume, modules: dict[str, Any], options: argparse.Namespace) -> list[Json]:
    """Return one row for each codec and ratio."""
    rows = []
    for name, module in modules.items():
        tried: dict[float, Json] = {}  # by setting, for all ratios of the codec
        for ratio in options.ratios:
            budget = math.floor(volume.nbytes / ratio)
            with console.status(f"{name}, ratio {ratio:g}"):
                if name == GAUSSIANS:
                    best = gaussians(volume, ratio, budget, options.time_limit)
                else:
                    best = search(CODECS[name], module, volume, budget, tried)
            rows.append({"codec": name, "ratio": ratio, "budget_bytes": budget, **best})
    return rows


def search(codec: Codec, module: Any, volume: Volume, budget: int, tried: dict[float, Json]) -> Json:
    """Return the best that keeps within the budget, or nothing; the settings on the way are added to `tried`."""

    def size(setting: float) -> int:
        if setting not in tried:
            encode = partial(codec.encode, module, volume, setting)
            tried[setting] = {"setting": setting, **tested(volume, encode, partial(codec.decode, module))}
        return tried[setting]["bytes"]

    coarse, fine = codec.coarse, codec.fine
    if size(coarse) <= budget:
        for _ in range(TRIALS):
            middle = float(f"{math.sqrt(coarse * fine):.4g}")
            if CLOSE * budget <= size(middle) <= budget:
                break
            coarse, fine = (middle, fine) if size(middle) <= budget else (coarse, middle)
    # Sizes do not quite follow the settings, nor errors the sizes: hence the best of all, not the last.
    return max((t for t in tried.values() if t["bytes"] <= budget), key=lambda t: t["psnr_db"], default={})


def gaussians(volume: Volume, ratio: float, budget: int, time_limit: float) -> Json:
    """Fit, save, and return the figures of what is loaded again, or nothing if the file is too large."""
    import torch  # with the fit, which the other codecs do without

    from napari_gsvolume import GaussianVolume, fit
    from napari_gsvolume.kernels import prepare

    torch.set_num_threads(numba.get_num_threads())
    prepare(torch.device("cpu"))  # compiled before the clock starts
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "m.gsv")

        def encode() -> bytes:
            fit(volume, ratio=ratio, time_limit=time_limit).gaussians.save(path)
            return path.read_bytes()

        try:
            row = tested(volume, encode, lambda data, shape: GaussianVolume.load(path).sample())
        except ValueError as error:  # a ratio that no number of Gaussians reaches
            console.print(f"No Gaussians at ratio {ratio:g}: {error}")
            return {}
        row = {"setting": len(GaussianVolume.load(path)), **row}
    if row["bytes"] <= budget:
        return row
    console.print(f"The file of Gaussians at ratio {ratio:g} has {row['bytes']} bytes, and may have {budget}.")
    return {}


def tested(volume: Volume, encode: Callable[[], bytes], decode: Decode) -> Json:
    """Return size, quality and seconds of one way there and back."""
    started = time.perf_counter()
    data = encode()
    between = time.perf_counter()
    decoded = decode(data, volume.shape)
    seconds = {"encode_seconds": between - started, "decode_seconds": time.perf_counter() - between}
    squared = (np.clip(decoded.reshape(volume.shape), 0, 1).astype(np.float64) - volume) ** 2
    parts = zip(MEASURES, (squared, squared[volume > threshold_otsu(volume)]), strict=True)
    psnr = {measure: -10 * math.log10(max(part.mean(), 1e-20)) for measure, part in parts}
    return {"bytes": len(data), "actual_ratio": volume.nbytes / len(data), **psnr, **seconds}


def tables(rows: list[Json], ratios: list[float]) -> list[str]:
    """Return the lines of one Markdown table for each measure: what the codecs reached at each ratio."""
    lines = []
    for measure, title in MEASURES.items():
        lines += ["", title, "", "| codec     | " + " | ".join(f"{ratio:>5g}" for ratio in ratios) + " |"]
        lines += ["| --------- |" + " ----: |" * len(ratios)]
        for codec in dict.fromkeys(row["codec"] for row in rows):
            reached = [f"{row[measure]:5.2f}" if measure in row else "    -" for row in rows if row["codec"] == codec]
            lines += [f"| {codec:9} | " + " | ".join(reached) + " |"]
    return [*lines, ""]


def write_numbers(rows: list[Json], options: argparse.Namespace) -> None:
    """Write every number to a JSON file, and the rows to a CSV file too."""
    machine = {"processor": platform.processor() or platform.machine(), "threads": numba.get_num_threads()}
    numbers = {"version": __version__, "machine": machine, "time_limit": options.time_limit, "rows": rows}
    options.out.with_suffix(".json").write_text(json.dumps(numbers, indent=2) + "\n", encoding="utf-8")
    with options.out.with_suffix(".csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, max(rows, key=len))  # gaps lack some columns
        writer.writeheader()
        writer.writerows(rows)


def plot(rows: list[Json], volumes: list[str], path: Path) -> None:
    """Draw for each volume what each codec reached over the ratios it really had."""
    figure = Figure(figsize=(5 * len(volumes), 4.5), layout="constrained")
    for axes, volume in zip(figure.subplots(1, len(volumes), squeeze=False)[0], volumes, strict=True):
        for i, codec in enumerate(NAMES):
            reached = [r for r in rows if (r["volume"], r["codec"]) == (volume, codec) and "bytes" in r]
            if reached:
                x, y = [r["actual_ratio"] for r in reached], [r["psnr_db"] for r in reached]
                style = {"color": "black", "linewidth": 2.5} if codec == GAUSSIANS else {"color": f"C{i - 1}"}
                axes.plot(x, y, "o-", markersize=4, label=codec, **style)
        axes.set(title=volume, xlabel="float32 bytes over bytes", ylabel=MEASURES["psnr_db"], xscale="log")
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
