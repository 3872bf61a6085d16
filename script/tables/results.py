"""Where the rows' results are, whether they are up to date, and what happened to the rows that have none."""

from __future__ import annotations

import fcntl
import hashlib
import json
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from config import WITHOUT_EFFECT, ConfigError, iter_keys, resolve_path
from engine.report import build_result_stem
from engine.result import read_pairs_csv, write_text
from model.backbone.fingerprint import network_fingerprint
from model.method import METHODS
from model.prompt.name import parse_prompt_name
from model.prompt.store import TENSOR_FILES
from model.source import find_condition, find_dino, find_stable_diffusion, find_unet
from script.tables.rows import Row, World, load_row
from utils.pck import Record

STATE_FILE = "rows.json"
TRAINING_ONLY = (
    "LOSS.",
    "TRAIN.",
    "VAL.",
    "PROMPT.KIND",
    "PROMPT.SPACE",
    "PROMPT.LENGTH",
    "PROMPT.CPM",
    "PROMPT.INIT",
)


@dataclass
class State:
    """What the runner has done below a root: for each row its times or why it failed, for each prompt its settings."""

    path: Path
    rows: dict[str, dict[str, Any]] = field(default_factory=dict)
    prompts: dict[str, str] = field(default_factory=dict)

    @classmethod
    def load(cls, root: str) -> State:
        path = Path(resolve_path(root)) / STATE_FILE
        try:
            content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
            return cls(path, dict(content.get("rows", {})), dict(content.get("prompts", {})))
        except (ValueError, TypeError, AttributeError) as error:
            raise ConfigError(f"{path} is damaged ({error}); delete it: finished rows are found again") from error

    def record(self, rows: dict[str, dict[str, Any]] | None = None, prompts: dict[str, str] | None = None) -> None:
        """Add entries and write them; what another thread or process has written meanwhile is kept."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path.with_suffix(".lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            known = State.load(str(self.path.parent))
            self.rows, self.prompts = known.rows | (rows or {}), known.prompts | (prompts or {})
            write_text(self.path, json.dumps({"rows": self.rows, "prompts": self.prompts}, indent=1) + "\n")


@dataclass(frozen=True)
class Job:
    """A row with one seed, and its two configs; training is None if nothing is learned."""

    row: Row
    seed: int
    training: Any
    test: Any

    @property
    def key(self) -> str:
        return f"{self.row.key}@seed{self.seed}" if self.seed else self.row.key

    @property
    def stem(self) -> Path:
        """Of the result's files."""
        return build_result_stem(self.test)

    @property
    def prompt_folder(self) -> Path:
        return Path(resolve_path(self.test.OUTPUT_ROOT)) / "prompt" / self.test.PROMPT.TYPE

    @property
    def prompt_files(self) -> list[Path]:
        """The learned tensors, if they are there."""
        return [path for name in TENSOR_FILES if (path := self.prompt_folder / name).is_file()]


def make_job(row: Row, world: World, seed: int, more: list[str]) -> Job:
    """ConfigError if the row's config file or a key is not there."""
    return Job(row, seed, *load_row(row, world, seed, more))


def is_trained(job: Job, state: State) -> bool:
    """Whether there is nothing (more) to learn: no prompt, a finished one, or one that was not trained here."""
    if job.training is None:
        return True
    if not job.prompt_files:
        return False
    known = state.prompts.get(str(job.prompt_folder))
    if known is None:  # such as a prompt released by the authors: there is no training to go on with
        logs = Path(resolve_path(job.training.OUTPUT_ROOT)) / "log" / job.training.DATASET.NAME
        return not list(logs.glob(f"{job.test.PROMPT.TYPE}_*"))
    return known == digest_training(job)


def find_result(job: Job, state: State) -> list[Record] | None:
    """The per-pair records of the row, or None if there are none, or they were made with other settings,
    weights or an older prompt."""
    table, summary = Path(f"{job.stem}_pairs.csv"), Path(f"{job.stem}.json")
    if not (table.is_file() and summary.is_file()):
        return None
    if job.training is not None and state.prompts.get(str(job.prompt_folder)) not in (None, digest_training(job)):
        return None
    if any(path.stat().st_mtime_ns > table.stat().st_mtime_ns for path in job.prompt_files):
        return None
    try:
        found = json.loads(summary.read_text(encoding="utf-8"))["config"]
        wanted = relevant_settings(job.test, training=job.training is not None)
    except (ValueError, KeyError, TypeError):
        return None
    if any(key in found and found[key] != value for key, value in wanted.items()):
        return None
    weights = state.rows.get(job.key, {}).get("weights")
    if weights not in (None, digest_weights(job.test, job.test.PROMPT.TYPE)):
        return None
    try:
        return read_pairs_csv(table)
    except ValueError:
        return None


def relevant_settings(cfg, training: bool) -> dict[str, Any]:
    """What a result depends on, as JSON reads it back."""
    left_out = () if training else TRAINING_ONLY
    settings = {
        key: value for key, value in iter_keys(cfg) if key not in WITHOUT_EFFECT and not key.startswith(left_out)
    }
    return json.loads(json.dumps(settings))


def digest_training(job: Job) -> str:
    """Changes whenever the training has to be done again, or to be gone on with."""
    settings = relevant_settings(job.training, training=True)
    settings = {key: value for key, value in settings.items() if not key.startswith(("TEST.", "PROMPT.TYPE"))}
    text = json.dumps([settings, digest_weights(job.training, job.test.PROMPT.TYPE)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def digest_weights(cfg, prompt: str) -> str:
    """Identifies the weights of the networks that a prompt's test runs; "" if not all are on this machine."""
    entry, condition, networks = METHODS[cfg.METHOD.NAME], parse_prompt_name(prompt).condition, []
    try:
        if entry.takes_prompt:
            where = find_stable_diffusion(cfg) | find_unet(cfg)
            networks.append(_fingerprint(("vae", "unet", "text_encoder"), cfg.SEED, **where))
        if "dino" in entry.reads:
            networks.append(_fingerprint(("",), cfg.SEED, **find_dino(cfg)))
        if condition:
            networks.append(_fingerprint(("",), cfg.SEED, **find_condition(cfg, condition)))
    except FileNotFoundError:
        return ""
    return "-".join(networks)


@cache
def _fingerprint(parts: tuple[str, ...], seed: int, **network: str) -> str:
    return network_fingerprint(parts=parts, seed=seed, **network)
