"""Training from start to finish on tiny real networks: what changes, what resumes, what is written."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import train as train_script
from config import ROOT, ConfigError, load_config
from engine.check import check_config
from model.method import find_method
from tests.command import call
from tests.watch import watching
from utils.checkpoint import CheckpointError, load_checkpoint

CPM = "Pair-DINO-Feat-G3-C4"
NAME = f"CPM_spair_tiny_{CPM}"
pytestmark = pytest.mark.usefixtures("fresh_accelerator")


def configure(world, output, *more):
    return check_config(load_config(None, world.opts(output, "PROMPT.CPM", CPM, *more)), training=True)


def run(world, output, *more, overwrite=False):
    """Train in this process; the final checkpoint."""
    cfg = configure(world, output, *more)
    assert train_script.train(cfg, overwrite) == 0
    return load_checkpoint(log_folder(cfg, output))


def log_folder(cfg, output):
    name = find_method(cfg.METHOD.NAME).name_learned(cfg)
    return output / "log" / cfg.DATASET.NAME / f"{name}_{cfg.TRAIN.SCHEDULER}_lr{cfg.TRAIN.LR:g}"


def assert_same_state(a, b):
    """Bit for bit: prompt, optimiser, schedule, counters."""
    flat_a, flat_b = dict(flatten(a["learner"])), dict(flatten(b["learner"]))
    assert flat_a.keys() == flat_b.keys()
    for key, value in flat_a.items():
        same = torch.equal(value, flat_b[key]) if isinstance(value, torch.Tensor) else value == flat_b[key]
        assert same, key


def flatten(node, prefix=""):
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list | tuple) else None
    if items is None:
        yield prefix, node
    else:
        for key, value in items:
            yield from flatten(value, f"{prefix}.{key}")


def launch(world, output, *more, processes=1, script="train.py", **options):
    """Start a script as a user does, on one CPU process or several."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    command = [sys.executable, *(launcher if processes > 1 else []), script]
    flags = options.pop("flags", ["--config_file", "config/spair/base.yaml"])
    command += [*flags, *world.opts(output, *more)]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    )


def assert_two_processes_equal_one(world, folder, *more, rtol=1e-3, atol=1e-6):
    """In the gradient, which is the mean over the processes, in both: Adam would hide a sum."""
    flags = [str(folder / "gradient"), "train.py", "--config_file", "config/spair/base.yaml"]
    pair = launch(world, folder / "two", *more, processes=2, script="tests/watched.py", flags=flags)
    with watching() as seen:
        assert call("train.py", "--config_file", "config/spair/base.yaml", *world.opts(folder / "one", *more)) == 0
    _, err = pair.communicate(timeout=180)
    assert pair.returncode == 0, err[-3000:]
    for rank in range(2):
        gradients = torch.load(folder / f"gradient.{rank}")
        torch.testing.assert_close(gradients, torch.stack([step.gradient for step in seen.steps]), rtol=rtol, atol=atol)


def test_a_run_writes_its_prompt_log_and_provenance(world, tmp_path):
    run(world, tmp_path, "TRAIN.EPOCHS", "2", "VAL.PICTURES", "1", "TRAIN.LOG_EVERY", "1")
    folder = tmp_path / "prompt" / NAME
    saved = torch.load(folder / "ckpt.pt", weights_only=True)
    assert {"global_embeds", "positional_embedding", "alpha_cond", "linear_C.weight", "linear_N.bias"} <= set(saved)
    meta = json.loads((folder / "prompt.json").read_text())
    assert meta["backbone"] == "tiny" and meta["metrics"]["validation"]["pairs"] == 2
    assert "TRAIN" in (folder / "config.yaml").read_text()
    log = tmp_path / "log" / "spair" / f"{NAME}_constant_lr0.01"
    assert {"state.safetensors", "config.yaml", "env.json", "metrics.jsonl"} <= {path.name for path in log.iterdir()}
    assert len((log / "metrics.jsonl").read_text().splitlines()) == 2
    tags = read_tensorboard(log)
    assert {"train/loss", "train/lr", "val_nn/pck@0.1", "val_kernelsoftmax/pck@0.05"} <= tags["scalars"]
    assert tags["images"] == {"val_matches/0", "val_correlation/0"}
    assert tags["steps"] == [1, 2, 3, 4, 5, 6]


def read_tensorboard(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    tags = events.Tags()
    steps = [event.step for event in events.Scalars("train/loss")]
    return {"scalars": set(tags["scalars"]), "images": set(tags["images"]), "steps": steps}


def test_only_the_prompt_changes(world, tmp_path, monkeypatch):
    """Every weight of every frozen network is the same before and after, and none ever gets a gradient."""
    from model.method.sd4match import SD4Match

    seen = {}
    original = SD4Match.pair_features

    def spy(self, *args, **kwargs):
        frozen = {name: p for name, p in self.named_parameters() if not name.startswith("prompt.")}
        assert frozen and all(not p.requires_grad and p.grad is None for p in frozen.values())
        values = {name: p.detach().clone() for name, p in frozen.items()}
        for name, value in seen.setdefault(id(self), values).items():
            assert torch.equal(value, values[name])
        return original(self, *args, **kwargs)

    monkeypatch.setattr(SD4Match, "pair_features", spy)
    first = run(world, tmp_path / "a", "TRAIN.MAX_STEPS", "1")
    second = run(world, tmp_path / "b", "TRAIN.MAX_STEPS", "3")
    prompts = [state["learner"]["weights"] for state in (first, second)]
    assert all(not torch.equal(prompts[0][key], prompts[1][key]) for key in prompts[0])


@pytest.mark.parametrize("method", ["CPM", "Single"])
def test_resume_equals_uninterrupted_bit_for_bit(world, tmp_path, method):
    more = ["PROMPT.KIND", method, "PROMPT.LENGTH", "5"]
    whole = run(world, tmp_path / "whole", *more, "TRAIN.EPOCHS", "2")
    for steps in ("1", "3", "4"):  # inside the first epoch, at its end, inside the second
        run(world, tmp_path / "parts", *more, "TRAIN.EPOCHS", "2", "TRAIN.MAX_STEPS", steps)
    parts = run(world, tmp_path / "parts", *more, "TRAIN.EPOCHS", "2")
    whole["learner"]["counters"].pop("best"), parts["learner"]["counters"].pop("best")
    assert_same_state(whole, parts)


def test_accumulated_parts_equal_the_whole_batch(world, tmp_path):
    assert_parts_equal_the_whole(run, world, tmp_path, atol=1e-6)


def assert_parts_equal_the_whole(run, world, folder, atol):
    """In the gradient, for Adam hides its size."""
    size = ["TRAIN.BATCH_SIZE", "4", "TRAIN.MAX_STEPS", "2"]
    with watching() as whole:
        run(world, folder / "whole", *size)
    with watching() as parts:
        run(world, folder / "parts", *size, "TRAIN.ACCUMULATION", "2")
    for one, two in zip(whole.steps, parts.steps, strict=True):
        torch.testing.assert_close(two.gradient, one.gradient, rtol=1e-3, atol=atol)


def test_overwrite_forgets_the_old_run_before_the_first_step(world, tmp_path, monkeypatch):
    run(world, tmp_path, "TRAIN.MAX_STEPS", "2")

    def fail(*args):
        raise RuntimeError("killed")

    monkeypatch.setattr("engine.run.TrainingRun.batches", fail)
    with pytest.raises(RuntimeError, match="killed"):
        run(world, tmp_path, "TRAIN.MAX_STEPS", "2", overwrite=True)
    assert not list(tmp_path.rglob("state.safetensors")) and not list(tmp_path.rglob("metrics.jsonl"))


def test_killed_in_validation_goes_on_with_the_validation(world, tmp_path, monkeypatch):
    from engine.run import TrainingRun

    original = TrainingRun.validate

    def fail(self, *args):
        raise RuntimeError("killed")

    monkeypatch.setattr(TrainingRun, "validate", fail)
    with pytest.raises(RuntimeError, match="killed"):
        run(world, tmp_path / "killed", "TRAIN.EPOCHS", "1")
    monkeypatch.setattr(TrainingRun, "validate", original)
    assert_same_state(
        run(world, tmp_path / "killed", "TRAIN.EPOCHS", "1"), run(world, tmp_path / "whole", "TRAIN.EPOCHS", "1")
    )


@pytest.mark.parametrize("kind", ["CPM", "Single"])
def test_a_step_can_be_read_in_ten_files(world, tmp_path, monkeypatch, kind):
    """From a batch to the optimiser's step; without what is due every so many steps: log, checkpoint, validation."""
    from engine.run import TrainingRun

    batches, learn, files = TrainingRun.batches, TrainingRun.learn, set()

    def note(frame, event, _):
        path = Path(frame.f_code.co_filename)
        if event == "call" and ROOT in path.parents and path != Path(__file__):
            files.add(str(path.relative_to(ROOT)))

    def watch(self):
        for batch in batches(self):
            sys.setprofile(note)
            yield batch

    def stop_watching(self, losses):
        stepped = learn(self, losses)
        sys.setprofile(None)
        return stepped

    monkeypatch.setattr(TrainingRun, "batches", watch)
    monkeypatch.setattr(TrainingRun, "learn", stop_watching)
    run(world, tmp_path, "PROMPT.KIND", kind, "TRAIN.MAX_STEPS", "2")
    assert {"engine/run.py", "model/method/sd4match.py", "model/backbone/diffusion.py"} <= files
    assert len(files) <= 10, sorted(files)


def test_batch_that_does_not_divide_is_refused(world, tmp_path):
    with pytest.raises(ConfigError, match="smaller than processes x TRAIN.ACCUMULATION"):
        run(world, tmp_path, "TRAIN.BATCH_SIZE", "2", "TRAIN.ACCUMULATION", "3")
    with pytest.raises(ConfigError, match="TRAIN.BATCH_SIZE 90 is larger than the 6 training pairs"):
        run(world, tmp_path, "TRAIN.BATCH_SIZE", "90")


def test_another_run_is_refused_before_anything_is_computed(world, tmp_path):
    run(world, tmp_path, "TRAIN.MAX_STEPS", "1")
    shutil.rmtree(tmp_path / "asset")
    with pytest.raises(CheckpointError, match="LOSS.BETA: 0.04 -> 0.05"):
        run(world, tmp_path, "TRAIN.MAX_STEPS", "1", "LOSS.BETA", "0.05")
    assert {path.name for path in tmp_path.glob("asset/*")} <= {"index"}


def test_torn_checkpoint_is_named(world, tmp_path):
    run(world, tmp_path, "TRAIN.MAX_STEPS", "1")
    (state,) = tmp_path.rglob("state.safetensors")
    state.write_bytes(state.read_bytes()[:500])
    with pytest.raises(CheckpointError, match=r"state.safetensors is corrupt.*--overwrite"):
        run(world, tmp_path, "TRAIN.MAX_STEPS", "1")


def test_a_step_needs_no_vae_no_images_and_no_dino_once_cached(world, tmp_path, monkeypatch):
    run(world, tmp_path, "TRAIN.MAX_STEPS", "1")
    from PIL import Image

    import engine.precompute
    import model.source

    def refuse(*args, **kwargs):
        raise AssertionError("must not be called")

    for name in ("encode_posterior", "compute_condition", "load_vision"):
        monkeypatch.setattr(model.source, name, refuse)
    monkeypatch.setattr(engine.precompute, "load_pil", refuse)
    monkeypatch.setattr(Image, "open", refuse)
    run(world, tmp_path, "TRAIN.MAX_STEPS", "3")


def test_two_processes_equal_one(world, tmp_path):
    """Gradients are averaged over processes: the same steps give the same prompt."""
    more = ["PROMPT.CPM", CPM, "TRAIN.EPOCHS", "1"]
    pair = launch(world, tmp_path / "two", *more, processes=2)
    single = run(world, tmp_path / "one", "TRAIN.EPOCHS", "1")
    out, err = pair.communicate(timeout=180)
    assert pair.returncode == 0, err[-3000:]
    assert "2 process(es)" in out
    (folder,) = (tmp_path / "two").rglob("state.safetensors")
    double = load_checkpoint(folder.parent)
    assert double["learner"]["counters"]["step"] == single["learner"]["counters"]["step"] == 3
    for key, value in single["learner"]["weights"].items():
        torch.testing.assert_close(double["learner"]["weights"][key], value, rtol=1e-3, atol=2e-4)


@pytest.mark.parametrize(("number", "workers"), [(signal.SIGTERM, "0"), (signal.SIGTERM, "2"), (signal.SIGINT, "2")])
def test_signal_saves_and_stops_cleanly(world, tmp_path, number, workers):
    """Ctrl-C, and a launcher's SIGTERM, go to the data loader's workers as well."""
    more = ["PROMPT.CPM", CPM, "TRAIN.EPOCHS", "400", "TRAIN.LOG_EVERY", "1", "DATASET.NUM_WORKERS", workers]
    process = launch(world, tmp_path, *more, start_new_session=True)
    wait_for_line(process, "step 3/")
    os.killpg(process.pid, number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert "Traceback" not in err and "the state is saved" in err
    (state,) = tmp_path.rglob("state.safetensors")
    assert load_checkpoint(state.parent)["learner"]["counters"]["step"] >= 3


def wait_for_line(process, text, seconds=120):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        line = process.stdout.readline()
        if text in line:
            return
        if not line and process.poll() is not None:
            raise AssertionError(process.stderr.read()[-3000:])
    raise AssertionError(f"{text!r} did not come within {seconds} s")


def test_missing_data_is_told_without_a_traceback(world, tmp_path):
    process = launch(world, tmp_path, "DATASET.ROOT", str(tmp_path / "nowhere"))
    out, err = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "Traceback" not in err and str(tmp_path / "nowhere") in err and "script/prepare_data.sh" in err
