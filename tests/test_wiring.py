"""Every key of the configuration arrives where it acts: each is changed, and what it should change is looked at.

Keys that change a number are held by the golden values too, `KEY value` in tests/golden: they must differ from the run
without the change.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from config import get_default_config, iter_keys
from tests.command import call, dying_in_step, read_scalars
from tests.golden import CPM, CURVE, DINO_KEYS, TESTED_KEYS, TRAINED_KEYS, VALUES, summarise
from tests.watch import Seen, watching

KEYS = {key for key, _ in iter_keys(get_default_config())}
GOLDEN = json.loads(VALUES.read_text())
SINGLE = ("PROMPT.KIND", "Single", "PROMPT.LENGTH", "5", "PROMPT.INIT", "empty")
PAIR = ("PROMPT.KIND", "CPM", "PROMPT.CPM", "Pair-DINO-Feat-G3-C4")
WATCHED = {name.split(" ")[0] for keys in (TRAINED_KEYS, TESTED_KEYS, DINO_KEYS) for name in keys}
WATCHED |= {key for key in KEYS if key.startswith("FEATURES.")}  # tests/test_geoaware_features.py
WATCHED |= {key for key in KEYS if key.startswith("GEOAWARE.")}  # tests/test_geoaware_training.py
WATCHED |= {"POSE.ALIGN", "POSE.MASKS", "POSE.GRID", "EVAL.INEQUALITY", "EVAL.KAP"}  # tests/test_pose_run.py
WATCHED |= {"METHOD.WEIGHTS", "TRAIN.START"}  # tests/test_method_head.py
WATCHED |= {key for key in KEYS if key.startswith("TRANSFER.")}  # tests/test_transfer.py
WATCHED |= {"DATASET.FEW_SHOT", "VAL.PAIRS", *(key for key in KEYS if key.startswith("DSD."))}  # tests/test_dsd.py
WATCHED |= {key for key in KEYS if key.startswith("LDM.")}  # tests/test_ldm_correspondence.py


def watches(*keys):
    """Says which keys a test is about."""
    WATCHED.update(keys)
    return lambda test: test


@dataclass
class Run:
    """A finished command."""

    output: Path
    out: str
    err: str
    seen: Seen

    @property
    def scalars(self) -> dict[str, list[tuple[int, float]]]:
        return read_scalars(self.output)

    @property
    def summary(self) -> dict:
        contents = [json.loads(path.read_text()) for path in self.output.rglob("*.json")]
        (summary,) = [content["summary"] for content in contents if "summary" in content]
        return summary

    def files(self, pattern: str) -> list[Path]:
        return sorted(self.output.rglob(pattern))


@pytest.fixture
def run(world, tmp_path, capsys):
    """Runs train.py or test.py on the tiny world, each time into a folder of its own."""
    numbers = iter(range(100))

    def start(script: str, *more: str, status: int = 0) -> Run:
        output = tmp_path / str(next(numbers))
        file = ("--config_file", "config/spair/base.yaml")
        with watching() as seen:
            found = call(script, *file, *world.opts(output, *map(str, more)))
        out, err = capsys.readouterr()
        assert found == status, err
        return Run(output, out, err, seen)

    return start


@pytest.fixture
def train(run):
    return lambda *more, **options: run("train.py", *SINGLE, *more, **options)


@pytest.fixture
def test(run):
    return lambda *more, **options: run("test.py", *more, **options)


@pytest.mark.parametrize(
    "name", [name for name in GOLDEN if name.split("/")[0] in ("trained", "tested", "tested_dino") and name[-1] != "/"]
)
def test_a_golden_key_changes_a_number(name):
    base = GOLDEN[f"{name.split('/')[0]}/"]
    assert GOLDEN[name] != base
    if name.startswith("trained/LOSS"):
        assert GOLDEN[name]["loss"] != base["loss"]
    if name.startswith("trained/VAL"):
        assert GOLDEN[name]["loss"] == base["loss"] and GOLDEN[name]["pck"] != base["pck"]


@watches("EVAL.BY", "EVAL.AVERAGE")
def test_a_golden_table_depends_on_what_is_averaged():
    tables = [GOLDEN[f"table/{name}"]["pck"] for name in ("text", "point", "category")]
    assert tables[0] != tables[1] != tables[2]


# ---- where it runs, where files go ----------------------------------------------------------------------------


@watches("OUTPUT_ROOT", "CACHE_ROOT", "NETWORK.NAME", "DATASET.NAME")
def test_folders(train, tmp_path):
    run = train("CACHE_ROOT", tmp_path / "caches", "TRAIN.MAX_STEPS", "1", "DATASET.NAME", "pfpascal")
    assert not (run.output / "asset").exists() and list((tmp_path / "caches").rglob("*"))
    assert [path.name for path in (run.output / "prompt").iterdir()] == ["Single_pfpascal_tiny_TokenEmbeds5"]
    run = train("TRAIN.MAX_STEPS", "1", "NETWORK.NAME", "small")
    assert [path.name for path in (run.output / "prompt").iterdir()] == ["Single_spair_small_TokenEmbeds5"]
    assert list((run.output / "asset").rglob("*"))


@watches("DATASET.ROOT", "DATASET.CATEGORY")
def test_data_set(train, tmp_path):
    from tests.fixtures_dataset import tiny_spair

    tiny_spair(tmp_path, ("bird",))
    assert "3 pairs" in train("DATASET.ROOT", tmp_path, "TRAIN.MAX_STEPS", "1").out
    assert "3 pairs" in train("DATASET.CATEGORY", "cat", "TRAIN.MAX_STEPS", "1").out


@watches("DATASET.FOLDER", "DATASET.THRESHOLD", "DATASET.PAIRS")
def test_which_pairs_and_how_they_are_judged(test, tmp_path):
    from tests.fixtures_dataset import tiny_spair

    curve = ("EVAL.ALPHAS", CURVE)
    tables = [test("DATASET.THRESHOLD", rule, *curve).summary["pck"] for rule in ("", "bbox", "image", "kps")]
    assert tables[0] == tables[1] and tables[1] != tables[2] != tables[3] != tables[1]
    assert test("DATASET.PAIRS", "1").summary["pairs"] == 2  # of 2 in each of two categories
    tiny_spair(tmp_path, ("bird",)).rename(tmp_path / "birds")
    assert test("DATASET.FOLDER", tmp_path / "birds").summary["pairs"] == 2


@watches("DATASET.PREPARE")
def test_command_that_makes_the_data(test, tmp_path):
    missing = test("DATASET.ROOT", tmp_path / "nowhere", "DATASET.PREPARE", "make data", status=1)
    assert "make data" in missing.err and str(tmp_path / "nowhere") in missing.err


@watches("DATASET.IMAGE_SIZE")
def test_image_size(test):
    seen = test("DATASET.IMAGE_SIZE", "[32, 64]", "TEST.ENSEMBLE", "1").seen
    assert set(seen.vae) == {(32, 64)} and {call.size for call in seen.unet} == {(4, 8)}


@watches("DATASET.FRAME")
def test_frame(test):
    curve = ("EVAL.ALPHAS", CURVE)
    stretched, padded = (test("DATASET.FRAME", frame, *curve).summary["pck"] for frame in ("stretch", "pad"))
    assert stretched != padded and summarise(curves(stretched)) == GOLDEN["tested/"]["pck"]


def curves(pck):
    return [[row["all"] for row in rows.values()] for rows in pck.values()]


@watches("DATASET.NUM_WORKERS")
def test_workers(run):
    assert 2 in run("train.py", *PAIR, "DATASET.NUM_WORKERS", "2", "TRAIN.MAX_STEPS", "1").seen.workers


@watches("DEVICE")
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_device(test):
    assert "DEVICE cuda" in test("DEVICE", "cuda", status=2).err


@watches("PRECISION")
def test_precision(test):
    assert {call.dtype for call in test("PRECISION", "bf16").seen.unet} == {torch.bfloat16}
    assert {call.dtype for call in test("PRECISION", "auto").seen.unet} == {torch.float32}


# ---- networks -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def others(tmp_path_factory):
    """Networks of the same make with other weights."""
    from tests.tiny import build_tiny_clip_vision, build_tiny_dinov2, build_tiny_stable_diffusion

    root = tmp_path_factory.mktemp("others")
    build_tiny_stable_diffusion(root / "sd", seed=5)
    build_tiny_dinov2(root / "dino", seed=5)
    build_tiny_clip_vision(root / "clip", seed=5)
    return root


@watches("NETWORK.FOLDER", "NETWORK.UNET")
def test_weights_of_stable_diffusion(train, others):
    base, folder, unet = (
        dict(train("TRAIN.MAX_STEPS", "1", *more).scalars["train/loss"])[1]
        for more in ((), ("NETWORK.FOLDER", others / "sd"), ("NETWORK.UNET", others / "sd" / "unet"))
    )
    assert len({base, folder, unet}) == 3


@watches("CONDITION.DINO_FOLDER", "CONDITION.CLIP_FOLDER")
@pytest.mark.parametrize("network", ["DINO", "CLIP"])
def test_weights_of_the_condition(run, others, network):
    kind = ("PROMPT.KIND", "CPM", "PROMPT.CPM", f"Img-{network}-Head-G0-C4", "TRAIN.MAX_STEPS", "1")
    mine = run("train.py", *kind)
    other = run("train.py", *kind, f"CONDITION.{network}_FOLDER", others / network.lower())
    assert mine.scalars["train/loss"] != other.scalars["train/loss"]
    assert bool(mine.seen.dino) == (network == "DINO") and bool(mine.seen.clip) == (network == "CLIP")


@watches("METHOD.NAME", "METHOD.DINO_FOLDER", "METHOD.DINO_SIZE")
def test_dinov2_of_a_method(test, world, others):
    dino = ("METHOD.NAME", "dinov2", "EVAL.ALPHAS", "(0.05, 0.1, 0.2, 0.3, 0.5)")
    mine = test(*dino, "METHOD.DINO_FOLDER", world.root / "dino", "METHOD.DINO_SIZE", "[28, 70]")
    assert set(mine.seen.dino) == {(28, 70)} and not mine.seen.unet
    other = test(*dino, "METHOD.DINO_FOLDER", others / "dino", "METHOD.DINO_SIZE", "[28, 70]")
    assert mine.summary["pck"] != other.summary["pck"]


@watches("METHOD.DINO_LAYER")
def test_block_of_dinov2():
    assert GOLDEN["features/dinov2_layer"] != GOLDEN["features/dinov2"] != GOLDEN["features/dinov2_block"]


@watches("CONDITION.DINO_POSITIONS", "METHOD.DINO_POSITIONS")
def test_position_grid_of_dinov2(run, world, tmp_path):
    """The two ways agree at the size that the network was trained at, and only there."""
    wide = shutil.copytree(world.root / "dino", tmp_path / "dino")
    settings = json.loads((wide / "preprocessor_config.json").read_text())
    settings |= {"crop_size": {"height": 84, "width": 84}, "size": {"shortest_edge": 84}}
    (wide / "preprocessor_config.json").write_text(json.dumps(settings))

    def losses(folder):
        kind = ("PROMPT.KIND", "CPM", "PROMPT.CPM", "Img-DINO-Feat-G0-C4", "TRAIN.MAX_STEPS", "1")
        ways = [("CONDITION.DINO_FOLDER", folder, "CONDITION.DINO_POSITIONS", way) for way in ("scale", "size")]
        return [run("train.py", *kind, *way).scalars["train/loss"] for way in ways]

    def tables(size):
        dino = ("METHOD.NAME", "dinov2", "METHOD.DINO_FOLDER", world.root / "dino", "METHOD.DINO_SIZE", size)
        curve = ("EVAL.ALPHAS", CURVE, "METHOD.DINO_LAYER", "0")
        return [run("test.py", *dino, *curve, "METHOD.DINO_POSITIONS", way).summary["pck"] for way in ("scale", "size")]

    for same, other in ((losses(world.root / "dino"), losses(wide)), (tables("[56, 56]"), tables("[42, 84]"))):
        assert same[0] == same[1] and other[0] != other[1]


@watches("NETWORK.INIT", "NETWORK.ARCHITECTURE")
def test_random_weights(run):
    """Of real sizes, so only what is known before they are made."""
    random = ("--dry_run", "NETWORK.INIT", "random", "DATASET.IMAGE_SIZE", "[128, 128]")
    run("train.py", *random, "NETWORK.ARCHITECTURE", "sd2-1", "NETWORK.NAME", "sd2-1")
    wrong = run("train.py", *random, "NETWORK.ARCHITECTURE", "sd1-5", "NETWORK.NAME", "sd2-1", status=2)
    assert "768" in wrong.err and "1024" in wrong.err


@watches("NETWORK.MEMORY_FORMAT")
def test_memory_format(test):
    for name in ("channels_last", "contiguous"):
        seen = test("NETWORK.MEMORY_FORMAT", name).seen
        assert {call.channels_last for call in seen.unet} == {name == "channels_last"}


@watches("NETWORK.COMPILE")
def test_compile(test, monkeypatch):
    modes = []
    monkeypatch.setattr(torch, "compile", lambda function, mode=None, **_: modes.append(mode) or function)
    test("NETWORK.COMPILE", "default")
    assert modes == ["default"]


@watches("NETWORK.RECOMPUTE")
def test_recompute(train):
    plain, again = (train("NETWORK.RECOMPUTE", value, "TRAIN.MAX_STEPS", "1").seen for value in ("False", "True"))
    assert again.resnets > plain.resnets and again.learning[0].checkpointing
    assert torch.allclose(plain.steps[0].gradient, again.steps[0].gradient, rtol=1e-4)


# ---- prompts --------------------------------------------------------------------------------------------------


@watches("PROMPT.KIND", "PROMPT.SPACE", "PROMPT.LENGTH", "PROMPT.CPM")
@pytest.mark.parametrize(
    ("name", "values", "more"),
    [
        ("Single_spair_tiny_TokenEmbeds9", 9 * 32, ("PROMPT.LENGTH", "9")),
        ("Single_spair_tiny_HiddenState", 77 * 32, ("PROMPT.SPACE", "HiddenState")),
        ("Class_spair_tiny_TokenEmbeds5", 2 * 5 * 32, ("PROMPT.KIND", "Class")),
        (
            "CPM_spair_tiny_Img-CLIP-Head-G2-C4",
            (2 + 4 + 4) * 32 + 32 * 12 + 32,  # tokens, positions, factors; the linear layer from CLIP's 12 features
            ("PROMPT.KIND", "CPM", "PROMPT.INIT", "random", "PROMPT.CPM", "Img-CLIP-Head-G2-C4"),
        ),
    ],
)
def test_what_is_learned(train, name, values, more):
    """Name of the prompt's folder, and how many numbers learn."""
    run = train("TRAIN.MAX_STEPS", "1", "TRAIN.BATCH_SIZE", "6", *more)
    assert [path.name for path in (run.output / "prompt").iterdir()] == [name]
    assert len(run.seen.steps[0].gradient) == values


@watches("PROMPT.INIT")
def test_start_of_a_prompt(train):
    starts = ("random", "empty", "text:cow")
    runs = [train("TRAIN.MAX_STEPS", "1", "PROMPT.INIT", start) for start in starts]
    assert len({run.scalars["train/loss"][0][1] for run in runs}) == 3
    assert "cow" in runs[2].seen.texts


@pytest.mark.parametrize(
    "more", [("PROMPT.KIND", "Single", "PROMPT.SPACE", "HiddenState"), PAIR], ids=["Single", "CPM"]
)
def test_seed_of_a_prompt_that_starts_at_random(world, tmp_path, more):
    from config import load_config
    from model.prompt.build import build_prompt

    def start(seed: str) -> torch.Tensor:
        cfg = load_config(None, world.opts(tmp_path, "SEED", seed, *more))
        return torch.cat([p.flatten() for p in build_prompt(cfg, ["bird"], training=True).parameters()])

    assert torch.equal(start("0"), start("0"))
    assert not torch.equal(start("0"), start("1"))


@watches("PROMPT.TYPE", "PROMPT.TEMPLATE")
def test_prompt_in_words(test):
    assert {"one bird", "one cat"} <= set(test("PROMPT.TEMPLATE", "one {category}").seen.texts)
    assert not any("photo" in text for text in test("PROMPT.TYPE", "empty").seen.texts)


@watches("PROMPT.WITHOUT_CATEGORY")
def test_prompt_of_an_own_image(world, tmp_path):
    from config import load_config
    from sd4match import Matcher

    cfg = load_config(
        None, world.opts(tmp_path, "PROMPT.WITHOUT_CATEGORY", "some thing", "PROMPT.TEMPLATE", "one {category}")
    )
    picture = np.full((40, 40, 3), 128, np.uint8)
    with watching() as seen:
        matcher = Matcher.from_config(cfg)
        matcher.encode(picture)
        assert seen.texts[-1] == "some thing"
        matcher.encode(picture, category="cow")
        assert seen.texts[-1] == "one cow"


# ---- training -------------------------------------------------------------------------------------------------


@watches("LOSS.NAME")
def test_loss_of_the_table(train, monkeypatch):
    import loss

    class Double(loss.LOSSES["kernel_smoothed_cross_entropy"]):
        def forward(self, *args):
            return 2 * super().forward(*args)

    assert "kernel_smoothed_cross_entropy" in train("LOSS.NAME", "double", status=2).err
    monkeypatch.setitem(loss.LOSSES, "double", Double)
    one, two = (
        train("TRAIN.MAX_STEPS", "1", *more).scalars["train/loss"][0][1] for more in ((), ("LOSS.NAME", "double"))
    )
    assert two == pytest.approx(2 * one)


@watches("LOSS.WINDOW")
def test_window_of_the_soft_argmax(train):
    losses = [
        train("LOSS.NAME", "soft_argmax_error", "LOSS.WINDOW", window, "TRAIN.MAX_STEPS", "1").scalars["train/loss"]
        for window in ("0.0", "1.0", "-1.0")
    ]
    assert losses[0] != losses[1] != losses[2] != losses[0]


@watches(
    "TRAIN.BATCH_SIZE", "TRAIN.ACCUMULATION", "TRAIN.ENSEMBLE", "TRAIN.TIMESTEP", "TRAIN.EPOCHS", "TRAIN.MAX_STEPS"
)
def test_steps(train):
    def calls(*more):
        return [(call.rows, call.timesteps) for call in train(*more).seen.learning]

    assert calls("TRAIN.BATCH_SIZE", "3", "TRAIN.EPOCHS", "2") == [(6, {261})] * 4
    assert calls("TRAIN.BATCH_SIZE", "4", "TRAIN.ACCUMULATION", "2", "TRAIN.MAX_STEPS", "1") == [(4, {261})] * 2
    ensemble = calls("TRAIN.ENSEMBLE", "3", "TRAIN.TIMESTEP", "17", "TRAIN.MAX_STEPS", "1", "TRAIN.BATCH_SIZE", "2")
    assert sum(rows for rows, _ in ensemble) == 12 and {17} == set().union(*(steps for _, steps in ensemble))


@watches("TRAIN.LR", "TRAIN.LINEAR_LR_SCALE")
def test_linear_layers_learn_at_a_rate_of_their_own(run):
    seen = run("train.py", *PAIR, "TRAIN.LR", "0.02", "TRAIN.LINEAR_LR_SCALE", "0.5", "TRAIN.MAX_STEPS", "1").seen
    assert seen.steps[0].lr == [0.02, 0.01]


@watches("TRAIN.SCHEDULER", "TRAIN.STEP_RULES", "TRAIN.RISE")
def test_schedules(run):
    def rates(*more):
        steps = run("train.py", *PAIR, "TRAIN.EPOCHS", "2", *more).seen.steps
        rates, linear = zip(*(step.lr for step in steps), strict=True)
        assert linear == pytest.approx([rate / 10 for rate in rates])
        return rates

    assert rates() == pytest.approx([0.01] * 6)
    assert rates("TRAIN.SCHEDULER", "linear") == pytest.approx([0.01 * (6 - step) / 6 for step in range(6)])
    rules = ("TRAIN.SCHEDULER", "piecewise_constant", "TRAIN.STEP_RULES", "1:2,0.1:4,0.01")
    assert rates(*rules) == pytest.approx([0.01, 0.01, 0.001, 0.001, 0.0001, 0.0001])
    weights = [torch.nn.Parameter(torch.zeros(1))]
    for rise in (0.3, 0.6):
        optimizer = torch.optim.Adam(weights, lr=0.01)
        library = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.01, total_steps=6, pct_start=rise)
        expected = []
        for _ in range(6):
            expected.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            library.step()
        assert rates("TRAIN.SCHEDULER", "one_cycle", "TRAIN.RISE", str(rise)) == pytest.approx(expected)
    assert expected[0] == pytest.approx(0.01 / 25) and expected[-1] < 1e-6


@watches("TRAIN.RESHUFFLE")
def test_order_of_the_pairs(train, monkeypatch):
    from engine.run import EpochPairs

    def order(*more):
        seen, read = [], EpochPairs.__getitem__
        monkeypatch.setattr(EpochPairs, "__getitem__", lambda self, item: seen.append(item) or read(self, item))
        train("TRAIN.EPOCHS", "2", *more)
        return [[pair for epoch, pair in seen if epoch == number] for number in (0, 1)]

    first, second = order("TRAIN.RESHUFFLE", "False")
    assert first == second and sorted(first) == list(range(6))
    assert order()[0] == first != order()[1]


@watches("TRAIN.SPLIT")
def test_training_split(train):
    assert "4 pairs" in train("TRAIN.SPLIT", "test", "TRAIN.MAX_STEPS", "1").out


@watches("TRAIN.LOG_EVERY")
def test_lines_of_the_log(train):
    def logged(*more):
        return [word.split("/")[0] for word in train("TRAIN.EPOCHS", "2", *more).out.split() if word.endswith("/6")]

    assert logged("TRAIN.LOG_EVERY", "2") == ["2", "4", "6"]
    assert logged("TRAIN.LOG_EVERY", "3") == ["3", "6"]


@watches("TRAIN.SAVE_EVERY")
def test_saved_every_so_many_steps(world, tmp_path, capsys):
    """Killed in step 6 of an epoch of 6, a run goes on after the last step that was saved."""
    more = ("TRAIN.BATCH_SIZE", "1", "TRAIN.EPOCHS", "1", "TRAIN.SAVE_EVERY", "2")
    arguments = ("train.py", "--config_file", "config/spair/base.yaml", *world.opts(tmp_path, *SINGLE, *more))
    with dying_in_step(6):
        call(*arguments)
    assert call(*arguments) == 0
    assert "going on at step 4 of 6" in capsys.readouterr().out


# ---- validation -----------------------------------------------------------------------------------------------


@watches("VAL.TIMESTEP", "VAL.ENSEMBLE", "VAL.SPLIT")
def test_validation_runs_at_its_own_settings(train):
    run = train("VAL.TIMESTEP", "17", "VAL.ENSEMBLE", "3", "VAL.SPLIT", "test", "TRAIN.MAX_STEPS", "1")
    assert {call.timesteps.pop() for call in run.seen.judging} == {17}
    assert sum(call.rows for call in run.seen.judging) == 3 * 6  # draws x images, each once
    assert {call.timesteps.pop() for call in run.seen.learning} == {261}
    assert "4 pairs" in run.out


@watches("VAL.LOCALISER", "VAL.ALPHA")
def test_score_of_a_validation(train):
    run = train(
        "VAL.LOCALISER", "softmax", "VAL.ALPHA", "0.3", "EVAL.ALPHAS", "(0.1, 0.2, 0.3, 0.4)", "TRAIN.MAX_STEPS", "1"
    )
    score = run.scalars["val_softmax/pck@0.3"][0][1]
    others = {tag: values[0][1] for tag, values in run.scalars.items() if tag.startswith("val_softmax")}
    assert len(set(others.values())) > 2
    assert f"best validation PCK@0.3 (softmax): {score:.2%}" in run.out


@watches("VAL.EVERY")
def test_validation_every_so_many_steps(train):
    run = train("VAL.EVERY", "2", "TRAIN.EPOCHS", "3", "TRAIN.MAX_STEPS", "7")
    assert [step for step, _ in run.scalars["val_nn/pck@0.1"]] == [2, 4, 6, 7]
    run = train("VAL.EVERY", "0", "TRAIN.EPOCHS", "3", "TRAIN.MAX_STEPS", "7")
    assert [step for step, _ in run.scalars["val_nn/pck@0.1"]] == [3, 6, 7]


@watches("VAL.PICTURES", "VAL.DENSE", "VAL.GENERATE", "GENERATE.STEPS", "GENERATE.GUIDANCE")
def test_pictures_of_a_validation(train):
    assert pictures(train("VAL.PICTURES", "0", "TRAIN.MAX_STEPS", "1").output) == set()
    run = train("VAL.PICTURES", "2", "VAL.DENSE", "5", "TRAIN.MAX_STEPS", "1")
    assert pictures(run.output) == {f"val_{kind}/{n}" for kind in ("matches", "correlation", "dense") for n in (0, 1)}
    more = ("VAL.PICTURES", "1", "VAL.GENERATE", "2", "GENERATE.STEPS", "3", "TRAIN.MAX_STEPS", "1")
    plain, without = train(*more), train(*more, "GENERATE.GUIDANCE", "1.0")
    assert pictures(plain.output) == {"val_matches/0", "val_correlation/0", "val_generated/0"}
    made, made_without = ([call.rows for call in run.seen.unet if call.timesteps != {261}] for run in (plain, without))
    assert len(made) % 3 == 0 and sum(made) == 3 * 2 * 2 and sum(made_without) == 3 * 2


def pictures(output: Path) -> set[str]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (log,) = {path.parent for path in output.rglob("events.out.*")}
    events = EventAccumulator(str(log))
    events.Reload()
    return set(events.Tags()["images"])


# ---- test and evaluation --------------------------------------------------------------------------------------


@watches("TEST.TIMESTEP", "TEST.ENSEMBLE", "TEST.SPLIT")
def test_test_runs_at_its_own_settings(test):
    run = test("TEST.TIMESTEP", "17", "TEST.ENSEMBLE", "3", "TEST.SPLIT", "val")
    assert {call.timesteps.pop() for call in run.seen.unet} == {17}
    assert sum(call.rows for call in run.seen.unet) == 3 * 4 and run.summary["pairs"] == 2


@watches("EVAL.BATCH_SIZE")
def test_images_at_a_time(test):
    seen = test("EVAL.BATCH_SIZE", "3", "TEST.ENSEMBLE", "1").seen
    assert set(seen.batches) == {3} and {call.rows for call in seen.unet} == {3}


@watches("EVAL.ALPHAS", "EVAL.LOCALISERS", "EVAL.PROTOCOL")
def test_what_a_summary_holds(test):
    summary = test(
        *("EVAL.ALPHAS", "(0.07, 0.2)", "EVAL.LOCALISERS", "[softmax, nn]", "EVAL.PROTOCOL", "original"),
        *("EVAL.BY", "point", "EVAL.AVERAGE", "category"),
    ).summary
    assert {name: set(row) for name, row in summary["pck"].items()} == {
        name: {"0.07", "0.2"} for name in ("softmax", "nn")
    }
    assert (summary["protocol"], summary["by"], summary["average"]) == ("original", "point", "category")


@watches("EVAL.WINDOW")
def test_window_of_the_localiser(test):
    more = ("EVAL.LOCALISERS", "[window]", "EVAL.ALPHAS", CURVE, "METHOD.LAYER", "2", "EVAL.WINDOW")
    tables = [test(*more, window).summary["pck"] for window in ("0", "1", "-1")]
    assert tables[0] != tables[1] != tables[2] != tables[0]


@watches("TEST.PICTURES", "EVAL.PICTURE_LOCALISER", "EVAL.PICTURE_ALPHA")
def test_pictures_of_a_test(test):
    def drawn(count, *more):
        files = test("TEST.PICTURES", count, *more).files("*.png")
        assert len(files) == 2 * int(count)
        return [np.asarray(Image.open(path)) for path in files]

    drawn("2")
    nn, softmax, strict = (
        drawn("1", "EVAL.PICTURE_LOCALISER", localiser, "EVAL.PICTURE_ALPHA", alpha)
        for localiser, alpha in (("nn", "0.9"), ("softmax", "0.9"), ("nn", "0.001"))
    )
    for other in (softmax, strict):
        assert any(one.shape != two.shape or (one != two).any() for one, two in zip(nn, other, strict=True))


def test_every_key_is_watched():
    assert KEYS == WATCHED
    assert set(CPM) <= {name.removeprefix("step/") for name in GOLDEN}
