"""Pictures of matches whose truth nobody knows: lines between two images, coloured by confidence."""

import numpy as np
from PIL import Image

from utils.draw import SOURCE_DOT, fit_title, new_figure, outlined, render, show_image

COLOURS = "cividis"  # tells its ends apart for colour-blind readers and in grey
NUMBERED = 30  # at most so many points carry their number
SHOWN_SIDE = 1600  # px; larger images are shown reduced
PANEL_AREA = 13.0  # square inches of one image


def draw_links(
    src: Image.Image,
    trg: Image.Image,
    src_points: np.ndarray,
    trg_points: np.ndarray,
    confidence: np.ndarray,
    titles: tuple[str, str] = ("source", "target"),
) -> np.ndarray:
    """Two images side by side, or above each other if both are wide, with a line for each of N matches.

    src_points, trg_points: (N, 2), px of the images given; confidence (N,) in [0, 1] decides the colour. Points
    are numbered from 1 unless there are many. Returns RGB (H, W, 3) uint8.
    """
    from matplotlib import colormaps
    from matplotlib.patches import ConnectionPatch

    stacked = src.width > 1.3 * src.height and trg.width > 1.3 * trg.height
    figure, axes, bar = _figure([image.width / image.height for image in (src, trg)], stacked)
    for place, image, title in zip(axes, (src, trg), titles, strict=True):
        _show(place, image)
        place.set_title(fit_title(title, place.bbox.width / figure.dpi), fontsize=10)
    for i in np.argsort(confidence, kind="stable"):  # the surest lie on top
        colour = colormaps[COLOURS](float(confidence[i]))
        ends = {"xyA": src_points[i], "xyB": trg_points[i], "coordsA": axes[0].transData, "coordsB": axes[1].transData}
        line = {"color": colour, "linewidth": 1.2, "path_effects": outlined(2.2), "zorder": 3, "clip_on": False}
        axes[1].add_artist(ConnectionPatch(**ends, **line))
        for place, point in ((axes[0], src_points[i]), (axes[1], trg_points[i])):
            _mark(axes[1], place, point, colour, str(i + 1) if len(confidence) <= NUMBERED else "")
    _draw_bar(figure, bar)
    return render(figure)


def _figure(aspects: list[float], stacked: bool):
    """Figure, two axes of the aspects W / H side by side or above each other, and one for the colour bar."""
    margin, gap, title, foot = 0.15, 0.25, 0.32, 0.62  # inches
    if stacked:
        width = np.sqrt(PANEL_AREA * np.mean(aspects))
        sizes = [(width, width / aspect) for aspect in aspects]
        total = width + 2 * margin, sum(height + title for _, height in sizes) + foot + gap - margin
        tops = total[1] - title, total[1] - 2 * title - gap + margin - sizes[0][1]
        corners = [(margin, top - height) for top, (_, height) in zip(tops, sizes, strict=True)]
    else:
        height = np.sqrt(PANEL_AREA / np.mean(aspects))
        sizes = [(height * aspect, height) for aspect in aspects]
        total = sum(width for width, _ in sizes) + gap + 2 * margin, height + title + foot
        corners = [(margin, foot), (margin + sizes[0][0] + gap, foot)]
    figure = new_figure(*total)

    def add(corner, size):
        return figure.add_axes((corner[0] / total[0], corner[1] / total[1], size[0] / total[0], size[1] / total[1]))

    axes = [add(corner, size) for corner, size in zip(corners, sizes, strict=True)]
    width = min(3.0, total[0] - 4 * margin)
    return figure, axes, add(((total[0] - width) / 2, 0.38), (width, 0.1))


def _show(axes, image: Image.Image) -> None:
    """The image, reduced if it is large, on axes whose coordinates are its own pixels."""
    factor = -(-max(image.size) // SHOWN_SIDE)
    shown = image.reduce(factor) if factor > 1 else image
    extent = (-0.5, image.width - 0.5, image.height - 0.5, -0.5)
    show_image(axes, np.asarray(shown), aspect="auto", extent=extent)
    axes.set(xlim=extent[:2], ylim=extent[2:])


def _mark(canvas, axes, point: np.ndarray, colour, number: str) -> None:
    """A dot at a point of `axes`, drawn on the axes `canvas` that come last, with its number beside it."""
    dot = {"linestyle": "", "color": colour, "markeredgecolor": "white", "zorder": 5, "clip_on": False}
    canvas.plot(*point, **dot, **SOURCE_DOT, transform=axes.transData)
    if number:
        canvas.annotate(
            number,
            point,
            xycoords=axes.transData,
            xytext=_label_side(axes, point),
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=8,
            fontweight="bold",
            path_effects=outlined(2.0),
            zorder=6,
            annotation_clip=False,
        )


def _label_side(axes, point: np.ndarray) -> tuple[float, float]:
    """Where the number goes, in points from the dot: right and above, unless that is outside the image."""
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    x = -8 if point[0] > left + 0.94 * (right - left) else 8
    y = -8 if point[1] < top + 0.06 * (bottom - top) else 8
    return x, y


def _draw_bar(figure, axes) -> None:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    bar = figure.colorbar(ScalarMappable(Normalize(0, 1), COLOURS), cax=axes, orientation="horizontal")
    bar.outline.set_visible(False)
    axes.tick_params(labelsize=8, length=2, pad=2)
    axes.set_xlabel("confidence", fontsize=8, labelpad=1)
