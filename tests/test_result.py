"""Tables as known text, and result files that give back what went in."""

import json
import os

import numpy as np
import pytest

from engine.result import (
    describe,
    format_category_table,
    format_overview,
    read_pairs_csv,
    read_predictions_csv,
    write_pairs_csv,
    write_predictions_csv,
    write_summary_json,
    write_text,
)
from utils.pck import summarise
from utils.store import atomic_path


def make_record(index, category, hits, points, flags=None):
    return {
        "index": index,
        "pair_id": f'{index}-"a",b:{category}',
        "category": category,
        "src_identifier": f"{category}-x",
        "trg_identifier": f"{category}-ü",
        "protocol": "resized",
        "n_points": points,
        "flags": flags or {"mirror": 0, "occlusion": -1},
        "hits": {"nn": {"0.05": hits // 2, "0.1": hits}, "softmax": {"0.05": 0, "0.1": points}},
    }


RECORDS = [make_record(0, "dog", 3, 4), make_record(1, "cat", 1, 1), make_record(2, "dog", 0, 0)]
NAMES, ALPHAS = ["nn", "softmax"], [0.05, 0.1]


def test_overview_text():
    expected = (
        "PCK in the resized frame, per image, averaged over all pairs: "
        "2 pairs, 5 keypoints (1 more without keypoints)\n"
        "            @0.05     @0.1\n"
        "nn          12.50%    87.50%\n"
        "softmax     0.00%     100.00%\n"
    )
    assert format_overview(summarise(RECORDS, NAMES, ALPHAS)) == expected


def test_category_table_has_the_release_layout():
    expected = (
        "nn:\n"
        "            cat         dog         all         \n"
        "0.05        0.00%       25.00%      12.50%      \n"
        "0.1         100.00%     75.00%      87.50%      \n"
        "-----------------------------------------------------------------\n"
        "softmax:\n"
        "            cat         dog         all         \n"
        "0.05        0.00%       0.00%       0.00%       \n"
        "0.1         100.00%     100.00%     100.00%     \n"
        "-----------------------------------------------------------------\n"
    )
    summary = summarise(RECORDS, NAMES, ALPHAS)
    assert format_category_table(summary) == expected + describe(summary) + "\n"


def test_long_category_names_widen_the_columns():
    summary = summarise([make_record(0, "winebottle(wC)", 1, 1), make_record(1, "duck(S)", 0, 0)], NAMES, ALPHAS)
    lines = format_category_table(summary).splitlines()
    assert lines[1].split() == ["duck(S)", "winebottle(wC)", "all"]
    assert lines[3].split() == ["0.1", "-", "100.00%", "100.00%"]
    assert lines[1].index("all") == lines[3].rindex("100.00%")


def test_records_survive_the_csv(tmp_path):
    path = tmp_path / "run" / "pairs.csv"
    write_pairs_csv(path, reversed(RECORDS))
    assert read_pairs_csv(path) == RECORDS
    assert summarise(read_pairs_csv(path), NAMES, ALPHAS) == summarise(RECORDS, NAMES, ALPHAS)
    header = path.read_text(encoding="utf-8").splitlines()[0]
    assert header == (
        "index,pair_id,category,src_identifier,trg_identifier,protocol,n_points,"
        "flag:mirror,flag:occlusion,nn@0.05,nn@0.1,softmax@0.05,softmax@0.1"
    )


def test_errors_and_thresholds_survive_the_csv_to_the_last_bit(tmp_path):
    rng = np.random.default_rng(0)
    records = [
        record | {"threshold": float(np.float32(rng.uniform(50, 500))), "errors": {"nn": errors, "softmax": errors}}
        for record in RECORDS
        for errors in [rng.exponential(30, record["n_points"]).astype(np.float32).tolist()]
    ]
    write_pairs_csv(tmp_path / "pairs.csv", records)
    assert read_pairs_csv(tmp_path / "pairs.csv") == records
    header = (tmp_path / "pairs.csv").read_text(encoding="utf-8").splitlines()[0]
    assert header.endswith("softmax@0.1,threshold,error:nn,error:softmax")


def test_csv_does_not_depend_on_the_order_of_arrival(tmp_path):
    write_pairs_csv(tmp_path / "a.csv", RECORDS)
    write_pairs_csv(tmp_path / "b.csv", [RECORDS[2], RECORDS[0], RECORDS[1], RECORDS[0]])
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()


def test_no_records_give_an_empty_table(tmp_path):
    write_pairs_csv(tmp_path / "none.csv", [])
    assert read_pairs_csv(tmp_path / "none.csv") == []
    assert format_overview(summarise([], NAMES, ALPHAS)).splitlines()[2] == "nn          -         -"


def test_damaged_csv_is_refused_by_name(tmp_path):
    write_text(tmp_path / "other.csv", "a,b\n1,2\n")
    with pytest.raises(ValueError, match=r"other\.csv is not a per-pair result file.*pair_id"):
        read_pairs_csv(tmp_path / "other.csv")
    write_pairs_csv(tmp_path / "pairs.csv", RECORDS)
    text = (tmp_path / "pairs.csv").read_text(encoding="utf-8")
    write_text(tmp_path / "cut.csv", text[: text.rindex(",")] + "\n")
    with pytest.raises(ValueError, match=r"cut\.csv: row of pair .*damaged"):
        read_pairs_csv(tmp_path / "cut.csv")


def test_summary_json(tmp_path):
    summary = summarise(RECORDS, NAMES, ALPHAS)
    write_summary_json(tmp_path / "s.json", summary, {"DATASET": {"NAME": "spair"}}, {"commit": "abc"})
    content = json.loads((tmp_path / "s.json").read_text(encoding="utf-8"))
    assert content == {
        "summary": summary,
        "config": {"DATASET": {"NAME": "spair"}},
        "provenance": {"commit": "abc"},
    }
    with pytest.raises(ValueError):
        write_summary_json(tmp_path / "nan.json", {"pck": float("nan")}, {}, {})
    assert os.listdir(tmp_path) == ["s.json"]


def test_a_failed_write_leaves_the_old_file_and_no_rubbish(tmp_path):
    path = tmp_path / "out.txt"
    write_text(path, "old")
    with pytest.raises(RuntimeError, match="stop"), atomic_path(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError("stop")
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["out.txt"]


def test_predictions_come_back(tmp_path):
    path = tmp_path / "x_predictions.csv"
    points = [{"nn": [[1.25, 2.0]] * r["n_points"], "softmax": [[0.0, 7.5]] * r["n_points"]} for r in RECORDS]
    write_predictions_csv(path, [r | {"predictions": p} for r, p in zip(RECORDS, points, strict=True)])
    assert read_predictions_csv(path) == {r["pair_id"]: p for r, p in zip(RECORDS, points, strict=True)}


@pytest.mark.parametrize(
    ("text", "message"),
    [("a,b\n", "not a file of predicted points"), ("index,pair_id,nn\n0,x,1 2;3\n", "line 2 is damaged")],
)
def test_damaged_predictions_are_refused(tmp_path, text, message):
    path = tmp_path / "x_predictions.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_predictions_csv(path)


def test_a_row_that_lost_some_errors_is_refused(tmp_path):
    write_pairs_csv(tmp_path / "pairs.csv", [RECORDS[0] | {"n_points": 2, "errors": {"nn": [1.0]}}])
    with pytest.raises(ValueError, match=r"pairs\.csv: row of pair .* is damaged \(1 errors of nn for 2 keypoints\)"):
        read_pairs_csv(tmp_path / "pairs.csv")
