"""Noise that depends on one seed per image, not on the batch, the device or the number of processes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw from PyTorch's CPU generator seeded with `seed`, leaving its state as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def draw_noise(
    seeds: Tensor,
    shape: Sequence[int],
    device: torch.device | str = "cpu",
    uniform: bool = False,  # in [0, 1) instead
) -> Tensor:
    """Standard normal noise (n, *shape), row i drawn from seeds[i] alone; seeds: (n,) int64.

    Drawn in float32 on the CPU whatever the device, so that every device sees the same numbers.
    """
    generator = torch.Generator()
    noise = torch.empty(len(seeds), *shape, pin_memory=torch.device(device).type == "cuda")
    for row, seed in zip(noise, seeds.tolist(), strict=True):
        generator.manual_seed(seed)
        row.uniform_(generator=generator) if uniform else row.normal_(generator=generator)
    return noise.to(device, non_blocking=True)


def drop_elements(x: Tensor, share: float, seeds: Tensor) -> Tensor:
    """Dropout of x (n, ...): elements are zeroed with probability `share`, the others divided by 1 - share.

    Row i is drawn from seeds[i] (n,) alone, on x's device: another device draws others.
    """
    if not share:
        return x
    generator, kept = torch.Generator(x.device), torch.empty_like(x)
    for row, seed in zip(kept, seeds.tolist(), strict=True):
        row.bernoulli_(1 - share, generator=generator.manual_seed(seed))
    return x * kept / (1 - share)


def noise_seeds(base_seed: int, epoch: int, index: Tensor | Sequence[int], side: int) -> Tensor:
    """Seeds (B,) int64 of the pairs `index` (B,) in `epoch`; side 0 = source image, 1 = target image."""
    words = np.asarray(index, dtype=np.int64).reshape(-1)
    return torch.from_numpy(_mix(base_seed, epoch, side, words))


def identifier_seed(base_seed: int, identifier: str) -> int:
    """Seed of the image `identifier`: the same in every run, process and batch."""
    digest = hashlib.blake2b(identifier.encode("utf-8"), digest_size=8).digest()
    return int(_mix(base_seed, np.frombuffer(digest, dtype="<i8"))[0])


def derive_seeds(seeds: Tensor, draw: int) -> Tensor:
    """Independent seeds (n,) for the draw-th use of each of `seeds` (n,)."""
    return torch.from_numpy(_mix(seeds.cpu().numpy(), draw))


def _mix(*words: int | np.ndarray) -> np.ndarray:
    """Fold integers into one int64 each, by splitmix64; arrays broadcast. Returns a 1-d array."""
    state = np.zeros(1, dtype=np.uint64)
    for word in words:
        state = _splitmix64(state ^ np.atleast_1d(np.asarray(word, dtype=np.int64)).astype(np.uint64))
    return state.astype(np.int64)


def _splitmix64(x: np.ndarray) -> np.ndarray:
    """One step of the splitmix64 generator, a bijection of 64-bit words (arithmetic modulo 2^64)."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
