"""Parts that all dock widgets share."""
