"""Gaussian splats with spherical harmonics: model, rasterizer, training."""
