"""Reconstruction of volumes, as Gaussians, from few projections, from slices, or from both.

Examples
--------
>>> from napari_gsvolume import phantoms
>>> from napari_gsvolume.reconstruction import reconstruct
>>> from napari_gsvolume.tomography import preset_scan, project
>>> volume, _ = phantoms.vessel_phantom(16)
>>> projections = project(volume, preset_scan("circle", volume.shape, 1.0, views=8))
>>> result = reconstruct(projections, truth=volume, gaussians=20, iterations=2, fit_iterations=2)
>>> result.psnr_db > 10
True
"""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
