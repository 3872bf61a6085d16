"""DSD and CLIP under train.py, test.py, the API and the commands, on tiny real networks."""

import json
import shlex
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

from config import ROOT, get_default_config, load_config
from engine.build import build_method
from engine.check import check_config
from engine.ranking import read_items
from engine.result import ResultError
from model.backbone.image_text import list_timesteps
from model.backbone.text import build_byte_tokenizer
from tests.command import call, dying_in_step, read_scalars
from tests.test_ranking import write_comvg, write_vqa
from tests.watch import watching
from utils.checkpoint import load_checkpoint
from utils.store import read_tensors

KEYS = {f"DSD.{key}" for key in get_default_config().DSD}
WATCHED = {"DSD.CLIP_FOLDER"}
FEW = ("DSD.TIMESTEPS", "2")
SETTINGS = ("METHOD.NAME", "dsd", "DATASET.NAME", "comvg", "DATASET.FEW_SHOT", "0.5", "EVAL.BATCH_SIZE", "4")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    base = write_comvg(root, rows=12)
    rng = np.random.default_rng(0)
    for path in sorted(base.rglob("*.jpg")):
        Image.fromarray(rng.integers(0, 255, (40, 40, 3), dtype=np.uint8)).resize((48, 48)).save(path, quality=95)
    write_vqa(root)
    return root


@pytest.fixture
def run(world, data, tmp_path, capsys):
    """Runs a command into a folder of its own, or the one that is named; (folder, what passed through the networks)."""
    numbers = iter(range(100))

    def start(script, *more, output=None, status=0):
        output = output or tmp_path / str(next(numbers))
        opts = world.opts(output, *SETTINGS, *FEW, "DATASET.ROOT", str(data), *map(str, more))
        flags = () if script == "train.py" else ("--quiet",)
        with watching() as seen:
            found = call(script, *flags, *opts)
        out, err = capsys.readouterr()
        assert found == status, err
        seen.out, seen.err = out, err
        return output, seen

    return start


def summary(output):
    (path,) = output.rglob("comvg_result_*.json")
    return json.loads(path.read_text())


def scores(output):
    (path,) = output.rglob("*_items.csv")
    return read_items(path)


def watches(*keys):
    WATCHED.update(keys)
    return lambda test: test


# ---- test.py and train.py -------------------------------------------------------------------------------------


def test_test_py_ranks_items(run):
    output, seen = run("test.py")
    found = summary(output)
    assert found["summary"]["task"] == "ranking" and found["summary"]["items"] == 12
    assert set(found["summary"]["ranking"]) == {"score", "attention", "noise"}
    rows = found["summary"]["ranking"]["score"]["R@1"]
    assert set(rows) == {"object", "subject", "verb", "all"}
    table = scores(output)
    assert len(table) == 12 and table["category"].value_counts().to_dict() == dict.fromkeys(rows.keys() - {"all"}, 4)
    both = np.stack(table["attention"]) + np.stack(table["noise"])
    assert np.allclose(np.stack(table["score"]), both, atol=1e-4)
    assert rows["all"]["strict"] == np.mean([row[0] > row[1] for row in table["score"]])
    assert "R@1" in seen.out and "95 % interval" in seen.out
    again, second = run("test.py", "EVAL.BATCH_SIZE", "1", output=output)
    assert not second.vae  # the caches are there
    assert [path.name for path in output.rglob("*_items.csv")] == [path.name for path in again.rglob("*_items.csv")]
    assert np.allclose(np.stack(scores(output)["score"]), np.stack(table["score"]), rtol=1e-4)


def test_a_table_that_was_cut_is_refused(run):
    output, _ = run("test.py", "DATASET.PAIRS", "1")
    (path,) = output.rglob("*_items.csv")
    path.write_text("\n".join(path.read_text().splitlines()[:-1]) + "\n")
    with pytest.raises(ResultError, match="is not the table that .* was written with"):
        read_items(path)


def test_one_category_and_one_category_too_many(run):
    output, _ = run("test.py", "DATASET.CATEGORY", "verb", "DATASET.PAIRS", "2")
    assert summary(output)["summary"]["items"] == 2 and set(scores(output)["category"]) == {"verb"}


def test_training_learns_keeps_and_goes_on_exactly(run, world, data, tmp_path):
    more = ("TRAIN.EPOCHS", "2", "TRAIN.LR", "0.01", "TRAIN.BATCH_SIZE", "2")
    whole, seen = run("train.py", *more)
    folder = whole / "prompt" / "dsd_comvg_tiny"
    names = {"weights.safetensors", "adapter_model.safetensors", "adapter_config.json", "config.yaml"}
    assert {path.name for path in folder.iterdir()} == names | {"pytorch_lora_weights.safetensors"}
    assert len(seen.steps) == 6
    assert "best validation R@1" in seen.out
    tags = read_scalars(whole)
    assert {"train/loss", "val_score/R@1", "val_attention/R@1", "val_noise/R@1"} <= set(tags)
    parts = tmp_path / "parts"
    opts = world.opts(parts, *SETTINGS, *FEW, "DATASET.ROOT", str(data), *more, "TRAIN.SAVE_EVERY", "1")
    with dying_in_step(3):
        call("train.py", *opts)
    assert call("train.py", *opts) == 0
    kept = [read_tensors(path / "prompt/dsd_comvg_tiny/weights.safetensors")[0] for path in (whole, parts)]
    assert all(torch.equal(kept[0][name], value) for name, value in kept[1].items())
    assert dict(read_scalars(parts)["train/loss"]) == dict(tags["train/loss"])

    before, _ = run("test.py")
    run("test.py", "METHOD.WEIGHTS", "dsd_comvg_tiny", output=whole)
    assert not np.allclose(np.stack(scores(before)["score"]), np.stack(scores(whole)["score"]), rtol=1e-5)
    _, refused = run("test.py", "METHOD.WEIGHTS", "dsd_comvg_tiny", "DSD.RANK", "2", output=whole, status=1)
    assert "does not fit" in refused.err
    _, refused = run("train.py", *more, "DSD.MARGIN", "0.2", output=whole, status=1)
    assert "DSD.MARGIN: 0.1 -> 0.2" in refused.err


def test_real_batches_are_the_mean_of_their_parts(run):
    """And accumulation changes nothing."""
    steps = [
        run("train.py", "TRAIN.MAX_STEPS", "1", "TRAIN.BATCH_SIZE", "4", *more)[1].steps[0]
        for more in ((), ("TRAIN.ACCUMULATION", "4"), ("DSD.ROWS", "3", "NETWORK.RECOMPUTE", "True"))
    ]
    for other in steps[1:]:
        assert torch.allclose(other.gradient, steps[0].gradient, atol=1e-5)


def test_a_method_of_the_other_task_is_refused(run):
    _, seen = run("test.py", "METHOD.NAME", "sd4match", status=2)
    assert "METHOD.NAME sd4match is for correspondence, but DATASET.NAME comvg is for ranking: dsd, clip" in seen.err
    _, seen = run("test.py", "DATASET.NAME", "spair", status=2)
    assert "METHOD.NAME dsd is for ranking" in seen.err


def test_results_of_other_settings_have_names_of_their_own(run):
    output, _ = run("test.py")
    run("test.py", "DSD.UNCONDITIONAL", "none", output=output)
    run("test.py", "DSD.ROWS", "3", output=output)  # changes no number
    assert len(list(output.rglob("*_items.csv"))) == 2


# ---- keys -----------------------------------------------------------------------------------------------------


@watches(
    "DSD.TERMS", "DSD.UNCONDITIONAL", "DSD.POOL", "DSD.TEMPERATURE", "DSD.TOKENS", "DSD.LAYER_WEIGHTS", "DSD.RESAMPLE"
)
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("DSD.TERMS", "attention"),
        ("DSD.TERMS", "noise"),
        ("DSD.UNCONDITIONAL", "none"),
        ("DSD.POOL", "3"),
        ("DSD.TEMPERATURE", "2.0"),
        ("DSD.TOKENS", "words"),
        ("DSD.LAYER_WEIGHTS", "[0, 1, 0]"),
        ("DSD.RESAMPLE", "True"),
        ("METHOD.POSTERIOR", "mode"),
        ("SEED", "1"),
    ],
)
def test_a_key_changes_the_scores(run, base, key, value):
    output, seen = run("test.py", "DATASET.PAIRS", "2", key, value)
    found = np.stack(scores(output)["score"])
    assert found.shape == base.shape and not np.allclose(found, base, rtol=1e-6)
    if key == "DSD.POOL":
        attention = np.stack(scores(output)["attention"])
        assert (attention[:3] == attention[0]).all() and (attention[3:] == attention[3]).all()


@pytest.fixture(scope="module")
def base(world, data, tmp_path_factory):
    output = tmp_path_factory.mktemp("base")
    opts = world.opts(output, *SETTINGS, *FEW, "DATASET.ROOT", str(data), "DATASET.PAIRS", "2")
    assert call("test.py", "--quiet", *opts) == 0
    return np.stack(scores(output)["score"])


@watches("DSD.TIMESTEPS", "DSD.ROWS")
def test_timesteps_and_rows_of_the_unet(run):
    _, seen = run("test.py", "DATASET.PAIRS", "1", "DSD.TIMESTEPS", "3", "DSD.ROWS", "2")
    assert set().union(*(c.timesteps for c in seen.unet)) == set(list_timesteps(3))
    assert max(c.rows for c in seen.unet) == 2


@watches("DSD.RANK", "DSD.MARGIN", "DSD.SHARE_DRAWS", "DSD.MASK_TEXT", "DSD.WEIGHT_DECAY", "DSD.MAX_GRAD_NORM")
def test_keys_of_training(run):
    def first(*more):
        """Loss of the first step, and what passed through the networks."""
        more = ("TRAIN.MAX_STEPS", "1", "TRAIN.BATCH_SIZE", "2", "DATASET.FEW_SHOT", "0.2", "DSD.MARGIN", "5.0", *more)
        output, seen = run("train.py", *more)
        (log,) = {path.parent for path in output.rglob("state.safetensors")}
        return dict(read_scalars(output)["train/loss"])[1], seen, load_checkpoint(log)["learner"]

    loss, seen, state = first()
    assert len(first("DSD.RANK", "2")[1].steps[0].gradient) * 2 == len(seen.steps[0].gradient)
    assert first("DSD.MARGIN", "7.0")[0] == pytest.approx(loss + 2)
    assert first("DSD.MASK_TEXT", "True")[0] != loss
    clipped = first("DSD.MAX_GRAD_NORM", "0.001")[2]
    moments = [entry["exp_avg"].flatten() for entry in clipped["optimizer"]["state"].values()]
    assert torch.cat(moments).norm() == pytest.approx(0.1 * 0.001, rel=1e-2)  # the first is a tenth of the gradient
    heavy = first("DSD.WEIGHT_DECAY", "500.0", "TRAIN.LR", "0.001")[2]
    light = first("DSD.WEIGHT_DECAY", "0.0", "TRAIN.LR", "0.001")[2]
    for name, value in light["weights"].items():
        if "lora_A" in name and (value.abs() > 0.01).any():  # decays by lr x 500 of itself
            assert heavy["weights"][name].norm() == pytest.approx(0.5 * float(value.norm()), rel=0.05)
    other = first("DSD.SHARE_DRAWS", "True", "DATASET.NAME", "vqa_other")[1]
    own = first("DATASET.NAME", "vqa_other")[1]
    assert [call.rows for call in other.learning] == [2 * (1 + 10)] and [call.rows for call in own.learning] == [2 * 20]


def test_few_shot_share_and_items_of_a_validation(run):
    out = run("train.py", "TRAIN.MAX_STEPS", "1", "VAL.PAIRS", "2", "TRAIN.BATCH_SIZE", "1")[1].out
    assert "6 items, 1 process" in out and "\n2 items" in out


def test_every_key_is_watched():
    assert WATCHED == KEYS


# ---- CLIP -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    tower = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {**tower, "vocab_size": 514, "bos_token_id": 512, "eos_token_id": 513, "pad_token_id": 513}
    config = CLIPConfig(
        text_config=text, vision_config={**tower, "patch_size": 14, "image_size": 56}, projection_dim=12
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        CLIPModel(config).save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56}).save_pretrained(folder)
    build_byte_tokenizer(514, pad_token="<|endoftext|>").save_pretrained(folder)
    return folder


def test_clip_is_the_cosine_of_the_networks_own_embeddings(run, clip, data):
    output, seen = run("test.py", "METHOD.NAME", "clip", "DSD.CLIP_FOLDER", clip)
    table, model = scores(output), CLIPModel.from_pretrained(clip)
    assert not seen.unet and "score" in table and "noise" not in table
    tokenizer, processor = build_byte_tokenizer(514), CLIPImageProcessor.from_pretrained(clip)
    images = [Image.open(data / "comvg/Visual_Genome/vg_concept" / f"{n}.jpg") for n in (0, 1)]
    ids = tokenizer(["a dog, 0"], return_tensors="pt").input_ids
    with torch.no_grad():
        found = model(input_ids=ids, pixel_values=processor(images, return_tensors="pt").pixel_values)
        cosines = 100 * found.image_embeds @ found.text_embeds.T
    assert np.allclose(table["score"][0], cosines[:, 0], atol=0.05)  # cached in half precision


# ---- the API and the command ----------------------------------------------------------------------------------


@pytest.fixture
def scorer(world, tmp_path):
    from sd4match import Scorer

    settings = {"NETWORK.NAME": "tiny", "NETWORK.FOLDER": str(world.root / "sd"), "OUTPUT_ROOT": str(tmp_path)}
    return lambda *args, **options: Scorer.from_pretrained(
        *args, device="cpu", timesteps=2, image_size=32, settings=settings, **options
    )


def test_scorer_gives_images_by_texts(scorer, data):
    images = [data / "comvg/Visual_Genome/vg_concept" / f"{n}.jpg" for n in (0, 1)]
    texts, one = ["a dog", "a cat", "a dog"], scorer("mini")
    found = one.score(images, texts)
    assert found.total.shape == (2, 3) and np.allclose(found.total[:, 0], found.total[:, 2])
    assert np.allclose(found.total, found.terms["attention"] + found.terms["noise"], atol=1e-4)
    assert np.allclose(one.score(str(images[1]), "a cat").total, found.total[1, 1], atol=1e-5)
    assert len(found.best_text()) == 2
    alone = scorer("mini", terms="attention").score(images, texts)
    assert not alone.terms and np.allclose(alone.total, found.terms["attention"], atol=1e-5)
    with pytest.raises(ValueError, match="at least one"):
        one.score(images, [])


def test_scorer_takes_weights_of_ours_and_of_others(scorer, world, data, tmp_path):
    from tests.test_image_text import fill, release_name

    plain, image = scorer("mini"), data / "comvg/Visual_Genome/vg_concept/0.jpg"
    method = build_method(load_config(None, world.opts(tmp_path, *SETTINGS)), torch.device("cpu"), None, training=True)
    tensors = fill(method.adapter)
    method.save(tmp_path / "ours", {"network": "tiny"})
    torch.save({release_name(name): value for name, value in tensors.items()}, tmp_path / "pytorch_model.bin")
    ours, theirs = (
        scorer("mini", tmp_path / name).score(image, "a dog").total for name in ("ours", "pytorch_model.bin")
    )
    assert np.allclose(ours, theirs, atol=1e-6) and not np.allclose(ours, plain.score(image, "a dog").total, atol=1e-5)


def test_the_page_shows_the_worst_first(run, data):
    from app.viewer import build_pages, find_results
    from script.rank_table import format_cell

    output, _ = run("test.py", "TEST.PICTURES", "2")
    assert len(list(output.rglob("*_item.png"))) == 2
    (page,) = build_pages(find_results([str(output)]), [])
    page.write(output / "page.html")
    found = json.loads((output / "page.html").read_text().split('id="data">')[1].split("</script>")[0])
    assert len(found["items"]) == 12 and found["items"][0]["texts"] == ["a dog, 0"] and not found["missing"]
    assert set(found["methods"][0]["scores"][0]) == {"score", "attention", "noise"}
    assert [(output / found["images"][n]).resolve().name for n in found["items"][0]["images"]] == ["0.jpg", "1.jpg"]
    rate = summary(output)["summary"]["ranking"]["score"]["R@1"]["all"]["strict"]
    assert format_cell([scores(output)], "score", "R@1", "all").startswith(f"{100 * rate:.1f} [")


def test_the_texts_of_the_app(scorer, data):
    """What the tab shows is what the scorer says, best first; words are shown as they were written."""
    pytest.importorskip("gradio")
    from app.engine import Engine
    from app.page import Choices, build_page
    from app.photo import open_photo
    from app.session import RequestError
    from app.texts import build_texts, split_texts

    assert split_texts(" a dog \n\na dog\na <b>cat</b>") == ["a dog", "a <b>cat</b>"]
    for wrong in ("", " \n", "a\n" * 3 + "x" * 301, "\n".join(map(str, range(11)))):
        with pytest.raises(RequestError):
            split_texts(wrong)
    one, path = scorer("mini"), data / "comvg/Visual_Genome/vg_concept/0.jpg"
    photo, texts = open_photo(path.read_bytes(), "0.jpg"), ["a dog", "a <b>cat</b>"]
    engine = Engine(None, load_scorer=lambda: one)
    found, words = engine.score_texts(photo, texts)
    assert np.allclose(found.total, one.score(path, texts).total, atol=1e-5)
    assert words.names == texts[found.best_text()[0]].split() and words.maps.shape == (2, 4, 4)
    page = build_texts(found, texts, words)
    assert "&lt;b&gt;cat" in page and "<b>" not in page and page.count("data:image") == 3
    assert page.index("a dog") < page.index("a &lt;b&gt;") or found.total[0, 1] > found.total[0, 0]
    assert "Compare" in str(build_page(engine, Choices("tiny", ["sd4match"], {"text": 50}, "nn")).config)


def test_the_table_lists_what_is_not_run_yet(world, data, tmp_path, capsys):
    where = ("DATASET.ROOT", str(data), "CACHE_ROOT", str(tmp_path / "asset"))
    opts = world.opts(tmp_path, *SETTINGS[2:], *FEW, *where, "DATASET.PAIRS", "2")
    del opts[opts.index("OUTPUT_ROOT") : opts.index("OUTPUT_ROOT") + 2]

    def table(*flags):
        assert call("script/rank_table.py", "--mini", "--output", tmp_path, *flags, "--opts", *opts) == 0
        return capsys.readouterr()

    listed = table("--commands")
    zero, few = listed.out.splitlines()
    assert "train.py" not in zero and few.count("config/mini/dsd.yaml") == 2 and "METHOD.WEIGHTS dsd_comvg_tiny" in few
    assert "not run: clip/comvg: config/mini/clip.yaml is not there" in listed.err
    for command in few.split(" && "):
        assert call(*shlex.split(command)[1:]) == 0
    capsys.readouterr()
    assert table("--commands").out.splitlines() == [zero]
    assert call(*shlex.split(zero)[1:]) == 0
    capsys.readouterr()
    text = table().out
    assert "| DSD, zero-shot, attention alone |" in text and "Few-shot minus zero-shot, R@1:" in text
    assert (tmp_path / "table" / "rankings.md").read_text() in text


def test_score_text_prints_the_best_first(data, capsys):
    image = str(data / "comvg/Visual_Genome/vg_concept/0.jpg")
    options = ("--network", "mini", "--device", "cpu", "--timesteps", "1")
    assert call("score_text.py", image, "a dog", "a cat", *options) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["score", "attention", "noise", "text"]
    values = [float(line.split()[0]) for line in lines[1:]]
    assert values == sorted(values, reverse=True) and len(values) == 2
    assert call("score_text.py", image, "a dog", *options, "--bias", "--json") == 0
    (record,) = json.loads(capsys.readouterr().out)["texts"]
    (attention,) = (float(line.split()[1]) for line in lines[1:] if line.endswith("a dog"))
    assert set(record) == {"text", "score"} and record["score"] == pytest.approx(attention, abs=1e-3)
    assert call("score_text.py", "nowhere.jpg", "a dog", *options) == 1
    assert "nowhere.jpg" in capsys.readouterr().err


def test_without_an_adapter_peft_is_not_needed():
    code = (
        "import sys; sys.modules['peft'] = None; import model.method.dsd, model.adapter, sd4match.scorer; print('here')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout == "here\n", done.stderr


def test_configs_of_the_paper():
    for name, timesteps in (("comvg", 40), ("refcocog", 10), ("vqa_other", 200), ("vqa_binary", 200)):
        cfg = load_config(f"config/{name}/dsd.yaml")
        check_config(cfg, training=name in ("comvg", "refcocog", "vqa_other"))
        assert name == cfg.DATASET.NAME and timesteps == cfg.DSD.TIMESTEPS
        assert cfg.DATASET.IMAGE_SIZE == (512, 512) and cfg.TRAIN.LR == 1e-4 and cfg.DATASET.FRAME == "bicubic"
        assert cfg.VAL.PAIRS == 500  # what is not learned from would take hours after each epoch
