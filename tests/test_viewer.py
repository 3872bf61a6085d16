"""The page of results: its numbers are those of the result files, and it says what it lacks."""

import json
import re
import threading
import urllib.error
import urllib.request

import pytest

from app.serve import build_server
from app.viewer import build_pages, find_results
from config import ConfigError
from engine.result import read_scores
from tests.command import call
from tests.test_test import evaluate

pytestmark = pytest.mark.usefixtures("fresh_accelerator")


def read_page(text):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)[1])


@pytest.mark.parametrize("protocol", ["resized", "original"])
def test_points_within_alpha_are_the_hits_of_the_result(world, tmp_path, protocol):
    evaluate(world, tmp_path, "text", "EVAL.PROTOCOL", protocol)
    (page,) = build_pages(find_results([str(tmp_path)]), ["nn", "kernelsoftmax"])
    page.write(tmp_path / "page.html")
    content = read_page((tmp_path / "page.html").read_text())
    (method,) = content["methods"]
    scores = read_scores(next(tmp_path.rglob("*_pairs.csv")))
    assert [pair["id"] for pair in content["pairs"]] == scores["pair_id"].tolist()
    for row, found, hits in zip(scores.to_dict("records"), method["found"], method["hits"], strict=True):
        for localiser, (points, errors) in found.items():
            assert len(points) == 2 * len(errors) == 2 * row["n_points"]
            counts = [sum(error <= float(alpha) for error in errors) for alpha in content["alphas"]]
            assert counts == hits[localiser] == [row[f"{localiser}@{alpha}"] for alpha in content["alphas"]]
    for image in content["images"]:
        assert (tmp_path / image).is_file()


def test_two_data_sets_make_two_pages(world, tmp_path):
    evaluate(world, tmp_path, "text")
    evaluate(world, tmp_path, "empty")
    evaluate(world, tmp_path, "text", dataset="pfpascal")
    pages = build_pages(find_results([str(tmp_path)]), ["kernelsoftmax"])
    assert {page.name: len(page.results) for page in pages} == {"spair_test": 2, "pfpascal_test": 1}


def test_without_pictures_and_predictions_the_table_is_left(world, tmp_path):
    evaluate(world, tmp_path, "text")
    next(tmp_path.rglob("*_predictions.csv")).unlink()
    (page,) = build_pages(find_results([str(tmp_path)]), ["nn"], data_root=str(tmp_path / "nowhere"))
    content = read_page(page.render([]))
    assert "--data_root" in content["missing"] and content["methods"][0]["found"] == [None] * 4
    assert "src" not in content["pairs"][0]


def test_a_data_root_that_is_not_there_is_refused(tmp_path, capsys):
    assert call("script/view_results.py", tmp_path, "--data_root", tmp_path / "nowhere") == 2
    assert capsys.readouterr().err == f"view_results.py: --data_root {tmp_path / 'nowhere'}: no such folder\n"


def test_same_prompt_in_two_settings_has_two_names(world, tmp_path):
    for steps in ("50", "100"):
        evaluate(world, tmp_path, "text", "TEST.TIMESTEP", steps)
    (page,) = build_pages(find_results([str(tmp_path)]), ["nn"])
    names = [method["name"] for method in read_page(page.render([""] * len(page.images)))["methods"]]
    assert names == ["text t100 x2", "text t50 x2"]


def test_folder_without_results_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"no \*_pairs\.csv or \*_items\.csv there"):
        find_results([str(tmp_path)])


def test_only_the_page_and_its_pictures_are_served(world, tmp_path):
    evaluate(world, tmp_path, "text")
    (page,) = build_pages(find_results([str(tmp_path)]), ["nn"])
    with build_server(page, "127.0.0.1", 0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        base = f"http://127.0.0.1:{server.server_port}"
        content = read_page(urllib.request.urlopen(base).read().decode())
        assert urllib.request.urlopen(f"{base}/{content['images'][0]}").read()[:2] == b"\xff\xd8"
        for path in ("image/999", "image/../page", "etc/passwd", "image/-1"):
            with pytest.raises(urllib.error.HTTPError, match="404"):
                urllib.request.urlopen(f"{base}/{path}")
        server.shutdown()
