"""Prompts on disk, in a folder that bears the prompt's name.

Format "release", which training writes and the authors use: ckpt.pt, CPM's state dict, or caption.pt, which is
{"dataset": (1, 77, D)} for Single and {category: (1, 77, D)} for Class, always whole sequences. Format "own", for
keeping and passing on: the same tensors under the same names in prompt.safetensors. In both, prompt.json says what
the prompt belongs to and what made it, and has a digest of the tensors; the authors' prompts have none.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model.backbone.text import PromptEncoder
from model.error import PromptError, PromptNotFoundError
from model.prompt.base import Prompt
from model.prompt.name import KINDS, PromptName, parse_prompt_name
from utils.store import (
    StoreError,
    atomic_path,
    digest,
    read_json,
    read_released,
    read_tensors,
    require_finite,
    write_json,
    write_tensors,
)

META_FILE = "prompt.json"
OWN_FILE = "prompt.safetensors"
TENSOR_FILES = (OWN_FILE, "ckpt.pt", "caption.pt")
FORMATS = ("release", "own")
TENSORS = "tensors"  # the entry of prompt.json with the digest of the tensors
RELEASED_LAYER = 1  # up-block that the authors' prompts were trained for
_TEXT_MODEL = "text_model_embeddings."
_REMEDY = "copy or train the prompt again"


@dataclass(frozen=True)
class StoredPrompt:
    """What a prompt's folder holds: float32 tensors on the CPU that fit the name, and prompt.json's content or {}."""

    name: PromptName
    tensors: dict[str, Tensor]
    meta: dict[str, Any]

    @property
    def made_by(self) -> dict[str, Any]:
        """Settings, networks and data of its training, by content; {} if they are not known."""
        return self.meta.get("made_by") or ({"METHOD.LAYER": self.meta["layer"]} if "layer" in self.meta else {})


def tensor_file(name: PromptName, form: str = "release") -> str:
    """File of the prompt's tensors: ckpt.pt for CPM and caption.pt otherwise, or prompt.safetensors."""
    if form == "own":
        return OWN_FILE
    return "ckpt.pt" if name.kind == "CPM" else "caption.pt"


def save_prompt(folder: str | Path, prompt: Prompt, meta: Mapping[str, Any] | None = None) -> Path:
    """Write the prompt into `folder`, whose last part is the prompt's name, over an earlier one; returns it.

    meta: what else prompt.json should say, JSON values: "made_by" (the settings and digests of its training),
    "metrics", ... StoreError for tensors that are not finite; then the earlier prompt is still whole.
    """
    return write_prompt(folder, StoredPrompt(prompt.name, prompt.to_tensors(), dict(meta or {})))


def write_prompt(folder: str | Path, stored: StoredPrompt, form: str = "release") -> Path:
    """Write the files of one of FORMATS into `folder`, over an earlier prompt of either; returns the folder.

    Each file is written under a temporary name and then moved, the tensors first. A crash between the two leaves
    tensors that prompt.json does not describe: they are refused, and training, which goes on from before, mends it.
    """
    folder, tensors = Path(folder), stored.tensors
    try:
        require_finite(tensors)
    except ValueError as error:
        raise StoreError(f"{folder} was not written: {error}") from error
    path = folder / tensor_file(stored.name, form)
    if form == "own":
        write_tensors(path, tensors, durable=True)
    else:
        with atomic_path(path, durable=True) as temporary:
            torch.save(dict(tensors), temporary)
    content = {**_describe(stored.name, tensors), **stored.meta, TENSORS: digest({}, tensors)}
    write_json(folder / META_FILE, content, durable=True)
    for other in set(FORMATS) - {form}:
        (folder / tensor_file(stored.name, other)).unlink(missing_ok=True)
    return folder


def read_prompt(folder: str | Path, name: str | None = None) -> StoredPrompt:
    """The prompt in `folder`, ours or the authors', in either format, checked against its name.

    name: if the folder is not called so. Raises PromptNotFoundError (no such folder or file; the prompts that are
    there are listed) or PromptError (a name that disagrees with the contents, a corrupt file).
    """
    folder = Path(folder)
    parsed = _read_name(folder, name or folder.name)
    meta = _read_meta(folder)
    if (stored := meta.get("name", str(parsed))) != str(parsed):
        raise PromptError(f"{folder} holds the prompt {stored} (says its {META_FILE}); rename the folder to that")
    path = _find_tensors(folder, parsed)
    tensors = _read_tensors(path, parsed)
    if meta.get(TENSORS, expected := digest({}, tensors)) != expected:
        raise PromptError(f"{path} is not what {META_FILE} beside it describes (its digest differs); {_REMEDY}")
    with _naming(folder):
        _kind(parsed).check(parsed, tensors)
    return StoredPrompt(parsed, tensors, meta)


def load_prompt(
    folder: str | Path,
    text: PromptEncoder,  # of the configured backbone
    *,
    backbone: str,  # its name, such as "sd2-1"
    categories: Sequence[str] = (),  # those that will be asked of a Class prompt
    condition_shape: tuple[int, int] | None = None,  # (tokens, features) of the configured condition network, for CPM
    setting: Mapping[str, Any] | None = None,  # what must be as in its training: entries of prompt.json's "made_by"
    name: str | None = None,  # if the folder is not called so
) -> Prompt:
    """The prompt in `folder`, ours or the authors'; strict, on the CPU.

    Raises what `read_prompt` does, and PromptError for another backbone, width or setting and for missing categories.
    """
    folder = Path(folder)
    stored = read_prompt(folder, name)
    _check_origin(folder, stored, backbone, setting or {})
    with _naming(folder):
        return _kind(stored.name).restore(stored.name, stored.tensors, text, categories, condition_shape)


def read_made_by(folder: str | Path) -> dict[str, Any] | None:
    """What made the prompt in `folder`; {} if it does not say, None if there is no prompt."""
    folder = Path(folder)
    if not any((folder / name).is_file() for name in TENSOR_FILES):
        return None
    return _read_meta(folder).get("made_by", {})


def find_name(folder: str | Path) -> str:
    """What a prompt's folder, called as it may be, says that it holds; its own name if it has no prompt.json."""
    return str(_read_meta(Path(folder)).get("name", Path(folder).name))


def list_prompts(root: str | Path) -> list[str]:
    """Names of the prompts in the folder `root`, sorted."""
    return sorted({path.parent.name for file in TENSOR_FILES for path in Path(root).glob(f"*/{file}")})


def _describe(name: PromptName, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """What the name and the tensors themselves say."""
    sample = tensors["alpha_cond"] if name.kind == "CPM" else next(iter(tensors.values()))
    content = {
        "name": str(name),
        "kind": name.kind,
        "dataset": name.dataset,
        "backbone": name.backbone,
        "space": name.space,
        "learnable_tokens": name.n_tokens,
        "width": sample.shape[-1],
    }
    if name.kind == "Class":
        content["categories"] = sorted(tensors)
    if name.condition:
        content["condition"] = name.condition
    return content


def _kind(name: PromptName) -> Any:
    """The module of the prompt's kind."""
    return importlib.import_module(KINDS[name.kind])


@contextlib.contextmanager
def _naming(folder: Path) -> Iterator[None]:
    """Errors about what a prompt holds name its folder."""
    try:
        yield
    except ValueError as error:
        raise PromptError(f"{folder}: {error}") from error


def _read_name(folder: Path, text: str) -> PromptName:
    if not folder.is_dir():
        there = list_prompts(folder.parent)
        raise PromptNotFoundError(
            f"there is no prompt {folder.name} in {folder.parent}; "
            + (
                f"there are: {', '.join(there)}"
                if there
                else "that folder holds no prompts: train one with train.py first"
            )
        )
    with _naming(folder):
        name = parse_prompt_name(text)
    if name.kind not in KINDS:
        raise PromptError(f"{folder}: {name} is a prompt in words, not a learned one")
    return name


def _find_tensors(folder: Path, name: PromptName) -> Path:
    files = [tensor_file(name, form) for form in FORMATS]
    there = [folder / file for file in files if (folder / file).is_file()]
    if not there:
        raise PromptNotFoundError(
            f"{folder} holds no {files[0]}: its training has not saved a prompt yet (nor is there a {files[1]})"
        )
    if len(there) > 1:
        raise PromptError(f"{folder} holds both {files[0]} and {files[1]}: delete the one that is not meant")
    return there[0]


def _read_meta(folder: Path) -> dict[str, Any]:
    path = folder / META_FILE
    return read_json(path, PromptError, "delete it, or train the prompt again") if path.is_file() else {}


def _check_origin(folder: Path, stored: StoredPrompt, backbone: str, setting: Mapping[str, Any]) -> None:
    """Refuse a prompt that was trained for something else."""
    if (trained := stored.name.backbone) != backbone:
        raise PromptError(
            f"{folder} was trained for the backbone {trained} (says its name), but NETWORK.NAME is {backbone}: "
            f"choose a prompt of {backbone}, or the configuration of {trained}"
        )
    setting = json.loads(json.dumps(dict(setting)))
    made_by = stored.made_by
    if wrong := [key for key, value in setting.items() if key in made_by and made_by[key] != value]:
        raise PromptError(
            f"{folder} was trained under other settings: "
            + "; ".join(f"{key} {made_by[key]!r}, now {setting[key]!r}" for key in wrong)
            + "; set them so, or choose another prompt"
        )
    if not made_by and setting.get("METHOD.LAYER", RELEASED_LAYER) != RELEASED_LAYER:
        warnings.warn(
            f"{folder} does not say for which layer it was trained; the released prompts are for METHOD.LAYER "
            f"{RELEASED_LAYER}, not {setting['METHOD.LAYER']}",
            stacklevel=3,
        )


def _read_tensors(path: Path, name: PromptName) -> dict[str, Tensor]:
    """Float32 tensors; PromptError for a file that is damaged, holds anything else, or values that are not finite."""
    if path.name == OWN_FILE:
        tensors, _ = read_tensors(path, PromptError, _REMEDY)
    else:
        tensors = read_released(path, PromptError, _REMEDY)
    if not isinstance(tensors, Mapping) or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise PromptError(f"{path} holds no table of tensors, so it is no {name.kind} prompt")
    # the authors' files may hold a buffer of the text model; a prompt without global tokens an empty tensor
    kept = {
        str(key): value
        for key, value in tensors.items()
        if not (str(key).startswith(_TEXT_MODEL) or (key == "global_embeds" and value.numel() == 0))
    }
    if odd := [key for key, value in kept.items() if value.layout != torch.strided or not value.is_floating_point()]:
        raise PromptError(f"{path}: {odd[0]!r} is no dense tensor of floating-point numbers; {_REMEDY}")
    kept = {key: value.float() for key, value in kept.items()}
    with _naming(path):
        require_finite(kept)
    return kept
