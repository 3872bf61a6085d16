"""The commands of a row, and its result once that is there."""

from __future__ import annotations

import glob
import json
import shlex
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from config import ROOT, WITHOUT_EFFECT, ConfigError, iter_keys
from dataset.pair_dataset import PairDataset
from engine.build import build_pairs, find_folder, find_output
from engine.check import check_config
from engine.errors import USER_ERRORS
from engine.identity import find_result, what_makes_result
from engine.report import build_result_stem
from engine.result import read_summary
from engine.task import task_of
from model.prompt.store import META_FILE, TENSOR_FILES
from script.tables.rows import SHOWN, Row, World, list_settings, list_test_settings, load_row

OF_TRAINING = (
    "LOSS.",
    "TRAIN.",
    "VAL.",
    "GEOAWARE.",
    *(f"PROMPT.{name}" for name in ("KIND", "SPACE", "LENGTH", "CPM", "INIT")),
)


@dataclass(frozen=True)
class Job:
    """A row with one seed, and its two configs; training is None if nothing is learned."""

    row: Row
    world: World
    seed: int
    more: tuple[str, ...]
    training: Any
    test: Any

    @property
    def prompt_folder(self) -> Path:
        return find_output(self.test) / "prompt" / (self.test.METHOD.WEIGHTS or self.test.PROMPT.TYPE)

    @property
    def is_learned(self) -> bool:
        """Whether train.py is asked; it goes on, or says that it is finished. A prompt of the authors is left alone."""
        there = any((self.prompt_folder / name).is_file() for name in TENSOR_FILES)
        return self.training is not None and not (there and not (self.prompt_folder / META_FILE).is_file())

    @cached_property
    def scores(self) -> pd.DataFrame | None:
        """What the row's test has found, if it is finished: made by these settings, networks, data and weights."""
        stem = build_result_stem(self.test)
        if not list(stem.parent.glob(f"{glob.escape(stem.name)}*.json")):  # nothing to compare with
            return None
        try:
            made_by = what_makes_result(self.test, _open_pairs(self.test), download=False)
            if self.test.PRECISION == "auto":  # it may have been tested on a machine that has another
                del made_by["PRECISION"]
            place = find_result(stem, made_by)
            if place is None or (self.is_learned and not self._learned_alike(read_summary(f"{place}.json")["config"])):
                return None
            return task_of(self.test).read_scores(place)
        except USER_ERRORS:  # a result that is damaged, or something of it that is not here
            return None

    def _learned_alike(self, config: dict[str, Any]) -> bool:
        wanted = json.loads(json.dumps(dict(iter_keys(self.test))))
        read = [key for key in wanted if key.startswith(OF_TRAINING) and not key.startswith(WITHOUT_EFFECT)]
        return all(config.get(key) == wanted[key] for key in read)

    def list_commands(self) -> list[list[str]]:
        """The training, if there is one, and the test."""
        file, settings = ["--config_file", self.world.config_file(self.row)], (self.world, self.seed, self.more)
        train = ["train.py", *file, *list_settings(self.row, *settings)]
        test = ["test.py", *file, *list_test_settings(self.row, *settings)]
        test += ["PROMPT.TYPE", self.test.PROMPT.TYPE]
        test += ["METHOD.WEIGHTS", self.test.METHOD.WEIGHTS] if self.test.METHOD.WEIGHTS else []
        return [train, test] if self.is_learned else [test]


_OPEN: dict[tuple, PairDataset] = {}


def _open_pairs(cfg) -> PairDataset:
    """The tested pairs; rows of the same share them, so that they are read once."""
    key = (str(find_folder(cfg)), cfg.TEST.SPLIT, cfg.DATASET.CATEGORY, str(cfg.DATASET))
    if key not in _OPEN:
        _OPEN[key] = build_pairs(cfg, cfg.TEST.SPLIT)
    return _OPEN[key]


def make_jobs(
    rows: Iterable[Row], world: World, seeds: Iterable[int], more: Sequence[str]
) -> tuple[list[Job], dict[str, str]]:
    """The jobs that can be run here, and for the other rows why not."""
    jobs, impossible = [], {}
    for seed in seeds:
        for row in rows:
            try:
                job = Job(row, world, seed, tuple(more), *load_row(row, world, seed, more))
                _refuse_missing(job)
                jobs.append(job)
            except ConfigError as error:
                impossible[row.key] = " ".join(str(error).replace(f"{ROOT}/", "").split())
    return jobs, impossible


def _refuse_missing(job: Job) -> None:
    for cfg, training in ((job.test, False), (job.training, True)):
        if cfg is not None:
            check_config(cfg, training)
    if not (folder := find_folder(job.test)).is_dir():
        raise ConfigError(f"{folder} is not there")
    if "-CLIP-" in job.test.PROMPT.TYPE and not job.world.comparable:
        raise ConfigError("the mini world has no CLIP network")


def list_lines(jobs: Sequence[Job], launcher: str) -> Iterator[str]:
    """A shell line for each prompt that has unfinished rows: its training and their tests, one after the other.

    The lines do not depend on each other.
    """
    groups: dict[str, list[list[str]]] = {}
    for job in jobs:
        if job.scores is None:
            name = f"{job.prompt_folder}" if job.is_learned else f"{job.row.key} {job.seed}"
            commands = groups.setdefault(name, [])
            commands += [command for command in job.list_commands() if command not in commands]
    for commands in groups.values():
        yield " && ".join(f"{launcher} {shlex.join(command)}" for command in commands)


def print_commands(jobs: Sequence[Job], impossible: Mapping[str, str], launcher: str) -> None:
    """What is left to do, and on stderr the rows that cannot be run here."""
    for reason, keys in group_reasons(impossible).items():
        print(f"not run: {', '.join(keys)}: {reason}", file=sys.stderr)
    for line in list_lines(jobs, launcher):
        print(line)


def group_reasons(reasons: Mapping[str, str]) -> dict[str, list[str]]:
    """Why rows are not run -> these rows."""
    groups: dict[str, list[str]] = {}
    for row, reason in reasons.items():
        groups.setdefault(reason, []).append(row)
    return groups


def list_pictures(jobs: Sequence[Job], launcher: str) -> Iterator[str]:
    """Shell lines that draw two pairs under those prompts of the paper's figures that have been tested."""
    shown = [job for job in jobs if job.row.key in SHOWN and not job.seed and job.scores is not None]
    columns = [
        [SHOWN[job.row.key], "PROMPT.TYPE", job.test.PROMPT.TYPE, "TEST.TIMESTEP", str(job.test.TEST.TIMESTEP)]
        for job in shown
    ]
    for kind in ("matches", "correlation") if shown else ():
        world, more = jobs[0].world, jobs[0].more
        file = world.config_file(Row("", "base", "spair"))
        command = ["script/figure.py", kind, "--config_file", file, "--pairs", "2"]
        for column in columns:
            command += ["--column", *column]
        command += ["--output", f"{world.root}/figure/{kind}.png", "--opts", "OUTPUT_ROOT", world.root]
        yield f"{launcher} {shlex.join([*command, *world.opts, *more])}"
