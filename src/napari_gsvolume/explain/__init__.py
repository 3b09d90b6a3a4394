"""Explaining networks by singular value decompositions."""
