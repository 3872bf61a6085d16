"""What long work does, how far it is and how long it will take: a bar in a terminal, lines in a log file."""

import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

LINE_EVERY = 10.0  # seconds between two lines of a log file


class _Lines(tqdm):
    """A bar for what is no terminal: a whole line now and then, instead of one that is drawn over."""

    _line_at = None  # when the last line was written

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        if self._time() - (self._line_at or self.start_t) >= self.mininterval:
            self._write_line()

    def close(self) -> None:
        if not self.disable and self._line_at and self.n > self.last_print_n:
            self._write_line()
        self.disable = True

    def _write_line(self) -> None:
        self._line_at = self._time()
        self.fp.write(f"{self}\n")
        self.fp.flush()


def progress(
    iterable: Iterable | None = None, what: str = "", total: int | None = None, shown: bool = True, **options: Any
) -> tqdm:
    """The items of `iterable`; says on stderr `what` is done, how far it is and how long it will take: a tqdm bar.

    Nothing is said of work that is over within a second (a terminal) or LINE_EVERY seconds (a log file). Without an
    iterable use it by `with` and call `update`. shown: False in all processes but one. options: of tqdm, such as
    `unit` and `initial`.
    """
    options |= {"iterable": iterable, "desc": what, "total": total, "disable": not shown, "file": sys.stderr}
    if sys.stderr.isatty():
        return tqdm(delay=1, dynamic_ncols=True, **options)
    return _Lines(delay=1e-3, mininterval=LINE_EVERY, maxinterval=LINE_EVERY, miniters=1, ncols=100, **options)
