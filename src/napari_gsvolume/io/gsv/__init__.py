"""The compact file format .gsv: quantization, entropy coding and container."""
