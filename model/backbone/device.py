"""Where the frozen networks run, and in which precision."""

from __future__ import annotations

import torch

DTYPES = {
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}


def resolve_device(name: str) -> torch.device:
    """The torch device of a name; "auto" is the GPU if there is one (CUDA, then Apple's), else the CPU."""
    if name != "auto":
        try:
            return torch.device(name)
        except RuntimeError as error:
            raise ValueError(
                f'device must be "auto" or a torch device such as "cpu" or "cuda:1", got {name!r}'
            ) from error
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """The dtype of a name; "auto" is fp32 on a CPU, bf16 on a GPU that has it, fp16 on other GPUs."""
    if name != "auto":
        if name not in DTYPES:
            raise ValueError(f"precision must be one of auto, {', '.join(DTYPES)}; got {name!r}")
        return DTYPES[name]
    if device.type == "cpu":
        return torch.float32
    if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.bfloat16
    return torch.float16
