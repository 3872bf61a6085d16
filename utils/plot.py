"""Plots about methods rather than single matches: curves, and feature maps as colours."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from utils.draw import ImageLike, new_figure, show_image, to_rgb, wrap_name
from utils.geometry import l2_normalise

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")  # Okabe and Ito's
MARKERS = ("o", "s", "^", "D", "v", "P", "X")


def plot_curves(
    curves: Mapping[str, Mapping[float, float]], x_label: str, y_label: str, from_zero: bool = False
) -> "Figure":
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
    cells = torch.cat([l2_normalise(feat.float(), dim=0).flatten(1).T for feat in maps])  # (cells of all maps, C)
    centred = cells - cells.mean(dim=0)
    _, _, axes = torch.linalg.svd(centred, full_matrices=False)
    projected = centred @ axes[:3].T
    low, high = (torch.quantile(projected, q, dim=0) for q in (0.01, 0.99))
    colours = ((projected - low) / (high - low)).clamp(0, 1).T  # (3, cells of all maps)
    sizes = [feat[0].numel() for feat in maps]
    return [part.unflatten(1, feat.shape[1:]) for part, feat in zip(colours.split(sizes, dim=1), maps, strict=True)]


def plot_feature_colours(images: Sequence[ImageLike], maps: Mapping[str, Sequence[Tensor]]) -> "Figure":
    """A row of images, and below it for each entry of `maps` the images' feature maps in common colours.

    maps: title -> one (C, h, w) map per image.
    """
    rows, columns, side = 1 + len(maps), len(images), 1.7
    figure = new_figure(columns * side + 0.4, rows * side, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for place, image in zip(axes[0], images, strict=True):
        show_image(place, to_rgb(image))
    for row, (_, feats) in zip(axes[1:], maps.items(), strict=True):
        for place, colours in zip(row, colour_features(feats), strict=True):
            _show_cells(place, colours)
    for row, title in zip(axes, ("images", *maps), strict=True):
        row[0].set_ylabel("\n".join(wrap_name(title, 20)), fontsize=8)
    return figure


def _show_cells(axes, colours: Tensor) -> None:
    axes.imshow(colours.permute(1, 2, 0).numpy(), interpolation="nearest")
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
