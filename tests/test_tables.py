"""The paper's tables: rows that keep out of each other's way, a runner that goes on, numbers equal to the tests'."""

import csv
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace

import pytest

import script.rows as rows_script
import script.sweep_timestep as sweep_script
import script.table as table_script
import test as test_script
import train as train_script
from config import ROOT, ConfigError, load_config
from engine.build import find_caches
from engine.check import check_config
from engine.result import read_pairs_csv, write_pairs_csv
from script import analyse
from script.tables.crew import Crew, find_slots
from script.tables.estimate import Clock, count_tflop, format_duration
from script.tables.layout import PAPER, Cell, describe_measure, fill, to_csv, to_latex, to_markdown
from script.tables.report import write_report
from script.tables.results import State, find_result, make_job, relevant_settings
from script.tables.rows import MINI, REAL, SHOWN, SMOKE, build_tables, load_row, unique_rows
from tests.test_statistics import make_records
from utils.statistics import Interval, Measure

pytestmark = pytest.mark.usefixtures("fresh_accelerator")


def rows_of(world):
    """The rows whose config file is there."""
    return [row for row in unique_rows(build_tables(world).values()) if (ROOT / world.config_file(row)).is_file()]


# ---- rows ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("world", [REAL, MINI], ids=lambda world: world.name)
def test_a_key_names_one_row_and_its_settings_are_valid(world):
    for table in build_tables(world).values():
        for line in table.lines:
            for name, row in line.rows.items():
                assert row.test_on == name and row.key.endswith(f"/{name}")
    by_key = {}
    for table in build_tables(world).values():
        for row in table.rows:
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
            job = make_job(row, world, seed, [])
            caches.add(find_caches(job.test))
            assert tests.setdefault(job.stem, job.key) == job.key
            if job.training is not None:
                learned = {k: v for k, v in relevant_settings(job.training, True).items() if not k.startswith("TEST.")}
                assert trainings.setdefault(job.prompt_folder, learned) == learned, job.key
                assert job.training.OUTPUT_ROOT == job.test.OUTPUT_ROOT
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
    assert set(SHOWN) <= set(by_key)


def test_every_number_of_the_paper_has_a_row():
    rows = {row.key: row for row in unique_rows(build_tables(REAL).values())}
    assert set(PAPER["pck"]) | set(PAPER["categories"]) <= set(rows)
    for key, categories in PAPER["categories"].items():
        mean = sum(categories.values()) / 18
        assert len(categories) == 18 and mean == pytest.approx(PAPER["pck"][key]["0.1"], abs=0.5)


@pytest.mark.parametrize("script", sorted([*ROOT.glob("script/table*.sh"), *ROOT.glob("script/ablation/*.sh")]))
def test_there_is_a_script_for_every_table(script):
    subprocess.run(["sh", "-n", script], check=True)
    (name,) = re.findall(r"^run_(?:table|rows) (\w+)", script.read_text(), flags=re.M)
    assert name in {*build_tables(REAL), "test_timestep"}
    assert script.stem == name


def test_every_table_has_a_script():
    for name in (*build_tables(REAL), "test_timestep"):
        assert (ROOT / f"script/{name}.sh").is_file() or (ROOT / f"script/ablation/{name}.sh").is_file()


# ---- the runner -------------------------------------------------------------------------------------------------


@pytest.fixture
def small(world, tmp_path, monkeypatch):
    """(world of rows, settings, stages that were run): commands run in this process, on tiny networks."""
    ran = []
    opts = world.opts(tmp_path / "out", "PROMPT.CPM", "Pair-DINO-Feat-G3-C4", "TRAIN.MAX_STEPS", "1")
    opts = [value for pair in zip(opts[::2], opts[1::2], strict=True) if pair[0] != "OUTPUT_ROOT" for value in pair]

    def run_here(crew, command, log, slot):
        name, words = next(
            (n, command[i + 1 :]) for n in ("train", "test") for i, w in enumerate(command) if w == f"{n}.py"
        )
        ran.append(name)
        cfg = load_config(words[1], words[2:])
        check_config(cfg, training=name == "train")
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text("test.py: the disk is full\n" if run_here.fail else "")
        if not run_here.fail:
            train_script.train(cfg, False) if name == "train" else test_script.test(cfg)
        return int(run_here.fail)

    run_here.fail = False
    monkeypatch.setattr(Crew, "run", run_here)
    monkeypatch.setattr("script.tables.estimate.measure_matmul_peak", lambda *_: 1.0)
    return replace(REAL, root=str(tmp_path / "out")), opts, ran, run_here


def go(small, *keys, seeds=(0,), more=()):
    """Run the rows; (failures, runner)."""
    world, opts, _, _ = small
    runner = rows_script.Runner(world, [*opts, *more], Crew([{}]))
    runner.plan([row for row in rows_of(world) if row.key in keys], seeds)
    return rows_script.run_all(runner, listing=False), runner


def test_rows_are_run_once_and_again_when_something_changed(small, capsys):
    keys = "text/spair", "cpm-spair/spair", "cpm-spair/pfwillow"
    world, opts, ran, _ = small
    failures, runner = go(small, *keys)
    assert failures == 0 and sorted(ran) == ["test", "test", "test", "train"]
    assert "estimates: " in capsys.readouterr().out
    ran.clear()
    assert go(small, *keys)[0] == 0 and ran == []
    assert "3 rows are finished, 0 to do" in capsys.readouterr().out

    (prompt,) = (job.prompt_files[0] for job in runner.jobs if job.key == "cpm-spair/spair")
    later = time.time_ns() + 10**9
    os.utime(prompt, ns=(later, later))  # as if it had been learned again
    go(small, *keys)
    assert ran == ["test", "test"]
    ran.clear()
    os.utime(prompt, ns=(1, 1))
    go(small, *keys, more=["TEST.ENSEMBLE", "1"])
    assert ran == ["test", "test", "test"]
    ran.clear()
    go(small, *keys, more=["TRAIN.MAX_STEPS", "2"])  # the training goes on, and everything learned is tested again
    assert sorted(ran) == ["test", "test", "train"]
    assert len(list((runner.jobs[0].stem.parents[1]).iterdir())) == 2

    state = State.load(world.root)
    other = State.load(world.root)  # of a process that runs other rows meanwhile
    other.record(rows={"other": {"reason": "none"}})
    state.record(rows={"text/spair": state.rows["text/spair"] | {"weights": "of another network"}})
    assert "other" in State.load(world.root).rows
    ran.clear()
    go(small, *keys, more=["TRAIN.MAX_STEPS", "2"])
    assert ran == ["test"]


def test_groups_run_side_by_side_and_their_jobs_in_order(tmp_path):
    crew, ended = Crew([{"NAME": "a"}, {"NAME": "b"}]), []

    def do(job, slot):  # the first two groups wait for each other
        wait = f"touch {tmp_path}/{job}; until [ -e {tmp_path}/1 ] && [ -e {tmp_path}/2 ]; do sleep 0.01; done"
        command = ["timeout", "20", "sh", "-c", f"{wait}; echo $NAME; exit 3"]
        assert crew.run(command, tmp_path / f"{job}.log", slot) == 3
        ended.append(job)

    crew.work([["1", "1then"], ["2"], ["3"]], do)
    assert sorted(ended) == ["1", "1then", "2", "3"] and ended.index("1") < ended.index("1then")
    assert {(tmp_path / f"{job}.log").read_text() for job in "12"} == {"a\n", "b\n"}


def wait_for(path):
    deadline = time.monotonic() + 20
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture
def listens_to_ctrl_c():
    """A test run in the background ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("listens_to_ctrl_c")
@pytest.mark.parametrize("slots", [1, 2])
def test_ctrl_c_lets_running_commands_save_and_starts_no_more(slots, tmp_path):
    crew, begun = Crew([{}] * slots), []

    def do(job, slot):
        begun.append(job)
        saves = f"trap 'echo {job} >> {tmp_path}/saved; exit' TERM; touch {tmp_path}/{job}; sleep 60 & wait"
        crew.run(["sh", "-c", saves], tmp_path / f"{job}.log", slot)

    def press():
        for job in "ab"[:slots]:
            wait_for(tmp_path / job)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=press).start()
    with pytest.raises(KeyboardInterrupt):
        crew.work([["a", "then"], ["b"], ["never"]], do)
    assert sorted(begun) == sorted((tmp_path / "saved").read_text().split()) == list("ab"[:slots])
    with pytest.raises(KeyboardInterrupt):
        crew.run(["true"], tmp_path / "after", {})


def test_the_error_of_one_worker_stops_the_others_and_is_told(tmp_path):
    crew = Crew([{}, {}])

    def do(job, slot):
        if job == "full":
            wait_for(tmp_path / "up")
            raise OSError("no space left")
        crew.run(["sh", "-c", f"touch {tmp_path}/up; exec sleep 60"], tmp_path / "log", slot)

    start = time.monotonic()
    with pytest.raises(OSError, match="no space left"):
        crew.work([["long"], ["full"]], do)
    assert time.monotonic() - start < 30


def test_slots_share_the_cores_or_the_gpus(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(8), raising=False)
    assert find_slots() == [{"OMP_NUM_THREADS": "4"}] * 2 and find_slots(1) == [{"OMP_NUM_THREADS": "8"}]
    assert Crew(find_slots()).rows_per_device == 2
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    assert [slot["CUDA_VISIBLE_DEVICES"] for slot in find_slots(3)] == ["4", "6", "4"]
    assert [Crew(find_slots(count)).rows_per_device for count in (2, 3)] == [1, 2] and find_slots(1) == [{}]


def test_a_row_that_fails_is_named_with_its_reason_and_tried_again(small, capsys):
    world, opts, ran, run_here = small
    run_here.fail = True
    assert go(small, "text/spair", "text/pfpascal")[0] == 2
    assert State.load(world.root).rows["text/spair"]["reason"].startswith("test.py: the disk is full (log: ")
    run_here.fail = False
    assert go(small, "text/spair", "text/pfpascal")[0] == 0
    assert "reason" not in State.load(world.root).rows["text/spair"]
    assert go(small, "text-layer3/spair")[0] == 0
    assert "up_blocks 0..2" in State.load(world.root).rows["text-layer3/spair"]["reason"]
    assert "not run: text-layer3/spair" in capsys.readouterr().out


def test_a_prompt_from_elsewhere_is_tested_without_training(small, tmp_path):
    _, _, ran, _ = small
    go(small, "cpm-spair/spair")
    (tmp_path / "out" / "rows.json").unlink()
    shutil.rmtree(tmp_path / "out" / "log")
    ran.clear()
    go(small, "cpm-spair/spair", "cpm-spair/pfpascal")
    assert ran == ["test"]


def test_a_table_shows_the_numbers_of_the_test_itself(small, capsys):
    world, opts, _, _ = small
    go(small, "text/spair", "cpm-spair/spair", seeds=(0, 1))
    state, tables = State.load(world.root), build_tables(world)
    find = table_script.make_finder(world, state, (0, 1), opts)
    filled = fill(tables["table4"], world, find, {}, Measure())
    expected = []
    for seed in (0, 1):
        job = make_job(tables["table4"].lines[0].rows["spair"], world, seed, opts)
        expected.append(json.loads(job.stem.with_name(job.stem.name + ".json").read_text())["summary"])
        assert find_result(job, state) == read_pairs_csv(f"{job.stem}_pairs.csv")
    for column, cell in zip(filled.columns, filled.blocks[0].cells, strict=True):
        values = [summary["pck"]["kernelsoftmax"][f"{column.alpha:g}"]["all"] for summary in expected]
        assert cell.measured == pytest.approx(100 * sum(values) / 2, abs=1e-12) and cell.seeds == 2
    two = fill(tables["table2"], world, find, {}, Measure())
    assert describe_measure(two).endswith("95 % interval over seeds (Student's t)")
    only_text = table_script.make_finder(world, state, (0,), opts)
    mixed = fill(
        tables["table2"], world, lambda row: only_text(row) if row.key == "text/spair" else find(row), {}, Measure()
    )
    assert describe_measure(mixed).endswith(
        "over pairs (bootstrap), of rows with several seeds over these (Student's t)"
    )
    one = fill(tables["table2"], world, table_script.make_finder(world, state, (0,), opts), {}, Measure())
    found = one.blocks[3].cells[-1]
    assert found.measured == 100 * expected[0]["pck"]["kernelsoftmax"]["0.1"]["all"]
    assert found.interval.low <= found.measured <= found.interval.high

    page = write_report(ROOT / world.root, [filled, one], world, find, Measure(), state).read_text()
    assert "not run" in page and "data:image/svg+xml;base64," in page
    assert not re.search(r'(src|href)="(?!data:|#)', page)
    markdown = (ROOT / world.root / "report.md").read_text()
    for target in re.findall(r"\]\(([^)]+)\)", markdown):
        assert (ROOT / world.root / target).is_file()

    files = [str(path) for path in (ROOT / world.root / "prompt").glob("*/*_pairs.csv")]
    args = analyse.argparse.Namespace(files=files, localiser="nn", alpha=0.1, by="point", average="pair", draws=50)
    content = analyse.run(args)
    assert set(content["results"]) == set(files) and len(content["comparisons"]) == len(files) - 1
    for file, found in content["results"].items():
        records = read_pairs_csv(file)
        hits = sum(record["hits"]["nn"]["0.1"] for record in records)
        assert found["all"]["value"] == hits / sum(record["n_points"] for record in records)


def test_the_sweep_writes_each_timestep_and_goes_on(world, tmp_path, monkeypatch, capsys):
    def sweep(*timesteps, opts=(), **flags):
        argv = [
            "x",
            "--prompts",
            "text",
            "empty",
            "--timesteps",
            *map(str, timesteps),
            "--opts",
            *world.opts(tmp_path, *opts),
        ]
        monkeypatch.setattr("sys.argv", argv)
        args = sweep_script.parse_args()
        args.overwrite = flags.get("overwrite", False)
        return sweep_script.run(args)

    asked = []
    original = sweep_script.sweep

    def interrupted(cfg, timesteps):
        for timestep, value in original(cfg, timesteps):
            asked.append((cfg.PROMPT.TYPE, timestep))
            yield timestep, value
            if cfg.PROMPT.TYPE == "empty":
                raise KeyboardInterrupt

    monkeypatch.setattr(sweep_script, "sweep", interrupted)
    with pytest.raises(KeyboardInterrupt):
        sweep(50, 261)
    table = tmp_path / "figure" / "timestep_spair_val_all.csv"
    before = sweep_script.read_scores(table)
    assert list(before) == [("text", 50), ("text", 261), ("empty", 50)]
    monkeypatch.setattr(
        sweep_script, "sweep", lambda cfg, t: asked.extend((cfg.PROMPT.TYPE, x) for x in t) or original(cfg, t)
    )
    sweep(50, 261)
    assert asked == [("text", 50), ("text", 261), ("empty", 50), ("empty", 261)]
    assert before.items() <= sweep_script.read_scores(table).items() and table.with_suffix(".png").is_file()
    with pytest.raises(ConfigError, match="made with other settings; give --overwrite"):
        sweep(50, opts=["TEST.ENSEMBLE", "1"])
    sweep(50, opts=["TEST.ENSEMBLE", "1"], overwrite=True)
    assert list(sweep_script.read_scores(table)) == [("text", 50), ("empty", 50)]


# ---- texts ----------------------------------------------------------------------------------------------------------


def fill_by_hand(world=REAL):
    """Table 4 with one row that was run."""
    records = make_records(60)
    for record in records:
        record["hits"] = {"kernelsoftmax": {"0.05": 0, "0.1": record["n_points"], "0.15": record["n_points"]}}
    table = build_tables(world)["table4"]
    done = table.lines[1].rows["spair"]
    return fill(
        table,
        world,
        lambda row: [records] if row == done else [],
        {table.lines[2].rows["spair"].key: "no GPU"},
        Measure(),
    )


def test_known_cells():
    filled = fill_by_hand()
    assert filled.blocks[1].cells[1] == Cell(73.3, 100.0, Interval(100.0, 100.0, 100.0), 1)
    assert filled.blocks[1].cells[1].difference == pytest.approx(26.7)
    assert filled.blocks[2].reasons == ("no GPU",) and filled.blocks[2].cells[1].measured is None


def test_markdown_csv_and_latex():
    markdown, latex = to_markdown(fill_by_hand()), to_latex(fill_by_hand())
    assert "| Pair + Head | paper | – | 73.3 | – |\n|  | measured | 0.0 [0.0, 0.0] | 100.0 [100.0, 100.0] |" in markdown
    assert "|  | difference | – | +26.7 | – |" in markdown and "- Img + Feat: no GPU" in markdown
    assert "| Img + Feat | paper | – | 70.8 | – |\n|  | measured | not run | not run | not run |" in markdown
    rows = list(csv.DictReader(io.StringIO(to_csv(fill_by_hand()))))
    (row,) = (row for row in rows if row["row"] == "cpm-Pair-DINO-Head-G25-C50/spair" and row["alpha"] == "0.1")
    assert (row["paper"], row["measured"], row["difference"], row["seeds"]) == ("73.3000", "100.0000", "26.7000", "1")
    assert {row["measured"] for row in rows if row["line"] == "Img + Head"} == {"not run"}
    assert latex.count(r"\begin") == latex.count(r"\end") and r"95 \% interval" in latex and "_" not in latex
    assert r"Pair + Head & paper & -- & 73.3 & -- \\" in latex


def test_the_mini_world_gives_no_difference_from_the_paper():
    markdown = to_markdown(fill_by_hand(MINI))
    assert "difference |" not in markdown and "mini SPair-71k @0.1" in markdown and "say nothing about them" in markdown


# ---- estimates ------------------------------------------------------------------------------------------------------


def test_estimates_follow_the_arithmetic_and_then_the_clock(world, tmp_path, monkeypatch):
    monkeypatch.setattr("script.tables.estimate.measure_matmul_peak", lambda *_: 10.0)
    rows = {row.key: row for row in rows_of(REAL)}
    opts = [*world.opts(tmp_path), "PROMPT.CPM", "Pair-DINO-Feat-G3-C4", "TRAIN.MAX_STEPS", "4"]
    text, cpm = (count_tflop(make_job(rows[key], REAL, 0, opts)) for key in ("text/spair", "cpm-spair/spair"))
    twice = count_tflop(
        make_job(rows["cpm-spair/spair"], REAL, 0, [*opts, "TEST.ENSEMBLE", "4", "TRAIN.MAX_STEPS", "8"])
    )
    assert text["train"] == 0 and cpm["train"] > 0
    assert cpm["test"] == pytest.approx(text["test"] * 8 / 6)  # 4 pairs of 2 images, or 6 images
    assert (
        1.5 * cpm["test"] < twice["test"] < 2 * cpm["test"] and 1.5 * cpm["train"] < twice["train"] <= 2 * cpm["train"]
    )
    clock = Clock(make_job(rows["text/spair"], REAL, 0, opts).test, State(tmp_path / "rows.json"))
    assert clock.seconds("test", 30.0) == pytest.approx(10 + 10)
    clock.learn("test", 100.0, 60.0)
    assert clock.seconds("test", 30.0) == pytest.approx(10 + 15) and "median of finished rows" in clock.explain()


def test_durations():
    assert [format_duration(s) for s in (12.3, 600, 12000, 190000)] == ["12 s", "10 min", "3 h 20 min", "2 d 5 h"]


def test_choices_are_checked():
    with pytest.raises(ConfigError, match="no table table9; known: table1, "):
        rows_script.choose_rows(REAL, ["table9"])
    with pytest.raises(ConfigError, match="no row x in these tables; known: cpm-spair/spair"):
        rows_script.choose_rows(REAL, ["table4"], ["x"])
    assert [row.key for row in rows_script.choose_rows(SMOKE, ["table1"])] == ["text/spair", "cpm-spair/spair"]
    assert rows_script.shorten(f"{ROOT}/a is not there\nHelp:") == "a is not there"
    assert rows_script.shorten("cannot be used:\n  - a\n  - b") == "cannot be used: - a - b"


@pytest.mark.parametrize("script", [rows_script, table_script], ids=["rows", "table"])
def test_a_mistyped_setting_stops_before_anything_is_run_or_written(script, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        sys, "argv", ["x", "table1", "--mini", "--output", str(tmp_path), "--opts", "TEST.ENSEMBEL", "1"]
    )
    assert script.main() == 2
    assert "unknown key TEST.ENSEMBEL; did you mean TEST.ENSEMBLE" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_result_without_pairs_cannot_be_analysed(tmp_path, monkeypatch, capsys):
    write_pairs_csv(tmp_path / "none_pairs.csv", [])
    monkeypatch.setattr(sys, "argv", ["analyse.py", str(tmp_path / "none_pairs.csv")])
    assert analyse.main() == 1
    assert "none_pairs.csv holds no pair with keypoints" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("script", ["table2.sh", "reproduce.sh"])
def test_a_listing_prints_no_table(script):
    command = ["sh", str(ROOT / "script" / script), "--list"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHON": sys.executable})
    assert done.returncode == 0, done.stderr
    assert "rows are finished" in done.stdout
    assert "written:" not in done.stdout
