"""Scenes of the mini world rendered once and shared by every network.

Only images, label maps and object descriptions are kept: no network may see keypoints.
"""

import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mini.pretrain.process import end_with_parent
from mini.render import CATEGORIES, SPECIES, instance_seed, render_scene
from mini.render.detail import CODES
from mini.render.relation import RELATIONS
from utils.progress import progress
from utils.store import write_text

SIZE = (96, 96)
HELD_OUT = 1_000_000  # first index of the scenes no network is trained on
TWO_OBJECTS = 0.35  # share of training scenes with two objects
ARRANGED = 0.7  # share of those whose objects stand in a drawn relation
SPECIES_SHARE = 0.2  # share of the objects that are one of the species
BLOCK = 500  # scenes written at a time
CELL = 4  # image px per feature cell
BASE = 256  # more than any category has ends of parts
MAPS = ("image", "detail", "instance")


@dataclass(frozen=True)
class SceneStore:
    """n scenes; object i (from 1) of a scene is `objects[scene][i - 1]`."""

    image: np.ndarray  # (n, H, W, 3) uint8
    detail: np.ndarray  # (n, H, W) uint8, 0 background, else an end of a part (Scene.detail)
    instance: np.ndarray  # (n, H, W) uint8, 0 background, else object number
    objects: Sequence[Sequence[Mapping[str, str]]]  # category, colour, facing
    relations: Sequence[str | None]  # of the first of two objects to the second

    def __len__(self) -> int:
        return len(self.objects)

    def first(self, count: int) -> "SceneStore":
        """Return the store of the first `count` scenes."""
        return SceneStore(*(getattr(self, name)[:count] for name in (*MAPS, "objects", "relations")))


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


def draw_scene(index: int) -> dict:
    """Return the categories and the relation of training scene `index`, the same at every call."""
    rng = np.random.default_rng([20, index])
    count = 2 if rng.random() < TWO_OBJECTS else 1
    pools = [sorted(SPECIES if rng.random() < SPECIES_SHARE else CATEGORIES) for _ in range(count)]
    names = [pool[rng.integers(len(pool))] for pool in pools]
    if len(set(names)) < count:
        names = names[:1]
    arranged = len(names) == 2 and rng.random() < ARRANGED
    return {"categories": tuple(names), "relation": RELATIONS[rng.integers(len(RELATIONS))] if arranged else None}


def render(index: int, categories: Sequence[str], relation: str | None = None):
    """Return a scene of the pretraining split: its maps, the descriptions of its objects, and their relation."""
    seed = instance_seed("pretrain", categories[0], index)
    scene = render_scene(seed, categories, size=SIZE, relation=relation)
    objects = [{"category": o.category, "colour": o.colour, "facing": o.facing} for o in scene.objects]
    return scene.image, scene.detail, scene.instance, objects, scene.relation


def _render_training(index: int):
    return render(index, **draw_scene(index))


def build_training_store(folder: Path, count: int) -> SceneStore:
    """Render `count` training scenes into `folder`, going on where an earlier call stopped."""
    folder.mkdir(parents=True, exist_ok=True)
    arrays = _open_arrays(folder, count)
    listing = folder / "scenes.json"
    rows = json.loads(listing.read_text()) if listing.exists() else []
    with ProcessPoolExecutor(initializer=end_with_parent) as pool:
        for start in progress(range(len(rows), count, BLOCK), "rendering", unit=f" x {BLOCK} scenes"):
            block = range(start, min(start + BLOCK, count))
            scenes = pool.map(_render_training, block, chunksize=25)
            for index, (*maps, objects, relation) in zip(block, scenes, strict=True):
                for name, value in zip(MAPS, maps, strict=True):
                    arrays[name][index] = value
                rows.append([objects, relation])
            for array in arrays.values():
                array.flush()
            write_text(listing, json.dumps(rows))
    return load_training_store(folder)


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


def load_training_store(folder: Path) -> SceneStore:
    """Open the scenes rendered so far, read-only."""
    objects, relations = zip(*json.loads((folder / "scenes.json").read_text()), strict=True)
    maps = [np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)[: len(objects)] for name in MAPS]
    return SceneStore(*maps, objects, relations)


def build_held_out_store(per_category: int, start: int = HELD_OUT) -> SceneStore:
    """Render `per_category` one-object scenes of every category, from outside the training range."""
    return _stack(render(index, (name,)) for name in sorted(CATEGORIES) for index in range(start, start + per_category))


def build_held_out_pairs(count: int, start: int = HELD_OUT) -> SceneStore:
    """Render `count` scenes of two objects in a plain relation, from outside the training range."""
    scenes = ((index, draw_scene(index)) for index in itertools.count(start))
    arranged = (render(index, **scene) for index, scene in scenes if scene["relation"])
    return _stack(itertools.islice((scene for scene in arranged if scene[-1]), count))


def _stack(scenes: Iterable) -> SceneStore:
    image, detail, instance, objects, relations = zip(*scenes, strict=True)
    return SceneStore(np.stack(image), np.stack(detail), np.stack(instance), objects, relations)
