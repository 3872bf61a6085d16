"""A folder or hub id that networks are loaded from: every failure says what was tried and what to do."""

from __future__ import annotations

import contextlib
import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
import transformers
from huggingface_hub import constants, snapshot_download
from safetensors import safe_open
from torch import nn

from model.backbone.facts import is_hub_id, local_folder, split_hub_file
from model.error import NetworkError, NetworkNotFoundError

_Module = TypeVar("_Module", bound=nn.Module)
_Result = TypeVar("_Result")
_FEW = 2**20  # weights that may be missing before their names are told


@dataclass(frozen=True)
class NetworkSource:
    """A folder, file or hub id, with the configuration key that named it and what is worth knowing if it fails."""

    folder: str
    key: str
    remark: str = ""

    def fetch(self, files: Sequence[str], required: Sequence[str]) -> Path:
        """The folder or file on this machine; of a hub id what matches the patterns `files`, downloaded if need be.

        Raises NetworkNotFoundError if the download fails, or a folder does not exist or lacks one of `required`.
        """
        path, reason = Path(os.path.expanduser(self.folder)), "the folder"
        if not os.path.exists(path):
            repository, name = split_hub_file(self.folder) or (self.folder, "")
            if not is_hub_id(repository):
                raise NetworkNotFoundError(self.explain("there is no such folder"))
            if local_folder(repository) is None:
                print(f"fetching {self.folder} from {constants.ENDPOINT}", file=sys.stderr)
            try:
                path = Path(snapshot_download(repository, allow_patterns=[name] if name else list(files))) / name
            except Exception as error:  # of the network, the hub or the disk
                reason = f"the download from {constants.ENDPOINT} failed ({_first_line(error)})"
                raise NetworkNotFoundError(self.explain(reason)) from error
            reason = f"what {constants.ENDPOINT} has of it"
        wanted = [] if path.is_file() else required
        if missing := sorted(name for name in wanted if not (path / name).is_file()):
            raise NetworkNotFoundError(self.explain(f"{reason} lacks {', '.join(missing)}"))
        return path

    def load(self, network: type[_Module], folder: Path, **options: Any) -> _Module:
        """network.from_pretrained, safetensors only; NetworkError if weights are missing or misshapen."""
        self.attempt(lambda: self._check_size(network, folder, options.get("config")))
        model, info = self.attempt(
            lambda: network.from_pretrained(folder, use_safetensors=True, output_loading_info=True, **options)
        )
        if wrong := sorted(map(str, [*info["missing_keys"], *info["mismatched_keys"]])):
            names = ", ".join(wrong[:3]) + (f" and {len(wrong) - 3} more" if len(wrong) > 3 else "")
            raise NetworkError(self.explain(f"{folder} lacks weights of {network.__name__}: {names}"))
        return model

    def _check_size(self, network: type[nn.Module], folder: Path, config: Any) -> None:
        """Refuse, before memory is asked for, a configuration with far more weights than the files hold."""
        with torch.device("meta"):
            if config is None and hasattr(network, "config_class"):
                config = network.config_class.from_pretrained(folder)
            model = network(config) if config is not None else network.from_config(network.load_config(folder))
        wanted = sum(parameter.numel() for parameter in model.parameters())
        held = sum(_count_elements(path) for path in folder.glob("*.safetensors"))
        if wanted > 2 * held + _FEW:
            raise ValueError(
                f"'{folder / 'config.json'}' describes {wanted:,} weights, but the files there hold {held:,}"
            )

    def attempt(self, action: Callable[[], _Result]) -> _Result:
        """action(), quietly, with the libraries' errors explained."""
        try:
            with _quiet():
                return action()
        except MemoryError:
            raise
        except Exception as error:  # each library has its own for a damaged file
            raise NetworkError(self.explain(_first_line(error))) from error

    def explain(self, reason: str) -> str:
        """What was tried, why it failed, what to do."""
        sentences = [
            f"cannot load the network {self.folder!r} ({self.key}): {reason}.",
            self.remark,
            f"Name another folder or hub id in the config file or after the command ({self.key} /path/to/folder), a "
            "mirror of the hub in the environment's HF_ENDPOINT. "
            "Only safetensors files are read.",
        ]
        return " ".join(sentence for sentence in sentences if sentence)


def _count_elements(path: Path) -> int:
    with safe_open(path, "pt") as file:
        return sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


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
