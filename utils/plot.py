"""Plots about methods rather than single matches: curves, and feature maps as colours."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from einops import pack, rearrange, unpack
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn import functional as F

from utils.draw import Grid, ImagePair, find_categories, new_figure, wrap_name
from utils.geometry import l2_normalise

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")  # Okabe and Ito's
MARKERS = ("o", "s", "^", "D", "v", "P", "X")


@dataclass(frozen=True, kw_only=True)
class FeaturePair(ImagePair):
    """Feature maps (C, h, w) of both images, not normalised."""

    src_feat: Tensor
    trg_feat: Tensor


def plot_curves(
    curves: Mapping[str, Mapping[float, float]], x_label: str, y_label: str, from_zero: bool = False
) -> Figure:
    """One line per entry, x -> y, told apart by colour and marker; the legend lies beside the axes.

    from_zero: the y axis starts at 0.
    """
    figure = new_figure(7.0, 3.2, layout="constrained")
    axes = figure.add_subplot()
    for number, (name, values) in enumerate(curves.items()):
        label, every = "\n".join(wrap_name(name, 26)), max(1, len(values) // 10)
        axes.plot(list(values), list(values.values()), label=label, linewidth=1.6, markevery=every, **style(number))
    axes.set(xlabel=x_label, ylabel=textwrap.fill(y_label, 32))
    axes.set_ylim(bottom=0 if from_zero else None)
    if all(isinstance(x, int) for values in curves.values() for x in values):
        axes.xaxis.get_major_locator().set_params(integer=True)
    axes.tick_params(labelsize=9)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right upper", fontsize=8, frameon=False, labelspacing=0.9)
    return figure


def style(number: int) -> dict[str, Any]:
    """Colour and marker of the number-th line."""
    return {"color": COLOURS[number % len(COLOURS)], "marker": MARKERS[number % len(MARKERS)], "markersize": 5}


def colour_features(maps: Sequence[Tensor]) -> list[Tensor]:
    """Feature maps (C, h, w) as colours (3, h, w) in [0, 1]: their common first three principal components.

    The maps are L2-normalised per cell, as for matching; equal colours mean similar features across all maps.
    """
    cells, sizes = pack([l2_normalise(feat.float(), dim=0) for feat in maps], "c *")  # (C, cells of all maps)
    centred = rearrange(cells - cells.mean(dim=1, keepdim=True), "c n -> n c")
    _, _, axes = torch.linalg.svd(centred, full_matrices=False)
    projected = centred @ axes[:3].T
    low, high = (torch.quantile(projected, q, dim=0) for q in (0.01, 0.99))
    return unpack(((projected - low) / (high - low)).clamp(0, 1).T, sizes, "c *")


def plot_feature_colours(rows: Sequence[Mapping[str, FeaturePair]]) -> Figure:
    """A row for each pair, and both feature maps in common colours for each method (name -> pair)."""
    groups, panels = [("source, target", 2)], [next(iter(row.values())).panels for row in rows]
    for name in rows[0]:
        groups.append((name, 2))
        maps = colour_features([feat for row in rows for feat in (row[name].src_feat, row[name].trg_feat)])
        for row, *colours in zip(panels, maps[::2], maps[1::2], strict=True):
            for (size, image), cells in zip(row[:2], colours, strict=True):
                row.append((size, 2 * F.interpolate(cells[None], image.shape[-2:], mode="nearest")[0] - 1))
    return Grid(find_categories(rows), groups, panels).figure
