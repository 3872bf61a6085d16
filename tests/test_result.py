"""Tables as known text; result files give back what went in, and are refused by line once they were changed."""

import json
import os

import numpy as np
import pandas as pd
import pytest
from pandas.testing import assert_frame_equal

from engine.result import (
    ResultError,
    describe,
    format_category_table,
    format_overview,
    read_predictions,
    read_scores,
    read_summary,
    write_predictions,
    write_scores,
    write_summary,
)
from utils.pck import summarise
from utils.store import write_text

NAMES, ALPHAS = ["nn", "softmax"], [0.05, 0.1]


def make_scores():
    """dog: 3 of 4 right at 0.1; cat: 1 of 1; dog without points. Names as a CSV file likes them least."""
    errors = [np.float32([1, 4, 9.7, 10.1]), np.float32([6.25]), np.float32([])]
    rows = []
    for index, (category, error) in enumerate(zip(("dog", "cat", "dog"), errors, strict=True)):
        row = {"index": index, "pair_id": f'{index}-"a",\nb:{category}', "category": category}
        row |= {"src_identifier": "NA", "trg_identifier": f"{category}-ü", "protocol": "resized"}
        row |= {"n_points": len(error), "flag:mirror": 0, "flag:occlusion": -1}
        row |= {"nn@0.05": int((error <= 5).sum()), "nn@0.1": int((error <= 10).sum())}
        row |= {"softmax@0.05": len(error), "softmax@0.1": len(error), "threshold": np.float32(100)}
        rows.append(row | {"error:nn": error, "error:softmax": error / 10})
    return pd.DataFrame(rows)


def test_overview_text():
    expected = (
        "PCK (error <= alpha x threshold) in the resized frame, per image, averaged over all pairs: "
        "2 pairs, 5 keypoints (1 more without keypoints)\n"
        "            @0.05     @0.1\n"
        "nn          25.00%    87.50%\n"
        "softmax     100.00%   100.00%\n"
    )
    assert format_overview(summarise(make_scores(), NAMES, ALPHAS)) == expected


def test_category_table_has_the_release_layout():
    expected = (
        "nn:\n"
        "            cat         dog         all         \n"
        "0.05        0.00%       50.00%      25.00%      \n"
        "0.1         100.00%     75.00%      87.50%      \n"
        "-----------------------------------------------------------------\n"
        "softmax:\n"
        "            cat         dog         all         \n"
        "0.05        100.00%     100.00%     100.00%     \n"
        "0.1         100.00%     100.00%     100.00%     \n"
        "-----------------------------------------------------------------\n"
    )
    summary = summarise(make_scores(), NAMES, ALPHAS)
    assert format_category_table(summary) == expected + describe(summary) + "\n"


def test_one_chosen_category_is_not_called_all():
    scores = make_scores()
    summary = summarise(scores[scores["category"] == "dog"], NAMES, ALPHAS) | {"category": "dog"}
    lines = format_category_table(summary).splitlines()
    assert lines[1].split() == ["dog"] and lines[3].split() == ["0.1", "75.00%"]
    assert "over all pairs of the category dog alone: 1 pairs" in lines[-1]


def test_pairs_that_were_left_out_are_counted():
    summary = summarise(make_scores(), NAMES, ALPHAS) | {"pairs_left_out": 3}
    assert describe(summary).endswith("(1 more without keypoints, 3 more left out)")


def test_long_category_names_widen_the_columns():
    scores = make_scores().assign(category=["winebottle(wC)", "duck(S)", "winebottle(wC)"])
    lines = format_category_table(summarise(scores, NAMES, ALPHAS)).splitlines()
    assert lines[1].split() == ["duck(S)", "winebottle(wC)", "all"]
    assert lines[1].index("all") == lines[3].rindex("87.50%")


def test_scores_survive_the_csv_to_the_last_bit_and_pandas_reads_it_alone(tmp_path):
    scores, path = make_scores(), tmp_path / "run" / "x_pairs.csv"
    write_scores(path, scores)
    assert_frame_equal(read_scores(path), scores, check_dtype=False)
    assert read_scores(path)["threshold"].dtype == np.float32
    plain = pd.read_csv(path)
    assert list(plain) == list(scores) and (plain["nn@0.1"] / plain["n_points"]).mean() == 0.875


def write_pair_of_files(folder):
    """A result's scores and summary; the lines of the first."""
    scores = make_scores().assign(pair_id=["a", "b", "c"])
    write_scores(folder / "x_pairs.csv", scores)
    write_summary(folder / "x.json", summarise(scores, NAMES, ALPHAS), {}, {})
    return (folder / "x_pairs.csv").read_text(encoding="utf-8").splitlines()


def edit(line, column, text):
    """The line with another cell."""
    cells = line.split(",")
    cells[column] = text
    return ",".join(cells)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: [*t[:2], t[2][:20]], r"line 3: 6 cells, but 16 in the header"),
        (lambda t: [*t[:3], t[3] + ",1"], r"line 4: 17 cells, but 16 in the header"),
        (lambda t: [t[0].replace("pair_id", "pair"), *t[1:]], r"it has no column pair_id"),
        (lambda t: [t[0].replace("nn@0.05", "nn@0.1"), *t[1:]], r"line 1: a column is there twice"),
        (lambda t: [t[0], edit(t[1], 10, "x"), *t[2:]], r"line 2, column nn@0.1: 'x' cannot be read"),
        (lambda t: [t[0], edit(t[1], 6, "2.5"), *t[2:]], r"line 2, column n_points: '2.5' cannot be read"),
        (lambda t: [t[0], edit(t[1], 6, "3"), *t[2:]], r"column error:nn has not one number for each"),
        (lambda t: [t[0], edit(t[1], 13, "1 2"), *t[2:]], r"line 2, column threshold: '1 2' cannot be read"),
        (lambda t: [t[0], edit(t[1], 14, "1 4 nan 10.1"), *t[2:]], r"line 2, column error:nn: .* cannot be read"),
        (lambda t: [*t, *t], r"line 5, column index: 'index' cannot be read"),
        (lambda t: ["a,b", "1,2"], r"it has no column index, pair_id"),
        (lambda t: [], r"it has no column index"),
        (lambda t: [t[0], '"' + t[1]], r"line \d: "),
        (lambda t: [t[0], t[1] + "\0"], r"line \d"),
        (lambda t: t[:2], r"is not the table that x.json was written with"),
        (lambda t: [t[0], edit(t[1], 10, "1"), *t[2:]], r"is not the table that x.json was written with"),
    ],
)
def test_scores_that_were_changed_are_refused_in_one_line(tmp_path, change, message):
    lines = write_pair_of_files(tmp_path)
    assert len(read_scores(tmp_path / "x_pairs.csv")) == 3
    if "x.json" not in message:
        (tmp_path / "x.json").unlink()
    write_text(tmp_path / "x_pairs.csv", "".join(f"{line}\n" for line in change(lines)))
    with pytest.raises(ResultError, match=message) as caught:
        read_scores(tmp_path / "x_pairs.csv")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400 and "x_pairs.csv" in str(caught.value)


def test_what_is_no_text_is_refused(tmp_path):
    (tmp_path / "x_pairs.csv").write_bytes(b"\xff\xfe\x00index")
    with pytest.raises(ResultError, match="line 1"):
        read_scores(tmp_path / "x_pairs.csv")


@pytest.mark.parametrize("suffix", ["_pairs.csv", "_predictions.csv"])
def test_a_changed_digit_in_a_table_is_noticed_by_the_summary_beside_it(tmp_path, suffix):
    scores = make_scores().assign(pair_id=["a", "b", "c"])
    scores["point:nn"] = [np.ones((n, 2)) for n in scores["n_points"]]
    write_scores(tmp_path / "x_pairs.csv", scores)
    write_predictions(tmp_path / "x_predictions.csv", scores)
    write_summary(tmp_path / "x.json", summarise(scores, NAMES, ALPHAS), {}, {})
    path, read = tmp_path / f"x{suffix}", read_scores if "pairs" in suffix else read_predictions
    read(path)
    text = path.read_text()
    changed = text.replace("6.25", "6.24") if "pairs" in suffix else text.replace("1.00", "2.00", 1)
    assert changed != text
    path.write_text(changed)
    with pytest.raises(ResultError, match="is not the table that x.json was written with"):
        read(path)


def test_summary_comes_back_and_nothing_else_passes_for_one(tmp_path):
    summary = summarise(make_scores(), NAMES, ALPHAS)
    parts = {"config": {"DATASET.NAME": "spair"}, "provenance": {"commit": "abc"}, "made_by": {"prompt": "text"}}
    write_summary(tmp_path / "s.json", summary, *parts.values())
    content = read_summary(tmp_path / "s.json")
    assert content == {"summary": summary, **parts, "tables": {}}
    with pytest.raises(ValueError):
        write_summary(tmp_path / "nan.json", {"pck": float("nan")}, {}, {})
    assert os.listdir(tmp_path) == ["s.json"]
    changes = [{"pairs": -1}, {"pairs": "2"}, {"pck": {"nn": {"0.1": {"all": 4.01}}}}, {"pck": {"nn": 3}}]
    changes += [{"pck": {"nn": {"0.1": {"all": "x"}}}}, {"pck": {"nn": {"0.1": {}}}}, {"protocol": "mine"}, {"pck": []}]
    texts = [json.dumps(content | {"summary": summary | change}) for change in changes]
    for text in (*texts, "", "[]", "{", '{"summary": 1}', json.dumps(content | {"config": 3}), '{"summary": {}}'):
        write_text(tmp_path / "s.json", text)
        with pytest.raises(ResultError, match=r"s\.json"):
            read_summary(tmp_path / "s.json")


def test_predictions_come_back(tmp_path):
    path = tmp_path / "x_predictions.csv"
    scores = make_scores()
    scores["point:nn"] = [np.tile([1.25, 2.0], (n, 1)) for n in scores["n_points"]]
    write_predictions(path, scores)
    assert_frame_equal(read_predictions(path), scores[["index", "pair_id", "point:nn"]], check_dtype=False)


@pytest.mark.parametrize("cell", ["1 2;3", "1 2 3", "x y", "1 nan", "1e999 2"])
def test_damaged_predictions_are_refused(tmp_path, cell):
    path = tmp_path / "x_predictions.csv"
    path.write_text(f"index,pair_id,nn\n0,x,1 2\n1,y,{cell}\n")
    with pytest.raises(ResultError, match=r"line 3, column nn: .* cannot be read"):
        read_predictions(path)
    path.write_text("a,b\n")
    with pytest.raises(ResultError, match="has no column index, pair_id"):
        read_predictions(path)
