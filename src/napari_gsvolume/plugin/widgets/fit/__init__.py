"""The dock widgets that fit Gaussians and compare fits."""
