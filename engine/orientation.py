"""Which way an animal faces, told by its nearest templates: GeoAware-SC's test of global pose awareness."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from model.method.geoaware import describe_cells, join_on_grid

DIRECTIONS = ("back", "front", "left", "right")  # of equally many votes the first wins
SIDE = 128  # cells to which maps are brought
CHUNK = 1024  # cells of a photo that are compared at a time
PRINCIPAL = 256  # directions of each layer that are kept of a photo and a template
Distances = Mapping[str, Mapping[str, float]]  # colour of the templates -> direction -> distance


def reduce_layers(pair: Sequence[Mapping[str, Any]], with_dino: bool, width: int = PRINCIPAL) -> list[Tensor]:
    """Feature maps (C, h, w) of a photo and a template, on DINOv2's grid, of what is cached of them: "layers", "dino".

    The cells of both are projected together, layer by layer, on `width` directions. With DINOv2's, the channels of
    either network are L2-normalised; without they are as they are.
    """
    reduced = [project_together([side["layers"][tap] for side in pair], width) for tap in pair[0]["layers"]]
    found = []
    for layers, side in zip(zip(*reduced, strict=True), pair, strict=True):
        layers, dino = [x[None] for x in layers], side["dino"][None]
        found += describe_cells(None, layers, dino) if with_dino else join_on_grid(layers, dino.shape[-2:])
    return found


def project_together(maps: Sequence[Tensor], width: int) -> list[Tensor]:
    """Maps (C, h, w) -> (width, h, w): all their cells, centred, on their first principal directions (co-PCA)."""
    cells = torch.cat([x.float().flatten(1) for x in maps], dim=1)
    cells = cells - cells.mean(dim=1, keepdim=True)
    directions = torch.linalg.eigh(cells @ cells.T).eigenvectors[:, -width:]  # of the largest, last
    sizes = [x.shape[1:] for x in maps]
    parts = (directions.T @ cells).split([size.numel() for size in sizes], dim=1)
    return [part.unflatten(1, size) for part, size in zip(parts, sizes, strict=True)]


def template_distance(photo: Tensor, template: Tensor, mask: Tensor, side: int = SIDE) -> float:
    """The mean over the photo's cells in its mask of the L2 distance to the nearest cell of the template.

    Feature maps (C, h, w), not normalised here; both are brought to side x side cells, the mask (H, W) bool as well. A
    mask without a cell stands for the whole photo.
    """
    cells = [
        F.interpolate(x[None].float(), (side, side), mode="bilinear", align_corners=False)[0] for x in (photo, template)
    ]
    inside = F.interpolate(mask[None, None].float(), (side, side), mode="nearest")[0, 0] > 0
    chosen = cells[0][:, inside if inside.any() else torch.ones_like(inside)].T
    known = cells[1].flatten(1).T
    return float(torch.cat([torch.cdist(part, known).amin(dim=1) for part in chosen.split(CHUNK)]).mean())


def vote(distances: Distances, among: Iterable[str] = DIRECTIONS) -> str:
    """The direction, of those `among`, that is nearest for most colours."""
    among = tuple(among)
    votes = Counter(min(among, key=templates.__getitem__) for templates in distances.values())
    return max(among, key=lambda direction: votes[direction])


def measure_accuracy(found: Mapping[str, Distances], labels: Mapping[str, str]) -> dict[str, float | None]:
    """Accuracies in [0, 1] over photos: of left against right, of front against back, of either answer, of all four."""
    sides = {name: vote(distances, ("left", "right")) for name, distances in found.items()}
    ends = {name: vote(distances, ("front", "back")) for name, distances in found.items()}
    ways = {name: vote(distances) for name, distances in found.items()}

    def accuracy(answers: Mapping[str, str], asked: Iterable[str]) -> float | None:
        right = [answers[name] == labels[name] for name in found if labels[name] in asked]
        return sum(right) / len(right) if right else None

    either = [labels[name] in (sides[name], ends[name]) for name in found]
    return {
        "L/R": accuracy(sides, ("left", "right")),
        "F/B": accuracy(ends, ("front", "back")),
        "L/R or F/B": sum(either) / len(either) if either else None,
        "4-way": accuracy(ways, DIRECTIONS),
    }
