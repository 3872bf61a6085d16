"""The app without a browser: what a session keeps, what the engine computes once, what is refused."""

import importlib.util
import sys
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from app.engine import Engine, paint_heat
from app.example import render_examples
from app.photo import describe, open_photo, shrink
from app.session import MAX_POINTS, PlaceError, Session, Settings
from app.store import Latest
from config import load_config
from sd4match import demo
from utils.image import ImageError

SETTINGS = Settings("sd4match", "text", "", 50, "nn")


class FakePair:
    """Finds every point at the same relative place."""

    def __init__(self, src, trg):
        self.src, self.trg = src, trg

    def match(self, points, localiser=None):
        scale = np.array(self.trg.size[::-1]) / np.array(self.src.size[::-1])
        return SimpleNamespace(points=np.array(points) * scale, confidence=np.full(len(points), 0.5))

    def heatmap(self, point, size):
        return np.linspace(0, 1, size[0] * size[1]).reshape(size)

    def swap(self):
        return FakePair(self.trg, self.src)


class FakeMatcher:
    """Counts what is computed; `gate` holds it back."""

    prompt_name = "text"

    def __init__(self):
        self.encoded, self.begun, self.gate = [], threading.Event(), threading.Event()
        self.gate.set()

    def at(self, timestep):
        return self

    def encode(self, picture, category=None):
        self.begun.set()
        self.gate.wait(10)
        self.encoded.append(picture.name)
        return picture

    def pair(self, source, target):
        return FakePair(source, target)


@pytest.fixture
def photos(tmp_path):
    rng = np.random.default_rng(0)
    for name, size in (("a", (40, 60)), ("b", (80, 30))):
        Image.fromarray(rng.integers(0, 255, (*size, 3), dtype=np.uint8)).save(tmp_path / f"{name}.png")
    return [open_photo(str(tmp_path / f"{name}.png")) for name in "ab"]


def open_session(source, target, prompt="text", method="sd4match"):
    session = Session()
    session.load(source, target, Settings(method, prompt, "", 50, "nn"))
    return session


@pytest.fixture
def opened(photos):
    """A session with two photos, its engine and its matcher; nothing is computed yet."""
    matcher = FakeMatcher()
    return open_session(*photos), Engine(lambda method: matcher), matcher


@pytest.fixture
def ready(opened):
    """The features are known."""
    session, engine, _ = opened
    engine.prepare(session)
    return opened


@pytest.fixture
def computing(opened):
    """The features are being computed, until the function that comes with the session and its engine is called."""
    session, engine, matcher = opened
    matcher.gate.clear()
    thread = threading.Thread(target=engine.prepare, args=[session])
    thread.start()
    assert matcher.begun.wait(10)

    def finish():
        matcher.gate.set()
        thread.join(10)

    yield session, engine, finish
    finish()


def test_points_are_found_in_pixels_of_the_originals(ready):
    session, engine, _ = ready
    engine.match(session, session.place(30, 10))
    assert session.points[0].found == (15, 20) and session.points[0].confidence == 0.5
    assert engine.heat(session)["number"] == 1


def test_a_point_outside_is_moved_into_the_photo(ready):
    session, _, _ = ready
    point = session.place(1e9, -5)
    assert (point.x, point.y) == (59, 0)


def test_points_are_bounded_numbered_and_removed(ready):
    session, _, _ = ready
    for _ in range(MAX_POINTS):
        session.place(1, 1)
    with pytest.raises(PlaceError, match="remove some"):
        session.place(1, 1)
    session.remove(MAX_POINTS)
    assert session.selected == MAX_POINTS - 1
    session.select(3)
    session.remove(3)
    assert session.find(3) is None and session.selected == MAX_POINTS - 1
    session.clear()
    assert session.points == [] and session.place(1, 1).number == 1


def test_swap_asks_for_what_was_found_and_computes_nothing(ready):
    session, engine, matcher = ready
    engine.match(session, session.place(30, 10))
    session.swap()
    engine.prepare(session)
    point = session.points[0]
    assert (point.x, point.y) == (15, 20) and point.found == (30, 10)
    assert len(matcher.encoded) == 2


def test_points_placed_while_features_are_computed_are_not_lost(computing):
    session, engine, finish = computing
    engine.match(session, session.place(30, 10))
    assert session.points[0].found is None
    finish()
    assert session.points[0].found == (15, 20)


def test_a_change_during_the_computation_is_not_overwritten(computing, photos):
    session, _, finish = computing
    session.load(photos[1], photos[0], SETTINGS)
    finish()
    assert not session.ready


def test_points_survive_new_settings_but_not_new_photos(ready, photos):
    session, engine, _ = ready
    engine.match(session, session.place(30, 10))
    assert not session.load(*photos, SETTINGS) and session.ready
    assert session.load(*photos, Settings("sd4match", "empty", "", 50, "nn"))
    assert len(session.points) == 1 and session.points[0].found is None and not session.ready
    session.load(photos[1], photos[0], SETTINGS)
    assert session.points == []


def test_known_pairs_are_shared_and_bounded(photos):
    matcher = FakeMatcher()
    engine = Engine(lambda method: matcher, max_pairs=1)
    for _ in range(2):
        session = open_session(*photos)
        engine.prepare(session)
    assert len(matcher.encoded) == 2
    engine.prepare(open_session(photos[0], photos[0]))
    assert len(engine._pairs) == 1
    engine.match(session, session.place(1, 1))  # its pair was forgotten and is made again
    assert session.points[0].found is not None


@pytest.fixture
def loaded(world, monkeypatch):
    """A matcher of tiny networks in an engine of the app, and the parts of Stable Diffusion that are read from disk."""
    import model.backbone.load
    from sd4match import Matcher

    parts, load_part = [], model.backbone.load._load_part
    monkeypatch.setattr(model.backbone.load, "_load_part", lambda *args: parts.append(args[1]) or load_part(*args))
    args = SimpleNamespace(network=str(world.root / "sd"), prompt=None, device="cpu", max_pairs=4)
    first = Matcher.from_pretrained(args.network, device=args.device, image_size=64, ensemble=1)
    return first, demo.build_engine(args, first), parts


def test_another_prompt_does_not_load_the_networks_again(loaded, photos):
    first, engine, parts = loaded
    assert {"unet", "vae"} <= set(parts)
    parts.clear()
    features = {}
    for prompt in ("text", "empty", "text"):
        session = open_session(*photos, prompt)
        engine.prepare(session)
        features[prompt] = engine.find_pair(session).src_feat
    assert set(parts) <= {"text_encoder", "tokenizer"} and len(parts) <= 2  # what the empty prompt is written with
    assert not torch.equal(features["text"], features["empty"])
    expected = first.with_prompt("empty").at(timestep=50).encode(photos[0].read()).feature
    assert torch.equal(features["empty"], expected)


def test_a_method_without_prompt_is_loaded_once(photos):
    matcher, loads = FakeMatcher(), []
    matcher.prompt_name = None
    engine = Engine(lambda method: loads.append(method) or matcher)
    for prompt in ("text", "empty"):
        session = open_session(*photos, prompt, "dinov2")
        engine.prepare(session)
    assert loads == ["dinov2"] and session.ready


def test_latest_forgets_what_was_not_used_for_longest():
    latest = Latest(2)
    for key in "abac":
        latest.find_or_make(key, lambda key=key: key)
    assert latest.find("a") == "a" and latest.find("b") is None and len(latest) == 2


def test_a_value_that_several_ask_for_at_once_is_made_once():
    """A new browser's first requests get one session."""
    latest, made = Latest(2), []

    def make():
        time.sleep(0.2)  # time for the other one to come in between
        made.append(Session())
        return made[-1]

    threads = [threading.Thread(target=latest.find_or_make, args=["a", make]) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert len(made) == 1 and latest.find("a") is made[0]


def test_the_page_remembers_so_many_browsers(ready):
    page = pytest.importorskip("app.page", reason="gradio is not installed: pip install -r requirements-app.txt")
    _, engine, _ = ready
    actions = page.Actions(engine, Latest(2))
    browsers = [SimpleNamespace(session_hash=name) for name in "abc"]
    names = [actions.clear(browser)["session"] for browser in (browsers[0], browsers[0], *browsers[1:])]
    assert names[0] == names[1] and len(set(names)) == 3 and len(actions.sessions) == 2
    assert actions.clear(browsers[0])["session"] not in names
    actions.leave(browsers[0])
    assert actions.sessions.find("a") is None and actions.sessions.find("c") is not None


def test_bad_files_are_refused_without_their_folder(tmp_path):
    path = tmp_path / "x.png"
    path.write_bytes(b"no image")
    with pytest.raises(ImageError, match=r"^x\.png cannot be opened: not an image"):
        open_photo(str(path))


def test_what_the_browser_gets_is_small(tmp_path):
    Image.new("RGB", (3000, 1000)).save(tmp_path / "x.jpg")
    shown = describe(open_photo(str(tmp_path / "x.jpg")))
    assert (shown["width"], shown["height"]) == (3000, 1000)
    assert shown["url"].startswith("data:image/jpeg;base64,") and len(shown["url"]) < 50_000
    assert shrink(Image.new("RGB", (3000, 1)), 1024).size == (1024, 1)


def test_a_flat_heat_map_is_painted():
    assert paint_heat(np.zeros((4, 5))).startswith("data:image/png;base64,")


def test_examples_are_rendered_once(tmp_path):
    examples = render_examples(tmp_path)
    times = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert len(examples) >= 4 and len(times) == 2 * len(examples)
    assert render_examples(tmp_path) == examples
    assert times == {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}


def test_without_gradio_the_command_that_installs_it_is_named(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["demo.py"])
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "gradio" else find_spec(name))
    assert demo.main() == 2
    assert "pip install -r requirements-app.txt" in capsys.readouterr().err


def test_prompts_of_this_network_are_offered_with_their_timesteps(tmp_path):
    pytest.importorskip("gradio", reason="gradio is not installed: pip install -r requirements-app.txt")
    for name in ("Single_spair_mini_TokenEmbeds75", "Single_spair_sd2-1_TokenEmbeds75"):
        (tmp_path / "prompt" / name).mkdir(parents=True)
        (tmp_path / "prompt" / name / "caption.pt").touch()
    overrides = {"OUTPUT_ROOT": str(tmp_path), "PROMPT.TYPE": "empty", "TEST.TIMESTEP": 7}
    choices = demo.find_choices(load_config("config/mini/base.yaml", overrides=overrides), "mini")
    assert list(choices.prompts) == ["empty", "text", "Single_spair_mini_TokenEmbeds75"]
    assert choices.prompts["empty"] == 7 and choices.methods[0] == "sd4match"


def test_bad_flags_are_refused(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["demo.py", "--max_pairs", "0"])
    with pytest.raises(SystemExit):
        demo.parse_args()
    assert "--max_pairs must be at least 1" in capsys.readouterr().err
