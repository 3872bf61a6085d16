"""Where the frozen networks run, in which precision and layout, and whether that held."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from config import ConfigError
from model.error import NetworkError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

PRECISIONS = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}  # in a config, in torch


def resolve_device(name: str) -> torch.device:
    """The torch device of a name; "auto" is the GPU if there is one (CUDA, then Apple's), else the CPU.

    Raises ConfigError for what is no device, or one that this machine or this PyTorch cannot use.
    """
    import torch

    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f'DEVICE must be "auto" or a device such as "cpu", "cuda:1"; got {name!r}') from None
    if not _is_usable(device):
        raise ConfigError(f"DEVICE {name}: this machine, or this installation of PyTorch, has no such device; use auto")
    return device


def _is_usable(device: torch.device) -> bool:
    import torch

    if device.type == "cuda":  # asked without making a context on it: each of several processes has its own GPU
        return (device.index or 0) < torch.cuda.device_count()
    try:
        return torch.ones(1, device=device).item() == 1
    except Exception:  # each kind has its own way to say that it is not there; "meta" holds no numbers
        return False


def resolve_precision(cfg) -> str:
    """What PRECISION is on this machine, "fp32", "fp16" or "bf16": part of a run and of a result."""
    if cfg.PRECISION == "auto":
        return "fp32" if cfg.DEVICE == "cpu" or resolve_device(cfg.DEVICE).type == "cpu" else "fp16"
    return cfg.PRECISION


def name_precision(dtype: torch.dtype) -> str:
    """ "fp32", "fp16" or "bf16"."""
    return next(name for name, known in PRECISIONS.items() if str(dtype) == f"torch.{known}")


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """The dtype of a precision; "auto" as in `resolve_precision`."""
    import torch

    if name == "auto":
        name = "fp32" if device.type == "cpu" else "fp16"
    if name not in PRECISIONS:
        raise ConfigError(f"PRECISION must be one of auto, {', '.join(PRECISIONS)}; got {name!r}")
    return getattr(torch, PRECISIONS[name])


def speed_up(unet: nn.Module, memory_format: str, compile_mode: str) -> None:
    """Lay out the convolutions' weights ("contiguous", "channels_last"); compile the calls unless "none". In place."""
    import torch

    layouts = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
    torch.nn.Module.to(unet, memory_format=layouts[memory_format])
    if compile_mode != "none":
        unet.compile(mode=compile_mode)


def check_finite(features: Tensor, names: Sequence[str], block: str, precision: str) -> None:
    """Refuse features (n, ...) with an inf or nan: NetworkError names the image, the block and the precision.

    precision: as of `resolve_precision`. On a GPU this waits for the features.
    """
    finite = features.detach().isfinite().flatten(1).all(dim=1)
    if finite.all():
        return
    image = names[finite.tolist().index(False)]
    remedy = "the image's cache or the network is damaged" if precision == "fp32" else "run it with PRECISION fp32"
    raise NetworkError(f"the features of {image} at {block} are not finite in {precision}; {remedy}")


def check_weights(network: nn.Module, where: str) -> None:
    """Refuse a network with a weight that is inf or nan in its dtype: NetworkError names the first."""
    for name, value in network.state_dict().items():
        if value.is_floating_point() and not all(bound.isfinite() for bound in value.aminmax()):
            raise NetworkError(
                f"{where}: the weight {name} is not finite in {value.dtype}; fetch the network again"
                + ("" if value.element_size() > 2 else ", or use PRECISION fp32")
            )
