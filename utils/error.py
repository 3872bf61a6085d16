"""What a user can mend."""


class UserError(Exception):
    """Commands end with its message in one line, which names what is wrong and what to do; others are bugs."""
