"""A folder or hub id that networks are loaded from: every failure says what was tried and what to do."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import transformers
from safetensors import SafetensorError
from torch import nn

from model.backbone.facts import is_hub_id
from model.error import NetworkError, NetworkNotFoundError

CONFIG_FILE = {"scheduler": "scheduler_config.json", "tokenizer": "tokenizer_config.json"}  # else config.json

_Module = TypeVar("_Module", bound=nn.Module)
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class NetworkSource:
    """A folder or hub id, with the configuration key that named it and what is worth knowing if it fails."""

    folder: str
    key: str
    remark: str = ""

    @property
    def is_local(self) -> bool:
        return self.path.exists()

    @property
    def path(self) -> Path:
        return Path(self.folder).expanduser()

    def require(self, files: Sequence[str]) -> None:
        """Refuse a folder that does not exist or lacks one of `files`, before anything is loaded."""
        if not self.is_local:
            if not is_hub_id(self.folder):
                raise NetworkNotFoundError(self.explain("there is no such folder"))
            return
        if missing := sorted(name for name in files if not (self.path / name).is_file()):
            raise NetworkNotFoundError(self.explain(f"the folder lacks {', '.join(missing)}"))

    def load(self, network: type[_Module], subfolder: str = "", **options: Any) -> _Module:
        """network.from_pretrained, safetensors only; NetworkError if weights are missing or misshapen."""
        model, info = self.attempt(
            lambda where: network.from_pretrained(
                where, subfolder=subfolder, use_safetensors=True, output_loading_info=True, **options
            )
        )
        if wrong := sorted(map(str, [*info["missing_keys"], *info["mismatched_keys"]])):
            names = ", ".join(wrong[:3]) + (f" and {len(wrong) - 3} more" if len(wrong) > 3 else "")
            raise NetworkError(
                self.explain(f"{subfolder or 'the network'} lacks weights of {network.__name__}: {names}")
            )
        return model

    def attempt(self, action: Callable[[str], _Result]) -> _Result:
        """action(folder or id), with the libraries' errors explained."""
        if not self.is_local:
            print(f"{self.key}: fetching {self.folder} from the hub, unless it is in the cache", file=sys.stderr)
        try:
            with _quiet() if self.is_local else contextlib.nullcontext():
                return action(str(self.path) if self.is_local else self.folder)
        except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
            if self.is_local:
                raise NetworkError(self.explain(reason)) from error
            raise NetworkNotFoundError(self.explain(f"the download failed ({reason})")) from error

    def explain(self, reason: str) -> str:
        """What was tried, why it failed, what to do."""
        sentences = [
            f"cannot load the network {self.folder!r} ({self.key}): {reason}.",
            self.remark,
            f"Point {self.key} at a local folder or another hub id, in the configuration file or on the "
            f"command line (python test.py ... {self.key} /path/to/folder). Only safetensors files are read.",
        ]
        return " ".join(sentence for sentence in sentences if sentence)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars or reports of unused weights while loading; missing weights are checked in `load`."""
    log = transformers.utils.logging
    verbosity, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(verbosity)
        if bars:
            log.enable_progress_bar()
