"""How two objects of a picture stand to each other, in words: where to put them, and what is to be seen.

Boxes are x1, y1, x2, y2 in pixels, sizes (H, W).
"""

from __future__ import annotations

from collections.abc import Sequence

from mini.render.appearance import Draws

RELATIONS = ("left of", "right of", "above", "below", "on")
_TOUCH = 0.05  # share of the image: boxes that overlap or gape less than this touch
_APART = 0.08  # share of the image: a box that is this far over another is above it


class Arrangement:
    """A line between two objects, the first of which is to stand to the second as `relation` says."""

    def __init__(self, draws: Draws, relation: str, size: tuple[int, int]) -> None:
        h, w = size
        self.draws = draws
        self.beside = relation in ("left of", "right of")
        self.first_is_low = relation in ("left of", "above", "on")  # of the two coordinates across the line
        self.length, self.width = (w, h) if self.beside else (h, w)
        gap = {"on": -0.4 * _TOUCH, "above": 1.3 * _APART, "below": 1.3 * _APART}.get(relation, 0.0)
        self.half_gap, self.touching = gap * self.length / 2, relation == "on"
        self.line = draws.uniform(0.42, 0.58) * self.length
        self.middle = draws.uniform(0.42, 0.58) * self.width

    def place(self, order: int, half: tuple[float, float]) -> tuple[float, tuple[float, float]]:
        """Factor for the size of object `order` and the centre (x, y) of its box, of half width and height `half`."""
        along, across = half if self.beside else half[::-1]
        low = (order == 0) == self.first_is_low
        room = (self.line if low else self.length - 1 - self.line) - self.half_gap
        factor = min(1.0, room / (2 * along), (self.width - 1) / (2 * across))
        along, across = along * factor, across * factor
        slack = 0.0 if self.touching else self.draws.uniform(0, room - 2 * along)
        offset = self.half_gap + along + slack
        centre = self.line - offset if low else self.line + offset
        aside = self.middle + self.draws.uniform(-0.06, 0.06) * self.width
        aside = min(max(aside, across), self.width - 1 - across)
        return factor, (centre, aside) if self.beside else (aside, centre)


def find_relation(first: Sequence[float], second: Sequence[float], size: tuple[int, int]) -> str | None:
    """How the first box stands to the second; None when none of the words is plainly true."""
    h, w = size
    if _overlap(first, second, axis=0) >= 0.5:
        gap = second[1] - first[3]
        if abs(gap) <= _TOUCH * h:
            return "on"
        if gap > _APART * h:
            return "above"
        return "below" if first[1] - second[3] > _APART * h else None
    if _overlap(first, second, axis=1) >= 0.5:
        if first[2] <= second[0] + _TOUCH * w:
            return "left of"
        return "right of" if second[2] <= first[0] + _TOUCH * w else None
    return None


def describe(things: Sequence[tuple[str, str]], relation: str) -> str:
    """The sentence of two things, each a colour ("" for none) and a category, and their relation."""
    first, second = (" ".join(["a", *filter(None, thing)]).replace("_", " ") for thing in things)
    return f"{first} {relation} {second}"


def _overlap(first: Sequence[float], second: Sequence[float], axis: int) -> float:
    """Common length of two boxes along an axis, as a share of the shorter one."""
    common = min(first[axis + 2], second[axis + 2]) - max(first[axis], second[axis]) + 1
    return common / (1 + min(box[axis + 2] - box[axis] for box in (first, second)))
