"""How a frozen network is executed: memory layout, compilation. Numbers stay the same up to rounding."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

MEMORY_FORMATS = ("auto", "contiguous", "channels_last")
COMPILE_MODES = ("none", "default", "reduce-overhead", "max-autotune")


def resolve_memory_format(name: str, device: torch.device, dtype: torch.dtype) -> torch.memory_format:
    """The layout of convolution weights; "auto" is channels_last in half precision on a GPU, else contiguous."""
    if name not in MEMORY_FORMATS:
        raise ValueError(f"memory format must be one of {', '.join(MEMORY_FORMATS)}; got {name!r}")
    half_on_gpu = device.type == "cuda" and dtype != torch.float32
    wanted = name == "channels_last" or (name == "auto" and half_on_gpu)
    return torch.channels_last if wanted else torch.contiguous_format


def speed_up(network: nn.Module, memory_format: torch.memory_format, compile_mode: str, backend: str = "inductor"):
    """The network, in place: convolution weights in that layout, forward compiled unless compile_mode is "none".

    compile_mode: one of COMPILE_MODES; "reduce-overhead" and "max-autotune" replay CUDA graphs on a GPU.
    """
    if compile_mode not in COMPILE_MODES:
        raise ValueError(f"compile mode must be one of {', '.join(COMPILE_MODES)}; got {compile_mode!r}")
    nn.Module.to(network, memory_format=memory_format)
    if compile_mode != "none":
        network.forward = CompiledForward(network.forward, compile_mode, backend)
    return network


class CompiledForward:
    """A module's forward through torch.compile. If that fails, plain from then on, after one warning.

    Compilation happens at the first call, and again when shapes change. Running out of memory is not taken for a
    failure, and an error that the plain forward has as well is the caller's.
    """

    def __init__(self, forward: Callable[..., Any], mode: str, backend: str = "inductor") -> None:
        self._plain, self._mode = forward, mode
        self._compiled = torch.compile(forward, mode=mode if backend == "inductor" else None, backend=backend)
        self.failed = False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.failed:
            return self._plain(*args, **kwargs)
        try:
            if not torch.is_grad_enabled():
                torch.compiler.cudagraph_mark_step_begin()  # what the last call gave has been used up
            return self._compiled(*args, **kwargs)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            reason = error
        result = self._plain(*args, **kwargs)
        self.failed = True
        warnings.warn(
            f"torch.compile ({self._mode}) failed, going on without it: {type(reason).__name__}: {_shorten(reason)}",
            stacklevel=2,
        )
        return result


def _shorten(error: Exception) -> str:
    """The first two lines of its message."""
    return " ".join(str(error).strip().splitlines()[:2])
