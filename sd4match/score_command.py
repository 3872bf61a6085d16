"""Say which of some texts fits an image best.

    python score_text.py image.jpg "a dog on a sofa" "a cat on a sofa"
    python score_text.py image.jpg "a dog" "a cat" --network sd2-1-base --weights pytorch_model.bin --json

Prints the texts, the best first, with their scores (docs/dsd.md). Only scores of the same image compare: a single one
says nothing. Networks: sd2-1-base (for photos; a download of about 5 GB on first use), mini (embedded, knows only the
rendered scenes of the mini world), a diffusers folder or a hub id. Without --network, sd2-1-base is taken if it is on
this machine, else mini.
"""

import argparse
import json
import sys

from engine.entry import entry_point
from sd4match.command import choose_network
from sd4match.error import build_parser


def parse_args() -> argparse.Namespace:
    parser = build_parser(__doc__, "score_text.py", "sd4match-score")
    parser.add_argument("image")
    parser.add_argument("texts", nargs="+", metavar="TEXT")
    parser.add_argument("--network", help="sd2-1-base, mini, a diffusers folder or a hub id; default: see above")
    parser.add_argument("--weights", help="learned ones: a folder of train.py, pytorch_model.bin, or safetensors")
    parser.add_argument("--timesteps", type=int, metavar="S", help="as DSD.TIMESTEPS; fewer are faster")
    terms = parser.add_mutually_exclusive_group()
    terms.add_argument("--no-noise-term", action="store_true", help="score by attention alone")
    terms.add_argument("--bias", action="store_true", help="the same, by the name that DSD's release has for it")
    parser.add_argument("--device", default="auto", help='"auto" (GPU if there is one), "cpu", "cuda:1", ...')
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    return parser.parse_args()


def score(args: argparse.Namespace) -> list[dict]:
    """A record per text, the best first."""
    from sd4match import Scorer
    from utils.image import read_image

    picture = read_image(args.image)  # before the networks are loaded
    terms = "attention" if args.no_noise_term or args.bias else None
    network = args.network or choose_network("sd2-1-base")
    scorer = Scorer.from_pretrained(network, args.weights, args.device, timesteps=args.timesteps, terms=terms)
    if network == "mini":
        print("the mini networks know only the rendered scenes of the mini world", file=sys.stderr)
    found = scorer.score(picture, args.texts)
    columns = {"score": found.total, **found.terms}
    records = [
        {"text": text} | {name: float(values[0, number]) for name, values in columns.items()}
        for number, text in enumerate(args.texts)
    ]
    return sorted(records, key=lambda record: -record["score"])


@entry_point()
def main() -> int:
    args = parse_args()
    records = score(args)
    if args.json:
        print(json.dumps({"image": args.image, "texts": records}, indent=2))
        return 0
    columns = [name for name in records[0] if name != "text"]
    print("".join(f"{name:>11}" for name in columns) + "  text")
    for record in records:
        print("".join(f"{record[name]:>11.4f}" for name in columns) + f"  {record['text']}")
    return 0
