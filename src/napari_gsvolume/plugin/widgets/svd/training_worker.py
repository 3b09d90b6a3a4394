"""Background work of the SVD widget: training of super-resolution models, and previews. No Qt here."""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ....errors import FileFormatError, InputError
from ....grid import Grid
from ....io.nifti import read_nifti
from ....progress import Budget, Step, Stop
from ....super_resolution.analysis import mode_contributions
from ....super_resolution.bspline import upsample_bspline, upsampling_factors
from ....super_resolution.data import check_training_volume
from ....super_resolution.intensities import Intensities
from ....super_resolution.model import SRModel
from ....super_resolution.settings import TrainSRSettings
from ....super_resolution.training import SRTrainingStep, TrainedSR, train_superresolution_steps
from ....super_resolution.upsampling import superresolve
from ....types import Float32Array
from ...layers.conversion import SourceVolume
from ..shared.worker import PreviewThrottle
from .slice_matrix import check_memory

_BYTES_PER_VOXEL = 16  # of a training volume: the source, its float32 copy, its normalized copy and some slices
_STEP_EVERY = 0.25  # seconds
_CONTEXT = 5  # slices on either side of the slice of a through-plane preview
_SUFFIXES = (".nii", ".nii.gz")


class CurrentSlice:
    """Index of the slice in the viewer: set in the thread of the viewer, read in the thread of the training."""

    def __init__(self, index: int) -> None:
        self.index = index


@dataclass(frozen=True, eq=False)
class TrainingRequest:
    """Training data and settings.

    Attributes
    ----------
    source : SourceVolume
        The chosen volume, also for previews.
    settings : TrainSRSettings
    others : sequence of SourceVolume
        Further training volumes.
    folder : Path or None
        Folder of NIfTI files with further training volumes.
    use_source : bool
        Whether the chosen volume is a training volume.
    """

    source: SourceVolume
    settings: TrainSRSettings
    others: Sequence[SourceVolume] = ()
    folder: Path | None = None
    use_source: bool = True

    @property
    def sources(self) -> list[SourceVolume]:
        """Training volumes that are layers."""
        return [*([self.source] if self.use_source else []), *self.others]

    def check(self) -> None:
        """Raise InputError or MemoryError if the request cannot be fulfilled."""
        for source in (self.source, *self.others):
            if source.grid.ndim != 3:
                raise InputError(f"'{source.name}' is flat; training data are volumes, with slices for validation.")
        if not self.sources and self.folder is None:
            raise InputError("There are no training data; choose the image itself, other layers, or a folder.")
        if self.folder is not None:
            self.files()
        check_training_memory(sum(source.grid.size for source in self.sources))

    def files(self) -> list[Path]:
        """Return the NIfTI files of the folder; raise InputError if there is none."""
        if self.folder is None:
            return []
        if not self.folder.is_dir():
            raise InputError(f"{self.folder} is no folder; choose one with NIfTI files, or none.")
        files = [path for path in sorted(self.folder.iterdir()) if path.name.lower().endswith(_SUFFIXES)]
        if not files:
            raise InputError(f"There is no NIfTI file (.nii, .nii.gz) in {self.folder}; choose another folder.")
        return files

    def load(self, stop: Stop) -> tuple[list[NDArray[Any]], list[list[float]]]:
        """Return the training volumes and their voxel sizes; fewer files if stopped meanwhile."""
        volumes = [np.asarray(source.array) for source in self.sources]
        sizes = [source.grid.voxel_size.tolist() for source in self.sources]
        for path in self.files():
            if stop() and volumes:
                break
            image = read_nifti(path)
            if image.rgb or image.data.ndim != 3:
                kind = "in colours" if image.rgb else f"of {image.data.ndim} axes"
                raise FileFormatError(f"{path} is an image {kind}; a folder of training data has volumes only.")
            volumes.append(image.data)
            sizes.append(image.grid.voxel_size.tolist())
            check_training_memory(sum(volume.size for volume in volumes))
        return volumes, sizes


def check_training_memory(voxels: int) -> None:
    """Raise MemoryError if training data of so many voxels do not fit into memory."""
    check_memory(voxels * _BYTES_PER_VOXEL, f"Training on {voxels:,} voxels")


@dataclass(frozen=True, eq=False)
class SliceSpectra:
    """Singular values of a validation slice, of its prediction and of its spline; normalized.

    Attributes
    ----------
    target, prediction, spline : ndarray, (r,)
    amplitudes, scaled : ndarray, (r,), or None
        Scheme A: predicted amplitudes, and the singular values of the low-resolution slice scaled to the fine grid,
        which are the initial amplitudes.
    """

    target: Float32Array
    prediction: Float32Array
    spline: Float32Array
    amplitudes: NDArray[np.float64] | None = None
    scaled: NDArray[np.float64] | None = None


@dataclass(frozen=True, eq=False)
class SlicePreview:
    """Super-resolved slice of the viewer, and its grid."""

    image: Float32Array = field(repr=False)
    grid: Grid


@dataclass(frozen=True, eq=False)
class TrainingProgress(Step):
    """State of a training.

    Attributes
    ----------
    training : SRTrainingStep or None
        State of the training; None before the first validation.
    spectra : SliceSpectra or None
        Spectra of a validation slice, after each validation.
    preview : SlicePreview or None
        Slice of the viewer, super-resolved by the best model so far; after changes of either.
    """

    training: SRTrainingStep | None = None
    spectra: SliceSpectra | None = None
    preview: SlicePreview | None = None

    @property
    def summary(self) -> str:
        """Best validation PSNR and time."""
        return "" if self.training is None else self.training.summary

    @property
    def has_result(self) -> bool:
        """True once there is a model."""
        return self.training is not None


@dataclass(frozen=True, eq=False)
class TrainingOutcome:
    """Result of a training, and the preview by its model."""

    trained: TrainedSR
    preview: SlicePreview


def training_steps(
    request: TrainingRequest, current: CurrentSlice, throttle: PreviewThrottle, budget: Budget
) -> Generator[TrainingProgress, None, TrainingOutcome]:
    """Train a model; yield a few steps a second, and return the best model so far, also if stopped."""
    volumes, sizes = request.load(budget.stop)
    yield TrainingProgress(0.0, "Preparing the training data and evaluating the baselines")
    training = train_superresolution_steps(volumes, sizes, budget=budget, **request.settings.model_dump())
    previewer = Previewer(request.source, request.settings, volumes[0] if request.use_source else None)
    del volumes
    validations, due, shown = 0, 0.0, (float("nan"), -1)
    while True:
        try:
            step = next(training)
        except StopIteration as end:
            trained: TrainedSR = end.value
            return TrainingOutcome(trained, previewer.preview(trained.model, current.index))
        spectra = preview = None
        if len(step.history) != validations:
            validations, spectra = len(step.history), _step_spectra(request.settings, step)
        wanted = (step.best_db, current.index)
        if wanted != shown and throttle.due() and not budget.stop():
            throttle.sent()
            shown, preview = wanted, previewer.preview(step.best_model, wanted[1])
        if spectra is not None or preview is not None or time.perf_counter() >= due:
            due = time.perf_counter() + _STEP_EVERY
            yield TrainingProgress(step.fraction, step.message, step, spectra, preview)


class Previewer:
    """Super-resolves single slices of a volume in place, with the normalization of the whole volume.

    Parameters
    ----------
    source : SourceVolume
    settings : TrainSRSettings
    volume : array_like, optional
        Voxels of `source`, if they are loaded.
    """

    def __init__(self, source: SourceVolume, settings: TrainSRSettings, volume: NDArray[Any] | None = None) -> None:
        self.source, self.settings = source, settings
        self.axis = "zyx".index(settings.slice_axis)
        self.factors = upsampling_factors(settings.factor, self.axis, settings.upsample_axes)
        self.volume = check_training_volume(np.asarray(source.array) if volume is None else volume)

    @cached_property
    def intensities(self) -> Intensities:
        """Intensity normalization of the volume."""
        return Intensities.of(self.volume)

    def preview(self, model: SRModel, index: int) -> SlicePreview:
        """Return a super-resolved slice, or through-plane the slices that it becomes."""
        s, axis, n = self.settings, self.axis, self.volume.shape[self.axis]
        around = s.depth // 2 if s.upsample_axes == "in-plane" else _CONTEXT
        first, end = max(0, index - around), min(n, index + around + 1)
        options = {"slice_axis": s.slice_axis, "upsample_axes": s.upsample_axes, "project": s.project}
        part = self.volume.take(range(first, end), axis)
        upsampled = superresolve(part, model, intensities=self.intensities, ensemble=False, **options).volume
        grid = self.source.grid.slab(axis, first, end - first).resampled(self.factors)
        f, k = self.factors[axis], index - first
        # Fine voxels with centres in the slice; a fractional one is left out.
        low = int(np.ceil(k * f - 0.5))
        high = min(max(low + 1, int(np.ceil((k + 1) * f - 0.5))), upsampled.shape[axis])
        return SlicePreview(upsampled.take(range(low, high), axis), grid.slab(axis, low, high - low))


def _step_spectra(settings: TrainSRSettings, step: SRTrainingStep) -> SliceSpectra:
    modes = None
    if settings.scheme == "singular-vectors":
        modes = mode_contributions(step.best_model, step.low[None], step.target)
    return slice_spectra(settings, step.low, step.prediction, step.target, modes)


def slice_spectra(
    settings: TrainSRSettings,
    low: Float32Array,
    prediction: Float32Array,
    target: Float32Array,
    modes: dict[str, NDArray[np.float64]] | None,
) -> SliceSpectra:
    """Return the spectra of a slice; `modes` are the `mode_contributions` of scheme A."""
    images = target, prediction, upsample_bspline(low, settings.factors)
    of_target, of_prediction, of_spline = (np.linalg.svd(image, compute_uv=False) for image in images)
    amplitudes, scaled = (None, None) if modes is None else (modes["c"], modes["values"])
    return SliceSpectra(of_target, of_prediction, of_spline, amplitudes, scaled)
