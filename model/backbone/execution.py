"""How a frozen network is executed: memory layout, compilation, rows per call. Numbers stay the same up to rounding."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

MEMORY_FORMATS = ("auto", "contiguous", "channels_last")
COMPILE_MODES = ("none", "default", "reduce-overhead", "max-autotune")
MOST_ROWS = 64  # of one UNet call: more of them gain nothing, and overflow the 32-bit indices of some kernels
FREE_SHARE = 0.6  # of the GPU's free memory that one call may be planned to take


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


class RowLimit:
    """How many rows (images times noise draws) one network call takes where no gradients are kept.

    Either fixed, or found at the first call: on a GPU what fits into its free memory, judged by what one draw of all
    images took; elsewhere one draw of all images. A call that runs out of memory is repeated with half as many rows.
    """

    def __init__(self, fixed: int | None = None) -> None:
        if fixed is not None and fixed < 1:
            raise ValueError(f"rows per call must be at least 1, got {fixed}")
        self.limit = fixed

    def run(self, n: int, compute: Callable[[int], Tensor], device: torch.device) -> Tensor:
        """compute(rows per call) for n images."""
        while True:
            rows = self.limit or n
            try:
                if self.limit is None and device.type == "cuda":
                    return self._measure(n, compute, device)
                return compute(rows)
            except torch.OutOfMemoryError:
                if rows == 1:
                    raise
            self.limit = max(1, rows // 2)
            if device.type == "cuda":
                torch.cuda.empty_cache()
            warnings.warn(f"out of memory with {rows} rows in a UNet call; going on with {self.limit}", stacklevel=2)

    def _measure(self, n: int, compute: Callable[[int], Tensor], device: torch.device) -> Tensor:
        """A first call of n rows that sets the limit."""
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        result = compute(n)
        per_row = max(1, torch.cuda.max_memory_allocated(device) - before) / n
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        self.limit = plan_rows(torch.cuda.mem_get_info(device)[0] + unused, per_row, n)
        return result


def plan_rows(free_bytes: float, bytes_per_row: float, n: int) -> int:
    """Rows per call: what fits into FREE_SHARE of the free bytes, at most MOST_ROWS, but not fewer than the n tried."""
    return max(n, min(MOST_ROWS, int(FREE_SHARE * free_bytes / bytes_per_row)))


def _shorten(error: Exception) -> str:
    """The first two lines of its message."""
    return " ".join(str(error).strip().splitlines()[:2])
