"""Slices as matrices: singular values and functions, and super-resolution."""
