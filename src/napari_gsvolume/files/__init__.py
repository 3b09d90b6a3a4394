"""Reading and writing volumes and Gaussians."""


class FileFormatError(ValueError):
    """A damaged or foreign file; the message is one sentence that names the file and the reason."""
