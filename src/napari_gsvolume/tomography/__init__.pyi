from .beer_lambert import WATER, attenuation, hounsfield_to_attenuation, intensities
from .noise import add_noise, noise_variance
from .presets import c_arm_scan, parallel_view, preset_scan, spread_angles
from .projections import (
    Projections,
    ProjectStep,
    project,
    project_steps,
    read_projections,
    write_projections,
)
from .scan import Beam, Mode, Scan, ScanError, circular_scan, grid_of_scan

__all__ = [
    "WATER",
    "Beam",
    "Mode",
    "ProjectStep",
    "Projections",
    "Scan",
    "ScanError",
    "add_noise",
    "attenuation",
    "c_arm_scan",
    "circular_scan",
    "grid_of_scan",
    "hounsfield_to_attenuation",
    "intensities",
    "noise_variance",
    "parallel_view",
    "preset_scan",
    "project",
    "project_steps",
    "read_projections",
    "spread_angles",
    "write_projections",
]
