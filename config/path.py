"""Paths in a config are relative to the repository's root, so that every command works from any folder.

The installed package (setup.py) is its own root, with the configs and the mini networks; whatever it does not ship is
read and written below USER_ROOT instead.
"""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
INSTALLED = __package__ != "config"
USER_ROOT = Path(os.environ.get("SD4MATCH_HOME") or Path.home() / ".sd4match") if INSTALLED else ROOT


def resolve_path(path: str) -> str:
    """The path as an absolute one."""
    path = os.path.expanduser(path)
    return str((ROOT if os.path.exists(ROOT / path) else USER_ROOT) / path)


def resolve_network(folder: str) -> str:
    """An absolute path if there is such a folder or file, else the text itself, which may be a hub id."""
    path = resolve_path(folder)
    return path if folder and os.path.exists(path) else folder
