"""The rows of the paper's tables and of the ablations: which prompt is learned where, and which test it is given.

A row is one test. Rows that need the same prompt share its training. Everything a row does is a config file and KEY
VALUE settings, so that each can be run by hand with train.py and test.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from config import ConfigError, load_config, resolve_path

TESTED = {"pfpascal": "PF-Pascal", "pfwillow": "PF-Willow", "spair": "SPair-71k"}
CPM = "Pair-DINO-Feat-G25-C50"
SHOWN = {"text/spair": "text", "single-spair/spair": "Single", "cpm-spair/spair": "CPM"}  # in pictures and the sweep
SWEEP = "test_timestep"  # the table that is drawn as a curve


@dataclass(frozen=True)
class Row:
    """One test of one prompt.

    config: stem of the YAML file. train_on: the data set whose prompt is learned, "" if nothing is. opts: settings of
    training and test; test_opts: of the test alone. folder: below the world's output, for settings that a prompt's
    name does not tell. key: unique, {method}-{train_on}/{test_on}.
    """

    key: str
    config: str
    test_on: str
    train_on: str = ""
    opts: tuple[str, ...] = ()
    test_opts: tuple[str, ...] = ()
    folder: str = ""


Rows = dict[str, Row]  # group of columns, mostly the name of a data set -> row


@dataclass(frozen=True)
class Table:
    """Lines by label, and the alphas of each group of columns."""

    name: str
    title: str
    lines: Mapping[str, Rows]
    alphas: Mapping[str, Sequence[float]]
    note: str = ""
    by_category: bool = False  # a column for each category before "all"
    paper: str = "pck"  # the part of paper.json that has its numbers

    @property
    def rows(self) -> list[Row]:
        return [row for rows in self.lines.values() for row in rows.values()]


@dataclass(frozen=True)
class World:
    """Where rows run: the real benchmarks, or the mini world.

    root: everything is written below it. opts: settings of every row. untuned: settings of the tests of prompts in
    words. comparable: whether the paper's numbers are a yardstick. category: what rows are run on, "all" or one.
    """

    name: str
    root: str
    opts: tuple[str, ...] = ()
    untuned: tuple[str, ...] = ()
    comparable: bool = True
    category: str = "all"
    only: tuple[str, ...] = ()  # keys of the rows that are run; () = all
    timesteps: tuple[int, ...] = (0, 50, 100, 150, 200, 261, 300, 400, 500)  # of the sweep

    @property
    def smoke(self) -> bool:
        """Whether the numbers are none: a few steps on one category."""
        return self.category != "all"

    def config_file(self, row: Row) -> str:
        """Relative to the repository's root."""
        return f"config/{row.train_on or 'spair' if self.comparable else 'mini'}/{row.config}.yaml"


REAL = World("real", "asset/sd4match", untuned=("TEST.TIMESTEP", "261"))
MINI = World(
    "mini",
    "asset/mini/reproduce",
    ("CACHE_ROOT", "asset/mini/sd4match/asset"),
    comparable=False,
    timesteps=(0, 50, 100, 200, 300, 500),
)
SMOKE = replace(
    MINI,
    name="smoke",
    root="asset/mini/smoke",
    opts=(*MINI.opts, "DATASET.CATEGORY", "dog", "TRAIN.MAX_STEPS", "3", "TEST.ENSEMBLE", "1", "VAL.PICTURES", "0"),
    category="dog",
    only=("text/spair", "cpm-spair/spair"),
    timesteps=(0, 50),
)


def list_settings(row: Row, world: World, seed: int = 0, more: Sequence[str] = ()) -> list[str]:
    """KEY VALUE settings of the row's training and test, but for the data set of the latter."""
    parts = [world.root, row.folder, f"seed{seed}" if seed else ""]
    root = "/".join(part for part in parts if part)
    shared = [] if root == world.root else ["CACHE_ROOT", f"{world.root}/asset"]
    where = ["OUTPUT_ROOT", root, "SEED", str(seed), *shared]
    return [*where, "DATASET.NAME", row.train_on or row.test_on, *world.opts, *row.opts, *more]


def list_test_settings(row: Row, world: World, seed: int = 0, more: Sequence[str] = ()) -> list[str]:
    """KEY VALUE settings of the row's test, but for PROMPT.TYPE of a learned prompt."""
    untuned = world.untuned if row.config == "base" else ()
    settings = list_settings(row, world, seed, (*untuned, *row.test_opts, *more))
    return [*settings, "DATASET.NAME", row.test_on]


def load_row(row: Row, world: World, seed: int = 0, more: Sequence[str] = ()) -> tuple[object | None, object]:
    """(config of the training or None, config of the test). ConfigError for a file or key that is not there."""
    if not row.config:
        raise ConfigError("nothing here runs it, its paper reports it")
    file = world.config_file(row)
    if not Path(resolve_path(file)).is_file():
        raise ConfigError(f"{file} is not there")
    test_settings = list_test_settings(row, world, seed, more)
    if not row.train_on:
        return None, load_config(file, test_settings)
    from model.method import find_method
    from model.method.base import WEIGHTS_FILE

    train_cfg = load_config(file, list_settings(row, world, seed, more))
    method = find_method(train_cfg.METHOD.NAME)
    key = "METHOD.WEIGHTS" if WEIGHTS_FILE in method.FILES else "PROMPT.TYPE"
    return train_cfg, load_config(file, [*test_settings, key, method.name_learned(train_cfg)])


def unique_rows(tables: Iterable[Table]) -> list[Row]:
    """Each row once, in the order of the tables."""
    return list({row.key: row for table in tables for row in table.rows}.values())


def build_tables(world: World) -> dict[str, Table]:
    """Every table by name."""
    base, single = (load_config(world.config_file(Row("", name, "spair"))) for name in ("base", "sd4match_single"))
    usual = {"pfpascal": (0.05, 0.1, 0.15), "pfwillow": (0.05, 0.1, 0.15), "spair": (0.05, 0.1)}
    spair, text = {"spair": usual["pfpascal"]}, _untuned("text")
    starts = {"random words": "random", "empty string": "empty", '"a photo of an object"': "text:a photo of an object"}
    splits = ((0, 75), (25, 25), (25, 50), (50, 25))
    timesteps = sorted({0, 50, 100, 200, 261, 400, single.TRAIN.TIMESTEP})
    sides = [tuple(int(side * factor) for side in base.DATASET.IMAGE_SIZE) for factor in (0.5, 1, 2)]
    sizes = {f"text prompt, {h} x {w} px": (h, w) for h, w in sides}
    blocks = {f"text prompt, up-block {n}": n for n in range(4)}

    def start(init: str) -> Rows:
        return _variant("single", f"init-{init.split()[-1]}", "PROMPT.INIT", init, named=False)

    def length(n: int) -> Rows:
        return _variant("single", str(n), "PROMPT.LENGTH", str(n))

    def trained_at(t: int) -> Rows:
        return _variant("single", f"train-t{t}", "TRAIN.TIMESTEP", str(t), named=False)

    def resized(size: tuple[int, int]) -> Rows:
        return _untuned("text", "DATASET.IMAGE_SIZE", str(list(size)), key=f"text-{size[0]}")

    def read_from(layer: int) -> Rows:
        return _untuned("text", "METHOD.LAYER", str(layer), key=f"text-layer{layer}")

    tables = (
        Table(
            "table1",
            "Table 1: main comparison",
            {
                "DINOv1": _baseline("dinov1"),
                "DINOv2": _baseline("dinov2"),
                "DIFT, text prompt": _untuned("text", data=TESTED),
                "DIFT, empty prompt": _untuned("empty", data=TESTED),
                "SD+DINO": _baseline("sd_dino"),
                "CleanDIFT": _baseline("cleandift", "TEST.ENSEMBLE", "1"),
                "SD4Match-Single": _usual("single"),
                "SD4Match-Class": _learned("class"),
                "SD4Match-CPM": _usual("cpm"),
            },
            usual,
            "Learned prompts are trained on PF-Pascal for PF-Pascal and PF-Willow, and on SPair-71k for SPair-71k.",
        ),
        Table(
            "table2",
            "Table 2: SPair-71k by category, PCK@0.1",
            {
                "DIFT, text prompt": _untuned("text"),
                "SD4Match-Single": _learned("single"),
                "SD4Match-Class": _learned("class"),
                "SD4Match-CPM": _learned("cpm"),
            },
            {"spair": (0.1,)},
            by_category=True,
        ),
        Table(
            "table3",
            "Table 3: generalisation",
            {
                f"SD4Match-{name}, trained on {TESTED[train_on]}": _learned(name.lower(), train_on, data=TESTED)
                for train_on in ("pfpascal", "spair")
                for name in ("Single", "CPM")
            },
            usual,
        ),
        Table(
            "table4",
            "Table 4: ablation of the conditional prompting module",
            {
                "Pair + Feat (default)": _cpm(CPM),
                "Pair + Head": _cpm("Pair-DINO-Head-G25-C50"),
                "Img + Feat": _cpm("Img-DINO-Feat-G25-C50"),
                "Img + Head": _cpm("Img-DINO-Head-G25-C50"),
                "no global prompt": _cpm("Pair-DINO-Feat-G0-C50"),
                "no layer across patches": _cpm(f"{CPM}-noN"),
            },
            spair,
        ),
        Table(
            "variants",
            "Every variant of the conditional prompting module",
            {
                f"{scope} {network} {feature}": _cpm(f"{scope}-{network}-{feature}-G25-C50")
                for network in ("DINO", "CLIP")
                for scope in ("Pair", "Img")
                for feature in ("Feat", "Head")
            },
            spair,
        ),
        Table(
            "init", "Start of the Single prompt", _vary(starts, single.PROMPT.INIT, _learned("single"), start), spair
        ),
        Table(
            "length",
            "Number of learned tokens",
            _vary({f"Single, {n} tokens": n for n in (10, 25, 50, 75)}, 75, _learned("single"), length)
            | {f"CPM, G {g} + C {c}": _cpm(f"Pair-DINO-Feat-G{g}-C{c}") for g, c in splits},
            spair,
        ),
        Table(
            "train_timestep",
            "Timestep of training, Single prompt",
            _vary({f"trained at t = {t}": t for t in timesteps}, single.TRAIN.TIMESTEP, _learned("single"), trained_at),
            spair,
        ),
        Table("image_size", "Size of the images", _vary(sizes, tuple(base.DATASET.IMAGE_SIZE), text, resized), spair),
        Table("layer", "Block that features are read from", _vary(blocks, base.METHOD.LAYER, text, read_from), spair),
        Table(
            SWEEP,
            "Accuracy over the timestep of the test, SPair-71k's validation pairs",
            {f"t = {t}": _at_timestep(t) for t in world.timesteps},
            dict.fromkeys(("text", "Single", "CPM"), (0.1,)),
        ),
    )
    from script.tables.further import list_further_tables
    from script.tables.ldm import list_ldm_tables

    return {table.name: table for table in (*tables, *list_further_tables(world), *list_ldm_tables(world))}


def _untuned(prompt: str, *opts: str, key: str = "", data: Iterable[str] = ("spair",)) -> Rows:
    """The rows of a prompt in words; key: if its settings are not the usual ones."""
    opts = ("PROMPT.TYPE", prompt, *opts)
    return {name: Row(f"{key or prompt}/{name}", "base", name, test_opts=opts) for name in data}


def _baseline(config: str, *test_opts: str) -> Rows:
    """The rows of a method that has a config file of its own and learns nothing."""
    return {name: Row(f"{config}/{name}", config, name, test_opts=test_opts) for name in TESTED}


def _learned(
    method: str, train_on: str = "spair", *opts: str, key: str = "", folder: str = "", data: Iterable[str] = ("spair",)
) -> Rows:
    """The rows of a learned prompt; `method` is single, class or cpm."""
    key = key or f"{method}-{train_on}"
    return {name: Row(f"{key}/{name}", f"sd4match_{method}", name, train_on, opts, folder=folder) for name in data}


def _usual(method: str) -> Rows:
    """Trained on PF-Pascal for the PF data sets and on SPair for SPair."""
    return _learned(method, "pfpascal", data=("pfpascal", "pfwillow")) | _learned(method)


def _variant(method: str, name: str, *opts: str, named: bool = True) -> Rows:
    """A learned prompt with other settings; named: whether the prompt's own name tells them."""
    return _learned(method, "spair", *opts, key=f"{method}-{name}", folder="" if named else name)


def _cpm(variant: str) -> Rows:
    """A CPM variant trained and tested on SPair; the default is the row of the other tables."""
    return _learned("cpm") if variant == CPM else _variant("cpm", variant, "PROMPT.CPM", variant)


def _vary(choices: Mapping[str, Any], default: Any, usual: Rows, other: Callable[[Any], Rows]) -> dict[str, Rows]:
    """A line for each choice (label -> value); the default's is the row of the other tables."""
    return {
        f"{label} (default)" if value == default else label: usual if value == default else other(value)
        for label, value in choices.items()
    }


def _at_timestep(t: int) -> Rows:
    """The three prompts of the paper's figure on validation pairs."""
    opts = ("TEST.TIMESTEP", str(t), "TEST.SPLIT", "val")
    prompts = {"text": _untuned("text"), "Single": _learned("single"), "CPM": _learned("cpm")}
    rows = {name: rows["spair"] for name, rows in prompts.items()}
    return {
        name: replace(row, key=f"{row.key.split('/')[0]}-t{t}/spair-val", test_opts=(*row.test_opts, *opts))
        for name, row in rows.items()
    }
