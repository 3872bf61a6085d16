"""What several processes can gain: the gradient's size, and the time that averaging it costs."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

LINKS = {  # GB/s that a ring of this kind sustains per process, microseconds per hop; assumptions, not measured
    "GPUs of one machine (NVLink, 200 GB/s)": (200.0, 5.0),
    "machines on 200 Gbit/s": (20.0, 20.0),
    "machines on 10 Gbit/s": (1.0, 50.0),
}


def gradient_bytes(prompt: nn.Module) -> tuple[int, int]:
    """(learned parameters, bytes of their float32 gradient)."""
    n_parameters = sum(parameter.numel() for parameter in prompt.parameters() if parameter.requires_grad)
    return n_parameters, 4 * n_parameters


def average_seconds(n_bytes: int, world: int, gigabytes_per_s: float, hop_us: float) -> float:
    """A ring all-reduce: 2 (n - 1) / n of the bytes through every link, in 2 (n - 1) hops."""
    if world == 1:
        return 0.0
    return 2 * (world - 1) / world * n_bytes / (gigabytes_per_s * 1e9) + 2 * (world - 1) * hop_us * 1e-6


def project(n_bytes: int, step_seconds: float, worlds: Sequence[int] = (1, 2, 4, 8, 16, 64)) -> list[dict]:
    """Share of ideal speed by link and number of processes, if nothing of the averaging hides behind the backward pass.

    step_seconds: of one process's part of a step, which stays the same (its share of the batch is fixed).
    """
    rows = []
    for link, (speed, hop) in LINKS.items():
        for world in worlds:
            seconds = average_seconds(n_bytes, world, speed, hop)
            rows.append(
                {
                    "link": link,
                    "processes": world,
                    "average_ms": 1e3 * seconds,
                    "efficiency": step_seconds / (step_seconds + seconds),
                }
            )
    return rows
