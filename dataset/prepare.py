"""Downloads, unpacks and checks the benchmarks: `sh script/prepare_data.sh --help`.

Every step leaves either nothing or something whole, so running it again goes on where it stopped.
"""

from __future__ import annotations

import argparse
import http.client
import os
import re
import shutil
import sys
import tarfile
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from dataset import BENCHMARKS, DatasetError, MissingDataError, build_benchmark

ASSET = Path(__file__).resolve().parents[1] / "asset" / "dataset"
CHUNK = 1 << 20


class PrepareError(RuntimeError):
    """What the user has to do something about; the text says what."""


@dataclass(frozen=True)
class Part:
    """A file to download and what it brings into the folder of the data set."""

    url: str
    page: str  # where a person finds it
    file_name: str
    brings: tuple[str, ...]  # names in the folder of the data set once it is there
    also: tuple[str, ...] = ()  # patterns of further names to take from beside them


PROPOSAL_FLOW = "https://www.di.ens.fr/willow/research/proposalflow/"
SD4MATCH = "https://github.com/ActiveVisionLab/SD4Match#data"
PARTS: dict[str, tuple[Part, ...]] = {
    "spair": (
        Part(
            url="https://cvlab.postech.ac.kr/research/SPair-71k/data/SPair-71k.tar.gz",
            page="https://cvlab.postech.ac.kr/research/SPair-71k/",
            file_name="SPair-71k.tar.gz",
            brings=("Layout", "PairAnnotation", "JPEGImages"),
            also=("*",),
        ),
    ),
    "pfpascal": (
        Part(
            url=f"{PROPOSAL_FLOW}dataset/PF-dataset-PASCAL.zip",
            page=PROPOSAL_FLOW,
            file_name="PF-dataset-PASCAL.zip",
            brings=("PF-dataset-PASCAL",),
        ),
        Part(
            url="https://www.robots.ox.ac.uk/~xinghui/sd4match/pf-pascal_image_pairs.zip",
            page=SD4MATCH,
            file_name="pf-pascal_image_pairs.zip",
            brings=("trn_pairs.csv", "val_pairs.csv", "test_pairs.csv"),
        ),
    ),
    "pfwillow": (
        Part(
            url=f"{PROPOSAL_FLOW}dataset/PF-dataset.zip",
            page=PROPOSAL_FLOW,
            file_name="PF-dataset.zip",
            brings=("PF-dataset",),
        ),
        Part(
            url="https://www.robots.ox.ac.uk/~xinghui/sd4match/test_pairs.csv",
            page=SD4MATCH,
            file_name="test_pairs.csv",
            brings=("test_pairs.csv",),
        ),
    ),
}
EXPECTED: dict[str, dict[str, int]] = {  # pairs of each split, and images where the data set states them
    "spair": {"trn": 53_340, "val": 5_384, "test": 12_234, "images": 1_800},
    "pfpascal": {"trn": 2_940, "val": 308, "test": 299},
    "pfwillow": {"test": 900},
}


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status 0 when the data set is complete, 1 with a message when it is not."""
    args = parse_args(argv)
    root = args.root or ASSET / BENCHMARKS[args.name].FOLDER
    try:
        if args.check:
            report_check(args.name, root, EXPECTED[args.name])
        else:
            parts = choose_urls(PARTS[args.name], args.url, args.pairs_url)
            prepare(args.name, root, parts, EXPECTED[args.name], args.pairs)
    except (PrepareError, OSError) as error:
        print(f"prepare_data: {error}", file=sys.stderr)
        return 1
    return 0


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="prepare_data.sh", description="Download, unpack and check a data set.")
    parser.add_argument("name", choices=sorted(PARTS))
    parser.add_argument("--root", type=Path, help="folder of the data set (default: its usual name in asset/dataset)")
    parser.add_argument("--check", action="store_true", help="only check what is there")
    parser.add_argument("--url", help="another address of the archive (http, https or file)")
    parser.add_argument("--pairs-url", help="another address of the pair lists (PF-PASCAL, PF-WILLOW)")
    parser.add_argument("--pairs", type=Path, help="folder that holds the pair lists in CSV already")
    args = parser.parse_args(argv)
    if args.name == "spair" and (args.pairs or args.pairs_url):
        parser.error("--pairs and --pairs-url: the archive of SPair-71k brings its own pair lists")
    return args


def choose_urls(parts: Sequence[Part], url: str | None, pairs_url: str | None) -> list[Part]:
    """The parts with the addresses the user gave: `url` for the archive, `pairs_url` for the pair lists."""
    given = (url, pairs_url)
    return [replace(part, url=new) if new else part for part, new in zip(parts, given, strict=False)]


def prepare(
    name: str, root: Path, parts: Sequence[Part], expected: Mapping[str, int], pairs: Path | None = None
) -> None:
    """Brings the data set `name` into `root` and checks it; keeps what is there; or PrepareError.

    Archives are kept in the folder `download` beside `root`; one put there by hand is used. pairs: folder
    with the pair lists, used instead of downloading them.
    """
    root.mkdir(parents=True, exist_ok=True)
    for part in parts:
        missing = [item for item in part.brings if not (root / item).exists()]
        if not missing:
            say(f"found {', '.join(part.brings)} in {root}")
        elif pairs is not None and is_pairs(part):
            copy_lists(pairs, root, missing)
        else:
            bring(part, root)
    report_check(name, root, expected)


def bring(part: Part, root: Path) -> None:
    """Downloads one part, unless its file is there, and installs what it holds."""
    is_list = part.file_name.endswith(".csv")
    file = root / part.file_name if is_list else root.parent / "download" / part.file_name
    if file.is_file():
        say(f"found {file}")
    else:
        try:
            download(part.url, file)
        except (OSError, http.client.HTTPException) as error:
            lists = f"\nOr pass --pairs DIR, a folder with {', '.join(part.brings)}." * is_pairs(part)
            raise PrepareError(
                f"could not download {part.url} ({error}).\n"
                f"To get it by hand: open {part.page}, find {part.file_name}, save it as\n"
                f"  {file}\nand run this again: it goes on from there, as from an interruption.{lists}"
            ) from error
    if not is_list:
        install(file, root, part)


def is_pairs(part: Part) -> bool:
    """Whether the part is the pair lists of a data set."""
    return part.brings[0].endswith(".csv")


def copy_lists(folder: Path, root: Path, names: Sequence[str]) -> None:
    """Copies pair lists from a folder of the user."""
    absent = [name for name in names if not (folder / name).is_file()]
    if absent:
        raise PrepareError(f"--pairs {folder}: {', '.join(absent)} not found there")
    for name in names:
        temporary = root / f"{name}.part"
        shutil.copyfile(folder / name, temporary)
        os.replace(temporary, root / name)
        say(f"copied {folder / name} to {root}")


# Downloading


def download(url: str, file: Path, attempts: int = 3, wait: float = 2.0) -> None:
    """Fetches `url` into `file` by way of `<file>.part`, which a later attempt or run continues; or OSError.

    wait: seconds before the second attempt, doubled for each further one.
    """
    part = file.with_name(f"{file.name}.part")
    part.parent.mkdir(parents=True, exist_ok=True)
    for attempt in range(attempts):
        try:
            fetch(url, part)
            break
        except (OSError, http.client.HTTPException) as error:
            refused = isinstance(error, urllib.error.HTTPError) and 400 <= error.code < 500
            if refused or attempt == attempts - 1:
                raise
            say(f"interrupted ({error}): trying again")
            time.sleep(wait * 2**attempt)
    os.replace(part, file)


def fetch(url: str, part: Path) -> None:
    """One attempt: continues `part` where the server can, starts over where it cannot."""
    have = part.stat().st_size if part.exists() else 0
    headers = {"User-Agent": "sd4match-prepare-data"} | ({"Range": f"bytes={have}-"} if have else {})
    try:
        response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=60)
    except urllib.error.HTTPError as error:
        if error.code != 416 or not have:
            raise
        if error.headers.get("Content-Range") == f"bytes */{have}":
            return  # nothing was missing
        part.unlink()
        return fetch(url, part)
    with response:
        resumed = (response.headers.get("Content-Range") or "").startswith(f"bytes {have}-") and have > 0
        start = have if resumed else 0
        length = response.headers.get("Content-Length")
        total = start + int(length) if length else None
        say(f"downloading {url}{f', continued at {start:,} bytes' if resumed else ''}")
        with open(part, "ab" if resumed else "wb") as file:
            size = copy_stream(response, file, start, total)
    if total is not None and size != total:
        raise OSError(f"the connection closed after {size:,} of {total:,} bytes")


def copy_stream(response: BinaryIO, file: BinaryIO, size: int, total: int | None) -> int:
    """Copies to the end, with a line every 10 s; returns the file's new size (bytes), it had `size`."""
    spoken = time.monotonic()
    while chunk := response.read(CHUNK):
        file.write(chunk)
        size += len(chunk)
        if time.monotonic() - spoken > 10:
            spoken = time.monotonic()
            say(f"  {size / 1e6:,.0f} MB" + (f" of {total / 1e6:,.0f} MB" if total else ""))
    return size


# Unpacking


def install(archive: Path, root: Path, part: Part) -> None:
    """Unpacks into a temporary folder, then moves what the part brings into `root`; keeps what is there."""
    unpacked = root / ".unpack"
    shutil.rmtree(unpacked, ignore_errors=True)
    try:
        say(f"unpacking {archive}")
        unpack(archive, unpacked)
        source = find_parent(unpacked, part.brings, archive)
        names = {path.name for pattern in (*part.brings, *part.also) for path in source.glob(pattern)}
        for name in sorted(names, key=lambda name: (name in part.brings, name)):  # `brings` last: it says all is there
            if (root / name).exists():
                say(f"kept {root / name}, which was there before")
            else:
                os.replace(source / name, root / name)
    finally:
        shutil.rmtree(unpacked, ignore_errors=True)
    say(f"installed {', '.join(sorted(names))} in {root}; {archive} may be deleted")


def unpack(archive: Path, folder: Path) -> None:
    """Unpacks a tar or zip file; refuses members that would land outside `folder`, skips what macOS adds."""
    folder.mkdir(parents=True)
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as file:
                for info in file.infolist():
                    if is_wanted(info.filename, archive):
                        file.extract(info, folder)
        elif tarfile.is_tarfile(archive):
            with tarfile.open(archive) as file:
                for member in file:
                    if is_wanted(member.name, archive):
                        file.extract(member, folder, filter="data")
        else:
            with open(archive, "rb") as file:
                start = file.read(40)
            raise PrepareError(
                f"{archive} is no tar or zip archive: it starts with {start!r}. Delete it and run again."
            )
    except tarfile.FilterError as error:
        raise PrepareError(f"{archive}: refused, a member leaves the target folder ({error})") from error
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise PrepareError(f"{archive} is damaged ({error}). Delete it and run again.") from error


def is_wanted(member: str, archive: Path) -> bool:
    """False for the shadow files of macOS; PrepareError for a member outside the target folder."""
    path = PurePosixPath(member.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or re.match(r"[A-Za-z]:", member):
        raise PrepareError(f"{archive}: refused, its member {member!r} leaves the target folder")
    return "__MACOSX" not in path.parts and path.name != ".DS_Store" and not path.name.startswith("._")


def find_parent(folder: Path, names: Sequence[str], archive: Path) -> Path:
    """The uppermost folder in `folder` that holds all the `names`."""
    for current, folders, files in os.walk(folder):
        if set(names) <= {*folders, *files}:
            return Path(current)
        if Path(current).relative_to(folder).parts[2:]:
            folders.clear()
        folders.sort()
    raise PrepareError(f"{archive} does not hold {', '.join(names)} in one folder: is it another archive?")


# Checking


def report_check(name: str, root: Path, expected: Mapping[str, int]) -> None:
    """Says that the data set is complete, or raises PrepareError with everything that is wrong."""
    say(f"checking {root}")
    problems = find_problems(name, root, expected)
    if problems:
        lines = "\n".join(f"- {problem}" for problem in problems)
        raise PrepareError(
            f"{root} is not complete:\n{lines}\nIt should look like this:\n{BENCHMARKS[name].LAYOUT}\n"
            "Nothing that was there is replaced: move the wrong files away and run "
            f"`sh script/prepare_data.sh {name} --root {root}` again."
        )
    say(f"{name} is complete: {', '.join(f'{count:,} {what}' for what, count in expected.items())}")


def find_problems(name: str, root: Path, expected: Mapping[str, int]) -> list[str]:
    """Opens every split with its reader, which looks at each annotation, and compares the counts."""
    problems = []
    for split in BENCHMARKS[name].SPLITS:
        try:
            count = len(build_benchmark(name, root, split))
        except (DatasetError, MissingDataError) as error:
            problems.append(str(error).splitlines()[0])
            continue
        if count != expected[split]:
            problems.append(f"split {split} has {count:,} pairs, expected {expected[split]:,}")
    if "images" in expected:
        count = sum(1 for path in root.glob("JPEGImages/*/*.jpg") if not path.name.startswith("."))
        if count != expected["images"]:
            problems.append(f"JPEGImages has {count:,} images, expected {expected['images']:,}")
    return list(dict.fromkeys(problems))


def say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
