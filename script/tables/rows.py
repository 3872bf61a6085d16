"""The rows of the paper's tables and of the ablations: which prompt is learned where, and which test it is given.

A row is one test. Rows that need the same prompt share its training. Everything a row does is a config file and KEY
VALUE settings, so that each can be run by hand with train.py and test.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from config import ConfigError, load_config, resolve_path

TESTED = {"pfpascal": "PF-Pascal", "pfwillow": "PF-Willow", "spair": "SPair-71k"}
CPM = "Pair-DINO-Feat-G25-C50"
SWEEP = "test_timestep"  # a name beside those of the tables: the paper's figure of accuracy over the timestep
PICTURES = "pictures"  # another: match lines and correlation maps of a few pairs under several prompts
SHOWN = ("text/spair", "single-spair/spair", "cpm-spair/spair")  # rows whose prompts these two show


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


@dataclass(frozen=True)
class Line:
    """A line of a table: a label and its row for each test set."""

    label: str
    rows: dict[str, Row]


@dataclass(frozen=True)
class Column:
    title: str
    test_on: str
    alpha: float
    category: str = "all"


@dataclass(frozen=True)
class Table:
    name: str
    title: str
    lines: tuple[Line, ...]
    columns: tuple[Column, ...]
    note: str = ""
    by_category: bool = False  # a column for each category before "all"

    @property
    def rows(self) -> list[Row]:
        return [row for line in self.lines for row in line.rows.values()]


@dataclass(frozen=True)
class World:
    """Where rows run: the real benchmarks, or the mini world.

    root: everything is written below it. opts: settings of every row. untuned: settings of the tests of prompts in
    words. comparable: whether the paper's numbers are a yardstick.
    """

    name: str
    root: str
    opts: tuple[str, ...] = ()
    untuned: tuple[str, ...] = ()
    comparable: bool = True
    only: tuple[str, ...] = ()  # keys of the rows that are run; () = all
    timesteps: tuple[int, ...] = (0, 50, 100, 150, 200, 261, 300, 400, 500)  # of the sweep

    def config_file(self, row: Row) -> str:
        """Relative to the repository's root."""
        return f"config/{'mini' if self.name == 'mini' else row.train_on or 'spair'}/{row.config}.yaml"


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
    root="asset/mini/smoke",
    opts=(*MINI.opts, "DATASET.CATEGORY", "dog", "TRAIN.MAX_STEPS", "3", "TEST.ENSEMBLE", "1", "VAL.PICTURES", "0"),
    only=("text/spair", "cpm-spair/spair"),
    timesteps=(0, 50),
)


def list_settings(row: Row, world: World, seed: int = 0, more: Sequence[str] = ()) -> list[str]:
    """KEY VALUE settings of the row's training and test, but for the data set of the latter."""
    parts = [world.root, row.folder, f"seed{seed}" if seed else ""]
    root = "/".join(part for part in parts if part)
    shared = [] if root == world.root else ["CACHE_ROOT", f"{world.root}/asset"]
    where = ["OUTPUT_ROOT", root, "SEED", str(seed), *shared]
    dataset = ["DATASET.NAME", row.train_on or row.test_on]
    return [*where, *dataset, *world.opts, *row.opts, *more]


def list_test_settings(row: Row, world: World, seed: int = 0, more: Sequence[str] = ()) -> list[str]:
    """KEY VALUE settings of the row's test, but for PROMPT.TYPE of a learned prompt."""
    untuned = world.untuned if row.config == "base" else ()
    settings = list_settings(row, world, seed, (*untuned, *row.test_opts, *more))
    return [*settings, "DATASET.NAME", row.test_on]


def load_row(row: Row, world: World, seed: int = 0, more: Sequence[str] = ()) -> tuple[object | None, object]:
    """(config of the training or None, config of the test). ConfigError for a file or key that is not there."""
    file = world.config_file(row)
    if not Path(resolve_path(file)).is_file():
        raise ConfigError(f"{file} is not there")
    test_settings = list_test_settings(row, world, seed, more)
    if not row.train_on:
        return None, load_config(file, test_settings)
    from model.prompt.build import name_trained

    train_cfg = load_config(file, list_settings(row, world, seed, more))
    prompt = str(name_trained(train_cfg))
    return train_cfg, load_config(file, [*test_settings, "PROMPT.TYPE", prompt])


def build_tables(world: World) -> dict[str, Table]:
    """Every table by name."""
    base, single = (load_config(world.config_file(Row("", name, "spair"))) for name in ("base", "sd4match_single"))
    tables = (
        _main_table(),
        _category_table(),
        _generalisation_table(),
        _cpm_table(),
        _variant_table(),
        _init_table(single.PROMPT.INIT),
        _length_table(),
        _train_timestep_table(base.TRAIN.TIMESTEP),
        _size_table(*base.DATASET.IMAGE_SIZE),
        _layer_table(base.METHOD.LAYER),
    )
    return {table.name: table for table in tables}


def unique_rows(tables: Iterable[Table]) -> list[Row]:
    """The rows of some tables, each once."""
    return list({row.key: row for table in tables for row in table.rows}.values())


def _untuned(prompt: str, *test_opts: str, key: str = "", data: Iterable[str] = TESTED) -> dict[str, Row]:
    """The rows of a prompt in words, "text" or "empty", on Stable Diffusion (DIFT)."""
    opts = ("PROMPT.TYPE", prompt, *test_opts)
    return {name: Row(f"{key or prompt}/{name}", "base", name, test_opts=opts) for name in data}


def _baseline(config: str, *test_opts: str) -> dict[str, Row]:
    """The rows of a matcher that has a config file of its own and learns nothing."""
    return {name: Row(f"{config}/{name}", config, name, test_opts=test_opts) for name in TESTED}


def _learned(
    method: str, train_on: str, *opts: str, key: str = "", folder: str = "", data=("spair",)
) -> dict[str, Row]:
    """The rows of a learned prompt; `method` is single, class or cpm."""
    key = key or f"{method}-{train_on}"
    return {name: Row(f"{key}/{name}", f"sd4match_{method}", name, train_on, opts, folder=folder) for name in data}


def _cpm(variant: str) -> dict[str, Row]:
    """A CPM variant trained and tested on SPair; the default is the row of the other tables."""
    key = "" if variant == CPM else f"cpm-{variant}"
    return _learned("cpm", "spair", *(() if variant == CPM else ("PROMPT.CPM", variant)), key=key)


def _columns(alphas: dict[str, Sequence[float]]) -> tuple[Column, ...]:
    return tuple(Column(f"@{alpha:g}", name, alpha) for name, values in alphas.items() for alpha in values)


def _all_columns() -> tuple[Column, ...]:
    return _columns({"pfpascal": (0.05, 0.1, 0.15), "pfwillow": (0.05, 0.1, 0.15), "spair": (0.05, 0.1)})


SPAIR = _columns({"spair": (0.05, 0.1, 0.15)})


def _usual(method: str) -> dict[str, Row]:
    """Trained on PF-Pascal for the PF data sets and on SPair for SPair."""
    return _learned(method, "pfpascal", data=("pfpascal", "pfwillow")) | _learned(method, "spair")


def _main_table() -> Table:
    lines = (
        Line("DINOv1", _baseline("dinov1")),
        Line("DINOv2", _baseline("dinov2")),
        Line("DIFT, text prompt", _untuned("text")),
        Line("DIFT, empty prompt", _untuned("empty")),
        Line("SD+DINO", _baseline("sd_dino")),
        Line("CleanDIFT", _baseline("cleandift", "TEST.ENSEMBLE", "1")),
        Line("SD4Match-Single", _usual("single")),
        Line("SD4Match-Class", _learned("class", "spair")),
        Line("SD4Match-CPM", _usual("cpm")),
    )
    note = "Learned prompts are trained on PF-Pascal for PF-Pascal and PF-Willow, and on SPair-71k for SPair-71k."
    return Table("table1", "Table 1: main comparison", lines, _all_columns(), note)


def _category_table() -> Table:
    lines = (
        Line("DIFT, text prompt", _untuned("text", data=("spair",))),
        Line("SD4Match-Single", _learned("single", "spair")),
        Line("SD4Match-Class", _learned("class", "spair")),
        Line("SD4Match-CPM", _learned("cpm", "spair")),
    )
    title = "Table 2: SPair-71k by category, PCK@0.1"
    return Table("table2", title, lines, (Column("all", "spair", 0.1),), by_category=True)


def _generalisation_table() -> Table:
    lines = tuple(
        Line(f"{name}, trained on {TESTED[train_on]}", _learned(method, train_on, data=TESTED))
        for train_on in ("pfpascal", "spair")
        for name, method in (("SD4Match-Single", "single"), ("SD4Match-CPM", "cpm"))
    )
    return Table("table3", "Table 3: generalisation", lines, _all_columns())


def _cpm_table() -> Table:
    lines = (
        Line("Pair + Feat (default)", _cpm(CPM)),
        Line("Pair + Head", _cpm("Pair-DINO-Head-G25-C50")),
        Line("Img + Feat", _cpm("Img-DINO-Feat-G25-C50")),
        Line("Img + Head", _cpm("Img-DINO-Head-G25-C50")),
        Line("no global prompt", _cpm("Pair-DINO-Feat-G0-C50")),
        Line("no layer across patches", _cpm(f"{CPM}-noN")),
    )
    return Table("table4", "Table 4: ablation of the conditional prompting module", lines, SPAIR)


def _variant_table() -> Table:
    kinds = [(s, n, f) for n in ("DINO", "CLIP") for s in ("Pair", "Img") for f in ("Feat", "Head")]
    lines = tuple(Line(" ".join(kind), _cpm("-".join((*kind, "G25", "C50")))) for kind in kinds)
    return Table("variants", "Every variant of the conditional prompting module", lines, SPAIR)


def _init_table(default: str) -> Table:
    starts = (
        ("random", "random words", "random"),
        ("empty", "empty string", "empty"),
        ("object", '"a photo of an object"', "text:a photo of an object"),
    )

    def rows(name: str, init: str) -> dict[str, Row]:
        if init == default:
            return _learned("single", "spair")
        return _learned("single", "spair", "PROMPT.INIT", init, key=f"single-init-{name}", folder=f"init-{name}")

    lines = tuple(Line(f"{label}{' (default)' * (init == default)}", rows(name, init)) for name, label, init in starts)
    return Table("init", "Start of the Single prompt", lines, SPAIR)


def _length_table() -> Table:
    lengths = [
        Line(f"Single, {n} tokens", _learned("single", "spair", "PROMPT.LENGTH", str(n), key=f"single-{n}"))
        for n in (10, 25, 50)
    ]
    splits = [
        Line(f"CPM, G {g} + C {c}", _cpm(f"Pair-DINO-Feat-G{g}-C{c}"))
        for g, c in ((0, 75), (25, 25), (25, 50), (50, 25))
    ]
    lines = (*lengths, Line("Single, 75 tokens (default)", _learned("single", "spair")), *splits)
    return Table("length", "Number of learned tokens", lines, SPAIR)


def _train_timestep_table(default: int) -> Table:
    def rows(t: int) -> dict[str, Row]:
        if t == default:
            return _learned("single", "spair")
        name = f"train-t{t}"
        return _learned("single", "spair", "TRAIN.TIMESTEP", str(t), key=f"single-{name}", folder=name)

    timesteps = sorted({0, 50, 100, 200, 261, 400, default})
    lines = tuple(Line(f"trained at t = {t}{' (default)' * (t == default)}", rows(t)) for t in timesteps)
    return Table("train_timestep", "Timestep of training, Single prompt", lines, SPAIR)


def _size_table(height: int, width: int) -> Table:
    def line(factor: float) -> Line:
        size = int(height * factor), int(width * factor)
        opts = () if factor == 1 else ("DATASET.IMAGE_SIZE", str(list(size)))
        rows = _untuned("text", *opts, key="text" if factor == 1 else f"text-{size[0]}", data=("spair",))
        return Line(f"text prompt, {size[0]} x {size[1]} px", rows)

    return Table("image_size", "Size of the images", tuple(line(factor) for factor in (0.5, 1, 2)), SPAIR)


def _layer_table(default: int) -> Table:
    def line(n: int) -> Line:
        opts = () if n == default else ("METHOD.LAYER", str(n))
        rows = _untuned("text", *opts, key="text" if n == default else f"text-layer{n}", data=("spair",))
        return Line(f"text prompt, up-block {n}{' (default)' * (n == default)}", rows)

    return Table("layer", "Block that features are read from", tuple(line(n) for n in range(4)), SPAIR)
