"""Colours and solid textures of the mini world. All of them are random per object, none is tied to a part."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from mini.render.geometry import Vec

Colour = tuple[float, float, float]

COLOURS: dict[str, Colour] = {
    "red": (200, 40, 40),
    "orange": (235, 135, 40),
    "yellow": (235, 210, 60),
    "green": (60, 150, 65),
    "blue": (50, 90, 200),
    "purple": (130, 65, 170),
    "pink": (240, 150, 185),
    "brown": (125, 80, 45),
    "black": (45, 45, 50),
    "white": (235, 235, 230),
    "gray": (135, 140, 145),
}
COLOUR_NAMES = tuple(sorted(COLOURS))


class Draws:
    """A stream of uniform draws as Python floats (ten times faster than scalar calls of a generator)."""

    def __init__(self, seed: np.random.SeedSequence) -> None:
        self.seed = seed
        self.rng = np.random.default_rng(seed)
        self._pool: list[float] = []

    def branch(self, number: int) -> Draws:
        """Another stream, the same whatever was drawn from this one."""
        return Draws(np.random.SeedSequence(self.seed.entropy, spawn_key=(*self.seed.spawn_key, number)))

    def unit(self) -> float:
        """Next draw from [0, 1)."""
        if not self._pool:
            self._pool = self.rng.random(256).tolist()
        return self._pool.pop()

    def uniform(self, low: float, high: float) -> float:
        return low + (high - low) * self.unit()

    def bump(self, low: float, high: float) -> float:
        """Triangular draw: the middle of the range is the likeliest."""
        return low + (high - low) * 0.5 * (self.unit() + self.unit())

    def chance(self, probability: float) -> bool:
        return self.unit() < probability

    def index(self, n: int) -> int:
        return int(self.unit() * n)

    def pick(self, options):
        return options[self.index(len(options))]

    def direction(self) -> Vec:
        z, a = self.uniform(-1, 1), self.uniform(0, 2 * math.pi)
        r = math.sqrt(1 - z * z)
        return (r * math.cos(a), r * math.sin(a), z)


@dataclass(frozen=True)
class Material:
    """Two colours (0..255) mixed by w0 sin(k0 p + f0) + w1 sin(k1 p + f1) sin(k2 p + f2)."""

    first: Colour
    second: Colour
    waves: tuple[Vec, Vec, Vec] = ((0.0, 0.0, 0.0),) * 3  # k0, k1, k2
    phases: Vec = (0.0, 0.0, 0.0)  # f0, f1, f2
    weights: tuple[float, float] = (0.0, 0.0)  # w0, w1
    threshold: float = 1.0
    sharpness: float = 8.0


def jitter(colour: Colour, draws: Draws, amount: float) -> Colour:
    """Colour moved by up to `amount` (0..255) in brightness and half of it per channel."""
    shade = draws.uniform(-amount, amount)
    return tuple(min(255.0, max(0.0, c + shade + draws.uniform(-0.5, 0.5) * amount)) for c in colour)


def random_colour(draws: Draws) -> Colour:
    return jitter(COLOURS[draws.pick(COLOUR_NAMES)], draws, 28)


def random_material(draws: Draws, first: Colour) -> Material:
    """A plain, striped, spotted, patched or graded material whose dominant colour is `first`."""
    second = random_colour(draws)
    phases = tuple(draws.uniform(0, 2 * math.pi) for _ in range(3))
    kind = draws.unit()
    if kind < 0.55:
        return Material(first, second)
    low, high, weights, threshold, sharpness = _texture_ranges(kind)
    waves = tuple(_wave(draws, low, high) for _ in range(3))
    return Material(first, second, waves, phases, weights, draws.uniform(*threshold), sharpness)


def _texture_ranges(kind: float):
    """Frequencies (rad per unit), weights, thresholds and sharpness of the texture family at `kind`."""
    if kind < 0.67:
        return 9.0, 24.0, (1.0, 0.0), (0.1, 0.6), 6.0  # stripes
    if kind < 0.77:
        return 8.0, 20.0, (0.0, 1.0), (0.3, 0.5), 8.0  # spots
    if kind < 0.88:
        return 5.0, 9.0, (0.6, 0.8), (0.35, 0.6), 8.0  # patches
    return 1.0, 2.5, (0.6, 0.0), (0.6, 0.9), 0.6  # gradient


def _wave(draws: Draws, low: float, high: float) -> Vec:
    x, y, z = draws.direction()
    k = draws.uniform(low, high)
    return (k * x, k * y, k * z)
