"""From measurements to a volume: projections, slices, or both."""
