"""One training loop for every network: warm-up, cosine decay, averaged weights, checkpoints and a log."""

import json
import math
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

Scores = dict[str, float]


@contextmanager
def first_process_first() -> Iterator[None]:
    """Let the first process make a file that the others then find."""
    rank = dist.get_rank() if dist.is_initialized() else 0
    if rank > 0:
        dist.barrier()
    yield
    if rank == 0 and dist.is_initialized():
        dist.barrier()


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
    """How long and how fast to train; the run ends at `samples` or after `minutes`, whichever comes first."""

    samples: int | None
    minutes: float | None
    batch: int  # over all processes
    lr: float
    warmup: int = 2000  # samples
    weight_decay: float = 0.01
    ema: float = 0.998  # per step
    report_minutes: float = 4.0  # between two evaluations and checkpoints
    seed: int = 0

    def __post_init__(self) -> None:
        if self.samples is None and self.minutes is None:
            raise ValueError("a schedule needs a budget: samples, minutes or both")

    @property
    def local_batch(self) -> int:
        """Samples of this process per step."""
        return self.batch // (dist.get_world_size() if dist.is_initialized() else 1)

    def progress(self, samples: int, minutes: float) -> float:
        """Return the share of the budget used up, in [0, 1]."""
        shares = [
            samples / self.samples if self.samples else 0.0,
            minutes / self.minutes if self.minutes else 0.0,
        ]
        return min(1.0, max(shares))

    def learning_rate(self, samples: int, minutes: float) -> float:
        """Return the rate after `samples` samples and `minutes` minutes."""
        cosine = 0.5 * (1 + math.cos(math.pi * self.progress(samples, minutes)))
        return self.lr * min(1.0, (samples + self.batch) / self.warmup) * (0.02 + 0.98 * cosine)


class Run:
    """The state of one training run, saved to `folder/<name>.pt` and logged to `folder/<name>.jsonl`."""

    def __init__(self, name: str, networks: nn.Module, schedule: Schedule, folder: Path):
        self.name, self.schedule, self.networks = name, schedule, networks
        self.average = deepcopy(networks).requires_grad_(False).eval()
        self.optimizer = torch.optim.AdamW(_parameter_groups(networks, schedule.weight_decay), lr=schedule.lr)
        self.checkpoint, self.log = folder / f"{name}.pt", folder / f"{name}.jsonl"
        self.step, self.minutes = 0, 0.0
        self.rank, self.processes = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def samples(self) -> int:
        return self.step * self.schedule.batch

    def resume(self) -> None:
        """Load the last checkpoint if there is one."""
        if not self.checkpoint.exists():
            return
        state = torch.load(self.checkpoint, map_location="cpu", weights_only=True)
        self.networks.load_state_dict(state["networks"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.minutes = state["step"], state["minutes"]

    def save(self) -> None:
        """Write the checkpoint."""
        state = {
            "networks": self.networks.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "minutes": self.minutes,
        }
        temporary = self.checkpoint.with_suffix(".tmp")
        torch.save(state, temporary)
        os.replace(temporary, self.checkpoint)

    def synchronise(self, minutes: float) -> float:
        """Average the gradients and the time used over all processes; returns the latter."""
        gradients = [p.grad for p in self.networks.parameters() if p.grad is not None]
        flat = torch.cat([g.flatten() for g in gradients] + [gradients[0].new_tensor([minutes])])
        dist.all_reduce(flat)
        flat /= self.processes
        for gradient, mean in zip(gradients, flat[:-1].split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(mean.view_as(gradient))
        return flat[-1].item()

    def update(self, loss: torch.Tensor, start: float) -> None:
        """Take one optimiser step, begun at `start` (monotonic seconds), and average the weights."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.schedule.learning_rate(self.samples, self.minutes)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        minutes = self.minutes + (time.monotonic() - start) / 60
        self.minutes = self.synchronise(minutes) if self.processes > 1 else minutes
        nn.utils.clip_grad_norm_(self.networks.parameters(), 1.0)
        self.optimizer.step()
        self.step += 1
        decay = min(self.schedule.ema, (1 + self.step) / (10 + self.step))
        for kept, new in zip(self.average.parameters(), self.networks.parameters(), strict=True):
            kept.lerp_(new.detach(), 1 - decay)

    def report(self, **values: float) -> None:
        """Append a line to the log."""
        line = {"samples": self.samples, "minutes": round(self.minutes, 2)}
        line |= {key: round(float(value), 4) for key, value in values.items()}
        with self.log.open("a") as file:
            file.write(json.dumps(line) + "\n")
        print(f"{self.name}: {line}", flush=True)


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
) -> nn.Module:
    """Train until the budget is used up and return the averaged networks.

    `compute_loss(networks, generator)` draws its batch from the generator, seeded by (seed, step), so a
    resumed run sees the batches it would have seen. Several processes (torch.distributed) draw different
    batches and average their gradients; the first of them evaluates and saves. `evaluate` and `export` get
    the averaged networks every `report_minutes` and at the end.
    """
    schedule = run.schedule
    run.resume()
    recent, last_report = defaultdict(list), run.minutes
    while schedule.progress(run.samples, run.minutes) < 1.0:
        start = time.monotonic()
        draw = run.step * run.processes + run.rank
        generator = torch.Generator().manual_seed(schedule.seed * 1_000_003 + draw)
        run.networks.train()
        loss, parts = compute_loss(run.networks, generator)
        run.update(loss, start)
        for key, value in parts.items():
            recent[key].append(value)
        finished = schedule.progress(run.samples, run.minutes) == 1.0
        if run.rank == 0 and (finished or run.minutes - last_report >= schedule.report_minutes):
            run.save()
            losses = {key: sum(values) / len(values) for key, values in recent.items()}
            run.report(**losses, **evaluate(run.average))
            export(run.average)
            recent.clear()
            last_report = run.minutes
    if run.processes > 1:
        dist.barrier()  # what the first process exported is there for all
    return run.average
