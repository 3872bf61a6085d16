"""docs/tour.ipynb from top to bottom, offline with the embedded networks."""

import json

import matplotlib
import pytest

from config import ROOT
from sd4match.flow import read_flo

NOTEBOOK = json.loads((ROOT / "docs" / "tour.ipynb").read_text())


def test_no_output_is_kept():
    code = [cell for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]
    assert code and all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
    assert len({cell["id"] for cell in NOTEBOOK["cells"]}) == len(NOTEBOOK["cells"])


@pytest.mark.slow
def test_the_tour(monkeypatch, capsys):
    matplotlib.use("Agg")
    monkeypatch.chdir(ROOT / "docs")
    names = {"__name__": "__main__"}
    for cell in NOTEBOOK["cells"]:
        if cell["cell_type"] == "code":
            text = "".join(cell["source"]).replace("STEPS = 20", "STEPS = 2")
            exec(compile(text, cell["id"], "exec"), names)
    assert len(names["best"]) > 2 and names["flow"].flow.shape[2] == 2
    assert read_flo(names["FOLDER"] / "flow.flo").shape == names["flow"].flow.shape
    assert names["done"].returncode == 0 and names["learned"].prompt_name == "Single_custom_mini_TokenEmbeds75"
    assert len(names["found"].objects) == 4
    out = capsys.readouterr().out
    assert "finished 2 steps" in out and "taken as visible" in out
