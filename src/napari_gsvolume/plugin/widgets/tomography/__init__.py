"""The dock widgets of projections and of reconstruction."""
