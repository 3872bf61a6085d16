"""Types of command-line arguments."""

import argparse


def positive(text: str) -> int:
    """A whole number above zero, for argparse."""
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value
