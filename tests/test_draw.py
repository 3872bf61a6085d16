"""Pictures: their sizes, what is and what is not drawn, and the file that is written."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from utils.draw import DPI, RIGHT, WRONG, draw_correlation, draw_matches, save_figure, to_rgb

GREY = np.full((96, 96, 3), 128, np.uint8)
KPS = np.array([[20.0, 20.0], [70.0, 60.0]])


def colour_count(picture, hex_colour):
    rgb = np.array([int(hex_colour[i : i + 2], 16) for i in (1, 3, 5)])
    return int((np.abs(picture.astype(int) - rgb).max(axis=-1) <= 3).sum())


def matches(hits, mask=None, pred=KPS + 15, img=GREY):
    return draw_matches(img, img, KPS, KPS, pred, np.array(hits), mask)


def test_to_rgb_takes_tensors_arrays_and_pil_images():
    tensor = torch.tensor([-1.0, 0.0, 1.0])[:, None, None].expand(3, 4, 6)
    assert to_rgb(tensor).shape == (4, 6, 3)
    assert to_rgb(tensor)[0, 0].tolist() == [0, 128, 255]
    assert to_rgb(tensor.half())[0, 0].tolist() == [0, 128, 255]
    assert to_rgb(Image.new("L", (6, 4), 7)).shape == (4, 6, 3)
    assert to_rgb(GREY) is GREY
    for bad in (torch.zeros(1, 4, 4), torch.zeros(3, 4, 4, dtype=torch.uint8), np.zeros((4, 4, 3))):
        with pytest.raises(ValueError, match="expected a"):
            to_rgb(bad)


def test_right_and_wrong_matches_have_their_colours():
    right, wrong, both = matches([True, True]), matches([False, False]), matches([True, False])
    assert both.dtype == np.uint8 and both.shape[2] == 3 and both.shape[1] > both.shape[0] > 3 * DPI
    legend = 600  # pixels: more than the sample lines in the legend
    assert colour_count(right, RIGHT) > legend > colour_count(right, WRONG)
    assert colour_count(wrong, WRONG) > legend > colour_count(wrong, RIGHT)
    assert colour_count(both, RIGHT) > legend and colour_count(both, WRONG) > legend


def test_masked_points_are_left_out_whatever_they_hold():
    pred = (KPS + 15).copy()
    pred[1] = np.nan
    masked = matches([True, True], mask=torch.tensor([True, False]), pred=pred)
    only = draw_matches(GREY, GREY, KPS[:1], KPS[:1], pred[:1], np.array([True]))
    np.testing.assert_array_equal(masked, only)


def test_no_points_and_large_or_uneven_images():
    none = draw_matches(GREY, GREY, KPS[:0], KPS[:0], KPS[:0], np.zeros(0, bool))
    assert none.shape == matches([True, True]).shape
    wide = np.full((300, 768, 3), 90, np.uint8)
    picture = draw_matches(wide, GREY, KPS, KPS, KPS, np.array([True, False]))
    assert picture.shape[0] == none.shape[0] and picture.shape[1] > none.shape[1]


def test_picture_is_the_same_each_time():
    np.testing.assert_array_equal(matches([True, False]), matches([True, False]))


def test_correlation_panels():
    maps = {"text": torch.rand(12, 12), "a learned prompt with a rather long name": torch.rand(12, 12)}
    one = draw_correlation(GREY, GREY, KPS[0], {"text": maps["text"]})
    two = draw_correlation(GREY, GREY, KPS[0], maps, KPS[1], {"text": KPS[1]})
    assert two.shape[0] == one.shape[0] and two.shape[1] > one.shape[1]
    assert colour_count(two, WRONG) > colour_count(one, WRONG) == 0
    wrapped = draw_correlation(GREY, GREY, KPS[0], maps, max_columns=2)
    assert wrapped.shape[0] > two.shape[0] and wrapped.shape[1] < two.shape[1]


def test_correlation_map_lies_where_its_cells_are():
    """Corner-aligned: cell (0, 0) of a 2 x 2 map is centred on pixel (0, 0), each covers a quarter."""
    heat = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    picture = draw_correlation(GREY, GREY, KPS[0], {"m": heat}, limits=(0, 1)).astype(int)
    height, width = picture.shape[:2]
    top, bottom = int(0.3 * height), int(0.75 * height)
    left, right = int(0.69 * width), int(0.88 * width)
    yellow = picture[top, left]
    assert yellow[0] > yellow[2] + 60
    for y, x in ((top, right), (bottom, left), (bottom, right)):
        assert picture[y, x][2] > picture[y, x][1]


def test_predictions_for_unknown_maps_are_refused():
    with pytest.raises(ValueError, match=r"\['other'\].*\['text'\]"):
        draw_correlation(GREY, GREY, KPS[0], {"text": torch.rand(4, 4)}, preds={"other": KPS[0]})


def test_save_figure_writes_a_png_in_one_step(tmp_path):
    path = tmp_path / "new" / "matches.png"
    picture = matches([True, False])
    save_figure(path, picture)
    with Image.open(path) as image:
        assert image.format == "PNG" and image.info["dpi"][0] >= 150
        np.testing.assert_array_equal(np.asarray(image), picture)
    assert [p.name for p in path.parent.iterdir()] == ["matches.png"]


def test_importing_draw_does_not_import_matplotlib():
    code = "import sys, utils.draw; sys.exit('matplotlib' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_prediction_is_marked_on_the_panel_of_its_map():
    maps = {"text": np.zeros((4, 4)), "learned": np.zeros((4, 4))}
    without = draw_correlation(GREY, GREY, KPS[0], maps, limits=(0, 1))
    columns = {}
    for title in maps:
        marked = draw_correlation(GREY, GREY, KPS[0], maps, preds={title: KPS[1]}, limits=(0, 1))
        panels = (marked != without).any(axis=-1)[: -DPI // 2]  # above the legend
        columns[title] = np.flatnonzero(panels.any(axis=0))
    width = without.shape[1]
    assert width / 3 < columns["text"].min() and columns["text"].max() < columns["learned"].min()
