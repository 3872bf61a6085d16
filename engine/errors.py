"""What a user can mend: printed without a traceback by the entry points. Anything else is a bug and shows one."""

import torch

from config import ConfigError
from dataset import DatasetError, MissingDataError
from engine.monitor import DivergedError
from model.error import NetworkError, NetworkNotFoundError, PromptError, PromptNotFoundError
from utils.image import ImageError
from utils.store import StoreError

USER_ERRORS = (
    OSError,  # a folder that cannot be written, a full disk
    torch.OutOfMemoryError,
    ConfigError,
    DatasetError,
    DivergedError,
    ImageError,
    MissingDataError,
    NetworkError,
    NetworkNotFoundError,
    PromptError,
    PromptNotFoundError,
    StoreError,
)


def explain(error: Exception) -> str:
    """What to print of a user error."""
    if isinstance(error, torch.OutOfMemoryError):
        return (
            "out of GPU memory. In training raise TRAIN.ACCUMULATION or set NETWORK.RECOMPUTE True (same numbers); "
            f"in evaluation lower EVAL.BATCH_SIZE. ({error})"
        )
    return str(error)
