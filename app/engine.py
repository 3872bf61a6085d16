"""The networks behind the app: matchers and pairs of images, a bounded number of each, shared by all browsers."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from cachetools import LRUCache

from app.photo import Photo, paint_heat, to_data_url
from app.session import Point, Request, Session

HEAT_SIDE = 160  # px of the longer side of a heat map on its way to the browser
MAX_METHODS, MAX_SETTINGS = 2, 8  # in memory; a setting is a prompt and a timestep of one method
Report = Callable[[float, str], None]  # share done, what is being done


class Cancelled(Exception):
    """Nobody waits for this point any more."""


class Engine:
    """Answers questions about points.

    load: method -> sd4match.Matcher under any prompt. Networks run one at a time, whoever asks; matching points on
    known features does not wait for them.
    """

    def __init__(
        self, load: Callable[[str], Any], max_pairs: int = 16, load_scorer: Callable[[], Any] | None = None
    ) -> None:
        """load_scorer: gives the sd4match.Scorer, when texts are first asked about; None: there is none."""
        self._load = load
        self.load_scorer, self._scorer = load_scorer, None
        self._methods = LRUCache(MAX_METHODS)  # the matcher that loaded the networks, and those that share them
        self._images = LRUCache(2 * max_pairs)
        self._pairs = LRUCache(max_pairs)
        self._reading = threading.Lock()  # of _pairs
        self._networks = threading.Lock()  # of the networks and the other stores

    def prepare(self, session: Session, report: Report = lambda share, what: None) -> None:
        """Compute the features of a session's photos, unless they are known, and match its points again."""
        request = session.request
        pair = self._find_pair(request, report)
        if pair.slow:
            self._match_slowly(session, request, pair, report)
            return
        with session.lock:
            if request == session.request:  # else a newer request is on its way
                session.ready = True
                session.answer(match_points(pair, session.points, session.settings.localiser))

    def match(self, session: Session, point: Point) -> None:
        """Find a point of a session. Fast if its features are known; if they are being computed, `prepare` will."""
        request, pair = session.request, self.find_pair(session)
        if pair is None:
            return
        if pair.slow:
            session.ready = False  # the page asks for `prepare`, which shows its progress
            return
        with session.lock:
            if request == session.request:
                session.answer(match_points(pair, [point], session.settings.localiser))

    def _match_slowly(self, session: Session, request: Request, pair: Any, report: Report) -> None:
        """One point after the other, while the page goes on; a point that is removed meanwhile is given up."""
        while (point := session.next_waiting(request)) is not None:

            def tell(done: int, total: int, point: Point = point) -> None:
                report(done / total, f"point {point.number}; remove it to cancel")
                if session.find(point.number) is None or session.request != request:
                    raise Cancelled

            try:
                with self._networks:
                    found = match_points(pair, [point], request[2].localiser, progress=tell)
            except Cancelled:
                continue
            with session.lock:
                if request == session.request:
                    session.answer(found)

    def heat(self, session: Session) -> dict | None:
        """{"number", "url"} of the selected point's heat map on the target, a transparent picture; None if none."""
        point, pair = session.find(session.selected), self.find_pair(session)
        if point is None or pair is None:
            return None
        scale = min(1.0, HEAT_SIDE / max(pair.trg.size))
        height, width = (max(1, round(side * scale)) for side in pair.trg.size)
        heat = paint_heat(pair.heatmap((point.x, point.y), (height, width)))
        return {"number": point.number, "url": to_data_url(heat, lossless=True)}

    def score_texts(self, photo: Photo, texts: list[str], report: Report = lambda share, what: None) -> tuple:
        """(sd4match.Scores of the photo, maps of the words of the text that fits best)."""
        with self._networks:
            report(0.05, "loading the networks")
            self._scorer = self._scorer or self.load_scorer()
            report(0.3, "scoring the texts")
            found = self._scorer.score(photo.read(), texts)
            report(0.9, "where the words look")
            return found, self._scorer.read_words(photo.read(), texts[found.best_text()[0]])

    def find_pair(self, session: Session) -> Any:
        """The sd4match.Pair of a session; None if it is not ready."""
        with session.lock:
            request = session.request if session.ready else None
        return request and self._find_pair(request)

    def _find_pair(self, request: Request, report: Report = lambda share, what: None) -> Any:
        source, target, settings = request
        key = (settings.method, settings.prompt, settings.timestep, settings.category)
        if known := self._look_up(key, source, target):
            return known
        with self._networks:
            pair = self._look_up(key, source, target) or self._make_pair(key, source, target, report)
            with self._reading:
                self._pairs[key, source, target] = pair
            return pair

    def _look_up(self, *key: Any) -> Any:
        with self._reading:
            return self._pairs.get(key)

    def _make_pair(self, key: tuple, source: Photo, target: Photo, report: Report) -> Any:
        swapped = self._look_up(key, target, source)
        if swapped is not None and not swapped.slow:
            return swapped.swap()
        report(0.05, "loading the networks")
        matcher = self._find_matcher(*key[:3])
        features = []
        for number, (photo, name) in enumerate(((source, "source"), (target, "target"))):
            report(0.3 + 0.3 * number, f"features of the {name} image")
            if (key, photo) not in self._images:
                self._images[key, photo] = matcher.encode(photo.read(), key[3] or None)
            features.append(self._images[key, photo])
        report(0.9, "putting them together")
        return matcher.pair(*features)

    def _find_matcher(self, method: str, prompt: str, timestep: int) -> Any:
        """The matcher of a method, prompt and timestep; a method that takes no prompt ignores it."""
        if method not in self._methods:
            if len(self._methods) == MAX_METHODS:
                self._methods.popitem()  # before the next is loaded: never are there more in memory
            self._methods[method] = self._load(method), LRUCache(MAX_SETTINGS)
        first, known = self._methods[method]
        if (prompt, timestep) not in known:
            same = (matcher for (name, _), matcher in known.items() if name == prompt)
            under = next(same, None) or (first if first.prompt_name in (None, prompt) else first.with_prompt(prompt))
            known[prompt, timestep] = under.at(timestep=timestep)
        return known[prompt, timestep]


def match_points(pair: Any, points: list[Point], localiser: str, **options: Any) -> list[Point]:
    """The points with what `pair` finds for them."""
    if not points:
        return []
    found = pair.match([(point.x, point.y) for point in points], localiser, **options)
    places = zip(points, found.points.tolist(), found.confidence.tolist(), strict=True)
    return [replace(point, found=tuple(place), confidence=confidence) for point, place, confidence in places]
