"""Statistics of per-pair scores: known answers, and parity with plain loops."""

import itertools
import math
import time

import numpy as np
import pandas as pd
import pytest
import torch

from engine.result import read_scores, write_scores
from utils.pck import PCKEvaluator, judge_errors, summarise
from utils.statistics import (
    ALPHAS,
    Measure,
    bootstrap,
    break_down,
    compare,
    compute_curve,
    compute_pck,
    count_hits,
    select_common,
    spread,
)

MEASURES = [Measure("nn", 0.1, by, average) for by in ("image", "point") for average in ("pair", "category")]


def make_scores(count=40, seed=0, scale=8.0, empty=()):
    """Scores of random errors, judged as the evaluator does; categories of unequal size."""
    rng = np.random.default_rng(seed)
    shapes = np.random.default_rng(1)  # the same pairs for every seed
    rows = []
    for index in range(count):
        n_points = 0 if index in empty else int(shapes.integers(1, 9))
        threshold = np.float32(shapes.uniform(50, 200))
        errors = rng.exponential(scale, n_points).astype(np.float32)
        hits = judge_errors(torch.tensor(errors), torch.tensor(threshold), (0.05, 0.1)).sum(dim=0).tolist()
        row = {"index": index, "pair_id": f"p{index}", "category": "cat" if index % 4 else "dog"}
        row |= {"src_identifier": "a", "trg_identifier": "b", "protocol": "resized", "n_points": n_points}
        row |= {"flag:mirror": 0, "flag:viewpoint_variation": index % 3, "flag:truncation": index % 2}
        rows.append(row | {"nn@0.05": hits[0], "nn@0.1": hits[1], "threshold": threshold, "error:nn": errors})
    return pd.DataFrame(rows)


def pairs_of(*shares, n_points=4):
    """Scores with hits = share x n_points."""
    hits = [round(share * n_points) for share in shares]
    return make_scores(len(shares)).assign(**{"n_points": n_points, "nn@0.1": hits})


def plain_pck(rows, by):
    if by == "image":
        return sum(hits / points for hits, points in rows) / len(rows)
    return sum(hits for hits, _ in rows) / sum(points for _, points in rows)


def plain_groups(scores, average):
    """Lists of (hits, points): one, or one for each category."""
    groups = {}
    for category, hits, points in zip(scores["category"], scores["nn@0.1"], scores["n_points"], strict=True):
        if points:
            groups.setdefault("" if average == "pair" else category, []).append((hits, points))
    return list(groups.values())


@pytest.mark.parametrize("measure", MEASURES)
def test_recomputed_from_the_file_equals_the_summary_exactly(tmp_path, measure):
    scores = make_scores(empty=(3, 5))
    expected = summarise(scores, ["nn"], [0.05, 0.1], measure.by, measure.average)["pck"]["nn"]
    write_scores(tmp_path / "pairs.csv", scores)
    again = read_scores(tmp_path / "pairs.csv")
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
    expected, found = all_alphas.scores(), count_hits(few.scores(), "nn", ALPHAS)
    for name in (name for name in expected if name.startswith("nn@")):
        assert found[name].tolist() == expected[name].tolist()
    curve = compute_curve(few.scores(), Measure("nn"))
    assert list(curve) == list(ALPHAS) and sorted(curve.values()) == list(curve.values())


def test_an_error_on_the_threshold_counts():
    scores = make_scores(1).assign(n_points=2, threshold=np.float32(300))
    scores["error:nn"] = [np.float32([30.0, 30.01])]
    assert count_hits(scores, "nn", [0.1])["nn@0.1"].tolist() == [1]


def test_breakdown_by_category_and_flag():
    scores = make_scores(30, empty=(0,))
    table = break_down(scores, Measure("nn"), draws=50)
    scored = scores[scores["n_points"] > 0]
    share = scored["nn@0.1"] / scored["n_points"]
    assert list(table.index.unique("kind")) == ["all", "category", "viewpoint_variation", "truncation"]
    for flag, levels in (("viewpoint_variation", ("easy", "medium", "hard")), ("truncation", ("none", "source"))):
        for value, level in enumerate(levels):
            chosen = scored[f"flag:{flag}"] == value
            found = table.loc[(flag, level)]
            assert found["pairs"] == chosen.sum() and found["value"] == pytest.approx(share[chosen].mean())
    assert table.loc[("category", "cat"), "value"] == pytest.approx(share[scored["category"] == "cat"].mean())
    unknown = scores.assign(**{name: -1 for name in scores if name.startswith("flag:")})
    assert list(break_down(unknown, Measure("nn"), draws=50).index.unique("kind")) == ["all", "category"]


@pytest.mark.parametrize("measure", MEASURES)
def test_bootstrap_has_the_spread_of_a_plain_loop(measure):
    scores = make_scores(60, empty=(3,))
    groups, rng = plain_groups(scores, measure.average), np.random.default_rng(0)
    draws = []
    for _ in range(4000):
        picked = [[group[i] for i in rng.integers(len(group), size=len(group))] for group in groups]
        draws.append(sum(plain_pck(rows, measure.by) for rows in picked) / len(groups))
    expected, found = np.quantile(draws, [0.025, 0.975]), bootstrap(scores, measure, draws=4000)
    assert found.value == pytest.approx(sum(plain_pck(rows, measure.by) for rows in groups) / len(groups), abs=1e-12)
    assert [found.low, found.high] == pytest.approx(expected, abs=0.06 * (expected[1] - expected[0]))


def test_bootstrap_interval_has_the_width_of_the_normal_one():
    scores = pairs_of(*[0.0, 1.0] * 200)
    interval = bootstrap(scores, Measure("nn"), draws=4000)
    half = 1.96 * 0.5 / math.sqrt(400)
    assert interval.value == 0.5
    assert (interval.high - interval.low) / 2 == pytest.approx(half, rel=0.06)
    assert bootstrap(scores, Measure("nn")) == bootstrap(scores, Measure("nn"))


def test_intervals_of_very_few_pairs():
    certain = bootstrap(pairs_of(1.0, 1.0, 1.0), Measure("nn"))
    assert (certain.low, certain.value, certain.high) == (1, 1, 1)
    alone = bootstrap(pairs_of(0.5), Measure("nn"))
    assert alone.value == 0.5 and math.isnan(alone.low) and math.isnan(alone.high)
    assert bootstrap(make_scores(3, empty=(0, 1, 2)), Measure("nn")) is None
    one_dog = pairs_of(1.0, 0.0, 1.0, 0.5)  # a category of one pair
    interval = bootstrap(one_dog, Measure("nn", average="category"))
    assert interval.value == 0.75 and (interval.low, interval.high) == (0.5, 1.0)


@pytest.mark.parametrize("measure", MEASURES)
def test_p_value_near_that_of_all_swaps(measure):
    a, b = make_scores(9, seed=1, scale=12.0), make_scores(9, seed=2)
    found = compare(a, b, measure, draws=20000)

    def difference(swaps):
        left, right = a.copy(), b.copy()
        for row in np.flatnonzero(swaps):
            left.loc[row, "nn@0.1"], right.loc[row, "nn@0.1"] = b.loc[row, "nn@0.1"], a.loc[row, "nn@0.1"]
        values = []
        for table in (left, right):
            groups = plain_groups(table, measure.average)
            values.append(sum(plain_pck(rows, measure.by) for rows in groups) / len(groups))
        return values[1] - values[0]

    observed = difference([0] * 9)
    all_swaps = np.array([difference(swaps) for swaps in itertools.product((0, 1), repeat=9)])
    assert found.difference.value == pytest.approx(observed, abs=1e-12) and found.pairs == 9
    assert found.p_value == pytest.approx((np.abs(all_swaps) >= abs(observed) - 1e-12).mean(), abs=0.01)
    assert found.difference.low <= found.difference.value <= found.difference.high


def test_equal_methods_do_not_differ_and_unequal_ones_do():
    a = make_scores(300, seed=1)
    same = compare(a, a, Measure("nn"), draws=200)
    assert same.p_value == 1 and same.difference.low == same.difference.value == same.difference.high == 0
    better = compare(a, make_scores(300, seed=2, scale=4.0), Measure("nn"))
    assert better.p_value < 0.002 and better.difference.low > 0
    worse = compare(make_scores(300, seed=2, scale=4.0), a, Measure("nn"))
    assert worse.difference.value == -better.difference.value


@pytest.mark.parametrize("count, p_value", [(1, 1), (2, 0.5)])
@pytest.mark.parametrize("measure", MEASURES)
def test_one_pair_that_differs_proves_nothing(measure, count, p_value):
    a = make_scores(30, seed=1)
    b = a.copy()
    for row in a["n_points"].nlargest(count).index:
        a.loc[row, measure.column], b.loc[row, measure.column] = 0, 1
    found = compare(a, b, measure, draws=200)
    assert found.p_value == p_value and found.difference.value > 0


def test_order_of_rows_does_not_matter_but_other_pairs_do():
    a, b = make_scores(20, seed=1), make_scores(20, seed=2)
    assert compare(a, b[::-1], Measure("nn"), draws=50) == compare(a, b, Measure("nn"), draws=50)
    with pytest.raises(ValueError, match="not of the same pairs: 1 pairs"):
        compare(a, b[:-1], Measure("nn"))
    left, right = select_common([a[3:], b[::-1][5:]])
    assert left["pair_id"].tolist() == right["pair_id"].tolist() == [f"p{i}" for i in range(3, 15)]
    with pytest.raises(ValueError, match="no pair in common"):
        select_common([a[:3], b[3:]])
    b.loc[4, "protocol"] = "original"
    with pytest.raises(ValueError, match="'p4' was not judged alike"):
        compare(a, b, Measure("nn"))


def test_spread_over_seeds():
    found = spread([0.70, 0.72, 0.74])
    assert (found.mean, found.std, found.count) == (pytest.approx(0.72), pytest.approx(0.02), 3)
    assert found.interval.high - found.mean == pytest.approx(4.302653 * 0.02 / math.sqrt(3))
    alone = spread([0.5])
    assert (alone.mean, alone.std, alone.interval, alone.count) == (0.5, None, None, 1)


def test_the_whole_spair_test_takes_seconds(tmp_path):
    rng = np.random.default_rng(0)
    one = make_scores(300).sample(12234, replace=True, random_state=0)
    a = one.assign(index=range(12234), pair_id=[str(i) for i in range(12234)]).reset_index(drop=True)
    b = a.assign(**{"nn@0.1": (a["nn@0.1"] - rng.integers(0, 2, 12234)).clip(0)})
    start = time.process_time()
    write_scores(tmp_path / "x.csv", a)
    read_scores(tmp_path / "x.csv")
    bootstrap(a, Measure("nn", 0.1))
    compare(a, b, Measure("nn", 0.1))
    assert time.process_time() - start < 8
