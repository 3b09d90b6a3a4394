"""Projections of volumes and Gaussians: scanner geometry, X-rays, noise."""
