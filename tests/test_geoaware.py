"""GeoAware-SC as a method: fusion without a post-processor, with one, and the commands on the tiny world."""

import json
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from config import ConfigError, load_config
from engine.build import build_method
from model.head import AggregationNetwork
from model.method.geoaware import balance, join_maps
from script import convert_geoaware
from sd4match import Matcher
from sd4match.source import find_settings
from tests.command import call
from tests.test_geoaware_features import settings
from utils.localise import FeatureSimilarity
from utils.store import StoreError, read_tensors, write_tensors


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


# ---- the authors' files ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """A file as the authors', with random weights."""
    torch.manual_seed(3)
    path = tmp_path_factory.mktemp("released") / "best_856.PTH"
    torch.save(AggregationNetwork().state_dict(), path)
    return path


def convert(output, *arguments):
    (output / "config.yaml").write_text(f"OUTPUT_ROOT: {output}\n")
    with pytest.MonkeyPatch.context() as patch:
        words = ["convert_geoaware.py", *arguments, "--config_file", output / "config.yaml"]
        patch.setattr("sys.argv", list(map(str, words)))
        return convert_geoaware.main()


def test_authors_weights_to_a_folder_and_back(released, tmp_path):
    assert convert(tmp_path, released, "--name", "ours") == 0
    tensors, about = read_tensors(tmp_path / "prompt" / "ours" / "weights.safetensors")
    state = torch.load(released, weights_only=True)
    assert len(tensors) == 48 and all(torch.equal(tensors[name], value) for name, value in state.items())
    assert about["made_of"]["file"] == "best_856.PTH" and len(about["made_of"]["sha256"]) == 64
    assert about["made_of"]["sha256"] in (tmp_path / "prompt" / "ours" / "README.md").read_text()
    AggregationNetwork().load_state_dict(tensors)
    assert convert(tmp_path, "ours", "--output", tmp_path / "again.PTH") == 0
    again = torch.load(tmp_path / "again.PTH", weights_only=True)
    assert again.keys() == state.keys() and all(torch.equal(again[name], value) for name, value in state.items())


def test_files_that_do_not_fit_are_one_line(released, tmp_path, capsys):
    state = torch.load(released, weights_only=True)
    less = {name: value for name, value in state.items() if name != "mixing_weights"}
    other = AggregationNetwork((640, 1280, 960, 768)).state_dict()
    cases = {
        "less": (less, "it lacks mixing_weights)"),
        "more": (state | {"extra": torch.zeros(1)}, "extra is unknown)"),
        "other": (other, "bottleneck_layers.2.0.shortcut.weight is (768, 960, 1, 1), not (768, 1280, 1, 1)"),
        "code": ({"a": Path("x")}, "cannot be read"),
        "list": ([1, 2], "it lacks logit_scale; it lacks self_logit_scale and 45 more)"),
    }
    for name, (content, message) in cases.items():
        torch.save(content, tmp_path / f"{name}.PTH")
        assert convert(tmp_path, tmp_path / f"{name}.PTH") == 1
        error = capsys.readouterr().err
        assert message in error and f"{name}.PTH" in error and error.count("\n") == 1
    assert convert(tmp_path, tmp_path / "nowhere.PTH") == 2
    assert not (tmp_path / "prompt").exists()


# ---- with a post-processor, from Python --------------------------------------------------------------------------


def write_head(folder, **more):
    torch.manual_seed(1)
    write_tensors(folder / "weights.safetensors", AggregationNetwork((24, 32, 24), 8).state_dict(), more)
    return folder


def test_matcher_with_weights_and_without(world, tmp_path):
    width = ("GEOAWARE.WIDTH", "8", "EVAL.PICTURE_LOCALISER", "window")
    learned = ("METHOD.WEIGHTS", "learned")
    folder = write_head(tmp_path / "elsewhere" / "learned")
    raw = Matcher.from_config(settings(world, tmp_path, *width))
    matcher = Matcher.from_config(settings(world, tmp_path, *width, *learned), folder)
    picture = world.root / "data" / "SPair-71k" / "JPEGImages" / "cat" / "2008_000000.jpg"
    encoded = matcher.encode(picture)
    assert encoded.feature.shape == (8, 4, 4) and raw.encode(picture).feature.shape == (80, 4, 4)
    head = AggregationNetwork((24, 32, 24), 8).eval()
    head.load_state_dict(read_tensors(folder / "weights.safetensors")[0])
    layers = [encoded.inputs["layers"][tap][None] for tap in matcher.config.FEATURES.TAPS]
    torch.testing.assert_close(encoded.feature, head(join_maps(layers, encoded.inputs["dino"][None]))[0])
    found = matcher.pair(encoded, encoded).match([(20, 20)])
    assert abs(found.points - found.source).max() < 0.6 * 120 / 4  # a photo of 120 px in 4 cells


def test_weights_of_other_features_are_refused(world, tmp_path):
    more = ("GEOAWARE.WIDTH", "8", "METHOD.WEIGHTS", "learned", "FEATURES.TIMESTEP", "100")
    write_head(tmp_path / "prompt" / "learned", made_by={"FEATURES.TIMESTEP": 50})
    with pytest.raises(ConfigError, match="was trained under other settings: .*FEATURES.TIMESTEP: 50 -> 100"):
        build_method(settings(world, tmp_path, *more), torch.device("cpu"), None)
    write_head(tmp_path / "prompt" / "learned")
    with pytest.raises(StoreError, match="weights.safetensors does not fit the method"):
        build_method(settings(world, tmp_path, *more, "GEOAWARE.WIDTH", "16"), torch.device("cpu"), None)


def test_names_for_the_matcher(world, tmp_path):
    found = find_settings("geoaware", None)
    cfg = load_config(found.config_file, overrides=found.settings)
    assert (cfg.METHOD.NAME, cfg.NETWORK.NAME, cfg.DATASET.IMAGE_SIZE) == ("geoaware", "sd1-5", (840, 840))
    assert (cfg.EVAL.WINDOW, cfg.EVAL.BETA, cfg.METHOD.DINO_NORM) == (7, 0.02, False)
    (tmp_path / "best_856.PTH").touch()
    with pytest.raises(ConfigError, match="best_856.PTH is a file: script/convert_geoaware.py makes a folder"):
        Matcher.from_pretrained("geoaware", weights=tmp_path / "best_856.PTH")


# ---- the release's files of features -----------------------------------------------------------------------------


def test_export_to_the_release_s_layout(world, tmp_path, fresh_accelerator):
    from script.export_features import export

    taps = ("FEATURES.TAPS", "[up2.attentions.1, up1.attentions.1, up0.resnets.1]")
    cfg = settings(world, tmp_path / "out", *taps)
    assert export(cfg, ["test"], True, False, str(tmp_path / "files")) == 6
    stem = tmp_path / "files" / "features" / "cat" / "2008_000000"
    found = {
        end: torch.load(f"{stem}{end}.pt", weights_only=True) for end in ("_sd", "_dino", "_sd_flip", "_dino_flip")
    }
    shapes = {"s3": (1, 16, 12, 12), "s4": (1, 24, 6, 6), "s5": (1, 32, 3, 3)}
    for end in ("_sd", "_sd_flip"):
        assert {name: tuple(value.shape) for name, value in found[end].items()} == shapes
        assert all(value.dtype == torch.float32 for value in found[end].values())
    assert found["_dino"].shape == (1, 24, 4, 4) and not torch.equal(found["_dino"], found["_dino_flip"])
    matcher = Matcher.from_config(cfg)
    picture = world.root / "data" / "SPair-71k" / "JPEGImages" / "cat" / "2008_000000.jpg"
    inputs = matcher.encode(picture, category="cat").inputs
    for name, tap in zip(shapes, cfg.FEATURES.TAPS, strict=True):
        torch.testing.assert_close(found["_sd"][name][0], inputs["layers"][tap], atol=2e-3, rtol=2e-3)
    export(cfg, ["test"], False, True, str(tmp_path / "half"))
    stem = tmp_path / "half" / "features" / "cat" / "2008_000000"
    assert torch.load(f"{stem}_dino.pt", weights_only=True).dtype == torch.float16
    assert not Path(f"{stem}_dino_flip.pt").exists()
