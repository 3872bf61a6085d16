"""The paper's tables: rows that keep out of each other's way, commands to run, numbers equal to the tests'."""

import csv
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest

from config import ROOT
from engine.build import find_caches
from engine.report import build_result_stem
from engine.result import read_scores, write_scores
from script import table
from script.tables.layout import PAPER, fill, write_csv, write_latex, write_markdown
from script.tables.report import write_report
from script.tables.results import list_lines, make_jobs
from script.tables.rows import MINI, REAL, SHOWN, SMOKE, build_tables, load_row, unique_rows
from tests.command import call
from tests.test_statistics import make_scores
from utils.pck import summarise
from utils.statistics import Measure

pytestmark = pytest.mark.usefixtures("fresh_accelerator")


def rows_of(world):
    """The rows whose config file is there."""
    return [row for row in unique_rows(build_tables(world).values()) if (ROOT / world.config_file(row)).is_file()]


# ---- rows ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("world", [REAL, MINI], ids=lambda world: world.name)
def test_a_key_names_one_row_and_its_settings_are_valid(world):
    by_key = {}
    for entry in build_tables(world).values():
        for row in entry.rows:
            assert by_key.setdefault(row.key, row) == row
    for row in rows_of(world):
        training, test = load_row(row, world)
        assert (training is not None) == bool(row.train_on)
        assert row.test_on == test.DATASET.NAME and (training is None or row.train_on == training.DATASET.NAME)


@pytest.mark.parametrize("world", [REAL, MINI], ids=lambda world: world.name)
def test_rows_share_a_prompt_only_if_they_learn_the_same_and_never_share_a_result(world):
    trainings, tests, caches = {}, {}, set()
    for row in rows_of(world):
        for seed in (0, 1) if row.test_on == "spair" else (0,):
            training, test = load_row(row, world, seed)
            caches.add(find_caches(test))
            assert tests.setdefault(build_result_stem(test), (row.key, seed)) == (row.key, seed)
            if training is not None:
                folder = (test.OUTPUT_ROOT, test.METHOD.WEIGHTS or test.PROMPT.TYPE)
                assert trainings.setdefault(folder, training) == training, row.key
                assert training.OUTPUT_ROOT == test.OUTPUT_ROOT
    assert len(trainings) > 10 and len(caches) == 1


def test_the_ablations_ask_for_what_they_say():
    def training(key):
        return load_row(by_key[key], REAL)[0]

    by_key = {row.key: row for row in rows_of(REAL)}
    assert training("cpm-Pair-DINO-Feat-G25-C50-noN/spair").PROMPT.CPM == "Pair-DINO-Feat-G25-C50-noN"
    assert training("cpm-Pair-DINO-Feat-G0-C50/spair").PROMPT.CPM == "Pair-DINO-Feat-G0-C50"
    assert training("single-init-object/spair").PROMPT.INIT == "text:a photo of an object"
    assert training("single-train-t50/spair").TRAIN.TIMESTEP == 50
    assert training("single-10/spair").PROMPT.LENGTH == 10
    assert load_row(by_key["text-384/spair"], REAL)[1].DATASET.IMAGE_SIZE == (384, 384)
    assert load_row(by_key["text-layer2/spair"], REAL)[1].METHOD.LAYER == 2
    assert load_row(by_key["text/spair"], REAL)[1].TEST.TIMESTEP == 261
    assert load_row(by_key["cpm-pfpascal/spair"], REAL)[1].PROMPT.TYPE == "CPM_pfpascal_sd2-1_Pair-DINO-Feat-G25-C50"
    assert load_row(by_key["cpm-spair/spair"], REAL)[1].TEST.TIMESTEP == 50
    assert training("cpm-pfpascal/spair").TRAIN.EPOCHS == 90
    swept = load_row(by_key["cpm-spair-t150/spair-val"], REAL)[1].TEST
    assert (swept.TIMESTEP, swept.SPLIT) == (150, "val")
    assert set(SHOWN) <= set(by_key)


def test_every_number_of_the_paper_has_a_row():
    rows = {row.key: row for row in unique_rows(build_tables(REAL).values())}
    assert set(PAPER["pck"]) | set(PAPER["categories"]) <= set(rows)
    for further in build_tables(REAL).values():
        if further.paper != "pck":
            assert set(PAPER[further.paper]) <= {row.key for row in further.rows} and PAPER["sources"][further.paper]
    for key, categories in PAPER["categories"].items():
        mean = sum(categories.values()) / 18
        assert len(categories) == 18 and mean == pytest.approx(PAPER["pck"][key]["0.1"], abs=0.5)


def test_every_table_has_a_script_and_every_script_a_table():
    scripts = sorted([*ROOT.glob("script/table*.sh"), *ROOT.glob("script/ablation/*.sh")])
    for script in scripts:
        subprocess.run(["sh", "-n", script], check=True)
        assert re.findall(r"^run_table (\w+)", script.read_text(), flags=re.M) == [script.stem]
    assert {script.stem for script in scripts} == set(build_tables(REAL))


# ---- commands ---------------------------------------------------------------------------------------------------


@pytest.fixture
def small(world, tmp_path):
    """(world of rows, settings of every row): tiny networks, everything below tmp_path/out."""
    opts = world.opts(tmp_path / "out", "PROMPT.CPM", "Pair-DINO-Feat-G3-C4", "TRAIN.MAX_STEPS", "1")
    opts = [
        word for key, value in zip(opts[::2], opts[1::2], strict=True) if key != "OUTPUT_ROOT" for word in (key, value)
    ]
    return replace(REAL, root=str(tmp_path / "out")), opts


def plan(small, *keys, seeds=(0,), more=()):
    """Jobs and shell lines of the rows."""
    world, opts = small
    jobs, impossible = make_jobs([row for row in rows_of(world) if row.key in keys], world, seeds, [*opts, *more])
    assert not impossible
    return jobs, list(list_lines(jobs, "python"))


def run_lines(small, *keys, **settings):
    """Run what is left to do in this process; the scripts that ran."""
    ran = []
    for line in plan(small, *keys, **settings)[1]:
        for command in line.split(" && "):
            _, script, *words = shlex.split(command)
            ran.append(script.removesuffix(".py"))
            assert call(script, *words) == 0
    return ran


def test_rows_are_run_once_and_again_when_something_changed(small):
    keys = "text/spair", "cpm-spair/spair", "cpm-spair/pfwillow"
    assert [line.count(" && ") for line in plan(small, *keys)[1]] == [0, 2]  # a line for each prompt: train, test, test
    assert run_lines(small, *keys) == ["test", "train", "test", "test"]
    assert run_lines(small, *keys) == []
    assert run_lines(small, *keys, more=["TEST.ENSEMBLE", "1"]) == ["test", "train", "test", "test"]
    assert run_lines(small, *keys, more=["TRAIN.MAX_STEPS", "2"]) == ["train", "test", "test"]


def test_a_row_tested_on_a_gpu_is_finished_on_a_machine_without(small, monkeypatch):
    assert run_lines(small, "text/spair") == ["test"]
    monkeypatch.setattr(
        "engine.identity.resolve_precision", lambda cfg: "fp16" if cfg.PRECISION == "auto" else cfg.PRECISION
    )
    assert run_lines(small, "text/spair") == []
    assert len(plan(small, "text/spair", more=["PRECISION", "bf16"])[1]) == 1


@pytest.mark.parametrize("damage", ["half", "edited", "none", "summary"])
def test_a_damaged_result_is_not_finished(small, damage):
    jobs, _ = plan(small, "text/spair")
    assert run_lines(small, "text/spair") == ["test"]
    stem = build_result_stem(jobs[0].test)
    table, summary = stem.with_name(stem.name + "_pairs.csv"), stem.with_name(stem.name + ".json")
    lines = table.read_text().splitlines(keepends=True)
    if damage == "half":
        table.write_text("".join(lines[:3]))
    elif damage == "edited":
        table.write_text("".join(lines).replace(",5,", ",4,", 1))
    elif damage == "none":
        table.unlink()
    else:
        summary.write_text(json.dumps({"summary": {}, "config": {}}))
    assert run_lines(small, "text/spair") == ["test"] and run_lines(small, "text/spair") == []


def test_a_prompt_of_the_authors_is_tested_without_training(small, tmp_path):
    jobs, _ = plan(small, "cpm-spair/spair")
    run_lines(small, "cpm-spair/spair")
    (jobs[0].prompt_folder / "prompt.json").unlink()  # theirs have none
    for path in jobs[0].prompt_folder.glob("*_result_*"):
        path.unlink()
    shutil.rmtree(tmp_path / "out" / "log")
    assert run_lines(small, "cpm-spair/spair") == ["test"]


def test_rows_that_cannot_run_are_named_with_the_reason():
    rows = [row for row in unique_rows(build_tables(MINI).values()) if row.key.startswith(("dinov1", "cpm-Img-CLIP"))]
    _, impossible = make_jobs(rows, replace(MINI, opts=("DATASET.ROOT", "/nowhere")), [0], [])
    assert impossible["dinov1/spair"] == "config/mini/dinov1.yaml is not there"
    assert "/nowhere/SPair-71k is not there" in impossible["cpm-Img-CLIP-Feat-G25-C50/spair"]


@pytest.mark.parametrize("world", [REAL, MINI], ids=lambda world: world.name)
def test_rows_lack_at_most_their_data_or_a_block_of_the_network(world):
    _, impossible = make_jobs(rows_of(world), replace(world, opts=("DATASET.ROOT", "/nowhere")), [0], [])
    others = {reason for reason in impossible.values() if not reason.endswith("is not there")}
    assert impossible and all("METHOD.LAYER" in reason and world is MINI for reason in others), others


def test_the_listed_lines_parse_and_paths_are_quoted(small, capsys, tmp_path):
    root = str(tmp_path / "a folder")
    opts = ["--opts", *small[1]]
    flags = ["table3", "--output", root, "--commands", "--launcher", "accelerate launch", *opts]
    assert call("script/table.py", *flags) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    for line in lines:
        train, *tests = line.split(" && ")
        assert len(tests) == 3
        assert shlex.split(train)[:3] == ["accelerate", "launch", "train.py"]
        assert all(root in shlex.split(test) for test in tests)


def test_the_pictures_are_of_the_prompts_that_were_tested(small, capsys):
    world, opts = small
    run_lines(small, "text/spair")
    capsys.readouterr()
    assert call("script/table.py", "--output", world.root, "--pictures", "--opts", *opts) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [shlex.split(line)[1:3] for line in lines] == [
        ["script/figure.py", kind] for kind in ("matches", "correlation")
    ]
    assert call(*shlex.split(lines[0])[1:]) == 0 and (Path(world.root) / "figure" / "matches.png").is_file()


def fake_python(tmp_path):
    """A PYTHON for the shell scripts whose train.py and test.py do as the file `status` says; what it ran."""
    script = tmp_path / "python"
    script.write_text(
        "#!/bin/sh\n"
        'case "$1" in\n'
        f'train.py|test.py) echo "$1" >> "{tmp_path}/ran"; exit $(cat "{tmp_path}/status") ;;\n'
        f'*) exec "{sys.executable}" "$@" ;;\nesac\n'
    )
    script.chmod(0o755)
    return os.environ | {"PYTHON": str(script)}


def run_script(tmp_path, small, status, *flags):
    (tmp_path / "status").write_text(str(status))
    (tmp_path / "ran").write_text("")
    opts = ["--opts", *small[1]]
    command = ["sh", str(ROOT / "script" / "table3.sh"), "--output", str(tmp_path / "out put"), *flags, *opts]
    done = subprocess.run(command, capture_output=True, text=True, env=fake_python(tmp_path), check=False)
    return done, (tmp_path / "ran").read_text().split()


@pytest.mark.parametrize(("status", "ran", "tables"), [(0, 16, True), (1, 4, True), (130, 1, False), (143, 1, False)])
def test_a_failed_row_is_named_and_an_interruption_stops_all(tmp_path, small, status, ran, tables):
    done, found = run_script(tmp_path, small, status)
    assert len(found) == ran and done.returncode == (status if status != 0 else 0)
    assert ("written:" in done.stdout) == tables
    assert done.stderr.count("failed: ") == (4 if status == 1 else 0)
    assert "== 1 of 4: " in done.stdout


def test_a_listing_runs_nothing(tmp_path, small):
    done, found = run_script(tmp_path, small, 0, "--commands")
    assert done.returncode == 0 and found == [] and len(done.stdout.splitlines()) == 4


# ---- tables ---------------------------------------------------------------------------------------------------------


def test_a_table_shows_the_numbers_of_the_test_itself(small):
    world, opts = small
    run_lines(small, "text/spair", "cpm-spair/spair", seeds=(0, 1))
    jobs, _ = plan(small, "text/spair", "cpm-spair/spair", seeds=(0, 1))
    tables, measure = build_tables(world), Measure()

    def find(row, seeds=(0, 1)):
        return [job.scores for job in jobs if job.row == row and job.seed in seeds]

    expected = []
    for job in jobs:
        stem = build_result_stem(job.test)
        assert job.scores.equals(read_scores(f"{stem}_pairs.csv"))
        if job.row.key == "cpm-spair/spair":
            expected.append(
                json.loads(stem.with_name(stem.name + ".json").read_text())["summary"]["pck"]["kernelsoftmax"]
            )
    two = fill(tables["table4"], world, find, {}, measure)
    for cell in two.cells[two.cells["line"] == "Pair + Feat (default)"].itertuples():
        values = [pck[f"{cell.alpha:g}"]["all"] for pck in expected]
        assert cell.measured == pytest.approx(100 * sum(values) / 2, abs=1e-9) and (cell.seeds, cell.over) == (
            2,
            "seeds",
        )
    one = fill(tables["table2"], world, lambda row: find(row, (0,)), {}, measure)
    cell = one.cells[(one.cells["line"] == "SD4Match-CPM") & (one.cells["category"] == "all")].iloc[0]
    assert cell["measured"] == pytest.approx(100 * expected[0]["0.1"]["all"], abs=1e-9) and cell["over"] == "pairs"
    assert cell["low"] <= cell["measured"] <= cell["high"]

    folder = ROOT / world.root
    page = write_report(folder, [two, one], unique_rows(tables.values()), find, measure).read_text()
    assert "not run" in page and "data:image/svg+xml;base64," in page and "smoke" not in page.lower()
    assert not re.search(r'(src|href)="(?!data:|#)', page)
    for target in re.findall(r"\]\(([^)]+)\)", (folder / "report.md").read_text()):
        assert (folder / target).is_file()


def fill_by_hand(world=REAL, scores=None):
    """Table 4 with one row that was run."""
    scores = make_scores(60) if scores is None else scores
    scores = scores.assign(**{"kernelsoftmax@0.05": 0, "kernelsoftmax@0.1": scores["n_points"]})
    scores["kernelsoftmax@0.15"] = scores["n_points"]
    entry = build_tables(world)["table4"]
    done = entry.lines["Pair + Head"]["spair"]
    reasons = {entry.lines["Img + Feat"]["spair"].key: "no GPU"}
    return fill(entry, world, lambda row: [scores] if row == done else [], reasons, Measure())


def test_known_cells():
    cells = fill_by_hand().cells.set_index(["line", "alpha"])
    cell = cells.loc[("Pair + Head", 0.1)]
    assert (cell["paper"], cell["measured"], cell["low"], cell["high"]) == (73.3, 100, 100, 100)
    assert (cell["over"], cell["seeds"], cell["pairs"]) == ("pairs", 1, 60)
    assert cell["difference"] == pytest.approx(26.7)
    assert pd.isna(cells.loc[("Img + Feat", 0.1), "measured"])


def test_markdown_csv_and_latex():
    filled = fill_by_hand()
    markdown, latex = write_markdown(filled), write_latex(filled)
    assert (
        "| Pair + Head | paper | – | 73.3 | – |\n|  | measured | 0.0 | 100.0 | 100.0 |\n"
        "|  | 95 % over pairs | [0.0, 0.0] | [100.0, 100.0] | [100.0, 100.0] |\n|  | difference | – | +26.7 | – |"
    ) in markdown
    assert "| Img + Feat | paper | – | 70.8 | – |\n|  | measured | not run | not run | not run |" in markdown
    assert "Not run: cpm-Img-DINO-Feat-G25-C50/spair: no GPU." in markdown
    rows = list(csv.DictReader(io.StringIO(write_csv(filled))))
    (row,) = (row for row in rows if row["row"] == "cpm-Pair-DINO-Head-G25-C50/spair" and row["alpha"] == "0.1000")
    assert (row["paper"], row["measured"], row["difference"], row["seeds"]) == ("73.3000", "100.0000", "26.7000", "1")
    assert {row["measured"] for row in rows if row["line"] == "Img + Head"} == {""}
    assert latex.count(r"\begin") == latex.count(r"\end") and not re.search(r"(?<!\\)[%&_]\w* ?Table", latex)
    assert r"Pair + Head & paper & -- & 73.3 & -- \\" in latex and r"95 \% over pairs" in latex


def test_a_table_shows_its_own_localiser_unless_another_is_asked_for(tmp_path, monkeypatch, capsys):
    (row,) = [row for row in unique_rows(build_tables(MINI).values()) if row.key == "ldm-val/spair"]
    jobs = [SimpleNamespace(row=row, scores=make_scores(20))]  # of the localiser nn alone
    monkeypatch.setattr("script.tables.results.make_jobs", lambda *_: (jobs, {}))
    assert call("script/table.py", "ldm", "--mini", "--output", tmp_path) == 0
    assert ", nn, " in capsys.readouterr().out
    assert call("script/table.py", "ldm", "--mini", "--output", tmp_path, "--localiser", "window") == 2
    assert "no result of ldm holds the localiser window" in capsys.readouterr().err


def test_a_row_that_was_tested_without_the_localiser_is_named_and_stops_no_other(tmp_path, monkeypatch, capsys):
    rows = {row.key: row for row in unique_rows(build_tables(MINI).values())}
    with_window, without = (
        make_scores(20).rename(columns=lambda name, kind=kind: name.replace("nn@", f"{kind}@"))
        for kind in ("window", "kernelwindow")
    )
    with_window["window@0.01"] = 0
    scores = {"text-pad/spair": without, "geoaware-pad/spair": with_window}
    jobs = [SimpleNamespace(row=rows[key], scores=found) for key, found in scores.items()]
    monkeypatch.setattr("script.tables.results.make_jobs", lambda *_: (jobs, {}))
    command = ["script/table.py", "table_spairu", "--mini", "--output", tmp_path, "--localiser", "window"]
    assert call(*command) == 0
    page = capsys.readouterr().out
    assert "Not run: text-pad/spair: tested without the localiser window." in page
    (line,) = (line for line in page.splitlines() if re.search(r"\| measured \|.*\d\.\d", line))
    assert line.count("not run") == 3  # of the other benchmark


def test_the_mini_world_gives_no_difference_from_the_paper():
    markdown = write_markdown(fill_by_hand(MINI))
    assert "difference |" not in markdown and "mini SPair-71k @0.1" in markdown and "say nothing about them" in markdown


def test_a_smoke_test_says_so_in_every_title_name_and_table(tmp_path):
    filled = fill_by_hand(SMOKE, make_scores(20))
    assert filled.name == "smoke_table4" and set(pd.read_csv(io.StringIO(write_csv(filled)))["smoke"]) == {True}
    for text in (write_markdown(filled), write_latex(filled)):
        assert "SMOKE TEST, NOT A RESULT: Table 4" in text and "mini SPair-71k, dog only" in text
    rows = unique_rows(build_tables(SMOKE).values())
    path = write_report(tmp_path, [filled], rows, lambda row: [], Measure())
    assert path.name == "smoke_report.html" and "<h1>SMOKE TEST, NOT A RESULT: " in path.read_text()
    text = (tmp_path / "smoke_report.md").read_text()
    assert text.startswith("# SMOKE TEST, NOT A RESULT: ")
    assert "| first | second | paper | second − first | p | 95 % interval says |\n| --- |" in text


def test_names_cannot_inject_anything_into_the_page(tmp_path):
    scores = make_scores(20).assign(category="<script>alert(1)</script>")
    scores["kernelsoftmax@0.1"] = scores["n_points"]
    entry = build_tables(MINI)["table2"]
    filled = fill(entry, MINI, lambda row: [scores], {entry.rows[0].key: "<img src=x>"}, Measure())
    rows = unique_rows(build_tables(MINI).values())
    text = write_report(tmp_path, [filled], rows, lambda row: [], Measure()).read_text()
    assert "&lt;script&gt;alert" in text and "<script>" not in text and "<img src=x" not in text


def test_choices_are_checked(monkeypatch, capsys):
    for flags, message in (
        (["table9"], "no table table9; known: table1, "),
        (["table4", "--only", "x"], "no row x in these tables; known: cpm-spair/spair"),
        (["--smoke"], "--smoke is a short form of --mini; give both"),
    ):
        assert call("script/table.py", *flags) == 2 and message in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["table.py", "table1", "--mini", "--smoke"])
    args = table.parse_args()
    assert [row.key for row in table.choose_tables(args, table.choose_world(args, smoke=True))[1]] == [
        "text/spair",
        "cpm-spair/spair",
    ]


def test_a_mistyped_setting_stops_before_anything_is_written(tmp_path, capsys):
    assert call("script/table.py", "table1", "--mini", "--output", tmp_path, "--opts", "TEST.ENSEMBEL", "1") == 2
    assert "unknown key TEST.ENSEMBEL; did you mean TEST.ENSEMBLE" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


# ---- analyse.py -----------------------------------------------------------------------------------------------------


def run_analysis(*arguments):
    return call("script/analyse.py", *arguments, "--localiser", "nn", "--draws", "50")


def test_two_files_are_compared_over_the_pairs_that_both_have(tmp_path, capsys):
    a, b = make_scores(40, seed=1), make_scores(12, seed=2, scale=3.0)
    write_scores(tmp_path / "a_pairs.csv", a)
    write_scores(tmp_path / "b_pairs.csv", b)
    files = [tmp_path / "a_pairs.csv", tmp_path / "b_pairs.csv"]
    assert run_analysis(*files, "--json", tmp_path / "x.json") == 0
    printed = capsys.readouterr().out
    assert "THE FILES HOLD DIFFERENT PAIRS; everything below is over the 12 pairs that all have." in printed
    assert f"40 pairs: {files[0]}" in printed and "paired bootstrap over 12 pairs" in printed
    content = json.loads((tmp_path / "x.json").read_text())
    total = content["results"][str(files[0])]["groups"][0]
    expected = summarise(a[:12], ["nn"], [0.1])["pck"]["nn"]["0.1"]["all"]
    assert total["pairs"] == 12 and total["value"] == pytest.approx(100 * expected)
    assert content["comparisons"][str(files[1])]["pairs"] == 12
    assert run_analysis(files[0]) == 0 and "DIFFERENT" not in capsys.readouterr().out


def test_files_that_cannot_be_analysed_are_answered_in_one_line(tmp_path, capsys):
    write_scores(tmp_path / "none_pairs.csv", make_scores(2, empty=(0, 1)))
    (tmp_path / "bad_pairs.csv").write_text("a,b\n")
    for name, message in (
        ("none", "holds no pair with keypoints"),
        ("bad", "it has no column index"),
        ("x", "No such"),
    ):
        assert run_analysis(tmp_path / f"{name}_pairs.csv") == 1
        error = capsys.readouterr().err
        assert message in error and f"{name}_pairs.csv" in error and error.count("\n") == 1
