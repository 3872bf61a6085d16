"""RefCOCOg as retrieval: an image, the sentence that refers to something in it, and nine other sentences.

As DSD has it: the google split files, whose own split is not used; images are not cropped; a wrong sentence is one of
any ref and may speak of the same image, only its words differ.
"""

from __future__ import annotations

import json
import pickle
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dataset.error import DatasetError
from dataset.parse import Fields, read_text
from dataset.ranking import ItemRecord, RankingBenchmark

WRONG = 9  # sentences of an item
SEED = 0  # of their choice
_TRIES = 1000


class RefCOCOg(RankingBenchmark):
    """10 texts, 1 image. trn: the first 5 % of the items, test: the others."""

    name = "refcocog"
    FOLDER = "refcocog"
    SPLITS = ("trn", "test")
    REST = "test"
    LAYOUT = """\
refcocog/
  refs(google).json            a list of {image_id, sentences: [{raw}]}; or refs(google).p, which is read as plain data
  instances.json               images: [{id, file_name}]
  images/train2014/{file_name}"""

    def read(self) -> Iterator[ItemRecord]:
        refs, where = read_refs(self.root)
        files = read_file_names(self.root / "instances.json")
        sentences = [[Fields(f"{where}, ref {n}", s).text("raw") for s in ref.get("sentences")] for n, ref in refs]
        draw = random.Random(SEED)
        for (number, ref), own in zip(refs, sentences, strict=True):
            image_id = ref.whole("image_id", 0, 10**12)
            if image_id not in files:
                raise ref.wrong("image_id", "an image of instances.json")
            image = self._image(self.root / "images" / "train2014" / files[image_id])
            for place, sentence in enumerate(own):
                wrong = [draw_other(draw, sentences, sentence, where) for _ in range(WRONG)]
                yield ItemRecord(f"{number:06d}-{place}-{image_id}", "expression", (sentence, *wrong), (image,))


def draw_other(draw: random.Random, sentences: list[list[str]], true: str, where: str) -> str:
    """A sentence of any ref that is not the true one word for word."""
    for _ in range(_TRIES):
        if (found := draw.choice(draw.choice(sentences))) != true:
            return found
    raise DatasetError(f"{where}: there is no sentence besides {true!r}")


def read_refs(root: Path) -> tuple[list[tuple[int, Fields]], str]:
    """(number, record) of every ref, and the file. The JSON file comes before the pickle."""
    path = root / "refs(google).json"
    path = path if path.is_file() else root / "refs(google).p"
    content = load_plain_pickle(path) if path.suffix == ".p" else _parse(path)
    if not isinstance(content, list) or not content:
        raise DatasetError(f"{path}: expected a list of refs")
    refs = [Fields(f"{path}, ref {n}", ref if isinstance(ref, dict) else {}) for n, ref in enumerate(content)]
    for ref in refs:
        if (
            not isinstance(found := ref.get("sentences"), list)
            or not found
            or not all(isinstance(s, dict) for s in found)
        ):
            raise ref.wrong("sentences", "a list of sentences")
    return list(enumerate(refs)), str(path)


def read_file_names(path: Path) -> dict[int, str]:
    """image id -> name of its file."""
    content = _parse(path)
    images = content.get("images") if isinstance(content, dict) else None
    if not isinstance(images, list):
        raise DatasetError(f"{path}: expected an object with a list of images")
    rows = [Fields(f"{path}, image {n}", row if isinstance(row, dict) else {}) for n, row in enumerate(images)]
    return {row.whole("id", 0, 10**12): row.file_name("file_name") for row in rows}


def _parse(path: Path) -> Any:
    try:
        return json.loads(read_text(path))
    except ValueError as error:
        raise error if isinstance(error, DatasetError) else DatasetError(f"{path}: not JSON ({error})") from None


class _PlainUnpickler(pickle.Unpickler):
    """Lists, dicts, texts and numbers; a pickle that asks for anything else, such as a function, is refused."""

    def find_class(self, module: str, name: str) -> Any:
        raise DatasetError(f"asks for {module}.{name}, which is no plain data")

    def persistent_load(self, pid: Any) -> Any:
        raise DatasetError("asks for objects outside of it, which is no plain data")


def load_plain_pickle(path: Path) -> Any:
    """The content of a pickle that holds nothing but plain data; no code of the file is run. DatasetError otherwise."""
    with open(path, "rb") as file:
        try:
            return _PlainUnpickler(file, encoding="utf-8").load()
        except DatasetError as error:
            raise DatasetError(f"{path}: {error}; it is not read") from None
        except Exception as error:  # of damaged pickles: EOFError, ValueError, KeyError, IndexError, ...
            raise DatasetError(f"{path}: no pickle that can be read ({type(error).__name__}: {error})") from None
