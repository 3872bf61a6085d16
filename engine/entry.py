"""How every command ends: one line on stderr for what its user can mend, and the exit status. Imports nothing heavy."""

import functools
import sys
from collections.abc import Callable
from pathlib import Path

Main = Callable[..., int | None]


def entry_point(
    interrupted: str = "", *, mendable: tuple[type[Exception], ...] = (), status: int = 1
) -> Callable[[Main], Main]:
    """Decorates a command's main(): errors that its user can mend become a line of `tell` and an exit status.

    0 if it returns None; 2 for a wrong setting (ConfigError), `status` for the other engine.errors.USER_ERRORS and the
    types `mendable`, 130 for Ctrl-C, after which `interrupted` says what becomes of the work. Anything else is a bug
    and keeps its traceback.
    """

    def decorate(main: Main) -> Main:
        @functools.wraps(main)
        def run(*args, **kwargs) -> int:
            try:
                return main(*args, **kwargs) or 0
            except KeyboardInterrupt:
                if interrupted:
                    tell(f"interrupted; {interrupted}")
                return 130
            except Exception as error:
                from config import ConfigError

                if isinstance(error, ConfigError):
                    tell(str(error))
                    return 2

                from engine.errors import USER_ERRORS, explain  # imports torch, which --help need not wait for

                if isinstance(error, (*USER_ERRORS, *mendable)):
                    tell(explain(error))
                    return status
                raise

        return run

    return decorate


def tell(message: str) -> None:
    """Print "train.py: message" on stderr, under the name that the command was called by."""
    print(f"{Path(sys.argv[0]).name}: {message}", file=sys.stderr)
