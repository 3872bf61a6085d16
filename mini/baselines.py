"""Trivial guesses on a split of the mini benchmark, under the same evaluation as test.py.

    python -m mini.baselines --config_file config/mini/base.yaml [--split test] [KEY VALUE ...]

box      the same place in the target's true box as in the source's (looks at no pixel, but is told both boxes)
colour   nearest neighbour of raw colour patches, one per feature cell
random   the UNet with random weights, text prompt
"""

import argparse

import pandas as pd
import torch
from torch import nn
from torch.nn import functional as F

from config import load_config, resolve_network
from dataset.pair_dataset import PairDataset, collate, load_image
from engine.build import build_test
from engine.check import check_config
from engine.evaluate import evaluate
from engine.precompute import unique_images
from engine.result import format_overview
from model.backbone.facts import network_facts
from utils.pck import PCKEvaluator, summarise

PATCH = 3  # cells


class ColourPatches:
    """A method whose features are the colours around each cell, (3 * PATCH^2, h, w)."""

    per_image, block, precision = True, "colour patches", "fp32"

    def __init__(self, pairs: PairDataset, cells: tuple[int, int]):
        self.refs = {ref.identifier: ref for ref in unique_images([pairs])}
        self.frame, self.cells = pairs.frame, cells

    def features(self, batch: dict, seeds: torch.Tensor) -> torch.Tensor:
        images = torch.stack([load_image(self.refs[name], self.frame) for name in batch["identifier"]])
        small = F.adaptive_avg_pool2d(images, self.cells)
        padded = F.pad(small, (PATCH // 2,) * 4, mode="replicate")
        return F.unfold(padded, PATCH).unflatten(2, self.cells)


def predict_by_box(pairs: PairDataset, position: int) -> torch.Tensor:
    """(1, N, 2) px of the resized frame: source keypoints carried from box to box."""
    record = pairs.benchmark[position]
    src_box, trg_box = (
        pairs.frame.box_to_px(torch.from_numpy(box), image.size).reshape(2, 2)
        for image, box in ((record.src, record.src_bbox), (record.trg, record.trg_bbox))
    )
    place = (pairs[position]["src_kps"] - src_box[0]) / (src_box[1] - src_box[0])
    return (trg_box[0] + place * (trg_box[1] - trg_box[0]))[None]


def score_box(cfg, pairs: PairDataset) -> pd.DataFrame:
    """Scores of the box guess, the same for every localiser."""
    evaluator = PCKEvaluator(cfg.EVAL.LOCALISERS, cfg.EVAL.ALPHAS, cfg.EVAL.PROTOCOL, pairs.frame)
    for position in range(len(pairs)):
        guess = predict_by_box(pairs, position)
        evaluator.update(collate([pairs[position]]), dict.fromkeys(cfg.EVAL.LOCALISERS, guess))
    return evaluator.scores()


def forget_weights(module: nn.Module, seed: int) -> None:
    """Draw every layer's weights anew, as at the start of a training."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for part in module.modules():
            if hasattr(part, "reset_parameters"):
                part.reset_parameters()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config_file", default="config/mini/base.yaml")
    parser.add_argument("--split", default="test")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE")
    args = parser.parse_args()
    cfg = load_config(args.config_file, args.opts, {"TEST.SPLIT": args.split, "PROMPT.TYPE": "text"})
    check_config(cfg, training=False)
    accelerator, pairs, method = build_test(cfg)

    scores = {"box": score_box(cfg, pairs)}
    _, *cells = network_facts(resolve_network(cfg.NETWORK.FOLDER)).feature_shape(pairs.image_size, cfg.METHOD.LAYER)
    scores["colour"] = evaluate(cfg, ColourPatches(pairs, tuple(cells)), pairs, accelerator.device)
    forget_weights(method.diffusion.unet, cfg.SEED)
    scores["random"] = evaluate(cfg, method, pairs, accelerator.device)
    for name, table in scores.items():
        summary = summarise(table, cfg.EVAL.LOCALISERS, cfg.EVAL.ALPHAS, cfg.EVAL.BY, cfg.EVAL.AVERAGE)
        print(f"{name}\n{format_overview(summary)}")


if __name__ == "__main__":
    main()
