"""What tensorboard shows of a training run. Only the main process writes."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from utils.draw import render


class DivergedError(RuntimeError):
    """Training that has run into inf or nan."""


class Monitor:
    """Scalars of every step, written in groups so that a step never waits for the GPU; pictures of validations."""

    def __init__(self, folder: str | Path, active: bool, log_every: int, first_step: int = 1):
        """first_step: steps from here on that a stopped run has already written are replaced."""
        self.log_every = log_every
        self._pending: list[tuple[int, float, torch.Tensor]] = []
        self._clock: tuple[int, float] | None = None
        self._writer = None
        if active:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(folder), purge_step=first_step)

    def add_step(self, step: int, lr: float, loss: torch.Tensor, now: float) -> str | None:
        """Note a step's loss (a scalar tensor on its device) and lr; every log_every steps, a line to print."""
        if self._writer is None:
            return None
        self._pending.append((step, lr, loss.detach()))
        if self._clock is None:
            self._clock = (step, now)
        return self.flush(now) if step % self.log_every == 0 else None

    def flush(self, now: float) -> str | None:
        """Write the noted steps."""
        if self._writer is None or not self._pending:
            return None
        losses = torch.stack([loss for _, _, loss in self._pending]).float().tolist()
        if not all(map(math.isfinite, losses)):
            raise DivergedError(
                f"the loss is not finite at step {self._pending[-1][0]}; lower TRAIN.LR, or try PRECISION fp32; "
                "the same command with other settings and --overwrite starts anew"
            )
        for (step, lr, _), loss in zip(self._pending, losses, strict=True):
            self._writer.add_scalar("train/loss", loss, step)
            self._writer.add_scalar("train/lr", lr, step)
        begin, then = self._clock
        line = f"loss {sum(losses) / len(losses):.4f}  lr {lr:.2e}"
        if step > begin and now > then:
            rate = (step - begin) / (now - then)
            self._writer.add_scalar("train/steps_per_second", rate, step)
            line += f"  {rate:.2f} steps/s"
        self._pending, self._clock = [], (step, now)
        self._writer.flush()
        return line

    def add_validation(self, step: int, numbers: Mapping[str, float]) -> None:
        """What a validation measured, by tag (engine.task.Task.list_numbers)."""
        if self._writer is None:
            return
        self._clock = None  # the time of a validation is no time of steps
        for tag, value in numbers.items():
            self._writer.add_scalar(f"val_{tag}", value, step)
        self._writer.flush()

    def add_pictures(self, step: int, pictures: Sequence[dict]) -> None:
        """Figures of each drawn pair or item by kind (engine.task.Task.draw)."""
        if self._writer is None:
            return
        for number, picture in enumerate(pictures):
            for kind, figure in picture.items():
                self._writer.add_image(f"val_{kind}/{number}", render(figure), step, dataformats="HWC")
        self._writer.flush()

    def close(self) -> None:
        """Write what is left."""
        if self._writer is not None:
            self._writer.close()
