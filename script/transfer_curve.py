"""How many labelled references a transfer needs: PCK on held-out images over the number of references per category.

    python -m mini.render.labelled asset/mini/labelled --images 13 --categories aeroplane bicycle bird boat bus car \\
        chair dog horse person
    python script/transfer_curve.py asset/mini/labelled --network mini --output asset/picture/transfer_mini.png

Of each category's images the first --references are the references, the others are held out. Every image goes through
the networks once; of each number of references all choices are averaged. KEY VALUE: settings, as for transfer.py.
"""

import argparse
import itertools
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from engine.argument import positive
from engine.entry import entry_point
from sd4match.command import add_settings, check_picture, load_matcher
from sd4match.error import in_flags

COMBINED = ("confident", "vote")  # choices of TRANSFER.COMBINE


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("labels", help="labelled images: a label file, or a folder of them")
    parser.add_argument("--references", type=positive, default=3, help="of each category; default: %(default)s")
    parser.add_argument("--output", help="the picture, .png, .jpg, .pdf or .svg; default: none")
    add_settings(parser)
    return parser.parse_intermixed_args()


def divide(labels, count: int):
    """(references, the others, {reference's id: its number in its category}) of labelled objects."""
    seen, numbers, others = defaultdict(int), {}, []
    for thing in labels.objects:
        if seen[thing.category_id] < count:
            numbers[thing.id] = seen[thing.category_id]
        else:
            others.append(thing)
        seen[thing.category_id] += 1
    return labels.select(o for o in labels.objects if o.id in numbers), labels.select(others), numbers


def score(job, judged: Sequence[tuple], numbers: dict[int, int], chosen: Sequence[int], alphas):
    """PCK at each alpha (points of all categories alike) with the references of these numbers, in percent."""
    from sd4match.label import label
    from sd4match.label_score import show_all, tabulate_pck

    pairs = []
    for thing, votes in judged:
        votes = votes | {"votes": [vote for vote in votes["votes"] if numbers[vote["reference"]] in chosen]}
        pairs.append((show_all(label(thing, job.combine(votes, len(thing.points)), 0.0)), thing))
    table = tabulate_pck(pairs, job.labels, alphas)
    return 100 * table.iloc[-1][[f"@{alpha:g}" for alpha in alphas]].to_numpy(float)


def measure(args: argparse.Namespace):
    """(table, alpha of the picture): rows (combine, references, PCK at each alpha), and held-out images."""
    import numpy as np
    import pandas as pd

    from config import ConfigError, change_config
    from dataset.annotation import read_labels
    from sd4match import Transfer
    from sd4match.label import targets_of
    from utils.progress import progress

    references, others, numbers = divide(read_labels(args.labels), args.references)
    matcher = load_matcher(args)
    job, alphas = Transfer(matcher, references), matcher.config.EVAL.ALPHAS
    if job.alpha not in alphas:
        raise ConfigError(f"EVAL.PICTURE_ALPHA {job.alpha:g}, which is drawn, must be one of EVAL.ALPHAS {alphas}")
    targets = list(targets_of(others, job.labels))
    records = progress(job.match(targets), "matching", len(targets), unit="image")
    judged = []
    for target, record in zip(targets, records, strict=True):
        judged += zip(target.objects, record["objects"], strict=True)
    rows = []
    for combine, count in itertools.product(COMBINED, range(1, args.references + 1)):
        job.settings = change_config(matcher.config, {"TRANSFER.COMBINE": combine}).TRANSFER
        choices = itertools.combinations(range(args.references), count)
        mean = np.mean([score(job, judged, numbers, chosen, alphas) for chosen in choices], axis=0)
        rows.append((combine, count, *mean))
    columns = ["combine", "references", *[f"@{alpha:g}" for alpha in alphas]]
    return pd.DataFrame(rows, columns=columns), job.alpha, len(targets)


@entry_point()
def main() -> None:
    args = parse_args()
    from utils.draw import save_figure
    from utils.plot import plot_curves

    if args.output:
        check_picture("--output", args.output, (args.labels,), pixels_only=False)
    with in_flags(args):
        table, alpha, count = measure(args)
    print(f"{count} held-out images, PCK in percent")
    print(table.to_string(index=False, float_format="{:.2f}".format))
    if args.output:
        curves = {
            name: dict(zip(rows["references"], rows[f"@{alpha:g}"], strict=True))
            for name, rows in table.groupby("combine", sort=False)
        }
        save_figure(args.output, plot_curves(curves, "references per category", f"PCK@{alpha:g} (%)"))
        print(f"written: {args.output}")


if __name__ == "__main__":
    sys.exit(main())
