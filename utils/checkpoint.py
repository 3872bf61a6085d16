"""Resumable training state: one file of plain values and tensors, complete or not there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from utils.store import StoreError, read_tensors, write_tensors

NAME = "state.safetensors"


class CheckpointError(StoreError):
    """A checkpoint that cannot be written or resumed; the message names the file and what to do."""


def save_checkpoint(folder: str | Path, state: dict) -> None:
    """Write nested dicts, lists and tuples of tensors, numbers and strings to folder/state.safetensors.

    CheckpointError for values that are not finite; then, and after any other failure, the old file is still whole.
    """
    tensors: dict[str, Tensor] = {}
    tree = _pack(state, tensors, "state")
    try:
        write_tensors(Path(folder) / NAME, tensors, {"tree": tree}, durable=True)
    except StoreError as error:
        raise CheckpointError(f"{error}; the last good state is kept") from error


def load_checkpoint(folder: str | Path) -> dict | None:
    """The state in folder/state.safetensors on the CPU, or None if there is none."""
    path = Path(folder) / NAME
    if not path.exists():
        return None
    remedy = "start anew with --overwrite"
    tensors, meta = read_tensors(path, CheckpointError, remedy)
    try:
        return _unpack(meta["tree"], tensors)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} holds no training state; {remedy}") from error


def _pack(node: Any, tensors: dict[str, Tensor], name: str) -> Any:
    """JSON values for a nested state: every container says its kind, tensors are moved to `tensors` by name."""
    if isinstance(node, Tensor):
        tensors[name] = node
        return {"tensor": name}
    if isinstance(node, dict):
        return {"dict": [[key, _pack(value, tensors, f"{name}.{key}")] for key, value in node.items()]}
    if isinstance(node, list | tuple):
        values = [_pack(value, tensors, f"{name}.{i}") for i, value in enumerate(node)]
        return {"tuple" if isinstance(node, tuple) else "list": values}
    if node is None or isinstance(node, bool | int | float | str):
        return node
    raise TypeError(f"{name} is a {type(node).__name__}, which a checkpoint cannot hold")


def _unpack(node: Any, tensors: dict[str, Tensor]) -> Any:
    if not isinstance(node, dict):
        return node
    ((kind, value),) = node.items()
    if kind == "tensor":
        return tensors[value]
    if kind == "dict":
        return {key: _unpack(part, tensors) for key, part in value}
    return {"list": list, "tuple": tuple}[kind](_unpack(part, tensors) for part in value)
