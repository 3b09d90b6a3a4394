"""Rendered views of volumes and of Gaussian splats."""
