"""The two processes of a pretraining, of one thread each on any machine, so that the recipe is the same."""

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist

PROCESSES = 2
ADDRESS = "MINI_PRETRAIN_ADDRESS"  # environment variable that tells the second process where the first one listens


def start_second() -> subprocess.Popen:
    """Start this program again as the second process and meet it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{probe.getsockname()[1]}"
    command = [sys.executable, "-m", sys.modules["__main__"].__spec__.name, *sys.argv[1:]]
    second = subprocess.Popen(command, env={**os.environ, ADDRESS: address})
    dist.init_process_group("gloo", init_method=address, rank=0, world_size=PROCESSES)
    return second


def join_first() -> bool:
    """Whether this is the second process, which then has met the first."""
    address = os.environ.get(ADDRESS)
    if address:
        end_with_parent()
        dist.init_process_group("gloo", init_method=address, rank=1, world_size=PROCESSES)
    return bool(address)


def end_with_parent() -> None:
    """End this process when the one that started it is gone, even if that was killed."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def first_process_first() -> Iterator[None]:
    """Let the first process make a file that the others then find."""
    rank = dist.get_rank() if dist.is_initialized() else 0
    if rank > 0:
        dist.barrier()
    yield
    if rank == 0 and dist.is_initialized():
        dist.barrier()
