"""LoRA on the attention projections of a UNet, by peft, and the file formats that such adapters are passed on in.

A name of ours is the projection's place and the matrix: "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.
lora_A.weight"; A is "down" (rank x in), B is "up" (out x rank). The update is B A, at scale 1. peft is imported when an
adapter is made.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from utils.noise import seeded
from utils.store import StoreError, read_released, read_tensors, require_finite, write_tensors, write_text

TARGETS = ("to_q", "to_k", "to_v", "to_out.0")
PEFT_FILES = ("adapter_model.safetensors", "adapter_config.json")
DIFFUSERS_FILE = "pytorch_lora_weights.safetensors"
_PREFIX = re.compile(r"^(?:unet\.|base_model\.model\.)+")
_SIDES = {"down": "lora_A", "up": "lora_B"}
# of the release, of diffusers, of peft
_OLD = re.compile(r"(.+)\.processor\.to_(q|k|v|out)_lora\.(down|up)\.weight")
_NEW = re.compile(r"(.+)\.lora\.(down|up)\.weight")
_PEFT = re.compile(r"(.+)\.(lora_A|lora_B)(?:\.\w+)?\.weight")


def add_adapter(unet: nn.Module, rank: int, seed: int = 0) -> nn.Module:
    """Put an adapter on every attention, self and cross, in place; the module that holds what is learned, float32.

    Down: normal with deviation 1 / rank, up: zero, so that the UNet computes what it did.
    """
    from peft import LoraConfig, inject_adapter_in_model

    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=list(TARGETS), init_lora_weights="gaussian")
    with seeded(seed):
        inject_adapter_in_model(config, unet)
    adapter = nn.Module()
    for name, parameter in unet.named_parameters():
        learned = ".lora_" in name
        parameter.requires_grad_(learned)
        if learned:
            parameter.data = parameter.data.float()
            *path, last = name.replace(".default.", ".").split(".")
            place = adapter
            for word in path:
                if not hasattr(place, word):
                    place.add_module(word, nn.Module())
                place = getattr(place, word)
            place.register_parameter(last, parameter)
    return adapter


def export_adapter(folder: Path, tensors: Mapping[str, Tensor], network: str) -> None:
    """Write an adapter's tensors as peft and as diffusers read them."""
    rank = next(value.shape[0] for name, value in tensors.items() if name.endswith("lora_A.weight"))
    settings = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": list(TARGETS)}
    settings |= {"base_model_name_or_path": network, "inference_mode": True}
    write_tensors(folder / PEFT_FILES[0], {f"base_model.model.{name}": value for name, value in tensors.items()})
    write_text(folder / PEFT_FILES[1], json.dumps(settings, indent=2) + "\n")
    names = {name: name.replace("lora_A", "lora.down").replace("lora_B", "lora.up") for name in tensors}
    write_tensors(folder / DIFFUSERS_FILE, {f"unet.{names[name]}": value for name, value in tensors.items()})


def read_published(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a file that others made, by our names: the release's pytorch_model.bin, or safetensors of
    diffusers or peft; of a folder the first that is there. StoreError for anything else."""
    path = Path(path)
    if path.is_dir():
        names = (DIFFUSERS_FILE, PEFT_FILES[0], "pytorch_model.bin")
        found = [path / name for name in names if (path / name).is_file()]
        if not found:
            raise StoreError(f"{path} holds no adapter: none of {', '.join(names)}")
        path = found[0]
    tensors = read_tensors(path)[0] if path.suffix == ".safetensors" else read_released(path)
    try:
        named = {_rename(str(name)): value.float() for name, value in tensors.items()}
        require_finite(named)
    except (ValueError, AttributeError, RuntimeError) as error:  # other names, or no table of dense tensors at all
        raise StoreError(f"{path} is no adapter ({' '.join(str(error).split())[:200]})") from error
    return named


def _rename(name: str) -> str:
    name = _PREFIX.sub("", name)
    if found := _OLD.fullmatch(name):
        place, projection, side = found.groups()
        return f"{place}.to_{projection}{'.0' * (projection == 'out')}.{_SIDES[side]}.weight"
    if found := _NEW.fullmatch(name):
        return f"{found[1]}.{_SIDES[found[2]]}.weight"
    if found := _PEFT.fullmatch(name):
        return f"{found[1]}.{found[2]}.weight"
    raise ValueError(f"{name!r} is the name of no LoRA matrix")
