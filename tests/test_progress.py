"""What is seen of long work in a terminal and in a log file."""

import io
import sys
import time

import pytest

import utils.progress
from utils.progress import progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def log(monkeypatch, capsys):
    """What a log file has got since the last call."""
    monkeypatch.setattr(utils.progress, "LINE_EVERY", 0.05)
    return lambda: capsys.readouterr().err


def slowly(n, seconds):
    for item in range(n):
        time.sleep(seconds)
        yield item


def test_a_log_file_gets_whole_lines_with_total_and_time_left(log):
    assert list(progress(slowly(10, 0.03), "indexing spair", 10)) == list(range(10))
    text = log()
    lines = text.splitlines()
    assert 2 <= len(lines) <= 6 and all(line.startswith("indexing spair:") for line in lines)
    assert "/10 [00:00<" in lines[0] and "10/10" in lines[-1] and "\r" not in text


def test_short_work_says_nothing(log, monkeypatch):
    list(progress(range(1000), "counting"))
    assert log() == ""
    monkeypatch.setattr(sys, "stderr", Terminal())
    list(progress(range(1000), "counting"))
    assert "counting" not in sys.stderr.getvalue()


def test_a_terminal_gets_a_bar(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    list(progress(slowly(12, 0.1), "counting", 12))
    assert "\rcounting:" in sys.stderr.getvalue() and "12/12" in sys.stderr.getvalue()


def test_by_hand_and_hidden(log):
    with progress(what="steps", total=8, initial=2) as bar:
        for _ in slowly(6, 0.03):
            bar.update()
            bar.set_postfix(loss=1.0)  # no line of its own
    lines = log().splitlines()
    assert "8/8" in lines[-1] and len(lines) <= 5
    list(progress(slowly(3, 0.06), "hidden", shown=False))
    assert log() == ""
