"""The app without a browser: what a session keeps, what the engine computes once, what is refused."""

import asyncio
import base64
import importlib.util
import io
import sys
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from app.engine import Engine
from app.guard import Guard, is_own_name
from app.photo import MAX_PIXELS, describe, open_photo, paint_heat, shrink
from app.session import MAX_POINTS, RequestError, Session, Settings
from config import load_config
from sd4match import demo
from utils.image import ImageError, read_image

SETTINGS = Settings("sd4match", "text", "", 50, "nn")
SIZES = {"a": (40, 60), "b": (80, 30)}


class FakePair:
    """Finds every point at the same relative place."""

    slow = False

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
def photos():
    rng = np.random.default_rng(0)
    pictures = {name: rng.integers(0, 255, (*size, 3), dtype=np.uint8) for name, size in SIZES.items()}
    return [open_photo(to_bytes(Image.fromarray(pixels)), f"{name}.png") for name, pixels in pictures.items()]


def to_bytes(image, kind="png"):
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def open_session(source, target, prompt="text", method="sd4match"):
    session = Session()
    session.load(source=source, target=target, settings=Settings(method, prompt, "", 50, "nn"))
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
    for nowhere in (float("nan"), float("inf")):
        with pytest.raises(RequestError, match="two numbers"):
            session.place(nowhere, 1)


def test_points_are_bounded_numbered_and_removed(ready):
    session, _, _ = ready
    for _ in range(MAX_POINTS):
        session.place(1, 1)
    with pytest.raises(RequestError, match="remove some"):
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
    session.load(source=photos[1], target=photos[0])
    finish()
    assert not session.ready


def test_points_survive_new_settings_but_not_new_photos(ready, photos):
    session, engine, _ = ready
    engine.match(session, session.place(30, 10))
    assert not session.load(source=photos[0], settings=SETTINGS) and session.ready
    assert session.load(settings=Settings("sd4match", "empty", "", 50, "nn"))
    assert len(session.points) == 1 and session.points[0].found is None and not session.ready
    session.load(source=photos[1])
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
    monkeypatch.setattr(model.backbone.load, "_load_part", lambda *args: parts.append(args[2]) or load_part(*args))
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


@pytest.fixture
def page():
    return pytest.importorskip("app.page", reason="gradio is not installed: pip install -r requirements-app.txt")


def test_the_page_remembers_so_many_browsers(page, ready):
    _, engine, _ = ready
    actions = page.Actions(engine, max_sessions=2)
    browsers = [SimpleNamespace(session_hash=name) for name in "abc"]
    names = [actions.clear_points(browser)["session"] for browser in (browsers[0], browsers[0], *browsers[1:])]
    assert names[0] == names[1] and len(set(names)) == 3 and len(actions.sessions) == 2
    assert actions.clear_points(browsers[0])["session"] not in names
    actions.leave(browsers[0])
    assert set(actions.sessions) == {"c"}


def test_a_photo_is_answered_with_what_mini_is_good_for(page, ready):
    _, engine, _ = ready
    browser = SimpleNamespace(session_hash="a")
    photo = base64.b64encode(to_bytes(Image.new("RGB", (20, 20)))).decode()
    event = SimpleNamespace(_data={"side": "target", "name": "x.png", "data": photo})
    for expected in ("photos need the network sd2-1", ""):
        actions = page.Actions(engine, expected)
        example, _, category = actions.build_example("boat")(browser)
        assert example["value"]["note"] == "" and example["pictures"]["source"]["width"] == 320 and category == "boat"
        shown, _ = actions.photo(browser, event)
        assert shown["value"]["note"] == expected


def test_messages_do_not_tell_where_the_server_keeps_things(page, ready):
    _, engine, _ = ready
    for text in ("/srv/data/x.pt is damaged", "cannot read '/srv/data/x.pt'", r"C:\users\me\x.pt is damaged"):

        def fail(text=text):
            raise ValueError(text)

        _, told = page.Actions(engine)._try(fail)
        assert "x.pt" in told and "srv" not in told and "users" not in told
    assert page.FOLDERS.sub("", "1/2 of both/all") == "1/2 of both/all"


def test_bad_files_are_refused_by_their_name():
    with pytest.raises(ImageError, match=r"^x\.png cannot be opened: not an image"):
        open_photo(b"no image", "x.png")


def test_few_bytes_that_claim_many_pixels_are_refused():
    side = int(MAX_PIXELS**0.5) + 100
    with pytest.raises(ImageError, match="more than the limit of 40 megapixels"):
        open_photo(to_bytes(Image.new("1", (side, side))), "x.png")


def test_what_the_browser_gets_is_small():
    shown = describe(open_photo(to_bytes(Image.new("RGB", (3000, 1000)), "jpeg"), "x.jpg"))
    assert (shown["width"], shown["height"]) == (3000, 1000)
    assert shown["url"].startswith("data:image/jpeg;base64,") and len(shown["url"]) < 50_000
    assert shrink(Image.new("RGB", (3000, 1)), 1024).size == (1024, 1)


@pytest.mark.parametrize(
    ("host", "bound", "own"),
    [
        ("127.0.0.1:7860", "127.0.0.1", True),
        ("localhost:7860", "127.0.0.1", True),
        ("[::1]:7860", "::1", True),
        ("10.0.0.7:7860", "0.0.0.0", True),
        ("gpu.lab.org", "gpu.lab.org", True),
        ("evil.example:7860", "127.0.0.1", False),
        ("evil.example:7860", "0.0.0.0", False),
        ("127.0.0.1.evil.example", "127.0.0.1", False),
        ("", "127.0.0.1", False),
    ],
)
def test_names_of_this_machine(host, bound, own):
    assert is_own_name(host, bound) is own


def test_the_guard_lets_no_websocket_through():
    sent = []

    async def send(message):
        sent.append(message["type"])

    scope = {"type": "websocket", "path": "/", "headers": [(b"host", b"localhost")]}
    asyncio.run(Guard(None, "127.0.0.1", 10)(scope, None, send))
    assert sent == ["websocket.close"]


def test_a_flat_heat_map_is_painted():
    assert paint_heat(np.zeros((4, 5))).size == (5, 4)


def test_examples_come_with_the_app_in_pairs(page):
    assert len(page.list_examples()) >= 4
    for category in page.list_examples():
        for side in ("source", "target"):
            assert read_image(page.EXAMPLES / f"{category}_{side}.jpg").size[0] >= 200


def test_without_gradio_the_command_that_installs_it_is_named(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["demo.py"])
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "gradio" else find_spec(name))
    assert demo.main() == 2
    assert "pip install gradio" in capsys.readouterr().err


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
    for flag, value, message in (
        ("--max_pairs", "0", ": must be at least 1"),
        ("--port", "99999", " must be in 0..65535"),
    ):
        monkeypatch.setattr(sys, "argv", ["demo.py", flag, value])
        with pytest.raises(SystemExit):
            demo.parse_args()
        assert f"{flag}{message}" in capsys.readouterr().err


class SlowPair(FakePair):
    """Tells its progress, and takes its time."""

    slow = True

    def match(self, points, localiser=None, progress=None):
        for done in (1, 2):
            progress(done, 2)
        return super().match(points)


def test_points_of_a_slow_method_are_matched_one_by_one_and_removed_to_cancel(photos, monkeypatch):
    monkeypatch.setattr(FakeMatcher, "pair", lambda self, source, target: SlowPair(source, target))
    session, engine = open_session(*photos), Engine(lambda method: FakeMatcher())
    engine.prepare(session)
    assert session.ready
    first, second = session.place(10, 20), session.place(11, 21)
    engine.match(session, first)
    assert not session.ready and session.find(first.number).found is None  # the page now asks for `prepare`
    told = []

    def report(share, what):
        told.append((share, what))
        if what.startswith(f"point {second.number}"):
            session.remove(second.number)

    engine.prepare(session, report)
    assert session.ready and session.find(first.number).found is not None and session.find(second.number) is None
    assert [share for share, what in told if what.startswith("point")] == [0.5, 1.0, 0.5]
    session.swap()
    assert not session.ready and session.find(first.number).found is None
