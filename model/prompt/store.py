"""Prompts on disk, in the release's formats: ckpt.pt (CPM) or caption.pt (Single, Class), with a prompt.json.

ckpt.pt is CPM's state dict; caption.pt is {"dataset": (1, 77, D)} for Single and {category: (1, 77, D)} for
Class, always whole sequences. prompt.json says what the prompt belongs to; the authors' prompts have none.
"""

from __future__ import annotations

import json
import os
import pickle
import tempfile
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model.error import PromptError, PromptNotFoundError
from model.prompt.base import Prompt
from model.prompt.cpm import ConditionalPrompt
from model.prompt.name import PromptName, parse_prompt_name
from model.prompt.simple import SINGLE_KEY, SimplePrompt
from model.text import PromptEncoder

META_FILE = "prompt.json"


def tensor_file(name: PromptName) -> str:
    """File of the prompt's tensors: ckpt.pt for CPM, caption.pt otherwise."""
    return "ckpt.pt" if name.method == "CPM" else "caption.pt"


def save_prompt(folder: str | Path, prompt: Prompt, meta: Mapping[str, Any] | None = None) -> Path:
    """Write the prompt into `folder`, whose last part is the prompt's name, over an earlier one; returns it.

    meta: what else prompt.json should say (network fingerprint, init, metrics, ...), JSON values. Each file
    is written under a temporary name and then moved, the tensors first, so that a crash leaves the old prompt
    or the new one, never half of one.
    """
    name = prompt.name
    if name.method not in ("CPM", "Single", "Class"):
        raise ValueError(f"the prompt {name} has nothing to save")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    content = {**_describe(prompt), **(meta or {})}
    text = json.dumps(content, indent=2, allow_nan=False) + "\n"
    _replace(folder / tensor_file(name), lambda path: torch.save(_tensors(prompt), path))
    _replace(folder / META_FILE, lambda path: path.write_text(text, encoding="utf-8"))
    return folder


def load_prompt(
    folder: str | Path,
    text: PromptEncoder,  # of the configured backbone
    *,
    backbone: str,  # its name, such as "sd2-1"
    categories: Sequence[str] = (),  # those that will be asked of a Class prompt
    condition_shape: tuple[int, int] | None = None,  # (tokens, features) of the configured condition network, for CPM
    fingerprint: str | None = None,  # of the configured backbone; a difference from prompt.json's is warned about
    name: PromptName | None = None,  # None: as the folder is called
) -> Prompt:
    """The prompt in `folder`, ours or the authors'; strict, on the CPU.

    Raises PromptNotFoundError (no such folder or file; the prompts that are there are listed) or PromptError
    (another backbone or width, a name that disagrees with the contents, missing categories, a corrupt file).
    """
    folder = Path(folder)
    name = _read_name(folder, name)
    _check_origin(folder, name, _read_meta(folder), backbone, fingerprint)
    tensors = _read_tensors(folder / tensor_file(name), name)
    if name.method == "CPM":
        return _build_cpm(folder, name, tensors, text, condition_shape)
    return _build_simple(folder, name, tensors, text, categories)


def list_prompts(root: str | Path) -> list[str]:
    """Names of the prompts in the folder `root`, sorted."""
    files = [*Path(root).glob("*/ckpt.pt"), *Path(root).glob("*/caption.pt")]
    return sorted({path.parent.name for path in files})


def _describe(prompt: Prompt) -> dict[str, Any]:
    name = prompt.name
    content = {
        "name": str(name),
        "method": name.method,
        "dataset": name.dataset,
        "backbone": name.backbone,
        "space": prompt.space,
        "learnable_tokens": name.n_tokens,
    }
    if isinstance(prompt, SimplePrompt):
        content["width"] = prompt.tokens.shape[-1]
        if name.method == "Class":
            content["categories"] = list(prompt.rows)
    if isinstance(prompt, ConditionalPrompt):
        content["width"] = prompt.alpha_cond.shape[-1]
        content |= {"condition": prompt.condition, "condition_shape": list(prompt.condition_shape)}
    return content


def _tensors(prompt: Prompt) -> dict[str, Tensor]:
    if isinstance(prompt, SimplePrompt):
        sequences = prompt.sequences().detach().cpu()
        return {row: sequences[i : i + 1].clone() for i, row in enumerate(prompt.rows)}
    return {key: value.detach().cpu().clone() for key, value in prompt.state_dict().items()}


def _replace(path: Path, write) -> None:
    """write(temporary path), then move it to `path`."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    os.close(handle)
    try:
        write(Path(temporary))
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)


def read_name(folder: str | Path) -> PromptName:
    """Which prompt a folder holds: what its prompt.json says, else what it is called."""
    folder = Path(folder)
    stored = _read_meta(folder).get("name")
    return _read_name(folder, parse_prompt_name(stored) if stored else None)


def _read_name(folder: Path, name: PromptName | None) -> PromptName:
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
    try:
        name = name or parse_prompt_name(folder.name)
    except ValueError as error:
        raise PromptError(f"{folder}: {error}") from error
    if not (folder / tensor_file(name)).is_file():
        raise PromptNotFoundError(f"{folder} holds no {tensor_file(name)}: its training has not saved a prompt yet")
    return name


def _read_meta(folder: Path) -> dict[str, Any]:
    path = folder / META_FILE
    if not path.is_file():
        return {}
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise PromptError(f"{path} is corrupt ({error}); delete it, or train the prompt again") from error
    if not isinstance(meta, dict):
        raise PromptError(f"{path} is corrupt (not a JSON object); delete it, or train the prompt again")
    return meta


def _check_origin(folder: Path, name: PromptName, meta: dict[str, Any], backbone: str, fingerprint: str | None) -> None:
    if (stored := meta.get("name", str(name))) != str(name):
        raise PromptError(f"{folder} holds the prompt {stored} (says its {META_FILE}); rename the folder to that")
    for trained, source in ((name.backbone, "its name"), (meta.get("backbone", name.backbone), META_FILE)):
        if trained != backbone:
            raise PromptError(
                f"{folder} was trained for the backbone {trained} (says {source}), but NETWORK.NAME is "
                f"{backbone}: choose a prompt of {backbone}, or the configuration of {trained}"
            )
    trained = meta.get("network_fingerprint")
    if fingerprint and trained and trained != fingerprint:
        warnings.warn(
            f"{folder} was trained with other weights of {backbone} ({trained}, now {fingerprint})",
            stacklevel=3,
        )


def _read_tensors(path: Path, name: PromptName) -> dict[str, Tensor]:
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except (
        RuntimeError,
        OSError,
        EOFError,
        ValueError,
        KeyError,
        zipfile.BadZipFile,
        pickle.UnpicklingError,
    ) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise PromptError(f"{path} cannot be read ({reason}); copy or train the prompt again") from error
    if not isinstance(tensors, Mapping) or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise PromptError(f"{path} holds no table of tensors, so it is no {name.method} prompt")
    return {str(key): value.float() for key, value in tensors.items()}


def _build_simple(
    folder: Path, name: PromptName, tensors: dict[str, Tensor], text: PromptEncoder, categories: Sequence[str]
) -> SimplePrompt:
    if (name.method == "Single") != (set(tensors) == {SINGLE_KEY}):
        raise PromptError(
            f"{folder} is named as a {name.method} prompt, but its file holds: {', '.join(sorted(tensors))}"
        )
    for key, value in tensors.items():
        if tuple(value.shape) != (1, text.n_positions, text.width):
            raise PromptError(
                f"{folder}: {key!r} is {tuple(value.shape)}, but this backbone takes (1, {text.n_positions}, "
                f"{text.width}); the prompt belongs to another Stable Diffusion version"
            )
    if missing := sorted(set(categories) - set(tensors)) if name.method == "Class" else []:
        raise PromptError(f"{folder} has no prompt for {', '.join(missing)}; it has: {', '.join(sorted(tensors))}")
    return SimplePrompt(name, {key: tensors[key][0] for key in sorted(tensors)})


def _build_cpm(
    folder: Path,
    name: PromptName,
    tensors: dict[str, Tensor],
    text: PromptEncoder,
    condition_shape: tuple[int, int] | None,
) -> ConditionalPrompt:
    if "global_embeds" in tensors and tensors["global_embeds"].numel() == 0:
        del tensors["global_embeds"]
    prompt = ConditionalPrompt(name, text, *(condition_shape or _infer_condition_shape(folder, name, tensors)))
    expected = {key: tuple(value.shape) for key, value in prompt.state_dict().items()}
    found = {key: tuple(value.shape) for key, value in tensors.items()}
    if wrong := [key for key in sorted(expected | found) if expected.get(key) != found.get(key)]:
        raise PromptError(
            f"{folder}: the file does not fit {name} with text width {text.width} and conditions "
            f"{prompt.condition_shape} (tokens, features): "
            + "; ".join(f"{key} is {found.get(key, 'missing')}, expected {expected.get(key, 'none')}" for key in wrong)
        )
    prompt.load_state_dict(tensors)
    return prompt


def _infer_condition_shape(folder: Path, name: PromptName, tensors: dict[str, Tensor]) -> tuple[int, int]:
    """(tokens, features) by the linear layers' shapes; the number of tokens shows in Pair-Feat only."""
    weight = tensors.get("linear_C.weight", tensors.get("linear.weight"))
    if weight is None or weight.ndim != 2:
        raise PromptError(f"{folder}: the file has no linear layer, so it is no CPM prompt; keys: {', '.join(tensors)}")
    n_patches = len(tensors.get("linear_N.bias", ())) or 256
    n_tokens = 1 if name.cpm.condition == "CLIP-Head" else 1 + n_patches
    return n_tokens, weight.shape[1] // (2 if name.cpm.scope == "Pair" else 1)
