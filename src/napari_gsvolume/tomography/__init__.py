"""Tomography: acquisition geometry, forward projection, Beer-Lambert law, noise, and files of projections.

Examples
--------
>>> from napari_gsvolume import phantoms
>>> from napari_gsvolume.tomography import add_noise, project, preset_scan
>>> volume, _ = phantoms.vessel_phantom(16)
>>> projections = project(volume, preset_scan("circle", volume.shape, 1.0, views=8))
>>> add_noise(projections.images, photons=1e5).shape
(8, 16, 23)
"""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
