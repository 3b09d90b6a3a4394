"""Explanation of networks by the SVD of activations, Jacobians and attention, and by tests of concepts.

The names in ``__all__`` are loaded on first use, so that importing the package costs nothing: torch comes with the
modules that need it.
"""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
