"""What is raised when a data set is not as it should be."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from utils.error import UserError


class DatasetError(UserError, ValueError):
    """A file of the data set holds something it should not."""


class MissingDataError(FileNotFoundError):
    """A file or folder of the data set is not there."""


def choose(name: str, known: Iterable[str], what: str) -> str:
    """Returns `name` if it is one of the `known`, else raises ValueError with the likely one and all."""
    known = list(known)
    if name in known:
        return name
    close = difflib.get_close_matches(str(name), known, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    raise ValueError(f"unknown {what}: {name!r}.{hint} Known: {', '.join(known)}")
