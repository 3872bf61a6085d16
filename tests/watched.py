"""FILE SCRIPT ...: run a command under tests.watch, as one of several processes; its gradients go to FILE.RANK."""

import os
import sys

import torch

from tests.command import call
from tests.watch import watching

if __name__ == "__main__":
    file, *command = sys.argv[1:]
    with watching() as seen:
        status = call(*command)
    torch.save(torch.stack([step.gradient for step in seen.steps]), f"{file}.{os.environ['RANK']}")
    sys.exit(status)
