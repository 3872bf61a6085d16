"""script/benchmark.py on tiny networks: both sides agree, results have what is promised, mistakes are explained."""

import json

import pytest
import torch

from loss import build_loss
from script import benchmark
from script.speed import measure, reference
from script.speed.report import MARKDOWN_HEAD
from utils.localise import FeatureSimilarity, localise

pytestmark = pytest.mark.usefixtures("fresh_accelerator")
SIDE_KEYS = {"per_s", "peak_memory_gib"}
COUNTED_KEYS = {"tflop_per_unit", "tflops", "share_of_peak"}
KEYS = {"mode", "network", "unit", "sides", "ratio", "check", "matmul_peak_tflops", "machine", "command"}


def call(monkeypatch, *arguments):
    """The exit status of the command line."""
    monkeypatch.setattr("sys.argv", ["benchmark.py", *map(str, arguments)])
    try:
        return benchmark.main()
    except SystemExit as stop:
        return stop.code


def measured(monkeypatch, tmp_path, *arguments):
    """The JSON result of a command that must succeed."""
    path = tmp_path / "result.json"
    assert call(monkeypatch, *arguments, "--repeats", 2, "--output", path) == 0
    return json.loads(path.read_text())


def tiny(world, *more):
    """Flags and settings for the tiny networks."""
    flags = ["--network", world.root / "sd", "--image_size", 64, "--batch_size", 2, "--pairs", 4, "--device", "cpu"]
    opts = ["CONDITION.DINO_FOLDER", world.root / "dino", "PROMPT.CPM", "Pair-DINO-Feat-G3-C4"]
    return [*flags, *more, *opts, "NETWORK.NAME", "tiny", "DATASET.NUM_WORKERS", 0]


@pytest.mark.parametrize(
    ("mode", "more", "unit"),
    [
        ("train", ("--steps", 1), "pairs"),
        ("test", ("--ensemble", 2), "pairs"),
        ("test", ("--ensemble", 2, "--prompt", "text"), "pairs"),
        ("features", ("--ensemble", 1), "images"),
    ],
)
def test_networks_agree_and_are_measured(monkeypatch, tmp_path, world, mode, more, unit):
    result = measured(monkeypatch, tmp_path, mode, *tiny(world, *more))
    assert result.keys() >= KEYS and result["unit"] == unit and result["check"]["passed"]
    for side in result["sides"].values():
        assert side.keys() >= SIDE_KEYS and len(side["per_s"]["all"]) == 2
        assert side["per_s"]["q1"] <= side["per_s"]["median"] <= side["per_s"]["q3"]
    if "text" not in more:
        ours, plain = result["sides"]["ours"], result["sides"]["reference"]
        assert ours.keys() >= COUNTED_KEYS and ours["tflop_per_unit"] < plain["tflop_per_unit"]
    assert {"packages", "device", "threads", "load_average", "commit"} <= result["machine"].keys()
    assert result["settings"]["image_size"] == [64, 64]
    assert mode != "train" or result["predicted_peak_gib"] > 0 < result["loader_pairs_per_s"]["ours_over_training"]


def test_localisers_agree(monkeypatch, tmp_path, world, capsys):
    result = measured(monkeypatch, tmp_path, "localise", *tiny(world, "--markdown"))
    assert result["check"]["passed"] and result["maps"] == [24, 8, 8]
    row = capsys.readouterr().out.strip().splitlines()[-1]
    assert row.count("|") == MARKDOWN_HEAD.splitlines()[0].count("|")
    assert row.startswith("| `python script/benchmark.py localise")
    assert "--markdown" not in row and "--output" not in row


def test_loaders_read_the_same_conditions(monkeypatch, tmp_path, world):
    result = measured(monkeypatch, tmp_path, "loader", *tiny(world))
    assert result["check"]["passed"] and result["unit"] == "pairs" and result["settings"]["batch_size"] == 2


def test_index_and_cache_agree(monkeypatch, tmp_path):
    index = measured(monkeypatch, tmp_path, "index", "--scale", 1000)
    assert index["check"]["passed"] and index["pairs"] == 53 + 5 + 12
    assert {"cold", "warm", "reference"} == index["seconds"].keys()
    cache = measured(monkeypatch, tmp_path, "cache", "--network", "sd2-1-random", "--scale", 300)
    assert cache["check"]["passed"] and cache["shape"] == [257, 768] and cache["rows"] == 6


def test_profile_and_counts_are_tables(monkeypatch, world, capsys):
    assert call(monkeypatch, "train", "--profile", *tiny(world, "--steps", 1)) == 0
    printed = capsys.readouterr().out
    assert all(f"| {stage} |" in printed for stage in ("data", "UNet, forward", "loss", "backward", "optimiser"))
    assert call(monkeypatch, "train", "--count-only", *tiny(world)) == 0
    printed = capsys.readouterr().out
    assert all(
        text in printed for text in ("UNet to up-block 1, per image", "bytes of gradient", "with NETWORK.RECOMP")
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fly"], "invalid choice: 'fly'"),
        (["train", "--network", "/no/such"], "there is no such folder"),
        (["test", "--profile"], "go with train"),
        (["train", "--repeats", "0"], "at least 1"),
        (["train", "--network", "sd2-1-random", "--image_size", "100"], "multiples of 64 px"),
        (["train", "--network", "sd2-1-random", "NETWORK.COLOUR", "red"], "unknown key NETWORK.COLOUR"),
        (["train", "--network", "sd2-1-random", "PROMPT.KIND", "Single"], "PROMPT.KIND CPM"),
    ],
)
def test_wrong_arguments_are_explained(monkeypatch, capsys, arguments, message):
    assert call(monkeypatch, *arguments) == 2
    assert message in capsys.readouterr().err


def test_disagreement_is_a_failure(monkeypatch, tmp_path, world, capsys):
    true_hits = reference.count_hits
    monkeypatch.setattr(reference, "count_hits", lambda *judge: [hits + 1 for hits in true_hits(*judge)])
    assert call(monkeypatch, "localise", "--repeats", 1, *tiny(world)) == 1
    assert "equal numbers: NO" in capsys.readouterr().out


def test_reference_loss_is_the_loss():
    generator = torch.Generator().manual_seed(0)
    src_feat, trg_feat = torch.randn(2, 2, 8, 6, 5, generator=generator, dtype=torch.float64)
    src_kps, trg_kps = 40 * torch.rand(2, 2, 4, 2, generator=generator, dtype=torch.float64)
    mask = torch.tensor([[True] * 4, [True, True, False, False]])
    settings = {"beta": 0.04, "kernel_size": 7, "sigma": 1.5}
    loss_fn = build_loss("kernel_smoothed_cross_entropy", **settings)
    ours = loss_fn(FeatureSimilarity(src_feat, trg_feat), src_kps, trg_kps, mask, (48, 41))
    maps = [(src_feat[b : b + 1], trg_feat[b : b + 1]) for b in range(2)]
    plain = reference.compute_loss(maps, src_kps, trg_kps, [4, 2], (48, 41), **settings)
    assert torch.allclose(ours.mean(), plain, rtol=1e-9)


def test_reference_localisers_are_the_localisers():
    generator = torch.Generator().manual_seed(1)
    src_feat, trg_feat = torch.randn(2, 1, 8, 6, 5, generator=generator, dtype=torch.float64)
    kps = 40 * torch.rand(1, 7, 2, generator=generator, dtype=torch.float64)
    ours = localise(FeatureSimilarity(src_feat, trg_feat), kps, (48, 41), beta=0.1, sigma=2.0)
    plain = reference.localise(src_feat, trg_feat, kps[0], (48, 41), 0.1, 2.0)
    for name, predicted in ours.items():
        assert torch.allclose(predicted[0], plain[name], atol=1e-9), name


def test_rounds_take_turns_after_warm_up():
    order = []

    def side(name):
        return measure.Side(lambda: order.append(name) or 3)

    sides = {"a": side("a"), "b": side("b")}
    measure.interleave(sides, repeats=2, warmup=1, device=torch.device("cpu"))
    assert order == ["a", "b", "a", "b", "a", "b"]
    assert all(len(side.rates) == 2 and side.peak_bytes > 0 for side in sides.values())


def test_quartiles():
    assert measure.quartiles([4.0, 1.0, 2.0, 3.0, 5.0]) == {"median": 3.0, "q1": 2.0, "q3": 4.0}
    assert measure.quartiles([7.0]) == {"median": 7.0, "q1": 7.0, "q3": 7.0}
