"""Rows of tables, which prompt is learned where and which test it is given; and the table of all tables.

A row is one test. Rows that need the same prompt share its training. Everything a row does is a config file and KEY
VALUE settings, so that each can be run by hand with train.py and test.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from config import ConfigError, load_config, resolve_path

SHOWN = {"text/spair": "text", "single-spair/spair": "Single", "cpm-spair/spair": "CPM"}  # in pictures and the sweep


@dataclass(frozen=True)
class Row:
    """One test of one prompt.

    config: stem of the YAML file, with its folder if that is not named after the training's data set. train_on: the
    data set whose prompt is learned, "" if nothing is. opts: settings of training and test; test_opts: of the test
    alone. folder: below the world's output, for settings that a prompt's name does not tell. key: unique,
    {method}-{train_on}/{test_on}.
    """

    key: str
    config: str
    test_on: str
    train_on: str = ""
    opts: tuple[str, ...] = ()
    test_opts: tuple[str, ...] = ()
    folder: str = ""


Rows = dict[str, Row]  # group of columns, mostly the name of a data set -> row


def list_rows(key: str, config: str, groups: Iterable[str], *test_opts: str, **more) -> Rows:
    """The rows of one method on data sets; config "": of methods that nothing here runs, but their papers report."""
    return {name: Row(f"{key}/{name}", config, name, test_opts=test_opts, **more) for name in groups}


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
    localiser: str = "kernelsoftmax"  # whose numbers it shows unless another is asked for

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
        folder, _, name = row.config.rpartition("/")
        return f"config/{(folder or row.train_on or 'spair') if self.comparable else 'mini'}/{name}.yaml"

    def load(self, config: str):
        """The configuration of a YAML file, given by its stem, for SPair-71k."""
        return load_config(self.config_file(Row("", config, "spair")))


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
    from script.tables import ablation, geoaware, ldm, main

    tables = [table for part in (main, ablation, geoaware, ldm) for table in part.list_tables(world)]
    return {table.name: table for table in tables}
