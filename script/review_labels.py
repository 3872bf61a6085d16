"""A page to look through the labels of transfer.py, the least confident first: drag points, accept, reject, save.

    python script/review_labels.py labels.json --images folder/   # at http://127.0.0.1:7862; saves to the file
    python script/review_labels.py labels.json --images folder/ --output review.html   # a file; saves as a download

Keys: A accept, R reject, up and down the object before and after, Tab the next point, arrow keys move it (Shift: by 10
px), V shows or hides it, U undoes all of the object, Ctrl-S saves.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from config import ConfigError
from engine.argument import positive
from engine.entry import entry_point


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("labels", help="COCO keypoints, as transfer.py writes them")
    parser.add_argument("--images", metavar="FOLDER", help="their pictures; default: beside the labels")
    parser.add_argument("--most", type=positive, default=2000, help="objects shown; default: %(default)s")
    parser.add_argument("--output", metavar="FILE", help="write the page, .html, instead of serving it")
    parser.add_argument("--host", default="127.0.0.1", help="default: %(default)s")
    parser.add_argument("--port", type=int, default=7862, help="default: %(default)s")
    return parser.parse_args()


@entry_point()
def main() -> None:
    args = parse_args()
    from app.review import Review
    from app.serve import serve_page

    page = Review(Path(args.labels), args.images, args.most)
    if not args.output:
        serve_page(page, args.host, args.port)
        return
    if Path(args.output).suffix != ".html":
        raise ConfigError(f"--output {args.output}: the name must end in .html")
    page.write(Path(args.output))
    print(f"written: {args.output} ({len(page.images)} images)")


if __name__ == "__main__":
    sys.exit(main())
