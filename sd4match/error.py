"""What callers of the package get wrong."""


class PointError(ValueError):
    """Points that are not (x, y) inside the image."""
