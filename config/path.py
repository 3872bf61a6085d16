"""Paths in a config are relative to the repository's root, so that every command works from any folder."""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def resolve_path(path: str) -> str:
    """The path as an absolute one."""
    return str(ROOT / os.path.expanduser(path))


def resolve_network(folder: str) -> str:
    """An absolute path if there is such a folder or file, else the text itself, which may be a hub id."""
    path = resolve_path(folder)
    return path if folder and os.path.exists(path) else folder
