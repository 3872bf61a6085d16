"""What identifies a network's weights: a hash of all of its files that loading reads."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

from model.backbone.facts import find_unet, local_folder
from utils.store import file_digest

_WEIGHT_FILE = re.compile(r"(diffusion_pytorch_model|model)(-\d+-of-\d+)?\.safetensors")
_WITHOUT_WEIGHTS = {"scheduler": ("scheduler_config.json",), "tokenizer": ("vocab.json", "merges.txt")}


def network_fingerprint(
    folder: str,
    parts: Sequence[str] = ("",),
    *,
    init: str = "pretrained",
    architecture: str = "",
    seed: int = 0,
    unet: str = "",
) -> str:
    """16 hex digits that identify a network's weights and configuration, wherever its folder is.

    parts: subfolders ("vae", "unet", "text_encoder", "scheduler", "tokenizer"; "" is the folder itself). With
    init="random" the architecture's name and the seed. unet: what stands for the part "unet", as in
    model.backbone.load. Raises FileNotFoundError if a part is not, or not wholly, on this machine.
    """
    if init == "random":
        return _hash([f"random {architecture} {seed}"])
    root = local_folder(folder)
    if root is None:
        raise FileNotFoundError(f"no network at {folder!r}: neither a folder nor a downloaded hub id")
    lines = []
    for part in parts:
        lines += [part, *(_describe_unet(unet) if part == "unet" and unet else _describe(root / part, part))]
    return _hash(lines)


def _describe(folder: Path, part: str) -> list[str]:
    """Name and digest of every file that counts; FileNotFoundError if one is missing."""
    names = _WITHOUT_WEIGHTS.get(part)
    if part == "tokenizer" and not (folder / names[0]).is_file():
        names = ("tokenizer.json",)
    elif names is None:
        weights = sorted(path.name for path in folder.glob("*.safetensors") if _WEIGHT_FILE.fullmatch(path.name))
        if not weights:
            raise FileNotFoundError(f"no network at {folder}: its safetensors weights are missing")
        names = ("config.json", *weights)
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise FileNotFoundError(f"no network at {folder}: {', '.join(missing)} is missing")
    if (folder / "preprocessor_config.json").is_file():
        names = (*names, "preprocessor_config.json")
    return [f"{name} {file_digest(folder / name)}" for name in names]


def _describe_unet(unet: str) -> list[str]:
    path = find_unet(unet)
    if path is None:
        raise FileNotFoundError(f"no UNet at {unet!r}: neither a folder, a file nor a downloaded hub id")
    return _describe(path, "unet") if path.is_dir() else [file_digest(path)]


def _hash(lines: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]
