"""Every metric beyond PCK against a plain loop, and through the files of a test."""

import numpy as np
import pandas as pd
import pytest
import torch

from config import ConfigError, get_default_config
from engine.correspondence import measure
from engine.evaluate import require_seen
from engine.result import format_metrics, read_scores, write_scores
from utils.frame import Stretch
from utils.kap import collect_kap
from utils.localise import FeatureSimilarity
from utils.metrics import (
    MetricError,
    average_precision,
    count_confused,
    keypoint_average_precision,
    measure_aware,
    refuse_nearer,
    select_aware,
)
from utils.pck import PCKEvaluator, summarise
from utils.statistics import Measure, bootstrap, sensitivity, split_by_view

ALPHAS = (0.05, 0.1)
PARTNER = [1, 0, 2, 4, 3, 5]  # of the ids 0 ... 5
GROUPS = ({0, 1}, {3, 4})
SIZE = (100, 100)


def make_batch(seed=0, pairs=12, n=6):
    """Pairs whose two images show different ones of six keypoints, with whole coordinates."""
    rng = np.random.default_rng(seed)
    shown = rng.random((pairs, 2, n)) < 0.7
    points = rng.integers(0, 100, (pairs, 2, n, 2)).astype(np.float32)
    batch = {
        "index": torch.arange(pairs),
        "pair_id": [f"p{i}" for i in range(pairs)],
        "category": ["a" if i % 2 else "b" for i in range(pairs)],
        "src_identifier": [f"s{i}" for i in range(pairs)],
        "trg_identifier": [f"t{i}" for i in range(pairs)],
        "trg_size": torch.full((pairs, 2), 100),
        "pck_threshold": torch.from_numpy(rng.integers(50, 100, pairs).astype(np.float32)),
        "src_azimuth": torch.from_numpy(rng.integers(-1, 8, pairs)),
        "trg_azimuth": torch.from_numpy(rng.integers(0, 8, pairs)),
    }
    kps, ids, partner, aware = (
        np.zeros((2, pairs, n, 2), np.float32),
        *np.full((2, pairs, n), -1),
        np.zeros((pairs, n), bool),
    )
    seen, seen_ids = np.zeros((2, pairs, n, 2), np.float32), np.full((2, pairs, n), -1)
    for i in range(pairs):
        common = [k for k in range(n) if shown[i].all(axis=0)[k]]
        for column, k in enumerate(common):
            kps[:, i, column], ids[i, column], partner[i, column] = points[i, :, k], k, PARTNER[k]
            aware[i, column] = any(k in group and any(shown[i, 1, j] for j in group - {k}) for group in GROUPS)
        for side in (0, 1):
            for column, k in enumerate(np.flatnonzero(shown[i, side])):
                seen[side, i, column], seen_ids[side, i, column] = points[i, side, k], k
    tensors = {"kps_ids": ids, "kps_partner": partner, "kps_aware": aware, "kps_mask": ids >= 0}
    for side, name in enumerate(("src", "trg")):
        tensors |= {f"{name}_kps": kps[side], f"{name}_seen": seen[side], f"{name}_seen_ids": seen_ids[side]}
    return batch | {name: torch.from_numpy(value) for name, value in tensors.items()}, points, shown


def predict(batch, seed=1):
    noise = np.random.default_rng(seed).normal(0, 6, batch["trg_kps"].shape)
    return (batch["trg_kps"].numpy() + noise).clip(0, 99).astype(np.float32)


@pytest.fixture(scope="module", params=["<=", "<"])
def scored(request):
    batch, points, shown = make_batch()
    evaluator = PCKEvaluator(["nn"], ALPHAS, "resized", Stretch(SIZE), request.param)
    evaluator.update(batch, {"nn": torch.from_numpy(predict(batch))})
    return batch, points, shown, evaluator.scores()


def loop(batch, inequality="<="):
    """(pair, id, error, threshold, other errors, aware, right at each alpha) of every keypoint."""
    predictions = predict(batch).astype(np.float64)
    for i in range(len(batch["index"])):
        chosen = np.flatnonzero(batch["kps_mask"][i].numpy())
        truth = batch["trg_kps"][i].numpy().astype(np.float64)
        for n in chosen:
            distance = [np.float32(np.hypot(*(predictions[i, n] - truth[m]))) for m in range(len(truth))]
            others = [distance[m] for m in chosen if m != n]
            limit = batch["pck_threshold"][i].item()
            radii = {alpha: np.float32(alpha * limit) for alpha in ALPHAS}
            right = {a: distance[n] <= r if inequality == "<=" else distance[n] < r for a, r in radii.items()}
            yield i, batch["kps_ids"][i, n].item(), predictions[i, n], distance[n], radii, others, right


def mean_per_image(values):
    """values: (pair, 0 or 1)."""
    pairs = {}
    for pair, value in values:
        pairs.setdefault(pair, []).append(value)
    return np.mean([np.mean(group) for group in pairs.values()])


def test_strict_inequality_excludes_the_threshold_itself():
    batch, _, _ = make_batch(pairs=1)
    batch["pck_threshold"][:] = 100
    predictions = batch["trg_kps"] + torch.tensor([10.0, 0])  # at alpha 0.1 exactly on the threshold
    for inequality, value in (("<=", 1.0), ("<", 0.0)):
        evaluator = PCKEvaluator(["nn"], (0.1,), "resized", Stretch(SIZE), inequality)
        evaluator.update(batch, {"nn": predictions})
        summary = summarise(evaluator.scores(), ["nn"], [0.1])
        assert summary["pck"]["nn"]["0.1"]["all"] == value and summary["inequality"] == inequality


@pytest.mark.parametrize("alpha", ALPHAS)
def test_pck_per_image_and_point(scored, alpha):
    batch, _, _, scores = scored
    rows = list(loop(batch, scores["inequality"][0]))
    for by, expected in (
        ("image", mean_per_image([(i, right[alpha]) for i, *_, right in rows])),
        ("point", np.mean([right[alpha] for *_, right in rows])),
    ):
        assert summarise(scores, ["nn"], ALPHAS, by)["pck"]["nn"][f"{alpha:g}"]["all"] == pytest.approx(expected)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_geometry_aware_pck(scored, alpha):
    batch, _, shown, scores = scored
    rows = [
        (i, right[alpha])
        for i, k, *_, right in loop(batch, scores["inequality"][0])
        if any(k in group and any(shown[i, 1, j] for j in group - {k}) for group in GROUPS)
    ]
    chosen = select_aware(scores)
    assert summarise(chosen, ["nn"], ALPHAS)["pck"]["nn"][f"{alpha:g}"]["all"] == pytest.approx(mean_per_image(rows))
    found = summarise(chosen, ["nn"], ALPHAS, "point")["pck"]["nn"][f"{alpha:g}"]["all"]
    assert found == pytest.approx(np.mean([right for _, right in rows]))
    shares = measure_aware(scores)
    assert (shares["points"], shares["pairs"]) == (len(rows), len({i for i, _ in rows}))
    assert shares["share_of_points"] == pytest.approx(len(rows) / scores["n_points"].sum())
    assert shares["share_of_pairs"] == pytest.approx(shares["pairs"] / (scores["n_points"] > 0).sum())
    assert bootstrap(chosen, Measure("nn", alpha), draws=20) is not None  # every statistic takes it


@pytest.mark.parametrize("alpha", ALPHAS)
def test_pck_dagger(scored, alpha):
    batch, _, _, scores = scored
    rows = [
        (i, right[alpha] and all(error <= other for other in others))
        for i, _, _, error, _, others, right in loop(batch, scores["inequality"][0])
    ]
    found = summarise(refuse_nearer(scores), ["nn"], ALPHAS)["pck"]["nn"][f"{alpha:g}"]["all"]
    assert found == pytest.approx(mean_per_image(rows))
    assert found <= summarise(scores, ["nn"], ALPHAS)["pck"]["nn"][f"{alpha:g}"]["all"]


def test_confusion_of_sides(scored):
    batch, points, shown, scores = scored
    wrong = confused = 0
    strict = scores["inequality"][0] == "<"
    for i, k, prediction, _, radii, _, right in loop(batch, scores["inequality"][0]):
        if right[0.1]:
            continue
        wrong += 1
        other = PARTNER[k]
        if other != k and shown[i, 1, other]:  # whether or not the source shows it
            distance = np.float32(np.hypot(*(prediction - points[i, 1, other])))
            confused += distance < radii[0.1] if strict else distance <= radii[0.1]
    assert count_confused(scores, "nn", 0.1) == {"wrong": wrong, "confused": confused, "share": confused / wrong}
    assert wrong > 3


def scores_near_both():
    """Three points of one pair, radius 10: right and near the other side as well; on the other side alone; right."""
    columns = {"error:nn": [2, 30, 4], "partner:nn": [3, 5, np.inf]}
    lists = {name: [np.array(values, np.float32)] for name, values in columns.items()}
    return pd.DataFrame({"n_points": [3], "threshold": np.float32([100]), **lists})


def test_a_prediction_on_the_other_side_is_confused():
    batch, points, shown = make_batch(pairs=30)
    predictions = batch["trg_kps"].clone()
    swapped = 0
    for i, ids in enumerate(batch["kps_ids"].tolist()):
        for n, k in enumerate(ids):
            if k in (0, 1) and shown[i, 1, PARTNER[k]] and np.hypot(*(points[i, 1, 0] - points[i, 1, 1])) > 25:
                predictions[i, n] = torch.from_numpy(points[i, 1, PARTNER[k]])
                swapped += 1
    evaluator = PCKEvaluator(["nn"], (0.1,), "resized", Stretch(SIZE))
    evaluator.update(batch, {"nn": predictions})
    found = count_confused(evaluator.scores(), "nn", 0.1)
    assert count_confused(scores_near_both(), "nn", 0.1) == {"wrong": 1, "confused": 1, "share": 1}
    assert swapped > 5 and found == {"wrong": swapped, "confused": swapped, "share": 1}


def test_views(scored):
    scores = scored[3]
    bins = split_by_view(scores)
    for name, group in bins.items():
        for _, row in scores.iterrows():
            a, b = row["src_azimuth"], row["trg_azimuth"]
            if a < 0 or row["n_points"] == 0:
                inside = False if a < 0 else None
            elif name == "mirror":
                inside = (a <= 3 and b > 3) or (b <= 3 and a > 3)
            else:
                inside = min(abs(a - b), 8 - abs(a - b)) == int(name)
            assert inside is None or (row["pair_id"] in set(group["pair_id"])) == inside
    views = [(a, b, 1) for a in range(8) for b in range(8)]
    bins = split_by_view(pd.DataFrame(views, columns=["src_azimuth", "trg_azimuth", "n_points"]))
    found = {name: set(zip(group["src_azimuth"], group["trg_azimuth"], strict=True)) for name, group in bins.items()}
    assert (0, 7) in found["1"] and (1, 6) in found["3"] and (0, 4) in found["4"] and (3, 4) in found["mirror"]
    assert [len(found[str(step)]) for step in range(5)] == [8, 16, 16, 16, 8] and len(found["mirror"]) == 32
    assert (
        sensitivity([0.8, 0.6, 0.2]) == pytest.approx(0.75) and sensitivity([]) is None and sensitivity([0.0]) is None
    )


# KAP


def plain_average_precision(positive, negative):
    """Of the definition: precision and recall at every threshold, from the highest."""
    values = sorted({*positive, *negative}, reverse=True)
    total = before = 0.0
    for value in values:
        hits, taken = sum(p >= value for p in positive), sum(p >= value for p in [*positive, *negative])
        total += (hits / len(positive) - before) * hits / taken
        before = hits / len(positive)
    return total


def test_average_precision_takes_equals_in_together():
    rng = np.random.default_rng(0)
    for _ in range(20):
        positive, negative = rng.integers(0, 6, 7) / 5, rng.integers(0, 6, 9) / 5
        assert average_precision(positive, negative) == pytest.approx(plain_average_precision(positive, negative))
    assert average_precision(np.array([0.9, 0.8]), np.array([0.1])) == 1


@pytest.mark.parametrize("kind", ["definition", "released"])
def test_kap_against_a_loop(kind):
    batch, points, shown = make_batch()
    generator = torch.Generator().manual_seed(0)
    feats = torch.randn(2, 12, 5, 11, 11, generator=generator)
    similarity = FeatureSimilarity(*feats)
    columns = collect_kap(similarity, batch, ALPHAS, SIZE, kind, torch.device("cpu"))
    cells = np.arange(11) * 99 / 10
    pooled, per_pair = ([], []), []
    for i in range(12):
        asked = np.flatnonzero(shown[i, 0])
        maps = similarity(batch["src_seen"] / 9.9)[i, : len(asked)].numpy()  # 11 cells over 0 ... 99 px
        low, high = maps.min(initial=1), maps.max(initial=-1)
        positive, negative = [], []
        for k, sim in zip(asked, maps, strict=True):
            sim = (sim - low) / (high - low)
            place = points[i, 1, k] if shown[i, 1, k] else np.zeros(2) if kind == "released" else None
            if place is None:
                negative.append(sim.max())
                continue
            distance = np.hypot(cells[None, :] - place[0], cells[:, None] - place[1])
            near = distance <= max(0.1 * batch["pck_threshold"][i].item(), distance.min())
            positive.append(sim[near].max())
            negative.append(sim[~near].max())
        np.testing.assert_allclose(columns["kap+@0.1"][i], positive, atol=1e-5)
        np.testing.assert_allclose(columns["kap-@0.1"][i], negative, atol=1e-5)
        if positive:
            per_pair.append(plain_average_precision(columns["kap+@0.1"][i], columns["kap-@0.1"][i]))
        pooled[0].extend(columns["kap+@0.1"][i]), pooled[1].extend(columns["kap-@0.1"][i])
    scores = pd.DataFrame(columns)
    assert keypoint_average_precision(scores, 0.1) == pytest.approx(np.mean(per_pair))
    assert keypoint_average_precision(scores, 0.1, pooled=True) == pytest.approx(plain_average_precision(*pooled))


def test_kap_asks_for_annotations_of_images():
    class Bare(list):
        root = "asset/dataset/pf-pascal"

    class Record:
        src_seen = trg_seen = None

    with pytest.raises(ConfigError, match="EVAL.KAP: asset/dataset/pf-pascal does not say .* set EVAL.KAP none"):
        require_seen(Bare([Record()]))
    assert get_default_config().EVAL.KAP == "none" and not collect_kap(None, {}, (), SIZE, "none", None)


# Files


def test_scores_with_all_columns_come_back(tmp_path, scored):
    batch, _, _, scores = scored
    kap = collect_kap(
        FeatureSimilarity(*torch.randn(2, 12, 3, 8, 8)), batch, ALPHAS, SIZE, "definition", torch.device("cpu")
    )
    scores = scores.assign(**kap)
    write_scores(tmp_path / "a_pairs.csv", scores)
    found = read_scores(tmp_path / "a_pairs.csv")
    assert measure(found, ["nn"], ALPHAS) == measure(scores, ["nn"], ALPHAS)
    text = format_metrics(measure(found, ["nn"], ALPHAS))
    for word in ("PCK-dagger", "geometry-aware per image", "side confused", "KAP pooled", "% of the keypoints"):
        assert word in text


def test_older_scores_say_what_they_lack(scored):
    old = scored[3].drop(columns=["aware", "other:nn", "partner:nn"])
    for function in (select_aware, refuse_nearer, lambda s: count_confused(s, "nn", 0.1)):
        with pytest.raises(MetricError, match="these scores do not say .*run the test again"):
            function(old)
    with pytest.raises(MetricError, match="KAP needs at alpha 0.1"):
        keypoint_average_precision(old, 0.1)
