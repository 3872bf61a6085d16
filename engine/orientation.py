"""Which way an animal faces, told by its nearest templates: GeoAware-SC's test of global pose awareness."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

DIRECTIONS = ("back", "front", "left", "right")  # of equally many votes the first wins
SIDE = 128  # cells to which maps are brought
CHUNK = 1024  # cells of a photo that are compared at a time
Distances = Mapping[str, Mapping[str, float]]  # colour of the templates -> direction -> distance


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
