"""What trains a super-resolution beside the viewer, and explains one. No Qt here."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ....errors import FileFormatError, InputError
from ....grid import Grid
from ....io.nifti import read_nifti
from ....metrics import psnr_between
from ....super_resolution.analysis import loss_gradients, mode_contributions
from ....super_resolution.bspline import upsample_bspline, upsampling_factors
from ....super_resolution.data import TrainingData, check_training_volume
from ....super_resolution.intensities import Intensities
from ....super_resolution.model import SRModel, superresolve
from ....super_resolution.settings import TrainSRSettings
from ....super_resolution.training import SRStep, SRTraining, TrainedSR
from ....types import Float32Array
from ...layers.conversion import SourceVolume
from ..shared.worker import PreviewThrottle, run_in_background
from .slice_matrix import check_memory

_BYTES_A_VOXEL = 16  # of a volume that is learnt from: the source's own, float32, normalised, and some of its slices
_NEWS_EVERY = 0.25
_AROUND = 5  # slices on either side that a preview of finer slices is made from
_VOLUMES = (".nii", ".nii.gz")


class Look:
    """Which slice the viewer shows: set where the viewer is, read where the training is."""

    def __init__(self, index: int) -> None:
        self.index = index


@dataclass(frozen=True, eq=False)
class TrainOrder:
    """What is to be learnt, and from what.

    Attributes
    ----------
    source : SourceVolume
        The chosen volume, which previews are of.
    settings : TrainSRSettings
    others : sequence of SourceVolume
        More to learn from.
    folder : Path or None
        More, in NIfTI files.
    itself : bool
        Whether the chosen volume is learnt from.
    """

    source: SourceVolume
    settings: TrainSRSettings
    others: Sequence[SourceVolume] = ()
    folder: Path | None = None
    itself: bool = True

    @property
    def sources(self) -> list[SourceVolume]:
        """The layers' volumes that are learnt from."""
        return [*([self.source] if self.itself else []), *self.others]

    def check(self) -> None:
        """Raise ValueError or MemoryError if it cannot be done."""
        for source in (self.source, *self.others):
            if source.grid.ndim != 3:
                raise InputError(f"'{source.name}' is flat; what is learnt from is a volume, with slices to hold out.")
        if not self.sources and self.folder is None:
            raise InputError("There is nothing to learn from; choose the image itself, others, or a folder.")
        if self.folder is not None:
            self.files()
        _check_memory(sum(source.grid.size for source in self.sources))

    def files(self) -> list[Path]:
        """Return the folder's NIfTI files; raise ValueError if there is none."""
        if self.folder is None:
            return []
        if not self.folder.is_dir():
            raise InputError(f"{self.folder} is no folder; choose one with NIfTI files, or none.")
        files = [path for path in sorted(self.folder.iterdir()) if path.name.lower().endswith(_VOLUMES)]
        if not files:
            raise InputError(f"There is no NIfTI file (.nii, .nii.gz) in {self.folder}; choose another folder.")
        return files

    def load(self, stop: Callable[[], bool]) -> tuple[list[NDArray[Any]], list[list[float]]]:
        """Return the volumes and their voxel sizes; of files fewer if it is stopped meanwhile."""
        volumes = [np.asarray(source.array) for source in self.sources]
        sizes = [source.grid.voxel_size.tolist() for source in self.sources]
        for path in self.files():
            if stop() and volumes:
                break
            image = read_nifti(path)
            if image.rgb or image.data.ndim != 3:
                kind = "in colours" if image.rgb else f"of {image.data.ndim} axes"
                raise FileFormatError(f"{path} is an image {kind}; a folder to learn from has volumes only.")
            volumes.append(image.data)
            sizes.append(image.grid.voxel_size.tolist())
            _check_memory(sum(volume.size for volume in volumes))
        return volumes, sizes


def _check_memory(voxels: int) -> None:
    check_memory(voxels * _BYTES_A_VOXEL, f"Learning from {voxels:,} voxels")


@dataclass(frozen=True, eq=False)
class SliceSpectra:
    """Singular values of a slice held out, of what a model makes of it, and of its spline; normalised.

    Attributes
    ----------
    target, prediction, spline : ndarray, (r,)
    amplitudes, scaled : ndarray, (r,), or None
        Of scheme a: the amplitudes it predicts, and the singular values of the slice of low resolution, scaled to the
        finer grid, which they began as.
    """

    target: Float32Array
    prediction: Float32Array
    spline: Float32Array
    amplitudes: NDArray[np.float64] | None = None
    scaled: NDArray[np.float64] | None = None


@dataclass(frozen=True, eq=False)
class Sight:
    """What a model makes of the slice that the viewer shows, and where it lies."""

    image: Float32Array = field(repr=False)
    grid: Grid


@dataclass(frozen=True, eq=False)
class Learning:
    """Where a training stands.

    Attributes
    ----------
    order : TrainOrder
    step : SRStep
    baselines : dict of float
        What it has to beat: `SRTraining.baselines`.
    spectra : SliceSpectra or None
        Progress of them.
    sight : Sight or None
        Of the best model so far.
    trained : TrainedSR or None
        Present at the end.
    """

    order: TrainOrder
    step: SRStep
    baselines: dict[str, float]
    spectra: SliceSpectra | None = None
    sight: Sight | None = None
    trained: TrainedSR | None = None


def run_learning(
    order: TrainOrder, look: Look, pace: PreviewThrottle, stop: Callable[[], bool]
) -> Iterator[Learning | str]:
    """Train, and yield where it stands a few times a second; the last has the result, also if it was stopped.

    Before the first iteration it is said in words.
    """
    yield from run_in_background(_learning(order, look, pace, stop))


def _learning(
    order: TrainOrder, look: Look, pace: PreviewThrottle, stop: Callable[[], bool]
) -> Iterator[Learning | str]:
    volumes, sizes = order.load(stop)
    yield "Choosing slices to hold out"
    training = SRTraining(volumes, sizes, **order.settings.model_dump())
    previewer = Previewer(order.source, order.settings, volumes[0] if order.itself else None)
    del volumes
    yield "Judging what has to be beaten"
    baselines = training.baselines()
    judged, due, seen = 0, 0.0, (float("nan"), -1)
    for step in training.steps(stop):
        spectra = sight = None
        if len(step.history) != judged:
            judged, spectra = len(step.history), _spectra(order.settings, step, training.best())
        wanted = (step.best_db, look.index)
        if wanted != seen and pace.due() and not stop():
            pace.sent()
            seen, sight = wanted, previewer.of(training.best(), wanted[1])
        if spectra is not None or sight is not None or time.perf_counter() >= due:
            due = time.perf_counter() + _NEWS_EVERY
            yield Learning(order, step, baselines, spectra, sight)
    result = training.result(step)
    yield Learning(order, step, baselines, None, previewer.of(result.model, look.index), result)


class Previewer:
    """Makes slices of a volume finer where they are, in the intensities of all of it.

    Parameters
    ----------
    source : SourceVolume
    settings : TrainSRSettings
    volume : array_like, optional
        The voxels of `source`, if they are loaded.
    """

    def __init__(self, source: SourceVolume, settings: TrainSRSettings, volume: NDArray[Any] | None = None) -> None:
        self.source, self.settings = source, settings
        self.axis = "zyx".index(settings.slice_axis)
        self.factors = upsampling_factors(settings.factor, self.axis, settings.upsample_axes)
        self.volume = check_training_volume(np.asarray(source.array) if volume is None else volume)

    @cached_property
    def intensities(self) -> Intensities:
        """Of all of the volume."""
        return Intensities.of(self.volume)

    def of(self, model: SRModel, index: int) -> Sight:
        """Return what is made of a slice: itself, finer, or the slices that it becomes."""
        s, axis, n = self.settings, self.axis, self.volume.shape[self.axis]
        around = s.depth // 2 if s.upsample_axes == "in-plane" else _AROUND
        first, end = max(0, index - around), min(n, index + around + 1)
        part = self.volume.take(range(first, end), axis)
        finer = superresolve(
            part, model, axis, s.upsample_axes, project=s.project, ensemble=False, intensities=self.intensities
        )
        grid = self.source.grid.slab(axis, first, end - first).resampled(self.factors)
        f, k = self.factors[axis], index - first
        # Of finer voxels those whose middles are in the slice; one that is not whole is left out.
        low = int(np.ceil(k * f - 0.5))
        high = min(max(low + 1, int(np.ceil((k + 1) * f - 0.5))), finer.shape[axis])
        return Sight(finer.take(range(low, high), axis), grid.slab(axis, low, high - low))


def _spectra(settings: TrainSRSettings, step: SRStep, model: SRModel) -> SliceSpectra:
    a = mode_contributions(model, step.low[None], step.target) if settings.scheme == "singular-vectors" else None
    return _spectra_of(settings, step.low, step.prediction, step.target, a)


def _spectra_of(
    settings: TrainSRSettings,
    low: Float32Array,
    prediction: Float32Array,
    target: Float32Array,
    a: dict[str, NDArray[np.float64]] | None,
) -> SliceSpectra:
    images = target, prediction, upsample_bspline(low, settings.factors)
    of_target, of_prediction, of_spline = (np.linalg.svd(image, compute_uv=False) for image in images)
    amplitudes, scaled = (None, None) if a is None else (a["c"], a["values"])
    return SliceSpectra(of_target, of_prediction, of_spline, amplitudes, scaled)


# Understanding --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class ExplainOrder:
    """A model that is to be explained on a volume, on the slice held out that is nearest to `index` along `axis`."""

    source: SourceVolume
    model: SRModel
    axis: int
    index: int

    def check(self) -> None:
        """Raise ValueError or MemoryError if it cannot be done."""
        if self.source.grid.ndim != 3:
            raise InputError(f"'{self.source.name}' is flat; a model is explained on a volume's slices held out.")
        _check_memory(self.source.grid.size)


@dataclass(frozen=True, eq=False)
class Explained:
    """What a model does on a slice held out.

    Attributes
    ----------
    order : ExplainOrder
    index : int
        Which slice.
    gradients : dict of ndarray, (H, W)
        Of each loss by the pixels, times their number: of the sum over pixels instead of their mean.
    residual : ndarray, (H, W)
        The slice minus what the model makes of it degraded, in the intensities of the volume.
    psnr_db : dict of float
        Of the spline, of it projected, of the model.
    spectra : SliceSpectra
    reached_db : ndarray, (r,), or None
        Of scheme a: the PSNR of the first 1, 2, ... modes together, before the projection.
    """

    order: ExplainOrder
    index: int
    gradients: dict[str, Float32Array] = field(repr=False)
    residual: Float32Array = field(repr=False)
    psnr_db: dict[str, float]
    spectra: SliceSpectra = field(repr=False)
    reached_db: NDArray[np.float64] | None = field(repr=False)


def run_explaining(order: ExplainOrder, stop: Callable[[], bool]) -> Iterator[Explained]:
    """Explain a model; yield once."""
    yield from run_in_background(_explaining(order, stop))


def _explaining(order: ExplainOrder, stop: Callable[[], bool]) -> Iterator[Explained]:
    model = order.model
    s = model.settings.model_copy(update={"axis": "zyx"[order.axis]})
    volume = check_training_volume(np.asarray(order.source.array))
    # As they were held out of a training on this volume, so that they are judges here as well.
    [held] = TrainingData([volume], s).validation_sets
    k = int(np.abs(np.array(held.slices) - order.index).argmin())
    low, target = held.low[k], held.target[k].numpy()
    if stop():
        return
    with torch.no_grad():
        image = model.scheme.eval()(low[None]).image[0].numpy()
    middle = low[len(low) // 2].numpy()
    a = mode_contributions(model, low.numpy(), target) if s.scheme == "singular-vectors" else None
    onto, span = model.scheme.degradation(middle.shape), held.data_range
    images = {
        "cubic B-spline": upsample_bspline(middle, s.factors),
        "projected": upsample_bspline(middle, s.factors, onto=onto),
        "model": image,
    }
    gradients = {name: g * target.size for name, g in loss_gradients(model, low.numpy(), target).items()}
    yield Explained(
        order,
        held.slices[k],
        gradients,
        (target - image) * np.float32(Intensities.of(volume).scale),
        {name: psnr_between(target, one, span) for name, one in images.items()},
        _spectra_of(s, middle, image, target, a),
        None if a is None else -10 * np.log10(a["error"] / span**2),
    )
