"""match.py: what it prints and writes, how it fails, and that help is instant."""

import json
import os
import resource
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from config import ROOT, load_config
from model.prompt import new_prompt
from model.prompt.build import load_text
from model.prompt.store import save_prompt
from sd4match import command
from sd4match.source import MINI_NOTE
from tests.command import call
from tests.fixtures_dataset import draw_image


@pytest.fixture
def photos(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, size in (("a", (120, 160)), ("b", (150, 100))):
        draw_image(tmp_path / f"{name}.png", size)
    return tmp_path


@pytest.fixture
def run(world, photos, capfd):
    """run(*arguments) -> (status, stdout, stderr) with the tiny networks."""

    def run(*arguments):
        tiny = ("--network", str(world.root / "sd"), "--image_size", "64", "--ensemble", "1", "--device", "cpu")
        return call("match.py", *arguments, *tiny), *capfd.readouterr()

    return run


def test_a_table_and_a_picture(run, photos):
    status, out, err = run("a.png", "b.png", "--points", "20,30", "159,119", "7.5,8")
    assert status == 0 and len(out.splitlines()) == 4
    assert out.splitlines()[1].split()[:3] == ["1", "20.0", "30.0"]
    (path,) = photos.glob("a_b_*_matches.png")
    assert f"written: {path}" in err
    with Image.open(path) as picture:
        assert picture.width > 600 and len(np.unique(np.asarray(picture)[..., :3])) > 50


def test_json_is_all_that_stdout_gets(run):
    status, out, _ = run("a.png", "b.png", "--points", "20,30", "--json", "--output", "sub/found.png")
    found = json.loads(out)
    assert status == 0 and found["source"] == {"file": "a.png", "width": 160, "height": 120}
    assert found["prompt"] == "text" and found["image_size"] == [64, 64]
    (one,) = found["matches"]
    assert one["source"] == [20, 30] and 0 <= one["target"][0] <= 99 and 0 <= one["confidence"] <= 1


def test_without_points_the_most_confident_mutual_neighbours(run, photos):
    status, out, _ = run("a.png", "a.png", "--count", "4", "--localiser", "nn", "--json", "--no_picture")
    matches = json.loads(out)["matches"]
    assert status == 0 and len(matches) == 4 and not list(photos.glob("*matches*"))
    confidence = [one["confidence"] for one in matches]
    assert confidence == sorted(confidence, reverse=True)
    for one in matches:
        np.testing.assert_allclose(one["source"], one["target"], atol=0.01)


def test_the_same_file_twice_is_said(run):
    status, _, err = run("a.png", "./a.png", "--points", "1,1", "--no_picture")
    assert status == 0 and "both images are the same file" in err


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (("a.png", "b.png", "--points", "1,1000"), 2, "point 1,1000 lies outside a.png, which is 160 x 120 px"),
        (("a.png", "b.png", "--points", "1;10"), 2, "'1;10' is no point; write x,y such as 120,80"),
        (("a.png", "b.png", "--count", "0"), 2, "--count: must be at least 1, got 0"),
        (("a.png", "b.png", "--localiser", "sift"), 2, "unknown sift; known: nn"),
        (("a.png", "b.png", "--timestep", "1000"), 2, "--timestep must be in 0..999; got 1000"),
        (("a.png", "b.png", "--points", "-0.6,5"), 2, "point -0.6,5 lies outside a.png"),
        (("a.png", "b.png", "--count", "-3"), 2, "--count: must be at least 1, got -3"),
        (("a.png", "b.png", "--category", "big " * 100), 2, "--category of 100 words is too long"),
        (("a.png", "b.png", "--output", "a.png"), 2, "--output a.png is another file of this command"),
        (("a.png", "b.png", "--output", "sub/../b.png"), 2, "b.png is another file of this command"),
        (("a.png", "b.png", "--output", "linked.png"), 2, "linked.png is another file of this command"),
        (("a.png", "b.png", "--flow", "c.npy", "--output", "c.npy"), 2, "--output c.npy: the name must end in"),
        (("a.png", "c.npy", "--flow", "c.npy"), 2, "--flow c.npy is another file of this command"),
        (("a.png", "b.png", "--output", "x.gif"), 2, "--output x.gif: the name must end in .png, .jpg"),
        (("a.png", "b.png", "--output", "folder.png"), 2, "folder.png is a folder"),
        (("a.png", "b.png", "--prompt", "CPM_x_sd_Pair-DINO-Feat-G2-C3"), 1, "there is no prompt CPM_x_sd"),
        (("a.png", "nowhere.png"), 1, "nowhere.png: no such image"),
        (("a.png", "text.png"), 1, "text.png cannot be opened: not an image"),
        (("a.png",), 2, "the following arguments are required: target"),
    ],
)
def test_errors_name_what_is_wrong(run, photos, arguments, status, message):
    (photos / "text.png").write_text("no image")
    (photos / "linked.png").symlink_to(photos / "a.png")
    (photos / "c.npy").write_bytes((photos / "a.png").read_bytes())
    (photos / "sub").mkdir()
    (photos / "folder.png").mkdir()
    before = {path: path.read_bytes() for path in photos.glob("?.png")}
    found, out, err = run(*arguments)
    assert (found, out) == (status, "")
    assert message in err and "Traceback" not in err
    assert not list(photos.glob("*matches*"))
    assert before == {path: path.read_bytes() for path in photos.glob("?.png")}


@pytest.mark.parametrize(("suffix", "kind"), [("jpg", "JPEG"), ("JPEG", "JPEG"), ("png", "PNG"), ("webp", "WEBP")])
def test_the_suffix_decides_the_format(run, photos, suffix, kind):
    assert run("a.png", "b.png", "--points", "5,5", "--output", f"x.{suffix}")[0] == 0
    with Image.open(photos / f"x.{suffix}") as picture:
        assert picture.format == kind


def test_pictures_of_other_pairs_have_other_names(photos, monkeypatch):
    (photos / "more").mkdir()
    names = {command.choose_output(a, b) for a in ("a.png", "more/a.png") for b in ("b.png", "more/b.png")}
    assert len(names) == 4 and {name.parent for name in names} == {photos}
    assert command.choose_output("a.png", "b.png") == command.choose_output(str(photos / "a.png"), "./b.png")


def test_the_checkout_stays_clean(monkeypatch):
    monkeypatch.chdir(ROOT / "docs")
    path = command.choose_output("a.png", "b.png")
    assert subprocess.run(["git", "-C", ROOT, "check-ignore", "-q", path], check=False).returncode == 0


def test_points_on_the_border_and_beyond_zero(run):
    status, out, _ = run("a.png", "b.png", "--points", "-0.3,5", "-.3,-0.5", "--json", "--no_picture")
    assert status == 0 and json.loads(out)["matches"][0]["source"] == [pytest.approx(-0.3, abs=1e-4), 5]


def test_odd_names_are_only_names(run, photos):
    odd = ["$x_1$ {y} %s.png", "né\n日本.png", os.fsdecode(b"\xff.png")]
    for name in odd:
        shutil.copy(photos / "a.png", photos / name)
        status, out, err = run(name, "b.png", "--points", "5,5", "--json")
        assert status == 0 and json.loads(out)["source"]["file"].endswith(".png"), err
    assert len(list(photos.glob("*matches.png"))) == len(odd)


def test_mini_is_told_from_photos_whoever_chose_it(photos, caplog):
    for flags in ([], ["--network", "mini"]):
        assert call("match.py", "a.png", "b.png", "--points", "5,5", "--no_picture", "--device", "cpu", *flags) == 0
        assert caplog.messages.count(MINI_NOTE) == 1
        caplog.clear()


def test_a_class_prompt_asks_for_its_categories(run, photos, world):
    name = "Class_spair_sd_TokenEmbeds9"
    cfg = load_config(None, world.opts(photos))
    learned = new_prompt(name, load_text(cfg), categories=["bird", "cat"], condition_shape=None)
    save_prompt(photos / name, learned)
    for words in ((), ("--category", "dog")):
        status, _, err = run("a.png", "b.png", "--prompt", str(photos / name), *words)
        assert status == 2 and "--category must be one of bird, cat" in err


def test_the_default_network_downloads_nothing(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert command.choose_network() == "mini"
    repository = tmp_path / "models--sd2-community--stable-diffusion-2-1"
    (repository / "snapshots" / "abc" / "unet").mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    assert command.choose_network() == "sd2-1"


def test_help_is_instant_and_imports_nothing_heavy():
    code = "import sys; sys.argv = ['match.py', '--help']; import runpy\n"
    code += "try: runpy.run_path('match.py', run_name='__main__')\nexcept SystemExit: pass\n"
    code += "print([name for name in ('torch', 'numpy', 'PIL', 'diffusers', 'matplotlib') if name in sys.modules])"
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.stdout.splitlines()[-1] == "[]" and "--points" in done.stdout
    # the processor's time: a busy machine does not change it much
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.3


def test_a_flow_is_written(run, photos):
    assert run("a.png", "b.png", "--no_picture", "--flow", "out/a_b.npy")[0] == 0
    assert np.load(photos / "out" / "a_b.npy").shape == (120, 160, 2)
    status, _, err = run("a.png", "b.png", "--flow", "a.tif")
    assert status == 2 and "--flow a.tif: a flow is written as .npy, .flo" in err
