"""Reading and writing of files: volumes (NIfTI), Gaussians (.gsv, .safetensors, .ply), splats and trained models.

Names are loaded on first use, and the import of this package needs no torch.
"""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
