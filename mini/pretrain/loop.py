"""One training loop for every network: warm-up, cosine decay, averaged weights, checkpoints and a log."""

import json
import math
import time
from collections import defaultdict
from collections.abc import Callable
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from mini.pretrain.process import first_process_first
from utils.progress import progress
from utils.store import atomic_path

Scores = dict[str, float]


def load_as_float32(folder: Path) -> None:
    """Let transformers load a saved half-precision network in single precision: CPUs are slow in half."""
    change_config(folder, dtype="float32")


def change_config(folder: Path, without: tuple[str, ...] = (), **values: str) -> None:
    """Set entries of a saved network's configuration, and take out those called in `without`."""
    path = folder / "config.json"
    config = json.loads(path.read_text()) | values
    kept = {key: value for key, value in config.items() if key not in without}
    path.write_text(json.dumps(kept, indent=2, sort_keys=True) + "\n")


@dataclass(frozen=True)
class Schedule:
    """How long and how fast to train."""

    samples: int
    batch: int  # over all processes
    lr: float
    warmup: int = 2000  # samples
    weight_decay: float = 0.01
    ema: float = 0.998  # per step
    reports: int = 20  # evaluations, each with a checkpoint; there are ten times as many checkpoints
    seed: int = 0

    @property
    def steps(self) -> int:
        return math.ceil(self.samples / self.batch)

    @property
    def local_batch(self) -> int:
        """Samples of this process per step."""
        return self.batch // (dist.get_world_size() if dist.is_initialized() else 1)

    def learning_rate(self, step: int) -> float:
        """Return the rate of step `step`, counted from 0."""
        cosine = 0.5 * (1 + math.cos(math.pi * step / self.steps))
        return self.lr * min(1.0, (step + 1) * self.batch / self.warmup) * (0.02 + 0.98 * cosine)


class Run:
    """The state of one training run, kept in `folder/<name>.pt`."""

    def __init__(self, name: str, networks: nn.Module, schedule: Schedule, folder: Path):
        self.name, self.schedule, self.networks = name, schedule, networks
        self.average = deepcopy(networks).requires_grad_(False).eval()
        self.optimizer = torch.optim.AdamW(_parameter_groups(networks, schedule.weight_decay), lr=schedule.lr)
        self.checkpoint = folder / f"{name}.pt"
        self.step, self.minutes, self.log = 0, 0.0, []
        self.rank, self.processes = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)

    def resume(self) -> None:
        """Load the last checkpoint if there is one. Raises ValueError if it belongs to another schedule."""
        if not self.checkpoint.exists():
            return
        state = torch.load(self.checkpoint, map_location="cpu", weights_only=True)
        if state["schedule"] != asdict(self.schedule) or state["processes"] != self.processes:
            raise ValueError(f"{self.checkpoint} was made by another recipe: remove it, or choose another --work")
        for name in ("networks", "average", "optimizer"):
            getattr(self, name).load_state_dict(state[name])
        self.step, self.minutes, self.log = state["step"], state["minutes"], state["log"]

    def save(self) -> None:
        """Write the checkpoint."""
        state = {name: getattr(self, name).state_dict() for name in ("networks", "average", "optimizer")}
        state |= {"step": self.step, "minutes": self.minutes, "log": self.log, "processes": self.processes}
        with atomic_path(self.checkpoint, durable=True) as temporary:
            torch.save(state | {"schedule": asdict(self.schedule)}, temporary)

    def update(self, loss: torch.Tensor) -> None:
        """Take one optimiser step with the gradients of all processes, and average the weights."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.schedule.learning_rate(self.step)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if self.processes > 1:
            self._share_gradients()
        nn.utils.clip_grad_norm_(self.networks.parameters(), 1.0)
        self.optimizer.step()
        self.step += 1
        decay = min(self.schedule.ema, (1 + self.step) / (10 + self.step))
        for kept, new in zip(self.average.parameters(), self.networks.parameters(), strict=True):
            kept.lerp_(new.detach(), 1 - decay)

    def _share_gradients(self) -> None:
        gradients = [p.grad for p in self.networks.parameters() if p.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        parts = (flat / self.processes).split([gradient.numel() for gradient in gradients])
        for gradient, mean in zip(gradients, parts, strict=True):
            gradient.copy_(mean.view_as(gradient))

    def report(self, values: Scores) -> None:
        """Add a line to the log."""
        line = {"samples": self.step * self.schedule.batch, "minutes": round(self.minutes, 2)}
        self.log.append(line | {key: round(float(value), 4) for key, value in values.items()})
        print(f"{self.name}: {self.log[-1]}", flush=True)


def read_log(path: Path) -> list[Scores]:
    """Return the reports in a run's checkpoint, oldest first."""
    return torch.load(path, map_location="cpu", weights_only=True)["log"]


def _parameter_groups(networks: nn.Module, weight_decay: float) -> list[dict]:
    trained = [p for p in networks.parameters() if p.requires_grad]
    embeddings = {id(m.weight) for m in networks.modules() if isinstance(m, nn.Embedding)}
    decayed = [p for p in trained if p.ndim > 1 and id(p) not in embeddings]
    chosen = {id(p) for p in decayed}
    rest = [p for p in trained if id(p) not in chosen]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": rest, "weight_decay": 0.0}]


def fit(
    run: Run,
    compute_loss: Callable[[nn.Module, torch.Generator], tuple[torch.Tensor, Scores]],
    evaluate: Callable[[nn.Module], Scores],
    export: Callable[[nn.Module], None],
) -> None:
    """Train to the end of the schedule, then `export` the averaged networks.

    `compute_loss(networks, generator)` draws its batch from the generator, seeded by (seed, step, process), so a
    resumed run sees the batches it would have seen. Several processes (torch.distributed) average their gradients;
    the first of them evaluates and saves.
    """
    schedule = run.schedule
    run.resume()
    report_at = {round(schedule.steps * (i + 1) / schedule.reports) for i in range(schedule.reports)}
    save_every = max(1, schedule.steps // (10 * schedule.reports))
    recent = defaultdict(list)
    done, shown = run.step * schedule.batch, run.rank == 0
    with progress(what=run.name, total=schedule.samples, initial=done, unit=" samples", shown=shown) as bar:
        while run.step < schedule.steps:
            start = time.monotonic()
            draw = run.step * run.processes + run.rank
            generator = torch.Generator().manual_seed(schedule.seed * 1_000_003 + draw)
            run.networks.train()
            loss, parts = compute_loss(run.networks, generator)
            run.update(loss)
            run.minutes += (time.monotonic() - start) / 60
            bar.update(schedule.batch)
            for key, value in parts.items():
                recent[key].append(value)
            if run.rank == 0 and run.step in report_at:
                run.report({key: sum(values) / len(values) for key, values in recent.items()} | evaluate(run.average))
                recent.clear()
            if run.rank == 0 and (run.step in report_at or run.step % save_every == 0):
                run.save()
    with first_process_first():
        if run.rank == 0:
            export(run.average)
