"""Rankings: metrics with ties, and the readers of items."""

import json
import math
import pickle
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from dataset import BENCHMARKS, DatasetError, MissingDataError, build_benchmark
from dataset.manifest import write_manifest
from dataset.vqa import parse_line
from engine.ranking import Ranking, read_items, write_items
from engine.result import ResultError
from utils.ranking import compare, interval, judge, margins, recall, summarise


def table(values, categories=None, texts=1, both_ways=0, name="score"):
    count = len(values)
    return pd.DataFrame(
        {
            "index": range(count),
            "item_id": [f"item{i}" for i in range(count)],
            "category": categories or ["a"] * count,
            "n_texts": texts,
            "n_images": [len(row) // texts for row in values],
            "both_ways": both_ways,
            name: [np.array(row, dtype=float) for row in values],
        }
    )


# ---- metrics --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "k", "strict", "random", "release"),
    [
        ([2, 1], 1, 1, 1, 1),
        ([1, 2], 1, 0, 0, 0),
        ([1, 1], 1, 0, 0.5, 1),  # argmax gives the first
        ([1, 1, 1, 2], 1, 0, 0, 0),
        ([5] * 10, 1, 0, 0.1, 1),
        ([5] * 10, 5, 0, 0.5, 0),  # a stable ascending sort puts it lowest
        ([5, *[9] * 4, *[1] * 5], 5, 1, 1, 1),
        ([5, *[9] * 5, *[1] * 4], 5, 0, 0, 0),
        ([5, *[9] * 3, 5, 5, *[1] * 4], 5, 0, 2 / 3, 0),  # two places for three
    ],
)
def test_ties(row, k, strict, random, release):
    found = recall(np.array([row], dtype=float), k)
    assert {way: values[0] for way, values in found.items()} == pytest.approx(
        {"strict": strict, "random": random, "release": release}
    )


def test_recall_is_that_of_a_sorted_list():
    values = np.random.default_rng(0).normal(size=(50, 10))
    for k in (1, 5):
        places = [sorted(row, reverse=True).index(row[0]) for row in values]
        assert recall(values, k)["strict"].tolist() == [float(place < k) for place in places]


def test_random_ties_are_the_expectation():
    rng, row = np.random.default_rng(0), np.array([[3.0, 3, 3, 5, 1, 3, 0, 3, 3, 3]])
    drawn = [recall(row + rng.uniform(0, 1e-6, row.shape), 5)["strict"][0] for _ in range(4000)]
    assert recall(row, 5)["random"][0] == pytest.approx(np.mean(drawn), abs=0.03)


def test_scores_of_winoground():
    """Numbered text * 2 + image."""
    rows = [
        [2, 1, 1, 2],  # both
        [2, 1, 3, 4],  # text: image 0 prefers text 1; image: every text prefers its own
        [2, 3, 1, 4],  # text right, image wrong
        [1, 1, 1, 1],
    ]
    found = judge(table(rows, texts=2, both_ways=1), "score")
    assert {name: ways["strict"].tolist() for name, ways in found.items()} == {
        "text": [1, 0, 1, 0],
        "image": [1, 1, 0, 0],
        "group": [1, 0, 0, 0],
    }
    assert [ways["random"][3] for ways in found.values()] == [0.25, 0.25, 0.0625]
    assert margins(table(rows, texts=2, both_ways=1), "score").tolist() == [1, -1, -1, 0]
    assert margins(table([[2, 1, 0], [1, 2, 5]], texts=3), "score").tolist() == [1, -4]


def test_summary_by_kind_with_intervals():
    scores = table([[2, 1], [1, 2], [3, 1], [1, 1]], ["a", "a", "b", "b"])
    found = summarise(scores, ["score"])["score"]["R@1"]
    assert {name: row["strict"] for name, row in found.items()} == {"a": 0.5, "b": 0.5, "all": 0.5}
    assert found["all"]["random"] == 0.625 and found["all"]["release"] == 0.75
    z, p, n = 1.959964, 0.5, 4
    centre, half = p, z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    assert (found["all"]["low"], found["all"]["high"]) == pytest.approx((centre - half, centre + half))
    assert interval(0, 10)[0] == 0 and 0.2 < interval(0, 10)[1] < 0.4


def test_comparison_of_two_methods():
    first, second = table([[1, 2]] * 8 + [[2, 1]] * 2), table([[2, 1]] * 9 + [[1, 2]])
    found = compare(first, second, ("score", "score"), "R@1")
    assert found["difference"] == pytest.approx(0.7) and found["low"] < 0.7 < found["high"]
    assert found["p"] == pytest.approx(2 * 10 / 2**9)  # 8 better, 1 worse
    with pytest.raises(ValueError, match="same items"):
        compare(first, second.iloc[::-1], ("score", "score"), "R@1")


def test_the_items_that_went_wrong_most_are_drawn(monkeypatch):
    monkeypatch.setattr("engine.ranking.draw_item", lambda item, scores, both_ways: (item, scores.tolist()))
    data = SimpleNamespace(benchmark=["right", "worst", "wrong"])
    drawn = Ranking().draw(None, None, data, table([[2, 1], [1, 5], [1, 2]]), 2, "dsd", None)
    assert [row["item"] for row in drawn] == [("worst", [1, 5]), ("wrong", [1, 2])]


def test_scores_survive_the_csv_and_edits_are_refused(tmp_path):
    path, scores = tmp_path / "x_items.csv", table([[1 / 3, 2e-9], [1.5, -7]])
    write_items(path, scores)
    assert read_items(path)["score"][0].tolist() == [1 / 3, 2e-9]
    path.write_text(path.read_text().replace("1.5", "nan"))
    with pytest.raises(ResultError, match="line 3, column score: 'nan .*' cannot be read"):
        read_items(path)


# ---- readers --------------------------------------------------------------------------------------------------


def draw(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8)).save(path)


def write_comvg(root, rows=40, change=("subject", "verb", "object")):
    base = root / "comvg"
    for folder in ("vg_concept", "VG_100K"):
        for image in range(5):
            draw(base / "Visual_Genome" / folder / f"{image}.jpg")
    (base / "data").mkdir(parents=True, exist_ok=True)
    header = "id,sentence,pos_triplet,neg_triplet,pos_image_id,neg_image_id,neg_value\n"
    lines = [f'{n},"a dog, {n}","a,b,c","d,b,c",{n % 5},{(n + 1) % 5},{change[n % len(change)]}\n' for n in range(rows)]
    (base / "data" / "compositional_visual_genome.csv").write_text(header + "".join(lines))
    train = [f"sentence {n},{n % 5},{(n + 2) % 5}\n" for n in range(rows)]
    (base / "data" / "comvg_train.csv").write_text("sentence,pos_image_id,neg_image_id\n" + "".join(train))
    return base


def test_comvg_by_kind_of_change(tmp_path):
    write_comvg(tmp_path)
    whole = build_benchmark("comvg", tmp_path / "comvg", "test")
    assert len(whole) == 40 and whole.categories == ("object", "subject", "verb")
    verbs = build_benchmark("comvg", tmp_path / "comvg", "test", "verb")
    assert [item.item_id for item in verbs] == [item.item_id for item in whole if item.category == "verb"]
    item = whole[1]
    assert item.texts == ("a dog, 1",) and [ref.identifier for ref in item.images] == [
        f"Visual_Genome/vg_concept/{n}" for n in (1, 2)
    ]
    assert len(whole.images()) == 5
    thin = build_benchmark("comvg", tmp_path / "comvg", "test", pairs_per_category=3)
    assert len(thin) == 9 and {item.item_id for item in thin} < {item.item_id for item in whole}


def test_comvg_few_shot(tmp_path):
    write_comvg(tmp_path)
    trn, val = (build_benchmark("comvg", tmp_path / "comvg", split).share(0.05) for split in ("trn", "val"))
    assert [item.texts[0] for item in trn] == ["sentence 0", "sentence 1"]
    assert len(val) == 38 and val[0].texts == ("sentence 2",)
    assert "VG_100K" in trn[0].images[0].path
    with pytest.raises(DatasetError, match="leaves none for split trn"):
        build_benchmark("comvg", tmp_path / "comvg", "trn").share(0.01)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (",verb", ",adverb", r"compositional_visual_genome.csv, line 3: 'neg_value' is 'adverb', expected one of"),
        ('d,b,c",0,1,subject', 'd,b,c",0,x,subject', r"line 2: 'neg_image_id' is 'x', expected a number"),
        ('"a dog, 0"', '" "', r"line 2: 'sentence' is ' ', expected a text"),
    ],
)
def test_broken_rows_are_named_by_line(tmp_path, old, new, message):
    path = write_comvg(tmp_path) / "data" / "compositional_visual_genome.csv"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    with pytest.raises(DatasetError, match=message):
        build_benchmark("comvg", tmp_path / "comvg", "test")


def test_missing_files_are_named(tmp_path):
    with pytest.raises(MissingDataError, match="no such folder(.|\n)*The folder should look like this"):
        build_benchmark("comvg", tmp_path / "comvg", "test")
    base = write_comvg(tmp_path)
    (base / "Visual_Genome" / "vg_concept" / "3.jpg").unlink()
    with pytest.raises(MissingDataError, match="1 of 5 images are missing: .*3.jpg"):
        build_benchmark("comvg", base, "test")
    with pytest.raises(ValueError, match="unknown category of comvg: 'verbs'. Did you mean 'verb'"):
        build_benchmark("comvg", base, "test", "verbs")
    (base / "data" / "comvg_train.csv").unlink()
    with pytest.raises(MissingDataError, match="comvg_train.csv"):
        build_benchmark("comvg", base, "trn")


def test_nothing_is_written_while_reading(tmp_path):
    base = write_comvg(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    list(build_benchmark("comvg", base, "test", index_root=tmp_path / "index"))
    assert sorted(tmp_path.rglob("*")) == before


def write_refcocog(root, refs=30, form="json"):
    base = root / "refcocog"
    images = [{"id": 100 + n, "file_name": f"COCO_train2014_{n:012d}.jpg"} for n in range(4)]
    for image in images:
        draw(base / "images" / "train2014" / image["file_name"])
    content = [
        {
            "ref_id": n,
            "ann_id": n,
            "image_id": 100 + n % 4,
            "split": "val",
            "sentences": [{"sent_id": 2 * n + s, "raw": f"thing {n} {s}", "tokens": []} for s in (0, 1)],
        }
        for n in range(refs)
    ]
    (base / "instances.json").write_text(json.dumps({"images": images, "annotations": [], "categories": []}))
    if form == "json":
        (base / "refs(google).json").write_text(json.dumps(content))
    else:
        (base / "refs(google).p").write_bytes(pickle.dumps(content, protocol=2))
    return base


def test_refcocog_is_blocks_of_ten_texts_cut_at_five_percent(tmp_path):
    base = write_refcocog(tmp_path)
    items = build_benchmark("refcocog", base, "test")
    assert len(items) == 60 and all(len(item.texts) == 10 and len(item.images) == 1 for item in items)
    assert [item.texts[0] for item in items][:3] == ["thing 0 0", "thing 0 1", "thing 1 0"]
    assert all(item.texts[0] not in item.texts[1:] for item in items)
    again = build_benchmark("refcocog", base, "test")
    assert [item.texts for item in again] == [item.texts for item in items]  # the wrong ones are drawn alike
    trn, test = (build_benchmark("refcocog", base, split).share(0.05) for split in ("trn", "test"))
    assert (len(trn), len(test)) == (3, 57) and trn[2].texts == items[2].texts and test[0].texts == items[3].texts


def test_refcocog_of_a_pickle_is_plain_data_or_refused(tmp_path):
    plain = build_benchmark("refcocog", write_refcocog(tmp_path / "a"), "test")
    pickled = build_benchmark("refcocog", write_refcocog(tmp_path / "b", form="pickle"), "test")
    assert [item.texts for item in pickled] == [item.texts for item in plain]
    path = tmp_path / "b" / "refcocog" / "refs(google).p"
    path.write_bytes(b"cos\nsystem\n(S'touch /tmp/never'\ntR.")
    with pytest.raises(DatasetError, match="asks for os.system, which is no plain data; it is not read"):
        build_benchmark("refcocog", path.parent, "test")
    path.write_bytes(b"\x80\x02]")
    with pytest.raises(DatasetError, match="no pickle that can be read"):
        build_benchmark("refcocog", path.parent, "test")


def write_vqa(root):
    base = root / "vqav2"
    columns = ["sentence", "pos_image_id", *(f"neg_sentence_{n}" for n in range(1, 10))]
    rows = [["is it? yes", 42, *(f"is it? {n}" for n in range(9))], ["how many? 2", 7, *["how many? 2"] * 9]]
    (base / "data").mkdir(parents=True)
    for name, count in (("test", 1), ("train", 10)):
        text = "\n".join(",".join(map(str, row)) for row in [columns, *rows * count]) + "\n"
        (base / "data" / f"vqa_text_{name}.csv").write_text(text)
    for number in (42, 7):
        for part in ("val2014", "train2014"):
            draw(base / part / f"COCO_{part}_{number:012d}.jpg")
    return base


def test_vqa_other_pads_image_names(tmp_path):
    base = write_vqa(tmp_path)
    items = build_benchmark("vqa_other", base, "test")
    assert [item.images[0].path.rpartition("/")[2] for item in items] == [
        "COCO_val2014_000000000042.jpg",
        "COCO_val2014_000000000007.jpg",
    ]
    assert items[0].texts[:2] == ("is it? yes", "is it? 0") and len(items[1].texts) == 10
    few = build_benchmark("vqa_other", base, "trn").share(0.5)
    assert len(few) == 10 and few[0].images[0].path.endswith("train2014/COCO_train2014_000000000042.jpg")


def test_vqa_binary_lines(tmp_path):
    base = tmp_path / "vqav2"
    names = [f"COCO_{'train' if n == 5 else 'val'}2014_{n:012d}.jpg" for n in range(12)]
    lines = [f"{name}*The question is asking about yes or no: is it {n}? it is {n}" for n, name in enumerate(names)]
    lines[3] = f"{names[3]}*The question is asking about others: what? that"
    lines[4] = f"{names[4]}*The question is asking about numbers: how many? 2"
    base.mkdir()
    (base / "test3.txt").write_text("\n".join(lines) + "\n")
    for name in names:
        draw(base / ("train2014" if "train2014" in name else "val2014") / name)
    items = build_benchmark("vqa_binary", base, "test")
    assert len(items) == 10 and items[0].texts == ("is it 0? it is 0",)
    assert all(len(item.images) == 10 for item in items)
    assert all(item.images[0].path not in [ref.path for ref in item.images[1:]] for item in items)
    used = {ref.path.rpartition("/")[2] for item in items for ref in item.images}
    assert not used & {names[3], names[4]}
    assert parse_line("a.jpg*The question is asking about yes or no: x: y? z", "here")[2] == "x: y? z"
    with pytest.raises(DatasetError, match="test3.txt, line 13: expected"):
        (base / "test3.txt").write_text("\n".join([*lines, "nonsense"]))
        build_benchmark("vqa_binary", base, "test")


def write_winoground(root):
    base, rows = root / "winoground", []
    for n in range(3):
        for side in "01":
            draw(base / "images" / f"ex_{n}_img_{side}.png")
        rows.append(
            {"id": n, "caption_0": f"some plants {n}", "caption_1": f"a lightbulb {n}", "collapsed_tag": "Object"}
        )
        rows[-1] |= {f"image_{side}": f"ex_{n}_img_{side}" for side in "01"}
    (base / "examples.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    return base


def test_winoground_is_judged_both_ways(tmp_path):
    items = build_benchmark("winoground", write_winoground(tmp_path), "test")
    assert items.both_ways and len(items) == 3 and items.categories == ("Object",)
    assert items[1].texts == ("some plants 1", "a lightbulb 1")
    assert [ref.identifier for ref in items[1].images] == ["images/ex_1_img_0", "images/ex_1_img_1"]


@pytest.mark.parametrize("kind", ["comvg", "winoground"])
def test_a_manifest_is_the_same_items(tmp_path, kind):
    base = {"comvg": write_comvg, "winoground": write_winoground}[kind](tmp_path)
    items = build_benchmark(kind, base, "test")
    write_manifest(tmp_path / "manifest" / "test.jsonl", items)
    again = build_benchmark("manifest", tmp_path / "manifest", "test")
    assert len(again) == len(items) and again.both_ways == items.both_ways
    for one, other in zip(again, items, strict=True):
        assert (one.item_id, one.category, one.texts) == (other.item_id, other.category, other.texts)
        assert [ref.path for ref in one.images] == [ref.path for ref in other.images]
    path = tmp_path / "manifest" / "test.jsonl"
    lines = path.read_text().splitlines()
    for edited, message in (
        ("{", "test.jsonl, line 2: not valid JSON"),
        (lines[1].replace('"texts": [', '"texts": [3, '), "line 2: 'texts' is .*, expected a list of texts"),
        (lines[1].replace('"label": ', '"label": 1 and '), "line 2: not valid JSON"),
        (lines[1].replace('"texts": [', '"texts": ["another", '), "item .* has .* texts and images"),
    ):
        path.write_text("\n".join([lines[0], edited, *lines[2:]]))
        with pytest.raises(DatasetError, match=message):
            build_benchmark("manifest", tmp_path / "manifest", "test")


def test_every_ranking_benchmark_says_its_layout():
    kinds = {name: kind for name, kind in BENCHMARKS.items() if kind.task == "ranking"}
    assert set(kinds) == {"comvg", "refcocog", "vqa_other", "vqa_binary", "winoground", "manifest"}
    assert all(kind.LAYOUT and kind.FOLDER and kind.SPLITS for kind in kinds.values())
