"""Singular value decompositions of activations, Jacobians and attention, and figures made from them."""
