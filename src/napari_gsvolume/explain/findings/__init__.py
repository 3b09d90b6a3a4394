"""Findings about a network: detectors and tests whose error rates are controlled."""
