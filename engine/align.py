"""Sources are mirrored at test time where that brings them nearer to their target: config section POSE."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from config import ConfigError
from dataset.pair_dataset import PairDataset
from engine.masks import Masks
from model.method.base import FeatureMethod, Method
from utils.align import mask_distance, mirror_queries, mutual_distance
from utils.localise import FeatureSimilarity
from utils.pck import MIRRORED

Find = Callable[[FeatureSimilarity, Tensor], dict[str, Tensor]]  # similarity, source points in px -> predictions


class Alignment:
    """masks: None for the distance of mutual nearest neighbours."""

    def __init__(self, masks: Masks | None, width: int) -> None:
        self.masks, self.width = masks, width

    def predict(
        self, batch: Mapping[str, Any], similarity: FeatureSimilarity, find: Find, found: dict[str, Tensor]
    ) -> tuple[dict[str, Tensor], dict[str, list]]:
        """Predictions `found` in a pair batch, corrected where the mirrored source is nearer; and which pairs that are.

        batch["mirrored"]: the similarity of the mirrored sources to the targets.
        """
        mirrored = batch["mirrored"]
        nearer = torch.tensor(
            [self.is_nearer(batch, similarity, mirrored, pair) for pair in range(len(batch["index"]))]
        )
        if nearer.any():
            device = mirrored.src_feat.device
            points = (batch[key].to(device) for key in ("src_kps", "kps_mask", "kps_ids", "kps_partner"))
            query, counts = mirror_queries(*points, self.width)
            replaced = (nearer.to(device)[:, None] & counts)[..., None]
            found = {name: torch.where(replaced, value, found[name]) for name, value in find(mirrored, query).items()}
        return found, {MIRRORED: nearer.int().tolist()}

    def is_nearer(
        self, batch: Mapping[str, Any], similarity: FeatureSimilarity, mirrored: FeatureSimilarity, pair: int
    ) -> bool:
        """IMD(mirrored source, target) < IMD(source, target), strictly, of one pair of a batch."""
        src, other, trg = similarity.src_feat[pair], mirrored.src_feat[pair], similarity.trg_feat[pair]
        if self.masks is None:
            return bool(mutual_distance(other, trg) < mutual_distance(src, trg))
        names = (batch[f"{side}_identifier"][pair] for side in ("src", "trg"))
        src_mask, trg_mask = (self.masks.read(name).to(trg.device) for name in names)
        return bool(
            mask_distance(other, trg, src_mask.flip(-1), trg_mask) < mask_distance(src, trg, src_mask, trg_mask)
        )


def build_alignment(cfg, method: type[Method], pairs: PairDataset) -> Alignment | None:
    """The configured one; ConfigError for a method without feature maps, an unknown symmetry, or missing masks."""
    section, benchmark = cfg.POSE, pairs.benchmark
    if section.ALIGN == "none":
        return None
    if not issubclass(method, FeatureMethod):
        raise ConfigError(
            f"POSE.ALIGN {section.ALIGN}: METHOD.NAME {cfg.METHOD.NAME} has no feature maps; set it to none"
        )
    if unknown := [name for name in {record.category for record in benchmark} if benchmark.find_symmetry(name) is None]:
        raise ConfigError(
            f"POSE.ALIGN {section.ALIGN}: nothing says which keypoints of {min(unknown)!r} change places in a mirrored "
            f"image; write {benchmark.root / 'keypoints.json'}, or set it to none"
        )
    masks = Masks(section.MASKS, benchmark, pairs.frame, section.GRID) if section.ALIGN == "mask" else None
    return Alignment(masks, pairs.image_size[1])
