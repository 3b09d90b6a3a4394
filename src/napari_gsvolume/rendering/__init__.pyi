from .cameras import Camera as Camera
from .cameras import Cameras as Cameras
from .cameras import bounding_radius as bounding_radius
from .cameras import fibonacci_directions as fibonacci_directions
from .cameras import load_images as load_images
from .cameras import look_at_cameras as look_at_cameras
from .cameras import orbit_cameras as orbit_cameras
from .cameras import turntable_directions as turntable_directions
from .scene import Scene as Scene
from .settings import RenderMode as RenderMode
from .settings import SplatTrainingSettings as SplatTrainingSettings
from .splats.model import Splats as Splats
from .splats.ply import read_splats as read_splats
from .splats.ply import write_splats as write_splats
from .splats.training import SplatTrainingPoint as SplatTrainingPoint
from .splats.training import SplatTrainingStep as SplatTrainingStep
from .splats.training import TrainedSplats as TrainedSplats
from .splats.training import train_splats as train_splats
from .splats.training import train_splats_steps as train_splats_steps
from .volume.dvr import RenderStep as RenderStep
from .volume.dvr import iter_views as iter_views
from .volume.dvr import render_views as render_views
from .volume.dvr import render_views_steps as render_views_steps
from .volume.transfer_functions import TransferFunction as TransferFunction
from .volume.transfer_functions import combine_intervals as combine_intervals
from .volume.transfer_functions import restrict_to_intervals as restrict_to_intervals

__all__ = [
    "Cameras",
    "RenderMode",
    "RenderStep",
    "Scene",
    "SplatTrainingPoint",
    "SplatTrainingSettings",
    "SplatTrainingStep",
    "Splats",
    "TrainedSplats",
    "TransferFunction",
    "bounding_radius",
    "combine_intervals",
    "fibonacci_directions",
    "iter_views",
    "load_images",
    "look_at_cameras",
    "orbit_cameras",
    "read_splats",
    "render_views",
    "render_views_steps",
    "restrict_to_intervals",
    "train_splats",
    "train_splats_steps",
    "turntable_directions",
    "write_splats",
]
