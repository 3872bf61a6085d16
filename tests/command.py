"""The commands as a user types them, in this process: quick, and open to a look inside."""

import importlib
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass(frozen=True)
class Outcome:
    """How a command ended."""

    status: int
    out: str
    err: str


def reset_accelerate() -> None:
    """Forget the process-wide state that accelerate keeps, as a new process would."""
    from accelerate.state import AcceleratorState, GradientState, PartialState

    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    PartialState._reset_state()


def call(script: str, *arguments: str) -> int:
    """Run train.py, test.py, ... in this process; its exit status."""
    reset_accelerate()
    main = importlib.import_module(Path(script).stem).main
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [script, *map(str, arguments)])
        try:
            return main()
        except SystemExit as stop:  # argparse, and a signal while everything is saved
            return stop.code if isinstance(stop.code, int) else 1
        finally:
            reset_accelerate()


def read_scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """{tag: [(step, value), ...]} of the tensorboard files below a folder."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (log,) = {path.parent for path in folder.rglob("events.out.*")}
    events = EventAccumulator(str(log))
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
