"""Dock widgets: thin Qt over the same calls that Python and the shell make."""
