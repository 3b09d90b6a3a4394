"""Representation of CT, MRI and microscopy volumes as sums of weighted 3D Gaussians.

Names are loaded on first use: the import of the package is fast, needs no display, and loads neither torch nor napari.
"""

from importlib.metadata import version as _version

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
__version__ = _version("napari-gsvolume")
__all__ = [*__all__, "__version__"]
