"""The Python API on tiny real networks: known answers, reuse, and agreement with test.py's way of matching."""

import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from huggingface_hub.errors import RepositoryNotFoundError
from PIL import Image

from config import ROOT, ConfigError, iter_keys, load_config
from dataset import BENCHMARKS
from dataset.pair_dataset import PairDataset, collate
from engine.build import build_accelerator, build_caches, build_method
from engine.result import write_summary
from model.error import NetworkError, PromptNotFoundError
from model.method.sd4match import SD4Match
from model.prompt import new_prompt
from model.prompt.build import build_prompt, load_text
from model.prompt.store import save_prompt
from sd4match import LearnedPrompt, Matcher, PointError
from sd4match.source import find_settings
from tests import tiny
from tests.fixtures_dataset import draw_image
from utils.localise import FeatureSimilarity, localise

CPM = "CPM_spair_tiny_Pair-DINO-Feat-G2-C3"
CLASS = "Class_spair_tiny_TokenEmbeds9"


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for name, size in (("a", (120, 160)), ("b", (150, 100)), ("c", (64, 64))):
        draw_image(folder / f"{name}.png", size)
    return {path.stem: path for path in folder.glob("*.png")}


@pytest.fixture(scope="module")
def build(world, tmp_path_factory):
    """build(prompt, **settings) -> the matcher of the tiny world."""
    output = tmp_path_factory.mktemp("output")

    def build(prompt="text", **settings):
        return Matcher.from_config(load_config(None, world.opts(output, "PROMPT.TYPE", prompt), settings))

    cfg = load_config(None, world.opts(output))
    for name in (CPM, CLASS):
        learned = new_prompt(name, load_text(cfg), categories=["bird", "cat"], condition_shape=tiny.DINO_SHAPE)
        save_prompt(output / "prompt" / name, learned)
    return build


@pytest.fixture(scope="module")
def matcher(build):
    return build()


def count_calls(matcher):
    """A list that grows by the number of rows at each call of the UNet."""
    rows = []
    matcher._method.diffusion.unet.register_forward_hook(lambda *args: rows.append(len(args[2][0])))
    return rows


GRID = np.stack(np.meshgrid(np.linspace(0, 159, 7), np.linspace(0, 119, 5)), axis=-1).reshape(-1, 2)


def test_a_point_maps_to_itself_in_the_same_image(matcher, photos):
    pair = matcher.pair(photos["a"], photos["a"], "cat")
    found = pair.match(GRID, "nn")
    cell = np.array([160, 120]) / pair.trg_feat.shape[:0:-1]
    assert (np.abs(found.points - GRID) <= cell * 0.75).all()
    assert np.allclose(found.similarity, 1, atol=0.2) and (found.cycle <= cell.max()).all()


def test_sizes_and_types(matcher, photos):
    pair = matcher.pair(photos["a"], photos["b"])
    found = pair.match([(20, 30), (159, 119), (0, 0)])
    assert len(found) == 3 and found.points.shape == found.source.shape == (3, 2)
    assert (found.points >= 0).all() and (found.points <= [99, 149]).all()
    assert ((found.confidence >= 0) & (found.confidence <= 1)).all()
    assert found[:1].points.shape == (1, 2)
    assert len(pair.match(np.zeros((0, 2)))) == 0 and len(pair.match([])) == 0
    assert len(pair.match((5.5, 7))) == len(pair.match(torch.tensor([[5.5, 7.0]]))) == 1
    assert pair.match(np.repeat(GRID, 20, axis=0)).points.shape == (700, 2)
    assert set(found.to_records()[0]) == {"source", "target", "confidence", "similarity", "cycle"}


def test_many_points_equal_one_at_a_time(matcher, photos):
    pair = matcher.pair(photos["a"], photos["b"])
    together = pair.match(np.repeat(GRID, 10, axis=0)).points[::10]
    np.testing.assert_allclose(together, np.concatenate([pair.match(point).points for point in GRID]), atol=1e-3)


@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_points_are_those_of_the_picture_a_viewer_shows(matcher, photos, tmp_path, orientation):
    """The same photo, stored as a turned camera would: nothing changes."""
    turn = {3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}
    with Image.open(photos["b"]) as upright:
        exif = Image.Exif()
        exif[0x0112] = orientation
        upright.transpose(turn[orientation]).save(tmp_path / "turned.png", exif=exif)
    plain, turned = (matcher.pair(photos["a"], other) for other in (photos["b"], tmp_path / "turned.png"))
    np.testing.assert_array_equal(turned.match(GRID).points, plain.match(GRID).points)
    assert turned.heatmap(GRID[0]).shape == (150, 100)


@pytest.mark.parametrize("prompt", ["text", CPM])
def test_points_and_maps_equal_those_of_the_evaluation(build, world, tmp_path, prompt, fresh_accelerator):
    """One pair of a benchmark: test.py's caches, batches and localisers against the API."""
    matcher = build(prompt, **{"OUTPUT_ROOT": str(tmp_path)} if prompt == "text" else {})
    cfg, device = matcher.config, torch.device("cpu")
    pairs = PairDataset(BENCHMARKS["spair"](world.root / "data" / "SPair-71k", "test", "cat", tmp_path), (32, 32))
    record = pairs.benchmark[0]
    source, target = matcher.encode_many([record.src.path, record.trg.path], "cat")
    pair = matcher.pair(source, target)
    found = pair.match(record.src_kps)

    tested = build_method(cfg, device, pairs.benchmark.categories)
    build_caches(cfg, (pairs,), tested, build_accelerator(cfg))
    batch = collate([pairs[0]])
    with torch.no_grad():
        seeds = torch.tensor([[source.seed, target.seed]])
        src_feat, trg_feat = tested.pair_features(batch, seeds)
    torch.testing.assert_close(pair.src_feat, src_feat[0], rtol=2e-3, atol=2e-3)  # caches are half precision
    expected = localise(FeatureSimilarity(src_feat, trg_feat), batch["src_kps"], (32, 32), ("kernelsoftmax",))[
        "kernelsoftmax"
    ][0]
    width_height = np.array(record.trg.size[::-1])
    expected = expected[: len(record.src_kps)].numpy() * width_height / 32
    np.testing.assert_allclose(found.points, expected.clip(0, width_height - 1), atol=0.3)


def test_the_heat_map_is_highest_at_the_nearest_neighbour(matcher, photos):
    pair = matcher.pair(photos["a"], photos["b"])
    heat = pair.heatmap((70, 40))
    assert (
        heat.shape == (150, 100)
        and heat.min() == pytest.approx(0, abs=1e-6)
        and heat.max() == pytest.approx(1, abs=0.02)
    )
    y, x = np.unravel_index(heat.argmax(), heat.shape)
    assert np.abs(pair.match((70, 40), "nn").points[0] - (x, y)).max() <= 2
    assert pair.heatmap((70, 40), size=(30, 20)).shape == (30, 20)


def test_in_a_padded_frame_everything_is_in_pixels_of_the_photo(build, photos):
    padded = build("text", **{"DATASET.FRAME": "pad"})
    pair = padded.pair(photos["a"], photos["a"], "cat")
    points = np.array([(30, 20), (80, 60), (130, 100)])
    cell = 160 / pair.trg_feat.shape[-1]
    assert np.abs(pair.match(points, "nn").points - points).max() <= cell
    for point in points:
        heat = pair.heatmap(point)
        assert heat.shape == (120, 160)
        y, x = np.unravel_index(heat.argmax(), heat.shape)
        assert np.abs(point - (x, y)).max() <= cell


def test_swapping_runs_no_network_and_swaps_back(matcher, photos):
    pair = matcher.pair(photos["a"], photos["b"])
    rows = count_calls(matcher)
    swapped = pair.swap()
    back = swapped.match([(50, 70)])
    assert rows == [] and swapped.src.size == (150, 100)
    np.testing.assert_array_equal(swapped.swap().match(GRID).points, pair.match(GRID).points)
    again = matcher.pair(photos["b"], photos["a"]).match([(50, 70)])
    np.testing.assert_allclose(again.points, back.points, atol=1e-2)


def test_features_are_computed_once(matcher, photos):
    rows = count_calls(matcher)
    source = matcher.encode(photos["a"])
    assert sum(rows) == 2  # TEST.ENSEMBLE draws of one image
    target = matcher.encode(photos["b"])
    pair = matcher.pair(source, target)
    pair.match(GRID), pair.heatmap((3, 3)), pair.match_mutual(), matcher.pair(target, source)
    assert sum(rows) == 4
    assert len(matcher.pairs(source, [photos["b"], photos["c"], target])) == 3
    assert sum(rows) == 4 + 4
    again = matcher.pair(photos["a"], photos["b"]).match(GRID)
    np.testing.assert_allclose(again.points, pair.match(GRID).points, atol=1e-3)


def test_batches_change_nothing(build, matcher, photos):
    names = [photos[name] for name in "abcab"]
    one_by_one = [matcher.encode(name).feature for name in names]
    several = build(**{"EVAL.BATCH_SIZE": 3}).encode_many(names)
    for image, feature in zip(several, one_by_one, strict=True):
        torch.testing.assert_close(image.feature, feature, rtol=1e-4, atol=1e-4)


def test_a_prompt_made_from_the_pair(build, photos):
    matcher = build(CPM)
    assert matcher.depends_on_pair
    rows = count_calls(matcher)
    source, b, c = matcher.encode_many([photos[name] for name in "abc"])
    assert rows == [] and source.feature is None and set(source.inputs) == {"posterior", "condition"}
    with_b, with_c = matcher.pairs(source, [b, c])
    assert sum(rows) == 8
    assert not torch.allclose(with_b.src_feat, with_c.src_feat)
    torch.testing.assert_close(with_b.src_feat, matcher.pair(photos["a"], photos["b"]).src_feat, rtol=1e-4, atol=1e-4)
    rows.clear()
    assert with_b.swap().match([(5, 5)]).points.shape == (1, 2) and rows == []


def test_a_class_prompt_needs_a_category_it_knows(build, photos):
    matcher = build(CLASS)
    assert matcher.categories == ("bird", "cat")
    for category in (None, "dog"):
        with pytest.raises(ValueError, match=rf"category must be one of bird, cat .*; got {category!r}"):
            matcher.encode(photos["a"], category)
    bird, cat = matcher.encode_many([photos["a"]] * 2, ["bird", "cat"])
    assert not torch.allclose(bird.feature, cat.feature)


def test_the_text_prompt_takes_any_word_or_none(build, matcher, photos):
    assert matcher.categories is None
    features = [matcher.encode(photos["a"], category).feature for category in ("cat", "zebra", None)]
    assert not torch.allclose(features[0], features[1]) and not torch.allclose(features[1], features[2])
    prompt = build_prompt(matcher.config, None, training=False)
    assert prompt.sentence("car(G)") == "a photo of a car" and prompt.sentence(None) == "a photo of an object"
    closed = build_prompt(matcher.config, ["cat", "dog"], training=False)
    batch = {"category": ["dog", "cat"]}
    torch.testing.assert_close(prompt(batch), closed(batch))


def test_another_setting_shares_the_networks(matcher, photos):
    source = matcher.encode(photos["a"])
    other = matcher.at(timestep=100, ensemble=1)
    assert other._method.diffusion is matcher._method.diffusion
    assert matcher.describe()["timestep"] == 50 and other.describe()["timestep"] == 100
    rows = count_calls(matcher)
    pair = other.pair(source, source)  # its feature belongs to another timestep; its VAE posteriors do not
    assert sum(rows) == 2 and not torch.allclose(pair.src_feat, source.feature)
    assert matcher.at(localiser="nn").pair(source, source).setting.localiser == "nn" and sum(rows) == 2
    with pytest.raises(ConfigError, match="TEST.TIMESTEP must be in 0..999; got 1000"):
        matcher.at(timestep=1000)


@pytest.mark.parametrize("method", ["sd4match", "sd_dino"])
def test_another_prompt_shares_the_networks_and_equals_a_fresh_matcher(build, world, photos, method):
    size = [56, 56]
    settings = {"METHOD.NAME": method, "METHOD.DINO_FOLDER": str(world.root / "dino"), "METHOD.DINO_SIZE": size}
    text = build("text", **settings)
    source = text.encode(photos["a"], "cat")
    for name in (CLASS, CPM, "empty"):
        other, fresh = text.with_prompt(name), build(name, **settings)
        assert other.prompt_name == name and text.prompt_name == "text" and other.describe() == fresh.describe()
        again = other.pair(source, photos["b"], "cat").src_feat  # the VAE's moments of `source` are taken over
        torch.testing.assert_close(again, fresh.pair(photos["a"], photos["b"], "cat").src_feat, rtol=1e-4, atol=1e-4)
    assert set(text.with_prompt(CPM).with_prompt("empty").encode(source).inputs) <= {"posterior", "dino"}
    torch.testing.assert_close(text.encode(photos["a"], "cat").feature, source.feature)


def test_features_of_other_networks_are_computed_anew(matcher, tiny_folder, photos):
    other = Matcher.from_pretrained(tiny_folder, device="cpu", image_size=64, ensemble=2, seed=3, timestep=50)
    source = matcher.encode(photos["a"])
    expected = other.encode(photos["a"])
    taken = other.encode(source)
    assert taken.seed == expected.seed != source.seed and torch.equal(taken.feature, expected.feature)
    assert torch.equal(matcher.encode(taken).feature, source.feature)


def test_seeds_follow_the_pixels_not_the_file(matcher, photos, tmp_path):
    (tmp_path / "copy.png").write_bytes(photos["a"].read_bytes())
    with Image.open(photos["a"]) as opened:
        array = np.asarray(opened)
    features = [matcher.encode(source).feature for source in (photos["a"], tmp_path / "copy.png", array)]
    assert torch.equal(features[0], features[1]) and torch.equal(features[0], features[2])


def test_mutual_neighbours_of_an_image_with_itself(matcher, photos):
    found = matcher.pair(photos["a"], photos["a"]).match_mutual(5, "nn")
    assert len(found) == 5 and (found.cycle <= 1e-3).all()
    np.testing.assert_allclose(found.points, found.source, atol=1e-2)
    gaps = np.linalg.norm(found.source[:, None] - found.source, axis=-1) + 1e9 * np.eye(5)
    assert gaps.min() >= 0.05 * 160
    assert (np.diff(found.confidence) <= 0).all()
    assert len(matcher.pair(photos["a"], photos["a"]).match_mutual(None, spread=0)) > 5


def test_the_dense_field_is_that_of_the_points(matcher, photos):
    pytest.importorskip("utils.dense", reason="dense matching is not in this checkout")
    pair = matcher.pair(photos["a"], photos["b"])
    field = pair.dense()
    height, width = pair.src_feat.shape[-2:]
    assert field.points.shape == (height, width, 2) and field.cycle.shape == (height, width)
    corner = pair.match([(159, 119)]).points[0] * (np.array(pair.trg_feat.shape[:0:-1]) - 1) / (99, 149)
    np.testing.assert_allclose(field.points[-1, -1].numpy(), corner, atol=0.1)


@pytest.mark.parametrize(
    ("points", "message"),
    [
        ([(160.6, 3)], r"point 160.6,3 lies outside .*a.png, which is 160 x 120 px \(x 0..159, y 0..119\)"),
        ([(1, 1), (-3, 5)], "point -3,5 lies outside"),
        ([(np.nan, 1)], "point nan,1 lies outside"),
        ([(1, 2, 3)], r"got shape \(1, 3\)"),
        ("12", "points must be"),
        ([(1, 2), (3,)], "points must be"),
    ],
)
def test_points_that_are_not_in_the_image(matcher, photos, points, message):
    with pytest.raises(PointError, match=message):
        matcher.pair(photos["a"], photos["b"]).match(points)


def test_several_threads_get_what_one_gets(build, photos):
    """Each thread its own image and category: a shared text transformer must not mix them up."""
    matcher = build("text")
    jobs = [(photos[name], word) for name in "abc" for word in ("cat", "dog")] * 3
    expected = [matcher.encode(*job).feature for job in jobs]
    found = [None] * len(jobs)

    def work(start):
        for i in range(start, len(jobs), 6):
            found[i] = matcher.encode(*jobs[i]).feature

    threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def tiny_folder(world):
    return str(world.root / "sd")


def test_a_network_folder(tiny_folder, photos):
    matcher = Matcher.from_pretrained(tiny_folder, device="cpu", image_size=64, ensemble=1, layer=0, localiser="nn")
    told = matcher.describe()
    assert told["network"] == "sd" and told["prompt"] == "text" and told["image_size"] == [64, 64]
    assert (told["timestep"], told["ensemble"], told["layer"], told["localiser"]) == (261, 1, 0, "nn")
    assert matcher.pair(photos["a"], photos["b"]).src_feat.shape == (32, 4, 4)


def test_what_a_method_does_not_read_is_not_told(build, world):
    told = build(
        **{"METHOD.NAME": "dinov2", "METHOD.DINO_FOLDER": str(world.root / "dino"), "METHOD.DINO_SIZE": [56, 56]}
    )
    told = told.describe()
    assert told["method"] == "dinov2" and not told.keys() & {"timestep", "ensemble", "layer"}


def test_wrong_arguments_name_the_key(tiny_folder):
    with pytest.raises(ConfigError, match="EVAL.PICTURE_LOCALISER: unknown sift; known: nn"):
        Matcher.from_pretrained(tiny_folder, image_size=64, localiser="sift")
    with pytest.raises(ConfigError, match="METHOD.LAYER 7 does not exist"):
        Matcher.from_pretrained(tiny_folder, image_size=64, layer=7)
    with pytest.raises(ConfigError, match="NETWORK.FOLDER no-such-folder: not a diffusers folder"):
        Matcher.from_pretrained("no-such-folder")
    with pytest.raises(ConfigError, match="PROMPT.TYPE: 'poem' is no prompt name"):
        Matcher.from_pretrained(tiny_folder, "poem", image_size=64)
    with pytest.raises(ConfigError, match="unknown key METHOD.LAYERS"):
        Matcher.from_pretrained(tiny_folder, settings={"METHOD.LAYERS": 1})


@pytest.fixture
def learned(tmp_path):
    """A folder of a prompt as training leaves it, with one test result beside it."""
    cfg = load_config("config/mini/base.yaml")
    name = "Single_spair_mini_TokenEmbeds75"
    folder = tmp_path / "prompts" / name
    meta = {**SD4Match.describe(cfg), "network": "owner/network", "metrics": {"step": 7, "validation": SUMMARY}}
    save_prompt(folder, new_prompt(name, load_text(cfg)), meta)
    stem = folder / "spair_result_Single_all_test_x"
    write_summary(f"{stem}.json", {**SUMMARY, "pairs": 34}, dict(iter_keys(cfg)), {})
    return folder


SUMMARY = {
    "protocol": "resized",
    "by": "image",
    "average": "pair",
    "pairs": 12,
    "pairs_without_points": 0,
    "points": 60,
    "pck": {"nn": {"0.05": {"cat": 0.5, "all": 0.25}, "0.1": {"cat": None, "all": None}}},
}


def test_the_examples_of_the_page_run(learned, photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in "abc":
        with Image.open(photos[name]) as image:
            image.resize((160, 120)).save(f"{name}.jpg")
    names = {"CHECKOUT": str(ROOT)}
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "api.md").read_text(), flags=re.S)
    assert len(blocks) == 9
    for block in blocks:
        exec(compile(block, "docs/api.md", "exec"), names)
    assert names["heat"].shape == (120, 160) and names["small"].shape == (90, 120)
    assert names["picture"].dtype == np.uint8 and names["scores"].shape[0] == 1
    assert names["matcher"].prompt_name == "text"


def test_a_saved_prompt_is_the_same_prompt_and_says_what_it_is(learned, tmp_path):
    prompt = LearnedPrompt.from_pretrained(learned)
    prompt.save_pretrained(tmp_path / "shared")
    again = LearnedPrompt.from_pretrained(tmp_path / "shared")
    assert again.name == prompt.name == learned.name
    assert torch.equal(again.stored.tensors["dataset"], prompt.stored.tensors["dataset"])
    assert again.stored.meta == prompt.stored.meta
    files = {"prompt.safetensors", "prompt.json", "metrics.json", "README.md"}
    assert {path.name for path in (tmp_path / "shared").iterdir()} == files and again.metrics == prompt.metrics
    card = (tmp_path / "shared" / "README.md").read_text()
    assert "base_model: owner/network" in card and "library_name: sd4match" in card
    assert "| backbone | mini (owner/network) |" in card and "| trained on | spair |" in card
    assert "validation: 12 pairs" in card and "spair_result_Single_all_test_x: 34 pairs" in card
    assert card.count("| nn | 25.00 | - |") == 2 and "Matcher.from_pretrained" in card


def test_prompts_on_the_hub(learned, tmp_path, monkeypatch):
    """The upload and the download that huggingface_hub would do, to and from a folder."""
    hub = tmp_path / "hub"

    class Api:
        def __init__(self, **_):
            pass

        def create_repo(self, repo_id, **_):
            return type("Repo", (), {"repo_id": repo_id})

        def upload_folder(self, *, repo_id, folder_path, **_):
            shutil.copytree(folder_path, hub / repo_id)
            return f"https://hub/{repo_id}"

    def download(repository, **options):
        if not (hub / repository).is_dir():
            raise RepositoryNotFoundError("404", response=Mock())
        return str(hub / repository)

    monkeypatch.setattr("huggingface_hub.hub_mixin.HfApi", Api)
    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert LearnedPrompt(learned).push_to_hub("me/prompt") == "https://hub/me/prompt"
    assert LearnedPrompt.from_pretrained("me/prompt").name == learned.name
    found = find_settings("me/prompt", None)
    assert found.prompt_folder == hub / "me" / "prompt" and found.settings["PROMPT.TYPE"] == learned.name
    assert Matcher.from_pretrained("mini", "me/prompt", "cpu").prompt_name == learned.name
    with pytest.raises(PromptNotFoundError, match="me/nothing: neither a folder nor a hub repository"):
        Matcher.from_pretrained("mini", "me/nothing")
    with pytest.raises(ConfigError, match="is a prompt itself"):
        find_settings("me/prompt", "text")


def test_names_folders_and_ids(tiny_folder, learned, monkeypatch):
    cpm = "CPM_spair_sd2-1_Pair-DINO-Feat-G25-C50"
    for prompt, method, file, timestep in (
        (None, None, "dift", 261),
        ("empty", "sd4match", "dift", 261),
        (cpm, None, "base", 50),
        (None, "sd_dino", "sd_dino", 261),
        (None, "dinov2", "dinov2", 50),
    ):
        found = find_settings("sd2-1", prompt, method)
        assert found.config_file == str(ROOT / f"config/spair/{file}.yaml")
        cfg = load_config(found.config_file, overrides=found.settings)
        assert (timestep, prompt or "text", method or "sd4match") == (
            cfg.TEST.TIMESTEP,
            cfg.PROMPT.TYPE,
            cfg.METHOD.NAME,
        )
        assert cfg.NETWORK.FOLDER == load_config().NETWORK.FOLDER
    assert find_settings("sd1-5", None).settings["NETWORK.NAME"] == "sd1-5"
    mini = find_settings(str(learned), None)
    assert mini.config_file.endswith("config/mini/base.yaml") and mini.prompt_folder == learned
    assert find_settings("mini", None, "dinov2").config_file.endswith("config/mini/dinov2.yaml")
    settings = find_settings(tiny_folder, None).settings
    assert settings["NETWORK.NAME"] == "sd" and settings["NETWORK.FOLDER"] == tiny_folder
    monkeypatch.chdir(Path(tiny_folder).parent)
    assert find_settings("sd", None).settings == settings


def test_importing_the_package_is_light_and_works_from_any_folder(tmp_path):
    code = "import sys, sd4match; print(dir(sd4match), 'torch' in sys.modules, 'numpy' in sys.modules)"
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True, check=True
    )
    assert "'Matcher'" in done.stdout and done.stdout.endswith("False False\n")


def test_a_namesake_of_our_packages_is_named(tmp_path):
    (tmp_path / "utils.py").write_text("")
    command = [sys.executable, "-c", f"import sys; sys.path.append({str(ROOT)!r}); import sd4match"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 1 and "'utils'" in result.stderr and str(tmp_path / "utils.py") in result.stderr


def test_features_that_are_not_finite_are_refused_by_name(build, photos):
    matcher = build("text")
    matcher._method.scaling_factor = 1e38
    with pytest.raises(NetworkError, match=r"the features of .*a.* at up1 are not finite in fp32"):
        matcher.pair(photos["a"], photos["b"])
