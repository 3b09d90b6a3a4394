"""The dock widget that explains a network."""
