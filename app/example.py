"""Pairs of images to try, rendered from the mini world: instances that no network has seen."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from mini.render.categories import CATEGORIES
from mini.render.render import instance_seed, render_scene
from utils.store import atomic_path

FAVOURITES = ("boat", "car", "dog", "chair", "person", "aeroplane")
SIZES = {"source": (240, 320), "target": (320, 280)}  # (H, W)


@dataclass(frozen=True)
class Example:
    category: str
    source: str  # path
    target: str


def render_examples(folder: Path) -> list[Example]:
    """One pair of each of some categories as files in `folder`; those that are there are kept."""
    examples = []
    for category in (name for name in FAVOURITES if name in CATEGORIES):
        paths = {side: folder / f"{category}_{side}.png" for side in SIZES}
        for number, (side, path) in enumerate(paths.items()):
            if not path.is_file():
                _render(category, number, SIZES[side], path)
        examples.append(Example(category, *map(str, paths.values())))
    return examples


def _render(category: str, number: int, size: tuple[int, int], path: Path) -> None:
    seed = instance_seed("test", category, number)
    scene = render_scene(seed, (category,), size, occlude=0, truncate=0, scale=(0.7, 0.9))
    with atomic_path(path) as temporary:
        Image.fromarray(scene.image).save(temporary, format="PNG")
