"""Figures: what they show at known places, that no text is cut off, and script/figure.py from start to finish."""

import sys

import numpy as np
import pytest
import torch
from PIL import Image

from config import ROOT, ConfigError, load_config
from engine.figure import Grid, paint, plot_correlations, plot_dense, plot_generated, plot_matches
from engine.picture import DensePair, MatchedPair
from script import compare as compare_script
from script import figure as figure_script
from script.figures import FIGURES
from script.sweep_timestep import read_curves
from tests.test_test import evaluate
from utils.draw import QUERY, RIGHT, WRONG, find_format, render, save_figure
from utils.plot import plot_curves, plot_feature_colours
from utils.warp import CORNERS, inside, pixel_places, place_colours, warp_image

LONG = "CPM_pfpascal_stable-diffusion-2-1_Pair-DINO-Feat-G25-C50"
SIZE = (64, 48)


def make_image(seed=0, size=SIZE):
    return torch.rand(3, *size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def make_pair(n_points=3):
    points = torch.tensor([[5.0, 6.0], [40.0, 30.0], [20.0, 60.0]])[:n_points]
    hits = torch.tensor([True, False, True])[:n_points]
    return MatchedPair(
        make_image(0), make_image(1), "aeroplane", points, points, points + 4, hits, torch.rand(n_points, 6, 8)
    )


def make_dense(image=None, shift=0.0):
    image = make_image() if image is None else image
    places = pixel_places(image.shape[-2:], like=image)
    box = torch.tensor([8.0, 8.0, 40.0, 56.0])
    return DensePair(image, image, "boat", box, places + shift, torch.zeros(places.shape[:2]))


MEASURE = "PCK@0.1, kernelsoftmax, spair val all (%)"  # as long as sweep_timestep.py writes it


def colour_count(picture, hex_colour):
    rgb = np.array([int(hex_colour[i : i + 2], 16) for i in (1, 3, 5)])
    return int((np.abs(picture.astype(int) - rgb).max(axis=-1) <= 3).sum())


def build_all(names):
    """A figure of each kind with columns of these names."""
    generated = ("cat", (make_image(), make_image(1)), {name: [make_image(2), make_image(3)] for name in names})
    return {
        "matches": plot_matches([{name: make_pair() for name in names}] * 2),
        "correlation": plot_correlations([{name: make_pair() for name in names}] * 2, [0, 1]),
        "dense": plot_dense([{name: make_dense() for name in names}]),
        "generated": plot_generated([generated] * 2),
        "features": plot_feature_colours([make_image()] * 2, {name: [torch.rand(4, 6, 6)] * 2 for name in names}),
        "curves": plot_curves(
            {name: {0: 1.0, 50: 2.0} for name in names}, "timestep", "PCK@0.1, kernelsoftmax, spair val all (%)"
        ),
    }


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


def test_matches_show_right_and_wrong_and_the_score():
    pair = make_pair()
    both = render(plot_matches([{"text": pair}]))
    assert both.shape[2] == 3 and colour_count(both, RIGHT) > 300 and colour_count(both, WRONG) > 100
    texts = [text.get_text() for axes in plot_matches([{"text": pair}]).axes for text in axes.texts]
    assert texts == ["2/3"]


def test_correlation_marks_lie_on_their_points():
    pair = make_pair()
    figure = plot_correlations([{"text": pair}], [1])
    picture = render(figure)
    source, target, heat = figure.axes[:3]
    for axes, point, colour in ((source, pair.src_kps[1], QUERY), (heat, pair.pred_kps[1], WRONG)):
        x, y = axes.transData.transform(point.numpy())
        row, column = picture.shape[0] - 1 - round(y), round(x)
        patch = picture[row - 2 : row + 3, column - 2 : column + 3]
        assert colour_count(patch, colour) > 12
    ring = {tuple(line.get_xydata()[0]) for axes in (target, heat) for line in axes.lines}
    assert tuple(pair.trg_kps[1].tolist()) in ring


def test_panels_keep_the_images_aspect():
    for panel in Grid(["a"], [("b", 2), ("c", 1)], aspect=SIZE[1] / SIZE[0], bottom=0.1).axes[0]:
        box = panel.get_window_extent()
        assert box.width / box.height == pytest.approx(48 / 64, abs=1e-3)


def test_warp_of_an_identity_pair_is_the_image():
    image = make_image()
    places = pixel_places(SIZE, like=image)
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
    keep = torch.ones(SIZE, dtype=torch.bool)
    keep[30:] = False
    picture = paint(pair.trg_img, pair.points, pair.trg_box, keep).astype(int)
    coloured = np.ptp(picture, axis=2) > 8
    assert coloured[9:30, 9:40].mean() > 0.9
    coloured[8:30, 8:41] = False
    assert not coloured.any()


def test_saved_formats(tmp_path):
    figure = plot_matches([{"text": make_pair()}])
    heads = {"png": b"\x89PNG", "pdf": b"%PDF", "svg": b"<?xml"}
    for suffix, head in heads.items():
        path, again = tmp_path / f"a.{suffix}", tmp_path / f"b.{suffix}"
        save_figure(path, figure)
        save_figure(again, figure)
        assert path.read_bytes().startswith(head) and path.read_bytes() == again.read_bytes()
    assert Image.open(tmp_path / "a.png").info["dpi"][0] >= 150
    assert "true position" in (tmp_path / "a.svg").read_text()
    with pytest.raises(ValueError, match=r"must end in \.png, \.pdf, \.svg"):
        find_format("figure.jpg")


def draw(monkeypatch, world, output, kind, *flags, opts=()):
    """Run script/figure.py in this process; its exit status."""
    argv = ["figure.py", kind, *flags, *(["--opts", *world.opts(output, *opts)] if kind != "timestep" else [])]
    monkeypatch.setattr(sys, "argv", argv)
    return figure_script.main()


@pytest.mark.usefixtures("fresh_accelerator")
@pytest.mark.parametrize(
    ("kind", "flags"),
    [
        ("matches", ["--prompts", "text", "empty"]),
        ("correlation", ["--prompts", "text", "--pairs", "2", "--points", "0", "3"]),
        ("dense", ["--column", "DIFT", "PROMPT.TYPE", "text", "TEST.TIMESTEP", "261", "--grid", "12", "--pairs", "1"]),
        ("generate", ["--prompts", "text", "--seeds", "3", "--pairs", "1"]),
        ("features", ["--prompts", "text", "empty", "--pairs", "1"]),
    ],
)
def test_each_kind_from_the_command_line(monkeypatch, world, tmp_path, kind, flags):
    assert draw(monkeypatch, world, tmp_path, kind, *flags, opts=["GENERATE.STEPS", "2"]) == 0
    with Image.open(tmp_path / "figure" / f"{kind}_spair.png") as image:
        assert min(image.size) > 150 and image.info["dpi"][0] >= 150
    assert kind in FIGURES


@pytest.mark.usefixtures("fresh_accelerator")
def test_only_the_images_of_the_chosen_pairs_are_computed(world, tmp_path):
    from engine.build import build_test

    cfg = load_config(None, world.opts(tmp_path), {"PROMPT.TYPE": "text"})
    _, pairs, _ = build_test(cfg, lambda pairs: [2])
    assert [record.category for record in pairs.benchmark] == ["cat"] and len(pairs) == 1
    cached = [ref.identifier in pairs.caches["posterior"] for ref in pairs.benchmark.images()]
    everything = type(pairs.benchmark)(pairs.benchmark.root, "test", "all", tmp_path / "index")
    assert cached == [True, True] and len(everything.images()) == 6
    assert sum(ref.identifier in pairs.caches["posterior"] for ref in everything.images()) == 2


@pytest.mark.usefixtures("fresh_accelerator")
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--prompts", "text", "--output", "a.jpg"], "--output a.jpg: a figure's name must end in"),
        ([], "nothing to show: give --prompts or --column"),
        (["--prompts", "text", "text"], "two columns have the same title"),
        (["--prompts", "text", "--pair_ids", "nothing"], "no pair nothing in this split; one is 000001-"),
        (["--column", "DIFT", "PROMPT.WHAT", "text"], "unknown key PROMPT.WHAT"),
    ],
)
def test_mistakes_are_named(monkeypatch, world, tmp_path, capsys, flags, message):
    assert draw(monkeypatch, world, tmp_path, "matches", *flags) == 2
    assert message in capsys.readouterr().err


@pytest.mark.usefixtures("fresh_accelerator")
def test_unusable_points_and_grids_are_refused(monkeypatch, world, tmp_path, capsys):
    flags = ["--prompts", "text", "--pairs", "1"]
    assert draw(monkeypatch, world, tmp_path, "correlation", *flags, "--points", "99") == 2
    assert "the rows have [5] keypoints" in capsys.readouterr().err
    assert draw(monkeypatch, world, tmp_path, "dense", *flags, "--grid", "1") == 2
    assert "--grid must be at least 2, got 1" in capsys.readouterr().err


def test_timestep_curves_are_read_sorted_and_merged(monkeypatch, world, tmp_path, capsys):
    first, second = tmp_path / "a.csv", tmp_path / "b.csv"
    first.write_text("prompt,timestep,pck\ntext,261,18.5\ntext,0,20.0\n")
    second.write_text("prompt,timestep,pck\nempty,50,10\ntext,50,21.0\n")
    assert read_curves(first) == {"text": {0: 20.0, 261: 18.5}}
    output = tmp_path / "curves.svg"
    assert draw(monkeypatch, world, tmp_path, "timestep", str(first), str(second), "--output", str(output)) == 0
    assert "empty" in output.read_text()
    second.write_text("prompt,pck\ntext,21.0\n")
    assert draw(monkeypatch, world, tmp_path, "timestep", str(second), "--output", str(output)) == 2
    assert "expected the columns prompt,timestep,pck" in capsys.readouterr().err


def test_every_kind_is_in_the_page_of_figures():
    page = (ROOT / "docs" / "figures.md").read_text()
    assert all(f"script/figure.py {kind}" in page for kind in FIGURES)


@pytest.mark.usefixtures("fresh_accelerator")
def test_tested_prompts_are_compared_in_a_table_and_on_the_same_pairs(monkeypatch, world, tmp_path, capsys):
    flags = ["--prompts", "text", "empty", "--pairs", "1", "--opts", *world.opts(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["compare.py", *flags])
    assert compare_script.main() == 2
    assert "run test.py with --prompt_type text" in capsys.readouterr().err
    summaries = [evaluate(world, tmp_path, prompt)["summary"] for prompt in ("text", "empty")]
    capsys.readouterr()
    assert compare_script.main() == 0
    lines = capsys.readouterr().out.splitlines()[-2:]
    for line, prompt, summary in zip(lines, ("text", "empty"), summaries, strict=True):
        values = [f"{100 * row['all']:.2f}" for row in summary["pck"]["kernelsoftmax"].values()]
        assert line.split() == [prompt, *values]
    names = {path.name for path in (tmp_path / "figure").iterdir()}
    assert names == {"0_matches_text.png", "0_matches_empty.png", "0_correlation.png"}


@pytest.mark.parametrize("flags", [[], ["--prompts", "text"]], ids=["none", "prompt"])
def test_a_matcher_without_a_prompt_is_a_column_called_by_its_name(flags, monkeypatch):
    argv = ["figure.py", "matches", "--config_file", "config/mini/dinov2.yaml", *flags]
    monkeypatch.setattr(sys, "argv", argv)
    assert list(figure_script.load_columns(figure_script.parse_args())) == ["dinov2"]


def test_a_sweep_that_is_no_text_is_refused_in_few_words(tmp_path):
    (tmp_path / "sweep.csv").write_bytes(b"\xff" * 10_000)
    with pytest.raises(ConfigError, match="expected the columns") as refused:
        read_curves(tmp_path / "sweep.csv")
    assert len(str(refused.value)) < 300
