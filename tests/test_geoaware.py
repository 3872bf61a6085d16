"""GeoAware-SC as a method: fusion without a post-processor, with one, and the commands on the tiny world."""

import json

import pytest
import torch
from torch.nn import functional as F

from engine.build import build_method
from model.method.geoaware import balance, join_maps
from tests.command import call
from tests.test_geoaware_features import settings
from utils.localise import FeatureSimilarity


def maps(seed=0):
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(2, c, n, n, generator=g) for c, n in ((6, 6), (8, 3), (4, 2))], torch.randn(
        2, 5, 6, 6, generator=g
    )


def test_maps_are_joined_raw_on_the_grid_of_dinov2():
    layers, dino = maps()
    joined = join_maps(layers, dino.half())
    assert joined.shape == (2, 6 + 8 + 4 + 5, 6, 6) and joined.dtype == torch.float32
    assert torch.equal(joined[:, :6], layers[0]) and torch.equal(joined[:, -5:], dino.half().float())
    torch.testing.assert_close(joined[:, 6:14], F.interpolate(layers[1], size=(6, 6), mode="bilinear"))


def test_without_a_post_processor_the_cosine_is_the_mean_of_both():
    both = [balance(join_maps(*maps(seed)), 5) for seed in (0, 1)]
    raw = [join_maps(*maps(seed)) for seed in (0, 1)]
    found = FeatureSimilarity(*both)(torch.tensor([[[2.0, 3.0]]] * 2))[:, 0]
    parts = [
        F.cosine_similarity(raw[0][:, part, 3, 2][..., None, None], raw[1][:, part], dim=1)
        for part in (slice(0, 18), slice(18, None))
    ]
    torch.testing.assert_close(found, (parts[0] + parts[1]) / 2, atol=2e-6, rtol=0)


def test_keys_of_the_post_processor(world, tmp_path):
    cfg = settings(world, tmp_path, "GEOAWARE.WIDTH", "8", "GEOAWARE.DROPOUT", "0.4")
    method = build_method(cfg, torch.device("cpu"), None, training=True)
    head = method.trainable
    assert head.feature_dims == (24, 32, 24) and head.width == 8 and method.dropout == 0.4
    assert build_method(cfg, torch.device("cpu"), None).trainable is None
    assert torch.equal(build_method(cfg, torch.device("cpu"), None, training=True).head.mixing_weights, torch.ones(3))
    batch = {"layers": {}, "dino": torch.randn(2, 24, 4, 4)}
    batch["layers"] = {"up1.attentions.1": torch.randn(2, 24, 6, 6), "up0.resnets.1": torch.randn(2, 32, 3, 3)}
    features = method.features(batch, torch.zeros(2))
    assert features.shape == (2, 8, 4, 4) and (features >= 0).all()
    pair = {f"{side}_{key}": value for side in ("src", "trg") for key, value in batch.items()} | {
        "category": ["cat"] * 2
    }
    for side in method.pair_features(pair, torch.zeros(2, 2)):
        torch.testing.assert_close(side, features)


@pytest.fixture
def score(world, tmp_path, capsys):
    def run(*more):
        cfg = settings(world, tmp_path, "EVAL.LOCALISERS", "[window]", *more)
        from config import dump_config

        (tmp_path / "config.yaml").write_text(dump_config(cfg))
        status = call("test.py", "--config_file", str(tmp_path / "config.yaml"), "--quiet")
        printed = capsys.readouterr()
        assert status == 0, printed.err
        (path,) = (tmp_path / "prompt" / "geoaware").glob("*.json")
        return json.loads(path.read_text())

    return run


def test_zero_shot_by_test_py(score):
    result = score()
    assert result["summary"]["pairs"] == 4 and set(result["summary"]["pck"]) == {"window"}
    made_by = result["made_by"]
    assert made_by["FEATURES.TIMESTEP"] == 50 and made_by["layers"]["freeu"] == [1.2, 1.4, 0.9, 0.2]
    assert made_by["EVAL.WINDOW"] == 7 and "DSD.TERMS" not in made_by
