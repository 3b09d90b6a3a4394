"""Command of the SVD of slices: ``gsvolume svd``."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ..errors import InputError
from ..grid import Axis
from .app import app
from .files import select_volume
from .options import JsonOption, TimePoint
from .progress import progress_bar
from .sections import SUPER_RESOLUTION

if TYPE_CHECKING:
    from numpy.typing import NDArray

_LISTED = 10  # singular values in the printed list
Matrices = Literal["slice", "slices", "unfolding"]


@app.command(rich_help_panel=SUPER_RESOLUTION)
def svd(
    image: Annotated[Path, typer.Argument(metavar="IN.nii.gz", help="Volume or image, .nii or .nii.gz.")],
    axis: Annotated[Axis, typer.Option(help="Axis along which the slices are stacked.")] = "z",
    of: Annotated[
        Matrices, typer.Option(help="Matrices to decompose: one slice, all slices, or the unfolding (one row a slice).")
    ] = "slice",
    slice_: Annotated[
        int | None, typer.Option("--slice", metavar="K", help="Slice index, from 0; default: the middle slice.")
    ] = None,
    rank: Annotated[int | None, typer.Option(metavar="R", help="Rank of which to print energy and best PSNR.")] = None,
    time_point: TimePoint = None,
    json_: JsonOption = False,
) -> None:
    """Print singular values of slices, their energy and ranks, and the optimal threshold for denoising."""
    if slice_ is not None and of != "slice":
        raise InputError(f"--slice {slice_} needs --of slice; omit one of them.")
    import numpy as np

    from ..io.nifti import read_nifti
    from ..svd import decomposition

    volume = select_volume(read_nifti(image), image, time_point)
    if volume.ndim == 2:
        if axis != "z":
            raise InputError(f"{image} is an image of two axes, one slice along z; --axis {axis} has no meaning.")
        volume = volume[None]
    along = "zyx".index(axis)
    count = volume.shape[along]
    if of == "slices":
        slices = []
        with progress_bar(json_) as show:
            for values in decomposition.iter_spectra(volume, along):
                slices.append(values)
                show("Decomposing", len(slices) / count, f"{len(slices)} of {count}")
        facts = _facts_of_slices(np.stack(slices), volume, along, rank)
    else:
        k = count // 2 if slice_ is None else slice_
        if not 0 <= k < count:
            raise InputError(f"--slice {slice_}: the slices along {axis} are 0 to {count - 1}.")
        matrix = volume.take(k, along) if of == "slice" else decomposition.unfold(volume, along)
        facts = ({"slice": k} if of == "slice" else {}) | _facts_of_matrix(matrix, rank)
    facts = {"of": of, "axis": axis} | facts
    if json_:
        print(json.dumps(facts, allow_nan=False))
    else:
        _print_facts(facts)


def _facts_of_matrix(matrix: NDArray[Any], rank: int | None) -> dict[str, Any]:
    import numpy as np

    from ..svd import decomposition

    array = decomposition.check_slice(matrix)
    values = np.linalg.svd(array, compute_uv=False)
    energy, ceiling = (
        decomposition.cumulative_energy(values),
        decomposition.best_psnr_db(values, array.shape, float(np.ptp(array))),
    )
    threshold = float(decomposition.optimal_threshold(values, array.shape))
    facts: dict[str, Any] = {
        "shape": list(array.shape),
        "values": values.tolist(),
        "energy": energy.tolist(),
        "effective_rank": float(decomposition.effective_rank(values)),
        "stable_rank": float(decomposition.stable_rank(values)),
        "threshold": threshold,
        "rank_above_threshold": int((values > threshold).sum()),
        "best_psnr_db": ceiling.tolist(),
    }
    if rank is not None:
        _check_rank(rank, len(values))
        facts["at_rank"] = {"rank": rank, "energy": float(energy[rank - 1]), "best_psnr_db": float(ceiling[rank - 1])}
    return facts


def _facts_of_slices(values: NDArray[Any], volume: NDArray[Any], along: int, rank: int | None) -> dict[str, Any]:
    from ..svd import decomposition

    shape = [n for k, n in enumerate(volume.shape) if k != along]
    thresholds = decomposition.optimal_threshold(values, (shape[0], shape[1]))
    facts: dict[str, Any] = {
        "shape": shape,
        "count": len(values),
        "values": values.tolist(),
        "effective_rank": decomposition.effective_rank(values).tolist(),
        "stable_rank": decomposition.stable_rank(values).tolist(),
        "threshold": thresholds.tolist(),
        "rank_above_threshold": (values > thresholds[:, None]).sum(1).tolist(),
    }
    if rank is not None:
        _check_rank(rank, values.shape[1])
        facts["at_rank"] = {"rank": rank, "energy": decomposition.cumulative_energy(values)[:, rank - 1].tolist()}
    return facts


def _check_rank(rank: int, largest: int) -> None:
    if not 1 <= rank <= largest:
        raise InputError(f"--rank {rank}: the rank of this matrix is 1 to {largest}.")


def _print_facts(facts: dict[str, Any]) -> None:
    """Print the figures of one matrix, or median and extremes of all slices."""
    shape = " x ".join(map(str, facts["shape"]))
    if "count" in facts:
        print(f"{facts['count']} slices along {facts['axis']}, {shape}: median (least to most)")
        figures = {name: facts[name] for name in ("effective_rank", "stable_rank", "threshold", "rank_above_threshold")}
        if "at_rank" in facts:
            figures[f"energy of rank {facts['at_rank']['rank']}"] = facts["at_rank"]["energy"]
        for name, numbers in figures.items():
            ordered = sorted(numbers)
            low, middle, high = ordered[0], ordered[len(ordered) // 2], ordered[-1]
            print(f"{name.replace('_', ' ')}: {middle:.5g} ({low:.5g} to {high:.5g})")
        return
    which = f"Slice {facts['slice']} along" if "slice" in facts else "Unfolding along"
    print(f"{which} {facts['axis']}, {shape}")
    values, energy = facts["values"], facts["energy"]
    print(f"singular values: {', '.join(f'{s:.5g}' for s in values[:_LISTED])}{' ...' * (len(values) > _LISTED)}")
    ranks = ", ".join(f"{100 * part:g} % in {1 + _first(energy, part)}" for part in (0.9, 0.99, 0.999))
    print(f"energy: {ranks} of {len(values)} modes")
    print(f"effective rank: {facts['effective_rank']:.2f}")
    print(f"stable rank: {facts['stable_rank']:.2f}")
    print(f"threshold (Gavish-Donoho): {facts['threshold']:.5g}, {facts['rank_above_threshold']} modes above it")
    if "at_rank" in facts:
        at = facts["at_rank"]
        print(f"rank {at['rank']}: {100 * at['energy']:.4g} % of the energy, best PSNR {at['best_psnr_db']:.2f} dB")


def _first(energy: list[float], part: float) -> int:
    return next(k for k, reached in enumerate([*energy, math.inf]) if reached >= part)
