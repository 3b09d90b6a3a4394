"""Reconstruction of volumes from projections and from slices."""
