"""What was measured, as a map from Gaussians to numbers, with its derivative and that one's transpose."""
