"""How every file of ours is written and read."""

import contextlib
import json
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary name beside `path`; on success it replaces `path`, on any error it is removed.

    A reader therefore sees the old file or the whole new one. Missing parent folders are made.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read_json(path: Path, error: type[Exception], remedy: str) -> dict[str, Any]:
    """The object in a JSON file; `error`, with what to do about it, if the file holds anything else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as cause:
        raise error(f"{path} is corrupt ({cause}); {remedy}") from cause
    if not isinstance(content, dict):
        raise error(f"{path} is corrupt (not a JSON object); {remedy}")
    return content
