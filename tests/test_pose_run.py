"""Pose alignment, the strict inequality and KAP through test.py, and what analyse.py makes of the files."""

import json
import shutil

import pytest

from engine.result import read_scores
from tests.command import call
from tests.test_align import write_masks
from tests.test_symmetry import write_images

DINO = ("METHOD.NAME", "dinov2", "METHOD.DINO_SIZE", "[112, 112]", "EVAL.ALPHAS", "(0.1, 0.3, 0.5)")


@pytest.fixture
def root(world, tmp_path):
    """The tiny SPair-71k with annotations of images and masks."""
    shutil.copytree(world.root / "data/SPair-71k", tmp_path / "data/SPair-71k")
    write_images(tmp_path / "data/SPair-71k")
    write_masks(tmp_path / "data/SPair-71k/Segmentation")
    return tmp_path / "data"


@pytest.fixture
def test(world, root, tmp_path, capsys):
    numbers = iter(range(100))

    def run(*more, status=0):
        output = tmp_path / str(next(numbers))
        where = ("DATASET.ROOT", str(root), "METHOD.DINO_FOLDER", str(world.root / "dino"))
        found = call("test.py", "--config_file", "config/spair/base.yaml", *world.opts(output), *where, *DINO, *more)
        text = capsys.readouterr()
        assert found == status, text.err
        if status:
            return text.err
        (path,) = output.rglob("*_pairs.csv")
        content = json.loads(path.with_name(path.name.replace("_pairs.csv", ".json")).read_text())
        return read_scores(path), content, path

    return run


def test_alignment_with_and_without_masks(test, root):
    plain, content, _ = test()
    assert "mirrored" not in plain and content["made_by"]["POSE.ALIGN"] == "none"
    assert content["summary"]["metrics"]["localisers"]["nn"]["0.1"].keys() == {"PCK-dagger"}
    found = {kind: test("POSE.ALIGN", kind) for kind in ("mask", "mutual_nn")}
    for scores, other, _ in found.values():
        assert set(scores["mirrored"]) <= {0, 1} and other["made_by"] != content["made_by"]
        for place in range(4):  # unmirrored pairs are as they were
            if not scores["mirrored"][place]:
                assert (scores["error:nn"][place] == plain["error:nn"][place]).all()
    assert "masks" in found["mask"][1]["made_by"] and "masks" not in found["mutual_nn"][1]["made_by"]
    coarse = test("POSE.ALIGN", "mask", "POSE.GRID", "(2, 2)")[1]
    assert coarse["made_by"]["POSE.GRID"] == [2, 2]
    shutil.move(root / "SPair-71k/Segmentation", root / "masks")
    assert "POSE.MASKS dataset: 6 of 6 masks are missing" in test("POSE.ALIGN", "mask", status=2)
    again = test("POSE.ALIGN", "mask", "POSE.MASKS", str(root / "masks"))
    assert (again[0]["mirrored"] == found["mask"][0]["mirrored"]).all() and again[1]["made_by"] == found["mask"][1][
        "made_by"
    ]


def test_inequality_and_kap_are_kept_with_the_result(test, capsys):
    scores, content, path = test("EVAL.INEQUALITY", "<", "EVAL.KAP", "definition")
    assert set(scores["inequality"]) == {"<"} and "kap+@0.1" in scores
    assert len(scores["kap+@0.1"][0]) == 6 and len(scores["kap-@0.1"][0]) == 6  # point 10 is in both images too
    assert 0 < content["summary"]["metrics"]["localisers"]["nn"]["0.1"]["KAP"] <= 1
    assert "error < alpha x threshold" in path.with_name(path.name.replace("_pairs.csv", ".txt")).read_text()
    released = test("EVAL.KAP", "released")[0]
    assert len(released["kap+@0.1"][0]) == 6 and set(released["inequality"]) == {"<="}
    analysis = ("script/analyse.py", path, "--localiser", "nn", "--dagger", "--draws", "50")
    assert call(*analysis) == 0
    text = capsys.readouterr().out
    assert call(*analysis, "--only", "view", "1") == 0 and "view 1" in capsys.readouterr().out
    assert call(*analysis, "--only", "view", "7") == 1
    assert "no group view 7; known: all, category bird" in capsys.readouterr().err
    assert "PCK-dagger@0.1 per image, nn: error < alpha x threshold, resized frame" in text and "view 1" in text
