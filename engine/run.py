"""A training run: its steps, where it writes, how it resumes, when it keeps what is best."""

import json
import math
import time
from collections.abc import Iterator

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from diffusers.optimization import get_scheduler
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR
from torch.utils.data import Dataset
from tqdm import tqdm

from config import ConfigError, dump_config
from engine.build import find_output
from engine.identity import differences, may_go_on, what_makes_weights
from engine.monitor import Monitor
from engine.process import describe_environment
from engine.sampler import EpochPairs, StepBatches
from engine.task import task_of
from engine.transfer import build_loader, move_batch
from model.method.base import Method
from utils.checkpoint import NAME as CHECKPOINT
from utils.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from utils.error import UserError
from utils.noise import noise_seeds
from utils.progress import progress
from utils.store import write_text

COUNTERS = ("position", "step", "best", "validated")


class DivergedError(UserError, RuntimeError):
    """Training that has run into inf or nan."""


def build_schedule(
    name: str, optimizer: torch.optim.Optimizer, total_steps: int, step_rules: str = "", rise: float = 0.3
) -> LRScheduler:
    """The rates of a run of `total_steps` (TRAIN.SCHEDULER); those that the optimizer has now are the highest."""
    if name == "one_cycle":
        if rise * total_steps == 1:  # which the library divides by zero for
            raise ConfigError(f"TRAIN.RISE {rise:g} of {total_steps} steps is one step: the rate cannot rise in it")
        rates = [group["lr"] for group in optimizer.param_groups]
        return OneCycleLR(optimizer, rates, total_steps=total_steps, pct_start=rise)
    return get_scheduler(
        name, optimizer, step_rules=step_rules or None, num_warmup_steps=0, num_training_steps=total_steps
    )


class Learner:
    """One optimiser step per effective batch; its whole state goes into a checkpoint and comes back bit for bit.

    No module is wrapped: gradients are averaged over the processes here, so that a method may run its learnable part
    in any way; every process starts alike, from the seed. A step that the gradient scaler skips is not counted, nor
    does the schedule advance.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        module: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        scheduler: LRScheduler,
    ):
        self.accelerator, self.module, self.scheduler = accelerator, module, scheduler
        self.optimizer = accelerator.prepare(optimizer)
        self.position = 0  # batches seen, over all epochs
        self.step = 0  # optimiser steps taken
        self.best: float | None = None
        self.validated = -1  # step after which the last validation was
        self._part_losses: list[torch.Tensor] = []

    @property
    def lr(self) -> float:
        return self.scheduler.get_last_lr()[0]

    def learn(self, loss: torch.Tensor) -> torch.Tensor | None:
        """Backward of one part; on the last part of a batch the optimiser steps and the batch's mean loss is given.

        Call inside `accelerator.accumulate()`. The loss is averaged over parts and processes.
        """
        self.accelerator.backward(loss)
        self._part_losses.append(loss.detach())
        if not self.accelerator.sync_gradients:
            return None
        self._average_gradients()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.position += 1
        if not self.optimizer.step_was_skipped:
            self.scheduler.step()
            self.step += 1
        mean = self.accelerator.reduce(torch.stack(self._part_losses).mean(), "mean")
        self._part_losses = []
        return mean

    def _average_gradients(self) -> None:
        """Mean over the processes. A parameter that had no part in any process's loss keeps no gradient."""
        if self.accelerator.num_processes == 1:
            return
        parameters = [p for p in self.module.parameters() if p.requires_grad]
        used = torch.tensor([p.grad is not None for p in parameters], dtype=torch.float32)
        used = self.accelerator.reduce(used.to(self.accelerator.device), "sum").tolist()
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        flat = self.accelerator.reduce(torch.cat([grad.flatten() for grad in grads]), "mean")
        for parameter, grad, count in zip(parameters, flat.split([g.numel() for g in grads]), used, strict=True):
            parameter.grad = grad.view_as(parameter) if count else None

    def state_dict(self) -> dict:
        scaler = self.accelerator.scaler
        return {
            "weights": self.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "scaler": None if scaler is None else scaler.state_dict(),
            "counters": {name: getattr(self, name) for name in COUNTERS},
        }

    def load_state_dict(self, state: dict) -> None:
        self.module.load_state_dict(state["weights"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        if self.accelerator.scaler is not None and state["scaler"] is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        for name, value in state["counters"].items():
            setattr(self, name, value)


class TrainingRun:
    """What a method learns, from the first step or a checkpoint to the last. Only the main process writes."""

    def __init__(self, cfg, accelerator: Accelerator, method: Method, trn: Dataset, val: Dataset, overwrite: bool):
        self.cfg, self.accelerator, self.method, self.task = cfg, accelerator, method, task_of(cfg)
        self.name = method.name_learned(cfg)
        folder = f"{self.name}_{cfg.TRAIN.SCHEDULER}_lr{cfg.TRAIN.LR:g}"
        self.folder = find_output(cfg) / "log" / cfg.DATASET.NAME / folder
        self.weights_folder = find_output(cfg) / "prompt" / self.name
        self.made_by = what_makes_weights(cfg, trn, val)
        if overwrite:
            self._forget()
        state = load_checkpoint(self.folder)
        rank, world = accelerator.process_index, accelerator.num_processes
        order = cfg.TRAIN.BATCH_SIZE, cfg.SEED, cfg.TRAIN.ACCUMULATION, rank, world, cfg.TRAIN.RESHUFFLE
        self.sampler = StepBatches(len(trn), *order)
        self._refuse_other_run(state)
        self.loader = build_loader(EpochPairs(trn), cfg.DATASET.NUM_WORKERS, batches=self.sampler)
        last = self.sampler.end_of_epoch(cfg.TRAIN.EPOCHS - 1)
        self.total_steps = min(last, cfg.TRAIN.MAX_STEPS) if cfg.TRAIN.MAX_STEPS else last
        self.learner = self._build_learner(state)
        self._taken: list[tuple[int, float, float, torch.Tensor]] = []  # steps that are not written yet
        if accelerator.is_main_process:
            self.monitor = Monitor(self.folder, first_step=self.learner.step + 1)
            self._announce(len(trn))

    @property
    def done(self) -> bool:
        """Whether every step is taken and what was learned is validated."""
        return self.learner.step >= self.total_steps and self.learner.validated == self.learner.step

    def batches(self) -> Iterator[tuple[dict, torch.Tensor]]:
        """(batch on the device, (B, 2) seeds of its noise) from where the run stands to its next validation.

        Noise is fresh in every epoch, and the same for any number of processes.
        """
        self.sampler.steps = range(self.learner.position, self._next_validation())
        total, main = self.total_steps, self.accelerator.is_main_process
        with progress(None, "training", total, shown=main, initial=self.learner.step, unit="step") as self.bar:
            for batch in self.loader:
                if self.learner.step >= self.total_steps:
                    return
                sides = [noise_seeds(self.cfg.SEED, batch["epoch"], batch["index"], side) for side in (0, 1)]
                yield move_batch(batch, self.accelerator.device), torch.stack(sides, dim=1)

    def learn(self, losses: torch.Tensor) -> bool:
        """Backward of a part's losses (B,); on the last part of a batch a step, and True."""
        if losses.ndim != 1:
            raise ValueError(f"a method's loss must be one number per pair, (B,); got {tuple(losses.shape)}")
        before, loss = self.learner.step, self.learner.learn(losses.sum() * self.sampler.weight)
        if loss is None:
            return False
        if (step := self.learner.step) > before:
            self.bar.update()
            self._taken.append((step, self.learner.lr, time.monotonic(), loss))
            if step % self.cfg.TRAIN.LOG_EVERY == 0:
                self._report()
            if step % self.cfg.TRAIN.SAVE_EVERY == 0:
                self.save()
        return True

    def validate(self, val: Dataset) -> None:
        """What was learned, and has just been saved, is kept if it is the best so far on the validation split."""
        task, cfg, learner = self.task, self.cfg.VAL, self.learner
        method = self.method.at(cfg.TIMESTEP, cfg.ENSEMBLE)
        summary, scores = task.evaluate(self.cfg, method, val, self.accelerator)
        score = task.find_score(self.cfg, summary)
        best = score is not None and (learner.best is None or score > learner.best)
        learner.best, learner.validated = score if best else learner.best, learner.step
        if not self.accelerator.is_main_process:
            return
        what = self.cfg, method, val, scores, cfg.PICTURES, self.name, self.accelerator.device
        pictures = task.draw(*what, validating=True)
        entry = {"step": learner.step, "score": score, task.key: summary[task.key]}
        self.monitor.add_validation(entry, task.list_numbers(summary), pictures)
        tqdm.write(f"validation after step {learner.step}\n{task.format_overview(summary)}")
        if best:
            metrics = {"step": learner.step, "validation": summary}
            about = {**self.method.describe(self.cfg), "made_by": self.made_by, "metrics": metrics}
            self.method.save(self.weights_folder, about)
            write_text(self.weights_folder / "config.yaml", dump_config(self.cfg))
            tqdm.write(f"best so far: saved to {self.weights_folder}")

    def save(self) -> None:
        """A checkpoint from which the run goes on exactly."""
        self._report()
        if bad := [name for name, p in self.method.trainable.named_parameters() if not p.isfinite().all()]:
            raise self._diverged(f"{bad[0]} is not finite after step {self.learner.step}")
        if self.accelerator.is_main_process:
            save_checkpoint(self.folder, {"made_by": self.made_by, "learner": self.learner.state_dict()})
        self.accelerator.wait_for_everyone()

    def finish(self) -> None:
        measure, best = self.task.name_score(self.cfg), self.learner.best
        score = self.task.nothing if best is None else f"{best:.2%}"
        if self.accelerator.is_main_process:
            self.monitor.close()
            steps = f"finished {self.learner.step} steps"
            tqdm.write(f"{steps}; best validation {measure}: {score}; kept in {self.weights_folder}")
        self.accelerator.end_training()

    def _report(self) -> None:
        """Write the steps taken since the last report, all at once: a step never waits for the GPU."""
        if not self._taken:
            return
        losses = torch.stack([loss for *_, loss in self._taken]).float().tolist()
        steps, self._taken = [step for *step, _ in self._taken], []
        if not all(map(math.isfinite, losses)):
            raise self._diverged(f"the loss is not finite at step {self.learner.step}")
        if self.accelerator.is_main_process:
            line = self.monitor.add_steps(steps, losses)
            if self.learner.step % self.cfg.TRAIN.LOG_EVERY == 0:
                tqdm.write(f"step {self.learner.step}/{self.total_steps}  {line}")

    def _diverged(self, what: str) -> DivergedError:
        return DivergedError(
            f"{what}; what was saved before is kept. Lower TRAIN.LR, or try PRECISION fp32; the same command with "
            "other settings and --overwrite starts anew"
        )

    def _build_learner(self, state: dict | None) -> Learner:
        cfg = self.cfg.TRAIN
        optimizer = self.method.build_optimizer(cfg.LR, cfg.LINEAR_LR_SCALE)
        schedule = build_schedule(cfg.SCHEDULER, optimizer, self.total_steps, cfg.STEP_RULES, cfg.RISE)
        learner = Learner(self.accelerator, self.method.trainable, optimizer, schedule)
        if state is not None:
            learner.load_state_dict(state["learner"])
        return learner

    def _next_validation(self) -> int:
        """The position at which the next validation is due: every VAL.EVERY batches, or at the end of an epoch."""
        learner, position, every = self.learner, self.learner.position, self.cfg.VAL.EVERY
        left = self.total_steps - learner.step
        due = position > 0 and self.sampler.next_boundary(position, every) == position
        if left <= 0 or (due and learner.validated != learner.step):
            return position
        return min(self.sampler.next_boundary(position + 1, every), position + left)

    def _announce(self, n_pairs: int) -> None:
        write_text(self.folder / "config.yaml", dump_config(self.cfg))
        environment = describe_environment(self.accelerator.device)
        write_text(self.folder / "env.json", json.dumps(environment, indent=2) + "\n")
        step, total, batch = self.learner.step, self.total_steps, self.cfg.TRAIN.BATCH_SIZE
        where = f"going on at step {step} of {total}" if step else f"{total} steps"
        print(
            f"{self.name}: {where}, batch {batch}, {n_pairs} {self.task.unit}s, "
            f"{self.accelerator.num_processes} process(es) on {self.accelerator.device}\nlog: {self.folder}"
        )

    def _forget(self) -> None:
        """Remove what an earlier run of the same name left, so that nothing can go on from it."""
        if self.accelerator.is_main_process:
            logs = [*self.folder.glob("events.out.*"), self.folder / CHECKPOINT, self.folder / "metrics.jsonl"]
            for path in (*logs, *(self.weights_folder / name for name in self.method.FILES)):
                path.unlink(missing_ok=True)
        self.accelerator.wait_for_everyone()

    def _refuse_other_run(self, state: dict | None) -> None:
        """Nothing goes on from a checkpoint, or takes the place of weights, that something else made."""
        kept = {self.folder: None if state is None else state.get("made_by", {})}
        kept[self.weights_folder] = self.method.made_by(self.weights_folder)
        for folder, made_by in kept.items():
            if made_by is not None and (changed := differences(made_by, self.made_by, may_go_on(self.cfg))):
                raise CheckpointError(
                    f"{folder} holds what other settings, networks or data made:\n  " + "\n  ".join(changed) + "\n"
                    "go on with the old ones, start anew with --overwrite, or choose another OUTPUT_ROOT"
                )
        steps = gather_object([state["learner"]["counters"]["step"] if state else 0])
        if len(set(steps)) > 1:
            raise CheckpointError(
                f"{self.folder}: the processes find checkpoints of different steps {sorted(set(steps))}; "
                "OUTPUT_ROOT must be on a disk that all machines share"
            )
