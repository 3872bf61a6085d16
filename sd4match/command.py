"""Find the points of one image in another.

    python match.py a.jpg b.jpg --points 120,80 300,200
    python match.py a.jpg b.jpg --network sd2-1 --category dog --count 30 --json

Prints a table (or JSON) with a confidence for each match, and writes a picture. Points are x,y pixels of the
first image as a viewer shows it. Without --points, mutual nearest neighbours of the two feature maps are shown,
the most confident first.

Networks: sd2-1 (Stable Diffusion 2-1, for photos; a download of about 5 GB on first use) and mini (embedded,
knows only the rendered scenes of the mini benchmark and is of no use for photos). Without --network, sd2-1 is
taken if it is on this machine, else mini: nothing is downloaded unless you ask for it.
"""

import argparse
import hashlib
import json
import os
import re
import sys
from collections.abc import Iterable
from pathlib import Path

from engine.argument import positive
from engine.entry import entry_point
from sd4match.error import OutputError, build_parser, in_flags

SETTINGS = ("method", "weights", "timestep", "ensemble", "layer", "localiser", "image_size")


def parse_args() -> argparse.Namespace:
    parser = build_parser(__doc__, "match.py", "sd4match-match")
    parser.add_argument("source", help="image that has the points")
    parser.add_argument("target", help="image in which they are looked for")
    parser.add_argument("--points", nargs="+", type=parse_point, metavar="X,Y", help="pixels of the source")
    parser.add_argument("--count", type=positive, default=20, help="matches without --points; default: %(default)s")
    parser.add_argument("--category", help='what both images show, such as "dog"; text and Class prompts use it')
    add_matcher_flags(parser)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--output", metavar="FILE", help="the picture, .png, .jpg or .webp; default: a new name, here")
    parser.add_argument("--flow", metavar="FILE", help="dense matches as .npy or .flo, or their colours as .png")
    parser.add_argument("--no_picture", action="store_true", help="write no picture")
    # a word with a space is no flag to argparse, and float() and int() do not mind it
    return parser.parse_args([f" {word}" if re.match(r"-\.?\d", word) else word for word in sys.argv[1:]])


def add_matcher_flags(parser: argparse.ArgumentParser) -> None:
    """What Matcher.from_pretrained takes."""
    parser.add_argument("--network", help="sd2-1, mini, a diffusers folder or a hub id; default: see above")
    parser.add_argument("--method", help="sd4match (default), dinov2, sd_dino, cleandift, geoaware")
    parser.add_argument(
        "--weights", help="learned weights other than prompts: a folder, or its name in OUTPUT_ROOT/prompt"
    )
    parser.add_argument("--prompt", help='"text" (default), "empty", a learned prompt\'s name, folder or hub id')
    parser.add_argument("--timestep", type=int, help="diffusion step, 0..999; default: what suits the prompt")
    parser.add_argument("--ensemble", type=int, help="noise draws that are averaged; fewer are faster")
    parser.add_argument("--layer", type=int, help="up-block of the UNet that gives the features")
    parser.add_argument("--localiser", help="nn, bilinear, softmax, kernelsoftmax (default) or window")
    parser.add_argument("--image_size", type=int, metavar="PX", help="side of the networks' input")
    parser.add_argument("--device", default="auto", help='"auto" (GPU if there is one), "cpu", "cuda:1", ...')


def add_settings(parser: argparse.ArgumentParser) -> None:
    """The same, and the rest of the configuration."""
    add_matcher_flags(parser)
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="settings of config/default.py")


def load_matcher(args: argparse.Namespace):
    """The sd4match.Matcher that a command's flags ask for."""
    from config import load_config
    from engine.check import get_value
    from sd4match import Matcher

    opts = getattr(args, "opts", [])
    parsed = load_config(None, opts)
    given = {key: get_value(parsed, key) for key in opts[::2]}
    settings = {name: getattr(args, name) for name in SETTINGS}
    return Matcher.from_pretrained(
        args.network or choose_network(), args.prompt, args.device, **settings, settings=given
    )


def parse_point(text: str) -> tuple[float, float]:
    """Two numbers from "120,80"."""
    try:
        x, y = (float(word) for word in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no point; write x,y such as 120,80") from None
    return x, y


def choose_network(name: str = "sd2-1") -> str:
    """That network if its weights are on this machine, else mini."""
    from model.backbone.architecture import default_hub_id
    from model.backbone.facts import local_folder

    folder = local_folder(default_hub_id(name))
    return name if folder is not None and (folder / "unet").is_dir() else "mini"


def choose_output(source: str, target: str) -> Path:
    """A name of this pair's own in the current folder; inside a checkout, in its asset/match/, which git ignores."""
    from config import INSTALLED, ROOT

    here = Path.cwd()
    folder = ROOT / "asset" / "match" if not INSTALLED and here.is_relative_to(ROOT) else here
    places = "\0".join(os.path.realpath(path) for path in (source, target))
    number = hashlib.blake2b(os.fsencode(places), digest_size=4).hexdigest()
    return folder / f"{Path(source).stem[:25]}_{Path(target).stem[:25]}_{number}_matches.png"


def check_picture(flag: str, output: str | Path, others: Iterable[str | Path], pixels_only: bool = True) -> None:
    """OutputError if what a flag names is no picture's name, or as `check_output` has it."""
    from utils.draw import find_format

    try:
        find_format(output, pixels_only)
    except ValueError as error:
        raise OutputError(f"{flag} {error}") from error
    check_output(flag, output, others)


def check_output(flag: str, output: str | Path, others: Iterable[str | Path]) -> None:
    """OutputError if what a flag names can be no file, or is one of those that are read, or written besides."""
    if Path(output).is_dir():
        raise OutputError(f"{flag} {output} is a folder; name a file in it")
    if file := next((parent for parent in Path(output).parents if parent.is_file()), None):
        raise OutputError(f"{flag} {output}: {file} is a file, so nothing can be written below it")
    if any(os.path.realpath(output) == os.path.realpath(other) for other in others):
        raise OutputError(f"{flag} {output} is another file of this command, which would be lost; choose another name")


def match(args: argparse.Namespace) -> None:
    """Match the two images, print the result, write the picture."""
    from sd4match.flow import WRITERS
    from utils.draw import save_figure
    from utils.image import read_image

    output = Path(args.output) if args.output else choose_output(args.source, args.target)
    pictures = read_image(args.source), read_image(args.target)  # before the networks are loaded
    check_picture("--output", output, (args.source, args.target))
    if args.flow:
        if Path(args.flow).suffix not in WRITERS:
            raise OutputError(f"--flow {args.flow}: a flow is written as {', '.join(WRITERS)}")
        check_output("--flow", args.flow, (args.source, args.target, output))
    if os.path.samefile(args.source, args.target):
        print("both images are the same file", file=sys.stderr)
    matcher = load_matcher(args)
    pair = matcher.pair(*pictures, category=args.category)
    if args.flow and pair.slow:
        raise OutputError(f"--flow {args.flow}: this method matches point by point, and gives none")
    found = pair.match(args.points) if args.points else pair.match_mutual(args.count)
    if not args.no_picture:
        save_figure(output, pair.draw(found))
        print(f"written: {output}", file=sys.stderr)
    if args.flow:
        pair.flow().save(args.flow)
        print(f"written: {args.flow}", file=sys.stderr)
    print(json.dumps(describe(matcher, pair, found), indent=2) if args.json else format_table(found))


def describe(matcher, pair, found) -> dict:
    """What --json prints."""
    images = {
        side: {"file": picture.name, "width": picture.size[1], "height": picture.size[0]}
        for side, picture in (("source", pair.src), ("target", pair.trg))
    }
    return {**images, **matcher.describe(), "matches": found.to_records()}


def format_table(found) -> str:
    """One line per match."""
    lines = [f"{'':>4} {'source x':>9} {'y':>8}   {'target x':>9} {'y':>8}   {'confidence':>10} {'similarity':>10}"]
    rows = zip(found.source, found.points, found.confidence, found.similarity, strict=True)
    for number, (source, target, confidence, similarity) in enumerate(rows, 1):
        lines.append(
            f"{number:>4} {source[0]:>9.1f} {source[1]:>8.1f}   {target[0]:>9.1f} {target[1]:>8.1f}   "
            f"{confidence:>10.2f} {similarity:>10.3f}"
        )
    return "\n".join(lines)


@entry_point()
def main() -> int:
    args = parse_args()
    with in_flags(args):
        match(args)
    return 0
