"""script/gpu_jobs.sh runs what a page lists as open, the page's commands are accepted, precisions are compared."""

import os
import re
import shlex
import subprocess
import sys

import pytest

from config import ROOT, load_config
from script import precision


def run_jobs(folder, page):
    command = ["sh", "script/gpu_jobs.sh", str(folder), str(page)]
    env = {**os.environ, "PYTHON": sys.executable}
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=60, check=False)


def test_open_jobs_are_run_and_a_failing_one_stops_no_other(tmp_path):
    page, folder = tmp_path / "page.md", tmp_path / "new" / "folder"
    rows = [
        "| `echo broken; exit 3` | nothing | not yet measured |",
        "| `echo measured` | nothing | 80 pairs/s |",
        '| `python -c "print(6 * 7)"` | 42 | not yet measured |',
    ]
    page.write_text("\n".join(["| command | must show | result |", "|---|---|---|", *rows, ""]))
    done = run_jobs(folder, page)
    assert done.returncode == 1 and "measured" not in done.stdout.replace("not yet measured", "")
    assert (folder / "1.txt").read_text() == "broken\n" and (folder / "2.txt").read_text() == "42\n"
    first, second = (folder / "jobs.txt").read_text().splitlines()
    assert first.startswith("1: FAILED (3), ") and second.startswith("2: done, ")
    page.write_text(rows[2] + "\n")
    assert run_jobs(folder, page).returncode == 0


def test_the_jobs_of_the_page_are_commands_with_known_settings():
    commands = re.findall(r"^\| `([^`]*)` \|.* not yet measured \|$", (ROOT / "docs/gpu.md").read_text(), flags=re.M)
    assert len(commands) > 5
    for words in map(shlex.split, commands):
        assert words[0] == "python" and ((ROOT / words[1]).is_file() or words[1:3] == ["-m", "pytest"])
        keys = [place for place, word in enumerate(words) if re.fullmatch(r"[A-Z]+(\.[A-Z_]+)?", word)]
        load_config(None, [word for place in keys for word in words[place : place + 2]])


@pytest.mark.usefixtures("fresh_accelerator")
def test_precisions_are_compared_on_the_same_pairs(monkeypatch, tmp_path, world, capsys):
    command = [
        "precision.py",
        "--config_file",
        "config/spair/base.yaml",
        "--pairs",
        "3",
        "--precisions",
        "fp32",
        "bf16",
    ]
    monkeypatch.setattr("sys.argv", [*command, "--opts", *world.opts(tmp_path / "out")])
    assert precision.main() == 0
    head, _, first, second = capsys.readouterr().out.strip().splitlines()[-4:]
    assert head.startswith("| 3 pairs | features against fp32 | PCK@0.1, kernelsoftmax |")
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in (first, second)]
    assert cells[0][0] == "fp32" and cells[0][1] == cells[0][3] == "-"
    assert cells[1][0] == "bf16" and 0 < float(cells[1][1]) < 0.2
    assert re.fullmatch(r"[+-]\d+\.\d\d \[[+-]\d+\.\d\d, [+-]\d+\.\d\d\]", cells[1][3])
