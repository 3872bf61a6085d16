"""Pictures: what they show at known places, that no text is cut off, and the files that are written."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from utils.draw import (
    CORNERS,
    QUERY,
    RIGHT,
    WIDE_PANEL,
    WRONG,
    DensePair,
    GeneratedPair,
    Grid,
    MatchedPair,
    find_format,
    inside,
    paint,
    pixel_places,
    place_colours,
    plot_correlations,
    plot_dense,
    plot_generated,
    plot_links,
    plot_matches,
    render,
    save_figure,
    to_rgb,
    warp_image,
)
from utils.plot import FeaturePair, colour_features, plot_curves, plot_feature_colours

LONG = "CPM_pfpascal_stable-diffusion-2-1_Pair-DINO-Feat-G25-C50"
MEASURE = "PCK@0.1, kernelsoftmax, spair val all (%)"
FRAME = (64, 48)
GREY = torch.zeros(3, *FRAME)


def make_image(seed=0):
    return torch.rand(3, *FRAME, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def images(src=None, trg=None, src_size=FRAME, trg_size=FRAME):
    src, trg = make_image(0) if src is None else src, make_image(1) if trg is None else trg
    return {"category": "aeroplane", "src_img": src, "trg_img": trg, "src_size": src_size, "trg_size": trg_size}


def make_pair(hits=(True, False, True), **shown):
    points, n = torch.tensor([[5.0, 6.0], [40.0, 30.0], [20.0, 60.0]])[: len(hits)], len(hits)
    found = {"src_kps": points, "trg_kps": points, "pred_kps": points + 4, "sim": torch.rand(n, 6, 8)}
    return MatchedPair(**images(**shown), **found, hits=torch.tensor(hits, dtype=torch.bool))


def make_dense(shift=0.0):
    places, box = pixel_places(GREY), torch.tensor([8.0, 8.0, 40.0, 56.0])
    cycle = torch.zeros(places.shape[:2])
    return DensePair(**images(trg=make_image(0)), trg_box=box, points=places + shift, cycle=cycle)


def make_links(width=90, height=60):
    image, points = Image.new("RGB", (width, height), "grey"), np.array([[10.0, 10.0], [50.0, 40.0]])
    return plot_links(image, image, points, points, np.array([0.2, 1.0]), ("a.jpg", "b.jpg"))


def build_all(names):
    """A figure of each kind with columns of these names."""
    generated = GeneratedPair(**images(), images=[to_rgb(make_image(2)), to_rgb(make_image(3))])
    features = FeaturePair(**images(), src_feat=torch.rand(4, 6, 6), trg_feat=torch.rand(4, 6, 6))
    return {
        "matches": plot_matches([{name: make_pair() for name in names}] * 2),
        "one pair": plot_matches([{names[-1]: make_pair()}], WIDE_PANEL),
        "correlation": plot_correlations([{name: make_pair() for name in names}] * 2, [0, 1]),
        "dense": plot_dense([{name: make_dense() for name in names}]),
        "generated": plot_generated([dict.fromkeys(names, generated)] * 2),
        "features": plot_feature_colours([dict.fromkeys(names, features)]),
        "links": make_links(),
        "links of high images": make_links(height=120),
        "curves": plot_curves({name: {0: 1.0, 50: 2.0} for name in names}, "timestep", MEASURE),
    }


def colour_count(picture, hex_colour):
    rgb = np.array([int(hex_colour[i : i + 2], 16) for i in (1, 3, 5)])
    return int((np.abs(picture.astype(int) - rgb).max(axis=-1) <= 3).sum())


def patch_at(picture, axes, point, reach=2):
    """The rendered pixels around a point of a panel."""
    x, y = axes.transData.transform(np.asarray(point))
    row, column = picture.shape[0] - 1 - round(y), round(x)
    return picture[row - reach : row + reach + 1, column - reach : column + reach + 1]


def find_texts(figure):
    """All texts that are drawn: not the labels of ticks beyond the ends of an axis."""
    from matplotlib.text import Text

    hidden = set()
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            beyond = [tick for tick in axis.get_major_ticks() if not low <= tick.get_loc() <= high]
            hidden.update(label for tick in beyond for label in (tick.label1, tick.label2))
    return [text for text in figure.findobj(Text) if text.get_visible() and text.get_text() and text not in hidden]


@pytest.mark.parametrize("names", [["text"], ["text", LONG, LONG.replace("CPM", "Img")]], ids=["one", "long"])
def test_no_text_is_cut_off_or_overlaps(names):
    for kind, figure in build_all(names).items():
        render(figure)
        page = figure.bbox
        boxes = [(text.get_text(), text.get_window_extent()) for text in find_texts(figure)]
        for text, box in boxes:
            inside_page = box.x0 >= page.x0 and box.x1 <= page.x1 and box.y0 >= page.y0 and box.y1 <= page.y1
            assert inside_page, f"{kind}: {text!r} at {box} is cut off by {page}"
        for i, (text, box) in enumerate(boxes):
            for other, other_box in boxes[i + 1 :]:
                assert not box.overlaps(other_box), f"{kind}: {text!r} and {other!r} overlap"


def test_panels_keep_the_aspect_ratio_of_the_images_on_disk():
    """Photos lie squashed in the network's frame; a picture shows them as they were, whatever stands in its row."""
    sizes = (300, 500), (640, 213)
    shown = {"src_size": sizes[0], "trg_size": sizes[1]}
    both = [sizes[0], sizes[1]]
    dense = DensePair(**images(**shown), trg_box=torch.tensor([8.0, 8, 40, 56]), points=pixel_places(GREY),
                      cycle=torch.zeros(FRAME))  # fmt: skip
    features = FeaturePair(**images(**shown), src_feat=torch.rand(4, 6, 6), trg_feat=torch.rand(4, 6, 6))
    generated = GeneratedPair(**images(**shown), images=[np.zeros((32, 32, 3), np.uint8)])
    expected = {
        "matches": (plot_matches([{"a": make_pair(**shown)}]), both),
        "correlation": (plot_correlations([{"a": make_pair(**shown)}], [0]), [*both, sizes[1]]),
        "dense": (plot_dense([{"a": dense}]), [*both, sizes[1], *[sizes[0]] * 3]),
        "features": (plot_feature_colours([{"a": features}]), [*both, *both]),
        "generated": (plot_generated([{"a": generated}]), [*both, (32, 32)]),
    }
    for kind, (figure, wanted) in expected.items():
        for axes, (height, width) in zip(figure.axes[: len(wanted)], wanted, strict=True):
            box = axes.get_window_extent()
            assert box.width / box.height == pytest.approx(width / height, rel=1e-3), kind


def test_points_lie_on_what_they_mark_in_a_squashed_image():
    """A red spot of the image is under the middle of the ring, wherever the panel's shape puts it."""
    target = GREY.clone()
    target[:, 28:33, 38:43] = torch.tensor([1.0, -1.0, -1.0])[:, None, None]  # around (40, 30)
    pair = make_pair(src_size=(100, 300), trg_size=(400, 130), trg=target)
    for figure in (plot_matches([{"a": pair}]), plot_correlations([{"a": pair}], [1])):
        spot = patch_at(render(figure), figure.axes[1], (40.0, 30.0), reach=1).astype(int)
        assert (spot[..., 0] > spot[..., 1] + 150).all()


def test_panels_of_a_row_lie_in_their_columns_and_high_ones_are_not_endless():
    grid = Grid(["a", "b"], [("x", 2), ("y", 1)], [[((10, 1000), GREY)] * 3, [((1000, 10), GREY)] * 3])
    for first, second in zip(*grid.axes, strict=True):
        boxes = [axes.get_window_extent() for axes in (first, second)]
        assert sum(box.x0 + box.x1 for box in boxes[:1]) == pytest.approx(boxes[1].x0 + boxes[1].x1)
        assert boxes[0].y0 > boxes[1].y1
    assert grid.height < grid.width


def test_to_rgb_takes_tensors_arrays_and_pil_images():
    tensor = torch.tensor([-1.0, 0.0, 1.0])[:, None, None].expand(3, 4, 6)
    for image in (tensor, tensor.half(), np.tile(np.uint8([0, 128, 255]), (4, 6, 1))):
        assert to_rgb(image).shape == (4, 6, 3) and to_rgb(image)[0, 0].tolist() == [0, 128, 255]
    assert to_rgb(Image.new("RGB", (6, 4))).shape == (4, 6, 3)


def test_right_and_wrong_matches_have_their_colours_and_are_counted():
    pictures = {}
    for hits in ([True] * 3, [False] * 3, [True, False, True]):
        figure = plot_matches([{"text": make_pair(hits, src=GREY, trg=GREY)}], WIDE_PANEL)
        pictures[sum(hits)] = render(figure)
        assert [text.get_text() for axes in figure.axes for text in axes.texts] == [f"{sum(hits)}/3"]
    legend = 350  # pixels: more than the samples in the legend
    assert colour_count(pictures[3], RIGHT) > legend > colour_count(pictures[3], WRONG)
    assert colour_count(pictures[0], WRONG) > legend > colour_count(pictures[0], RIGHT)
    assert colour_count(pictures[2], RIGHT) > legend and colour_count(pictures[2], WRONG) > legend


def test_a_pair_without_points_is_still_shown():
    assert render(plot_matches([{"text": make_pair(hits=())}])).std() > 0


def test_correlation_marks_lie_on_their_points():
    pair = make_pair()
    figure = plot_correlations([{"text": pair}], [1])
    picture, (source, target, heat) = render(figure), figure.axes[:3]
    for axes, point, colour in ((source, pair.src_kps[1], QUERY), (heat, pair.pred_kps[1], WRONG)):
        assert colour_count(patch_at(picture, axes, point), colour) > 12
    ring = {tuple(line.get_xydata()[0]) for axes in (target, heat) for line in axes.lines}
    assert tuple(pair.trg_kps[1].tolist()) in ring


def test_correlation_map_lies_where_its_cells_are():
    """Corner-aligned: cell (0, 0) of a 2 x 2 map is centred on pixel (0, 0), each covers a quarter."""
    pair = replace(make_pair([True], src=GREY, trg=GREY), sim=torch.tensor([[[1.0, 0.0], [0.0, 0.0]]]))
    figure = plot_correlations([{"m": pair}], [0])
    picture, heat = render(figure).astype(int), figure.axes[2]
    for (x, y), hot in (((18, 26), True), ((30, 26), False), ((18, 37), False), ((30, 37), False)):
        red, green, blue = patch_at(picture, heat, (x, y), 0)[0, 0]
        assert (red > blue + 60) if hot else (blue > green)


def test_each_prediction_is_marked_on_the_panel_of_its_own_map():
    pairs = {"text": make_pair(src=GREY, trg=GREY), "learned": make_pair(src=GREY, trg=GREY)}
    pairs["learned"].pred_kps[1] = torch.tensor([8.0, 50.0])
    figure = plot_correlations([pairs], [1])
    picture = render(figure)
    for axes, pair, other in zip(figure.axes[2:4], pairs.values(), list(pairs.values())[::-1], strict=True):
        assert colour_count(patch_at(picture, axes, pair.pred_kps[1]), WRONG) > 12
        assert colour_count(patch_at(picture, axes, other.pred_kps[1]), WRONG) == 0


def test_links_end_at_their_points_in_the_colour_of_their_confidence():
    from matplotlib import colormaps

    for height in (60, 120):  # above each other, side by side
        figure = make_links(height=height)
        picture, (source, target) = render(figure), figure.axes[:2]
        beside = source.get_window_extent().x1 <= target.get_window_extent().x0
        assert beside == (height == 120)
        for point, confidence in (((10, 10), 0.2), ((50, 40), 1.0)):
            wanted = np.array(colormaps["cividis"](confidence)[:3]) * 255
            for axes in (source, target):
                assert np.abs(patch_at(picture, axes, point, 1) - wanted).max() < 60
    texts = [text.get_text() for axes in figure.axes[:2] for text in axes.texts]
    assert sorted(texts) == ["1", "1", "2", "2"]


def test_warp_of_an_identity_pair_is_the_image():
    image = make_image()
    places = pixel_places(image)
    torch.testing.assert_close(warp_image(image, places), image)
    shifted = warp_image(image, places + torch.tensor([3.0, 2.0]))
    torch.testing.assert_close(shifted[:, :-2, :-3], image[:, 2:, 3:])


def test_place_colours_at_the_corners_and_outside():
    box = torch.tensor([10.0, 20.0, 30.0, 60.0])
    corners = torch.tensor([[10.0, 20.0], [30.0, 20.0], [10.0, 60.0], [30.0, 60.0]])
    colours, wanted = place_colours(corners, box), torch.tensor(CORNERS) / 255
    shade = colours.sum(dim=1, keepdim=True) / wanted.sum(dim=1, keepdim=True)  # squares differ in lightness
    torch.testing.assert_close(colours, shade * wanted)
    assert (shade > 0.8).all()
    assert torch.equal(place_colours(corners + torch.tensor([-50.0, -50.0]), box)[0], place_colours(corners, box)[0])
    assert inside(corners, box).all() and not inside(corners + 1, box)[3]


def test_paint_leaves_grey_what_is_outside_or_dropped():
    pair = make_dense()
    keep = torch.ones(FRAME, dtype=torch.bool)
    keep[30:] = False
    picture = to_rgb(paint(pair.trg_img, pair.points, pair.trg_box, keep)).astype(int)
    coloured = np.ptp(picture, axis=2) > 8
    assert coloured[9:30, 9:40].mean() > 0.9
    coloured[8:30, 8:41] = False
    assert not coloured.any()


def test_equal_features_have_equal_colours_across_maps():
    cells = torch.eye(4)[:, :, None].expand(4, 4, 3) + 0.1
    first, second = colour_features([cells, 5 * cells.flip(1)])
    torch.testing.assert_close(first, second.flip(1))
    assert first.shape == (3, 4, 3) and first.min() < 0.01 and first.max() > 0.99


def test_the_suffix_decides_the_format_and_the_same_figure_gives_the_same_bytes(tmp_path):
    figure = plot_matches([{"text": make_pair()}])
    heads = {
        "png": b"\x89PNG",
        "jpg": b"\xff\xd8\xff",
        "jpeg": b"\xff\xd8\xff",
        "webp": b"RIFF",
        "pdf": b"%PDF",
        "svg": b"<?xml",
    }
    for suffix, head in heads.items():
        paths = tmp_path / "new" / f"a.{suffix}", tmp_path / f"b.{suffix}"
        for path in paths:
            save_figure(path, figure)
        assert paths[0].read_bytes().startswith(head) and paths[0].read_bytes() == paths[1].read_bytes()
        if suffix in ("png", "jpg"):
            save_figure(tmp_path / f"pixels.{suffix}", render(figure))
            assert (tmp_path / f"pixels.{suffix}").read_bytes().startswith(head)
            assert Image.open(tmp_path / f"pixels.{suffix}").info["dpi"][0] >= 150
    assert "true position" in (tmp_path / "b.svg").read_text()
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "pixels.png")), render(figure))
    with pytest.raises(ValueError, match=r"a\.svg: the name must end in \.png, \.jpg, \.jpeg, \.webp$"):
        save_figure(tmp_path / "a.svg", render(figure))
    with pytest.raises(ValueError, match=r"must end in \.png, \.jpg, \.jpeg, \.webp, \.pdf, \.svg"):
        find_format("figure.gif")
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == sorted(f"a.{suffix}" for suffix in heads)
