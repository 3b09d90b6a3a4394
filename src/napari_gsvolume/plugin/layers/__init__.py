"""Conversion between napari layers and arrays with their grids."""
