"""Captions of different granularity and the part labels each of them asks for.

"a photo of a dog" asks for its coarse parts, "a dog, left and right" for the fine parts on its sides, the
empty caption only for the objects. This stands in for real captions: a template under-specifies the image.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

BACKGROUND, OBJECT = 0, 1

KINDS = {"empty": 0.15, "plain": 0.32, "parts": 0.40, "object": 0.10, "absent": 0.03}
PLAIN = ("a photo of {}",) * 4 + ("an image of {}", "{}")
PARTS = (
    "a photo of {subject}, {parts}",
    "the {parts} of {subject}",
    "{subject}, {parts}",
    "{parts} {subject}",
)
SIDES = frozenset({"left", "right", "front", "back"})
JOINTS = (", ", " and ", " ")
ALL_PARTS = "all parts"
ALL_SHARE = 0.35  # share of part captions that ask for every part
COLOUR_SHARE = 0.2
MAX_WORDS = 6


@dataclass(frozen=True)
class Caption:
    """A text and what it asks for: fine labels of `parts`, coarse labels of the rest of the named categories.

    `categories` None names no category: every object counts, and what has no fine label is a generic object.
    """

    text: str
    categories: frozenset[str] | None = None
    parts: frozenset[str] = frozenset()


def part_words(category) -> dict[str, frozenset[str]]:
    """Return the words that can name fine parts of a category: each part, plurals, sides and coarse parts.

    A part is called by its noun and its sides: "wheel front-left" is also "front left wheel" and
    one of "wheels", "front" and "left".
    """
    words = defaultdict(set)
    for part, coarse in zip(category.fine_parts, category.coarse_of, strict=True):
        noun = " ".join(word for word in _spoken(part).split() if word not in SIDES)
        sides = [word for word in _spoken(part).split() if word in SIDES]
        plural = [f"{noun}s"] if noun and sides else []
        for word in (_spoken(part), " ".join([*sides, noun]).strip(), *sides, *plural):
            words[word].add(part)
        words[_spoken(category.coarse_parts[coarse])].add(part)
    return {word: frozenset(parts) for word, parts in words.items()}


def _spoken(name: str) -> str:
    return name.replace("_", " ").replace("-", " ")


class LabelSpace:
    """One integer per (category, coarse or fine part), after background 0 and generic object 1."""

    def __init__(self, categories: Mapping[str, object]):
        self.coarse: dict[str, np.ndarray] = {}  # label of the coarse part, by part value (0 = none)
        self.fine: dict[str, np.ndarray] = {}  # label of the fine part, by part value
        self.part_index: dict[str, dict[str, int]] = {}
        self.size = OBJECT + 1
        for name in sorted(categories):
            self._add(name, categories[name])

    def _add(self, name: str, category) -> None:
        coarse_of = np.asarray(category.coarse_of)
        first_fine = self.size + len(category.coarse_parts)
        self.coarse[name] = np.concatenate([[BACKGROUND], self.size + coarse_of])
        self.fine[name] = np.concatenate([[BACKGROUND], first_fine + np.arange(len(coarse_of))])
        self.part_index[name] = {part: i for i, part in enumerate(category.fine_parts, start=1)}
        self.size = first_fine + len(coarse_of)

    def part_table(self, caption: Caption, category: str) -> np.ndarray:
        """Return the label of each part value of a category under a caption, shape (1 + fine parts,)."""
        table = self.coarse[category].copy()
        if caption.categories is None:
            table[1:] = OBJECT
        elif category not in caption.categories:
            return np.zeros_like(table)
        asked = [value for part, value in self.part_index[category].items() if part in caption.parts]
        table[asked] = self.fine[category][asked]
        return table

    def asked(self, caption: Caption) -> list[int]:
        """Return the labels a caption asks for as far as its text tells."""
        if caption.categories is None:
            return [OBJECT]
        known = sorted(caption.categories & self.coarse.keys())
        return sorted({int(label) for name in known for label in self.part_table(caption, name)[1:]})

    def label_map(
        self, caption: Caption, part: np.ndarray, instance: np.ndarray, categories: Sequence[str]
    ) -> np.ndarray:
        """Return the labels (h, w) int64 asked for; object i of `instance` is of `categories[i - 1]`."""
        labels = np.full(part.shape, BACKGROUND, dtype=np.int64)
        for number, category in enumerate(categories, start=1):
            mask = instance == number
            labels[mask] = self.part_table(caption, category)[part[mask]]
        return labels


class CaptionSampler:
    """Draws captions for scenes described by their objects (category, colour, facing)."""

    def __init__(self, categories: Mapping[str, object]):
        self.fine_parts = {name: tuple(category.fine_parts) for name, category in categories.items()}
        self.words = {name: part_words(category) for name, category in categories.items()}

    def draw(self, rng: np.random.Generator, objects: Sequence[Mapping[str, str]]) -> Caption:
        """Draw the caption of a scene."""
        kind = rng.choice(list(KINDS), p=list(KINDS.values()))
        if kind == "empty":
            return Caption("")
        if kind == "absent":
            return self._absent(rng, objects)
        if kind == "object":
            present = frozenset(o["category"] for o in objects)
            if rng.random() < 0.5:
                return Caption(_pick(rng, PLAIN).format("an object"))
            return self._with_parts(rng, "an object", present, named=False)
        subject, named = self._subject(rng, objects)
        if kind == "plain":
            return Caption(_pick(rng, PLAIN).format(subject), named)
        return self._with_parts(rng, subject, named)

    def _absent(self, rng: np.random.Generator, objects: Sequence[Mapping[str, str]]) -> Caption:
        names = sorted(set(self.words) - {o["category"] for o in objects})
        name = _pick(rng, names)
        return Caption(_pick(rng, PLAIN).format(f"a {_spoken(name)}"), frozenset([name]))

    @staticmethod
    def _subject(rng: np.random.Generator, objects: Sequence[Mapping[str, str]]) -> tuple[str, frozenset[str]]:
        names = [o["category"] for o in objects]
        if len(set(names)) > 1 and rng.random() < 0.5:
            order = [names[i] for i in rng.permutation(len(names))]
            return " and ".join(f"a {_spoken(name)}" for name in order), frozenset(order)
        chosen = objects[rng.integers(len(objects))]
        name = chosen["category"]
        coloured = names.count(name) == 1 and rng.random() < COLOUR_SHARE
        return f"a {chosen['colour']} {_spoken(name)}" if coloured else f"a {_spoken(name)}", frozenset([name])

    def _with_parts(
        self, rng: np.random.Generator, subject: str, categories: frozenset[str], named: bool = True
    ) -> Caption:
        if rng.random() < ALL_SHARE:
            phrase, parts = (
                ALL_PARTS,
                frozenset(part for name in categories for part in self.fine_parts[name]),
            )
        else:
            phrase, parts = self._draw_words(rng, sorted(categories))
        template = _pick(rng, PARTS).replace("the {parts}", "{parts}" if phrase == ALL_PARTS else "the {parts}")
        return Caption(template.format(subject=subject, parts=phrase), categories if named else None, parts)

    def _draw_words(self, rng: np.random.Generator, categories: Sequence[str]) -> tuple[str, frozenset[str]]:
        words = sorted(set().union(*(self.words[name] for name in categories)))
        count = rng.integers(1, min(MAX_WORDS, len(words)) + 1)
        chosen = [words[i] for i in rng.choice(len(words), size=count, replace=False)]
        parts = [self.words[name].get(word, frozenset()) for name in categories for word in chosen]
        return _pick(rng, JOINTS).join(chosen), frozenset().union(*parts)


def _pick(rng: np.random.Generator, choices: Sequence[str]) -> str:
    return choices[rng.integers(len(choices))]
