"""What a benchmark asks for, as the engine sees it. To add a task, write its file and give it a line here.

A benchmark says its task, a task knows how its data are opened, judged, shown and written. Runs, checkpoints, identity,
learner, caches and tables are the same for all.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dataset import BENCHMARKS, Benchmark

if TYPE_CHECKING:
    import pandas as pd
    import torch
    from accelerate import Accelerator
    from matplotlib.figure import Figure
    from torch.utils.data import Dataset

TASKS = {
    "correspondence": "engine.correspondence:Correspondence",
    "ranking": "engine.ranking:Ranking",
}  # "module:class"
Summary = Mapping[str, Any]  # JSON values


class Task:
    """How one kind of benchmark is served.

    A data set of `open` has `benchmark` and `caches`; its records and the scores have an "index" and a "category".
    """

    name: str  # a key of TASKS
    unit: str  # what is counted: "pair", "item"
    nothing: str  # why a validation has no score, if it has none
    key: str  # entry of a summary that holds the measured numbers
    files: tuple[str, ...]  # what follows the stem of a result: tables that `write_scores` writes

    def open(self, cfg, benchmark: Benchmark) -> Dataset:
        """The data set of tensors, still without caches."""
        raise NotImplementedError

    def digest_records(self, benchmark: Benchmark) -> str:
        """16 hex digits of all that the records say, in order."""
        raise NotImplementedError

    def evaluate(self, cfg, method, data: Dataset, accelerator: Accelerator) -> tuple[dict, pd.DataFrame]:
        """Summary and scores, a row per pair or item, over all processes; every process must call this."""
        raise NotImplementedError

    def is_sound(self, summary: Summary) -> bool:
        """Whether a summary that was read back can be true; KeyError or TypeError if something is not there."""
        raise NotImplementedError

    def find_score(self, cfg, summary: Summary) -> float | None:
        """What a validation is judged by, larger is better; None if nothing could be scored."""
        raise NotImplementedError

    def name_score(self, cfg) -> str:
        """What `find_score` is called in a line of text."""
        raise NotImplementedError

    def list_numbers(self, summary: Summary) -> dict[str, float]:
        """What tensorboard shows of a validation, by tag."""
        raise NotImplementedError

    def format_overview(self, summary: Summary) -> str:
        """The numbers over all categories."""
        raise NotImplementedError

    def format_table(self, summary: Summary) -> str:
        """The numbers by category."""
        raise NotImplementedError

    def name_settings(self, cfg) -> list[str]:
        """Words for the name of a result."""
        return []

    def write_scores(self, stem: str | Path, scores: pd.DataFrame) -> None:
        """Write `files` at the stem."""
        raise NotImplementedError

    def read_scores(self, stem: str | Path) -> pd.DataFrame:
        """What `write_scores` wrote there, but for predicted points; ResultError if it was cut or edited."""
        raise NotImplementedError

    def draw(
        self,
        cfg,
        method,
        data: Dataset,
        scores: pd.DataFrame,
        count: int,
        title: str,
        device: torch.device,
        validating: bool = False,
    ) -> list[dict[str, Figure]]:
        """{kind: figure} of each of `count` pairs or items, which `scores` are of, under the method called `title`."""
        raise NotImplementedError


def find_task(name: str) -> Task:
    """The task of that name."""
    module, _, kind = TASKS[name].partition(":")
    return getattr(importlib.import_module(module), kind)()


def task_of(cfg) -> Task:
    """The task of the configured benchmark."""
    return find_task(BENCHMARKS[cfg.DATASET.NAME].task)
