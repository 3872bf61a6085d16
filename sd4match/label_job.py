"""A transfer over any number of images: kept image by image, shared by processes, gone on with after a kill.

    OUTPUT.matches/KEY/stamp.json     KEY = hash of what makes the matches: networks, settings, references
    OUTPUT.matches/KEY/*.jsonl        a line per image (Transfer.match's record), a file per process and start

The labels are made of these lines at the end, in one step. A changed image, box or mask is matched again; images that
could not be read are tried again.
"""

from __future__ import annotations

import csv
import json
import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from accelerate import PartialState

from dataset.annotation import (
    Category,
    LabelledImage,
    LabelledObject,
    describe_category,
    describe_image,
    describe_object,
)
from sd4match.label import Record, Target, Transfer
from utils.cache import hash_images
from utils.progress import progress
from utils.store import append_record, atomic_path, digest, read_records, write_json

ANY_NAME = {"encoding": "utf-8", "errors": "surrogateescape"}  # file names may be no text
REVIEW = ("score", "file_name", "annotation_id", "category", "lowest", "confidence")


@dataclass(frozen=True)
class Place:
    """Where the record of an image is."""

    path: Path
    position: int
    error: str  # why the image was skipped; "" if it was not

    def read(self) -> Record:
        with open(self.path, "rb") as file:
            file.seek(self.position)
            return json.loads(file.readline())


def describe_matches(transfer: Transfer) -> dict[str, Any]:
    """All that decides what the references say of an image: JSON values."""
    labels, settings = transfer.labels, transfer.settings
    paths = [labels.images[thing.image_id].path for thing in labels.objects]
    return {
        "matcher": transfer.matcher.identify(),
        **{f"TRANSFER.{name}": settings[name] for name in ("MIRROR", "CROP", "MARGIN")},
        "references": digest(
            [[describe_object(o), h] for o, h in zip(labels.objects, hash_images(paths), strict=True)]
        ),
        "categories": digest([describe_category(category) for category in labels.categories.values()]),
    }


def run_job(transfer: Transfer, targets: Sequence[Target], output: Path, state: PartialState) -> dict[str, Place]:
    """Match all targets, sharing them with the other processes; where the record of each one is, by its name.

    Every process must call this.
    """
    stamp = describe_matches(transfer)
    folder = Path(f"{output}.matches") / digest(stamp)[:12]
    if state.is_main_process and not (folder / "stamp.json").is_file():
        write_json(folder / "stamp.json", stamp)
    states = {target.name: describe_state(target) for target in targets}
    found = find_records(folder, states)
    state.wait_for_everyone()  # nobody writes before all have read
    todo = [target for target in targets if target.name not in found or found[target.name].error]
    known, shown = len(targets) - len(todo), state.is_main_process
    with progress(None, "labelling", len(targets), shown, unit="image", initial=known) as bar:
        if share := todo[state.process_index :: state.num_processes]:
            with open(folder / f"{secrets.token_hex(6)}.jsonl", "ab") as file:
                for record in transfer.match(share):
                    append_record(file, record | {"state": states[record["name"]]})
                    bar.update(state.num_processes)
                    if "error" in record:
                        bar.write(f"skipped: {record['error']}", file=bar.fp)
    state.wait_for_everyone()
    return find_records(folder, states)


def find_records(folder: Path, states: Mapping[str, str]) -> dict[str, Place]:
    """By name, the latest records of targets in these states; one with matches goes before one with an error."""
    found: dict[str, Place] = {}
    for path in sorted(folder.glob("*.jsonl"), key=lambda path: path.stat().st_mtime_ns):
        for position, record in read_records(path):
            name, error = record["name"], record.get("error", "")
            if states.get(name) == record["state"] and (not error or name not in found or found[name].error):
                found[name] = Place(path, position, error)
    return found


def describe_state(target: Target) -> str:
    """Hash of what a record depends on besides the stamp: the file as it is now, and its objects."""
    try:
        status = os.stat(target.image)
        file = [status.st_size, status.st_mtime_ns]
    except OSError:
        file = []
    objects = [[describe_object(replace(o, points=None, more={})), target.size] for o in target.objects]
    return digest([file, objects])[:16]


def write_output(
    transfer: Transfer,
    targets: Sequence[Target],
    places: Mapping[str, Place],
    output: Path,
    visible: float,
    info: Mapping[str, Any],
) -> None:
    """Write the labels, and beside them OUTPUT_review.csv with the least confident first.

    The matches of one image are in memory at a time. info: of the labels' head.
    """
    categories = transfer.labels.categories
    head = {"info": info, "licenses": [], "categories": [describe_category(one) for one in categories.values()]}
    images, rows, comma = [], [], "\n"
    with atomic_path(output) as temporary, open(temporary, "w", encoding="utf-8") as file:
        file.write(json.dumps(head)[:-1] + ', "annotations": [')
        for target in (target for target in targets if not places[target.name].error):
            record = places[target.name].read()
            image = LabelledImage(target.id, target.name, str(target.image), tuple(record["size"]))
            images.append(json.dumps(describe_image(image)))
            for thing in transfer.label(target, record, visible):
                rows.append(_describe_doubt(thing, target.name, categories[thing.category_id]))
                file.write(comma + json.dumps(describe_object(thing)))
                comma = ",\n"
        file.write('], "images": [\n' + ",\n".join(images) + "]}\n")
    with atomic_path(find_review(output)) as temporary, open(temporary, "w", **ANY_NAME, newline="") as file:
        csv.writer(file).writerows([REVIEW, *sorted(rows)])


def find_review(output: Path) -> Path:
    """The list of the labels to look at, beside them."""
    return output.with_name(f"{output.stem}_review.csv")


def _describe_doubt(thing: LabelledObject, name: str, category: Category) -> tuple:
    """The object's line in the list for review: its score, and its least confident keypoint."""
    confidence = [(c, category.keypoints[k]) for k, c in enumerate(thing.more["found"][2::3]) if c > 0]
    low, keypoint = min(confidence, default=(0.0, ""))
    return thing.more["score"], name, thing.id, category.name, keypoint, low
