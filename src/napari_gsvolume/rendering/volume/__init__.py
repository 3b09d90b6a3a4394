"""Direct volume rendering with transfer functions."""
