"""What a user can mend: printed without a traceback by the entry points. Anything else is a bug and shows one."""

from config import ConfigError
from dataset import DatasetError, MissingDataError
from model.error import NetworkError, NetworkNotFoundError, PromptError, PromptNotFoundError
from utils.cache import CacheError
from utils.checkpoint import CheckpointError

USER_ERRORS = (
    CacheError,
    CheckpointError,
    ConfigError,
    DatasetError,
    MissingDataError,
    NetworkError,
    NetworkNotFoundError,
    PromptError,
    PromptNotFoundError,
)
