"""Learning GeoAware-SC's post-processor on tiny real networks: what its keys change, resume, processes, batches."""

import json

import pytest
import torch

import train as train_script
from config import ConfigError, iter_keys, load_config
from dataset.pair_dataset import collate
from engine.build import build_accelerator, build_method, build_pairs
from engine.check import check_config
from engine.precompute import build_caches
from loss.pose_variants import PoseVariants
from model.method.geoaware import join_maps
from tests.command import reset_accelerate, run_test
from tests.test_train import (
    assert_parts_equal_the_whole,
    assert_same_state,
    assert_two_processes_equal_one,
    log_folder,
)
from utils.checkpoint import CheckpointError, load_checkpoint
from utils.noise import drop_elements
from utils.store import StoreError

TINY = (
    *("METHOD.NAME", "geoaware", "METHOD.DINO_SIZE", "[56, 56]", "METHOD.DINO_NORM", "False", "DATASET.FRAME", "pad"),
    *("FEATURES.TAPS", "[up2.attentions.1, up1.attentions.1, up0.resnets.1]", "FEATURES.SIZE", "[64, 64]"),
    *("FEATURES.WINDOW", "64", "FEATURES.STRIDE", "64", "GEOAWARE.WIDTH", "16"),
    *("LOSS.NAME", "soft_argmax_error", "LOSS.BETA", "0.02", "TRAIN.LR", "0.00125", "TRAIN.SCHEDULER", "one_cycle"),
    *("EVAL.LOCALISERS", "[nn, window]", "EVAL.PICTURE_LOCALISER", "window", "VAL.LOCALISER", "window"),
    *("EVAL.WINDOW", "1", "EVAL.BETA", "0.02"),
)
KEYS = {  # a value that changes the first loss
    "GEOAWARE.WIDTH": "32",
    "GEOAWARE.DROPOUT": "0.5",
    "GEOAWARE.SPARSE": "0.5",
    "GEOAWARE.DENSE": "0.5",
    "GEOAWARE.NOISE": "0.3",
    "GEOAWARE.DOUBLE": "0.5",
    "GEOAWARE.SELF": "0.5",
    "GEOAWARE.SINGLE": "0.5",
}
pytestmark = pytest.mark.usefixtures("fresh_accelerator")


SHIPPED = {  # of every training, and what each changes
    "spair": {
        **{"FEATURES.TIMESTEP": 50, "FEATURES.SIZE": (960, 960), "FEATURES.WINDOW": 512, "FEATURES.STRIDE": 512},
        **{"DATASET.IMAGE_SIZE": (840, 840), "METHOD.DINO_SIZE": (840, 840), "METHOD.DINO_NORM": False},
        **{"TRAIN.LR": 1.25e-3, "TRAIN.BATCH_SIZE": 1, "TRAIN.RESHUFFLE": False, "TRAIN.EPOCHS": 2},
        **{"TRAIN.SCHEDULER": "one_cycle", "TRAIN.RISE": 0.3, "GEOAWARE.WEIGHT_DECAY": 1e-3, "GEOAWARE.WIDTH": 768},
        **{"GEOAWARE.SPARSE": 1, "GEOAWARE.DENSE": 1, "GEOAWARE.NOISE": 0.1, "GEOAWARE.DROPOUT": 0.2},
        **{"GEOAWARE.DOUBLE": 1, "GEOAWARE.SELF": 0.25, "GEOAWARE.SINGLE": 0, "DATASET.FRAME": "pad"},
        **{"LOSS.NAME": "soft_argmax_error", "LOSS.BETA": 0.02, "LOSS.WINDOW": 0, "EVAL.BETA": 0.02},
        **{"EVAL.WINDOW": 7, "EVAL.INEQUALITY": "<", "VAL.LOCALISER": "window", "VAL.ALPHA": 0.1, "VAL.PAIRS": 0},
        **{"VAL.EVERY": 5000, "TRAIN.START": "geoaware_ap10k_sd1-5"},
    },
    "ap10k": {"TRAIN.EPOCHS": 1, "TRAIN.SCHEDULER": "constant", "VAL.PAIRS": 20, "TRAIN.START": ""},
    "pfpascal": {
        **{"TRAIN.EPOCHS": 100, "TRAIN.SCHEDULER": "constant", "GEOAWARE.DOUBLE": 0, "GEOAWARE.SELF": 0},
        **{"VAL.ALPHA": 0.05, "VAL.EVERY": 0},  # at the end of each epoch
    },
}


@pytest.mark.parametrize("name", SHIPPED)
def test_configurations_are_the_shipped_ones(name):
    values = dict(iter_keys(load_config(f"config/{name}/geoaware.yaml")))
    expected = SHIPPED["spair"] | SHIPPED[name]
    assert {key: values[key] for key in expected} == expected
    assert dict(iter_keys(load_config("config/spair/geoaware_zero_shot.yaml")))["EVAL.WINDOW"] == 5


def options(world, *more):
    return (*TINY, "METHOD.DINO_FOLDER", str(world.root / "dino"), *more)


def configure(world, output, *more, training=True):
    return check_config(load_config(None, world.opts(output, *options(world, *more))), training=training)


def run(world, output, *more):
    """Train in this process; the final checkpoint."""
    cfg = configure(world, output, *more)
    assert train_script.train(cfg, overwrite=False) == 0
    return load_checkpoint(log_folder(cfg, output))


def prepare(cfg, split="trn", training=True, positions=(0, 1)):
    """(method, batch of the pairs at positions), from the caches."""
    reset_accelerate()
    accelerator, pairs = build_accelerator(cfg), build_pairs(cfg, split)
    method = build_method(cfg, accelerator.device, pairs.benchmark.categories, training=training)
    build_caches(cfg, (pairs,), method, accelerator)
    return method, collate([pairs[i] for i in positions])


@pytest.fixture(scope="module")
def prepared(world, tmp_path_factory):
    """prepared(*settings, positions=(0,)), with caches that the tests share."""
    root = tmp_path_factory.mktemp("caches")
    return lambda *more, positions=(0,): prepare(configure(world, root, *more), positions=positions)


def seeds_of(n):
    return torch.arange(2 * n).view(n, 2)


def gradient(method, losses):
    method.zero_grad()
    losses.backward()
    return torch.cat([p.grad.flatten() for p in method.trainable.parameters() if p.grad is not None])


def test_it_learns_is_kept_and_tested(world, tmp_path):
    run(world, tmp_path, "TRAIN.EPOCHS", "4", "VAL.PICTURES", "1")
    (folder,) = (tmp_path / "prompt").iterdir()
    assert folder.name == "geoaware_spair_tiny" and (folder / "weights.safetensors").is_file()

    def score(*more):
        return run_test(configure(world, tmp_path, *more, training=False))[1]

    assert score("METHOD.WEIGHTS", folder.name) != score()
    with pytest.raises(StoreError, match="does not fit the method"):
        score("METHOD.WEIGHTS", folder.name, "GEOAWARE.WIDTH", "32")
    lines = [json.loads(line) for line in next(tmp_path.rglob("metrics.jsonl")).open()]
    assert [line["step"] for line in lines] == [3, 6, 9, 12]


def test_one_pair_is_learned_by_heart(prepared):
    method, batch = prepared("GEOAWARE.NOISE", "0.0", "GEOAWARE.DROPOUT", "0.0")
    optimizer, losses = method.build_optimizer(0.01, 1.0), []
    for _ in range(60):
        losses.append(method.loss(batch, seeds_of(1)).mean())
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.35 * losses[0]
    frozen = [name for name, p in method.trainable.named_parameters() if p.grad is None]
    assert frozen == ["self_logit_scale"]  # of no objective


@pytest.mark.parametrize("key", KEYS)
def test_a_key_changes_the_loss(prepared, key):
    losses = [prepared(*more)[0].loss(prepared()[1], seeds_of(1)) for more in ((), (key, KEYS[key]))]
    assert losses[0] != losses[1]


def test_every_weight_is_that_of_its_key(prepared):
    keys = {"SPARSE": "0.1", "DENSE": "0.2", "NOISE": "0.3", "DOUBLE": "0.4", "SELF": "0.5", "SINGLE": "0.6"}
    method, _ = prepared(*(word for key, value in keys.items() for word in (f"GEOAWARE.{key}", value)))
    expected = PoseVariants(sparse=0.1, dense=0.2, noise=0.3, double=0.4, alone=0.5, single=0.6)
    assert method.variants == expected


def test_mirrored_terms_read_the_arrays_of_the_mirror_images(prepared):
    method, batch = prepared()
    for side in ("src", "trg"):
        layers, dino = batch[f"{side}_layers_mirrored"], batch[f"{side}_dino_mirrored"]
        mirrored = method.maps(batch, side, True, seeds_of(1)[0])
        assert torch.equal(mirrored, join_maps([layers[tap] for tap in method.taps], dino))
        assert not torch.equal(mirrored, method.maps(batch, side, False, seeds_of(1)[0]))


def test_weight_decay_is_the_optimisers(prepared):
    values = []
    for decay in ("0.0", "0.5"):
        method, batch = prepared("GEOAWARE.WEIGHT_DECAY", decay)
        optimizer = method.build_optimizer(0.1, 1.0)
        method.loss(batch, seeds_of(1)).mean().backward()
        optimizer.step()
        values.append(method.head.bottleneck_layers[0][0].conv1.norm.weight.detach().clone())
    torch.testing.assert_close(values[1], values[0] - 0.1 * 0.5, atol=1e-5, rtol=0)  # norms start at 1


def test_mirror_images_are_read_only_by_terms_that_have_a_weight(prepared):
    plain, batch = prepared("GEOAWARE.DOUBLE", "0.0", "GEOAWARE.SELF", "0.0")
    assert plain.reads == ("layers", "dino") and plain.loss(batch, seeds_of(1)).isfinite()
    single, _ = prepared("GEOAWARE.DOUBLE", "0.0", "GEOAWARE.SELF", "0.0", "GEOAWARE.SINGLE", "1.0")
    assert single.reads == ("layers", "dino", "layers_mirrored", "dino_mirrored")


def test_a_batch_has_the_losses_and_the_gradient_of_its_pairs_one_by_one(prepared):
    method, batch = prepared(positions=(0, 4, 2))
    losses = method.loss(batch, seeds_of(3))
    whole, parts = gradient(method, losses.mean()), 0.0
    for i, position in enumerate((0, 4, 2)):
        one = method.loss(prepared(positions=(position,))[1], seeds_of(3)[i : i + 1])
        torch.testing.assert_close(one, losses[i : i + 1], rtol=1e-4, atol=1e-5)
        parts = parts + gradient(method, one.sum() / 3)
    torch.testing.assert_close(whole, parts, rtol=1e-3, atol=1e-4)


def test_accumulated_parts_equal_the_whole_batch(world, tmp_path):
    assert_parts_equal_the_whole(run, world, tmp_path, atol=1e-4)


def test_resume_equals_uninterrupted_bit_for_bit(world, tmp_path):
    """With dropout, label noise and a schedule that moves momentum as well."""
    from tests.command import call, dying_in_step

    more = ("TRAIN.EPOCHS", "2", "TRAIN.SAVE_EVERY", "2")
    whole = run(world, tmp_path / "whole", *more)
    arguments = world.opts(tmp_path / "parts", *options(world, *more))
    for step in (4, 2):  # counted in each process
        with dying_in_step(step):
            call("train.py", "--config_file", "config/spair/base.yaml", *arguments)
    assert_same_state(whole, run(world, tmp_path / "parts", *more))
    with pytest.raises(CheckpointError, match="TRAIN.EPOCHS: 2 -> 3"):
        run(world, tmp_path / "parts", *more, "TRAIN.EPOCHS", "3")


def test_two_processes_equal_one(world, tmp_path):
    more = options(world, "TRAIN.EPOCHS", "2")
    assert_two_processes_equal_one(world, tmp_path, *more, rtol=1e-2, atol=1e-3)
    paths = sorted(tmp_path.rglob("state.safetensors"))
    one, two = (load_checkpoint(path.parent)["learner"]["weights"] for path in paths)
    for key, value in two.items():
        torch.testing.assert_close(value, one[key], rtol=1e-3, atol=1e-3)


def test_it_starts_from_another_run_and_says_so_in_its_name(world, tmp_path):
    run(world, tmp_path, "TRAIN.MAX_STEPS", "1", "DATASET.NAME", "pfpascal")
    start = ("TRAIN.START", "geoaware_pfpascal_tiny", "TRAIN.MAX_STEPS", "1")
    run(world, tmp_path, *start)
    assert (tmp_path / "prompt" / "geoaware_spair_tiny_from_geoaware_pfpascal_tiny" / "weights.safetensors").is_file()
    with pytest.raises(ConfigError, match="trained under other settings: FEATURES.TIMESTEP: 50 -> 60"):
        run(world, tmp_path, *start, "FEATURES.TIMESTEP", "60")


def test_any_objective_of_the_table_can_be_the_dense_one(prepared):
    method, batch = prepared("LOSS.NAME", "kernel_smoothed_cross_entropy", "LOSS.KERNEL_SIZE", "3")
    assert (
        method.loss(batch, seeds_of(1)).isfinite() and type(method.objective).__name__ == "KernelSmoothedCrossEntropy"
    )


def test_dropout_is_of_single_elements_and_of_the_rows_own_seed():
    x = torch.ones(3, 32, 20, 20)
    dropped = drop_elements(x, 0.2, torch.tensor([4, 5, 4]))
    assert (dropped == 0).float().mean().item() == pytest.approx(0.2, abs=0.02) and dropped.max() == pytest.approx(1.25)
    assert (dropped == 0).float().mean(dim=(2, 3)).std() < 0.05
    assert torch.equal(dropped[0], dropped[2]) and not torch.equal(dropped[0], dropped[1])
    assert torch.equal(drop_elements(x[1:2], 0.2, torch.tensor([5])), dropped[1:2])
    assert drop_elements(x, 0.0, torch.tensor([4, 5, 4])) is x
