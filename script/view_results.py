"""A page to look through the results of test.py: which pairs went wrong, and how, under two methods.

    python script/view_results.py asset/mini/sd4match/prompt             # all results below a folder
    python script/view_results.py a_pairs.csv b_pairs.csv --output /tmp  # these two
    python script/view_results.py asset/mini/sd4match/prompt --serve     # at http://127.0.0.1:7861, for remote machines

Writes viewer_{data set}_{split}.html, which opens in any browser without a server and without a network, and reads the
pictures of the data set from where they are.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from config import ConfigError, resolve_path
from engine.entry import entry_point


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="+", help="folders, or *_pairs.csv or *_items.csv files")
    parser.add_argument("--output", help="folder of the pages; default: the first of the results' folders")
    parser.add_argument("--localisers", nargs="+", help="whose points are shown; default: EVAL.PICTURE_LOCALISER")
    parser.add_argument("--data_root", help="where the data sets are; default: where they were when tested")
    parser.add_argument("--serve", action="store_true", help="serve the first page instead of writing files")
    parser.add_argument("--host", default="127.0.0.1", help="of --serve; default: %(default)s")
    parser.add_argument("--port", type=int, default=7861, help="of --serve; default: %(default)s")
    return parser.parse_args()


@entry_point(mendable=(ValueError,))
def main() -> None:
    args = parse_args()
    from app.serve import serve_page
    from app.viewer import build_pages, find_results
    from engine.predictions import LOCALISER as PREDICTED
    from utils.localise import LOCALISERS

    if args.data_root and not Path(resolve_path(args.data_root)).is_dir():
        raise ConfigError(f"--data_root {args.data_root}: no such folder")
    results = find_results(args.results)
    localisers = args.localisers or [results[0].config.EVAL.PICTURE_LOCALISER, PREDICTED]
    if unknown := [name for name in localisers if name not in (*LOCALISERS, PREDICTED)]:
        raise ConfigError(f"--localisers: unknown {', '.join(unknown)}; known: {', '.join(LOCALISERS)}")
    pages = build_pages(results, localisers, args.data_root)
    if args.serve:
        serve_page(pages[0], args.host, args.port)
        return
    first = Path(args.results[0])
    folder = Path(args.output) if args.output else first if first.is_dir() else first.parent
    for page in pages:
        path = folder / f"viewer_{page.name}.html"
        page.write(path)
        print(f"written: {path} ({len(page.results)} results, {path.stat().st_size / 1e6:.1f} MB)")


if __name__ == "__main__":
    sys.exit(main())
