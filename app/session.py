"""What one browser has on its screen: two photos and numbered points. Nothing here runs a network."""

from __future__ import annotations

import itertools
import math
import secrets
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from app.photo import Photo

MAX_POINTS = 50


@dataclass(frozen=True)
class Settings:
    """What the features depend on, and the localiser, which they do not depend on."""

    method: str
    prompt: str
    category: str
    timestep: int
    localiser: str


@dataclass(frozen=True)
class Point:
    """A place in the source and, once found, in the target; px of the original photos."""

    number: int
    x: float
    y: float
    found: tuple[float, float] | None = None
    confidence: float | None = None


Request = tuple[Photo | None, Photo | None, Settings | None]  # what the features depend on


class RequestError(ValueError):
    """What cannot be done for a user; the message is for them."""


@dataclass
class Session:
    """One browser's photos and points; several of its requests may be under way, so every change takes the lock."""

    source: Photo | None = None
    target: Photo | None = None
    settings: Settings | None = None
    points: list[Point] = field(default_factory=list)
    selected: int | None = None  # number of the point whose heat map is shown
    ready: bool = False  # the features of these photos under these settings are known
    revision: int = 0
    name: str = field(default_factory=lambda: secrets.token_hex(8))  # tells revisions of two sessions apart
    lock: threading.RLock = field(default_factory=threading.RLock, repr=False)
    _numbers: Any = field(default_factory=lambda: itertools.count(1), repr=False)

    @property
    def request(self) -> Request:
        with self.lock:
            return self.source, self.target, self.settings

    def load(self, **changes: Photo | Settings | None) -> bool:
        """Take a source, target or settings; whether anything is new. Points survive new settings, not new photos."""
        with self.lock:
            before = self.request
            for name, value in changes.items():
                setattr(self, name, value)
            if self.request == before:
                return False
            if self.request[:2] != before[:2]:
                self._forget_points()
            self.points = [replace(point, found=None, confidence=None) for point in self.points]
            self.ready = False
            return True

    def place(self, x: float, y: float) -> Point:
        """A new point at (x, y) of the source, moved into the photo; it is selected."""
        with self.lock:
            if self.source is None or self.target is None:
                raise RequestError("The server does not have this page's images (any more). Choose both images first.")
            if len(self.points) >= MAX_POINTS:
                raise RequestError(f"There are {MAX_POINTS} points already; remove some first.")
            if not (math.isfinite(x) and math.isfinite(y)):
                raise RequestError("A point is two numbers, x and y.")
            height, width = self.source.size
            x, y = min(max(x, 0.0), width - 1.0), min(max(y, 0.0), height - 1.0)
            point = Point(next(self._numbers), x, y)
            self.points.append(point)
            self.selected = point.number
            return point

    def answer(self, points: Sequence[Point]) -> None:
        """Put points with their matches in the place of those of the same number, if those are still there."""
        with self.lock:
            by_number = {point.number: point for point in points}
            self.points = [by_number.get(point.number, point) for point in self.points]

    def next_waiting(self, request: Request) -> Point | None:
        """The first point that has no match yet; none if there is none, which is noted, or the request is outdated."""
        with self.lock:
            if request != self.request:
                return None
            waiting = next((point for point in self.points if point.found is None), None)
            self.ready = waiting is None
            return waiting

    def select(self, number: int) -> None:
        with self.lock:
            if any(point.number == number for point in self.points):
                self.selected = number

    def remove(self, number: int | None = None) -> None:
        """Remove a point, by default the last one."""
        with self.lock:
            number = self.points[-1].number if number is None and self.points else number
            self.points = [point for point in self.points if point.number != number]
            if self.selected == number:
                self.selected = self.points[-1].number if self.points else None

    def clear(self) -> None:
        with self.lock:
            self._forget_points()

    def swap(self) -> None:
        """Exchange the photos. What was found becomes what is asked, so the way back can be seen."""
        with self.lock:
            self.source, self.target, self.ready = self.target, self.source, False
            found = [point for point in self.points if point.found is not None]
            self.points = [Point(point.number, *point.found) for point in found]
            if self.points and self.selected not in {point.number for point in self.points}:
                self.selected = self.points[-1].number

    def find(self, number: int | None) -> Point | None:
        """The point of that number."""
        return next((point for point in self.points if point.number == number), None)

    def next_revision(self) -> int:
        """Counts the states that went to the browser, so that one that arrives late is not shown."""
        with self.lock:
            self.revision += 1
            return self.revision

    def _forget_points(self) -> None:
        self.points, self.selected, self._numbers = [], None, itertools.count(1)
