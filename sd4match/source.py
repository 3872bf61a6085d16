"""What a name, a folder or a hub id given to `Matcher.from_pretrained` stands for."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from config import ConfigError, resolve_network, resolve_path
from engine.export import METRICS_FILE
from model.backbone.architecture import STABLE_DIFFUSION, default_hub_id
from model.backbone.facts import is_hub_id, local_folder, network_facts
from model.error import PromptNotFoundError
from model.method import METHODS
from model.prompt.name import BASELINES, parse_prompt_name
from model.prompt.store import META_FILE, TENSOR_FILES, find_name

MINI_NOTE = "The mini networks know only the rendered pictures of the mini world; photos need the network sd2-1."
_TELLING = ("cross_attention_dim", "prediction_type", "up_channels")


@dataclass(frozen=True)
class Preset:
    """The configuration of a network; files are relative to the repository's root."""

    config_file: str  # for learned prompts
    words_file: str  # for prompts in words
    method_file: str  # for a {method} other than Stable Diffusion's features
    settings: Mapping[str, Any] = field(default_factory=dict)  # what differs from the files


def _make_preset(backbone: str, folder: str) -> Preset:
    """A network without files of its own."""
    files = "config/spair/base.yaml", "config/spair/dift.yaml", "config/spair/{method}.yaml"
    return Preset(*files, {"NETWORK.NAME": backbone, "NETWORK.FOLDER": folder})


PRESETS = {
    "mini": Preset("config/mini/base.yaml", "config/mini/base.yaml", "config/mini/{method}.yaml"),
    **{name: _make_preset(name, default_hub_id(name)) for name in ("sd2-1", "sd2-1-base", "sd1-5")},
    "sd1-4": _make_preset("sd1-4", "CompVis/stable-diffusion-v1-4"),
    "geoaware": Preset(*["config/spair/geoaware.yaml"] * 3),  # a method with networks of its own
}


@dataclass(frozen=True)
class Found:
    """A configuration, and where the prompt is if not below its OUTPUT_ROOT."""

    config_file: str
    settings: dict[str, Any]
    prompt_folder: Path | None = None


def find_settings(name: str, prompt: str | None, method: str | None = None) -> Found:
    """The configuration for a network or prompt `name` and a prompt (None: `name`'s own, or "text")."""
    if is_prompt(name):
        if prompt is not None:
            raise ConfigError(f"{name} is a prompt itself; leave `prompt` out, or name a network first")
        name, prompt = parse_prompt_name(find_name(find_prompt_folder(name))).backbone, name
    preset, prompt = find_preset(name), prompt or "text"
    type_, folder = find_prompt(prompt)
    settings = {**preset.settings, "PROMPT.TYPE": type_}
    config_file = preset.words_file if prompt in BASELINES else preset.config_file
    if method not in (None, "sd4match"):
        settings["METHOD.NAME"] = method
        if method in METHODS:
            config_file = preset.method_file.format(method=method)
    return Found(resolve_path(config_file), settings, folder)


def find_preset(name: str) -> Preset:
    """The network of that name; one that has no name here is a folder or hub id."""
    return PRESETS.get(name) or _make_preset(
        _guess_backbone(name), str(Path(name).resolve()) if Path(name).is_dir() else name
    )


def find_weights(weights: str) -> tuple[str, Path | None]:
    """METHOD.WEIGHTS for a name or folder of learned weights, and the folder if that is not below OUTPUT_ROOT."""
    if Path(weights).is_dir():
        return Path(weights).resolve().name, Path(weights)
    if Path(weights).is_file():
        raise ConfigError(f"{weights} is a file: script/convert_geoaware.py makes a folder of the authors' weights")
    return weights, None


def is_prompt(name: str) -> bool:
    """Whether a name stands for a learned prompt's folder or hub repository, not for a network."""
    if name in PRESETS or name in BASELINES:
        return False
    if Path(name).is_dir():
        return _holds_prompt(Path(name))
    if not is_hub_id(name) or local_folder(name) is not None and not _holds_prompt(local_folder(name)):
        return False
    return _download(name, [META_FILE]) is not None


def find_prompt(prompt: str) -> tuple[str, Path | None]:
    """PROMPT.TYPE for a prompt's name, folder or hub id, and its folder if that is not below OUTPUT_ROOT."""
    if prompt in BASELINES or not (Path(prompt).is_dir() or "/" in prompt):
        return prompt, None
    folder = find_prompt_folder(prompt)
    return find_name(folder), folder


def find_prompt_folder(place: str, **options: Any) -> Path:
    """The folder of a prompt: the place itself, or where the hub's cache keeps it after a download.

    options: of huggingface_hub.snapshot_download.
    """
    if Path(place).is_dir():
        return Path(place)
    folder = _download(place, [META_FILE, METRICS_FILE, *TENSOR_FILES], **options) if is_hub_id(place) else None
    if folder is None:
        raise PromptNotFoundError(f"{place}: neither a folder nor a hub repository that holds a {META_FILE}")
    return folder


def _holds_prompt(folder: Path) -> bool:
    return any((folder / name).is_file() for name in (META_FILE, *TENSOR_FILES))


def _download(repository: str, files: list[str], **options: Any) -> Path | None:
    """Folder with those of `files` that a hub repository has; None if it has no META_FILE or is not there."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        folder = Path(snapshot_download(repository, allow_patterns=files, **options))
    except RepositoryNotFoundError:
        return None
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise PromptNotFoundError(f"{repository}: no such folder, and the download failed ({error})") from error
    return folder if (folder / META_FILE).is_file() else None


def _guess_backbone(folder: str) -> str:
    """The word for a network in prompt names: a released one's if it has that one's sizes, else the folder's name."""
    facts = network_facts(resolve_network(folder))
    for name in STABLE_DIFFUSION:
        named = network_facts("", init="random", architecture=name)
        if facts is not None and all(getattr(facts, key) == getattr(named, key) for key in _TELLING):
            return name
    return re.sub(r"[^A-Za-z0-9.-]+", "-", Path(folder).name).strip("-") or "network"
