"""Optimiser and schedule of the prompt, with the counters that say how far training has come."""

import torch
from accelerate import Accelerator
from diffusers.optimization import get_scheduler

COUNTERS = ("epoch", "step_in_epoch", "step", "best", "validated")


class Learner:
    """One optimiser step per effective batch; its whole state goes into a checkpoint and comes back bit for bit.

    accelerator.prepare wraps the prompt (gradients are averaged over processes) and the optimiser. The schedule is not
    wrapped: it advances once per optimiser step, whatever the number of processes.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        prompt: torch.nn.Module,
        param_groups: list[dict],
        schedule: str,
        step_rules: str,
        total_steps: int,
    ):
        self.accelerator = accelerator
        self.prompt, self.optimizer = accelerator.prepare(prompt, torch.optim.Adam(param_groups))
        self.scheduler = get_scheduler(
            schedule,
            self.optimizer.optimizer,
            step_rules=step_rules or None,
            num_warmup_steps=0,
            num_training_steps=total_steps,
        )
        self.total_steps = total_steps
        self.epoch = 0
        self.step_in_epoch = 0
        self.step = 0
        self.best: float | None = None
        self.validated = -1  # step after which the last validation was
        self._part_losses: list[torch.Tensor] = []

    @property
    def finished(self) -> bool:
        """Whether all steps are done."""
        return self.step >= self.total_steps

    @property
    def done(self) -> bool:
        """Whether the prompt after the last step has been validated too."""
        return self.finished and self.validated == self.step

    @property
    def lr(self) -> float:
        return self.scheduler.get_last_lr()[0]

    def learn(self, loss: torch.Tensor) -> torch.Tensor | None:
        """Backward of one part; on the last part of a batch the optimiser steps and the batch's mean loss is given.

        Call inside `accelerator.accumulate(prompt)`. The loss is averaged over parts and processes.
        """
        self.accelerator.backward(loss)
        self._part_losses.append(loss.detach())
        self.optimizer.step()
        self.optimizer.zero_grad()
        if not self.accelerator.sync_gradients:
            return None
        self.scheduler.step()
        self.step += 1
        self.step_in_epoch += 1
        mean = self.accelerator.reduce(torch.stack(self._part_losses).mean(), "mean")
        self._part_losses = []
        return mean

    def end_epoch(self) -> None:
        self.epoch += 1
        self.step_in_epoch = 0

    def improves(self, score: float | None) -> bool:
        """Whether a validation score is the best so far; remembers it."""
        better = score is not None and (self.best is None or score > self.best)
        self.best = score if better else self.best
        return better

    def state_dict(self) -> dict:
        scaler = self.accelerator.scaler
        return {
            "prompt": self.accelerator.unwrap_model(self.prompt).state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "scaler": None if scaler is None else scaler.state_dict(),
            "counters": {name: getattr(self, name) for name in COUNTERS},
        }

    def load_state_dict(self, state: dict) -> None:
        self.accelerator.unwrap_model(self.prompt).load_state_dict(state["prompt"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        if self.accelerator.scaler is not None and state["scaler"] is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        for name, value in state["counters"].items():
            setattr(self, name, value)
