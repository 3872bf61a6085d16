"""How every file of ours is written and read: in one step, with a digest inside, finite values, nothing unpickled.

A digest covers all that a reader gets. A file without one (a network's config.json, tensors of other projects) is read
as it is. What cannot be read is answered in one line that names the file and what to do.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import math
import os
import secrets
import time
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from utils.error import UserError

if TYPE_CHECKING:
    from torch import Tensor

DIGEST = "digest"  # the entry of a JSON file, or of a tensor file's metadata, that holds its digest
REMEMBERED = 16 << 20  # bytes from which on a file's hash is kept for the next process
_DAY, _SETTLED = 86400, 2  # seconds


class StoreError(UserError, ValueError):
    """A file that cannot be used, or values that must not be written; the message names it and what to do."""


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike, durable: bool = False) -> Iterator[Path]:
    """Yield a temporary name beside `path`; on success it replaces `path`, on any error it is removed.

    A reader therefore sees the old file or the whole new one. durable: also after the machine itself has stopped.
    Missing parent folders are made; what killed processes left there is removed after a day. An OSError names `path`.
    """
    path = Path(path)
    temporary = path.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_left_over(path.parent)
        yield temporary
        if durable:
            _flush(temporary)
        os.replace(temporary, path)
        if durable:
            _flush(path.parent)
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


@functools.cache
def remove_left_over(folder: Path) -> None:
    """Remove the temporary files in `folder` of yesterday; once per process, for it takes a listing."""
    for path in folder.glob(f".{'[0-9a-f]' * 16}.tmp"):
        with contextlib.suppress(OSError):
            if path.stat().st_mtime < time.time() - _DAY:
                path.unlink()


def write_text(path: str | os.PathLike, text: str, durable: bool = False) -> None:
    """Write a text file (UTF-8)."""
    with atomic_path(path, durable) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | os.PathLike, content: Mapping[str, Any], durable: bool = False) -> None:
    """Write an object with its digest. StoreError for nan and inf, which JSON does not know."""
    try:
        content = json.loads(json.dumps(content, allow_nan=False))
    except ValueError as cause:
        raise StoreError(f"{path} was not written: it would hold a number that is not finite") from cause
    write_text(path, json.dumps({**content, DIGEST: digest(content)}, indent=2) + "\n", durable)


def read_json(
    path: str | os.PathLike, error: type[Exception] = StoreError, remedy: str = "delete it"
) -> dict[str, Any]:
    """The object in a JSON file without its digest; `error`, with the remedy, if the file is damaged."""
    try:
        content = json.loads(
            Path(path).read_text(encoding="utf-8"), parse_float=_parse_finite, parse_constant=_parse_finite
        )
        if not isinstance(content, dict):
            raise ValueError("not a JSON object")
        if (stored := content.pop(DIGEST, None)) is not None and stored != digest(content):
            raise ValueError(f"its digest differs; if you changed it on purpose, remove its entry {DIGEST!r}")
    except (ValueError, RecursionError) as cause:
        raise error(f"{path} is corrupt ({cause}); {remedy}") from cause
    return content


def append_record(file: BinaryIO, content: Mapping[str, Any]) -> None:
    """Add an object with its digest as a line of a journal, opened for appending; it outlives this process at once."""
    content = json.loads(json.dumps(content, allow_nan=False))
    file.write(json.dumps({**content, DIGEST: digest(content)}, separators=(",", ":")).encode() + b"\n")
    file.flush()


def read_records(path: str | os.PathLike) -> Iterator[tuple[int, dict[str, Any]]]:
    """(position in the file, object) of a journal's lines; what a killed process left unfinished is passed over."""
    with open(path, "rb") as file:
        position = 0
        for line in file:
            try:
                content = json.loads(line)
                whole = content.pop(DIGEST, None) == digest(content)
            except (ValueError, AttributeError, RecursionError):
                whole = False
            if whole:
                yield position, content
            position += len(line)


def write_tensors(
    path: str | os.PathLike,
    tensors: Mapping[str, Tensor],
    meta: Mapping[str, Any] | None = None,  # JSON values kept with them
    durable: bool = False,
) -> None:
    """Write a safetensors file with the digest of tensors and meta. StoreError for values that are not finite."""
    from safetensors.torch import save

    tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    try:
        require_finite(tensors)
        meta = json.loads(json.dumps(meta or {}, allow_nan=False))
    except ValueError as cause:
        raise StoreError(f"{path} was not written: {cause}") from cause
    content = save(tensors, {"meta": json.dumps(meta), DIGEST: digest(meta, tensors)})
    with atomic_path(path, durable) as temporary:
        temporary.write_bytes(content)


def read_tensors(
    path: str | os.PathLike, error: type[Exception] = StoreError, remedy: str = "delete it"
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors, on the CPU, and meta of a safetensors file; `error`, with the remedy, if it is damaged.

    The file is read whole and not mapped: one that is cut while it is open cannot end the process.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    content = Path(path).read_bytes()
    try:
        tensors = load(content)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        about = header.get("__metadata__") or {}
        meta = json.loads(about.get("meta", "{}"))
        if not about.keys() & {"meta", DIGEST}:  # somebody else's: `write_tensors` writes no other than finite values
            require_finite(tensors)
        elif about.get(DIGEST) != digest(meta, tensors):
            raise ValueError("its digest differs")
    except (SafetensorError, ValueError, KeyError, RuntimeError) as cause:
        raise error(f"{path} is corrupt ({_first_line(cause)}); {remedy}") from cause
    return tensors, meta


def read_released(
    path: str | os.PathLike, error: type[Exception] = StoreError, remedy: str = "download it again"
) -> Any:
    """What torch.save wrote of tensors and plain values: nothing else is unpickled; `error`, with the remedy, else.

    PyTorch does not look at the archive's checksums itself.
    """
    import torch

    try:
        if zipfile.is_zipfile(path):  # other files are of the older format
            with zipfile.ZipFile(path) as archive:
                if damaged := archive.testzip():
                    raise ValueError(f"its checksum of {damaged} differs")
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as cause:  # a damaged file may raise anything
        raise error(f"{path} cannot be read ({_first_line(cause)}); {remedy}") from cause


def require_finite(tensors: Mapping[str, Tensor]) -> None:
    """ValueError names the first tensor that holds nan or inf."""
    for name, value in tensors.items():
        if value.is_floating_point() and not value.isfinite().all():
            raise ValueError(f"{name} is not finite (nan or inf)")


def digest(content: Any, tensors: Mapping[str, Tensor] | None = None) -> str:
    """32 hex digits of JSON values, and of tensors' names, types, shapes and bytes."""
    result = hashlib.sha256(json.dumps(content, sort_keys=True).encode())
    for name, value in sorted((tensors or {}).items()):
        result.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        if value.numel():
            result.update(value.detach().cpu().contiguous().reshape(-1).view(dtype=_uint8()).numpy())
    return result.hexdigest()[:32]


def file_digest(path: str | os.PathLike) -> str:
    """64 hex digits of a file's whole content, which is read again only when the file has changed."""
    status = os.stat(path)
    state = [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
    return _hash_file(os.path.realpath(path), *state)


@functools.lru_cache(maxsize=1 << 16)
def _hash_file(path: str, size: int, *times: int) -> str:
    """Of large files the hash is kept in the user's cache folder, unless they have only just been written."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "sd4match"
    note, state = cache / "digest" / f"{digest(path)}.json", [size, *times]
    if size >= REMEMBERED:
        with contextlib.suppress(OSError, StoreError):
            known = read_json(note)
            if known.get("state") == state:
                return known["sha256"]
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if size >= REMEMBERED and time.time_ns() - times[0] > _SETTLED * 10**9:
        with contextlib.suppress(OSError):
            write_json(note, {"path": path, "state": state, "sha256": found})
    return found


def _parse_finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is not finite")
    return value


def _uint8():
    import torch

    return torch.uint8


def _flush(path: Path) -> None:
    """Wait until the disk has the file, or the folder's list of names."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
