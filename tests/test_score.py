"""Predictions of others: every format gives the scores that they deserve, and what is wrong is named by line."""

import csv
import json
import pickle

import numpy as np
import pytest

from dataset import build_benchmark
from dataset.pair_dataset import PairDataset
from engine.predictions import LOCALISER, read_points, score_points, to_release, write_template
from engine.result import ResultError, read_predictions, read_scores
from tests.command import call
from tests.fixtures_dataset import tiny_spair


@pytest.fixture
def spair(tmp_path):
    return build_benchmark("spair", tiny_spair(tmp_path), "test")


def truths(benchmark, shift=0.0):
    return {record.pair_id: record.trg_kps.astype(np.float64) + (shift, 0) for record in benchmark}


def rows_of(benchmark, points, key="keypoint_id"):
    return [
        {"pair_id": record.pair_id, key: name if key == "keypoint_id" else place, "x": x, "y": y}
        for record in benchmark
        for place, (name, (x, y)) in enumerate(zip(record.kps_ids, points[record.pair_id].tolist(), strict=True))
    ]


def write_rows(path, rows):
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl"])
@pytest.mark.parametrize("key", ["keypoint_id", "keypoint_index"])
def test_rows_in_any_order_come_to_their_places(spair, tmp_path, name, key):
    points = truths(spair, 3)
    rows = rows_of(spair, points, key)[::-1]
    rows[0]["score"] = 0.5
    found = read_points(write_rows(tmp_path / name, [{**row, "score": row.get("score", "")} for row in rows]), spair)
    assert found.keys() == points.keys() and all((found[pair] == points[pair]).all() for pair in points)


@pytest.mark.parametrize("protocol", ["original", "resized"])
def test_scores_against_a_loop(spair, protocol):
    data = PairDataset(spair, (96, 80))
    scores = score_points(truths(spair, 4), data, (0.1,), protocol, "<", LOCALISER)
    for record, (_, row) in zip(spair, scores.iterrows(), strict=True):
        height, width = record.trg.size
        factor = (80 / width, 96 / height) if protocol == "resized" else (1, 1)
        box = record.trg_bbox
        threshold = max((box[2] - box[0]) * factor[0], (box[3] - box[1]) * factor[1])
        assert row["error:prediction"] == pytest.approx([4 * factor[0]] * 5, abs=1e-3)
        assert row["prediction@0.1"] == 5 * (4 * factor[0] < 0.1 * threshold)


def test_release_format_there_and_back(spair, tmp_path):
    points = truths(spair, 2)
    content = to_release(points, spair)
    assert len(content[0]["src_kpts_pred"]) == 30 and content[0]["resize_resolution"] == 840
    (tmp_path / "a.json").write_text(json.dumps(content))
    as_arrays = [{**row, "src_kpts_pred": np.array(row["src_kpts_pred"], np.float32)} for row in content]
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(as_arrays))
    for name in ("a.json", "a.pkl"):
        found = read_points(tmp_path / name, spair)
        assert all(np.allclose(found[pair], points[pair], atol=1e-3) for pair in points)
    record = spair[0]  # 56 x 72 (W x H) -> 840 high, in the middle
    x, y = content[0]["src_kpts_pred"][2 * 1]
    height, width = record.trg.size
    scale = 840 / max(height, width)
    assert y == pytest.approx(points[record.pair_id][1, 1] * scale + (840 - round(height * scale)) // 2)


class Evil:
    def __reduce__(self):
        return print, ("unpickled",)


def test_pickles_of_anything_else_are_refused(spair, tmp_path, capsys):
    (tmp_path / "a.pkl").write_bytes(pickle.dumps([Evil()]))
    with pytest.raises(ResultError, match="a.pkl cannot be read .*builtins.print, which is no plain data"):
        read_points(tmp_path / "a.pkl", spair)
    assert "unpickled" not in capsys.readouterr().out
    for content, message in (({"a": 1}, "no list"), ([{"src_fn": "x"}], "no list"), (b"x", "no list")):
        (tmp_path / "a.pkl").write_bytes(pickle.dumps(content))
        with pytest.raises(ResultError, match=message):
            read_points(tmp_path / "a.pkl", spair)
    (tmp_path / "a.pkl").write_bytes(b"nonsense")
    with pytest.raises(ResultError, match="cannot be read as results of GeoAware-SC"):
        read_points(tmp_path / "a.pkl", spair)
    content = to_release(truths(spair), spair)
    for change, message in (
        ({"src_fn": "bird/nowhere.jpg"}, "entry 2: bird/nowhere.jpg and .* are no pair"),
        ({"src_kpts_pred": [[1, 2]]}, "entry 2: src_kpts_pred has no x, y"),
        (content[0], "entry 2: the pair '.*' is there twice"),
    ):
        (tmp_path / "a.json").write_text(json.dumps([content[0], {**content[1], **change}, *content[2:]]))
        with pytest.raises(ResultError, match=message):
            read_points(tmp_path / "a.json", spair)


def edit(rows, place, **values):
    return [{**row, **values} if i == place else row for i, row in enumerate(rows)]


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda rows: edit(rows, 2, pair_id="nobody"), "line 4: pair 'nobody' is not in spair test"),
        (lambda rows: edit(rows, 2, keypoint_id="7"), "line 4: keypoint_id '7' is none of the pair's: 0, 2, 4, 6, 8"),
        (lambda rows: edit(rows, 2, keypoint_id="0"), "line 4: keypoint 0 of pair '.*' stands in line 2 already"),
        (lambda rows: edit(rows, 2, x="left"), "line 4: x is 'left', not a number"),
        (lambda rows: edit(rows, 2, y="nan"), "line 4: y is 'nan', not a number"),
        (lambda rows: edit(rows, 2, y=""), "line 4: y is '', not a number"),
        (lambda rows: [{**row, "score": "high"} for row in rows], "line 2: score is 'high', not a number"),
        (lambda rows: rows[:-1], "1 rows are missing, the first for keypoint 8 of pair '.*--template"),
        (lambda rows: [{**row, "colour": 1} for row in rows], "line 1: unknown column 'colour'"),
        (
            lambda rows: [{k: v for k, v in row.items() if k != "x"} for row in rows],
            "line 1: the columns are .*must be",
        ),
        (lambda rows: [{**row, "keypoint_index": 1} for row in rows], "line 1: the columns are"),
    ],
)
def test_wrong_rows_are_named(spair, tmp_path, change, message):
    path = write_rows(tmp_path / "a.csv", change(rows_of(spair, truths(spair))))
    with pytest.raises(ResultError, match=message):
        read_points(path, spair)


def test_wrong_files_are_named(spair, tmp_path):
    for name, text, message in (
        ("a.csv", "pair_id,keypoint_id,x,y\nonly,two\n", "line 2: 2 cells, but 4 in the header"),
        ("a.csv", "", "line 1: the columns are none"),
        ("a.jsonl", '{"pair_id": 1\n', "line 1: not JSON"),
        ("a.jsonl", "[1]\n", "line 1: .* is no object"),
        ("a.txt", "", "its name must end in"),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(ResultError, match=message):
            read_points(tmp_path / name, spair)


def test_template_has_every_row(spair, tmp_path):
    assert write_template(tmp_path / "t.csv", spair) == 20
    rows = list(csv.DictReader((tmp_path / "t.csv").read_text().splitlines()))
    assert [(row["pair_id"], row["keypoint_id"]) for row in rows] == [
        (row["pair_id"], row["keypoint_id"]) for row in rows_of(spair, truths(spair))
    ]
    with pytest.raises(ResultError, match="line 2: x is '', not a number"):
        read_points(tmp_path / "t.csv", spair)


def test_the_command_writes_what_a_test_writes(spair, tmp_path, capsys):
    path = write_rows(tmp_path / "mine.csv", rows_of(spair, truths(spair, 3)))

    def run(*arguments):
        where = ("DATASET.ROOT", str(tmp_path), "OUTPUT_ROOT", str(tmp_path / "out"), "EVAL.PROTOCOL", "original")
        return call("script/score.py", *arguments, *where), capsys.readouterr()

    status, text = run(path, "--release", tmp_path / "mine.json")
    assert status == 0 and "prediction" in text.out and "PCK-dagger" in text.out
    (pairs,) = (tmp_path / "out/prompt/mine").glob("*_pairs.csv")
    assert read_scores(pairs)["error:prediction"][0] == pytest.approx([3] * 5, abs=1e-3)
    own = pairs.with_name(pairs.name.replace("_pairs", "_predictions"))
    assert read_predictions(own)["point:prediction"][0].shape == (5, 2)
    assert run(own, "--localiser", "prediction", "--name", "again", "--as", "nn")[0] == 0
    assert call("script/view_results.py", pairs, "--output", tmp_path) == 0
    assert "prediction" in (tmp_path / "viewer_spair_test.html").read_text()
    assert run(tmp_path / "mine.json", "--name", "third")[0] == 0
    for name in ("again", "third"):
        (other,) = (tmp_path / "out/prompt" / name).glob("*_pairs.csv")
        column = "error:nn" if name == "again" else "error:prediction"
        assert np.allclose(np.stack(read_scores(other)[column]), 3, atol=0.02)
    status, text = run(own, "--localiser", "nn")
    assert status == 1 and "no predictions of 'nn'; it has those of prediction" in text.err
    for flag, word in (("--name", "../escaped"), ("--name", "a/b"), ("--as", "")):
        status, text = run(own, flag, word)
        assert status == 2 and f"{flag}: must be a name without a path, got '{word}'" in text.err
    status, text = run("--template", tmp_path / "t.csv")
    assert status == 0 and "20 rows" in text.out
    status, text = run("--template", tmp_path / "t.csv")
    assert status == 2 and "t.csv is there already, and would be lost" in text.err
    before = own.read_bytes()
    status, text = run(own, "--release", own)
    assert status == 2 and "which would be lost" in text.err and own.read_bytes() == before
