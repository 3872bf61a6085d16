"""Does a method's feature map know which way an animal faces? Photos of SPair-71k's cats against templates.

    python script/global_pose.py TEMPLATES --config_file config/spair/global_pose.yaml --co_pca sd+dino
    python script/global_pose.py TEMPLATES --config_file config/spair/dinov2.yaml --labels labels.json --category dog

TEMPLATES is a folder with an image of each colour and direction: orange_left.png, orange_back.png, ... Labels are those
of GeoAware-SC's authors for SPair-71k's cats; others: a JSON file {"right": [image, ...], "front": ..., "back": ...},
where what is not named faces left. Features are taken as the method gives them, or with --co_pca as in the paper: each
layer of Stable Diffusion on 256 principal directions of a photo and a template together, alone or beside DINOv2.
"""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from engine.entry import entry_point  # noqa: E402

REPORTED = {  # of the paper: DINOv2, SD, SD+DINO
    "L/R": (63.8, 95.7, 98.6),
    "F/B": (100.0, 96.8, 100.0),
    "L/R or F/B": (75.0, 96.0, 99.0),
    "4-way": (51.0, 78.0, 84.0),
}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("templates", type=Path, help="folder of the templates")
    add("--config_file", help="YAML file; default: config/default.py as it is")
    add("--labels", type=Path, default=Path(__file__).with_suffix(".json"), help="JSON; default: those of 100 cats")
    add("--category", default="cat")
    add("--co_pca", choices=("sd", "sd+dino"), help="the paper's features; of METHOD.NAME geoaware")
    add("opts", nargs="*", metavar="KEY VALUE", help="settings, such as TEST.TIMESTEP 100")
    return parser.parse_intermixed_args()


def list_templates(folder: Path, category: str) -> dict:
    """{(colour, direction): image}; ConfigError if there is none, or a colour lacks a direction."""
    from config import ConfigError
    from dataset import ImageRef
    from engine.orientation import DIRECTIONS
    from utils.image import read_size

    found = {}
    for path in sorted(folder.glob("*_*.*")):
        colour, _, direction = path.stem.rpartition("_")
        if direction in DIRECTIONS:
            found[colour, direction] = ImageRef(f"template-{path.stem}", str(path), category, read_size(path))
    colours = {colour for colour, _ in found}
    wanted = [(colour, direction) for colour in sorted(colours) for direction in DIRECTIONS]
    if missing := [f"{colour}_{direction}" for colour, direction in wanted if (colour, direction) not in found]:
        raise ConfigError(f"{folder}: the template {missing[0]} is missing")
    if not found:
        raise ConfigError(f"{folder}: no template there; their names are like orange_left.png")
    return found


def list_maps(cfg, method, data, refs: list, device) -> dict:
    """{identifier: feature map} of images, as the method gives them."""
    from engine.evaluate import extract_images

    batches = extract_images(method, data, refs, cfg.SEED, device, cfg.EVAL.BATCH_SIZE)
    return {name: feature for names, features in batches for name, feature in zip(names, features, strict=True)}


@entry_point(mendable=(ValueError,))
def main() -> None:
    args = parse_args()
    from config import ConfigError, load_config
    from dataset import ImageRef
    from dataset.pair_dataset import PairDataset
    from engine.build import build_accelerator, build_method, build_pairs
    from engine.check import check_config
    from engine.masks import find_labelled
    from engine.orientation import measure_accuracy, reduce_layers, template_distance
    from engine.precompute import fill_caches
    from engine.transfer import move_batch
    from utils.image import read_size
    from utils.progress import progress

    cfg = load_config(args.config_file, args.opts)
    check_config(cfg, training=False)
    accelerator, pairs = build_accelerator(cfg), build_pairs(cfg, cfg.TEST.SPLIT)
    templates = list_templates(args.templates, args.category)
    photos = {
        path.stem: ImageRef(f"{args.category}-{path.stem}", str(path), args.category, read_size(path))
        for path in sorted((pairs.benchmark.root / "JPEGImages" / args.category).glob("*.jpg"))
    }
    directions = json.loads(args.labels.read_text(encoding="utf-8"))
    labels = dict.fromkeys(photos, "left") | {name: way for way, names in directions.items() for name in names}
    method = build_method(cfg, accelerator.device, pairs.benchmark.image_categories)
    if args.co_pca and not {"layers", "dino"} <= set(method.reads):
        raise ConfigError(f"--co_pca is for METHOD.NAME geoaware; {cfg.METHOD.NAME} reads no layers")
    refs = [*templates.values(), *photos.values()]
    data = PairDataset(pairs.benchmark, pairs.frame)
    data.caches = fill_caches(cfg, method, refs, accelerator)
    maps = {} if args.co_pca else list_maps(cfg, method, data, refs, accelerator.device)

    def describe(*images: ImageRef) -> list:
        """Feature maps of a photo and a template."""
        if not args.co_pca:
            return [maps[ref.identifier] for ref in images]
        pair = [{key: cache.get(ref.identifier) for key, cache in data.caches.items()} for ref in images]
        return reduce_layers([move_batch(side, accelerator.device) for side in pair], args.co_pca == "sd+dino")

    found: dict[str, dict[str, dict[str, float]]] = {}
    for name, ref in progress(photos.items(), "matching templates", unit=" photos"):
        mask = find_labelled(pairs.benchmark.root / "Segmentation", ref, pairs.frame)
        for (colour, direction), template in templates.items():
            distance = template_distance(*describe(ref, template), mask.to(accelerator.device))
            found.setdefault(name, {}).setdefault(colour, {})[direction] = distance
    print(f"{len(photos)} photos, {len(templates)} templates; the paper's: DINOv2, SD, SD+DINO")
    for metric, value in measure_accuracy(found, labels).items():
        paper = " / ".join(f"{number:.1f}" for number in REPORTED[metric])
        print(f"{metric:<12}{'-' if value is None else f'{100 * value:.1f}':<8}(paper: {paper})")


if __name__ == "__main__":
    sys.exit(main())
