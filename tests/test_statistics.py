"""Statistics of per-pair results: known answers, and parity with plain loops."""

import itertools
import math
import time

import numpy as np
import pytest
import torch

from engine.result import read_pairs_csv, write_pairs_csv
from utils.pck import PCKEvaluator, alpha_key, judge_errors, summarise
from utils.statistics import (
    ALPHAS,
    Measure,
    _as_arrays,
    _flip,
    _resample,
    bootstrap,
    break_down,
    compare,
    compute_curve,
    compute_pck,
    judge_records,
    spread,
)

MEASURES = [Measure("nn", 0.1, by, average) for by in ("image", "point") for average in ("pair", "category")]


def make_records(count=40, seed=0, scale=8.0, empty=()):
    """Records of random errors, judged as the evaluator does; categories of unequal size."""
    rng = np.random.default_rng(seed)
    shapes = np.random.default_rng(1)  # the same pairs for every seed
    records = []
    for index in range(count):
        n_points = 0 if index in empty else int(shapes.integers(1, 9))
        threshold = float(np.float32(shapes.uniform(50, 200)))
        errors = rng.exponential(scale, n_points).astype(np.float32)
        hits = judge_errors(torch.tensor(errors), torch.tensor(threshold), (0.05, 0.1)).sum(dim=0).tolist()
        records.append(
            {
                "index": index,
                "pair_id": f"p{index}",
                "category": "cat" if index % 4 else "dog",
                "src_identifier": "a",
                "trg_identifier": "b",
                "protocol": "resized",
                "n_points": n_points,
                "flags": {"mirror": 0, "viewpoint_variation": index % 3, "truncation": index % 2},
                "hits": {"nn": {"0.05": hits[0], "0.1": hits[1]}},
                "threshold": threshold,
                "errors": {"nn": errors.tolist()},
            }
        )
    return records


def pairs_of(*shares, n_points=4):
    """Records with hits = share x n_points."""
    records = make_records(len(shares))
    for record, share in zip(records, shares, strict=True):
        record |= {"n_points": n_points, "hits": {"nn": {"0.1": round(share * n_points)}}}
    return records


@pytest.mark.parametrize("measure", MEASURES)
def test_recomputed_from_the_file_equals_the_summary_exactly(tmp_path, measure):
    records = make_records(empty=(3, 5))
    expected = summarise(records, ["nn"], [0.05, 0.1], measure.by, measure.average)["pck"]["nn"]
    write_pairs_csv(tmp_path / "pairs.csv", records)
    again = read_pairs_csv(tmp_path / "pairs.csv")
    assert compute_pck(again, measure) == expected["0.1"]["all"]
    curve = compute_curve(again, measure, (0.05, 0.1))
    assert curve == {0.05: expected["0.05"]["all"], 0.1: expected["0.1"]["all"]}


def test_curve_equals_an_evaluator_with_those_alphas():
    g = torch.Generator().manual_seed(0)
    batch = {
        "index": torch.arange(50),
        "pair_id": [str(i) for i in range(50)],
        **{key: ["x"] * 50 for key in ("category", "src_identifier", "trg_identifier")},
        "trg_kps": torch.rand(50, 6, 2, generator=g) * 300,
        "kps_mask": torch.rand(50, 6, generator=g) > 0.3,
        "pck_threshold": 100 + 200 * torch.rand(50, generator=g),
    }
    prediction = {"nn": batch["trg_kps"] + 20 * torch.randn(50, 6, 2, generator=g)}
    few, all_alphas = PCKEvaluator(["nn"], [0.1]), PCKEvaluator(["nn"], ALPHAS)
    for evaluator in (few, all_alphas):
        evaluator.update(batch, prediction)
    expected = [record["hits"] for record in all_alphas.records()]
    assert [record["hits"] for record in judge_records(few.records(), "nn", ALPHAS)] == expected
    curve = compute_curve(few.records(), Measure("nn"))
    assert list(curve) == list(ALPHAS) and sorted(curve.values()) == list(curve.values())


def test_an_error_on_the_threshold_counts():
    record = make_records(1)[0] | {"n_points": 2, "threshold": 300.0, "errors": {"nn": [30.0, 30.01]}}
    assert judge_records([record], "nn", [0.1])[0]["hits"] == {"nn": {"0.1": 1}}


def test_results_without_errors_are_refused():
    record = make_records(1)[0]
    del record["errors"]
    with pytest.raises(ValueError, match="no errors of nn: run test.py again"):
        compute_curve([record], Measure("nn"))


def test_breakdown_by_flag():
    records = make_records(30, empty=(0,))
    table = break_down(records, Measure("nn"))
    assert list(table) == ["viewpoint_variation", "truncation"]
    for flag, levels in (("viewpoint_variation", ("easy", "medium", "hard")), ("truncation", ("none", "source"))):
        for value, level in enumerate(levels):
            shares = [
                r["hits"]["nn"]["0.1"] / r["n_points"] for r in records if r["flags"][flag] == value if r["n_points"]
            ]
            assert table[flag][level] == (len(shares), pytest.approx(sum(shares) / len(shares)))
    for record in records:
        record["flags"] = dict.fromkeys(record["flags"], -1)
    assert break_down(records, Measure("nn")) == {}


@pytest.mark.parametrize("measure", MEASURES)
def test_bootstrap_draws_equal_a_loop(measure):
    records = [record for record in make_records(12, empty=(3,)) if record["n_points"]]
    draws = _resample(*_as_arrays(records, measure), draws=5, seed=3)
    rng = np.random.default_rng(3)
    names = ["all"] if measure.average == "pair" else ["cat", "dog"]
    expected = np.zeros(5)
    for name in names:
        group = [record for record in records if name in ("all", record["category"])]
        for draw, chosen in enumerate(rng.integers(len(group), size=(5, len(group)))):
            picked = [group[i] for i in chosen]
            if measure.by == "image":
                value = sum(r["hits"]["nn"]["0.1"] / r["n_points"] for r in picked) / len(picked)
            else:
                value = sum(r["hits"]["nn"]["0.1"] for r in picked) / sum(r["n_points"] for r in picked)
            expected[draw] += value / len(names)
    assert draws == pytest.approx(expected)


def test_bootstrap_interval_has_the_width_of_the_normal_one():
    records = pairs_of(*[0.0, 1.0] * 200)
    interval = bootstrap(records, Measure("nn"), draws=4000)
    half = 1.96 * 0.5 / math.sqrt(400)
    assert interval.value == 0.5
    assert (interval.high - interval.low) / 2 == pytest.approx(half, rel=0.06)
    assert bootstrap(records, Measure("nn")) == bootstrap(records, Measure("nn"))
    certain = bootstrap(pairs_of(1.0, 1.0, 1.0), Measure("nn"))
    assert (certain.low, certain.value, certain.high) == (1, 1, 1)
    assert bootstrap(make_records(3, empty=(0, 1, 2)), Measure("nn")) is None


@pytest.mark.parametrize("measure", MEASURES)
def test_value_of_the_interval_is_the_summary(measure):
    records = make_records(empty=(1,))
    interval = bootstrap(records, measure, draws=200)
    assert interval.value == compute_pck(records, measure) and interval.low <= interval.value <= interval.high


@pytest.mark.parametrize("measure", MEASURES)
def test_swaps_equal_a_loop_over_records(measure):
    a, b = make_records(10, seed=1), make_records(10, seed=2)
    gains_a, weights, groups = _as_arrays(a, measure)
    gains_b, _, _ = _as_arrays(b, measure)
    flipped = _flip(gains_b - gains_a, weights, groups, draws=6, seed=0)
    signs = np.random.default_rng(0).integers(2, size=(6, 10), dtype=np.int8)
    for value, keep in zip(flipped, signs, strict=True):
        swapped = [(x, y) if k else (y, x) for x, y, k in zip(a, b, keep, strict=True)]
        left, right = zip(*swapped, strict=True)
        assert value == pytest.approx(compute_pck(right, measure) - compute_pck(left, measure))


def test_p_value_near_that_of_all_swaps():
    a, b = pairs_of(0.25, 0.5, 0.5, 0.75, 0.0, 0.25, 1.0, 0.5), pairs_of(0.5, 0.5, 1.0, 1.0, 0.25, 0.75, 0.75, 0.75)
    found = compare(a, b, Measure("nn"), draws=20000)
    steps = [y["hits"]["nn"]["0.1"] - x["hits"]["nn"]["0.1"] for x, y in zip(a, b, strict=True)]
    swaps = [
        abs(sum(s * d for s, d in zip(signs, steps, strict=True))) for signs in itertools.product((1, -1), repeat=8)
    ]
    exact = sum(swap >= abs(sum(steps)) for swap in swaps) / len(swaps)
    assert found.p_value == pytest.approx(exact, abs=0.01)
    assert found.difference.value == pytest.approx(sum(steps) / 4 / 8) and found.pairs == 8


def test_equal_methods_do_not_differ_and_unequal_ones_do():
    a = make_records(300, seed=1)
    same = compare(a, a, Measure("nn"), draws=200)
    assert same.p_value == 1 and same.difference.low == same.difference.value == same.difference.high == 0
    better = compare(a, make_records(300, seed=2, scale=4.0), Measure("nn"))
    assert better.p_value < 0.001 and better.difference.low > 0
    worse = compare(make_records(300, seed=2, scale=4.0), a, Measure("nn"))
    assert worse.difference.value == -better.difference.value


def test_order_of_rows_does_not_matter_but_other_pairs_do():
    a, b = make_records(20, seed=1), make_records(20, seed=2)
    assert compare(a, b[::-1], Measure("nn"), draws=50) == compare(a, b, Measure("nn"), draws=50)
    with pytest.raises(ValueError, match="not of the same pairs: 1 pairs"):
        compare(a, b[:-1], Measure("nn"))
    b[4] = b[4] | {"protocol": "original"}
    with pytest.raises(ValueError, match="'p4' was not judged alike"):
        compare(a, b, Measure("nn"))


def test_spread_over_seeds():
    found = spread([0.70, 0.72, 0.74])
    assert (found.mean, found.std, found.count) == (pytest.approx(0.72), pytest.approx(0.02), 3)
    assert found.interval.high - found.mean == pytest.approx(4.302653 * 0.02 / math.sqrt(3))
    alone = spread([0.5])
    assert (alone.mean, alone.std, alone.interval, alone.count) == (0.5, None, None, 1)


def test_the_whole_spair_test_takes_seconds():
    records = [make_records(1)[0] | {"index": i, "pair_id": str(i)} for i in range(12234)]
    start = time.process_time()
    bootstrap(records, Measure("nn", 0.1))
    assert alpha_key(0.1) in records[0]["hits"]["nn"] and time.process_time() - start < 5
