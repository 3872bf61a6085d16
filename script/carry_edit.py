"""Carry an edit that is painted on one image to others of its kind.

    python script/carry_edit.py a.jpg --paint paint.png --images folder/ --output edited/ --category dog

The paint is an image with transparency (RGBA), of the size of a.jpg. For each picture OUTPUT/NAME.png is the picture
with the edit, and OUTPUT/layer/NAME.png the layer alone, to paint on. Networks: see match.py. KEY VALUE: settings.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from engine.entry import entry_point, tell
from sd4match.command import add_settings, check_output, check_picture, load_matcher
from sd4match.error import OutputError, in_flags

SHOWN, SHEET_HEIGHT, GAP = 5, 240, 8  # of --sheet: targets, px, px between them


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="image that was painted on")
    parser.add_argument("--paint", required=True, metavar="FILE", help="what was painted: an image with transparency")
    parser.add_argument("--images", required=True, nargs="+", metavar="PLACE", help="pictures, or folders of them")
    parser.add_argument("--output", required=True, metavar="FOLDER", help="where the edited pictures go")
    parser.add_argument(
        "--sheet", metavar="FILE", help="also a picture of the source with the edit and the first targets"
    )
    parser.add_argument("--category", help='what the images show, such as "dog"; text and Class prompts use it')
    text = "dense (default), or one transform: rigid, similarity, affine, homography"
    parser.add_argument("--warp", default="dense", help=text)
    add_settings(parser)
    return parser.parse_intermixed_args()


def find_outputs(places: list[str], output: Path) -> dict[Path, Path]:
    """{picture: where it goes}; OutputError if two would go to one place or one would be lost."""
    from sd4match.label import list_pictures

    found: dict[Path, Path] = {}
    for place in map(Path, places):
        named = list_pictures(place) if place.is_dir() else [(place.name, place)]
        found |= {path: (output / name).with_suffix(".png") for name, path in named}
    if len(set(found.values())) < len(found):
        doubled = next(path for path in found.values() if list(found.values()).count(path) > 1)
        raise OutputError(f"--images: two pictures would become {doubled}; rename one, or take two outputs")
    if lost := [path for path in found if path.resolve() in {target.resolve() for target in found.values()}]:
        raise OutputError(f"--output {output}: {lost[0]} would be replaced; choose another folder")
    return found


def find_layer(output: Path, target: Path) -> Path:
    """Where the carried layer of an edited picture goes."""
    return output / "layer" / target.relative_to(output)


def carry(args: argparse.Namespace) -> int:
    """1 if some pictures could not be edited."""
    from sd4match.edit import WARPS, carry_layer, lay_over, read_layer
    from sd4match.flow import FlowError
    from utils.draw import save_figure
    from utils.image import ImageError, read_image
    from utils.progress import progress

    if args.warp not in WARPS:
        raise OutputError(f"--warp {args.warp}: known are {', '.join(WARPS)}")
    output = Path(args.output)
    source, found = read_image(args.source), find_outputs(args.images, output)
    written = [place for target in found.values() for place in (target, find_layer(output, target))]
    for place in written:
        check_output("--output", place, (args.source, args.paint, *found))
    if len(set(written)) < len(written):
        raise OutputError(f"--output {output}: a picture of a folder called layer would be another's layer; rename it")
    if args.sheet:
        check_picture("--sheet", args.sheet, (args.source, args.paint, *found, *written))
    layer = read_layer(args.paint, source)
    matcher = load_matcher(args)
    features, failed, shown = matcher.encode(source, args.category), 0, [lay_over(source, layer)]
    for path, target in progress(found.items(), "editing", len(found), unit="image"):
        try:
            pair = matcher.pair(features, read_image(path), args.category)
            carried = carry_layer(pair, layer, args.warp)
        except (ImageError, FlowError) as error:
            tell(f"skipped: {error}" if str(path) in str(error) else f"skipped: {path}: {error}")
            failed += 1
            continue
        edited = lay_over(pair.trg, carried)
        shown += [edited] * (len(shown) <= SHOWN)
        save_figure(target, edited)
        save_figure(find_layer(output, target), carried)
    if args.sheet:
        save_figure(args.sheet, join(shown))
    print(f"written: {output} ({len(found) - failed} images)")
    return 1 if failed else 0


def join(pictures):
    """Pictures (H, W, 3) uint8 side by side, all as high as SHEET_HEIGHT."""
    import numpy as np
    from PIL import Image

    scaled = [Image.fromarray(p).resize((round(p.shape[1] * SHEET_HEIGHT / len(p)), SHEET_HEIGHT)) for p in pictures]
    gap = np.full((SHEET_HEIGHT, GAP, 3), 255, np.uint8)
    return np.concatenate([part for picture in scaled for part in (np.asarray(picture), gap)][:-1], axis=1)


@entry_point("what was written is kept")
def main() -> int:
    args = parse_args()
    with in_flags(args):
        return carry(args)


if __name__ == "__main__":
    sys.exit(main())
