"""The process that runs: what it is, what others found, and how it is asked to stop."""

import os
import platform
import signal
import subprocess
import sys
from contextlib import contextmanager
from importlib import metadata

import pandas as pd
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from config import ROOT
from utils.pck import merge_scores

PACKAGES = ("torch", "diffusers", "transformers", "accelerate", "numpy")


def gather_scores(scores: pd.DataFrame) -> pd.DataFrame:
    """The scores of all processes, sorted, each pair once. Every process must call this."""
    return merge_scores(gather_object([scores]))


def describe_environment(device: torch.device) -> dict:
    """What a result depends on beside its config: commit, uncommitted changes, versions, hardware, command."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {
        "commit": _git("rev-parse", "HEAD"),
        "uncommitted_changes": bool(_git("status", "--porcelain")),
        "python": platform.python_version(),
        "packages": {package: metadata.version(package) for package in PACKAGES},
        "device": f"{device}: {name}",
        "cpu_count": os.cpu_count(),
        "command": " ".join(sys.argv),
    }


def describe_repository() -> str:
    """The commit that runs, and whether it was changed."""
    changed = " with uncommitted changes" if _git("status", "--porcelain") else ""
    return f"Commit {_git('rev-parse', '--short', 'HEAD') or 'unknown'}{changed}"


class StopRequest:
    """Notes SIGINT (Ctrl-C) or SIGTERM, so that the step under way is finished; a second Ctrl-C stops at once."""

    _listening: "StopRequest | None" = None

    @classmethod
    def heard(cls) -> int | None:
        """The signal that the process has been asked to stop by, if it listens for one."""
        return cls._listening and cls._listening.signal

    def __init__(self) -> None:
        self.signal: int | None = None
        self._saved = False

    @contextmanager
    def listening(self):
        """Catch the two signals inside the block."""
        old = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        StopRequest._listening = self
        try:
            yield self
        finally:
            StopRequest._listening = None
            for number, handler in old.items():
                signal.signal(number, handler)

    @contextmanager
    def everything_saved(self):
        """Inside the block a signal ends the process at once: the state on disk is up to date."""
        if self.signal is not None:
            raise SystemExit(128 + self.signal)
        self._saved = True
        try:
            yield
        finally:
            self._saved = False

    def agreed(self, accelerator: Accelerator) -> bool:
        """Whether any process was asked to stop; every process must call this at the same steps."""
        if accelerator.num_processes == 1:
            return self.signal is not None
        asked = torch.tensor(int(self.signal is not None), device=accelerator.device)
        return bool(accelerator.reduce(asked))

    def _note(self, number: int, frame: object) -> None:
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        when = "now" if self._saved else "after this step"
        print(f"\nstopping {when}; the state is saved and the same command goes on from it", file=sys.stderr)
        if self._saved:
            raise SystemExit(128 + number)
        self.signal = number


def _git(*arguments: str) -> str:
    try:
        command = ["git", "-C", str(ROOT), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
