"""VQAv2 as retrieval, as DSD has it: a question with its answer among ten answers, or among ten images."""

from __future__ import annotations

import random
from collections.abc import Iterator

from dataset.error import DatasetError
from dataset.parse import is_file_name, read_csv, read_lines
from dataset.ranking import ItemRecord, RankingBenchmark

WRONG = 9  # answers, or images, of an item
SEED = 0  # of the choice of images
_NEGATIVES = tuple(f"neg_sentence_{n}" for n in range(1, WRONG + 1))
_KINDS = ("yes or no", "others", "numbers")


class VQAOther(RankingBenchmark):
    """10 texts, 1 image. trn, val: the first 5 % of the training file and the rest of it; test: 1,000 items.

    A wrong answer may be the true one, as in the files: then the scores are equal.
    """

    name = "vqa_other"
    FOLDER = "vqav2"
    LAYOUT = """\
vqav2/
  data/vqa_text_test.csv        sentence,pos_image_id,neg_sentence_1 ... neg_sentence_9
  data/vqa_text_train.csv       the same columns
  val2014/COCO_val2014_{12 digits}.jpg, train2014/COCO_train2014_{12 digits}.jpg"""

    def read(self) -> Iterator[ItemRecord]:
        file, part = ("test", "val2014") if self.split == "test" else ("train", "train2014")
        columns = ("sentence", "pos_image_id", *_NEGATIVES)
        for number, row in enumerate(read_csv(self.root / "data" / f"vqa_text_{file}.csv", columns, None)):
            image_id = row.whole("pos_image_id", 0, 10**12 - 1)
            image = self.refer(self.root / part / f"COCO_{part}_{image_id:012d}.jpg")
            texts = tuple(row.text(key) for key in ("sentence", *_NEGATIVES))
            yield ItemRecord(f"{number:06d}-{image_id}", "answer", texts, (image,))


class VQABinary(RankingBenchmark):
    """1 text, 10 images: a yes/no question with the answer as a sentence; the wrong images are those of other lines."""

    name = "vqa_binary"
    FOLDER = "vqav2"
    SPLITS = ("test",)
    LAYOUT = """\
vqav2/
  test3.txt                     {image file}*The question is asking about yes or no: {question}? {answer}
  val2014/{image file}, train2014/{image file}"""

    def read(self) -> Iterator[ItemRecord]:
        path = self.root / "test3.txt"
        lines = [parse_line(line, where) for where, line in read_lines(path)]
        binary = [(name, text) for name, kind, text in lines if kind == _KINDS[0]]
        names = [name for name, _ in binary]
        if len(set(names)) < 2:
            raise DatasetError(f"{path}: fewer than 2 images with questions about yes or no")
        draw = random.Random(SEED)
        for number, (name, text) in enumerate(binary):
            wrong = []
            while len(wrong) < WRONG:  # one may be drawn twice
                if (other := draw.choice(names)) != name:
                    wrong.append(other)
            images = tuple(self.refer(self.root / find_part(image) / image) for image in (name, *wrong))
            yield ItemRecord(f"{number:06d}-{name.rpartition('.')[0]}", "yes or no", (text,), images)


def parse_line(line: str, where: str) -> tuple[str, str, str]:
    """(image file, kind of question, text) of a line of the file."""
    name, star, rest = line.partition("*")
    head, colon, text = rest.partition(": ")
    kinds = [kind for kind in _KINDS if kind in head]
    if not (star and colon and kinds and text.strip()):
        raise DatasetError(
            f"{where}: expected {{image file}}*The question is asking about ...: {{text}}; got {line[:60]!r}"
        )
    if not is_file_name(name):
        raise DatasetError(f"{where}: {name!r} is no name of an image file")
    return name.strip(), kinds[0], text.strip()


def find_part(name: str) -> str:
    """The folder of a COCO image: its name says which."""
    return "train2014" if "train2014" in name else "val2014"
