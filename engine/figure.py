"""Figures for papers: a row for each pair, a column for each prompt. `utils.draw.save_figure` writes them."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from engine.picture import DensePair, MatchedPair
from utils.draw import (
    QUERY,
    WRONG,
    ImageLike,
    correlation_legend,
    draw_bar,
    draw_match_lines,
    draw_ring,
    mark,
    match_legend,
    new_figure,
    outlined,
    show_heat,
    show_image,
    to_rgb,
    wrap_name,
)
from utils.warp import inside, pixel_places, place_colours, warp_image

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TEXT_WIDTH = 7.0  # inches: a page's two columns
LARGEST_PANEL = 1.9  # inches
LEFT, MARGIN = 0.22, 0.06  # inches beside the panels; the rows' names are on the left
GAP, INNER = 0.1, 0.03  # inches between groups of columns, between panels
FONT = 8  # points
LINE = 0.15  # inches from one line of text to the next
CONSISTENT = 0.1  # forward-backward error, share of the image's side, above which a match is left grey
MARKER = 0.7  # markers and lines, against those of single pictures
PAINT = 0.85  # opacity of colours over the grey image


class Grid:
    """Axes in rows of equally high panels, with groups of columns under common titles.

    groups: (title, number of panels); panels of a group touch, groups keep a distance. aspect: W / H of a panel.
    bottom: inches for what lies below. subtitles: one for each column, in small letters.
    """

    def __init__(
        self,
        rows: Sequence[str],
        groups: Sequence[tuple[str, int]],
        aspect: float,
        bottom: float,
        subtitles: Sequence[str] = (),
    ) -> None:
        n_panels = sum(count for _, count in groups)
        self._gaps = GAP * (len(groups) - 1) + INNER * (n_panels - len(groups))
        self._panel_w = min((TEXT_WIDTH - LEFT - MARGIN - self._gaps) / n_panels, LARGEST_PANEL * max(aspect, 1))
        self._panel_h = self._panel_w / aspect
        self._groups = groups
        titles = [wrap_name(title, max(int(16 * self._panel_w * count), 6), 3) for title, count in groups]
        under = 1.1 * LINE if subtitles else 0
        self._top = LINE * max(len(lines) for lines in titles) + 0.06 + under
        self.width = LEFT + MARGIN + n_panels * self._panel_w + self._gaps
        self.height = self._top + len(rows) * (self._panel_h + INNER) + bottom
        self.figure = new_figure(self.width, self.height)
        self.axes = [self._add_row(number, name) for number, name in enumerate(rows)]
        self._add_titles(titles, subtitles, under)

    def add_axes(self, left: float, bottom: float, width: float, height: float) -> "Axes":
        """Axes at a place given in inches."""
        return self.figure.add_axes((left / self.width, bottom / self.height, width / self.width, height / self.height))

    def add_bar(self, layer: Any, label: str, legend: bool) -> None:
        """A horizontal colour bar at the bottom, on the right if there is a legend too."""
        length = 0.24 * self.width
        left = self.width - length - 0.55 if legend else (self.width - length) / 2
        axes = self.add_axes(left, 0.36, length, 0.09)
        draw_bar(layer, axes, "horizontal")
        axes.tick_params(labelsize=FONT - 1)
        axes.set_xlabel(label, fontsize=FONT, labelpad=1)

    def _add_row(self, number: int, name: str) -> list["Axes"]:
        """The panels of a row, with its name on the left."""
        row, left = [], LEFT
        bottom = self.height - self._top - (number + 1) * self._panel_h - number * INNER
        for _, count in self._groups:
            for _ in range(count):
                row.append(self.add_axes(left, bottom, self._panel_w, self._panel_h))
                left += self._panel_w + INNER
            left += GAP - INNER
        self._write(LEFT - 0.08, bottom + self._panel_h / 2, name, rotation=90, ha="right", va="center")
        return row

    def _add_titles(self, titles: Sequence[Sequence[str]], subtitles: Sequence[str], under: float) -> None:
        left, bottom = LEFT, self.height - self._top + 0.04 + under
        for (_, count), lines in zip(self._groups, titles, strict=True):
            span = count * self._panel_w + (count - 1) * INNER
            self._write(left + span / 2, bottom, "\n".join(lines), ha="center", va="bottom")
            left += span + GAP
        for panel, title in zip(self.axes[0], subtitles, strict=bool(subtitles)):
            panel.set_title(title, fontsize=FONT - 1.5, pad=2.5)

    def _write(self, x: float, y: float, text: str, **style: Any) -> None:
        self.figure.text(x / self.width, y / self.height, text, fontsize=FONT, **style)


def _aspect(image: ImageLike) -> float:
    height, width = to_rgb(image).shape[:2]
    return width / height


def _first(row: Mapping[str, Any]) -> Any:
    return next(iter(row.values()))


def plot_matches(rows: Sequence[Mapping[str, MatchedPair]]) -> "Figure":
    """Match lines of pairs (rows: prompt -> pair) under each prompt, with the number of right ones."""
    first = _first(rows[0])
    grid = Grid(
        [_first(row).category for row in rows], [(name, 2) for name in rows[0]], _aspect(first.src_img), bottom=0.3
    )
    for axes, row in zip(grid.axes, rows, strict=True):
        for number, pair in enumerate(row.values()):
            panels = axes[2 * number : 2 * number + 2]
            for panel, image in zip(panels, (pair.src_img, pair.trg_img), strict=True):
                show_image(panel, to_rgb(image), aspect="auto")
            points = (pair.src_kps, pair.trg_kps, pair.pred_kps, pair.hits)
            draw_match_lines(panels, *(values.numpy() for values in points), scale=MARKER)
            _write_score(panels[0], f"{int(pair.hits.sum())}/{len(pair.hits)}")
    match_legend(grid.figure, fontsize=FONT)
    return grid.figure


def _write_score(axes: "Axes", text: str) -> None:
    style = {"fontsize": FONT, "color": "black", "va": "top", "path_effects": outlined(2.2), "zorder": 6}
    axes.text(0.03, 0.97, text, transform=axes.transAxes, **style)


def plot_correlations(rows: Sequence[Mapping[str, MatchedPair]], points: Sequence[int]) -> "Figure":
    """Correlation of one keypoint of each pair with the target, a map for each prompt.

    rows: prompt -> pair. points: index of the keypoint for each row.
    """
    first = _first(rows[0])
    groups = [("source", 1), ("target", 1), *((name, 1) for name in rows[0])]
    grid = Grid([_first(row).category for row in rows], groups, _aspect(first.src_img), bottom=0.55)
    for axes, row, point in zip(grid.axes, rows, points, strict=True):
        pair = _first(row)
        show_image(axes[0], to_rgb(pair.src_img), aspect="auto")
        mark(axes[0], pair.src_kps[point], "*", QUERY, 10)
        show_image(axes[1], to_rgb(pair.trg_img), aspect="auto")
        draw_ring(axes[1], pair.trg_kps[point].numpy(), MARKER)
        for panel, pair in zip(axes[2:], row.values(), strict=True):
            layer = _show_own_range(panel, pair, point)
    grid.add_bar(layer, "cosine similarity, each map in its range", legend=True)
    layer.colorbar.set_ticks([0, 1], labels=["lowest", "highest"])
    correlation_legend(grid.figure, True, True, loc="lower left", fontsize=FONT)
    return grid.figure


def _show_own_range(axes: "Axes", pair: MatchedPair, point: int) -> Any:
    heat = pair.sim[point].numpy()
    heat = (heat - heat.min()) / max(float(np.ptp(heat)), 1e-12)
    layer = show_heat(axes, to_rgb(pair.trg_img), heat, "align_corners", (0, 1))
    mark(axes, pair.pred_kps[point], "X", WRONG, 7)
    draw_ring(axes, pair.trg_kps[point].numpy(), MARKER)
    return layer


def plot_generated(
    rows: Sequence[tuple[str, Sequence[ImageLike], Mapping[str, Sequence[ImageLike]]]],
) -> "Figure":
    """Images that prompts generate, beside the pair that they were made for.

    rows: (name of the row, (source, target), prompt -> images, as many for each).
    """
    _, pair, images = rows[0]
    groups = [("source, target", 2), *((name, len(group)) for name, group in images.items())]
    grid = Grid([name for name, _, _ in rows], groups, _aspect(pair[0]), bottom=0.05)
    for axes, (_, pair, images) in zip(grid.axes, rows, strict=True):
        shown = [*pair, *(image for group in images.values() for image in group)]
        for panel, image in zip(axes, shown, strict=True):
            show_image(panel, to_rgb(image), aspect="auto")
    return grid.figure


def plot_dense(rows: Sequence[Mapping[str, DensePair]]) -> "Figure":
    """Dense matches of pairs (rows: prompt -> pair).

    On the target each place of the object has its own colour; every place of the source takes the colour of its
    match, and stays grey where the match lies outside the object or does not come back. Then the target warped to
    the source: each place shows the target's pixel there. Last the forward-backward error.
    """
    first = _first(rows[0])
    groups = [("source", 1), ("target", 2), *((name, 3) for name in rows[0])]
    subtitles = ["", "", "places", *["places", "warp", "error"] * len(rows[0])]
    names = [_first(row).category for row in rows]
    grid = Grid(names, groups, _aspect(first.src_img), bottom=0.55, subtitles=subtitles)
    for axes, row in zip(grid.axes, rows, strict=True):
        pair = _first(row)
        places = pixel_places(pair.trg_img.shape[-2:], like=pair.trg_img)
        show_image(axes[0], to_rgb(pair.src_img), aspect="auto")
        show_image(axes[1], to_rgb(pair.trg_img), aspect="auto")
        show_image(axes[2], paint(pair.trg_img, places, pair.trg_box), aspect="auto")
        for number, pair in enumerate(row.values()):
            panels = axes[3 + 3 * number : 6 + 3 * number]
            painted = paint(pair.src_img, pair.points, pair.trg_box, pair.cycle <= CONSISTENT)
            show_image(panels[0], painted, aspect="auto")
            show_image(panels[1], to_rgb(warp_image(pair.trg_img, pair.points)), aspect="auto")
            layer = show_heat(panels[2], to_rgb(pair.src_img), 100 * pair.cycle.numpy(), "align_corners", (0, 50))
    grid.add_bar(layer, "forward-backward error (% of the image's side)", legend=False)
    layer.colorbar.set_ticks([0, 25, 50], labels=["0", "25", "≥ 50"])
    return grid.figure


def paint(image: Tensor, points_px: Tensor, box: Tensor, keep: Tensor | None = None) -> np.ndarray:
    """A grey image (3, H, W) under the colours of the places (h, w, 2) that each of its parts is matched with.

    Parts matched outside the box (4,), and those that `keep` (h, w) leaves out, stay grey. RGB (H, W, 3) uint8.
    """
    shown = inside(points_px, box) if keep is None else inside(points_px, box) & keep
    grey = image.mean(dim=0, keepdim=True).expand_as(image) * 0.5 + 0.5  # (3, H, W) in [0, 1]
    layers = torch.cat([place_colours(points_px, box).permute(2, 0, 1), shown[None].float()])
    layers = torch.nn.functional.interpolate(layers[None], image.shape[-2:], mode="nearest")[0]
    opacity = PAINT * layers[3:]
    return to_rgb(((1 - opacity) * grey + opacity * layers[:3]) * 2 - 1)
