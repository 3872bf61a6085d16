"""Write the items of a ranking benchmark down as a manifest (JSON Lines), which can be shared and tested as it is.

python script/manifest.py asset/dataset/manifest/test.jsonl --config_file config/refcocog/dsd.yaml DATASET.PAIRS 500
python test.py --config_file config/refcocog/dsd.yaml DATASET.NAME manifest
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from config import ConfigError, load_config
from engine.entry import entry_point


@entry_point()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="the manifest, .jsonl; images are named as paths from its folder")
    parser.add_argument("--config_file", required=True)
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="settings, such as TEST.SPLIT val")
    args = parser.parse_intermixed_args()

    from dataset.manifest import write_manifest
    from dataset.ranking import RankingBenchmark
    from engine.build import build_pairs
    from engine.check import check_config

    cfg = check_config(load_config(args.config_file, args.opts), training=False)
    benchmark = build_pairs(cfg, cfg.TEST.SPLIT).benchmark
    if not isinstance(benchmark, RankingBenchmark):
        raise ConfigError(f"DATASET.NAME {cfg.DATASET.NAME} has pairs, not items of texts and images")
    write_manifest(args.output, benchmark)
    print(f"{len(benchmark)} items: {args.output}")


if __name__ == "__main__":
    sys.exit(main())
