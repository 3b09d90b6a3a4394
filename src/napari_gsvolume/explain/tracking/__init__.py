"""Tracking of a network during training and over checkpoints."""
