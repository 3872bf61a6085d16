"""RefCOCOg as retrieval: an image, the sentence that refers to something in it, and nine other sentences.

As DSD has it: the google split files, whose own split is not used; images are not cropped; a wrong sentence is one of
any ref and may speak of the same image, only its words differ.
"""

from __future__ import annotations

import pickle
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dataset.error import DatasetError
from dataset.parse import Fields, parse_json, read_record, read_text
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
        refs = read_refs(self.root)
        files = read_record(self.root / "instances.json").by_id("images")
        sentences = [read_sentences(ref) for ref in refs]
        draw = random.Random(SEED)
        for number, (ref, own) in enumerate(zip(refs, sentences, strict=True)):
            image_id = ref.whole("image_id", 0, 10**12)
            if image_id not in files:
                raise ref.wrong("image_id", "an image of instances.json")
            image = self.refer(self.root / "images" / "train2014" / files[image_id].file_name("file_name"))
            for place, sentence in enumerate(own):
                wrong = [draw_other(draw, sentences, sentence, ref.where) for _ in range(WRONG)]
                yield ItemRecord(f"{number:06d}-{place}-{image_id}", "expression", (sentence, *wrong), (image,))


def read_sentences(ref: Fields) -> list[str]:
    if not (found := [sentence.text("raw") for sentence in ref.records("sentences")]):
        raise ref.wrong("sentences", "a list of sentences")
    return found


def draw_other(draw: random.Random, sentences: list[list[str]], true: str, where: str) -> str:
    """A sentence of any ref that is not the true one word for word."""
    for _ in range(_TRIES):
        if (found := draw.choice(draw.choice(sentences))) != true:
            return found
    raise DatasetError(f"{where}: there is no sentence besides {true!r}")


def read_refs(root: Path) -> list[Fields]:
    """The records of all refs. The JSON file comes before the pickle."""
    path = root / "refs(google).p"
    if path.is_file() and not path.with_suffix(".json").is_file():
        content = load_plain_pickle(path)
    else:
        path = path.with_suffix(".json")
        content = parse_json(read_text(path), path)
    return Fields(str(path), {"refs": content}).records("refs")


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
