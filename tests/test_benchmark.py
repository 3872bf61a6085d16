"""script/benchmark.py on tiny networks: both sides agree, a row is printed, mistakes are explained."""

from collections import Counter

import pandas as pd
import pytest
import torch

from script import benchmark
from script.speed import reference, sides

pytestmark = pytest.mark.usefixtures("fresh_accelerator")


def call(monkeypatch, *arguments):
    """The exit status of the command line."""
    monkeypatch.setattr("sys.argv", ["benchmark.py", *map(str, arguments)])
    try:
        return benchmark.main()
    except SystemExit as stop:
        return stop.code


def tiny(world, *more):
    """Flags and settings for the tiny networks."""
    flags = ["--network", world.root / "sd", "--pairs", 4, "--repeats", 2]
    opts = ["CONDITION.DINO_FOLDER", world.root / "dino", "PROMPT.CPM", "Pair-DINO-Feat-G3-C4", "NETWORK.NAME", "tiny"]
    opts += ["DATASET.NUM_WORKERS", 0, "DATASET.IMAGE_SIZE", "[64,64]", "TRAIN.BATCH_SIZE", 2, "DEVICE", "cpu"]
    return [*flags, *opts, "TEST.ENSEMBLE", 2, *more]


@pytest.mark.parametrize(
    ("mode", "unit", "counted"),
    [
        ("train", "pairs", True),
        ("test", "pairs", True),
        ("features", "images", True),
        ("localise", "pairs", False),
        ("loader", "pairs", False),
    ],
)
def test_both_sides_agree_and_are_timed(monkeypatch, capsys, world, mode, unit, counted):
    assert call(monkeypatch, mode, *tiny(world)) == 0
    lines = capsys.readouterr().out.strip().splitlines()
    assert "equal numbers: yes" in lines
    cells = [cell.strip() for cell in lines[-1].strip("|").split("|")]
    assert cells[0].startswith(f"`python script/benchmark.py {mode} --network")
    assert len(cells) == lines[-3].count("|") - 1 and all(f" {unit}/s" in cell for cell in cells[1:3])
    assert (cells[4] != "-") == counted and cells[5] == "-"
    if counted:
        ours, plain = map(float, cells[4].split(" / "))
        assert 0 < ours < plain


def test_layers_of_both_sides_agree(monkeypatch, capsys, world):
    sizes = ("FEATURES.SIZE", "[96, 64]", "FEATURES.WINDOW", 64, "FEATURES.STRIDE", 64, "METHOD.DINO_SIZE", "[56, 56]")
    taps = ("FEATURES.TAPS", "[up2, up1.attentions.1, up0.resnets.1]", "METHOD.DINO_FOLDER", world.root / "dino")
    assert call(monkeypatch, "layers", *tiny(world, *sizes, *taps)) == 0
    assert "equal numbers: yes" in capsys.readouterr().out


@pytest.mark.parametrize("mode", ["index", "cache"])
def test_files_are_read_alike(monkeypatch, capsys, mode):
    assert call(monkeypatch, mode, "--network", "sd2-1-random", "--scale", 1000, "--repeats", 1) == 0
    assert "equal numbers: yes" in capsys.readouterr().out


def test_a_post_processor_learns_the_same_from_the_rows_it_needs(monkeypatch, capsys):
    assert call(monkeypatch, "head", "--scale", 5, "--pairs", 1, "--repeats", 1) == 0
    assert "equal numbers: yes" in capsys.readouterr().out
    assert call(monkeypatch, "head", "--scale", 7, "--pairs", 1) == 2
    assert "60 / SCALE must be a multiple of 4" in capsys.readouterr().err


def test_arithmetic_is_counted_without_running_anything(monkeypatch, capsys, world):
    assert call(monkeypatch, "count", *tiny(world)) == 0
    printed = capsys.readouterr().out
    assert all(
        f"| {name}" in printed for name in ("VAE encoder", "UNet to up-block 1", "training pair", "test pair, 2")
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fly"], "invalid choice: 'fly'"),
        (["train", "--network", "/no/such"], "there is no such folder"),
        (["train", "--repeats", "0"], "at least 1"),
        (["train", "--network", "sd2-1-random", "DATASET.IMAGE_SIZE", "[100,100]"], "multiples of 64 px"),
        (["train", "--network", "sd2-1-random", "NETWORK.COLOUR", "red"], "unknown key NETWORK.COLOUR"),
        (["train", "--network", "sd2-1-random", "PROMPT.KIND", "Single"], "PROMPT.KIND CPM"),
    ],
)
def test_wrong_arguments_are_explained(monkeypatch, capsys, arguments, message):
    assert call(monkeypatch, *arguments) == 2
    assert message in capsys.readouterr().err


def test_disagreement_is_a_failure(monkeypatch, world, capsys):
    true_hits = reference.count_hits
    monkeypatch.setattr(reference, "count_hits", lambda *judge: [hits + 1 for hits in true_hits(*judge)])
    assert call(monkeypatch, "localise", *tiny(world)) == 1
    assert "equal numbers: NO" in capsys.readouterr().out


def test_rounds_take_turns_after_warm_up():
    order = []
    ours, plain = (sides.Side(lambda name=name: order.append(name), 3) for name in "ab")
    benchmark.time_sides(sides.Comparison("pairs", ours, plain, {}), 2, torch.device("cpu"))
    assert order == ["a", "b", "a", "b", "a", "b"] and len(ours.rates) == len(plain.rates) == 2


def test_median_and_quartiles():
    assert benchmark.spread([4.0, 1.0, 2.0, 3.0, 5.0]) == "3 (2 to 4)"
    assert benchmark.spread([7.0]) == "7 (7 to 7)"


def test_hits_are_compared_by_share():
    hits = Counter({"n_points": 4, "nn@0.1": 3})
    assert sides.compare_hits(pd.DataFrame({"n_points": [3, 1], "nn@0.1": [2, 0]}), hits) == 0.25
