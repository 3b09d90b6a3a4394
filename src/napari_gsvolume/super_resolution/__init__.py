"""Super-resolution: degradation model, B-spline baseline and trained models."""
