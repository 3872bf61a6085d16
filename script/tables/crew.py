"""Runs groups of jobs side by side, each command in a slot of its own: a GPU, or a share of the CPU's cores."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from config import ROOT

Job = TypeVar("Job")
Slot = dict[str, str]  # environment variables of its commands
CPU_SLOTS = 2  # one-thread processes make better use of a CPU than the threads of one process


def find_slots(count: int | None = None) -> list[Slot]:
    """`count` slots; by default one per GPU, without a GPU two."""
    import torch

    gpus = torch.cuda.device_count()
    if gpus and (count or gpus) > 1:
        names = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(gpus)))).split(",")
        return [{"CUDA_VISIBLE_DEVICES": names[slot % gpus]} for slot in range(count or gpus)]
    if gpus:
        return [{}]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    count = count or min(CPU_SLOTS, cores)
    threads = os.environ.get("OMP_NUM_THREADS", str(max(1, cores // count)))
    return [{"OMP_NUM_THREADS": threads}] * count


class Crew:
    """One worker per slot. When one of them fails, or the main thread is interrupted, all commands are stopped."""

    def __init__(self, slots: Sequence[Slot]) -> None:
        self.slots = list(slots)
        self._running: set[subprocess.Popen] = set()
        self._lock, self._stopped = threading.Lock(), False
        self._cause: BaseException | None = None  # why it was stopped

    @property
    def rows_per_device(self) -> int:
        """How many workers share a GPU, or the CPU."""
        return max(Counter(tuple(slot.items()) for slot in self.slots).values())

    def run(self, command: Sequence[str], log: Path, slot: Slot) -> int:
        """The exit status of a command whose output goes to `log`; KeyboardInterrupt if the crew was stopped."""
        log.parent.mkdir(parents=True, exist_ok=True)
        with open(log, "w") as file:
            process = self._start(command, file, slot)
            status = process.wait()
        self._running.discard(process)
        if self._stopped:
            raise KeyboardInterrupt
        return status

    def _start(self, command: Sequence[str], file, slot: Slot) -> subprocess.Popen:
        with self._lock:
            if self._stopped:
                raise KeyboardInterrupt
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=os.environ | slot,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            self._running.add(process)
        return process

    def stop(self, cause: BaseException) -> None:
        """Start no more commands, and ask those that run to stop: train.py saves and can go on."""
        with self._lock:
            if self._stopped:
                return
            self._stopped, self._cause = True, cause
            for process in list(self._running):
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGTERM)

    def work(self, groups: Sequence[Sequence[Job]], do: Callable[[Job, Slot], None]) -> None:
        """Call `do` for every job, the jobs of a group one after the other; raises what stopped it."""
        try:
            if len(self.slots) == 1:
                for group in groups:
                    self._work_off(group, do, self.slots[0])
            else:
                self._share_out(groups, do)
        except BaseException as error:
            self.stop(error)
            for process in list(self._running):
                process.wait()
            raise self._cause from None

    def _share_out(self, groups: Sequence[Sequence[Job]], do: Callable[[Job, Slot], None]) -> None:
        free: queue.SimpleQueue[Slot] = queue.SimpleQueue()
        for slot in self.slots:
            free.put(slot)

        def work_off(group: Sequence[Job]) -> None:
            slot = free.get()
            try:
                self._work_off(group, do, slot)
            except BaseException as error:
                self.stop(error)
                raise
            finally:
                free.put(slot)

        with ThreadPoolExecutor(len(self.slots)) as pool:
            try:
                for future in as_completed([pool.submit(work_off, group) for group in groups]):
                    future.result()
            except BaseException as error:
                self.stop(error)  # else the pool would wait for all that is left
                raise

    def _work_off(self, group: Sequence[Job], do: Callable[[Job, Slot], None], slot: Slot) -> None:
        for job in group:
            if not self._stopped:
                do(job, slot)
