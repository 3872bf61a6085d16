"""Ablations of SD4Match: one setting is varied, on SPair-71k."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from script.tables.main import ALPHAS, cpm, learned, untuned, variant
from script.tables.rows import Rows, Table, World

SWEEP = "test_timestep"  # the table that is drawn as a curve
TITLES = {
    "variants": "Every variant of the conditional prompting module",
    "init": "Start of the Single prompt",
    "length": "Number of learned tokens",
    "train_timestep": "Timestep of training, Single prompt",
    "image_size": "Size of the images",
    "layer": "Block that features are read from",
}
STARTS = {"random words": "random", "empty string": "empty", '"a photo of an object"': "text:a photo of an object"}
LENGTHS = ((0, 75), (25, 25), (25, 50), (50, 25))  # global, conditional


def list_tables(world: World) -> tuple[Table, ...]:
    base, single = world.load("base"), world.load("sd4match_single")
    text, usual, spair = untuned("text"), learned("single"), {"spair": ALPHAS["pfpascal"]}
    kinds = [(scope, net, part) for net in ("DINO", "CLIP") for scope in ("Pair", "Img") for part in ("Feat", "Head")]
    times = sorted({0, 50, 100, 200, 261, 400, single.TRAIN.TIMESTEP})
    sizes = [tuple(int(side * factor) for side in base.DATASET.IMAGE_SIZE) for factor in (0.5, 1, 2)]

    def start(init: str) -> Rows:
        return variant("single", f"init-{init.split()[-1]}", "PROMPT.INIT", init, named=False)

    def length(n: int) -> Rows:
        return variant("single", str(n), "PROMPT.LENGTH", str(n))

    def train_at(t: int) -> Rows:
        return variant("single", f"train-t{t}", "TRAIN.TIMESTEP", str(t), named=False)

    def resize(size: tuple[int, int]) -> Rows:
        return untuned("text", "DATASET.IMAGE_SIZE", str(list(size)), key=f"text-{size[0]}")

    def read_from(layer: int) -> Rows:
        return untuned("text", "METHOD.LAYER", str(layer), key=f"text-layer{layer}")

    lines = {
        "variants": {" ".join(kind): cpm(f"{'-'.join(kind)}-G25-C50") for kind in kinds},
        "init": _vary(STARTS, single.PROMPT.INIT, usual, start),
        "length": _vary({f"Single, {n} tokens": n for n in (10, 25, 50, 75)}, 75, usual, length)
        | {f"CPM, G {g} + C {c}": cpm(f"Pair-DINO-Feat-G{g}-C{c}") for g, c in LENGTHS},
        "train_timestep": _vary({f"trained at t = {t}": t for t in times}, single.TRAIN.TIMESTEP, usual, train_at),
        "image_size": _vary({f"text prompt, {h} x {w} px": (h, w) for h, w in sizes}, sizes[1], text, resize),
        "layer": _vary({f"text prompt, up-block {n}": n for n in range(4)}, base.METHOD.LAYER, text, read_from),
    }
    sweep = {f"t = {t}": _test_at(t) for t in world.timesteps}
    title = "Accuracy over the timestep of the test, SPair-71k's validation pairs"
    return (
        *(Table(name, TITLES[name], rows, spair) for name, rows in lines.items()),
        Table(SWEEP, title, sweep, dict.fromkeys(("text", "Single", "CPM"), (0.1,))),
    )


def _vary(choices: Mapping[str, Any], default: Any, usual: Rows, other: Callable[[Any], Rows]) -> dict[str, Rows]:
    """A line for each choice (label -> value); the default's is the row of the other tables."""
    return {
        f"{label} (default)" if value == default else label: usual if value == default else other(value)
        for label, value in choices.items()
    }


def _test_at(t: int) -> Rows:
    """The three prompts of the paper's figure on validation pairs."""
    rows = {"text": untuned("text"), "Single": learned("single"), "CPM": learned("cpm")}
    opts = ("TEST.TIMESTEP", str(t), "TEST.SPLIT", "val")
    return {
        name: replace(row, key=f"{row.key.split('/')[0]}-t{t}/spair-val", test_opts=(*row.test_opts, *opts))
        for name, row in ((name, found["spair"]) for name, found in rows.items())
    }
