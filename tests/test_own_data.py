"""docs/own_data.md from top to bottom, on rendered pictures: every command and the code that it shows."""

import re
import shlex

import pytest

from config import ROOT
from tests.command import call, reset_accelerate

PAGE = (ROOT / "docs" / "own_data.md").read_text()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", PAGE, flags=re.S)


@pytest.mark.slow
def test_the_page(tmp_path, monkeypatch, capsys):
    settings = tmp_path / "own.yaml"  # the page's, but for the folder
    settings.write_text(
        f"_BASE_: {ROOT}/config/mini/custom.yaml\nOUTPUT_ROOT: {tmp_path}/own/out\nDATASET: {{ROOT: {tmp_path}}}\n"
    )

    def place(text):
        return text.replace("config/mini/custom.yaml", str(settings)).replace("asset/own", str(tmp_path / "own"))

    def run(command):
        script, *words = shlex.split(place(command))[1:]
        script, words = (f"{words[0].replace('.', '/')}.py", words[1:]) if script == "-m" else (script, words)
        words += ["TRAIN.MAX_STEPS", "2"] if script == "train.py" else []
        assert call(script, *words) == 0, capsys.readouterr().err
        return capsys.readouterr().out

    commands = [line for block in blocks("sh") for line in block.splitlines()]
    monkeypatch.chdir(tmp_path)
    for command in commands:
        out = run(command)
        if "mini.render" in command:
            assert "30 pictures" in out
        if command.startswith("python test.py"):
            assert "30 pairs" in out
        if "compare.py" in command:
            assert "Single_custom_mini_TokenEmbeds75" in out
    assert (tmp_path / "own/out/prompt/viewer_custom_test.html").is_file()
    reset_accelerate()
    (code,) = blocks("python")
    exec(place(code), {})
    assert "[[" in capsys.readouterr().out
