"""Types of command-line arguments."""

import argparse
import re


def positive(text: str) -> int:
    """A whole number above zero, for argparse."""
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def file_name(text: str) -> str:
    """The name of one file or folder, without a path, for argparse."""
    if not text or text in (".", "..") or re.search(r"[/\\\x00-\x1f]", text):
        raise argparse.ArgumentTypeError(f"must be a name without a path, got {text!r}")
    return text
