"""Fitting of Gaussians to volumes: settings, objective, solvers, growth, and the loop.

Names are loaded on first use: `FitSettings` needs no torch, so that forms and ``--help`` open at once.
"""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
