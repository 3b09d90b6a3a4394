"""The dock widget of volume rendering and splats."""
