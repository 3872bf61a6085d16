"""What a training run shows: tensorboard, and metrics.jsonl with a line for each validation."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from utils.draw import render
from utils.store import write_text


class Monitor:
    """Of the main process alone."""

    def __init__(self, folder: Path, first_step: int):
        """first_step: steps from here on that a stopped run has already written are replaced."""
        self.folder = folder
        self._writer = SummaryWriter(str(folder), purge_step=first_step)
        self._clock: tuple[int, float] | None = None  # step and time from which the next rate is counted

    def add_steps(self, steps: Sequence[tuple[int, float, float]], losses: Sequence[float]) -> str:
        """Write (step, lr, time) and the loss of each; a line to print about them."""
        for (step, lr, _), loss in zip(steps, losses, strict=True):
            self._writer.add_scalar("train/loss", loss, step)
            self._writer.add_scalar("train/lr", lr, step)
        (first, _, then), (step, lr, now) = steps[0], steps[-1]
        begin, then = self._clock or (first, then)
        line = f"loss {sum(losses) / len(losses):.4f}  lr {lr:.2e}"
        if step > begin and now > then:
            rate = (step - begin) / (now - then)
            self._writer.add_scalar("train/steps_per_second", rate, step)
            line += f"  {rate:.2f} steps/s"
        self._clock = (step, now)
        self._writer.flush()
        return line

    def add_validation(
        self, entry: Mapping[str, Any], numbers: Mapping[str, float], pictures: Sequence[Mapping[str, Any]]
    ) -> None:
        """What a validation measured and drew: a line of metrics.jsonl, numbers by tag, figures of each record by kind.

        Lines of the same or a later step, of a run that was stopped, are replaced.
        """
        self._clock = None  # the time of a validation is no time of steps
        for tag, value in numbers.items():
            self._writer.add_scalar(f"val_{tag}", value, entry["step"])
        for number, picture in enumerate(pictures):
            for kind, figure in picture.items():
                self._writer.add_image(f"val_{kind}/{number}", render(figure), entry["step"], dataformats="HWC")
        self._writer.flush()
        path = self.folder / "metrics.jsonl"
        lines = path.read_text().splitlines() if path.is_file() else []
        kept = [line for line in lines if line.endswith("}") and json.loads(line)["step"] < entry["step"]]
        write_text(path, "\n".join([*kept, json.dumps(entry)]) + "\n")

    def close(self) -> None:
        self._writer.close()
