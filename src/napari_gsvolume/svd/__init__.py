"""Singular value decomposition of slices, and singular vectors as continuous functions."""
