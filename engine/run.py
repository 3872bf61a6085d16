"""A training run on disk: where it writes, how it resumes, what it logs, when it keeps what is best."""

import json
import time
from collections.abc import Iterator

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch.utils.data import Dataset

from config import ConfigError, dump_config
from engine.build import find_output
from engine.identity import differences, may_go_on, what_makes_weights
from engine.learner import Learner, build_schedule
from engine.monitor import Monitor
from engine.process import write_provenance
from engine.report import evaluate_split
from engine.sampler import EpochPairs, StepBatches
from engine.task import task_of
from engine.transfer import build_loader, move_batch
from model.method.base import Method
from utils.checkpoint import NAME as CHECKPOINT
from utils.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from utils.noise import noise_seeds
from utils.progress import progress
from utils.store import write_text


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
        self.sampler = self._plan(len(trn))
        self._refuse_other_run(state)
        self.loader = build_loader(EpochPairs(trn), cfg.DATASET.NUM_WORKERS, batches=self.sampler)
        self.learner = self._build_learner(state)
        active = accelerator.is_main_process
        self.monitor = Monitor(self.folder, active, cfg.TRAIN.LOG_EVERY, first_step=self.learner.step + 1)
        self._announce(len(trn))

    @property
    def done(self) -> bool:
        """Whether every step is taken and what was learned is validated."""
        return self.learner.done

    def batches(self) -> Iterator[tuple[dict, torch.Tensor]]:
        """(batch on the device, (B, 2) seeds of its noise) from where the run stands to its next validation.

        Noise is fresh in every epoch, and the same for any number of processes.
        """
        first, last = self.learner.position, self._next_validation()
        self.sampler.steps = range(first, last)
        total, main = self.learner.total_steps, self.accelerator.is_main_process
        with progress(None, "training", total, shown=main, initial=self.learner.step, unit="step") as self.bar:
            for batch in self.loader if first < last else ():
                if self.learner.finished:
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
        if self.learner.step > before:
            self.bar.update()
            if line := self.monitor.add_step(self.learner.step, self.learner.lr, loss, time.monotonic()):
                self.print(f"step {self.learner.step}/{self.learner.total_steps}  {line}")
            if self.learner.step % self.cfg.TRAIN.SAVE_EVERY == 0:
                self.save()
        return True

    def validate(self, val: Dataset) -> None:
        """What was learned, and has just been saved, is kept if it is the best so far on the validation split."""
        task, cfg, method = self.task, self.cfg.VAL, self.method.at(self.cfg.VAL.TIMESTEP, self.cfg.VAL.ENSEMBLE)
        summary, scores = evaluate_split(self.cfg, method, val, self.accelerator)
        score = task.find_score(self.cfg, summary)
        best = self.learner.improves(score)
        self.learner.validated = self.learner.step
        if not self.accelerator.is_main_process:
            return
        self.monitor.add_validation(self.learner.step, task.list_numbers(summary))
        what = self.cfg, method, val, scores, cfg.PICTURES, self.name, self.accelerator.device
        self.monitor.add_pictures(self.learner.step, task.draw(*what, validating=True))
        self.print(f"validation after step {self.learner.step}\n{task.format_overview(summary)}")
        self._note({"step": self.learner.step, "score": score, task.key: summary[task.key]})
        if best:
            metrics = {"step": self.learner.step, "validation": summary}
            self.method.save(
                self.weights_folder, {**self.method.describe(self.cfg), "made_by": self.made_by, "metrics": metrics}
            )
            write_text(self.weights_folder / "config.yaml", dump_config(self.cfg))
            self.print(f"best so far: saved to {self.weights_folder}")

    def save(self) -> None:
        """A checkpoint from which the run goes on exactly."""
        self.monitor.flush(time.monotonic())
        self.learner.check_finite()
        if self.accelerator.is_main_process:
            save_checkpoint(self.folder, {"made_by": self.made_by, "learner": self.learner.state_dict()})
        self.accelerator.wait_for_everyone()

    def finish(self) -> None:
        self.monitor.close()
        measure = self.task.name_score(self.cfg)
        best = self.task.nothing if self.learner.best is None else f"{self.learner.best:.2%}"
        self.print(
            f"finished {self.learner.step} steps; best validation {measure}: {best}; kept in {self.weights_folder}"
        )
        self.accelerator.end_training()

    def print(self, text: str) -> None:
        if self.accelerator.is_main_process:
            self.bar.write(text) if hasattr(self, "bar") else print(text)

    def _plan(self, n_pairs: int) -> StepBatches:
        """The data order: this process's part of every step. Refuses a batch that cannot be shared out."""
        cfg, accelerator = self.cfg.TRAIN, self.accelerator
        rank, world = accelerator.process_index, accelerator.num_processes
        try:
            return StepBatches(n_pairs, cfg.BATCH_SIZE, self.cfg.SEED, cfg.ACCUMULATION, rank, world, cfg.RESHUFFLE)
        except ValueError as error:
            raise ConfigError(str(error)) from error

    def _build_learner(self, state: dict | None) -> Learner:
        cfg = self.cfg.TRAIN
        total_steps = self.sampler.end_of_epoch(cfg.EPOCHS - 1)
        total_steps = min(total_steps, cfg.MAX_STEPS) if cfg.MAX_STEPS else total_steps
        optimizer = self.method.build_optimizer(cfg.LR, cfg.LINEAR_LR_SCALE)
        schedule = build_schedule(cfg.SCHEDULER, optimizer, total_steps, step_rules=cfg.STEP_RULES, rise=cfg.RISE)
        learner = Learner(self.accelerator, self.method.trainable, optimizer, schedule, total_steps)
        if state is not None:
            learner.load_state_dict(state["learner"])
        return learner

    def _next_validation(self) -> int:
        """The position at which the next validation is due: every VAL.EVERY batches, or at the end of an epoch."""
        learner, position = self.learner, self.learner.position
        pending = position > 0 and learner.validated != learner.step and self._boundary(position) == position
        if learner.finished or pending:
            return position
        return min(self._boundary(position + 1), position + learner.total_steps - learner.step)

    def _boundary(self, position: int) -> int:
        """The first of the positions for validation that is not before this one."""
        if every := self.cfg.VAL.EVERY:
            return -(-position // every) * every
        epoch = (position - 1) * self.sampler.batch_size // self.sampler.n_pairs
        return next(end for end in map(self.sampler.end_of_epoch, (epoch, epoch + 1)) if end >= position)

    def _note(self, entry: dict) -> None:
        """Add a line to metrics.jsonl; a line of the same or a later step, of a run that was stopped, is replaced."""
        path = self.folder / "metrics.jsonl"
        lines = path.read_text().splitlines() if path.is_file() else []
        kept = [line for line in lines if line.endswith("}") and json.loads(line)["step"] < entry["step"]]
        write_text(path, "\n".join([*kept, json.dumps(entry)]) + "\n")

    def _announce(self, n_pairs: int) -> None:
        if not self.accelerator.is_main_process:
            return
        write_provenance(self.folder, dump_config(self.cfg), self.accelerator.device)
        learner, cfg = self.learner, self.cfg.TRAIN
        where = f"at step {learner.step} of {learner.total_steps}" if learner.step else f"{learner.total_steps} steps"
        self.print(
            f"{self.name}: {'going on ' if learner.step else ''}{where}, batch {cfg.BATCH_SIZE}, "
            f"{n_pairs} {self.task.unit}s, {self.accelerator.num_processes} process(es) on {self.accelerator.device}\n"
            f"log: {self.folder}"
        )

    def _forget(self) -> None:
        """Remove what an earlier run of the same name left, so that nothing can go on from it."""
        if self.accelerator.is_main_process:
            for path in self.folder.glob("events.out.*"):
                path.unlink()
            for path in (self.folder / CHECKPOINT, self.folder / "metrics.jsonl"):
                path.unlink(missing_ok=True)
            for name in self.method.FILES:
                (self.weights_folder / name).unlink(missing_ok=True)
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
