"""Dock widgets of projection and reconstruction."""
