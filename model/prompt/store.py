"""Prompts on disk, in a folder that bears the prompt's name.

Format "release", which training writes and the authors use: ckpt.pt, CPM's state dict, or caption.pt, which is
{"dataset": (1, 77, D)} for Single and {category: (1, 77, D)} for Class, always whole sequences. Format "own", for
keeping and passing on: the same tensors under the same names in prompt.safetensors. In both, prompt.json says what
the prompt belongs to; the authors' prompts have none.
"""

from __future__ import annotations

import json
import pickle
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from model.backbone.text import PromptEncoder
from model.error import PromptError, PromptNotFoundError
from model.prompt.base import Prompt
from model.prompt.cpm import ConditionalPrompt, parameter_shapes
from model.prompt.name import KINDS, MAX_TOKENS, PromptName, parse_prompt_name
from model.prompt.simple import SINGLE_KEY, SimplePrompt
from utils.store import atomic_path, read_json

META_FILE = "prompt.json"
OWN_FILE = "prompt.safetensors"
TENSOR_FILES = (OWN_FILE, "ckpt.pt", "caption.pt")
FORMATS = ("release", "own")
_TEXT_MODEL = "text_model_embeddings."


@dataclass(frozen=True)
class StoredPrompt:
    """What a prompt's folder holds: float32 tensors on the CPU that fit the name, and prompt.json's content or {}."""

    name: PromptName
    tensors: dict[str, Tensor]
    meta: dict[str, Any]


def tensor_file(name: PromptName, form: str = "release") -> str:
    """File of the prompt's tensors: ckpt.pt for CPM and caption.pt otherwise, or prompt.safetensors."""
    if form not in FORMATS:
        raise ValueError(f"format must be one of {', '.join(FORMATS)}; got {form!r}")
    if form == "own":
        return OWN_FILE
    return "ckpt.pt" if name.method == "CPM" else "caption.pt"


def save_prompt(folder: str | Path, prompt: Prompt, meta: Mapping[str, Any] | None = None) -> Path:
    """Write the prompt into `folder`, whose last part is the prompt's name, over an earlier one; returns it.

    meta: what else prompt.json should say (network fingerprint, init, metrics, ...), JSON values.
    """
    if prompt.name.method not in KINDS:
        raise ValueError(f"the prompt {prompt.name} has nothing to save")
    shape = {"condition_shape": list(prompt.condition_shape)} if isinstance(prompt, ConditionalPrompt) else {}
    return write_prompt(folder, StoredPrompt(prompt.name, _tensors(prompt), {**shape, **(meta or {})}))


def write_prompt(folder: str | Path, stored: StoredPrompt, form: str = "release") -> Path:
    """Write the files of one of FORMATS into `folder`, over an earlier prompt of either; returns the folder.

    Each file is written under a temporary name and then moved, the tensors first, so that a crash leaves the old
    prompt or the new one, never half of one.
    """
    folder = Path(folder)
    content = {**_describe(stored.name, stored.tensors), **stored.meta}
    text = json.dumps(content, indent=2, allow_nan=False) + "\n"
    with atomic_path(folder / tensor_file(stored.name, form)) as temporary:
        if form == "own":
            save_file({key: value.contiguous() for key, value in stored.tensors.items()}, temporary)
        else:
            torch.save(stored.tensors, temporary)
    with atomic_path(folder / META_FILE) as temporary:
        temporary.write_text(text, encoding="utf-8")
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
    tensors = _read_tensors(_find_tensors(folder, parsed), parsed)
    if parsed.method == "CPM":
        _check_cpm(folder, parsed, tensors, tensors.get("alpha_cond", torch.empty(0)).shape[-1], None)
    else:
        _check_sequences(folder, parsed, tensors)
    return StoredPrompt(parsed, tensors, meta)


def load_prompt(
    folder: str | Path,
    text: PromptEncoder,  # of the configured backbone
    *,
    backbone: str,  # its name, such as "sd2-1"
    categories: Sequence[str] = (),  # those that will be asked of a Class prompt
    condition_shape: tuple[int, int] | None = None,  # (tokens, features) of the configured condition network, for CPM
    fingerprint: str | None = None,  # of the configured backbone; a difference from prompt.json's is warned about
    name: str | None = None,  # if the folder is not called so
) -> Prompt:
    """The prompt in `folder`, ours or the authors'; strict, on the CPU.

    Raises what `read_prompt` does, and PromptError for another backbone or width and for missing categories.
    """
    folder = Path(folder)
    stored = read_prompt(folder, name)
    _check_origin(folder, stored, backbone, fingerprint)
    if stored.name.method == "CPM":
        return _build_cpm(folder, stored, text, condition_shape)
    return _build_simple(folder, stored, text, categories)


def find_name(folder: str | Path) -> str:
    """What a prompt's folder, called as it may be, says that it holds; its own name if it has no prompt.json."""
    return str(_read_meta(Path(folder)).get("name", Path(folder).name))


def list_prompts(root: str | Path) -> list[str]:
    """Names of the prompts in the folder `root`, sorted."""
    return sorted({path.parent.name for file in TENSOR_FILES for path in Path(root).glob(f"*/{file}")})


def _describe(name: PromptName, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """What the name and the tensors themselves say."""
    sample = tensors["alpha_cond"] if name.method == "CPM" else next(iter(tensors.values()))
    content = {
        "name": str(name),
        "kind": name.method,
        "dataset": name.dataset,
        "backbone": name.backbone,
        "space": name.space,
        "learnable_tokens": name.n_tokens,
        "width": sample.shape[-1],
    }
    if name.method == "Class":
        content["categories"] = sorted(tensors)
    if name.condition:
        content["condition"] = name.condition
    return content


def _tensors(prompt: Prompt) -> dict[str, Tensor]:
    if isinstance(prompt, SimplePrompt):
        sequences = prompt.sequences().detach().cpu()
        return {row: sequences[i : i + 1].clone() for i, row in enumerate(prompt.rows)}
    return {key: value.detach().cpu().clone() for key, value in prompt.state_dict().items()}


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
    try:
        name = parse_prompt_name(text)
    except ValueError as error:
        raise PromptError(f"{folder}: {error}") from error
    if name.method not in KINDS:
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


def _check_origin(folder: Path, stored: StoredPrompt, backbone: str, fingerprint: str | None) -> None:
    name, meta = stored.name, stored.meta
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
        own = path.name == OWN_FILE
        tensors = load_file(path) if own else torch.load(path, map_location="cpu", weights_only=True)
    except (
        SafetensorError,
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
    # the authors' files may hold a buffer of the text model; a prompt without global tokens an empty tensor
    return {
        str(key): value.float()
        for key, value in tensors.items()
        if not (str(key).startswith(_TEXT_MODEL) or (key == "global_embeds" and value.numel() == 0))
    }


def _check_sequences(folder: Path, name: PromptName, tensors: dict[str, Tensor]) -> None:
    if (name.method == "Single") != (set(tensors) == {SINGLE_KEY}):
        raise PromptError(
            f"{folder} is named as a {name.method} prompt, but its file holds: {', '.join(sorted(tensors))}"
        )
    width = next(iter(tensors.values())).shape[-1] if tensors else 0
    for key, value in tensors.items():
        if tuple(value.shape) != (1, MAX_TOKENS + 2, width):
            raise PromptError(f"{folder}: {key!r} is {tuple(value.shape)}, expected (1, {MAX_TOKENS + 2}, {width})")


def _build_simple(folder: Path, stored: StoredPrompt, text: PromptEncoder, categories: Sequence[str]) -> SimplePrompt:
    name, tensors = stored.name, stored.tensors
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
    folder: Path, stored: StoredPrompt, text: PromptEncoder, condition_shape: tuple[int, int] | None
) -> ConditionalPrompt:
    name, tensors = stored.name, stored.tensors
    _check_cpm(folder, name, tensors, text.width, condition_shape)
    prompt = ConditionalPrompt(name, text, *(condition_shape or _infer_condition_shape(folder, name, tensors)))
    prompt.load_state_dict(tensors)
    return prompt


def _check_cpm(
    folder: Path, name: PromptName, tensors: dict[str, Tensor], width: int, condition_shape: tuple[int, int] | None
) -> None:
    """Refuse tensors that are not those of the name's variant; condition_shape None: whatever they were made for."""
    condition_shape = condition_shape or _infer_condition_shape(folder, name, tensors)
    expected = parameter_shapes(name.cpm, width, *condition_shape)
    found = {key: tuple(value.shape) for key, value in tensors.items()}
    if wrong := [key for key in sorted(expected | found) if expected.get(key) != found.get(key)]:
        raise PromptError(
            f"{folder}: the file does not fit {name} with text width {width} and conditions "
            f"{condition_shape} (tokens, features): "
            + "; ".join(f"{key} is {found.get(key, 'missing')}, expected {expected.get(key, 'none')}" for key in wrong)
        )


def _infer_condition_shape(folder: Path, name: PromptName, tensors: dict[str, Tensor]) -> tuple[int, int]:
    """(tokens, features) by the linear layers' shapes; the number of tokens shows in Pair-Feat only."""
    weight = tensors.get("linear_C.weight", tensors.get("linear.weight"))
    if weight is None or weight.ndim != 2:
        raise PromptError(f"{folder}: the file has no linear layer, so it is no CPM prompt; keys: {', '.join(tensors)}")
    n_patches = len(tensors.get("linear_N.bias", ())) or 256
    n_tokens = 1 if name.cpm.condition == "CLIP-Head" else 1 + n_patches
    return n_tokens, weight.shape[1] // (2 if name.cpm.scope == "Pair" else 1)
