"""Write the features of a benchmark's images as GeoAware-SC's release keeps them, for projects that read those files.

    python script/export_features.py --config_file config/spair/geoaware_zero_shot.yaml --splits test --mirrored

For JPEGImages/{...}/{id}.jpg writes features/{...}/{id}_sd.pt, a dict {"s3", "s4", "s5"} of arrays (1, C, h, w), and
{id}_dino.pt, (1, 768, h, w); of the mirrored image {id}_sd_flip.pt and {id}_dino_flip.pt. Float32 as there (26 MB an
image at the original's sizes) or, with --half, half of that. Taken from the caches, which are filled if need be.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from config import ConfigError, load_config
from engine.check import check_config
from engine.entry import entry_point

NAMES = ("s3", "s4", "s5", "s2")  # of FEATURES.TAPS, in this order


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config_file", required=True, help="YAML file")
    parser.add_argument("--splits", nargs="+", metavar="SPLIT", help="trn, val, test; default: all")
    parser.add_argument("--mirrored", action="store_true", help="also of the mirrored images")
    parser.add_argument("--half", action="store_true", help="half precision")
    parser.add_argument("--output", help="folder that receives features/; default: the benchmark's own")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="settings, such as DATASET.NAME pfpascal")
    return parser.parse_intermixed_args()


def export(cfg, splits: list[str] | None, mirrored: bool, half: bool, output: str | None) -> int:
    """Write the files; how many images there are."""
    from engine.build import build_accelerator, build_all_splits, build_pairs, find_folder
    from engine.precompute import fill_from_source, unique_images
    from model.source import MIRRORED, find_sources
    from utils.progress import progress

    pairs = [build_pairs(cfg, split) for split in splits] if splits else build_all_splits(cfg)
    refs, root, accelerator = unique_images(pairs), find_folder(cfg), build_accelerator(cfg)
    reads = ["layers", "dino", *([f"layers{MIRRORED}", f"dino{MIRRORED}"] if mirrored else [])]
    sources = find_sources(cfg, reads, None)
    caches = {key: fill_from_source(cfg, source, refs, accelerator) for key, source in sources.items()}
    for ref in progress(refs, "exporting", shown=accelerator.is_main_process) if accelerator.is_main_process else ():
        for end, flip in (("", False), (MIRRORED, True))[: 1 + mirrored]:
            layers, dino = (caches[key + end].get(ref.identifier) for key in ("layers", "dino"))
            named = {name: layers[tap] for name, tap in zip(NAMES, cfg.FEATURES.TAPS, strict=False)}
            stem = place(Path(ref.path).relative_to(root), Path(output or root))
            suffix = "_flip" if ref.flip != flip else ""
            write(f"{stem}_sd{suffix}.pt", {name: shape(value, half) for name, value in named.items()})
            write(f"{stem}_dino{suffix}.pt", shape(dino, half))
    return len(refs)


def place(path: Path, root: Path) -> Path:
    """The files' common beginning, of an image inside a benchmark."""
    inner = path.parts[1:] if path.parts[0] == "JPEGImages" else path.parts
    return (root / "features" / Path(*inner)).with_suffix("")


def shape(value, half: bool):
    return (value if half else value.float())[None]


def write(path: str, content: object) -> None:
    import torch

    from utils.store import atomic_path

    with atomic_path(path) as temporary:
        torch.save(content, temporary)


@entry_point("what is written is kept")
def main() -> None:
    args = parse_args()
    cfg = check_config(load_config(args.config_file, args.opts), training=False)
    if not 3 <= len(cfg.FEATURES.TAPS) <= len(NAMES):
        raise ConfigError(f"FEATURES.TAPS {cfg.FEATURES.TAPS}: the layout has three or four layers, {', '.join(NAMES)}")
    print(f"{export(cfg, args.splits, args.mirrored, args.half, args.output)} images")


if __name__ == "__main__":
    sys.exit(main())
