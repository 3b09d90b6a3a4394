"""Findings about a network: detectors, and tests with controlled error rates."""
