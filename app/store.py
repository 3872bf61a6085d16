"""A bounded store: of what browsers have on their screens, and of what was computed for them."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

Value = TypeVar("Value")


class Latest(Generic[Value]):
    """At most `limit` values by key; the one that was not used for longest goes first."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._values: OrderedDict[Hashable, Value] = OrderedDict()
        self._lock = threading.Lock()
        self._making = threading.Lock()

    def __len__(self) -> int:
        return len(self._values)

    def find(self, key: Hashable) -> Value | None:
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
            return self._values.get(key)

    def find_or_make(self, key: Hashable, make: Callable[[], Value]) -> Value:
        """The value of a key, made once, whoever asks at the same time; `find` does not wait for that.

        Room is made before a new one: never are there more than `limit` in memory.
        """
        with self._making:
            value = self.find(key)
            if value is None:
                self._make_room()
                value = make()
                with self._lock:
                    self._values[key] = value
            return value

    def drop(self, key: Hashable) -> None:
        with self._lock:
            self._values.pop(key, None)

    def _make_room(self) -> None:
        with self._lock:
            while len(self._values) >= self.limit:
                self._values.popitem(last=False)
