"""Does precision or compilation change results? PCK and loss of the same pairs in each setting, with intervals.

    python script/precision.py --config_file config/mini/sd4match_cpm.yaml
    python script/precision.py --prompt_type CPM_spair_mini_Pair-DINO-Feat-G25-C50 --pairs 200 --settings fp32 bf16

Settings: fp32, bf16, fp16, and each with torch.compile, such as fp32+compile. The first is what the others are compared
with. Intervals are 95 % bootstraps over pairs, of differences over the same pairs. Prints a table in markdown.
"""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from config import load_config  # noqa: E402
from engine.check import check_config  # noqa: E402
from engine.entry import entry_point  # noqa: E402

PRECISIONS = ("fp32", "bf16", "fp16")
SETTINGS = (*PRECISIONS, *(f"{name}+compile" for name in PRECISIONS))


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--config_file", default="config/mini/sd4match_cpm.yaml", help="YAML file; default: %(default)s")
    add("--prompt_type", default="text", help="`text`, `empty`, or a learned prompt; default: %(default)s")
    add("--settings", nargs="+", choices=SETTINGS, default=["fp32", "bf16", "fp16", "fp32+compile"])
    add("--pairs", type=int, default=0, help="test pairs, evenly spaced; 0 = all; default: %(default)s")
    add("--output", type=Path, help="also write the rows to this JSON file")
    add("--opts", nargs="*", default=[], metavar="KEY VALUE", help="settings of config/default.py")
    return parser.parse_args()


def load_variants(args: argparse.Namespace) -> dict:
    """{setting: its checked config}."""
    configs = {}
    for setting in args.settings:
        precision, _, compiled = setting.partition("+")
        overrides = {"PROMPT.TYPE": args.prompt_type, "PRECISION": precision}
        overrides["NETWORK.COMPILE"] = "default" if compiled else "none"
        configs[setting] = load_config(args.config_file, args.opts, overrides)
        check_config(configs[setting], training=False)
    return configs


def run_setting(cfg, accelerator, pairs, n_pairs: int) -> tuple[list[dict], list[float]]:
    """Records and losses of the pairs, by index."""
    import torch

    from engine.build import build_loss, build_method
    from engine.evaluate import match_pairs
    from engine.report import build_protocol
    from engine.transfer import move_batch
    from utils.localise import localise
    from utils.pck import PCKEvaluator

    protocol, loss_fn, losses = build_protocol(cfg), build_loss(cfg), {}
    evaluator = PCKEvaluator(protocol.localisers, protocol.alphas, protocol.frame, pairs.frame)
    matcher = build_method(cfg, accelerator.device, pairs.benchmark.categories)
    step = len(pairs) / (n_pairs or len(pairs))
    positions = sorted({int(i * step) for i in range(n_pairs or len(pairs))})
    positions.sort(key=lambda position: pairs.benchmark[position].category)
    with torch.no_grad():
        settings = cfg.SEED, accelerator.device, cfg.EVAL.BATCH_SIZE
        for batch, similarity in match_pairs(matcher, pairs, positions, *settings):
            batch = move_batch(batch, accelerator.device)
            found = localise(
                similarity, batch["src_kps"], pairs.image_size, protocol.localisers, protocol.beta, protocol.sigma
            )
            evaluator.update(batch, found)
            points = batch["src_kps"], batch["trg_kps"], batch["kps_mask"]
            values = loss_fn(similarity, *points, pairs.image_size).tolist()
            losses |= dict(zip(batch["index"].tolist(), values, strict=True))
    records = sorted(evaluator.records(), key=lambda record: record["index"])
    return records, [losses[record["index"]] for record in records]


def describe(setting: str, found: tuple, first: tuple, measure) -> dict:
    """One row: numbers in percent, losses as they are."""
    from utils.statistics import bootstrap, compare

    (records, losses), (first_records, first_losses) = found, first
    pck, difference = bootstrap(records, measure), compare(first_records, records, measure).difference
    changes = [abs(a - b) for a, b in zip(losses, first_losses, strict=True)]
    return {
        "setting": setting,
        "pairs": len(records),
        "pck": [100 * value for value in (pck.value, pck.low, pck.high)],
        "difference": [100 * value for value in (difference.value, difference.low, difference.high)],
        "loss": sum(losses) / len(losses),
        "largest_loss_change": max(changes),
    }


def format_table(rows: list[dict], measure) -> str:
    """Markdown; the first row is what the others are compared with."""
    first = rows[0]["setting"]
    lines = [
        f"| {rows[0]['pairs']} pairs | PCK@{measure.alpha:g}, {measure.localiser} | against {first} | mean loss "
        f"| largest change of a pair's loss |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        value, low, high = row["pck"]
        change = "-" if row is rows[0] else "{:+.2f} [{:+.2f}, {:+.2f}]".format(*row["difference"])
        largest = "-" if row is rows[0] else f"{row['largest_loss_change']:.2g}"
        lines.append(
            f"| {row['setting']} | {value:.2f} [{low:.2f}, {high:.2f}] | {change} | {row['loss']:.4f} | {largest} |"
        )
    return "\n".join(lines)


def run(args: argparse.Namespace) -> None:
    from engine.build import build_accelerator, build_method, build_pairs
    from engine.precompute import build_caches
    from engine.result import write_text
    from utils.statistics import Measure

    configs = load_variants(args)
    cfg = configs[args.settings[0]]
    accelerator, pairs = build_accelerator(cfg), build_pairs(cfg, cfg.TEST.SPLIT)
    build_caches(cfg, (pairs,), build_method(cfg, accelerator.device, pairs.benchmark.categories), accelerator)
    measure = Measure(cfg.EVAL.PICTURE_LOCALISER, cfg.EVAL.PICTURE_ALPHA, cfg.EVAL.BY, cfg.EVAL.AVERAGE)
    first, rows = None, []
    for setting, variant in configs.items():
        found = run_setting(variant, accelerator, pairs, min(args.pairs, len(pairs)))
        first = first or found
        rows.append(describe(setting, found, first, measure))
        print(f"{setting}: done", file=sys.stderr)
    print(f"{args.prompt_type}, {accelerator.device}\n\n{format_table(rows, measure)}")
    if args.output:
        write_text(args.output, json.dumps({"command": sys.argv[1:], "rows": rows}, indent=2) + "\n")


@entry_point()
def main() -> int:
    run(parse_args())
    return 0


if __name__ == "__main__":
    sys.exit(main())
