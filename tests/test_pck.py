"""PCK: parity with a double loop, thresholds, both protocols, and means recomputed from the scores of pairs."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from pandas.testing import assert_frame_equal

from utils.frame import Stretch
from utils.localise import FeatureSimilarity, localise
from utils.pck import PCKEvaluator, PredictionError, alpha_key, compute_hits, merge_scores, summarise

ALPHAS = (0.05, 0.1, 0.15)


def make_batch(batch=3, n=4, seed=0, first_index=0, categories=("cat", "dog", "cat")):
    g = torch.Generator().manual_seed(seed)
    mask = torch.ones(batch, n, dtype=torch.bool)
    mask[0, 2:] = False
    return {
        "index": torch.arange(batch) + first_index,
        "pair_id": [f"p{first_index + b}" for b in range(batch)],
        "category": list(categories[:batch]),
        "src_identifier": [f"cat-{b}" for b in range(batch)],
        "trg_identifier": [f"cat-{b + 1}" for b in range(batch)],
        "trg_kps": torch.rand(batch, n, 2, generator=g) * 100,
        "kps_mask": mask,
        "pck_threshold": torch.tensor([80.0, 100.0, 60.0])[:batch],
        "flags": {"mirror": torch.tensor([0, 1, -1])[:batch]},
    }


def noisy(batch, scale=6.0, seed=1):
    kps = batch["trg_kps"]
    return kps + scale * torch.randn(kps.shape, generator=torch.Generator().manual_seed(seed))


def evaluate(batches, predictions=noisy, localisers=("nn",)):
    evaluator = PCKEvaluator(localisers, ALPHAS)
    for batch in batches:
        evaluator.update(batch, {name: predictions(batch) for name in localisers})
    return evaluator.scores()


def test_hits_equal_a_double_loop():
    batch = make_batch()
    pred = noisy(batch)
    hits = compute_hits(pred, batch, ALPHAS)
    for b in range(3):
        for i in range(4):
            error = math.dist(pred[b, i].tolist(), batch["trg_kps"][b, i].tolist())
            for a, alpha in enumerate(ALPHAS):
                right = bool(batch["kps_mask"][b, i]) and error <= alpha * batch["pck_threshold"][b].item()
                assert hits[b, i, a].item() is right
    assert hits.any() and not hits[batch["kps_mask"]].all()


@pytest.mark.parametrize(("alpha", "threshold"), [(0.1, 300.0), (0.05, 600.0), (0.15, 200.0), (0.01, 3000.0)])
def test_a_keypoint_exactly_on_the_threshold_counts(alpha, threshold):
    batch = {
        "trg_kps": torch.tensor([[[100.0, 100.0]] * 2]),
        "kps_mask": torch.ones(1, 2, dtype=torch.bool),
        "pck_threshold": torch.tensor([threshold]),
    }
    pred = torch.tensor([[[118.0, 124.0], [118.0, 124.01]]])  # 30 px away, and a little more
    assert compute_hits(pred, batch, [alpha])[0, :, 0].tolist() == [True, False]


def test_padded_points_never_count_even_when_right():
    batch = make_batch()
    assert compute_hits(batch["trg_kps"], batch, [0.1])[..., 0].equal(batch["kps_mask"])
    batch["trg_kps"][0, 2:] = float("nan")
    assert compute_hits(batch["trg_kps"], batch, [0.1])[..., 0].equal(batch["kps_mask"])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_is_refused_and_named_but_padding_does_not_matter(bad):
    batch = make_batch()
    pred = noisy(batch)
    pred[0, 2:] = bad  # padding
    assert len(evaluate([batch], lambda _: pred)) == 3
    pred[1, 3, 0] = bad
    with pytest.raises(PredictionError, match="pair 'p1': a point predicted by nn is not finite"):
        evaluate([batch], lambda _: pred)
    batch["pck_threshold"][2] = bad
    with pytest.raises(PredictionError, match="pair 'p2': the threshold is not finite"):
        evaluate([batch])


def test_original_protocol_on_an_anisotropic_image():
    """Resized 100 x 100, original 50 high and 200 wide: x doubles, y halves."""
    batch = {
        "trg_kps": torch.tensor([[[50.0, 50.0]] * 2]),
        "trg_kps_orig": torch.tensor([[[100.0, 25.0]] * 2]),
        "kps_mask": torch.ones(1, 2, dtype=torch.bool),
        "pck_threshold": torch.tensor([50.0]),
        "pck_threshold_orig": torch.tensor([50.0]),
        "trg_size": torch.tensor([[50, 200]]),
    }
    pred = torch.tensor([[[54.0, 50.0], [50.0, 58.0]]])
    assert compute_hits(pred, batch, [0.1])[0, :, 0].tolist() == [True, False]
    original = compute_hits(pred, batch, [0.1, 0.16], "original", Stretch((100, 100)))
    assert original[0].tolist() == [[False, True], [True, True]]


def test_identical_features_give_pck_one():
    feat = torch.randn(3, 256, 12, 12, generator=torch.Generator().manual_seed(0))
    batch = make_batch() | {"trg_kps": torch.randint(0, 12, (3, 4, 2)).float() * 9}
    names = ("nn", "bilinear", "softmax", "kernelsoftmax")
    evaluator = PCKEvaluator(names, ALPHAS)
    evaluator.update(batch, localise(FeatureSimilarity(feat, feat), batch["trg_kps"], (100, 100), names))
    pck = summarise(evaluator.scores(), names, ALPHAS)["pck"]
    assert all(value == 1 for rows in pck.values() for row in rows.values() for value in row.values())


def test_the_row_of_a_pair():
    row = evaluate([make_batch()], lambda batch: batch["trg_kps"]).iloc[0].to_dict()
    assert row.pop("error:nn").tolist() == [0, 0] and row.pop("partner:nn").tolist() == [np.inf, np.inf]
    others = row.pop("other:nn")  # the two points are each other's nearest
    assert others[0] == others[1] > 0
    assert row == {
        "inequality": "<=",
        "index": 0,
        "pair_id": "p0",
        "category": "cat",
        "src_identifier": "cat-0",
        "trg_identifier": "cat-1",
        "protocol": "resized",
        "n_points": 2,
        "flag:mirror": 0,
        "nn@0.05": 2,
        "nn@0.1": 2,
        "nn@0.15": 2,
        "threshold": 80.0,
    }


def hand_scores():
    """cat: 1/1 and 1/4; dog: 0/2; and a pair without keypoints in either category."""
    rows = [("cat", 1, 1), ("cat", 1, 4), ("dog", 0, 2), ("dog", 0, 0), ("eel", 0, 0)]
    scores = pd.DataFrame(rows, columns=["category", "nn@0.1", "n_points"])
    return scores.assign(index=range(5), pair_id=[f"p{i}" for i in range(5)], protocol="resized")


@pytest.mark.parametrize(
    ("by", "average", "everything", "cat"),
    [
        ("image", "pair", (1 + 0.25 + 0) / 3, 0.625),
        ("image", "category", (0.625 + 0) / 2, 0.625),
        ("point", "pair", 2 / 7, 2 / 5),
        ("point", "category", (2 / 5 + 0) / 2, 2 / 5),
    ],
)
def test_means_by_hand(by, average, everything, cat):
    summary = summarise(hand_scores(), ["nn"], [0.1], by, average)
    assert summary["pck"]["nn"]["0.1"] == pytest.approx({"cat": cat, "dog": 0, "eel": None, "all": everything})
    assert (summary["pairs"], summary["pairs_without_points"], summary["points"]) == (3, 2, 7)
    assert summary["categories"]["dog"] == {"pairs": 1, "pairs_without_points": 1, "points": 2}
    assert (summary["protocol"], summary["by"], summary["average"]) == ("resized", by, average)


def test_an_empty_pair_changes_no_mean_and_only_empty_pairs_give_none():
    batch = make_batch()
    batch["kps_mask"][1] = False
    scores = evaluate([batch])
    with_pair, left_out = (summarise(s, ["nn"], ALPHAS) for s in (scores, scores[scores["n_points"] > 0]))
    for key in with_pair["pck"]["nn"]:
        assert with_pair["pck"]["nn"][key]["all"] == left_out["pck"]["nn"][key]["all"]
    assert with_pair["pck"]["nn"]["0.1"]["dog"] is None
    assert summarise(scores[scores["n_points"] == 0], ["nn"], [0.1])["pck"]["nn"]["0.1"] == {"dog": None, "all": None}


@pytest.mark.parametrize("by", ["image", "point"])
@pytest.mark.parametrize("average", ["pair", "category"])
def test_means_equal_a_plain_loop(by, average):
    scores = evaluate([make_batch(seed=s, first_index=3 * s) for s in range(20)])
    rows = list(zip(scores["category"], scores["nn@0.1"].tolist(), scores["n_points"].tolist(), strict=True))

    def mean(rows):
        if by == "image":
            return sum(hits / points for _, hits, points in rows) / len(rows)
        return sum(hits for _, hits, _ in rows) / sum(points for _, _, points in rows)

    expected = {name: mean([row for row in rows if row[0] == name]) for name in ("cat", "dog")}
    expected["all"] = mean(rows) if average == "pair" else (expected["cat"] + expected["dog"]) / 2
    found = summarise(scores, ["nn"], [0.1], by, average)["pck"]["nn"]["0.1"]
    assert found == pytest.approx(expected, abs=1e-12)


def test_summary_errors():
    with pytest.raises(ValueError, match=r"the scores hold no nn@0\.2"):
        summarise(hand_scores(), ["nn"], [0.1, 0.2])
    mixed = hand_scores()
    mixed.loc[1, "protocol"] = "original"
    with pytest.raises(ValueError, match="different PCK protocols"):
        summarise(mixed, ["nn"], [0.1])


def test_two_processes_with_padding_duplicates_equal_one():
    batches = [make_batch(seed=s, first_index=3 * s) for s in range(4)]
    alone = evaluate(batches)
    parts = [evaluate([batches[2], batches[0]]), evaluate([batches[1], batches[3], batches[0]]), evaluate([])]
    assert_frame_equal(merge_scores(parts), alone)


def test_batch_of_three_is_three_batches_of_one():
    batch = make_batch()
    pred = noisy(batch)
    evaluator = PCKEvaluator(["nn"], ALPHAS)
    for b in range(3):
        single = {key: value[b : b + 1] for key, value in batch.items() if key != "flags"}
        single["flags"] = {name: values[b : b + 1] for name, values in batch["flags"].items()}
        evaluator.update(single, {"nn": pred[b : b + 1]})
    assert_frame_equal(evaluator.scores(), evaluate([batch], lambda _: pred))


def test_alpha_key():
    assert [alpha_key(alpha) for alpha in (0.05, 0.1, 0.10000001, 1.0)] == ["0.05", "0.1", "0.1", "1"]
