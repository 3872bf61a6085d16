"""demo.py as a user starts it, with the mini networks, on a free port of the loopback."""

import os
import re
import subprocess
import sys
import time
from contextlib import contextmanager

from config import ROOT


@contextmanager
def running_app(folder, *flags):
    """(process, port) of the app, whose temporary files go to `folder`/tmp and whose output to `folder`/log.txt."""
    (folder / "tmp").mkdir()
    log = folder / "log.txt"
    env = {**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(folder / "tmp")}
    command = [sys.executable, "demo.py", "--device", "cpu", "--port", "0", *flags]
    with open(log, "w") as file, subprocess.Popen(command, cwd=ROOT, env=env, stdout=file, stderr=file) as server:
        try:
            yield server, _wait_for_port(server, log)
        finally:
            server.terminate()


def _wait_for_port(server, log):
    for _ in range(600):
        if found := re.search(r"open http://127\.0\.0\.1:(\d+)", log.read_text()):
            return int(found[1])
        assert server.poll() is None, log.read_text()
        time.sleep(0.2)
    raise AssertionError(f"the app did not start:\n{log.read_text()}")
