from .measurements import Measurement, ProjectionMeasurements, SliceMeasurements
from .problem import SliceStack, isotropic_grid
from .result import ReconstructionResult, ReconstructPoint, ReconstructStep, Reprojection
from .run import reconstruct, reconstruct_steps
from .settings import ReconstructSettings

__all__ = [
    "Measurement",
    "ProjectionMeasurements",
    "ReconstructPoint",
    "ReconstructSettings",
    "ReconstructStep",
    "ReconstructionResult",
    "Reprojection",
    "SliceMeasurements",
    "SliceStack",
    "isotropic_grid",
    "reconstruct",
    "reconstruct_steps",
]
