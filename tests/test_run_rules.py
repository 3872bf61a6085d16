"""The rules of a training run: what is kept, what is saved, what a second run goes on from or refuses."""

import json
import shutil
from itertools import pairwise

import pytest
import torch

from config import get_default_config, iter_keys
from tests.command import call, dying_in_step, read_scalars
from tests.fixtures_dataset import tiny_spair
from tests.golden import CURVE
from tests.test_train import assert_two_processes_equal_one, launch
from tests.watch import watching

SINGLE = ("PROMPT.KIND", "Single", "PROMPT.LENGTH", "5")
PAIR = ("PROMPT.KIND", "CPM", "PROMPT.CPM", "Pair-DINO-Feat-G3-C4")
# a validation score that rises to its best after step 9, stays there for an epoch and falls again
PEAK = (*SINGLE, "METHOD.LAYER", "2", "TRAIN.LR", "0.1", "TRAIN.EPOCHS", "6")
PEAK += ("VAL.SPLIT", "test", "VAL.LOCALISER", "softmax", "VAL.ALPHA", "0.15")


@pytest.fixture
def train(world, capsys):
    """Runs train.py and gives (exit status, stdout, stderr)."""

    def start(output, *more, flags=()):
        arguments = ("--config_file", "config/spair/base.yaml", *flags, *world.opts(output, *map(str, more)))
        status = call("train.py", *arguments)
        return status, *capsys.readouterr()

    return start


def kept_prompt(output):
    """The learned prompt's tensors, in the authors' format."""
    (path,) = [*output.rglob("ckpt.pt"), *output.rglob("caption.pt")]
    return torch.load(path, weights_only=True)


def same(one, two):
    return one.keys() == two.keys() and all(torch.equal(value, two[key]) for key, value in one.items())


# ---- which prompt is kept -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def peak(world, tmp_path_factory):
    """A finished run of PEAK, and its validation scores by step."""
    output = tmp_path_factory.mktemp("peak")
    assert call("train.py", "--config_file", "config/spair/base.yaml", *world.opts(output, *PEAK)) == 0
    scores = dict(read_scalars(output)["val_softmax/pck@0.15"])
    assert list(scores) == [3, 6, 9, 12, 15, 18]
    assert scores[9] == scores[12] == max(scores.values()) and max(scores[6], scores[18]) < scores[9]
    return output, scores


def test_the_first_of_the_best_prompts_is_kept(peak, train, tmp_path):
    output, _ = peak
    train(tmp_path, *PEAK, "TRAIN.MAX_STEPS", "9")
    assert same(kept_prompt(output), kept_prompt(tmp_path))
    train(tmp_path / "3", *PEAK, "TRAIN.MAX_STEPS", "3")
    assert not same(kept_prompt(output), kept_prompt(tmp_path / "3"))


def test_the_kept_prompt_scores_what_the_validation_said(peak, world, tmp_path):
    output, scores = peak
    place = shutil.copytree(output, tmp_path / "copy")
    setting = ("PROMPT.TYPE", "Single_spair_tiny_TokenEmbeds5", "METHOD.LAYER", "2")
    setting += ("TEST.SPLIT", "test", "TEST.TIMESTEP", "261", "TEST.ENSEMBLE", "1")
    assert call("test.py", *world.opts(place, "TEST.ENSEMBLE", "1", *setting)) == 0
    (content,) = [json.loads(path.read_text()) for path in place.rglob("spair_*.json")]
    assert content["summary"]["pck"]["softmax"]["0.15"]["all"] == pytest.approx(scores[9])


def test_a_resumed_run_remembers_its_best(peak, train, tmp_path):
    output, _ = peak
    train(tmp_path, *PEAK, "TRAIN.MAX_STEPS", "15")
    train(tmp_path, *PEAK)
    assert same(kept_prompt(output), kept_prompt(tmp_path))
    assert dict(read_scalars(tmp_path)["val_softmax/pck@0.15"]) == dict(read_scalars(output)["val_softmax/pck@0.15"])


def test_a_validation_without_points_keeps_nothing(train, tmp_path):
    root = tiny_spair(tmp_path)
    for path in (root / "PairAnnotation" / "val").iterdir():
        content = json.loads(path.read_text())
        path.write_text(json.dumps(content | {"src_kps": [], "trg_kps": [], "kps_ids": []}))
    status, out, _ = train(tmp_path / "run", *SINGLE, "DATASET.ROOT", tmp_path, "TRAIN.MAX_STEPS", "1")
    assert status == 0 and "no validation pair has keypoints" in out


def test_another_run_does_not_replace_the_prompt(train, tmp_path):
    """With another learning rate it is another run: it goes elsewhere, or it is refused."""
    train(tmp_path, *SINGLE, "TRAIN.MAX_STEPS", "1")
    files = {path: path.read_bytes() for path in tmp_path.rglob("caption.pt")}
    status, _, err = train(tmp_path, *SINGLE, "TRAIN.MAX_STEPS", "1", "TRAIN.LR", "0.5")
    assert all(path.read_bytes() == content for path, content in files.items())
    assert status == 0 or "--overwrite" in err


# ---- when it is saved, and how it goes on ---------------------------------------------------------------------


@pytest.mark.parametrize("schedule", ["linear", "one_cycle"])
def test_a_killed_run_ends_as_if_it_had_not_been(train, world, tmp_path, schedule):
    more = (*PAIR, "TRAIN.EPOCHS", "2", "TRAIN.SAVE_EVERY", "2", "TRAIN.SCHEDULER", schedule)
    train(tmp_path / "whole", *more)
    for step in (4, 2):  # counted in each process
        with dying_in_step(step):
            train(tmp_path / "parts", *more)
    status, out, _ = train(tmp_path / "parts", *more)
    assert status == 0 and "going on at step 4 of 6" in out
    whole, parts = (read_scalars(tmp_path / name) for name in ("whole", "parts"))
    assert dict(whole["train/loss"]) == dict(parts["train/loss"]) and whole["train/lr"] == parts["train/lr"]
    assert same(kept_prompt(tmp_path / "whole"), kept_prompt(tmp_path / "parts"))


def test_a_finished_run_takes_no_step(train, tmp_path):
    train(tmp_path, *SINGLE, "TRAIN.MAX_STEPS", "2")
    before = kept_prompt(tmp_path)
    with watching() as seen:
        status, out, _ = train(tmp_path, *SINGLE, "TRAIN.MAX_STEPS", "2")
    assert status == 0 and not seen.steps and "at step 2 of 2" in out
    assert same(before, kept_prompt(tmp_path))


def test_overwrite_starts_anew(train, tmp_path):
    train(tmp_path, *SINGLE, "TRAIN.MAX_STEPS", "2")
    with watching() as seen:
        status, _, _ = train(tmp_path, *SINGLE, "TRAIN.MAX_STEPS", "2", flags=("--overwrite",))
    assert status == 0 and len(seen.steps) == 2


# ---- what a resume refuses and accepts ------------------------------------------------------------------------

REFUSED = {  # key: another value
    "SEED": "1",
    "PRECISION": "bf16",
    "DATASET.IMAGE_SIZE": "[64, 64]",
    "METHOD.LAYER": "2",
    "METHOD.POSTERIOR": "mode",
    "PROMPT.INIT": "empty",
    "LOSS.BETA": "0.05",
    "LOSS.KERNEL_SIZE": "5",
    "LOSS.SIGMA": "1.0",
    "LOSS.WINDOW": "2.0",
    "TRAIN.TIMESTEP": "50",
    "TRAIN.ENSEMBLE": "2",
    "TRAIN.BATCH_SIZE": "3",
    "TRAIN.LINEAR_LR_SCALE": "0.2",
    "TRAIN.RESHUFFLE": "False",
    "TRAIN.RISE": "0.5",
    "VAL.SPLIT": "test",
    "VAL.PAIRS": "1",
    "VAL.TIMESTEP": "50",
    "VAL.ENSEMBLE": "2",
    "VAL.LOCALISER": "softmax",
    "VAL.ALPHA": "0.05",
    "VAL.EVERY": "2",
    "EVAL.BETA": "0.05",
    "EVAL.SIGMA": "3.0",
    "EVAL.WINDOW": "5",
    "EVAL.INEQUALITY": "<",
    "EVAL.KAP": "definition",
    "EVAL.PROTOCOL": "original",
    "EVAL.BY": "point",
    "EVAL.AVERAGE": "category",
}
ACCEPTED = {
    "PRECISION": "fp32",  # what auto is on a CPU
    "DATASET.NUM_WORKERS": "1",
    "NETWORK.RECOMPUTE": "True",
    "NETWORK.MEMORY_FORMAT": "channels_last",
    "PROMPT.TYPE": "empty",
    "PROMPT.TEMPLATE": "one {category}",
    "PROMPT.WITHOUT_CATEGORY": "one thing",
    "TRAIN.ACCUMULATION": "2",
    "TRAIN.EPOCHS": "7",
    "TRAIN.MAX_STEPS": "3",
    "TRAIN.SAVE_EVERY": "7",
    "TRAIN.LOG_EVERY": "7",
    "VAL.PICTURES": "1",
    "VAL.DENSE": "4",
    "TEST.SPLIT": "val",
    "TEST.TIMESTEP": "7",
    "TEST.ENSEMBLE": "7",
    "TEST.PICTURES": "7",
    "GENERATE.STEPS": "7",
    "GENERATE.GUIDANCE": "2.0",
    "EVAL.BATCH_SIZE": "7",
    "EVAL.PICTURE_LOCALISER": "nn",
    "EVAL.PICTURE_ALPHA": "0.2",
}
# names of the run's folder, or of no meaning without another key
OTHERWISE = {"DEVICE", "OUTPUT_ROOT", "TRAIN.LR", "TRAIN.SCHEDULER", "TRAIN.STEP_RULES", "LOSS.NAME", "TRAIN.START"}
OTHERWISE |= {"EVAL.ALPHAS", "EVAL.LOCALISERS", "TRAIN.SPLIT", "VAL.GENERATE", "CACHE_ROOT"}
OTHERWISE |= {"NETWORK.NAME", "NETWORK.INIT", "NETWORK.ARCHITECTURE", "NETWORK.COMPILE"}
SECTIONS_OTHERWISE = ("DATASET.", "NETWORK.FOLDER", "NETWORK.UNET", "CONDITION.", "METHOD.", "PROMPT.", "POSE.")
SECTIONS_OTHERWISE += ("FEATURES.", "GEOAWARE.", "LDM.", "DSD.", "TRANSFER.")  # of other methods and commands


@pytest.fixture(scope="module")
def started(world, tmp_path_factory):
    """Runs that have taken one step, to be copied."""
    root = tmp_path_factory.mktemp("started")
    tiny_spair(root)
    for name, more in (("single", SINGLE), ("pair", PAIR)):
        arguments = world.opts(root / name, *more, "DATASET.ROOT", str(root), "TRAIN.MAX_STEPS", "1")
        assert call("train.py", "--config_file", "config/spair/base.yaml", *arguments) == 0
    return root


@pytest.fixture
def resume(started, train, tmp_path):
    """Goes on with one of the started runs, in a copy of it."""

    def go(name="single", *more):
        shutil.copytree(started / name, tmp_path / "run")
        base = {"single": SINGLE, "pair": PAIR}[name]
        return train(tmp_path / "run", *base, "DATASET.ROOT", started, "TRAIN.MAX_STEPS", "2", *more)

    return go


@pytest.mark.parametrize("key", REFUSED)
def test_a_setting_that_changes_a_number_is_refused(resume, key):
    status, _, err = resume("single" if key == "PROMPT.INIT" else "pair", key, REFUSED[key])
    value = {"METHOD.LAYER": 1, "LOSS.BETA": 0.04}.get(key, "")
    assert status == 1 and "--overwrite" in err and "Traceback" not in err
    assert f"  {key}: {value}" in err and " -> " in err


def test_a_setting_that_changes_no_number_is_accepted(resume):
    status, out, err = resume("pair", *(word for pair in ACCEPTED.items() for word in pair))
    assert status == 0, err
    assert "going on at step 1 of 3" in out


def test_every_key_has_its_rule():
    keys = {key for key, _ in iter_keys(get_default_config()) if not key.startswith(SECTIONS_OTHERWISE)}
    assert keys - set(REFUSED) - set(ACCEPTED) - OTHERWISE == set()


@pytest.mark.parametrize("schedule", ["linear", "one_cycle"])
def test_a_longer_run_is_refused_where_the_schedule_knows_the_length(train, tmp_path, schedule):
    more = (*SINGLE, "TRAIN.SCHEDULER", schedule, "TRAIN.MAX_STEPS")
    train(tmp_path, *more, "1")
    status, _, err = train(tmp_path, *more, "2")
    assert status == 1 and "TRAIN.MAX_STEPS: 1 -> 2" in err


def test_copies_of_the_same_files_are_the_same(resume, started, world, tmp_path):
    places = {"DATASET.ROOT": "data", "NETWORK.FOLDER": "sd", "CONDITION.DINO_FOLDER": "dino"}
    shutil.copytree(started / "SPair-71k", tmp_path / "data" / "SPair-71k")
    for name in ("sd", "dino"):
        shutil.copytree(world.root / name, tmp_path / name)
    status, out, err = resume("pair", *(word for key, name in places.items() for word in (key, tmp_path / name)))
    assert status == 0, err
    assert "going on at step 1 of 2" in out


@pytest.mark.parametrize(
    ("name", "key", "folder"), [("single", "NETWORK.FOLDER", "sd"), ("pair", "CONDITION.DINO_FOLDER", "dino")]
)
def test_other_weights_are_refused(resume, tmp_path, name, key, folder):
    from tests.tiny import build_tiny_dinov2, build_tiny_stable_diffusion

    {"sd": build_tiny_stable_diffusion, "dino": build_tiny_dinov2}[folder](tmp_path / folder, seed=5)
    status, _, err = resume(name, key, tmp_path / folder)
    assert status == 1 and "--overwrite" in err


def test_networks_that_are_not_read_may_change(resume, tmp_path):
    from tests.tiny import build_tiny_clip_vision, build_tiny_dinov2

    dino, clip = build_tiny_dinov2(tmp_path / "dino", seed=5), build_tiny_clip_vision(tmp_path / "clip", seed=5)
    status, _, err = resume("single", "CONDITION.DINO_FOLDER", dino, "CONDITION.CLIP_FOLDER", clip)
    assert status == 0, err


def change_annotation(root):
    path = sorted((root / "PairAnnotation" / "trn").iterdir())[0]
    content = json.loads(path.read_text())
    content["src_kps"][0] = [content["src_kps"][0][0] - 1, content["src_kps"][0][1]]
    path.write_text(json.dumps(content))


def change_order(root):
    path = root / "Layout" / "large" / "trn.txt"
    path.write_text("".join(reversed(path.read_text().splitlines(keepends=True))))


def change_validation(root):
    path = root / "Layout" / "large" / "val.txt"
    path.write_text(path.read_text().splitlines(keepends=True)[0])


@pytest.mark.parametrize("change", [change_annotation, change_order, change_validation])
def test_other_pairs_are_refused(resume, started, tmp_path, change):
    change(shutil.copytree(started / "SPair-71k", tmp_path / "data" / "SPair-71k"))
    status, _, err = resume("single", "DATASET.ROOT", tmp_path / "data")
    assert status == 1 and "pairs" in err and "--overwrite" in err


def test_a_key_that_the_run_did_not_know_is_no_hindrance(resume, monkeypatch):
    """The program has been updated since."""
    import config.default

    monkeypatch.setattr(config.default, "_C", config.default._C.clone())
    config.default._C.TRAIN.NEW_KEY = 0
    status, out, err = resume()
    assert status == 0, err
    assert "going on at step 1 of 2" in out


# ---- nothing bad is kept --------------------------------------------------------------------------------------


@pytest.fixture
def poisoned(monkeypatch):
    """Makes one gradient of a step not a number; the loss itself stays finite."""
    from accelerate import Accelerator

    def poison(number):
        steps = iter(range(1, 1000))
        original = Accelerator.backward

        def backward(self, loss, **more):
            original(self, loss * (float("nan") if next(steps) == number else 1), **more)

        monkeypatch.setattr(Accelerator, "backward", backward)

    return poison


@pytest.mark.parametrize("step", [2, 3])
def test_a_prompt_that_is_not_a_number_is_never_kept(train, tmp_path, poisoned, monkeypatch, step):
    """Neither as the last state nor as the best prompt; what was good before stays, and the run can go on."""
    more = (*SINGLE, "TRAIN.EPOCHS", "2", "TRAIN.SAVE_EVERY", "1", "TRAIN.MAX_STEPS", "3")
    with monkeypatch.context():
        poisoned(step)
        status, _, err = train(tmp_path, *more)
    assert status == 1 and "not finite" in err and "Traceback" not in err
    assert not list(tmp_path.rglob("caption.pt"))
    monkeypatch.undo()
    status, out, err = train(tmp_path, *more)
    assert status == 0 and f"going on at step {step - 1} of 3" in out, err
    assert all(value.isfinite().all() for value in kept_prompt(tmp_path).values())


# ---- the gradient scaler --------------------------------------------------------------------------------------


@pytest.fixture
def scaler(monkeypatch):
    """fp16's gradient scaler, on the CPU; the gradients of the numbered backward passes overflow."""
    from accelerate import Accelerator

    original = Accelerator.__init__

    def build(self, *arguments, **settings):
        original(self, *arguments, **settings)
        self.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)

    monkeypatch.setattr(Accelerator, "__init__", build)

    def overflow(*numbers):
        passes, backward = iter(range(1, 1000)), Accelerator.backward
        monkeypatch.setattr(
            Accelerator,
            "backward",
            lambda self, loss, **more: backward(self, loss * (float("inf") if next(passes) in numbers else 1), **more),
        )

    return overflow


def test_a_step_that_the_scaler_skips_is_no_step(train, tmp_path, scaler):
    more = (*PAIR, "TRAIN.EPOCHS", "2", "TRAIN.MAX_STEPS", "4", "TRAIN.SCHEDULER", "linear")
    train(tmp_path / "plain", *more)
    scaler(2)
    with watching() as seen:
        status, out, err = train(tmp_path / "skipped", *more)
    assert status == 0, err
    plain, skipped = (read_scalars(tmp_path / name) for name in ("plain", "skipped"))
    assert [step for step, _ in skipped["train/loss"]] == [1, 2, 3, 4]
    assert skipped["train/lr"] == plain["train/lr"] and len(seen.learning) == 5
    assert "finished 4 steps" in out


def test_the_scaler_changes_no_step(train, world, tmp_path, scaler):
    more = (*SINGLE, "TRAIN.EPOCHS", "2", "TRAIN.SAVE_EVERY", "2")
    train(tmp_path / "scaled", *more)
    with dying_in_step(4):
        train(tmp_path / "parts", *more)
    train(tmp_path / "parts", *more)
    assert same(kept_prompt(tmp_path / "scaled"), kept_prompt(tmp_path / "parts"))


# ---- several processes ----------------------------------------------------------------------------------------


def test_class_prompt_of_two_processes_is_that_of_one(world, tmp_path):
    """Each process may see one category in a step: what it did not see comes from the other."""
    more = ("PROMPT.KIND", "Class", "PROMPT.LENGTH", "5", "TRAIN.EPOCHS", "2", "TRAIN.LR", "0.05")
    assert_two_processes_equal_one(world, tmp_path, *more)
    one, two = (read_scalars(tmp_path / name) for name in ("one", "two"))
    for tag in ("train/loss", "val_bilinear/pck@0.1"):
        assert [step for step, _ in one[tag]] == [step for step, _ in two[tag]]
        assert [value for _, value in one[tag]] == pytest.approx([value for _, value in two[tag]], rel=1e-4)
    mine, theirs = kept_prompt(tmp_path / "one"), kept_prompt(tmp_path / "two")
    for category, value in mine.items():
        torch.testing.assert_close(theirs[category], value, rtol=1e-3, atol=1e-4)


def test_two_processes_go_on_where_one_was_and_the_other_way_round(world, train, tmp_path):
    more = (*PAIR, "TRAIN.EPOCHS", "2")
    train(tmp_path / "whole", *more)
    train(tmp_path / "parts", *more, "TRAIN.MAX_STEPS", "2")
    two = launch(world, tmp_path / "parts", *more, "TRAIN.MAX_STEPS", "4", processes=2)
    out, err = two.communicate(timeout=180)
    assert two.returncode == 0 and "going on at step 2 of 4" in out, err[-3000:]
    _, out, _ = train(tmp_path / "parts", *more)
    assert "going on at step 4 of 6" in out
    whole, parts = (dict(read_scalars(tmp_path / name)["train/loss"]) for name in ("whole", "parts"))
    assert list(parts) == [1, 2, 3, 4, 5, 6]
    assert list(parts.values()) == pytest.approx([whole[step] for step in parts], rel=1e-4)


# ---- rows of a Class prompt -----------------------------------------------------------------------------------


def test_a_category_that_a_batch_lacks_keeps_still(train, tmp_path):
    """As one parameter per category would: Adam's momentum does not move it."""
    more = ("PROMPT.KIND", "Class", "PROMPT.LENGTH", "5", "TRAIN.BATCH_SIZE", "1", "TRAIN.EPOCHS", "2")
    with watching() as seen:
        train(tmp_path, *more)
    assert len(seen.steps) == 12
    for now, then in pairwise(seen.steps):
        absent = now.gradient == 0
        assert absent.sum() == len(absent) / 2  # one of two categories
        assert torch.equal(now.values[absent], then.values[absent])
        assert not torch.equal(now.values, then.values)


# ---- what a result says of itself, and whom a prompt belongs to -----------------------------------------------


def test_a_result_tells_its_precision(world, tmp_path):
    for precision, told in (("auto", "fp32"), ("bf16", "bf16")):
        output = tmp_path / precision
        assert call("test.py", *world.opts(output, "PRECISION", precision, "EVAL.ALPHAS", CURVE)) == 0
        (content,) = [json.loads(path.read_text()) for path in output.rglob("spair_*.json")]
        assert told in json.dumps({key: value for key, value in content.items() if key != "summary"})


def test_a_prompt_runs_only_where_it_was_trained_for(train, world, tmp_path, capsys):
    """Another layer, posterior or method is refused or said, never taken in silence."""
    train(tmp_path, *SINGLE, "TRAIN.MAX_STEPS", "1")
    for key, value in (("METHOD.LAYER", "2"), ("METHOD.POSTERIOR", "mode")):
        more = ("PROMPT.TYPE", "Single_spair_tiny_TokenEmbeds5", key, value)
        call("test.py", *world.opts(tmp_path, *more))
        assert key in capsys.readouterr().err, key
