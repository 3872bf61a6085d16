"""Writer of ComVG's layout: a sentence on two objects, a picture it is true of, and one where one thing is changed."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from mini.render.appearance import COLOUR_NAMES
from mini.render.categories import CATEGORIES
from mini.render.files import save, write_csv
from mini.render.relation import RELATIONS, describe
from mini.render.render import Scene, instance_seed, random_size, render_scene
from utils.progress import progress

ITEMS = {"trn": 100, "test": 100}  # of each kind of change
CHANGES = ("subject", "verb", "object")
NEAR = ("above", "on")  # what is on something is above it
COLUMNS = ("id", "sentence", "pos_triplet", "neg_triplet", "pos_image_id", "neg_image_id", "neg_value")
_FILES = {"trn": ("comvg_train.csv", "VG_100K"), "test": ("compositional_visual_genome.csv", "vg_concept")}
_FIRST_INDEX = 400_000
_TRIALS = 1000


@dataclass(frozen=True)
class Statement:
    """Two things, each a colour and a category, and how the first stands to the second."""

    things: tuple[tuple[str, str], tuple[str, str]]
    relation: str

    @property
    def sentence(self) -> str:
        return describe(self.things, self.relation)

    @property
    def triplet(self) -> str:
        first, second = (" ".join(thing) for thing in self.things)
        return f"{first},{self.relation},{second}"


def write_comvg(root: str | Path, items: Mapping[str, int] = ITEMS) -> dict[str, int]:
    """Write `root`/comvg with `items` per split and kind of change; returns the numbers written."""
    base, counts, image_id = Path(root) / "comvg", {}, 0
    for split, count in items.items():
        rng = np.random.default_rng([400, list(items).index(split)])
        table, folder = _FILES[split]
        rows = []
        for number in progress(range(count * len(CHANGES)), f"rendering {split}", unit=" sentences"):
            change = CHANGES[number % len(CHANGES)]
            said = draw_statement(rng)
            other = change_statement(rng, said, change)
            ids = (image_id := image_id + 1, image_id := image_id + 1)
            scenes = render_statements(split, _FIRST_INDEX + number, (said, other))
            for picture, scene in zip(ids, scenes, strict=True):
                path = base / "Visual_Genome" / folder / f"{picture}.jpg"
                save(Image.fromarray(scene.image), path, quality=95)
            rows.append((number, said.sentence, said.triplet, other.triplet, *ids, change))
        write_csv(base / "data" / table, COLUMNS, rows)
        counts[split] = len(rows)
    return {"images": image_id, **counts}


def draw_statement(rng: np.random.Generator) -> Statement:
    """Two categories in two colours, in some relation."""
    names = _choose(rng, tuple(CATEGORIES), 2)
    return Statement(tuple(zip(_choose(rng, COLOUR_NAMES, 2), names, strict=True)), _choose(rng, RELATIONS)[0])


def change_statement(rng: np.random.Generator, said: Statement, change: str) -> Statement:
    """The statement with another relation ("verb"), or another colour or category of its subject or object."""
    if change == "verb":
        like = NEAR if said.relation in NEAR else (said.relation,)
        return replace(said, relation=_choose(rng, RELATIONS, without=like)[0])
    place, things = CHANGES.index(change) // 2, list(said.things)
    colour, name = things[place]
    if rng.random() < 0.5:
        things[place] = (_choose(rng, COLOUR_NAMES, without=tuple(c for c, _ in things))[0], name)
    else:
        things[place] = (colour, _choose(rng, tuple(CATEGORIES), without=tuple(n for _, n in things))[0])
    return replace(said, things=tuple(things))


def render_statements(split: str, index: int, statements: Sequence[Statement]) -> list[Scene]:
    """Pictures of instance `index`, of each of which a statement is true; alike in everything that none says."""
    whole = instance_seed(split, "person", index)
    size = random_size(whole)
    for trial in range(_TRIALS):
        seed = np.random.SeedSequence(whole.entropy, spawn_key=(trial,))
        with contextlib.suppress(ValueError):  # a statement that does not come true in these places
            return [_render_statement(seed, size, statement) for statement in statements]
    raise ValueError(f"no pictures of {statements} in {_TRIALS} trials")


def _render_statement(seed: np.random.SeedSequence, size: tuple[int, int], statement: Statement) -> Scene:
    (first, a), (second, b) = statement.things
    options = {"colours": (first, second), "relation": statement.relation, "occlude": 0, "truncate": 0}
    return render_scene(seed, (a, b), size, **options, steady=True, attempts=1)


def _choose(rng: np.random.Generator, options: Sequence[str], count: int = 1, without: Sequence[str] = ()) -> list[str]:
    left = [option for option in options if option not in without]
    return [left[i] for i in rng.choice(len(left), size=count, replace=False)]
