"""The page of the app: what is on it, and what each action does."""

from __future__ import annotations

import base64
import math
import os
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from html import escape
from pathlib import Path
from typing import Any

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read while gradio is imported

import gradio as gr  # noqa: E402
from cachetools import LRUCache  # noqa: E402

from app.engine import Engine  # noqa: E402
from app.photo import Photo, describe, open_photo  # noqa: E402
from app.session import RequestError, Session, Settings  # noqa: E402
from app.texts import build_texts, split_texts  # noqa: E402
from app.warp import carry_painting, show_overlay, show_painting  # noqa: E402
from engine.errors import USER_ERRORS, explain  # noqa: E402
from utils.image import ImageError  # noqa: E402
from utils.localise import LOCALISERS  # noqa: E402

STATIC = Path(__file__).parent / "static"
EXAMPLES = STATIC / "example"  # {category}_{source,target}.jpg, rendered: python -m mini.render.example
SIDES = ("source", "target")
STYLE = {  # arguments of gradio's `mount_gradio_app`: nothing that would have to be fetched
    "theme": gr.themes.Default(
        primary_hue="blue", font=("system-ui", "sans-serif"), font_mono=("ui-monospace", "monospace")
    ),
    "css_paths": [STATIC / "page.css"],
}
ASK_FOR_IMAGES = "Choose a source and a target image, or take an example."
ASK_FOR_POINTS = "Click on the source image: the same place is looked for in the target."
ASK_FOR_FEATURES = "This method matches point by point: choose another one in the settings for this tab."
WAIT = "The networks are at work; points placed meanwhile are matched after that."
REFUSALS = (ValueError, *USER_ERRORS)  # unusable images, unknown categories, places outside: told, not raised
FOLDERS = re.compile(r"(?<![^\s'\"(:=])(?:[A-Za-z]:)?[\\/](?:[^\\/\s'\"]+[\\/])+")
MAX_WAITING = 64  # requests; more are turned away
# without gradio's queue, which may lose an event that comes while it ends its answer to another
QUICK = {"queue": False, "show_progress": "hidden", "trigger_mode": "multiple", "api_visibility": "private"}
SLOW = {
    "concurrency_limit": 1,
    "concurrency_id": "networks",
    "trigger_mode": "always_last",
    "api_visibility": "private",
}


@dataclass(frozen=True)
class Choices:
    """What the page offers; it starts with the first of each."""

    network: str
    methods: Sequence[str]
    prompts: Mapping[str, int]  # name -> the timestep that suits it
    localiser: str
    max_upload_mb: int = 20


def build_page(engine: Engine, choices: Choices, photo_note: str = "", max_sessions: int = 32) -> gr.Blocks:
    """The app, to be mounted. photo_note: what is said when a photo comes that was not rendered."""
    actions = Actions(engine, photo_note, max_sessions)
    with gr.Blocks(title="SD4Match", analytics_enabled=False, fill_width=True) as page:
        gr.Markdown(
            f"## SD4Match: the same point in two photos\n**1.** Choose two images. **2.** Click on the source. "
            f"(Network: `{choices.network}`)",
            elem_id="intro",
        )
        with gr.Row():
            with gr.Column(scale=1, min_width=300):
                examples, settings = _build_controls(choices)
            with gr.Column(scale=3, min_width=300), gr.Tabs():
                with gr.Tab("Points"):
                    stage = _build_part("stage", pictures=None, max_mb=choices.max_upload_mb)
                with gr.Tab("Overlay") as tab:
                    overlay = _build_part("overlay")
                with gr.Tab("Edit") as edit:
                    painting = _build_part("painting")
                if engine.load_scorer:
                    with gr.Tab("Texts"):
                        _build_texts(actions)
        _connect_images(actions, [stage, overlay], examples, settings, choices.prompts)
        for name in ("place", "choose", "remove", "clear_points"):
            getattr(stage, name)(getattr(actions, name), None, stage, **QUICK)
        stage.swap(actions.swap, None, [stage, overlay], **QUICK)
        for event in (tab.select, overlay.refresh):
            event(actions.overlay, None, overlay, **SLOW)
        edit.select(actions.painting, None, painting, **SLOW)
        painting.carry(actions.carry, None, painting, **SLOW)
        page.unload(actions.leave)
    return page.queue(max_size=MAX_WAITING)


def list_examples() -> list[str]:
    """The categories of the example pairs."""
    return sorted(path.stem.removesuffix("_source") for path in EXAMPLES.glob("*_source.jpg"))


def _build_controls(choices: Choices) -> tuple[dict[str, gr.Button], list]:
    """Widgets: the buttons of the examples, the settings in the order of `Settings`."""
    gr.Markdown("Examples", elem_classes="caption")
    with gr.Row(elem_id="examples"):
        examples = {category: gr.Button(category, size="sm", min_width=80) for category in list_examples()}
    category = gr.Textbox(label="What do both images show? (optional)", placeholder="such as: boat", max_length=60)
    with gr.Accordion("Settings", open=False):
        method = gr.Dropdown(list(choices.methods), label="Method", interactive=True)
        prompt = gr.Dropdown(list(choices.prompts), label="Prompt", interactive=True)
        timestep = gr.Slider(0, 999, next(iter(choices.prompts.values())), step=1, label="Timestep of the noise")
        localiser = gr.Dropdown(list(LOCALISERS), value=choices.localiser, label="Localiser")
    return examples, [method, prompt, category, timestep, localiser]


def _build_texts(actions: Actions) -> None:
    """Which of some texts fits the source image."""
    texts = gr.Textbox(label="What may the source image show? One text a line.", lines=3, elem_id="texts")
    button = gr.Button("Compare", size="sm")
    found = gr.HTML(elem_id="scores")
    button.click(actions.texts, texts, found, **SLOW)


def _build_part(name: str, **props: Any) -> gr.HTML:
    """A part of the page that has its own markup, style and script in app/static."""
    markup, style, script = ((STATIC / f"{name}.{end}").read_text(encoding="utf-8") for end in ("html", "css", "js"))
    return gr.HTML(
        html_template=markup, css_template=style, js_on_load=script, apply_default_css=False, elem_id=name, **props
    )


def _connect_images(actions, parts, examples, settings, timesteps: Mapping[str, int]) -> None:
    method, prompt, category, timestep, localiser = settings
    prepare = {"fn": actions.prepare, "inputs": settings, "outputs": parts, "show_progress_on": parts[0], **SLOW}
    stage = parts[0]
    stage.photo(actions.photo, None, parts, **QUICK)
    for name, button in examples.items():
        button.click(actions.build_example(name), None, [*parts, category], **QUICK)
    refit = prompt.input(timesteps.get, prompt, timestep, **QUICK)
    for change in (stage.prepare, method.input, refit.then, localiser.input, timestep.release, category.submit):
        change(**prepare)


class Sessions(LRUCache):
    """What each browser has on its screen; the one idle for longest is forgotten first."""

    def __missing__(self, browser: str) -> Session:
        self[browser] = session = Session()
        return session


class Actions:
    """What the page's events do. Each gets the browser's request, and gives what the stage shows."""

    def __init__(self, engine: Engine, photo_note: str = "", max_sessions: int = 32) -> None:
        self.engine, self.photo_note = engine, photo_note
        self.sessions = Sessions(max_sessions)
        self._lock = threading.Lock()  # of the sessions
        self._decoding = threading.Lock()  # one at a time: large images need memory

    def photo(self, request: gr.Request, event: gr.EventData):
        """Take an image file, which comes within the event; the page then asks for `prepare`."""
        session = self._session(request)

        def receive() -> None:
            with self._decoding:
                photo = _receive(event)
            session.load(**photo)

        _, problem = self._try(receive)
        return self._show(session, problem, pictures=True), None

    def build_example(self, category: str) -> Callable:
        """The action that takes an example; the page then asks for `prepare`."""

        def example(request: gr.Request):
            session = self._session(request)
            paths = {side: EXAMPLES / f"{category}_{side}.jpg" for side in SIDES}
            session.load(**{side: open_photo(path.read_bytes(), path.name, True) for side, path in paths.items()})
            return self._show(session, pictures=True), None, category

        return example

    def prepare(
        self,
        method: str,
        prompt: str,
        category: str,
        timestep: int,
        localiser: str,
        request: gr.Request,
        progress: gr.Progress = gr.Progress(),  # noqa: B008
    ):
        """Take the settings, compute the features, match the points again."""
        session = self._session(request)
        before = session.request

        def prepare() -> None:
            session.load(settings=Settings(method, prompt, category.strip(), int(timestep or 0), localiser))
            if session.source and session.target and not session.ready:
                self.engine.prepare(session, lambda share, what: progress(share, desc=what))

        _, problem = self._try(prepare)
        return self._show(session, problem), gr.skip() if session.request == before else None

    def place(self, request: gr.Request, event: gr.EventData):
        def place(session: Session) -> None:
            self.engine.match(session, session.place(_number(event, "x"), _number(event, "y")))

        return self._change(request, place)

    def choose(self, request: gr.Request, event: gr.EventData):
        return self._change(request, lambda session: session.select(_number(event, "number")))

    def remove(self, request: gr.Request, event: gr.EventData):
        """The point of that number; the last one if the event says none."""
        return self._change(request, lambda session: session.remove(_field(event, "number")))

    def clear_points(self, request: gr.Request):
        return self._change(request, lambda session: session.clear())

    def swap(self, request: gr.Request):
        """Exchange the images; the page then asks for `prepare`."""
        session = self._session(request)
        session.swap()
        return self._show(session, pictures=True), None

    def texts(self, text: str, request: gr.Request, progress: gr.Progress = gr.Progress()):  # noqa: B008
        """How well each line of a text fits the source image."""
        session = self._session(request)

        def score() -> str:
            texts = split_texts(text)
            if session.source is None:
                raise RequestError(ASK_FOR_IMAGES)
            found, words = self.engine.score_texts(
                session.source, texts, lambda share, what: progress(share, desc=what)
            )
            return build_texts(found, texts, words)

        shown, problem = self._try(score)
        return shown or f"<p>{escape(problem)}</p>"

    def overlay(self, request: gr.Request):
        """The whole target laid over the source."""
        return self._show_pair(request, show_overlay)

    def painting(self, request: gr.Request):
        """Both images, to paint on the source."""
        return self._show_pair(request, show_painting)

    def carry(self, request: gr.Request, event: gr.EventData):
        """The target with what was painted on the source."""
        words = [_field(event, key) for key in ("data", "warp", "seen")]
        return self._show_pair(request, lambda pair: carry_painting(pair, *words))

    def _show_pair(self, request: gr.Request, show: Callable[[Any], dict]) -> dict:
        """What a tab shows of the pair, or why it shows nothing."""

        def build() -> dict:
            pair = self.engine.find_pair(self._session(request))
            if pair is None:
                raise RequestError(ASK_FOR_IMAGES)
            if pair.slow:
                raise RequestError(ASK_FOR_FEATURES)
            return show(pair)

        shown, problem = self._try(build)
        return shown or {"problem": True, "message": problem}

    def leave(self, request: gr.Request) -> None:
        with self._lock:
            self.sessions.pop(request.session_hash, None)

    def _session(self, request: gr.Request) -> Session:
        """What the browser has on its screen; nothing if it is new or was forgotten."""
        with self._lock:
            return self.sessions[request.session_hash]

    def _change(self, request: gr.Request, change: Callable[[Session], Any]):
        session = self._session(request)
        _, problem = self._try(partial(change, session))
        return self._show(session, problem)

    def _try(self, action: Callable[[], Any]) -> tuple[Any, str]:
        """What an action gives, and what to tell the user of its failure, without this machine's folders."""
        try:
            return action(), ""
        except REFUSALS as error:
            return None, FOLDERS.sub("", explain(error))

    def _show(self, session: Session, problem: str = "", pictures: bool = False):
        """The stage's value, and its pictures if they may have changed."""
        heat, failure = self._try(partial(self.engine.heat, session))
        with session.lock:
            photos = (session.source, session.target)
            note = "" if all(p is None or p.rendered for p in photos) else self.photo_note
            value = describe_session(session, heat, problem or failure, note)
        if not pictures:
            return value
        return gr.update(value=value, pictures=dict(zip(SIDES, map(describe, photos), strict=True)))


def _field(event: gr.EventData, key: str) -> Any:
    """What an event says of `key`; None if it does not."""
    return event._data.get(key) if isinstance(event._data, dict) else None


def _number(event: gr.EventData, key: str) -> float:
    """NaN if the event has no such number."""
    value = _field(event, key)
    return value if isinstance(value, int | float) and abs(value) < 1e9 else math.nan


def _receive(event: gr.EventData) -> dict[str, Photo]:
    """The photo whose file's bytes and name an event brings, as the source or the target."""
    side, name, data = (_field(event, key) for key in ("side", "name", "data"))
    if side not in SIDES or not isinstance(name, str) or not isinstance(data, str):
        raise ImageError("the image did not arrive; choose it again")
    try:
        content = base64.b64decode(data, validate=True)
    except ValueError:
        raise ImageError("the image did not arrive; choose it again") from None
    return {side: open_photo(content, re.sub(r"[^\w .()+-]", "_", name)[-80:] or "the image")}


def describe_session(session: Session, heat: dict | None, problem: str, note: str) -> dict:
    """What the stage shows of a session: numbered points, the selected one's heat map, and a line of text."""
    return {
        "session": session.name,
        "revision": session.next_revision(),
        "ready": session.ready,
        "points": [asdict(point) for point in session.points],
        "selected": session.selected,
        "settings": session.settings and asdict(session.settings),
        "heat": heat,
        "message": problem or say(session),
        "problem": bool(problem),
        "note": note,
    }


def say(session: Session) -> str:
    """What to do next, or what was found last."""
    point = session.find(session.selected)
    if not (session.source and session.target):
        return ASK_FOR_IMAGES
    if not session.ready:
        return WAIT
    if point is None or point.found is None:
        return ASK_FOR_POINTS
    places = [f"({x:.1f}, {y:.1f})" for x, y in ((point.x, point.y), point.found)]
    return f"Point {point.number} at {places[0]} is found at {places[1]}, confidence {point.confidence:.0%}."
