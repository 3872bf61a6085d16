"""Scenes of the mini world rendered once and shared by every network.

Only images, label maps and object descriptions are kept: no network may see keypoints.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mini.render import CATEGORIES, instance_seed, render_scene
from mini.render.detail import CODES

SIZE = (96, 96)
HELD_OUT = 1_000_000  # first index of the scenes no network is trained on
TWO_OBJECTS = 0.25  # share of training scenes with two objects
FLUSH = 250
CELL = 4  # image px per feature cell
BASE = 256  # more than any category has ends of parts


@dataclass(frozen=True)
class SceneStore:
    """n scenes; object i (from 1) of a scene is `objects[scene][i - 1]`."""

    image: np.ndarray  # (n, H, W, 3) uint8
    detail: np.ndarray  # (n, H, W) uint8, 0 background, else an end of a part (Scene.detail)
    instance: np.ndarray  # (n, H, W) uint8, 0 background, else object number
    objects: Sequence[Sequence[Mapping[str, str]]]  # category, colour, facing

    def __len__(self) -> int:
        return len(self.objects)

    def first(self, count: int) -> "SceneStore":
        """Return the store of the first `count` scenes."""
        return SceneStore(self.image[:count], self.detail[:count], self.instance[:count], self.objects[:count])


def to_parts(detail: np.ndarray) -> np.ndarray:
    """Return the fine parts (0 background) of detail values."""
    return (detail.astype(int) + CODES - 1) // CODES


def to_cells(detail: np.ndarray, instance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Reduce detail and instance maps (n, H, W) to feature cells (n, h, w).

    A cell belongs to the end with most pixels in it, if objects cover a quarter of it; so thin parts remain.
    """
    code = instance.astype(np.uint16) * BASE + detail
    cells = np.concatenate([_reduce(code[i : i + 100]) for i in range(0, len(code), 100)])
    return (cells % BASE).astype(np.uint8), (cells // BASE).astype(np.uint8)


def _reduce(code: np.ndarray) -> np.ndarray:
    n, height, width = code.shape
    blocks = code.reshape(n, height // CELL, CELL, width // CELL, CELL).swapaxes(2, 3)
    pixels = blocks.reshape(n, height // CELL, width // CELL, CELL * CELL)
    same = (pixels[..., None] == pixels[..., None, :]).sum(-1, dtype=np.uint8) * (pixels > 0)
    winner = np.take_along_axis(pixels, same.argmax(-1)[..., None], -1)[..., 0]
    return np.where((pixels > 0).sum(-1) >= CELL, winner, 0)


def render(categories: tuple[str, ...], index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[dict]]:
    """Render the `index`-th pretraining scene with these categories: image, detail, instance, objects."""
    scene = render_scene(instance_seed("pretrain", categories[0], index), categories, size=SIZE)
    objects = [{"category": o.category, "colour": o.colour, "facing": o.facing} for o in scene.objects]
    return scene.image, scene.detail, scene.instance, objects


def draw_categories(index: int) -> tuple[str, ...]:
    """Return the one or two categories of training scene `index`, the same at every call."""
    names = sorted(CATEGORIES)
    rng = np.random.default_rng([20, index])
    count = 2 if rng.random() < TWO_OBJECTS else 1
    return tuple(names[i] for i in rng.choice(len(names), size=count, replace=False))


def _open_arrays(folder: Path, count: int) -> dict[str, np.ndarray]:
    shapes = {"image": (count, *SIZE, 3), "detail": (count, *SIZE), "instance": (count, *SIZE)}
    arrays = {}
    for name, shape in shapes.items():
        path = folder / f"{name}.npy"
        if path.exists():
            arrays[name] = np.load(path, mmap_mode="r+", allow_pickle=False)
        else:
            arrays[name] = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)
        if arrays[name].shape != shape:
            raise ValueError(f"{path} holds {arrays[name].shape}, not {shape}: remove {folder} or keep --scenes")
    return arrays


def build_training_store(folder: Path, count: int) -> SceneStore:
    """Render `count` training scenes into `folder`, going on where an earlier call stopped."""
    folder.mkdir(parents=True, exist_ok=True)
    arrays = _open_arrays(folder, count)
    listing = folder / "objects.jsonl"
    done = len(listing.read_text().splitlines()) if listing.exists() else 0
    while done < count:
        block = range(done, min(done + FLUSH, count))
        lines = []
        for index in block:
            *maps, objects = render(draw_categories(index), index)
            for name, value in zip(("image", "detail", "instance"), maps, strict=True):
                arrays[name][index] = value
            lines.append(json.dumps(objects) + "\n")
        for array in arrays.values():
            array.flush()
        with listing.open("a") as file:
            file.writelines(lines)
        done = block.stop
    return load_training_store(folder)


def load_training_store(folder: Path) -> SceneStore:
    """Open the scenes rendered so far, read-only."""
    objects = [json.loads(line) for line in (folder / "objects.jsonl").read_text().splitlines()]
    maps = {
        name: np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)[: len(objects)]
        for name in ("image", "detail", "instance")
    }
    return SceneStore(objects=objects, **maps)


def build_held_out_store(per_category: int, start: int = HELD_OUT) -> SceneStore:
    """Render `per_category` one-object scenes of every category, from outside the training range."""
    rows = [render((name,), index) for name in sorted(CATEGORIES) for index in range(start, start + per_category)]
    image, detail, instance, objects = zip(*rows, strict=True)
    return SceneStore(np.stack(image), np.stack(detail), np.stack(instance), objects)
