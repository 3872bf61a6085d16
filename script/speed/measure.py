"""Clocks, memory and the device's speed limit."""

from __future__ import annotations

import contextlib
import os
import resource
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

GIB = 2**30


@dataclass
class Side:
    """One way of doing the work. `run` does one round and gives the units (pairs, images, ...) that it did."""

    run: Callable[[], int]
    static_bytes: int = 0  # device memory of its networks, held between rounds
    rates: list[float] = field(default_factory=list)  # units/s of each round
    peak_bytes: int = 0


def interleave(sides: Mapping[str, Side], repeats: int, warmup: int, device: torch.device) -> None:
    """Warm up, then run a round of each side in turn, `repeats` times; fills rates and peak_bytes."""
    for side in sides.values():
        for _ in range(warmup):
            side.run()
    for _ in range(repeats):
        for side in sides.values():
            start_bytes = reset_peak(device)
            synchronise(device)
            start = time.perf_counter()
            units = side.run()
            synchronise(device)
            side.rates.append(units / (time.perf_counter() - start))
            side.peak_bytes = max(side.peak_bytes, read_peak(device) - start_bytes + side.static_bytes)


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def reset_peak(device: torch.device) -> int:
    """Forget the peak so far; bytes that do not count (on a GPU what is held already, on a CPU nothing)."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    with contextlib.suppress(OSError):  # not Linux, or not allowed: the peak since the start is reported
        Path("/proc/self/clear_refs").write_text("5")
    return 0


def read_peak(device: torch.device) -> int:
    """Bytes at the peak since `reset_peak`: of the device's allocator, or of the whole process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.exists():
        (line,) = [line for line in status.read_text().splitlines() if line.startswith("VmHWM")]
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def held_bytes(device: torch.device) -> int:
    """Bytes of the device's allocator in use; 0 on a CPU, where the process is measured as a whole."""
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0


def quartiles(values: Sequence[float]) -> dict[str, float]:
    """{"median", "q1", "q3"} of some values."""
    if len(values) == 1:
        return {"median": values[0], "q1": values[0], "q3": values[0]}
    q1, median, q3 = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": median, "q1": q1, "q3": q3}


def measure_matmul_peak(device: torch.device, dtype: torch.dtype, seconds: float = 0.5) -> float:
    """TFLOP/s of the fastest of many square matrix products within `seconds`: what the device can reach."""
    side = 8192 if device.type == "cuda" else 1024 if dtype == torch.float32 else 256
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    times: list[float] = []
    while sum(times) < seconds or len(times) < 2:  # the first is a warm-up
        synchronise(device)
        start = time.perf_counter()
        a @ b
        synchronise(device)
        times.append(time.perf_counter() - start)
    return 2 * side**3 / min(times) / 1e12


def describe_machine(device: torch.device) -> dict:
    """Hardware, versions and how busy the machine was."""
    from engine.process import describe_environment

    environment = describe_environment(device)
    if device.type == "cpu":
        environment["device"] = f"cpu: {_cpu_name() or environment['device']}"
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    return {**environment, "threads": torch.get_num_threads(), "load_average": load}


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")
