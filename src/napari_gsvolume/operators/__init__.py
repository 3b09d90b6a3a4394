"""Forward operators of a sum of Gaussians, with their Jacobian products."""
