"""What can be wrong with a network or a prompt on disk."""

from utils.error import UserError


class NetworkNotFoundError(FileNotFoundError):
    """A frozen network is not where it was looked for; the message says where that was and what to do."""


class NetworkError(UserError, ValueError):
    """A frozen network's files are unusable: unreadable, incomplete, or of another kind."""


class PromptNotFoundError(FileNotFoundError):
    """There is no prompt of this name; the message lists those that exist."""


class PromptError(UserError, ValueError):
    """A prompt's files are unusable, or the prompt belongs to another backbone or data set."""
