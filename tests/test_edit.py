"""Edits carried to other images: known answers on made-up features, refusals, the command."""

import numpy as np
import pytest
import torch
from PIL import Image

from sd4match.edit import WARPS, carry_layer, lay_over, read_layer, surround
from sd4match.flow import FlowError
from sd4match.pair import Pair, Setting
from tests.command import call
from tests.fixtures_dataset import draw_image
from tests.test_transfer import tiny_flags
from utils.frame import build_frame
from utils.image import ImageError, Picture

CELLS, SIDE = 17, 65  # 4 px from cell to cell


def make_pair(src_feat, trg_feat, size=(SIDE, SIDE)):
    pictures = [Picture(Image.new("RGB", size[::-1], colour), size, colour) for colour in ("white", "grey")]
    setting = Setting("bilinear", 0.04, 7.0, build_frame("stretch", SIDE))
    return Pair(*pictures, src_feat, trg_feat, setting)


@pytest.fixture
def features():
    return torch.randn(64, CELLS, CELLS, generator=torch.Generator().manual_seed(0))


def paint(box, colour=(200, 40, 10), size=(SIDE, SIDE)):
    """A layer that is opaque in a box x1 y1 x2 y2, last pixel included, and green where it is transparent."""
    layer = np.zeros((*size, 4), np.uint8)
    layer[..., 1] = 255
    x1, y1, x2, y2 = box
    layer[y1 : y2 + 1, x1 : x2 + 1] = (*colour, 255)
    return layer


@pytest.mark.parametrize("warp", WARPS)
def test_an_edit_follows_a_shift(features, warp):
    pair = make_pair(features, torch.roll(features, (2, -1), dims=(1, 2)))  # 8 px down, 4 px left
    found = carry_layer(pair, paint((20, 24, 35, 31)), warp)
    assert found.shape == (SIDE, SIDE, 4)
    solid = np.zeros((SIDE, SIDE), bool)
    solid[33:39, 17:31] = True  # the inside of x 16..31, y 32..39
    assert (found[solid, 3] > 250).all() and (np.abs(found[solid, :3].astype(int) - (200, 40, 10)) <= 2).all()
    rows, columns = np.nonzero(found[..., 3] > 128)
    for values, ends in ((rows, (32, 39)), (columns, (16, 31))):
        assert (values.min(), values.max()) == (pytest.approx(ends[0], abs=1), pytest.approx(ends[1], abs=1))


def test_colours_of_transparent_pixels_do_not_bleed_in(features):
    found = carry_layer(make_pair(features, features), paint((22, 22, 41, 41)))
    edge = (found[..., 3] > 0) & (found[..., 3] < 255)
    assert (found[found[..., 3] > 8, 1] < 60).all() and edge.sum() == 0


def test_what_is_not_matched_both_ways_stays_as_it_was(features):
    target = features.clone()
    target[:, 8:] = torch.randn(64, CELLS - 8, CELLS, generator=torch.Generator().manual_seed(1))
    found = carry_layer(make_pair(features, target), paint((0, 0, 64, 64)))
    assert (found[:24, :, 3] > 250).mean() > 0.95 and (found[40:, :, 3] > 0).mean() < 0.2


def test_sizes_of_both_images_count(features):
    pair = make_pair(features, features)
    wide = Picture(Image.new("RGB", (130, 33)), (33, 130), "wide")
    pair = Pair(pair.src, wide, features, features, pair.setting)
    for warp in ("dense", "affine"):
        found = carry_layer(pair, paint((20, 24, 43, 47)), warp)
        rows, columns = np.nonzero(found[..., 3] > 128)
        assert found.shape == (33, 130, 4) and columns.mean() == pytest.approx(63.5, abs=1.5)
        assert rows.mean() == pytest.approx(17.8, abs=1) and np.ptp(columns) == pytest.approx(47, abs=2.5)


def test_an_unknown_warp_is_named(features):
    with pytest.raises(ValueError, match="unknown warp 'spline'; known: dense, rigid"):
        carry_layer(make_pair(features, features), paint((20, 24, 43, 47)), "spline")


def test_the_surroundings_and_the_picture_under_the_layer():
    painted = np.zeros((50, 40), bool)
    painted[20:31, 10:21] = True
    rows, columns = np.nonzero(surround(painted))
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (14, 36, 4, 26)
    layer = paint((0, 0, 3, 3), (10, 20, 30))
    over = lay_over(Picture(Image.new("RGB", (65, 65), "white"), (65, 65), "a"), layer)
    assert over[2, 2].tolist() == [10, 20, 30] and over[9, 9].tolist() == [255] * 3


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (Image.new("RGB", (64, 48)), "no transparency"),
        (Image.new("RGBA", (48, 64), "red"), "is 48 x 64 px, but a.png, which it is painted on, 64 x 48"),
        (Image.new("RGBA", (64, 48)), "nothing is painted on it"),
        (None, "cannot be opened"),
    ],
)
def test_layers_that_cannot_be_used(tmp_path, layer, message):
    path = tmp_path / "layer.png"
    layer.save(path) if layer else path.write_bytes(b"none")
    with pytest.raises(ImageError, match=message):
        read_layer(path, Picture(Image.new("RGB", (64, 48)), (48, 64), "a.png"))


@pytest.fixture
def run(world, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    for name, size in (("a.png", (48, 64)), ("in/b.png", (60, 60)), ("in/c.png", (72, 56))):
        draw_image(tmp_path / name, size)
    layer = np.zeros((48, 64, 4), np.uint8)
    layer[10:30, 20:40] = (255, 0, 0, 255)
    Image.fromarray(layer).save("layer.png")

    def run(*flags, base=("a.png", "--paint", "layer.png", "--images", "in", "--output", "out")):
        return call("script/carry_edit.py", *base, *flags, *tiny_flags(world)), *capfd.readouterr()

    return run


def test_the_command_edits_a_folder(run, tmp_path):
    (tmp_path / "in" / "d.png").write_bytes(b"none")
    status, out, err = run("--images", "in", "a.png", "--localiser", "nn")
    assert status == 1 and "written: out (3 images)" in out and "skipped: in/d.png cannot be opened" in err
    for name, size in (("b", (60, 60)), ("c", (56, 72)), ("a", (64, 48))):
        with (
            Image.open(tmp_path / "out" / f"{name}.png") as whole,
            Image.open(tmp_path / f"out/layer/{name}.png") as layer,
        ):
            assert whole.size == layer.size == size and (whole.mode, layer.mode) == ("RGB", "RGBA")
    same = np.asarray(Image.open(tmp_path / "out" / "layer" / "a.png"))  # the image that was painted on
    assert (same[12:28, 22:38, 3] > 200).mean() > 0.9 and (same[40:, :, 3] < 50).mean() > 0.9


def test_pictures_without_a_transform_are_skipped(run, tmp_path, monkeypatch):
    def fail(*args):
        raise FlowError("no transform of kind affine")

    monkeypatch.setattr("sd4match.flow.fit_transform", fail)
    status, out, err = run("--warp", "affine")
    assert status == 1 and "written: out (0 images)" in out and not list((tmp_path / "out").glob("*.png"))
    assert [line.split(": ", 1)[1] for line in err.splitlines() if "skipped" in line] == [
        f"skipped: in/{name}.png: no transform of kind affine" for name in "bc"
    ]


@pytest.mark.parametrize(
    ("flags", "status", "message"),
    [
        (("--warp", "spline"), 2, "--warp spline: known are dense, rigid, similarity, affine, homography"),
        (("--output", "a.png"), 2, "a.png is a file, so nothing can be written below it"),
        (("--output", "in"), 2, "--output in: in/b.png would be replaced"),
        (("--images", "in", "in/b.png", "copy/b.png"), 2, "two pictures would become out/b.png"),
        (("--images", "nowhere"), 1, "nowhere: no such image"),
        (("--paint", "a.png"), 1, "a.png: no transparency"),
        (("--timestep", "1000"), 2, "--timestep must be in 0..999; got 1000"),
        (("--output", ".", "--images", "same"), 2, "--output a.png is another file of this command"),
        (("--output", ".", "--images", "copy"), 2, "--output layer.png is another file"),
        (("--images", "in", "same"), 2, "a picture of a folder called layer would be another's layer"),
        (("--sheet", "in/b.png"), 2, "--sheet in/b.png is another file of this command"),
        (("--sheet", "layer.png"), 2, "--sheet layer.png is another file of this command"),
        (("--sheet", "sheet.txt"), 2, "--sheet sheet.txt: the name must end in"),
    ],
)
def test_what_the_command_refuses(run, tmp_path, flags, status, message):
    draw_image(tmp_path / "copy" / "b.png", (60, 60))
    draw_image(tmp_path / "copy" / "layer.png", (60, 60))
    draw_image(tmp_path / "same" / "layer" / "c.png", (60, 60))
    draw_image(tmp_path / "same" / "a.png", (60, 60))
    found, _, err = run(*flags)
    assert (found, message in err) == (status, True), err
