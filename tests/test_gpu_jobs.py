"""script/gpu_jobs.sh and script/precision.py: mistakes are told, a failing job stops no other."""

import json
import subprocess

import pytest

from config import ROOT
from script import precision


def call(*arguments, **environment):
    command = ["sh", "script/gpu_jobs.sh", *map(str, arguments)]
    env = {"PATH": "/usr/bin:/bin", **environment}
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--fly"], "unknown argument --fly"),
        (["--part", "4", "--output", "x"], "--part must be 1, 2, 3 or all; got 4"),
        ([], "--output DIR is missing"),
    ],
)
def test_wrong_arguments_are_told(arguments, message):
    done = call(*arguments)
    assert done.returncode == 2 and message in done.stderr


def fake_python(folder, body):
    """A stand-in for Python that runs the real one for the script's own few lines and `body` for everything else."""
    path = folder / "python"
    path.write_text(f'#!/bin/sh\ncase $1 in -) exec python3 "$@" ;; esac\n{body}\n')
    path.chmod(0o755)
    return str(path)


def test_a_failing_job_stops_no_other(tmp_path):
    row = "| `python script/benchmark.py x` | gpu | 1 |"
    body = f"""case "$*" in
        *profile*) echo broken; exit 3 ;;
        *benchmark.py*) printf '| command |\\n|---|\\n{row}\\n' ;;
    esac"""
    done = call("--part", 1, "--output", tmp_path / "out", PYTHON=fake_python(tmp_path, body.replace("`", "\\140")))
    assert done.returncode == 1
    report = (tmp_path / "out" / "part1.md").read_text()
    assert "| train_profile | FAILED (3) |" in report and "| localise | done |" in report
    assert report.count("| gpu | 1 |") == 5  # the smoke test, three trainings, the localisers
    assert json.loads((tmp_path / "out" / "part1.json").read_text()) == {}
    assert "broken" in (tmp_path / "out" / "part1.log").read_text()


def test_a_failing_smoke_test_ends_the_part(tmp_path):
    done = call("--part", 2, "--output", tmp_path, PYTHON=fake_python(tmp_path, "exit 1"))
    assert done.returncode == 1 and "the smoke test failed" in done.stderr
    assert "train" not in (tmp_path / "part2.md").read_text().split("| job |")[1]


@pytest.mark.usefixtures("fresh_accelerator")
def test_precisions_are_compared_on_the_same_pairs(monkeypatch, tmp_path, world, capsys):
    command = ["precision.py", "--config_file", "config/spair/base.yaml", "--pairs", "3", "--settings", "fp32", "bf16"]
    output = tmp_path / "rows.json"
    monkeypatch.setattr("sys.argv", [*command, "--output", str(output), "--opts", *world.opts(tmp_path / "out")])
    assert precision.main() == 0
    rows = json.loads(output.read_text())["rows"]
    assert [row["setting"] for row in rows] == ["fp32", "bf16"] and rows[0]["pairs"] == rows[1]["pairs"] == 3
    assert rows[0]["difference"] == [0.0, 0.0, 0.0] and rows[0]["largest_loss_change"] == 0.0
    assert 0 < rows[1]["largest_loss_change"] < 0.2
    printed = capsys.readouterr().out
    assert "| fp32 |" in printed and "| bf16 |" in printed
