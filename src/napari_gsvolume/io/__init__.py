"""Reading and writing of volumes (NIfTI) and Gaussians (.gsv, .safetensors, .ply)."""
