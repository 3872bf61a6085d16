"""What callers of the package get wrong, and how a command tells it."""

import argparse
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from config import ConfigError

KEYS = {  # argument of Matcher.from_pretrained, and flag of the commands -> key of config/default.py
    "network": "NETWORK.FOLDER",
    "method": "METHOD.NAME",
    "weights": "METHOD.WEIGHTS",
    "prompt": "PROMPT.TYPE",
    "device": "DEVICE",
    "timestep": "TEST.TIMESTEP",
    "ensemble": "TEST.ENSEMBLE",
    "layer": "METHOD.LAYER",
    "localiser": "EVAL.PICTURE_LOCALISER",
    "image_size": "DATASET.IMAGE_SIZE",
}


class PointError(ConfigError):
    """Points that are not (x, y) inside the image."""


class CategoryError(ConfigError):
    """A category that the prompt cannot use."""


class OutputError(ConfigError):
    """A file that the picture cannot be written to."""


@contextmanager
def in_flags(args: argparse.Namespace) -> Iterator[None]:
    """Errors inside the block speak of a command's flags instead of keys and arguments."""
    words = {KEYS.get(name, name): f"--{name}" for name in vars(args)}
    try:
        yield
    except Exception as error:
        if error.args and isinstance(error.args[0], str):
            pattern = r"^category\b|\b[A-Z]+(?:\.[A-Z_]+)?\b"
            text = re.sub(pattern, lambda match: words.get(match[0], match[0]), error.args[0])
            error.args = (text, *error.args[1:])
        raise


def build_parser(text: str, script: str, command: str) -> argparse.ArgumentParser:
    """A parser whose help, `text`, is in terms of what was typed: the checkout's script or the installed command."""
    name = Path(sys.argv[0]).name
    text = text if name == script else text.replace(f"python {script}", command)
    return argparse.ArgumentParser(name, description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
