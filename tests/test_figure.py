"""script/figure.py and script/compare.py from start to finish."""

import sys

import pytest
from PIL import Image

from config import ROOT, load_config
from script import figure as figure_script
from script.figure import FIGURES
from tests.command import call
from tests.test_test import evaluate

pytestmark = pytest.mark.usefixtures("fresh_accelerator")


def draw(world, output, kind, *flags, opts=()):
    """Run script/figure.py in this process; its exit status."""
    more = ("--opts", *world.opts(output, *opts)) if kind != "timestep" else ()
    return call("script/figure.py", kind, *flags, *more)


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
def test_each_kind_from_the_command_line(world, tmp_path, kind, flags):
    assert draw(world, tmp_path, kind, *flags, opts=["GENERATE.STEPS", "2"]) == 0
    with Image.open(tmp_path / "figure" / f"{kind}_spair.png") as image:
        assert min(image.size) > 150 and image.info["dpi"][0] >= 150


def test_only_the_images_of_the_chosen_pairs_are_computed(world, tmp_path):
    from engine.build import build_test

    cfg = load_config(None, world.opts(tmp_path), {"PROMPT.TYPE": "text"})
    _, pairs, _ = build_test(cfg, lambda pairs: [2])
    assert [record.category for record in pairs.benchmark] == ["cat"] and len(pairs) == 1
    cached = [ref.identifier in pairs.caches["posterior"] for ref in pairs.benchmark.images()]
    everything = type(pairs.benchmark)(pairs.benchmark.root, "test", "all", tmp_path / "index")
    assert cached == [True, True] and len(everything.images()) == 6
    assert sum(ref.identifier in pairs.caches["posterior"] for ref in everything.images()) == 2


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--prompts", "text", "--output", "a.gif"], "--output a.gif: the name must end in"),
        ([], "nothing to show: give --prompts or --column"),
        (["--prompts", "text", "text"], "two columns have the same title"),
        (["--prompts", "text", "--pair_ids", "nothing"], "no pair nothing in this split; one is 000001-"),
        (["--column", "DIFT", "PROMPT.WHAT", "text"], "unknown key PROMPT.WHAT"),
    ],
)
def test_mistakes_are_named(world, tmp_path, capsys, flags, message):
    assert draw(world, tmp_path, "matches", *flags) == 2
    assert message in capsys.readouterr().err


def test_unusable_points_and_grids_are_refused(world, tmp_path, capsys):
    flags = ["--prompts", "text", "--pairs", "1"]
    assert draw(world, tmp_path, "correlation", *flags, "--points", "99") == 2
    assert "the rows have [5] keypoints" in capsys.readouterr().err
    assert draw(world, tmp_path, "dense", *flags, "--grid", "1") == 2
    assert "--grid must be at least 2, got 1" in capsys.readouterr().err


def test_timestep_curves_are_drawn_from_results(world, tmp_path, capsys):
    for prompt, timestep in (("text", "50"), ("text", "261"), ("empty", "50")):
        evaluate(world, tmp_path, prompt, "TEST.TIMESTEP", timestep)
    output = tmp_path / "curves.svg"
    assert draw(world, tmp_path, "timestep", str(tmp_path), "--output", str(output)) == 0
    assert "empty" in output.read_text()
    evaluate(world, tmp_path, "text", "TEST.ENSEMBLE", "1")
    assert draw(world, tmp_path, "timestep", str(tmp_path), "--output", str(output)) == 2
    assert "another result of text at t = 50" in capsys.readouterr().err


def test_every_kind_is_in_the_page_of_figures():
    page = (ROOT / "docs" / "figures.md").read_text()
    assert all(f"script/figure.py {kind}" in page for kind in FIGURES)


def test_tested_prompts_are_compared_in_a_table_and_on_the_same_pairs(world, tmp_path, capsys):
    flags = ["--prompts", "text", "empty", "--pairs", "1", "--opts", *world.opts(tmp_path)]
    assert call("script/compare.py", *flags) == 2
    assert "run test.py --prompt_type text with the same settings" in capsys.readouterr().err
    summaries = [evaluate(world, tmp_path, prompt)["summary"] for prompt in ("text", "empty")]
    capsys.readouterr()
    assert call("script/compare.py", *flags) == 0
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


def test_a_figure_shows_a_pair_as_its_images_are_on_disk(world, tmp_path):
    """The size of each image goes with it, so that panels can have its aspect ratio."""
    from engine.build import build_test
    from engine.picture import match_pair

    cfg = load_config(None, world.opts(tmp_path), {"PROMPT.TYPE": "text"})
    accelerator, pairs, matcher = build_test(cfg, lambda pairs: [0])
    pair, record = match_pair(cfg, matcher, pairs, 0, accelerator.device), pairs.benchmark[0]
    assert (pair.src_size, pair.trg_size) == (record.src.size, record.trg.size)
    assert record.src.size[0] != record.src.size[1] and pair.src_img.shape[-2:] == (32, 32)


def test_long_figures_say_how_far_they_are(world, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("utils.progress.LINE_EVERY", 0.0)
    assert draw(world, tmp_path, "matches", "--prompts", "text", "--pairs", "3") == 0
    assert "drawing pairs under text: " in capsys.readouterr().err
