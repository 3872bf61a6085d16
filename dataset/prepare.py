"""Downloads, unpacks and checks the benchmarks: `sh script/prepare_data.sh --help`.

Every step leaves either nothing or something whole, so running it again goes on where it stopped.
"""

from __future__ import annotations

import argparse
import gzip
import lzma
import os
import shlex
import shutil
import stat
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import TypeVar

from dataset import BENCHMARKS, DatasetError, MissingDataError, build_benchmark
from dataset.ap10k import LISTS as AP10K_LISTS
from dataset.ap10k_split import CROWD, build_pairs
from dataset.pfpascal import ALIASES
from utils.image import ImageError, read_image
from utils.progress import progress

ASSET = Path(__file__).resolve().parents[1] / "asset" / "dataset"
MAX_MEMBERS, MAX_UNPACKED = 1_000_000, 8 << 30  # of an archive: files, bytes
PLAIN = (0, stat.S_IFREG, stat.S_IFDIR)  # 0: not said
DAMAGED = (tarfile.TarError, zipfile.BadZipFile, zlib.error, gzip.BadGzipFile, lzma.LZMAError, EOFError)
DAMAGED += (RuntimeError, ValueError)  # encrypted or of an unknown compression, odd names
M = TypeVar("M")


class PrepareError(Exception):
    """What the user has to do something about; the text says what."""


@dataclass(frozen=True)
class Part:
    """A file to download and what it brings into the folder of the data set."""

    url: str
    page: str  # where a person finds it
    brings: tuple[str, ...]  # names in the folder of the data set once it is there
    also: tuple[str, ...] = ()  # patterns of further names to take from beside them
    name: str = ""  # of the file, where the address does not say it

    @property
    def file_name(self) -> str:
        return self.name or self.url.rpartition("/")[2]

    @property
    def is_pairs(self) -> bool:
        return self.brings[0].endswith(".csv")


FLOW = "https://www.di.ens.fr/willow/research/proposalflow/"
SPAIR = "https://cvlab.postech.ac.kr/research/SPair-71k/"
LISTS, LISTS_PAGE = "https://www.robots.ox.ac.uk/~xinghui/sd4match/", "https://github.com/ActiveVisionLab/SD4Match#data"
AP10K, DRIVE = "https://github.com/AlexTheBad/AP-10K", "https://drive.usercontent.google.com/download"
GEOAWARE = "https://raw.githubusercontent.com/Junyi42/GeoAware-SC/master/"
CALTECH = "https://data.caltech.edu/records/65de6-vp158/files/CUB_200_2011.tgz"
JAMAISVU = "https://groups.inf.ed.ac.uk/hbilen-data/data/JamaisVuData/"
SPLITS = ("trn_pairs.csv", "val_pairs.csv", "test_pairs.csv")
PARTS: dict[str, tuple[Part, ...]] = {  # the archive, then the pair lists where they are apart
    "spair": (Part(f"{SPAIR}data/SPair-71k.tar.gz", SPAIR, ("Layout", "PairAnnotation", "JPEGImages"), ("*",)),),
    "pfpascal": (
        Part(f"{FLOW}dataset/PF-dataset-PASCAL.zip", FLOW, ("PF-dataset-PASCAL",)),
        Part(f"{LISTS}pf-pascal_image_pairs.zip", LISTS_PAGE, SPLITS),
    ),
    "pfwillow": (
        Part(f"{FLOW}dataset/PF-dataset.zip", FLOW, ("PF-dataset",)),
        Part(f"{LISTS}test_pairs.csv", LISTS_PAGE, ("test_pairs.csv",)),
    ),
    "ap10k": (
        Part(
            f"{DRIVE}?id=1-FNNGcdtAQRehYYkGY1y4wzFNg4iWNad&confirm=t", AP10K, ("annotations", "data"), name="ap-10k.zip"
        ),
        Part(f"{GEOAWARE}data/{CROWD}", "https://github.com/Junyi42/GeoAware-SC", (CROWD,)),
    ),
    "cub": (Part(CALTECH, "https://www.vision.caltech.edu/datasets/cub_200_2011/", ("images.txt", "images"), ("*",)),),
    "spairu": (Part(f"{JAMAISVU}SPair-U.zip", "https://arxiv.org/abs/2506.08220", ("PairAnnotation",), ("*",)),),
}
BUILDERS = {"ap10k": build_pairs}  # what makes the pairs of a data set whose archives bring none
EXPECTED: dict[str, dict[str, int]] = {  # pairs of each split, and images where the data set states them
    "spair": {"trn": 53_340, "val": 5_384, "test": 12_234, "images": 1_800},
    "pfpascal": {"trn": 2_940, "val": 308, "test": 299},
    "pfwillow": {"test": 900},
    "ap10k": {"images": 10_015},
    "spairu": {},
    "cub": {"test": 1_248},  # 30, 30 and 28 images of the three classes
}
STATED = {"ap10k": {"trn": 261_000, "val": 17_000, "test": 36_000}}  # pairs, rounded, over all splits that start so
TOLERANCE = 0.05  # of these counts: the lists are not the authors' own


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status 0 when the data set is complete, 1 with a message when it is not."""
    args = parse_args(argv)
    folder = args.root / BENCHMARKS[args.name].FOLDER
    try:
        if args.root.name == folder.name or (args.root / PARTS[args.name][0].brings[0]).exists():
            parent = args.root.absolute().parent
            raise PrepareError(f"--root (as DATASET.ROOT) is the folder that holds {folder.name}/: pass {parent}")
        if not args.check:
            prepare(args.name, folder, (args.url, args.pairs_url), args.pairs)
        check(args.name, folder)
    except (PrepareError, DatasetError, OSError) as error:
        print(f"prepare_data: {error}", file=sys.stderr)
        return 1
    return 0


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="prepare_data.sh", description="Download, unpack and check a data set.")
    parser.add_argument("name", choices=sorted(PARTS))
    parser.add_argument("--root", type=Path, default=ASSET, help="DATASET.ROOT, the folder that holds SPair-71k/ ...")
    parser.add_argument("--check", action="store_true", help="only check what is there")
    parser.add_argument("--url", help="another address of the archive")
    parser.add_argument("--pairs-url", help="another address of the pair lists (PF-PASCAL, PF-WILLOW)")
    parser.add_argument("--pairs", type=Path, help="folder that holds the pair lists in CSV already")
    args = parser.parse_args(argv)
    if args.name in ("spair", "spairu") and (args.pairs or args.pairs_url):
        parser.error(
            f"--pairs and --pairs-url: the archive of {BENCHMARKS[args.name].FOLDER} brings its own pair lists"
        )
    return args


def prepare(name: str, folder: Path, urls: Sequence[str | None] = (None, None), pairs: Path | None = None) -> None:
    """Brings what is missing of the data set `name` into its `folder`; or PrepareError.

    urls: other addresses of its parts. pairs: a folder whose pair lists are copied instead. Archives are kept
    in `download` beside `folder`; one put there by hand is used.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for part, url in zip(PARTS[name], urls, strict=False):
        if part.is_pairs:
            copy_lists(pairs or folder, folder, part.brings)
        missing = [item for item in part.brings if not (folder / item).exists()]
        if not missing:
            say(f"found {', '.join(part.brings)} in {folder}")
            continue
        if part.is_pairs and pairs:
            raise PrepareError(f"--pairs {pairs}: {', '.join(missing)} not found there")
        is_list = part.file_name.endswith((".csv", ".txt"))
        file = folder / part.file_name if is_list else folder.parent / "download" / part.file_name
        if not file.is_file():
            download(part, url or part.url, file)
        if not is_list:
            install(file, folder, part)
    if name in BUILDERS:
        copy_lists(pairs or folder, folder / AP10K_LISTS, [f"{split}.txt" for split in BENCHMARKS[name].SPLITS])
        for split, count in BUILDERS[name](folder).items():
            say(f"listed {count:,} pairs in {folder / AP10K_LISTS / split}.txt")


def copy_lists(source: Path, folder: Path, names: Sequence[str]) -> None:
    """Copies the pair lists that `folder` lacks from `source`, where they may have NCNet's names."""
    for name in names:
        path = find_item(source, name)
        if path and not (folder / name).exists():
            folder.mkdir(exist_ok=True)
            temporary = folder / f"{name}.part"
            shutil.copyfile(path, temporary)
            os.replace(temporary, folder / name)
            say(f"copied {path} to {folder / name}")


def find_item(folder: Path, name: str) -> Path | None:
    """The file or folder `name`, or the one of its other name, in `folder`."""
    paths = (folder / other for other in (name, ALIASES.get(name)) if other)
    return next((path for path in paths if path.exists()), None)


def download(part: Part, url: str, file: Path) -> None:
    """Fetches `url` into `file` by way of `<file>.part`, which a later run continues; or PrepareError."""
    from huggingface_hub.file_download import http_get

    begun = file.with_name(f"{file.name}.part")
    begun.parent.mkdir(parents=True, exist_ok=True)
    say(f"downloading {url}")
    try:
        with open(begun, "ab") as stream:
            http_get(url, stream, resume_size=stream.tell(), displayed_filename=file.name)
    except Exception as error:  # of whatever kind the library's HTTP client raises
        if "416" in str(error) and begun.stat().st_size:  # it has at least the size of the file: no part of it
            begun.unlink()
            return download(part, url, file)
        lists = f"\nOr pass --pairs DIR, a folder with {', '.join(part.brings)}." * part.is_pairs
        raise PrepareError(
            f"could not download {url} ({' '.join(str(error).split())}).\n"
            f"To get it by hand: open {part.page}, find {part.file_name}, save it as\n"
            f"  {file}\nand run this again: it goes on from there, as from an interruption.{lists}"
        ) from error
    os.replace(begun, file)


# Unpacking


def install(archive: Path, folder: Path, part: Part) -> None:
    """Unpacks into a temporary folder, then moves what the part brings into `folder`; keeps what is there."""
    unpacked = folder / ".unpack"
    shutil.rmtree(unpacked, ignore_errors=True)
    try:
        unpack(archive, unpacked)
        source = find_parent(unpacked, part.brings, archive)
        paths = {path.name: path for pattern in part.also for path in sorted(source.glob(pattern))}
        for name in part.brings:  # last: they say that all is there
            paths.pop(name, None)
            paths[name] = find_item(source, name)
        for name, path in paths.items():
            if (folder / name).exists():
                say(f"kept {folder / name}, which was there before")
            else:
                os.replace(path, folder / name)
    finally:
        shutil.rmtree(unpacked, ignore_errors=True)
    say(f"installed {', '.join(part.brings)} in {folder}; {archive} may be deleted")


def unpack(archive: Path, folder: Path) -> None:
    """Unpacks a tar or zip file into `folder`; PrepareError for what `admit` refuses and for damage."""
    say(f"unpacking {archive}")
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as file:
                modes = {info: stat.S_IFMT(info.external_attr >> 16) for info in file.infolist()}
                file.extractall(folder, admit(modes, lambda i: (i.filename, i.file_size, modes[i] in PLAIN)))
        elif tarfile.is_tarfile(archive):
            with tarfile.open(archive) as file:
                file.extraction_filter = getattr(tarfile, "data_filter", None)  # Python before 3.11.4 has none
                members = admit(file, lambda m: (m.name, m.size, m.isreg() or m.isdir()))
                file.extractall(folder, map(disown, members))
                while file.fileobj.read(1 << 20):  # to the end, where gzip keeps its checksum
                    pass
        else:
            with open(archive, "rb") as file:
                raise PrepareError(f"it is no tar or zip archive: it starts with {file.read(40)!r}")
    except PrepareError as error:
        raise PrepareError(f"{archive}: refused, {error}. Delete it and run again.") from None
    except DAMAGED as error:
        raise PrepareError(f"{archive} is damaged ({error}). Delete it and run again.") from error


def disown(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """The member as a file of whoever unpacks it, which nobody else may write."""
    member.mode &= 0o755
    member.uid = member.gid = 0  # heeded only where root unpacks
    member.uname = member.gname = ""
    return member


def admit(members: Iterable[M], describe: Callable[[M], tuple[str, int, bool]]) -> Iterator[M]:
    """The members to unpack, without what macOS adds; describe: name, bytes, whether it is a plain file or folder.

    Raises PrepareError for links and devices, for names that leave the folder, and for more than MAX_MEMBERS
    or MAX_UNPACKED.
    """
    total = 0
    for number, member in enumerate(progress(members, "unpacking", unit=" files"), start=1):
        name, size, is_plain = describe(member)
        path = PureWindowsPath(name)  # knows both kinds of slash and of root
        total += size
        if path.anchor or ".." in path.parts:
            raise PrepareError(f"its member {name!r} leaves the target folder")
        if not is_plain:
            raise PrepareError(f"its member {name!r} is a link or device")
        if number > MAX_MEMBERS or total > MAX_UNPACKED:
            raise PrepareError(f"it holds more than {MAX_MEMBERS:,} files or {MAX_UNPACKED:,} bytes")
        if "__MACOSX" not in path.parts and path.name != ".DS_Store" and not path.name.startswith("._"):
            yield member


def find_parent(folder: Path, names: Sequence[str], archive: Path) -> Path:
    """The uppermost folder in `folder` that holds all the `names`."""
    for current, folders, _ in os.walk(folder):
        if all(find_item(Path(current), name) for name in names):
            return Path(current)
        if Path(current).relative_to(folder).parts[2:]:
            folders.clear()
        folders.sort()
    raise PrepareError(f"{archive} does not hold {', '.join(names)} in one folder: is it another archive?")


# Checking


def check(name: str, folder: Path) -> None:
    """Says that the data set is complete, or raises PrepareError with everything that is wrong."""
    say(f"checking {folder}")
    expected = EXPECTED[name]
    problems = find_problems(name, folder, expected)
    if problems:
        lines = "\n".join(f"- {problem}" for problem in problems)
        raise PrepareError(
            f"{folder} is not complete:\n{lines}\nIt should look like this:\n{BENCHMARKS[name].LAYOUT}\n"
            "Nothing that was there is replaced: move the wrong files away and run "
            f"`sh script/prepare_data.sh {name} --root {shlex.quote(str(folder.parent))}` again."
        )
    counts = f": {', '.join(f'{count:,} {what}' for what, count in expected.items())}" if expected else ""
    say(f"{name} is complete{counts}")


def find_problems(name: str, folder: Path, expected: Mapping[str, int]) -> list[str]:
    """Opens every split with its reader, which looks at each annotation, decodes every image, compares the counts."""
    problems, sizes, found = [], {}, {}
    for split in BENCHMARKS[name].SPLITS:
        try:
            benchmark = build_benchmark(name, folder, split)
        except (DatasetError, MissingDataError) as error:
            problems.append(str(error).splitlines()[0])
            continue
        found[split] = len(benchmark) + len(benchmark.left_out)
        if len(benchmark) != expected.get(split, len(benchmark)):
            problems.append(f"split {split} has {len(benchmark):,} pairs, expected {expected[split]:,}")
        sizes |= {image.path: image.size for image in benchmark.images()}
    for start, stated in STATED.get(name, {}).items():
        count = sum(number for split, number in found.items() if split.startswith(start))
        say(
            f"{start}: {count:,} pairs over all settings, the authors state {stated:,} (rounded; of lists of their own)"
        )
        if abs(count / stated - 1) > TOLERANCE:
            problems.append(f"{count:,} {start} pairs are far from the {stated:,} that the authors state")
    if "images" in expected:
        count = sum(1 for path in folder.glob("JPEGImages/**/*.jpg") if not path.name.startswith("."))
        if count != expected["images"]:
            problems.append(f"JPEGImages has {count:,} images, expected {expected['images']:,}")
    return list(dict.fromkeys(problems)) + find_bad_images(sizes)


def find_bad_images(sizes: Mapping[str, tuple[int, int]]) -> list[str]:
    """A line for each image, of a path and (H, W), that cannot be decoded to its end or has another size."""
    bad = []
    for path, size in progress(sizes.items(), "decoding the images"):
        try:
            found = read_image(path).size
        except (ImageError, OSError) as error:
            bad.append(str(error))
            continue
        if found != size:
            bad.append(f"{path} has size (H, W) = {found}, its annotation says {size}")
    more = f"{len(bad) - 10:,} further images"
    return bad[:10] + [more] * (len(bad) > 10)


def say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
