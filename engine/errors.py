"""What a user can mend: printed without a traceback by the entry points. Anything else is a bug and shows one."""

import errno

import torch

from config import ConfigError
from utils.error import UserError

# OSError: a folder that cannot be written, a full disk, a file that is not there
USER_ERRORS = (OSError, MemoryError, torch.OutOfMemoryError, ConfigError, UserError)


def explain(error: Exception) -> str:
    """What to print of a user error."""
    if isinstance(error, torch.OutOfMemoryError):
        return (
            "out of GPU memory. In training raise TRAIN.ACCUMULATION or set NETWORK.RECOMPUTE True (same numbers); "
            f"in evaluation lower EVAL.BATCH_SIZE. ({error})"
        )
    if isinstance(error, MemoryError):
        return f"out of memory; lower EVAL.BATCH_SIZE, TRAIN.BATCH_SIZE or DATASET.IMAGE_SIZE ({error})"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        where = f" ({error.filename})" if error.filename else ""
        return (
            f"the disk is full{where}: make room, or choose another OUTPUT_ROOT or CACHE_ROOT; what was whole before "
            "is kept, and the same command goes on from it"
        )
    return str(error)
