"""Pictures of volumes and of Gaussians: cameras, direct volume rendering, and splatting trained against it."""
