"""Carry the keypoints of a few labelled images to a folder of others.

    python transfer.py --references labelled/ --images folder/ --output labels.json --network sd2-1
    python transfer.py --references labelled/ --images folder/ --output labels.json --boxes b.json --truth t.json
    accelerate launch --num_processes 4 transfer.py --references labelled/ --images folder/ --output labels.json

References: a file or a folder of files in COCO's keypoint format, LabelMe's, or CSV with the columns image, keypoint,
x, y and perhaps category, object, visible. The labels come in COCO's format, with a list beside them of what to look at
first (_review.csv); script/review_labels.py shows and corrects them. Interrupted or killed, the same command goes on.

KEY VALUE: settings of config/default.py, such as TRANSFER.COMBINE vote. Networks: see match.py.
"""

import argparse
import sys
from datetime import timedelta
from pathlib import Path

from engine.entry import entry_point, tell
from sd4match.command import add_settings, check_output, load_matcher
from sd4match.error import OutputError, build_parser, in_flags


def parse_args() -> argparse.Namespace:
    parser = build_parser(__doc__, "transfer.py", "sd4match-transfer")
    add = parser.add_argument
    add("--references", required=True, metavar="PLACE", help="labelled images: a label file, or a folder of them")
    add("--reference_images", metavar="FOLDER", help="their pictures; default: beside the labels, or in images/ there")
    add("--images", required=True, metavar="FOLDER", help="pictures to label, at any depth")
    add("--output", required=True, metavar="FILE", help="the labels, .json")
    add("--category", help="what every picture shows; default: the references' only category, or its folder's name")
    add("--boxes", metavar="FILE", help="objects to label, COCO's format, boxes or masks; no other pictures are taken")
    add("--labelled", metavar="FILE", help="labels of --images that choose TRANSFER.VISIBLE; default: the references")
    add("--truth", metavar="FILE", help="labels of --images to compare with: PCK of each keypoint and OKS AP")
    add_settings(parser)
    return parser.parse_intermixed_args()


def transfer(args: argparse.Namespace) -> int:
    """Label the images; 1 if some could not be read."""
    output, place = Path(args.output), Path(args.references)
    if output.suffix != ".json":
        raise OutputError(f"--output {output}: the name must end in .json")
    if place.is_dir() and output.resolve().parent == place.resolve():
        raise OutputError(f"--output {output} lies among the references, and would be one of them the next time")
    from accelerate import PartialState

    from dataset.annotation import find_label_files, read_labels
    from sd4match import Transfer
    from sd4match.label import choose_references, find_targets
    from sd4match.label_job import find_review, run_job, write_output
    from sd4match.label_score import format_score, score_labels

    inputs = [*find_label_files(place), *(path for path in (args.boxes, args.labelled, args.truth) if path)]
    check_output("--output", output, inputs)
    check_output("--output, whose list for review is", find_review(output), inputs)
    references = choose_references(read_labels(place, args.reference_images, args.category))
    boxes, labelled, truth = (
        read_labels(place, args.images) if place else None for place in (args.boxes, args.labelled, args.truth)
    )
    targets = find_targets(references, boxes or args.images, args.category)
    state = PartialState(cpu=args.device == "cpu", timeout=timedelta(days=30))  # the others may have more to do
    matcher = load_matcher(args)
    job = Transfer(matcher, references)
    judged = job.find_judged(labelled)
    places = run_job(job, [*targets, *judged], output, state)
    if not state.is_main_process:
        return 0
    visible, count = job.choose_visible(judged, (places[target.name].read() for target in judged))
    errors = {target.name: places[target.name].error for target in targets}
    skipped = [{"file_name": name, "reason": error} for name, error in errors.items() if error]
    info = {
        "description": "keypoints transferred from labelled images",
        "matcher": matcher.describe(),
        "transfer": dict(job.settings),
        "references": len(references.objects),
        "visible": {"confidence": visible, "chosen_on_points": count},
        "skipped": skipped,
    }
    write_output(job, targets, places, output, visible, info)
    print(f"written: {output} ({len(targets) - len(skipped)} images), {find_review(output)}", file=sys.stderr)
    print(f"visible from confidence {visible:.4g}" + f", chosen on {count} points" * bool(count), file=sys.stderr)
    if truth:
        found, alphas = read_labels(output, args.images), matcher.config.EVAL.ALPHAS
        print(format_score(score_labels(found, truth, alphas, job.settings.OKS_SIGMA)))
    if skipped:
        tell(f"{len(skipped)} of {len(targets)} images could not be read and were skipped; {output} lists them")
    return 1 if skipped else 0


@entry_point("what was labelled is kept, and the same command goes on from it")
def main() -> int:
    args = parse_args()
    with in_flags(args):
        return transfer(args)
