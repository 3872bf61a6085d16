"""Pictures of matches and correlation maps, for the README, TensorBoard and papers.

Colours are Okabe and Ito's, which colour-blind readers can tell apart; right and wrong also differ in line
and marker. Matplotlib is imported on first use.
"""

import os
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from utils.geometry import cell_to_px
from utils.store import atomic_path

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

DPI = 160
RIGHT, WRONG = "#0072B2", "#D55E00"  # blue, vermillion
QUERY = "#F0E442"  # yellow
PANEL_INCHES = 3.6
ImageLike = Tensor | np.ndarray | Image.Image


def to_rgb(image: ImageLike) -> np.ndarray:
    """(H, W, 3) uint8 from a float tensor (3, H, W) in [-1, 1], a uint8 array (H, W, 3) or a PIL image."""
    if isinstance(image, Image.Image):
        return np.asarray(image.convert("RGB"))
    if isinstance(image, Tensor):
        if image.dim() != 3 or image.shape[0] != 3 or not image.is_floating_point():
            raise ValueError(f"expected a float tensor (3, H, W) in [-1, 1], got {image.dtype} {tuple(image.shape)}")
        pixels = image.detach().float().cpu().clamp(-1, 1).add(1).mul(127.5).round()
        return pixels.permute(1, 2, 0).to(torch.uint8).numpy()
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"expected a uint8 array (H, W, 3), got {image.dtype} {image.shape}")
    return image


def _numpy(values: Any) -> np.ndarray:
    return values.detach().float().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)


def new_figure(width: float, height: float, **kwargs: Any) -> "Figure":
    """A figure (inches) that belongs to no window system and to no global list."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white", **kwargs)
    FigureCanvasAgg(figure)
    return figure


def render(figure: "Figure") -> np.ndarray:
    """The figure as an RGB array (H, W, 3) uint8."""
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[..., :3].copy()


def show_image(axes: "Axes", rgb: np.ndarray, **kwargs: Any) -> None:
    """Show an image so that axes coordinates are its pixels; small ones are enlarged smoothly."""
    height, width = rgb.shape[:2]
    axes.imshow(rgb, interpolation="bicubic", interpolation_stage="rgba", **kwargs)
    axes.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5), xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set_visible(False)


def outlined(width: float, colour: str = "white") -> list:
    """Path effects that keep a line of any colour visible on any picture."""
    from matplotlib import patheffects

    return [patheffects.Stroke(linewidth=width, foreground=colour), patheffects.Normal()]


def _match_style(hit: bool) -> dict[str, Any]:
    """Line and end marker of a right (solid, disc) or wrong (dashed, cross) prediction."""
    if hit:
        return {"color": RIGHT, "linestyle": "-", "marker": "o", "markersize": 5.5, "markeredgewidth": 0.9}
    return {"color": WRONG, "linestyle": (0, (4, 2)), "marker": "X", "markersize": 8, "markeredgewidth": 0.9}


SOURCE_DOT = {"marker": "o", "markersize": 5.5, "markeredgewidth": 0.9}
RING = {"linestyle": "", "marker": "o", "markersize": 9.5, "markerfacecolor": "none", "markeredgewidth": 1.3}


def draw_ring(axes: "Axes", point_px: np.ndarray, scale: float = 1.0) -> None:
    """A small hollow ring, white within black, at the true point."""
    style = RING | {"markersize": RING["markersize"] * scale, "clip_on": False, "zorder": 4}
    axes.plot(*point_px, **style | {"markeredgewidth": 2.8 * scale}, color="black")
    axes.plot(*point_px, **style | {"markeredgewidth": 1.3 * scale}, color="white")


def _draw_match(axes: list["Axes"], start_px: np.ndarray, end_px: np.ndarray, hit: bool, scale: float = 1.0) -> None:
    """A line from a source keypoint (left axes) to its prediction (right axes), with a marker at both ends.

    All of it belongs to the right axes, which is drawn last, so that markers lie above lines in both images.
    """
    from matplotlib.patches import ConnectionPatch

    style = _match_style(hit)
    line = {"color": style["color"], "linestyle": style["linestyle"], "linewidth": 1.4 * scale}
    ends = {"xyA": start_px, "xyB": end_px, "coordsA": axes[0].transData, "coordsB": axes[1].transData}
    axes[1].add_artist(ConnectionPatch(**ends, **line, path_effects=outlined(2.6 * scale), zorder=3, clip_on=False))
    marker = {
        "linestyle": "",
        "color": style["color"],
        "markeredgecolor": "white",
        "zorder": 5,
        "clip_on": False,
    }
    axes[1].plot(*start_px, **marker, **_scaled(SOURCE_DOT, scale), transform=axes[0].transData)
    axes[1].plot(*end_px, **marker, **_scaled(style, scale))


def _scaled(style: Mapping[str, Any], scale: float) -> dict[str, Any]:
    """The marker of a style, smaller or larger."""
    sizes = {key: style[key] * scale for key in ("markersize", "markeredgewidth")}
    return {"marker": style["marker"], **sizes}


def _draw_miss(axes: "Axes", pred_px: np.ndarray, truth_px: np.ndarray, scale: float = 1.0) -> None:
    """A thin dotted line from a wrong prediction to the true point."""
    xy = np.stack((pred_px, truth_px), axis=1)
    axes.plot(*xy, color=WRONG, linestyle=":", linewidth=1.1 * scale, path_effects=outlined(2.0 * scale), zorder=3)


def match_legend(figure: "Figure", right: str = "correct", wrong: str = "wrong", fontsize: float = 9) -> None:
    from matplotlib.lines import Line2D

    common = {"linewidth": 1.6, "markeredgecolor": "white"}
    handles = [
        Line2D([], [], **_match_style(True) | common, label=right),
        Line2D([], [], **_match_style(False) | common, label=wrong),
        Line2D([], [], **RING, color="black", label="true position"),
    ]
    style = {"frameon": False, "fontsize": fontsize, "handlelength": 3.2}
    figure.legend(handles=handles, loc="lower center", ncols=len(handles), **style)


def fit_title(title: str, inches: float, lines: int = 1) -> str:
    """`title` broken, and cut if need be, so that it fits a width at 10 points."""
    return "\n".join(wrap_name(title, max(int(11 * inches), 8), lines))


def wrap_name(name: str, width: int, max_lines: int | None = None) -> list[str]:
    """Lines of at most `width` letters; prompt names break after their underscores and hyphens."""
    lines = textwrap.wrap(name.replace("_", "_ "), width, max_lines=max_lines, placeholder="…")
    return [line.replace("_ ", "_") for line in lines]


def draw_matches(
    src_img: ImageLike,
    trg_img: ImageLike,
    src_kps: Tensor | np.ndarray,
    trg_kps: Tensor | np.ndarray,
    pred_kps: Tensor | np.ndarray,
    hits: Tensor | np.ndarray,
    kps_mask: Tensor | np.ndarray | None = None,
    titles: tuple[str, str] = ("source", "target"),
) -> np.ndarray:
    """Source and target side by side, a line from each source point to its prediction, a ring at the truth.

    Args:
        src_img, trg_img: images as `to_rgb` takes them; both are shown at the same height.
        src_kps, trg_kps, pred_kps: (N, 2) pixels of the image they lie in.
        hits: (N,) bool, whether the prediction counts as correct.
        kps_mask: (N,) bool, False for points to leave out; None shows all.
        titles: text above the two images.
    Returns:
        RGB picture (H, W, 3) uint8.
    """
    images = [to_rgb(src_img), to_rgb(trg_img)]
    hits = _numpy(hits).astype(bool)
    keep = np.ones(len(hits), bool) if kps_mask is None else _numpy(kps_mask).astype(bool)
    src_kps, trg_kps, pred_kps, hits = (_numpy(v)[keep] for v in (src_kps, trg_kps, pred_kps, hits))
    aspects = [rgb.shape[1] / rgb.shape[0] for rgb in images]
    figure, axes = _pair_figure(aspects)
    for ax, rgb, title in zip(axes, images, titles, strict=True):
        show_image(ax, rgb, aspect="auto")
        ax.set_title(fit_title(title, ax.bbox.width / figure.dpi), fontsize=10)
    draw_match_lines(axes, src_kps, trg_kps, pred_kps, hits)
    match_legend(figure, f"correct ({int(hits.sum())})", f"wrong ({int((~hits).sum())})")
    return render(figure)


def draw_match_lines(
    axes: list["Axes"], src_kps: Any, trg_kps: Any, pred_kps: Any, hits: Any, scale: float = 1.0
) -> None:
    """All matches of a pair, over its two images' axes."""
    for start, end, truth, hit in zip(src_kps, pred_kps, trg_kps, hits, strict=True):
        draw_ring(axes[1], truth, scale)
        _draw_match(axes, start, end, bool(hit), scale)
        if not hit:
            _draw_miss(axes[1], end, truth, scale)


def _pair_figure(aspects: list[float]) -> tuple["Figure", list["Axes"]]:
    """Figure with two axes of equal height and of `aspects` W / H, room for titles and a legend."""
    margin, gap, title, legend = 0.12, 0.25, 0.3, 0.4  # inches
    widths = [PANEL_INCHES * aspect for aspect in aspects]
    total_w, total_h = sum(widths) + gap + 2 * margin, PANEL_INCHES + title + legend
    figure = new_figure(total_w, total_h)
    lefts = [margin, margin + widths[0] + gap]
    boxes = [
        (left / total_w, legend / total_h, w / total_w, PANEL_INCHES / total_h)
        for left, w in zip(lefts, widths, strict=True)
    ]
    return figure, [figure.add_axes(box) for box in boxes]


def _map_extent(map_size: tuple[int, int], image_size: tuple[int, int], convention: str) -> list[float]:
    """(left, right, bottom, top) in image pixels of a map's outer border."""
    h, w = map_size
    borders = torch.tensor([[-0.5, -0.5], [w - 0.5, h - 0.5]], dtype=torch.float64)
    (left, top), (right, bottom) = cell_to_px(borders, map_size, image_size, convention).tolist()
    return [left, right, bottom, top]


def show_heat(
    axes: "Axes", rgb: np.ndarray, heat: np.ndarray, convention: str, limits: tuple[float, float] | None
) -> "AxesImage":
    """A heat map over the grey target, one flat square per cell."""
    height, width = rgb.shape[:2]
    show_image(axes, np.asarray(Image.fromarray(rgb).convert("L").convert("RGB")), aspect="auto")
    low, high = limits or (float(heat.min()), float(heat.max()))
    extent = _map_extent(heat.shape, (height, width), convention)
    colours = {"cmap": "viridis", "alpha": 0.7, "vmin": low, "vmax": high}
    layer = axes.imshow(heat, **colours, extent=extent, interpolation="nearest", aspect="auto", zorder=1)
    axes.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
    return layer


def draw_bar(layer: "AxesImage", bar_axes: "Axes", orientation: str = "vertical") -> None:
    """The colour bar of a heat map, over mid-grey."""
    bar = layer.figure.colorbar(layer, cax=bar_axes, orientation=orientation)
    bar.outline.set_visible(False)
    bar_axes.set_facecolor("0.5")
    bar_axes.tick_params(labelsize=8, length=2, pad=2)
    bar_axes.locator_params(nbins=5)


def mark(axes: "Axes", point_px: Any, marker: str, colour: str, size: float) -> None:
    style = {
        "linestyle": "",
        "marker": marker,
        "markersize": size,
        "markeredgecolor": "black",
        "markeredgewidth": 0.9,
    }
    axes.plot(*_numpy(point_px), **style, color=colour, zorder=5, clip_on=False)


def correlation_legend(figure: "Figure", with_truth: bool, with_preds: bool, **place: Any) -> None:
    from matplotlib.lines import Line2D

    common = {"linestyle": "", "markeredgecolor": "black", "markeredgewidth": 0.9}
    handles = [Line2D([], [], **common, marker="*", markersize=11, color=QUERY, label="query")]
    if with_truth:
        handles.append(Line2D([], [], **RING, color="black", label="true position"))
    if with_preds:
        handles.append(Line2D([], [], **common, marker="X", markersize=7, color=WRONG, label="prediction"))
    place = {"loc": "lower center", "fontsize": 9} | place
    figure.legend(handles=handles, ncols=len(handles), frameon=False, **place)


def draw_correlation(
    src_img: ImageLike,
    trg_img: ImageLike,
    query_px: Tensor | np.ndarray,
    maps: Mapping[str, Tensor | np.ndarray],
    truth_px: Tensor | np.ndarray | None = None,
    preds: Mapping[str, Tensor | np.ndarray] | None = None,
    limits: tuple[float, float] | None = None,
    max_columns: int = 5,
    convention: str = "align_corners",
) -> np.ndarray:
    """The source with its query, the target, and one heat map over the target for each entry of `maps`.

    Args:
        src_img, trg_img: images as `to_rgb` takes them.
        query_px: (2,) query point, px of the source image.
        maps: title -> (h, w) correlation of the query with every target cell.
        truth_px: (2,) true point, px of the target image.
        preds: title of a map -> (2,) predicted point, px of the target image.
        limits: common range of the colours; None gives each map its own.
        max_columns: panels in a row.
        convention: how px and cells are tied together, see `utils.geometry`.
    Returns:
        RGB picture (H, W, 3) uint8.
    """
    preds = preds or {}
    unknown = sorted(set(preds) - set(maps))
    if unknown:
        raise ValueError(f"predictions for {unknown}, but maps only for {list(maps)}")
    source, target = to_rgb(src_img), to_rgb(trg_img)
    figure, panels, bars = _panel_figure([source.shape, target.shape], len(maps), max_columns)
    show_image(panels[0], source, aspect="auto")
    show_image(panels[1], target, aspect="auto")
    for panel, bar, heat in zip(panels[2:], bars, maps.values(), strict=True):
        draw_bar(show_heat(panel, target, _numpy(heat), convention, limits), bar)
    for panel, title in zip(panels, ("source", "target", *maps), strict=True):
        panel.set_title(fit_title(title, panel.bbox.width / figure.dpi, lines=2), fontsize=10)
    _mark_points(panels, query_px, [preds.get(title) for title in maps], truth_px)
    correlation_legend(figure, truth_px is not None, bool(preds))
    return render(figure)


def _mark_points(panels: list["Axes"], query_px: Any, preds: Sequence[Any], truth_px: Any) -> None:
    """The query on the source's panel, each map's prediction on its own, the truth on all of the target.

    preds: a point for each map, or None; truth_px: None if it is not known.
    """
    source, *targets = panels
    mark(source, query_px, "*", QUERY, 13)
    for panel, pred in zip(targets[1:], preds, strict=True):
        if pred is not None:
            mark(panel, pred, "X", WRONG, 8)
    if truth_px is not None:
        for panel in targets:
            draw_ring(panel, _numpy(truth_px))


def _panel_figure(
    shapes: list[tuple[int, ...]], n_maps: int, max_columns: int
) -> tuple["Figure", list["Axes"], list["Axes"]]:
    """Figure with panels for source and target (of these shapes) and for each map, which has a colour bar.

    All panels are equally high; a row holds at most `max_columns` of them.
    """
    height, margin, gap, title, bar, bar_slot, legend = 2.4, 0.12, 0.15, 0.5, 0.1, 0.55, 0.35  # inches
    source_w, target_w = (height * shape[1] / shape[0] for shape in shapes)
    panels = [(source_w, 0.0), (target_w, 0.0)] + [(target_w, bar_slot)] * n_maps  # (width, room for the colour bar)
    rows = [panels[start : start + max_columns] for start in range(0, len(panels), max_columns)]
    total_w = max(sum(width + room + gap for width, room in row) for row in rows) - gap + 2 * margin
    total_h = len(rows) * (height + title) + legend
    figure = new_figure(total_w, total_h)

    def add_axes(left: float, bottom: float, width: float) -> "Axes":
        return figure.add_axes((left / total_w, bottom / total_h, width / total_w, height / total_h))

    panel_axes, bar_axes = [], []
    for r, row in enumerate(rows):
        left, bottom = margin, total_h - (r + 1) * (height + title) + 0.05
        for width, room in row:
            panel_axes.append(add_axes(left, bottom, width))
            if room:
                bar_axes.append(add_axes(left + width + 0.06, bottom, bar))
            left += width + room + gap
    return figure, panel_axes, bar_axes


FORMATS = ("png", "pdf", "svg")


def save_figure(path: str | os.PathLike, picture: "np.ndarray | Figure", dpi: int = DPI) -> None:
    """Write a picture (H, W, 3) uint8 as PNG, or a figure in the format of the path's suffix, in one step."""
    with atomic_path(path) as temporary:
        if isinstance(picture, np.ndarray):
            Image.fromarray(picture).save(temporary, format="PNG", dpi=(dpi, dpi))
        else:
            _write_figure(picture, temporary, find_format(path), dpi)


def find_format(path: str | os.PathLike) -> str:
    """The format that a figure's file name asks for; ValueError lists the known ones."""
    suffix = os.path.splitext(path)[1].lstrip(".").lower()
    if suffix not in FORMATS:
        raise ValueError(f"{path}: a figure's name must end in {', '.join(f'.{name}' for name in FORMATS)}")
    return suffix


def _write_figure(figure: "Figure", path: os.PathLike, suffix: str, dpi: int) -> None:
    """Text stays text in vector formats; the same figure gives the same bytes."""
    import matplotlib

    undated = {"png": {}, "pdf": {"CreationDate": None}, "svg": {"Date": None}}[suffix]
    style = {"pdf.fonttype": 42, "svg.fonttype": "none", "svg.hashsalt": "figure"}
    style["image.composite_image"] = False  # joined images would lose part of their opacity
    with matplotlib.rc_context(style):
        figure.savefig(path, format=suffix, dpi=dpi, metadata=undated)
