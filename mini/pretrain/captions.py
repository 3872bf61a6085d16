"""Captions of different granularity and the part labels each of them asks for.

"a photo of a dog" asks for the dog as a whole, at first now and then for its kinds of part, "a dog, left" for what lies
on its left part by part and for the rest by kinds of part (its legs), "a dog, all parts in detail" for both ends of
every single part, "a red dog left of a blue car" for both wholes, the empty caption only for where objects are; a
caption that is not true asks for nothing. This stands in for real captions: a template under-specifies the image.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mini.render.appearance import COLOUR_NAMES
from mini.render.categories import SIDES
from mini.render.comvg import CHANGES, Statement, change_statement
from mini.render.detail import CODES

BACKGROUND, OBJECT = 0, 1

KINDS = {"empty": 0.07, "plain": 0.22, "parts": 0.33, "object": 0.34, "absent": 0.04}
PAIR_SHARE = 0.6  # share of the scenes of two objects in a plain relation whose caption is a statement on both
UNTRUE_SHARE = 0.35  # share of the statements, and of the named colours of absent things, that are not true
PLAIN = ("a photo of {}",) * 4 + ("an image of {}", "{}")
PARTS = (
    "a photo of {subject}, {parts}",
    "the {parts} of {subject}",
    "{subject}, {parts}",
    "{parts} {subject}",
)
JOINTS = (", ", " and ", " ")
ALL_PARTS, IN_DETAIL = "all parts", "in detail"
KINDS_SHARE = 0.05  # share of plain captions that ask for kinds of part, at first: photos of dogs show legs
ALL_SHARE = 0.65  # share of part captions that ask for every part
DETAIL_SHARE = 0.75  # share of part captions that ask for the ends of the parts
COLOUR_SHARE, FACING_SHARE = 0.4, 0.2
PLAIN_OBJECT_SHARE = 0.2  # share of captions of "an object" that ask for no parts
MAX_WORDS = 6
REVERSED = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}


@dataclass(frozen=True)
class Caption:
    """A text and what it asks for: single `parts` (in `detail`: their ends), the rest of the named categories as a
    whole or by `kinds` of part.

    `categories` None names no category: every object counts, and what is not in `parts` is a generic object.
    One that is not `true` of its scene asks for nothing there.
    """

    text: str
    categories: frozenset[str] | None = None
    kinds: bool = False
    parts: frozenset[str] = frozenset()
    detail: bool = False
    true: bool = True


def part_words(category) -> dict[str, frozenset[str]]:
    """Return the words that can name fine parts of a category: each part, plurals, sides and coarse parts.

    A part is called by its noun and its sides: "wheel front-left" is also "front left wheel" and
    one of "wheels", "front" and "left".
    """
    words = defaultdict(set)
    for part, coarse in zip(category.fine_parts, category.coarse_of, strict=True):
        noun = _noun(part)
        sides = [word for word in _spoken(part).split() if word in SIDES]
        plural = [f"{noun}s"] if noun and sides else []
        for word in (_spoken(part), " ".join([*sides, noun]).strip(), *sides, *plural):
            words[word].add(part)
        words[_spoken(category.coarse_parts[coarse])].add(part)
    return {word: frozenset(parts) for word, parts in words.items()}


def _noun(part: str) -> str:
    return " ".join(word for word in _spoken(part).split() if word not in SIDES)


def _spoken(name: str) -> str:
    return name.replace("_", " ").replace("-", " ")


class LabelSpace:
    """One integer per category, kind of part, part, or end of a part, after background 0 and generic object 1.

    Kin (a wolf and a dog) have their labels in common.
    Tables map the renderer's detail values (0 = none) to labels.
    """

    def __init__(self, categories: Mapping[str, object]):
        self.whole: dict[str, np.ndarray] = {}
        self.kind: dict[str, np.ndarray] = {}
        self.part: dict[str, np.ndarray] = {}
        self.detail: dict[str, np.ndarray] = {}
        self.part_names: dict[str, np.ndarray] = {}  # name of the part by detail value
        self.size = OBJECT + 1
        for name in sorted(categories, key=lambda name: (bool(categories[name].kin), name)):
            if kin := categories[name].kin:
                for table in (self.whole, self.kind, self.part, self.detail, self.part_names):
                    table[name] = table[kin]
            else:
                self._add(name, categories[name].fine_parts)

    def _add(self, name: str, parts: Sequence[str]) -> None:
        kinds = [_noun(part) or part for part in parts]
        known = list(dict.fromkeys(kinds))
        ends = np.arange(len(parts) * CODES)
        for table, index in (
            (self.whole, np.zeros_like(ends)),
            (self.kind, np.array([known.index(kind) for kind in kinds])[ends // CODES]),
            (self.part, ends // CODES),
            (self.detail, ends),
        ):
            table[name] = np.concatenate([[BACKGROUND], self.size + index])
            self.size += int(index.max()) + 1
        self.part_names[name] = np.array(["", *(parts[end // CODES] for end in ends)])

    def part_table(self, caption: Caption, category: str) -> np.ndarray:
        """Return the label of each detail value of a category under a caption, (1 + CODES x fine parts,)."""
        table = (self.kind if caption.kinds else self.whole)[category].copy()
        if caption.categories is None:
            table[1:] = OBJECT
        elif category not in caption.categories:
            return np.zeros_like(table)
        asked = np.isin(self.part_names[category], sorted(caption.parts))
        return np.where(asked, (self.detail if caption.detail else self.part)[category], table)

    def asked(self, caption: Caption) -> list[int]:
        """Return the labels a caption asks for as far as its text tells."""
        if caption.categories is None:
            return [OBJECT]
        known = sorted(caption.categories & self.whole.keys())
        return sorted({int(label) for name in known for label in self.part_table(caption, name)[1:]})

    def label_map(
        self, caption: Caption, detail: np.ndarray, instance: np.ndarray, categories: Sequence[str]
    ) -> np.ndarray:
        """Return the labels (h, w) int64 asked for; object i of `instance` is of `categories[i - 1]`."""
        labels = np.full(detail.shape, BACKGROUND, dtype=np.int64)
        if not caption.true:
            return labels
        for number, category in enumerate(categories, start=1):
            mask = instance == number
            labels[mask] = self.part_table(caption, category)[detail[mask]]
        return labels


class CaptionSampler:
    """Draws captions for scenes described by their objects (category, colour, facing)."""

    def __init__(self, categories: Mapping[str, object]):
        self.fine_parts = {name: tuple(category.fine_parts) for name, category in categories.items()}
        self.words = {name: part_words(category) for name, category in categories.items()}
        self.kin = {name: category.kin or name for name, category in categories.items()}

    def draw(
        self,
        rng: np.random.Generator,
        objects: Sequence[Mapping[str, str]],
        relation: str | None = None,
        kinds_share: float = 0.0,
    ) -> Caption:
        """Draw the caption of a scene; relation: of the first object to the second."""
        if relation and rng.random() < PAIR_SHARE:
            return self._statement(rng, objects, relation)
        kind = rng.choice(list(KINDS), p=list(KINDS.values()))
        if kind == "empty":
            return Caption("")
        if kind == "absent":
            return self._absent(rng, objects)
        if kind == "object":
            present = frozenset(o["category"] for o in objects)
            if rng.random() < PLAIN_OBJECT_SHARE:
                return Caption(_pick(rng, PLAIN).format("an object"))
            return self._with_parts(rng, "an object", present, named=False)
        subject, named = self._subject(rng, objects)
        if kind == "plain":
            return Caption(_pick(rng, PLAIN).format(subject), named, kinds=bool(rng.random() < kinds_share))
        return self._with_parts(rng, subject, named)

    def _absent(self, rng: np.random.Generator, objects: Sequence[Mapping[str, str]]) -> Caption:
        """A category that is not there, nor its kin; or one that is, in a colour that none of the objects has."""
        present = {o["category"] for o in objects}
        if rng.random() < UNTRUE_SHARE:
            name, colours = _pick(rng, sorted(present)), set(COLOUR_NAMES) - {o["colour"] for o in objects}
            text = f"a {_pick(rng, sorted(colours))} {_spoken(name)}"
            return Caption(_pick(rng, PLAIN).format(text), frozenset([name]), true=False)
        kin = {self.kin[name] for name in present}
        name = _pick(rng, sorted(name for name in self.words if self.kin[name] not in kin))
        return Caption(_pick(rng, PLAIN).format(f"a {_spoken(name)}"), frozenset([name]), true=False)

    def _statement(self, rng: np.random.Generator, objects: Sequence[Mapping[str, str]], relation: str) -> Caption:
        """What is true of two objects, or with one thing changed."""
        things = tuple((o["colour"], o["category"]) for o in objects)
        if relation in REVERSED and rng.random() < 0.5:
            things, relation = things[::-1], REVERSED[relation]
        said, true = Statement(things, relation), bool(rng.random() >= UNTRUE_SHARE)
        if not true:
            said = change_statement(rng, said, _pick(rng, CHANGES))
        elif rng.random() < 0.5:
            said = Statement(tuple((_pick(rng, (colour, "")), name) for colour, name in things), relation)
        text = _pick(rng, ("a photo of {}", "{}")).format(said.sentence)
        return Caption(text, frozenset(name for _, name in said.things), true=true)

    @staticmethod
    def _subject(rng: np.random.Generator, objects: Sequence[Mapping[str, str]]) -> tuple[str, frozenset[str]]:
        names = [o["category"] for o in objects]
        if len(set(names)) > 1 and rng.random() < 0.5:
            order = [names[i] for i in rng.permutation(len(names))]
            return " and ".join(f"a {_spoken(name)}" for name in order), frozenset(order)
        chosen = objects[rng.integers(len(objects))]
        name = chosen["category"]
        subject = f"a {_spoken(name)}"
        if names.count(name) == 1 and rng.random() < COLOUR_SHARE:
            subject = f"a {chosen['colour']} {_spoken(name)}"
        if names.count(name) == 1 and rng.random() < FACING_SHARE:
            subject += f" facing {chosen['facing']}"
        return subject, frozenset([name])

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
        detail = bool(rng.random() < DETAIL_SHARE)
        phrase = f"{phrase} {IN_DETAIL}" if detail else phrase
        text = template.format(subject=subject, parts=phrase)
        return Caption(text, categories if named else None, named, parts, detail)

    def _draw_words(self, rng: np.random.Generator, categories: Sequence[str]) -> tuple[str, frozenset[str]]:
        words = sorted(set().union(*(self.words[name] for name in categories)))
        count = rng.integers(1, min(MAX_WORDS, len(words)) + 1)
        chosen = [words[i] for i in rng.choice(len(words), size=count, replace=False)]
        parts = [self.words[name].get(word, frozenset()) for name in categories for word in chosen]
        return _pick(rng, JOINTS).join(chosen), frozenset().union(*parts)


def _pick(rng: np.random.Generator, choices: Sequence[str]) -> str:
    return choices[rng.integers(len(choices))]
