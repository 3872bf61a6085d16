"""A training run on disk: where it writes, how it resumes, what it logs, when it keeps a prompt."""

import json
import sys
import time
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from tqdm import tqdm

from config import WITHOUT_EFFECT, ConfigError, dump_config, iter_keys, resolve_path
from dataset.pair_dataset import PairDataset
from engine.build import build_prompt_name, describe_prompt
from engine.learner import Learner
from engine.monitor import Monitor
from engine.picture import Preview, choose_pairs
from engine.process import write_provenance
from engine.report import evaluate_split
from engine.result import format_overview, write_text
from engine.sampler import EpochBatches
from engine.transfer import build_loader, move_batch
from model.method import METHODS
from model.prompt.store import save_prompt
from model.source import fingerprint_condition, fingerprint_dino, fingerprint_stable_diffusion
from utils.checkpoint import NAME as CHECKPOINT
from utils.checkpoint import CheckpointError, changed_keys, load_checkpoint, save_checkpoint
from utils.noise import noise_seeds
from utils.pck import alpha_key

MAY_DIFFER = (  # settings that do not change what is learned
    *WITHOUT_EFFECT,
    "NETWORK.FOLDER",  # its weights are compared instead
    "PROMPT.TYPE",
    "PROMPT.TEMPLATE",
    "TEST.SPLIT",
    "TEST.TIMESTEP",
    "TEST.ENSEMBLE",
)
LENGTH = (
    "TRAIN.EPOCHS",
    "TRAIN.MAX_STEPS",
)  # a run may be made longer, unless its schedule depends on the length


class TrainingRun:
    """One prompt being trained. Every process has one; only the main process writes."""

    def __init__(self, cfg, accelerator: Accelerator, overwrite: bool):
        self.cfg, self.accelerator = cfg, accelerator
        self.name = str(build_prompt_name(cfg))
        output = Path(resolve_path(cfg.OUTPUT_ROOT))
        settings = f"{self.name}_{cfg.TRAIN.SCHEDULER}_lr{cfg.TRAIN.LR:g}"
        self.folder = output / "log" / cfg.DATASET.NAME / settings
        self.prompt_folder = output / "prompt" / self.name
        if overwrite:
            self._forget()
        self.state = load_checkpoint(self.folder)

    def plan(self, n_pairs: int) -> EpochBatches:
        """The data order: this process's part of every step. Refuses a batch that cannot be shared out."""
        cfg = self.cfg.TRAIN
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        try:
            self.batches = EpochBatches(n_pairs, cfg.BATCH_SIZE, self.cfg.SEED, cfg.ACCUMULATION, rank, world)
        except ValueError as error:
            raise ConfigError(str(error)) from error
        self._refuse_other_run()
        return self.batches

    def start(self, trn: PairDataset, prompt: torch.nn.Module) -> Learner:
        """The prompt with its optimiser, at the beginning or where a checkpoint left them."""
        cfg = self.cfg.TRAIN
        self.image_size = trn.image_size
        workers = self.cfg.DATASET.NUM_WORKERS
        self.loader = build_loader(trn, self.accelerator.device, workers, batch_sampler=self.batches)
        total_steps = cfg.EPOCHS * self.batches.steps_per_epoch
        total_steps = min(total_steps, cfg.MAX_STEPS) if cfg.MAX_STEPS else total_steps
        groups = prompt.param_groups(cfg.LR, cfg.LINEAR_LR_SCALE)
        self.learner = Learner(self.accelerator, prompt, groups, cfg.SCHEDULER, cfg.STEP_RULES, total_steps)
        if self.state is not None:
            self.learner.load_state_dict(self.state["learner"])
        active = self.accelerator.is_main_process
        self.monitor = Monitor(self.folder, active, cfg.LOG_EVERY, first_step=self.learner.step + 1)
        self.preview = Preview(self.cfg, self.accelerator.device)
        self._announce(len(trn.benchmark))
        return self.learner

    def batches_of_epoch(self):
        """What is left of the epoch, on this process's device, with a bar that counts the run's optimiser steps."""
        self.batches.start(self.learner.epoch, self.learner.step_in_epoch)
        self.bar = tqdm(
            initial=self.learner.step,
            total=self.learner.total_steps,
            desc=f"epoch {self.learner.epoch + 1}",
            disable=not self.accelerator.is_main_process or not sys.stderr.isatty(),
        )
        with self.bar:
            for batch in self.loader:  # the index stays where it was: it is read on the CPU
                yield {**move_batch(batch, self.accelerator.device), "index": batch["index"]}

    def noise_seeds(self, index: torch.Tensor) -> torch.Tensor:
        """(B, 2) seeds of the source and target noise: fresh in every epoch, the same for any number of processes."""
        sides = [noise_seeds(self.cfg.SEED, self.learner.epoch, index, side) for side in (0, 1)]
        return torch.stack([torch.as_tensor(side) for side in sides], dim=1)

    def log_step(self, loss: torch.Tensor, now: float) -> None:
        """Loss, lr and speed to tensorboard; a line to the terminal now and then."""
        self.bar.update()
        line = self.monitor.add_step(self.learner.step, self.learner.lr, loss, now)
        if line:
            self.print(f"step {self.learner.step}/{self.learner.total_steps}  {line}")

    def validate(self, matcher, val: PairDataset) -> None:
        """PCK on the validation pairs; the prompt is kept if it is the best so far."""
        self.monitor.flush(time.monotonic())
        summary, _ = evaluate_split(self.cfg, matcher, val, self.accelerator)
        score = summary["pck"][self.cfg.VAL.LOCALISER][alpha_key(self.cfg.VAL.ALPHA)]["all"]
        best = self.learner.improves(score)
        self.learner.validated = self.learner.step
        if not self.accelerator.is_main_process:
            return
        self.monitor.add_pck(self.learner.step, summary)
        positions = choose_pairs(val, self.cfg.VAL.PICTURES)
        self.monitor.add_pictures(self.learner.step, self.preview.draw(matcher, val, positions, self.name))
        self.print(f"validation after step {self.learner.step}\n{format_overview(summary)}")
        with open(self.folder / "metrics.jsonl", "a") as file:
            entry = {
                "step": self.learner.step,
                "epoch": self.learner.epoch,
                "score": score,
                "pck": summary["pck"],
            }
            file.write(json.dumps(entry) + "\n")
        if best:
            metrics = {"step": self.learner.step, "validation": summary}
            prompt = self.accelerator.unwrap_model(self.learner.prompt)
            save_prompt(self.prompt_folder, prompt, {**describe_prompt(self.cfg), "metrics": metrics})
            write_text(self.prompt_folder / "config.yaml", dump_config(self.cfg))
            self.print(f"best so far: saved to {self.prompt_folder}")

    def end_epoch(self) -> None:
        """Go on to the next epoch, if this one has been run to its end."""
        if self.learner.step_in_epoch == self.batches.steps_per_epoch:
            self.learner.end_epoch()

    def save(self) -> None:
        """A checkpoint from which the run goes on exactly."""
        self.monitor.flush(time.monotonic())
        if self.accelerator.is_main_process:
            save_checkpoint(self.folder, {"settings": self._settings(), "learner": self.learner.state_dict()})
        self.accelerator.wait_for_everyone()

    def finish(self) -> None:
        self.monitor.close()
        measure = f"PCK@{self.cfg.VAL.ALPHA:g} ({self.cfg.VAL.LOCALISER})"
        best = "no validation pair has keypoints" if self.learner.best is None else f"{self.learner.best:.2%}"
        self.print(
            f"finished {self.learner.step} steps; best validation {measure}: {best}; prompt in {self.prompt_folder}"
        )
        self.accelerator.end_training()

    def print(self, text: str) -> None:
        if self.accelerator.is_main_process:
            tqdm.write(text)

    def _announce(self, n_pairs: int) -> None:
        if not self.accelerator.is_main_process:
            return
        write_provenance(self.folder, dump_config(self.cfg), self.accelerator.device)
        learner, cfg = self.learner, self.cfg.TRAIN
        where = f"at step {learner.step} of {learner.total_steps}" if learner.step else f"{learner.total_steps} steps"
        self.print(
            f"{self.name}: {'going on ' if learner.step else ''}{where}, batch {cfg.BATCH_SIZE}, "
            f"{n_pairs} pairs, {self.accelerator.num_processes} process(es) on {self.accelerator.device}\n"
            f"log: {self.folder}"
        )

    def _forget(self) -> None:
        """Remove what an earlier run of the same name left, so that nothing can go on from it."""
        if self.accelerator.is_main_process:
            for pattern in (CHECKPOINT, "metrics.jsonl", "events.out.*"):
                for path in self.folder.glob(pattern):
                    path.unlink()
        self.accelerator.wait_for_everyone()

    def _settings(self) -> dict[str, object]:
        """What a run must have in common with the checkpoint it goes on from."""
        networks = fingerprint_stable_diffusion(self.cfg, ("vae", "unet", "text_encoder"))
        condition = build_prompt_name(self.cfg).condition
        reads_dino = "dino" in METHODS[self.cfg.METHOD.NAME].caches
        return {
            **dict(iter_keys(self.cfg)),
            "training pairs": self.batches.n_pairs,
            "networks": networks,
            "condition network": fingerprint_condition(self.cfg, condition) if condition else "",
            **({"matcher's DINOv2": fingerprint_dino(self.cfg)} if reads_dino else {}),
        }

    def _refuse_other_run(self) -> None:
        if self.state is not None:
            may_differ = MAY_DIFFER if self.cfg.TRAIN.SCHEDULER == "linear" else (*MAY_DIFFER, *LENGTH)
            if changed := changed_keys(self.state["settings"], self._settings(), may_differ):
                raise CheckpointError(
                    f"{self.folder} holds a run with other settings:\n  " + "\n  ".join(changed) + "\n"
                    "go on with the old settings, start anew with --overwrite, or choose another OUTPUT_ROOT"
                )
        steps = gather_object([self.state["learner"]["counters"]["step"] if self.state else 0])
        if len(set(steps)) > 1:
            raise CheckpointError(
                f"{self.folder}: the processes find checkpoints of different steps {sorted(set(steps))}; "
                "OUTPUT_ROOT must be on a disk that all machines share"
            )
