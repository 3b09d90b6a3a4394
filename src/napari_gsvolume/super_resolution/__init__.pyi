from .bspline import upsample_bspline
from .degradation import Degradation
from .model import SRModel
from .settings import SuperResolveSettings, TrainSRSettings
from .training import (
    SRTrainingStep,
    TrainedSR,
    TrainingFailedError,
    train_superresolution,
    train_superresolution_steps,
)
from .upsampling import SuperResolved, SuperResolveStep, superresolve, superresolve_steps

__all__ = [
    "Degradation",
    "SRModel",
    "SRTrainingStep",
    "SuperResolveSettings",
    "SuperResolveStep",
    "SuperResolved",
    "TrainSRSettings",
    "TrainedSR",
    "TrainingFailedError",
    "superresolve",
    "superresolve_steps",
    "train_superresolution",
    "train_superresolution_steps",
    "upsample_bspline",
]
