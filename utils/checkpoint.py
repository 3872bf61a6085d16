"""Resumable training state: one file, written atomically, loaded without unpickling code."""

import os
from pathlib import Path

import torch

from utils.store import atomic_path

NAME = "state.pt"


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be resumed; the message names the file and what to do."""


def save_checkpoint(folder: str | Path, state: dict) -> None:
    """Write plain state (tensors, numbers, strings, dicts, lists) to folder/state.pt, or leave the old one whole."""
    with atomic_path(Path(folder) / NAME) as temporary, open(temporary, "wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())


def load_checkpoint(folder: str | Path) -> dict | None:
    """The state in folder/state.pt on the CPU, or None if there is none."""
    path = Path(folder) / NAME
    if not path.exists():
        return None
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise CheckpointError(f"{path} cannot be read ({error}); start anew with --overwrite") from error


def changed_keys(old: dict[str, object], new: dict[str, object], may_differ: tuple[str, ...]) -> list[str]:
    """`key: old -> new` for the settings that differ between a checkpoint's run and this one."""
    keys = [key for key in {**old, **new} if key not in may_differ]
    return [f"{key}: {old.get(key)!r} -> {new.get(key)!r}" for key in keys if old.get(key) != new.get(key)]
