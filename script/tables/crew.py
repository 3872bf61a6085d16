"""Runs groups of jobs side by side, each command in a slot of its own: a GPU, or a share of the CPU's cores."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import TypeVar

from config import ROOT

Job = TypeVar("Job")
Slot = dict[str, str]  # environment variables of its commands
CPU_SLOTS = 2  # one-thread processes make better use of a CPU than the threads of one process


def find_slots(count: int | None = None) -> list[Slot]:
    """`count` slots; by default one per GPU, without a GPU two."""
    import torch

    if gpus := torch.cuda.device_count():
        names = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(gpus)))).split(",")
        return [{"CUDA_VISIBLE_DEVICES": names[slot % gpus]} for slot in range(count or gpus)]
    cores = len(os.sched_getaffinity(0))
    count = count or min(CPU_SLOTS, cores)
    threads = os.environ.get("OMP_NUM_THREADS", str(max(1, cores // count)))
    return [{"OMP_NUM_THREADS": threads}] * count


class Crew:
    """One worker per slot. When one of them, or the main thread, is interrupted, all commands are stopped."""

    def __init__(self, slots: Sequence[Slot]) -> None:
        self.slots = list(slots)
        self._running: set[subprocess.Popen] = set()
        self._lock, self._stopped = threading.Lock(), False

    def run(self, command: Sequence[str], log: Path, slot: Slot) -> int:
        """The exit status of a command whose output goes to `log`; KeyboardInterrupt if the crew was stopped."""
        log.parent.mkdir(parents=True, exist_ok=True)
        with open(log, "w") as file:
            process = self._start(command, file, slot)
            try:
                status = process.wait()
            except BaseException:
                self.stop()
                raise
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

    def stop(self) -> None:
        """Ask every command to stop (train.py saves and can go on) and wait until they have."""
        with self._lock:
            self._stopped = True
            running = list(self._running)
        for process in running:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)
        for process in running:
            process.wait()

    def work(self, groups: Sequence[Sequence[Job]], do: Callable[[Job, Slot], None]) -> None:
        """Call `do` for every job, the jobs of a group one after the other."""
        if len(self.slots) == 1:
            for group in groups:
                for job in group:
                    do(job, self.slots[0])
            return
        free: queue.SimpleQueue[Slot] = queue.SimpleQueue()
        for slot in self.slots:
            free.put(slot)

        def work_off(group: Sequence[Job]) -> None:
            slot = free.get()
            try:
                for job in group:
                    if self._stopped:
                        return
                    do(job, slot)
            except BaseException:
                self.stop()
                raise
            finally:
                free.put(slot)

        with ThreadPoolExecutor(len(self.slots)) as pool:
            futures = [pool.submit(work_off, group) for group in groups]
            try:
                for future in as_completed(futures):
                    future.result()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                self.stop()
                raise
