"""test.py from start to finish: every kind of prompt, files written, one process equals two, messages."""

import csv
import json
import shutil

import numpy as np
import pytest
from pandas.testing import assert_frame_equal

import test as test_script
from config import ROOT, ConfigError, load_config
from engine.check import check_config
from engine.result import read_scores
from model.error import PromptError, PromptNotFoundError
from model.source import condition_source
from tests.test_train import CPM, NAME, launch, run

pytestmark = pytest.mark.usefixtures("fresh_accelerator")
ALPHAS = ("0.01", "0.05", "0.1", "0.15")


def evaluate(world, output, prompt, *more, dataset="spair"):
    """Run the test in this process; the JSON summary it wrote."""
    overrides = {"PROMPT.TYPE": prompt, "DATASET.NAME": dataset}
    cfg = check_config(load_config(None, world.opts(output, *more), overrides), training=False)
    test_script.test(cfg)
    path = max((output / "prompt" / prompt).glob(f"{dataset}_result_*.json"), key=lambda path: path.stat().st_mtime_ns)
    return json.loads(path.read_text())


@pytest.mark.parametrize(("dataset", "pairs"), [("spair", 4), ("pfpascal", 2), ("pfwillow", 4)])
@pytest.mark.parametrize("prompt", ["text", "empty"])
def test_untuned_prompts_on_every_benchmark(world, tmp_path, capsys, dataset, pairs, prompt):
    result = evaluate(world, tmp_path, prompt, dataset=dataset)
    summary = result["summary"]
    assert summary["pairs"] == pairs
    assert set(summary["pck"]) == {"nn", "bilinear", "softmax", "kernelsoftmax"}
    assert all(set(row) == set(ALPHAS) for row in summary["pck"].values())
    printed = capsys.readouterr().out
    assert f"{pairs} pairs" in printed and "kernelsoftmax:" in printed
    assert result["config"]["PROMPT.TYPE"] == prompt and result["provenance"]["packages"]["torch"]


def test_another_preprocessing_of_the_condition_is_another_cache(world, tmp_path):
    folder = shutil.copytree(world.root / "dino", tmp_path / "dino")
    cfg = load_config(None, world.opts(tmp_path, "CONDITION.DINO_FOLDER", str(folder)))
    before = condition_source(cfg, "DINO-Feat").stamp
    assert condition_source(cfg, "DINO-Feat").stamp == before
    file = folder / "preprocessor_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"image_mean": [0.5, 0.5, 0.5]}))
    assert condition_source(cfg, "DINO-Feat").stamp != before


def test_result_files_agree_with_each_other(world, tmp_path):
    summary = evaluate(world, tmp_path, "text")["summary"]
    (table,) = (tmp_path / "prompt" / "text").glob("spair_result_text_all_test_Layer1-Timestep50-*.txt")
    lines = table.read_text().splitlines()
    assert lines[0] == "nn:" and lines[1].split() == ["bird", "cat", "all"]
    assert lines[2].split()[-1] == f"{summary['pck']['nn']['0.01']['all']:.2%}"
    with open(f"{str(table)[:-4]}_pairs.csv") as file:
        rows = list(csv.DictReader(file))
    share = [int(row["nn@0.1"]) / int(row["n_points"]) for row in rows]
    assert len(rows) == 4 and sum(share) / 4 == pytest.approx(summary["pck"]["nn"]["0.1"]["all"])


@pytest.mark.parametrize(
    "more",
    [
        ["PROMPT.KIND", "Single", "PROMPT.LENGTH", "5"],
        ["PROMPT.KIND", "Class", "PROMPT.LENGTH", "5"],
        ["PROMPT.KIND", "Single", "PROMPT.SPACE", "HiddenState"],
        ["PROMPT.KIND", "Class", "PROMPT.SPACE", "HiddenState"],
        *(
            ["PROMPT.CPM", f"{scope}-{network}-{feature}-G{count}-C4"]
            for scope in ("Img", "Pair")
            for network, feature, count in (
                ("DINO", "Feat", 3),
                ("DINO", "Head", 0),
                ("CLIP", "Feat", 0),
                ("CLIP", "Head", 3),
            )
        ),
    ],
    ids=lambda more: more[-1] if more[0] == "PROMPT.CPM" else "-".join(more[1::2]),
)
def test_every_kind_of_prompt_trains_and_tests(world, tmp_path, more):
    run(world, tmp_path, *more, "TRAIN.MAX_STEPS", "1")
    (folder,) = (tmp_path / "prompt").iterdir()
    assert evaluate(world, tmp_path, folder.name)["summary"]["pairs"] == 4


def test_features_once_per_image_equal_features_per_pair(world, tmp_path, monkeypatch):
    from model.method.sd4match import SD4Match

    by_image = evaluate(world, tmp_path / "a", "text")["summary"]["pck"]
    monkeypatch.setattr(SD4Match, "per_image", False)
    assert evaluate(world, tmp_path / "b", "text")["summary"]["pck"] == by_image


def test_batch_size_does_not_change_the_result(world, tmp_path):
    one, four = (evaluate(world, tmp_path / n, "text", "EVAL.BATCH_SIZE", n)["summary"] for n in ("1", "4"))
    assert one == four


def test_category_is_selected_by_name(world, tmp_path):
    assert evaluate(world, tmp_path, "text", "DATASET.CATEGORY", "cat")["summary"]["pairs"] == 2
    with pytest.raises(ConfigError, match="(?s)ca.*cat"):
        evaluate(world, tmp_path, "text", "DATASET.CATEGORY", "ca")


def test_pairs_without_a_threshold_are_left_out_and_counted_in_the_result(world, tmp_path, capsys, caplog):
    shutil.copytree(world.root / "data", tmp_path / "data")
    path = next((tmp_path / "data/SPair-71k/PairAnnotation/test").glob("*:cat.json"))
    path.write_text(json.dumps(json.loads(path.read_text()) | {"trg_bndbox": [5, 2, 5, 9]}))
    summary = evaluate(world, tmp_path, "text", "DATASET.ROOT", str(tmp_path / "data"))["summary"]
    assert (summary["pairs"], summary["pairs_left_out"]) == (3, 1)
    assert "3 pairs" in (printed := capsys.readouterr().out) and "(1 more left out)" in printed
    assert f"1 of 4 pairs are left out; the first is {path}: " in caplog.text


def test_prompt_trained_on_one_benchmark_runs_on_another(world, tmp_path):
    run(world, tmp_path, "TRAIN.MAX_STEPS", "1")
    assert evaluate(world, tmp_path, NAME, dataset="pfwillow")["summary"]["pairs"] == 4


def test_pictures_are_written(world, tmp_path):
    from PIL import Image

    evaluate(world, tmp_path, "text", "TEST.PICTURES", "2")
    pictures = sorted(path.name.rsplit("_", 2)[-2:] for path in (tmp_path / "prompt" / "text").glob("*.png"))
    assert pictures == [["0", "correlation.png"], ["0", "matches.png"], ["1", "correlation.png"], ["1", "matches.png"]]
    for path in (tmp_path / "prompt" / "text").glob("*.png"):
        assert min(Image.open(path).size) > 200


def test_original_protocol_and_points(world, tmp_path):
    more = ["EVAL.PROTOCOL", "original", "EVAL.BY", "point", "EVAL.AVERAGE", "category"]
    summary = evaluate(world, tmp_path, "text", *more)["summary"]
    assert (summary["protocol"], summary["by"], summary["average"]) == ("original", "point", "category")


def test_unknown_and_foreign_prompts_are_refused(world, tmp_path):
    run(world, tmp_path, "TRAIN.MAX_STEPS", "1")
    with pytest.raises(PromptNotFoundError, match=f"there are: {NAME}"):
        evaluate(world, tmp_path, "Single_spair_tiny_TokenEmbeds75")
    folder = tmp_path / "prompt" / NAME
    folder.rename(tmp_path / "prompt" / NAME.replace("C4", "C5"))
    with pytest.raises(PromptError, match=CPM):
        evaluate(world, tmp_path, NAME.replace("C4", "C5"))


def test_two_processes_equal_one_from_the_command_line(world, tmp_path):
    """The release's flags; and the results of two processes are those of one."""
    flags = ["--dataset", "spair", "--split", "test", "--category", "all", "--prompt_type", "text"]
    flags += ["--timestep", "50", "--layer", "1", "--batch_size", "3"]
    pair = launch(world, tmp_path / "two", processes=2, script="test.py", flags=flags)
    evaluate(world, tmp_path / "one", "text")
    out, err = pair.communicate(timeout=180)
    assert pair.returncode == 0, err[-3000:]
    one, two = (read_scores(next((tmp_path / n / "prompt" / "text").glob("*_pairs.csv"))) for n in ("one", "two"))
    errors = [name for name in one if name.startswith("error:")]
    assert_frame_equal(one.drop(columns=errors), two.drop(columns=errors))
    for name in errors:  # batches of other sizes: errors in px agree to rounding, the rest exactly
        assert np.concatenate(one[name].tolist()) == pytest.approx(np.concatenate(two[name].tolist()), abs=1e-3)


def test_precompute_fills_the_cache_of_every_image(world, tmp_path):
    flags = ["--datasets", "spair", "pfpascal"]
    done = launch(
        world, tmp_path, script="pre_compute_dino_feature.py", flags=[*flags, "--config_file", "config/spair/base.yaml"]
    )
    out, err = done.communicate(timeout=120)
    assert done.returncode == 0, err[-3000:]
    assert "spair: 6 images" in out and "pfpascal: " in out
    assert list((tmp_path / "asset" / "DINOv2" / "spair").glob("cached_output.*/*.safetensors"))


def test_random_weights_need_no_download(world, tmp_path):
    """The architecture-only mode has the real sizes; on a laptop only its facts are checked here."""
    cfg = load_config(None, world.opts(tmp_path, "NETWORK.INIT", "random", "DATASET.IMAGE_SIZE", "[100, 128]"))
    with pytest.raises(ConfigError, match="multiples of 64 px"):
        check_config(cfg, training=True)


def test_every_script_of_the_readme_exists():
    for name in ("single", "class", "cpm"):
        for data in ("spair", "pfpascal"):
            text = (ROOT / f"script/{data}/sd4match_{name}.sh").read_text()
            config = text.split("train ")[-1].split()[0]
            assert load_config(config).PROMPT.KIND.lower() == name
