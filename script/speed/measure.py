"""How fast a device can multiply."""

import time

import torch


def measure_matmul_peak(device: torch.device, dtype: torch.dtype, seconds: float = 0.5) -> float:
    """TFLOP/s of the fastest of many square matrix products within `seconds`."""
    side = 8192 if device.type == "cuda" else 1024 if dtype == torch.float32 else 256
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    times: list[float] = []
    while sum(times) < seconds or len(times) < 2:  # the first is a warm-up
        start = time.perf_counter()
        a @ b
        torch.cuda.synchronize(device) if device.type == "cuda" else None
        times.append(time.perf_counter() - start)
    return 2 * side**3 / min(times) / 1e12
