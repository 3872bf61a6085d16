"""Pictures of image pairs: match lines, heat maps, generated images, dense matches, matches of unknown truth.

Each is a matplotlib figure: `save_figure` writes it in the format that the path's suffix names, `render` gives its
pixels. Images lie in the frame of the network, `size` (H, W) is what they had before: every panel has that aspect
ratio. Points are (x, y) pixels of the image given. Colours are Okabe and Ito's, which colour-blind readers can tell
apart; right and wrong also differ in line and marker.
"""

from __future__ import annotations

import math
import os
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from einops import rearrange
from matplotlib import colormaps, patheffects, rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from matplotlib.patches import ConnectionPatch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from utils.geometry import Size, cell_grid, cell_to_px, sample_features
from utils.store import atomic_path

DPI = 160
RIGHT, WRONG, QUERY = "#0072B2", "#D55E00", "#F0E442"  # blue, vermillion, yellow
PAGE = 7.0  # inches: a page's two columns
PANEL, WIDE_PANEL = 1.9, 3.4  # inches: the widest panel of a figure of many, and of a picture of one pair
TALLEST = 1.3  # height / width of the cell of a panel, at most
LEFT, MARGIN = 0.22, 0.06  # inches beside the panels, with names of rows and without
GAP, INNER = 0.1, 0.03  # inches between groups of columns, between panels
FONT, LINE = 8, 0.15  # points of a letter, inches of a line
DOT = {"marker": "o", "markersize": 4.5, "markeredgewidth": 0.8}
CROSS = {"marker": "X", "markersize": 6.5, "markeredgewidth": 0.8, "color": WRONG}
STAR = {"marker": "*", "markersize": 10, "markeredgewidth": 0.8, "color": QUERY}
MARK = {"linestyle": "", "markeredgecolor": "black"}
RING = {"linestyle": "", "marker": "o", "markersize": 7.5, "markerfacecolor": "none", "markeredgecolor": "black"}
CONSISTENT = 0.1  # forward-backward error, share of the image's side, above which a dense match is left grey
PAINT = 0.85  # opacity of colours over the grey image
CORNERS = ((86, 180, 233), (240, 228, 66), (40, 30, 130), (213, 94, 0))  # sky, yellow, indigo, vermillion
CHECKS, CHECK_DEPTH = 8, 0.16  # squares along each side of a box, and how much darker every second one is
CONFIDENCE = "cividis"  # tells its ends apart for colour-blind readers and in grey
NUMBERED = 30  # at most so many matches carry their number
SHOWN_SIDE = 1600  # px; larger photos are shown reduced
PIXELS = {"png": "PNG", "jpg": "JPEG", "jpeg": "JPEG", "webp": "WEBP"}  # Pillow's names
VECTORS = ("pdf", "svg")
Picture = Tensor | np.ndarray | Image.Image  # (3, H, W) in [-1, 1], (H, W, 3) uint8, or RGB
Panel = tuple[Size, Picture]  # the size (H, W) whose aspect ratio it is shown in
Shown = TypeVar("Shown", bound="ImagePair")


@dataclass(frozen=True, kw_only=True)
class ImagePair:
    """Two images of a category in the network's frame, and their sizes (H, W) on disk."""

    category: str
    src_img: Tensor  # (3, H, W) in [-1, 1]
    trg_img: Tensor
    src_size: Size
    trg_size: Size

    @property
    def panels(self) -> list[Panel]:
        """Source and target."""
        return [(self.src_size, self.src_img), (self.trg_size, self.trg_img)]


@dataclass(frozen=True, kw_only=True)
class MatchedPair(ImagePair):
    """Keypoints (N, 2) and what was predicted for them, px of the network's frame."""

    src_kps: Tensor
    trg_kps: Tensor
    pred_kps: Tensor
    hits: Tensor  # (N,) bool
    sim: Tensor  # (N, h, w)


@dataclass(frozen=True, kw_only=True)
class DensePair(ImagePair):
    """A match for every place of a grid over the source."""

    trg_box: Tensor  # (4,) the object, px of the network's frame
    points: Tensor  # (g, g, 2) matches, px of the network's frame
    cycle: Tensor  # (g, g) forward-backward error, share of the image's side


@dataclass(frozen=True, kw_only=True)
class GeneratedPair(ImagePair):
    """Images (H, W, 3) uint8 that a prompt generates for a pair."""

    images: Sequence[np.ndarray]


@dataclass(frozen=True, eq=False)
class TokenMaps:
    """What each token gets of the attention at every place of an image, a share of 1."""

    image: Tensor  # (3, H, W) in [-1, 1]
    size: Size  # (H, W) on disk
    names: list[str]
    maps: Tensor  # (n, h, w)


def plot_matches(rows: Sequence[Mapping[str, MatchedPair]], panel: float = PANEL) -> Figure:
    """A row for each pair, two images for each method (name -> pair): lines to the predictions, and the score."""
    groups = [(name, 2) for name in rows[0]]
    panels = [[panel for pair in row.values() for panel in pair.panels] for row in rows]
    grid = Grid(find_categories(rows), groups, panels, bottom=0.3, panel=panel)
    for axes, row in zip(grid.axes, rows, strict=True):
        for source, target, pair in zip(axes[::2], axes[1::2], row.values(), strict=True):
            for ends in zip(pair.src_kps, pair.pred_kps, pair.trg_kps, pair.hits, strict=True):
                _draw_match(source, target, *ends)
            _write_in_corner(target, f"{int(pair.hits.sum())}/{len(pair.hits)}")
    styles = {"correct": _match_style(True), "wrong": _match_style(False), "true position": RING}
    _add_legend(grid.figure, styles, linewidth=1.6)
    return grid.figure


def plot_correlations(rows: Sequence[Mapping[str, MatchedPair]], points: Sequence[int], panel: float = PANEL) -> Figure:
    """Similarity of one keypoint of each pair (points: its index) with the target, a map for each method."""
    groups = [("source", 1), ("target", 1), *((name, 1) for name in rows[0])]
    panels = [[*_first(row).panels, *(pair.panels[1] for pair in row.values())] for row in rows]
    grid = Grid(find_categories(rows), groups, panels, bottom=0.55, panel=panel)
    for (source, target, *maps), row, point in zip(grid.axes, rows, points, strict=True):
        _mark(source, _first(row).src_kps[point], STAR)
        _draw_ring(target, _first(row).trg_kps[point])
        for axes, pair in zip(maps, row.values(), strict=True):
            layer = show_range(axes, pair.trg_img, pair.sim[point])
            _mark(axes, pair.pred_kps[point], CROSS)
            _draw_ring(axes, pair.trg_kps[point])
    return _explain_maps(grid, layer, "cosine similarity")


def plot_layer_maps(pair: MatchedPair, point: int, names: Sequence[str], src: Tensor, trg: Tensor) -> Figure:
    """Attention (layers, h, w) of one keypoint (its index) over source and target, layer by layer, as it was read."""
    groups = [("image", 1), *((name, 1) for name in names)]
    grid = Grid(("source", "target"), groups, [[panel] * len(groups) for panel in pair.panels], bottom=0.55)
    for axes, image, maps in zip(grid.axes, (pair.src_img, pair.trg_img), (src, trg), strict=True):
        for panel, heat in zip(axes[1:], maps, strict=True):
            layer = show_range(panel, image, heat)
    (source, *_), (target, *_) = grid.axes
    _mark(source, pair.src_kps[point], STAR)
    _draw_ring(target, pair.trg_kps[point])
    _mark(target, pair.pred_kps[point], CROSS)
    return _explain_maps(grid, layer, "attention")


def plot_token_maps(rows: Sequence[TokenMaps]) -> Figure:
    """Each image, and beside it the attention that each of its tokens gets there."""
    n_columns = max(len(row.names) for row in rows)
    white = np.full((8, 8, 3), 255, np.uint8)
    panels = [[(row.size, row.image if i <= len(row.names) else white) for i in range(1 + n_columns)] for row in rows]
    grid = Grid([""] * len(rows), [("image", 1), ("attention", n_columns)], panels, bottom=0.55)
    for (_, *axes), row in zip(grid.axes, rows, strict=True):
        for panel, name, heat in zip(axes, row.names, row.maps, strict=False):
            layer = show_range(panel, row.image, heat)
            _write_in_corner(panel, name)
    grid.add_bar(layer, "attention, each map in its range", {0: "lowest", 1: "highest"})
    return grid.figure


def plot_item(images: Sequence[Panel], names: Sequence[str], scores: np.ndarray, true: np.ndarray) -> Figure:
    """Images, and below them the scores of candidates, the best on top; names, scores, true: of each. True is blue."""
    bottom = 1.4 * LINE * len(scores) + 2 * MARGIN
    grid = Grid([""], [(f"image {n + 1}", 1) for n in range(len(images))], [images], bottom=bottom, panel=WIDE_PANEL)
    box = MARGIN / grid.width, MARGIN / grid.height, 1 - 2 * MARGIN / grid.width, (bottom - 2 * MARGIN) / grid.height
    axes, order = grid.figure.add_axes(box), np.argsort(scores, kind="stable")
    lengths = 0.02 + (scores - scores.min()) / max(np.ptp(scores), 1e-12)
    axes.barh(range(len(order)), lengths[order], 0.85, color=np.where(true, RIGHT, "0.8")[order])
    for y, candidate in enumerate(order):
        text = f"{scores[candidate]:.4f}  {textwrap.shorten(names[candidate], int(14 * grid.width), placeholder=' …')}"
        weight = "bold" if true[candidate] else "normal"
        axes.text(0.02, y, text, fontsize=FONT, weight=weight, va="center", path_effects=_outline(2.2))
    axes.set(ylim=(-0.5, len(order) - 0.5), xlim=(0, 1.02))
    axes.set_axis_off()
    return grid.figure


def plot_generated(rows: Sequence[Mapping[str, GeneratedPair]]) -> Figure:
    """Each pair, and beside it the images that each method's prompt generates for it."""
    groups = [("source, target", 2), *((name, len(pair.images)) for name, pair in rows[0].items())]
    generated = [[image for pair in row.values() for image in pair.images] for row in rows]
    panels = [
        [*_first(row).panels, *((image.shape[:2], image) for image in images)]
        for row, images in zip(rows, generated, strict=True)
    ]
    return Grid(find_categories(rows), groups, panels).figure


def plot_dense(rows: Sequence[Mapping[str, DensePair]]) -> Figure:
    """Dense matches of each pair under each method.

    On the target each place of the object has its own colour; every place of the source takes the colour of its
    match, and stays grey where the match lies outside the object or does not come back. Then the target warped to
    the source: each place shows the target's pixel there. Last the forward-backward error.
    """
    groups = [("source", 1), ("target", 2), *((name, 3) for name in rows[0])]
    subtitles = ["", "", "places", *["places", "warp", "error"] * len(rows[0])]
    panels = []
    for row in rows:
        pair = _first(row)
        panels.append([*pair.panels, (pair.trg_size, paint(pair.trg_img, pixel_places(pair.trg_img), pair.trg_box))])
        for pair in row.values():
            painted = paint(pair.src_img, pair.points, pair.trg_box, pair.cycle <= CONSISTENT)
            shown = painted, warp_image(pair.trg_img, pair.points), pair.src_img
            panels[-1] += [(pair.src_size, image) for image in shown]
    grid = Grid(find_categories(rows), groups, panels, bottom=0.55, subtitles=subtitles)
    for axes, row in zip(grid.axes, rows, strict=True):
        for error, pair in zip(axes[5::3], row.values(), strict=True):
            layer = show_heat(error, pair.src_img, 100 * pair.cycle, 50)
    grid.add_bar(layer, "forward-backward error (% of the image's side)", {0: "0", 25: "25", 50: "≥ 50"})
    return grid.figure


def plot_links(
    src: Image.Image,
    trg: Image.Image,
    src_points: np.ndarray,
    trg_points: np.ndarray,
    confidence: np.ndarray,
    titles: tuple[str, str] = ("source", "target"),
) -> Figure:
    """A line for each of N matches, (N, 2) px of the images given, coloured by its confidence (N,) in [0, 1].

    The images lie side by side, or above each other if both are wide; points are numbered from 1 unless they are
    many.
    """
    panels = [((image.height, image.width), image) for image in (src, trg)]
    if all(width > 1.3 * height for (height, width), _ in panels):
        grid = Grid(titles, [("", 1)], [[panel] for panel in panels], bottom=0.55, panel=PAGE)
    else:
        groups = [(title, 1) for title in titles]
        grid = Grid([""], groups, [panels], bottom=0.55, panel=PAGE, width=1.4 * PAGE)
    source, target = (axes for row in grid.axes for axes in row)
    for i in np.argsort(confidence, kind="stable"):  # the surest lie on top
        colour = colormaps[CONFIDENCE](float(confidence[i]))
        _draw_line(source, target, src_points[i], trg_points[i], color=colour)
        for axes, point in ((source, src_points[i]), (target, trg_points[i])):
            _draw_end(target, axes, point, DOT | {"color": colour})
            if len(confidence) <= NUMBERED:
                _write_number(target, axes, point, i + 1)
    layer = ScalarMappable(cmap=CONFIDENCE)
    layer.set_clim(0, 1)
    grid.add_bar(layer, "confidence", {0: "0", 0.5: "0.5", 1: "1"})
    return grid.figure


class Grid:
    """Rows of panels below titles that groups of columns share; each panel has the aspect ratio of its image.

    names: of the rows, "" for none. groups: (title, number of columns); panels of a group touch, groups keep a
    distance. panels: of each row. bottom: inches for what lies below. subtitles: one for each column. panel: inches
    of the widest panel. width: inches that the whole may take.
    """

    def __init__(
        self,
        names: Sequence[str],
        groups: Sequence[tuple[str, int]],
        panels: Sequence[Sequence[Panel]],
        *,
        bottom: float = MARGIN,
        subtitles: Sequence[str] = (),
        panel: float = PANEL,
        width: float = PAGE,
    ) -> None:
        left, n_panels = LEFT if any(names) else MARGIN, sum(count for _, count in groups)
        gaps = GAP * (len(groups) - 1) + INNER * (n_panels - len(groups))
        panel = min((width - left - MARGIN - gaps) / n_panels, panel)
        titles = [wrap_name(title, max(int(16 * panel * count), 6), 3) for title, count in groups]
        under = 1.1 * LINE if subtitles else 0
        top = LINE * max(map(len, titles)) + MARGIN + under
        heights = [panel * min(TALLEST, math.prod(h / w for (h, w), _ in row) ** (1 / n_panels)) for row in panels]
        self.width = left + n_panels * panel + gaps + MARGIN
        self.height = top + sum(heights) + INNER * len(heights) + bottom
        self.figure = new_figure(self.width, self.height)
        lefts, x = [], left
        for (_, count), lines in zip(groups, titles, strict=True):
            lefts += [x + i * (panel + INNER) for i in range(count)]
            middle, x = (x + lefts[-1] + panel) / 2, lefts[-1] + panel + GAP
            self._write(middle, self.height - top + 0.04 + under, "\n".join(lines), ha="center", va="bottom")
        self.axes, y = [], self.height - top
        for name, row, height in zip(names, panels, heights, strict=True):
            y -= height
            self.axes.append([self._fit(x, y, panel, height, *shown) for x, shown in zip(lefts, row, strict=True)])
            self._write(left - 0.08, y + height / 2, name, rotation=90, ha="right", va="center")
            y -= INNER
        for axes, title in zip(self.axes[0], subtitles, strict=bool(subtitles)):
            axes.set_title(title, fontsize=FONT - 1.5, pad=2.5)

    def add_bar(self, layer: Any, label: str, ticks: Mapping[float, str], right: bool = False) -> None:
        """A horizontal colour bar at the bottom: in the middle, or on the right beside a legend."""
        length = 0.24 * self.width
        axes = self._add_axes(self.width - length - 0.55 if right else (self.width - length) / 2, 0.36, length, 0.09)
        bar = self.figure.colorbar(layer, cax=axes, orientation="horizontal")
        bar.outline.set_visible(False)
        bar.set_ticks(list(ticks), labels=list(ticks.values()))
        axes.set_facecolor("0.5")
        axes.tick_params(labelsize=FONT - 1, length=2, pad=2)
        axes.set_xlabel(label, fontsize=FONT, labelpad=1)

    def _fit(self, left: float, bottom: float, width: float, height: float, size: Size, image: Picture) -> Axes:
        """The image in the middle of a cell, as large as fits; all in inches."""
        scale = min(height / size[0], width / size[1])
        h, w = size[0] * scale, size[1] * scale
        axes = self._add_axes(left + (width - w) / 2, bottom + (height - h) / 2, w, h)
        show_image(axes, image)
        return axes

    def _add_axes(self, left: float, bottom: float, width: float, height: float) -> Axes:
        return self.figure.add_axes((left / self.width, bottom / self.height, width / self.width, height / self.height))

    def _write(self, x: float, y: float, text: str, **style: Any) -> None:
        self.figure.text(x / self.width, y / self.height, text, fontsize=FONT, **style)


def new_figure(width: float, height: float, **kwargs: Any) -> Figure:
    """A figure (inches) that belongs to no window system and to no global list."""
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white", **kwargs)
    FigureCanvasAgg(figure)
    return figure


def render(figure: Figure) -> np.ndarray:
    """The figure as an RGB array (H, W, 3) uint8."""
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[..., :3].copy()


def wrap_name(name: str, width: int, max_lines: int | None = None) -> list[str]:
    """Lines of at most `width` letters; prompt names break after their underscores and hyphens."""
    lines = textwrap.wrap(name.replace("_", "_ "), width, max_lines=max_lines, placeholder="…")
    return [line.replace("_ ", "_") for line in lines]


def to_rgb(image: Picture) -> np.ndarray:
    """(H, W, 3) uint8."""
    if isinstance(image, Tensor):
        image = rearrange((image.detach().float().cpu() + 1) * 127.5, "c h w -> h w c")
        return image.clamp(0, 255).round().to(torch.uint8).numpy()
    return np.asarray(image)


def show_image(axes: Axes, image: Picture) -> None:
    """Fill the axes with an image; their coordinates are its pixels. Small ones are enlarged smoothly."""
    rgb = to_rgb(image)
    height, width = rgb.shape[:2]
    if (factor := -(-max(height, width) // SHOWN_SIDE)) > 1:
        rgb = np.asarray(Image.fromarray(rgb).reduce(factor))
    extent = (-0.5, width - 0.5, height - 0.5, -0.5)
    axes.imshow(rgb, interpolation="bicubic", interpolation_stage="rgba", aspect="auto", extent=extent)
    axes.set(xlim=extent[:2], ylim=extent[2:], xticks=[], yticks=[])
    axes.spines[:].set_visible(False)


def show_heat(axes: Axes, image: Picture, heat: Tensor, highest: float) -> AxesImage:
    """Values (h, w) from 0 over the grey image, one flat cell for each; corner cells are centred on corner pixels."""
    rgb = to_rgb(image)
    show_image(axes, Image.fromarray(rgb).convert("L").convert("RGB"))
    h, w = heat.shape
    borders = torch.tensor([[-0.5, h - 0.5], [w - 0.5, -0.5]], dtype=torch.float64)
    (left, bottom), (right, top) = cell_to_px(borders, (h, w), rgb.shape[:2]).tolist()
    colours = {"cmap": "viridis", "alpha": 0.7, "vmin": 0, "vmax": highest, "zorder": 1}
    place = {"extent": (left, right, bottom, top), "interpolation": "nearest", "aspect": "auto"}
    xlim, ylim = axes.get_xlim(), axes.get_ylim()
    layer = axes.imshow(heat.numpy(), **place, **colours)
    axes.set(xlim=xlim, ylim=ylim)
    return layer


def show_range(axes: Axes, image: Picture, heat: Tensor) -> AxesImage:
    """As `show_heat`, any values (h, w) from the lowest of them to the highest."""
    low, high = heat.min(), heat.max()
    return show_heat(axes, image, (heat - low) / (high - low).clamp(min=1e-12), 1)


def place_colours(points_px: Tensor, box: Tensor) -> Tensor:
    """Colours (..., 3) in [0, 1] of places (..., 2), px: one for each place of a box, in shaded squares.

    box: (4,) x1 y1 x2 y2, px; left and right differ in hue, top and bottom in lightness. Places outside take the
    colour of the box's nearest place.
    """
    top_left, top_right, bottom_left, bottom_right = torch.tensor(CORNERS, dtype=points_px.dtype) / 255
    unit = ((points_px - box[:2]) / (box[2:] - box[:2]).clamp(min=1)).clamp(0, 1)
    x, y = unit.split(1, dim=-1)
    colours = (1 - y) * ((1 - x) * top_left + x * top_right) + y * ((1 - x) * bottom_left + x * bottom_right)
    square = (unit * CHECKS).floor().clamp(max=CHECKS - 1).sum(dim=-1, keepdim=True)
    return colours * (1 - CHECK_DEPTH * (square % 2))


def inside(points_px: Tensor, box: Tensor) -> Tensor:
    """Whether each place (..., 2), px, lies in a box (4,) x1 y1 x2 y2."""
    return ((points_px >= box[:2]) & (points_px <= box[2:])).all(dim=-1)


def pixel_places(image: Tensor) -> Tensor:
    """(x, y) of every pixel of an image (3, H, W): (H, W, 2)."""
    return cell_grid(image.shape[-2:], like=image).unflatten(0, image.shape[-2:])


def warp_image(image: Tensor, points_px: Tensor) -> Tensor:
    """The image (3, H, W) as seen at places (h, w, 2), px: (3, h, w), bilinear."""
    seen = sample_features(image[None], rearrange(points_px, "h w xy -> 1 (h w) xy"))
    return rearrange(seen, "1 (h w) c -> c h w", h=len(points_px))


def paint(image: Tensor, points_px: Tensor, box: Tensor, keep: Tensor | None = None) -> Tensor:
    """A grey image (3, H, W) in [-1, 1] under the colours of the places (h, w, 2) that its parts are matched with.

    Parts matched outside the box (4,), and those that `keep` (h, w) leaves out, stay grey.
    """
    shown = inside(points_px, box) if keep is None else inside(points_px, box) & keep
    grey = image.mean(dim=0, keepdim=True).expand_as(image)
    colours = 2 * rearrange(place_colours(points_px, box), "h w c -> c h w") - 1
    layers = torch.cat([colours, shown[None].float()])
    layers = F.interpolate(layers[None], image.shape[-2:], mode="nearest")[0]
    return torch.lerp(grey, layers[:3], PAINT * layers[3:])


def save_figure(path: str | os.PathLike, picture: Figure | np.ndarray) -> None:
    """Write a figure, or pixels (H, W, 3) uint8, in the format of the path's suffix, in one step.

    The same figure gives the same bytes; text stays text in vector formats. ValueError for another suffix.
    """
    suffix = find_format(path, pixels_only=isinstance(picture, np.ndarray))
    with atomic_path(path) as temporary:
        if isinstance(picture, np.ndarray):
            Image.fromarray(picture).save(temporary, PIXELS[suffix], dpi=(DPI, DPI), quality=92)
        else:
            undated = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}.get(suffix)
            style = {"pdf.fonttype": 42, "svg.fonttype": "none", "svg.hashsalt": "figure"}
            style["image.composite_image"] = False  # joined images would lose part of their opacity
            with rc_context(style):
                picture.savefig(temporary, format=suffix, dpi=DPI, metadata=undated)


def find_format(path: str | os.PathLike, pixels_only: bool = False) -> str:
    """The format that a picture's file name asks for; ValueError lists the known ones."""
    suffix, known = os.path.splitext(path)[1].lstrip(".").lower(), [*PIXELS, *(() if pixels_only else VECTORS)]
    if suffix not in known:
        raise ValueError(f"{path}: the name must end in {', '.join(f'.{name}' for name in known)}")
    return suffix


def _add_legend(figure: Figure, styles: Mapping[str, Mapping], loc: str = "lower center", **common: Any) -> None:
    """Markers and their meanings in a line below the panels."""
    common = {"markeredgecolor": "white", **common}
    handles = [Line2D([], [], label=label, **{**common, **style}) for label, style in styles.items()]
    figure.legend(handles=handles, loc=loc, ncols=len(handles), frameon=False, fontsize=FONT, handlelength=3)


def _explain_maps(grid: Grid, layer: AxesImage, what: str) -> Figure:
    """Below maps of `show_range` on which a query, its match and the truth are marked."""
    grid.add_bar(layer, f"{what}, each map in its range", {0: "lowest", 1: "highest"}, right=True)
    styles = {"query": STAR | MARK, "true position": RING, "prediction": CROSS | MARK}
    _add_legend(grid.figure, styles, loc="lower left")
    return grid.figure


def _write_in_corner(axes: Axes, text: str) -> None:
    style = {"fontsize": FONT, "va": "top", "path_effects": _outline(2.2), "zorder": 6}
    axes.text(0.03, 0.97, text, transform=axes.transAxes, **style)


def _first(row: Mapping[str, Shown]) -> Shown:
    return next(iter(row.values()))


def find_categories(rows: Sequence[Mapping[str, ImagePair]]) -> list[str]:
    """The categories of the rows' pairs."""
    return [_first(row).category for row in rows]


def _outline(width: float) -> list:
    """Path effects that keep a line of any colour visible on any picture."""
    return [patheffects.Stroke(linewidth=width, foreground="white"), patheffects.Normal()]


def _match_style(hit: bool) -> dict[str, Any]:
    """Line and end marker of a right (solid, disc) or wrong (dashed, cross) prediction."""
    if hit:
        return {"color": RIGHT, "linestyle": "-", **DOT}
    return {"linestyle": (0, (4, 2)), **CROSS}


def _draw_match(source: Axes, target: Axes, start: Tensor, end: Tensor, truth: Tensor, hit: Tensor) -> None:
    """A ring at the truth, a line from a keypoint to its prediction, and a dotted one from there if it is wrong."""
    style = _match_style(bool(hit))
    _draw_ring(target, truth)
    _draw_line(source, target, start, end, color=style["color"], linestyle=style["linestyle"])
    _draw_end(target, source, start, DOT | {"color": style["color"]})
    _draw_end(target, target, end, {key: value for key, value in style.items() if key != "linestyle"})
    if not hit:
        dotted = {"color": WRONG, "linestyle": ":", "linewidth": 0.9, "path_effects": _outline(1.6), "zorder": 3}
        target.plot(*torch.stack([end, truth], dim=1), **dotted)


def _draw_line(source: Axes, target: Axes, start: Any, end: Any, **style: Any) -> None:
    """From a point of one panel to one of another. It belongs to the last panel drawn, as the markers above it do."""
    ends = {"xyA": start, "xyB": end, "coordsA": source.transData, "coordsB": target.transData}
    style |= {"linewidth": 1.1, "path_effects": _outline(2.0), "zorder": 3, "clip_on": False}
    target.add_artist(ConnectionPatch(**ends, **style))


def _draw_end(canvas: Axes, axes: Axes, point: Any, style: Mapping[str, Any]) -> None:
    """A marker at a point of `axes`, drawn with the panel `canvas`."""
    common = {"linestyle": "", "markeredgecolor": "white", "zorder": 5, "clip_on": False}
    canvas.plot(*point, **common, **style, transform=axes.transData)


def _draw_ring(axes: Axes, point: Tensor) -> None:
    """A small hollow ring, white within black."""
    for width, colour in ((2.2, "black"), (1.1, "white")):
        style = RING | {"markeredgewidth": width, "markeredgecolor": colour}
        axes.plot(*point, **style, clip_on=False, zorder=4)


def _mark(axes: Axes, point: Tensor, style: Mapping[str, Any]) -> None:
    axes.plot(*point, **style, **MARK, zorder=5, clip_on=False)


def _write_number(canvas: Axes, axes: Axes, point: np.ndarray, number: int) -> None:
    """Beside a point: right and above, unless that is outside the image."""
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    x = -8 if point[0] > left + 0.94 * (right - left) else 8
    y = -8 if point[1] < top + 0.06 * (bottom - top) else 8
    place = {"xycoords": axes.transData, "xytext": (x, y), "textcoords": "offset points", "annotation_clip": False}
    style = {"ha": "center", "va": "center", "fontsize": FONT, "fontweight": "bold"}
    canvas.annotate(str(number), point, **place, **style, path_effects=_outline(2.0), zorder=6)
