"""Restoration of singular modes by a super-resolution network, in its output and layer by layer."""
