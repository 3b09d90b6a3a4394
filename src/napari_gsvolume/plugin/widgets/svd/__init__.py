"""The dock widget of the SVD of slices and of super-resolution."""
