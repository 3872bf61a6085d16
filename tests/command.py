"""The commands as a user types them, in this process: quick, and open to a look inside."""

import importlib
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from torch.optim.optimizer import register_optimizer_step_pre_hook

import test as test_script
from engine.check import check_config
from engine.report import build_result_stem


def reset_accelerate() -> None:
    """Forget the process-wide state that accelerate keeps, as a new process would."""
    from accelerate.state import AcceleratorState, GradientState, PartialState

    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    PartialState._reset_state()


def call(script: str, *arguments: str) -> int:
    """Run train.py, script/compare.py, ... in this process; its exit status."""
    reset_accelerate()
    main = importlib.import_module(script.removesuffix(".py").replace("/", ".")).main
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [script, *map(str, arguments)])
        try:
            return main()
        except SystemExit as stop:  # argparse, and a signal while everything is saved
            return stop.code if isinstance(stop.code, int) else 1
        finally:
            reset_accelerate()


def run_test(cfg) -> tuple[dict[str, Any], str]:
    """Test under a config; what the result's JSON file holds, and the predictions as text."""
    test_script.test(check_config(cfg, training=False))
    stem = build_result_stem(cfg)
    return json.loads(Path(f"{stem}.json").read_text()), Path(f"{stem}_predictions.csv").read_text()


class Killed(Exception):
    """The process is gone."""


@contextmanager
def dying_in_step(number: int) -> Iterator[None]:
    """Kill what runs inside the block in this optimiser step, as it begins."""
    steps = iter(range(1, 10_000))

    def kill(*_) -> None:
        if next(steps) == number:
            raise Killed

    handle = register_optimizer_step_pre_hook(kill)
    try:
        with pytest.raises(Killed):
            yield
    finally:
        handle.remove()


def read_scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """{tag: [(step, value), ...]} of the tensorboard files below a folder, a later file first."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found: dict[str, dict[int, float]] = {}
    for path in sorted(folder.rglob("events.out.*"), key=lambda path: path.stat().st_mtime_ns):
        events = EventAccumulator(str(path))
        events.Reload()
        for tag in events.Tags()["scalars"]:
            found.setdefault(tag, {}).update((event.step, event.value) for event in events.Scalars(tag))
    return {tag: sorted(values.items()) for tag, values in found.items()}
