"""Optimiser and schedule of what is learned, with the counters that say how far training has come."""

import torch
from accelerate import Accelerator
from diffusers.optimization import get_scheduler
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR

from config import ConfigError
from engine.monitor import DivergedError

COUNTERS = ("position", "step", "best", "validated")


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
        total_steps: int,
    ):
        self.accelerator, self.module = accelerator, module
        self.optimizer = accelerator.prepare(optimizer)
        self.scheduler = scheduler
        self.total_steps = total_steps
        self.position = 0  # batches seen, over all epochs
        self.step = 0  # optimiser steps taken
        self.best: float | None = None
        self.validated = -1  # step after which the last validation was
        self._part_losses: list[torch.Tensor] = []

    @property
    def finished(self) -> bool:
        """Whether all steps are done."""
        return self.step >= self.total_steps

    @property
    def done(self) -> bool:
        """Whether what was learned by the last step has been validated too."""
        return self.finished and self.validated == self.step

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

    def improves(self, score: float | None) -> bool:
        """Whether a validation score is the best so far; remembers it."""
        better = score is not None and (self.best is None or score > self.best)
        self.best = score if better else self.best
        return better

    def check_finite(self) -> None:
        """DivergedError if a parameter holds inf or nan."""
        if bad := [name for name, p in self.module.named_parameters() if not p.isfinite().all()]:
            raise DivergedError(
                f"{bad[0]} is not finite after step {self.step}; what was saved before is kept. Lower TRAIN.LR, or "
                "try PRECISION fp32; the same command with other settings and --overwrite starts anew"
            )

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
