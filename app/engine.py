"""The networks behind the app: matchers and pairs of images, a bounded number of each, shared by all browsers."""

from __future__ import annotations

import base64
import io
import threading
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from PIL import Image

from app.photo import Photo
from app.session import Point, Session, Settings
from app.store import Latest

HEAT_SIDE = 160  # px of the longer side of a heat map on its way to the browser
Report = Callable[[float, str], None]  # share done, what is being done


class Family:
    """A matcher and those that share its networks: at most `max_prompts` prompts, each at any timestep."""

    def __init__(self, first: Any, max_prompts: int = 4) -> None:
        self._first = first
        self._prompts: Latest[dict[int | None, Any]] = Latest(max_prompts)  # by timestep; None: as it was made

    def find(self, prompt: str, timestep: int) -> Any:
        """The matcher in this setting; a method that takes no prompt ignores it."""
        by_timestep = self._prompts.find_or_make(prompt, lambda: {None: self._under(prompt)})
        if timestep not in by_timestep:
            by_timestep[timestep] = by_timestep[None].at(timestep=timestep)
        return by_timestep[timestep]

    def _under(self, prompt: str) -> Any:
        return self._first if self._first.prompt_name in (None, prompt) else self._first.with_prompt(prompt)


class Engine:
    """Answers questions about points.

    load: method -> sd4match.Matcher under any prompt. Networks run one at a time, whoever asks; matching points on
    known features does not wait for them.
    """

    def __init__(self, load: Callable[[str], Any], max_methods: int = 2, max_pairs: int = 16) -> None:
        self._load = load
        self._families: Latest[Family] = Latest(max_methods)
        self._pairs = Latest(max_pairs)
        self._images = Latest(2 * max_pairs)
        self._networks = threading.RLock()

    def prepare(self, session: Session, report: Report = lambda share, what: None) -> None:
        """Compute the features of a session's photos, unless they are known, and match its points again."""
        with session.lock:
            request = (session.source, session.target, session.settings)
        pair = self._find_pair(*request, report)
        with session.lock:
            if request == (session.source, session.target, session.settings):  # else a newer request is on its way
                session.ready = True
                session.answer(match_points(pair, session.points, session.settings.localiser))

    def match(self, session: Session, point: Point) -> None:
        """Find a point of a session. Fast if its features are known; if they are being computed, `prepare` will."""
        with session.lock:
            if not session.ready:
                return
            request = (session.source, session.target, session.settings)
        pair = self._find_pair(*request)
        with session.lock:
            if request == (session.source, session.target, session.settings):
                session.answer(match_points(pair, [point], session.settings.localiser))

    def heat(self, session: Session) -> dict | None:
        """{"number", "url"} of the selected point's heat map on the target, a transparent picture; None if none."""
        with session.lock:
            point = session.find(session.selected)
            request = (session.source, session.target, session.settings)
            if point is None or not session.ready:
                return None
        pair = self._find_pair(*request)
        height, width = request[1].size
        scale = min(1.0, HEAT_SIDE / max(height, width))
        size = (max(1, round(height * scale)), max(1, round(width * scale)))
        return {"number": point.number, "url": paint_heat(pair.heatmap((point.x, point.y), size))}

    def find_pair(self, session: Session) -> Any:
        """The sd4match.Pair of a session; None if it is not ready."""
        with session.lock:
            if not session.ready:
                return None
            request = (session.source, session.target, session.settings)
        return self._find_pair(*request)

    def _find_pair(
        self, source: Photo, target: Photo, settings: Settings, report: Report = lambda share, what: None
    ) -> Any:
        key = (settings.method, settings.prompt, settings.timestep, settings.category)
        known = self._pairs.find((key, source, target))
        if known is not None:
            return known
        with self._networks:
            return self._pairs.find_or_make((key, source, target), lambda: self._make_pair(key, source, target, report))

    def _make_pair(self, key: tuple, source: Photo, target: Photo, report: Report) -> Any:
        swapped = self._pairs.find((key, target, source))
        if swapped is not None:
            return swapped.swap()
        method, prompt, timestep, category = key
        report(0.05, "loading the networks")
        family = self._families.find_or_make(method, lambda: Family(self._load(method)))
        matcher = family.find(prompt, timestep)
        features = []
        for number, (photo, name) in enumerate(((source, "source"), (target, "target"))):
            report(0.3 + 0.3 * number, f"features of the {name} image")
            encode = partial(_encode, matcher, photo, category)
            features.append(self._images.find_or_make((key, photo), encode))
        report(0.9, "putting them together")
        return matcher.pair(*features)


def _encode(matcher: Any, photo: Photo, category: str) -> Any:
    return matcher.encode(photo.read(), category or None)


def match_points(pair: Any, points: list[Point], localiser: str) -> list[Point]:
    """The points with what `pair` finds for them."""
    if not points:
        return []
    found = pair.match([(point.x, point.y) for point in points], localiser)
    places = zip(points, found.points.tolist(), found.confidence.tolist(), strict=True)
    return [replace(point, found=tuple(place), confidence=confidence) for point, place, confidence in places]


def paint_heat(heat: np.ndarray) -> str:
    """A heat map (H, W) in [0, 1] in viridis' colours, clearer where it is lower, as a data: URL."""
    from matplotlib import colormaps

    low, high = float(heat.min()), float(heat.max())
    stretched = (heat - low) / max(high - low, 1e-12)
    pixels = colormaps["viridis"](stretched, bytes=True)
    pixels[..., 3] = np.round(255 * (0.2 + 0.7 * stretched**2))
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="png")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
