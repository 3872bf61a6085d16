"""Part transfer: how often a feature's nearest neighbour in another image lies on the same part, or end of it.

The score that watches pretraining; it uses part labels of held-out scenes and no keypoints.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from mini.pretrain.captions import ALL_PARTS, IN_DETAIL
from mini.pretrain.scenes import CELL, SceneStore, to_cells, to_parts
from mini.pretrain.tokenizer import tokenize

TIMESTEP = 50
OFFSETS = (1, 2)
BATCH = 24

TEMPLATES: dict[str, Callable[[str, str], str]] = {
    "empty": lambda name, other: "",
    "text": lambda name, other: f"a photo of a {name}",
    "parts": lambda name, other: f"a photo of a {name}, {ALL_PARTS}",
    "detail": lambda name, other: f"a photo of a {name}, {ALL_PARTS} {IN_DETAIL}",
    "object_detail": lambda name, other: f"a photo of an object, {ALL_PARTS} {IN_DETAIL}",
    "wrong": lambda name, other: f"a photo of a {other}",
}


def nearest_cells(src_feat: torch.Tensor, trg_feat: torch.Tensor) -> np.ndarray:
    """Return for each source cell the target cell of largest cosine similarity, flat indices (h * w,)."""
    src, trg = (F.normalize(feat.flatten(1), dim=0) for feat in (src_feat, trg_feat))
    return (src.T @ trg).argmax(1).numpy()


def part_transfer(match: np.ndarray, src_part: np.ndarray, trg_part: np.ndarray) -> float:
    """Return the share of source cells matched to their own part, averaged over the parts both images show.

    `match` (h * w,) holds target cells, part maps are (h, w) with 0 for background. Returns nan if the images
    share no part.
    """
    source, found = src_part.ravel(), trg_part.ravel()[match]
    shared = set(np.unique(source)) & set(np.unique(trg_part)) - {0}
    if not shared:
        return float("nan")
    return float(np.mean([np.mean(found[source == part] == part) for part in shared]))


def mean_transfer(features: torch.Tensor, store: SceneStore) -> tuple[float, float]:
    """Return the transfer of parts and of their ends, averaged over neighbouring scenes of one category.

    Features are (n, C, h, w), one map for each scene of the store.
    """
    details, _ = to_cells(store.detail, store.instance)
    parts = to_parts(details)
    names = [scene[0]["category"] for scene in store.objects]
    scores = []
    for name in sorted(set(names)):
        rows = [i for i, other in enumerate(names) if other == name]
        for i, src in enumerate(rows):
            for offset in OFFSETS:
                trg = rows[(i + offset) % len(rows)]
                match = nearest_cells(features[src], features[trg])
                scores.append([part_transfer(match, labels[src], labels[trg]) for labels in (parts, details)])
    part, end = np.nanmean(scores, axis=0)
    return float(part), float(end)


@torch.no_grad()
def encode_text(tokenizer, text_encoder: nn.Module, texts: Sequence[str]) -> torch.Tensor:
    """Return the text condition (n, 77, D)."""
    return text_encoder(tokenize(tokenizer, texts).to(text_encoder.device)).last_hidden_state


@torch.no_grad()
def grounding_scores(
    features_of: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor],
    encode: Callable[[Sequence[str]], torch.Tensor],
    scheduler,
    latents: torch.Tensor,
    store: SceneStore,
    kinds: Sequence[str] = tuple(TEMPLATES),
) -> dict[str, float]:
    """Return the part transfer under caption templates (`kinds`), one noise draw at TIMESTEP.

    `features_of(x_t, timesteps, tokens)` gives the feature maps; latents (n, 4, h, w) are scaled.
    """
    names = [scene[0]["category"].replace("_", " ") for scene in store.objects]
    known = sorted(set(names))
    other = {name: known[(i + len(known) // 2) % len(known)] for i, name in enumerate(known)}
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(50)).to(latents)
    timesteps = torch.full((len(latents),), TIMESTEP, device=latents.device)
    x_t = scheduler.add_noise(latents, noise, timesteps)
    scores = {}
    for kind in kinds:
        tokens = encode([TEMPLATES[kind](name, other[name]) for name in names])
        chunks = [slice(i, i + BATCH) for i in range(0, len(x_t), BATCH)]
        features = torch.cat([features_of(x_t[c], timesteps[c], tokens[c]) for c in chunks])
        scores[kind], scores[f"{kind}_ends"] = mean_transfer(features.float().cpu(), store)
    return scores


def colour_baseline(store: SceneStore) -> float:
    """Return the part transfer of plain colours: the mean RGB of each cell in [-1, 1]."""
    image = torch.from_numpy(store.image).permute(0, 3, 1, 2).float() / 127.5 - 1
    return mean_transfer(F.avg_pool2d(image, CELL), store)[0]
