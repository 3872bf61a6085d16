"""The page of the app: what is on it, and what each action does."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read while gradio is imported

import gradio as gr  # noqa: E402

from app.engine import Engine  # noqa: E402
from app.example import Example  # noqa: E402
from app.overlay import build_overlay  # noqa: E402
from app.photo import Photo, describe, open_photo  # noqa: E402
from app.session import Session, Settings  # noqa: E402
from app.store import Latest  # noqa: E402
from engine.errors import USER_ERRORS, explain  # noqa: E402
from utils.localise import LOCALISERS  # noqa: E402

STATIC = Path(__file__).parent / "static"
FONTS = ("system-ui", "sans-serif")
ASK_FOR_IMAGES = "Choose a source and a target image, or take an example."
ASK_FOR_POINTS = "Click on the source image: the same place is looked for in the target."
WAIT = "The features are being computed; points placed meanwhile are matched as soon as they are known."
REFUSALS = (ValueError, *USER_ERRORS)  # unusable images, unknown categories, places outside: told, not raised
KEEP_FILES = (3600, 6 * 3600)  # seconds: how often uploads are looked through, and how old they may get
QUICK = {"show_progress": "hidden", "concurrency_limit": 8, "trigger_mode": "multiple", "api_visibility": "private"}
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


def build_page(engine: Engine, choices: Choices, examples: Sequence[Example], max_sessions: int = 32) -> gr.Blocks:
    """The app, to be launched."""
    actions = Actions(engine, Latest(max_sessions))
    with gr.Blocks(title="SD4Match", analytics_enabled=False, delete_cache=KEEP_FILES, fill_width=True) as page:
        gr.Markdown(
            f"## SD4Match: the same point in two photos\n**1.** Choose two images. **2.** Click on the source. "
            f"(Network: `{choices.network}`)",
            elem_id="intro",
        )
        with gr.Row():
            with gr.Column(scale=1, min_width=300):
                images, buttons, settings = _build_controls(choices, examples)
            with gr.Column(scale=3, min_width=300), gr.Tabs():
                with gr.Tab("Points"):
                    stage = _build_part("stage", pictures=None)
                with gr.Tab("Overlay") as tab:
                    overlay = _build_part("overlay")
        _connect_images(actions, images, [stage, overlay], buttons, examples, settings, choices.prompts)
        _connect_points(actions, stage, [*images, stage, overlay])
        for event in (tab.select, overlay.refresh):
            event(actions.overlay, None, overlay, **SLOW)
        page.unload(actions.leave)
    return page


def build_style() -> dict[str, Any]:
    """Arguments of `launch`: nothing that would have to be fetched."""
    fonts = {"font": FONTS, "font_mono": ("ui-monospace", "monospace")}
    return {"theme": gr.themes.Default(primary_hue="blue", **fonts), "css_paths": [STATIC / "page.css"]}


def _build_controls(choices: Choices, examples: Sequence[Example]) -> tuple[list, list, list]:
    """Widgets: the two images, the buttons of the examples, the settings in the order of `Settings`."""
    with gr.Row(elem_id="inputs"):
        images = [_build_image_input(name) for name in ("Source", "Target")]
    gr.Markdown("Examples", elem_classes="caption")
    with gr.Row(elem_id="examples"):
        buttons = [gr.Button(example.category, size="sm", min_width=80) for example in examples]
    category = gr.Textbox(label="What do both images show? (optional)", placeholder="such as: boat", max_length=60)
    with gr.Accordion("Settings", open=False):
        method = gr.Dropdown(list(choices.methods), label="Method", interactive=True)
        prompt = gr.Dropdown(list(choices.prompts), label="Prompt", interactive=True)
        timestep = gr.Slider(0, 999, next(iter(choices.prompts.values())), step=1, label="Timestep of the noise")
        localiser = gr.Dropdown(list(LOCALISERS), value=choices.localiser, label="Localiser")
    return images, buttons, [method, prompt, category, timestep, localiser]


def _build_image_input(name: str) -> gr.Image:
    """Gives the path of what was uploaded, whatever it is: our own message refuses a file that is no image."""
    image = gr.Image(
        label=name,
        sources=["upload", "webcam", "clipboard"],
        type="filepath",
        height=180,
        min_width=130,
        buttons=[],
        placeholder=f"Drop or choose the {name.lower()} image",
        elem_id=f"{name.lower()}-input",
    )
    image.preprocess = lambda payload: payload.path if payload else None
    return image


def _build_part(name: str, **props: Any) -> gr.HTML:
    """A part of the page that has its own markup, style and script in app/static."""
    markup, style, script = ((STATIC / f"{name}.{end}").read_text(encoding="utf-8") for end in ("html", "css", "js"))
    return gr.HTML(
        html_template=markup, css_template=style, js_on_load=script, apply_default_css=False, elem_id=name, **props
    )


def _connect_images(actions, images, parts, buttons, examples, settings, timesteps: Mapping[str, int]) -> None:
    method, prompt, category, timestep, localiser = settings
    prepare = {
        "fn": actions.prepare,
        "inputs": [*images, *settings],
        "outputs": parts,
        "show_progress_on": parts[0],
        **SLOW,
    }
    changes = [
        *(image.change for image in images),
        method.input,
        prompt.input(timesteps.get, prompt, timestep, **QUICK).then,
        localiser.input,
        timestep.release,
        category.submit,
    ]
    for change in changes:
        change(**prepare)
    for button, example in zip(buttons, examples, strict=True):
        values = (example.source, example.target, example.category)
        button.click(partial(list, values), None, [*images, category], **QUICK)  # the images' change does the rest


def _connect_points(actions, stage, all_parts) -> None:
    stage.place(actions.place, None, stage, **QUICK)
    stage.choose(actions.choose, None, stage, **QUICK)
    stage.remove(actions.remove, None, stage, **QUICK)
    stage.undo(actions.undo, None, stage, **QUICK)
    stage.clear_points(actions.clear, None, stage, **QUICK)
    stage.swap(actions.swap, None, all_parts, **QUICK)


class Actions:
    """What the page's events do. Each gets the browser's request, and gives what the stage shows."""

    def __init__(self, engine: Engine, sessions: Latest[Session]) -> None:
        self.engine, self.sessions = engine, sessions

    def prepare(
        self,
        source: str | None,
        target: str | None,
        method: str,
        prompt: str,
        category: str,
        timestep: int,
        localiser: str,
        request: gr.Request,
        progress: gr.Progress = gr.Progress(),  # noqa: B008
    ):
        """Take images and settings, compute the features, match the points again."""
        session = self._session(request)
        settings = Settings(method, prompt, category.strip(), int(timestep or 0), localiser)
        photos, problem = [], ""
        for path in (source, target):
            photo, refusal = self._open(path)
            photos.append(photo)
            problem = problem or refusal
        changed = session.load(*photos, settings)
        if all(photos) and not session.ready:
            problem = self._try(lambda: self.engine.prepare(session, lambda share, what: progress(share, desc=what)))
        return self._show(session, problem, pictures=changed), None if changed else gr.skip()

    def place(self, request: gr.Request, event: gr.EventData):
        return self._change(request, lambda session: self._place(session, float(event.x), float(event.y)))

    def choose(self, request: gr.Request, event: gr.EventData):
        return self._change(request, lambda session: session.select(int(event.number)))

    def remove(self, request: gr.Request, event: gr.EventData):
        return self._change(request, lambda session: session.remove(int(event.number)))

    def undo(self, request: gr.Request):
        return self._change(request, lambda session: session.remove())

    def clear(self, request: gr.Request):
        return self._change(request, lambda session: session.clear())

    def swap(self, request: gr.Request):
        session = self._session(request)
        session.swap()
        problem = self._try(lambda: session.ready and self.engine.prepare(session))
        paths = [photo.path if photo else None for photo in (session.source, session.target)]
        return *paths, self._show(session, problem, pictures=True), None

    def overlay(self, request: gr.Request):
        """The whole target laid over the source."""
        session = self._session(request)
        try:
            pair = self.engine.find_pair(session)
            shown = pair and build_overlay(pair)
        except REFUSALS as error:
            return {"problem": True, "message": explain(error)}
        if not shown:
            return {"problem": True, "message": ASK_FOR_IMAGES}
        return shown | {"message": f"{shown['share']:.0%} of the source is matched both ways."}

    def leave(self, request: gr.Request) -> None:
        self.sessions.drop(request.session_hash)

    def _session(self, request: gr.Request) -> Session:
        """What the browser has on its screen; nothing if it is new or was forgotten."""
        return self.sessions.find_or_make(request.session_hash, Session)

    def _open(self, path: str | None) -> tuple[Photo | None, str]:
        """A photo, or what is wrong with the file."""
        try:
            return (open_photo(path) if path else None), ""
        except REFUSALS as error:
            return None, explain(error)

    def _place(self, session: Session, x: float, y: float) -> None:
        self.engine.match(session, session.place(x, y))

    def _change(self, request: gr.Request, change: Callable[[Session], Any]):
        session = self._session(request)
        return self._show(session, self._try(partial(change, session)))

    def _try(self, action: Callable[[], Any]) -> str:
        """What to tell the user of an action's failure, or nothing."""
        try:
            action()
        except REFUSALS as error:
            return explain(error)
        return ""

    def _show(self, session: Session, problem: str = "", pictures: bool = False):
        """The stage's value, and its pictures if they may have changed."""
        with session.lock:
            heat = None
            try:
                heat = self.engine.heat(session)
            except REFUSALS as error:
                problem = problem or explain(error)
            value = describe_session(session, heat, problem)
            shown = (session.source, session.target)
        if not pictures:
            return value
        return gr.update(value=value, pictures=dict(zip(("source", "target"), map(describe, shown), strict=True)))


def describe_session(session: Session, heat: dict | None, problem: str) -> dict:
    """What the stage shows of a session: numbered points, the selected one's heat map, and a line of text."""
    return {
        "session": session.name,
        "revision": session.next_revision(),
        "ready": session.ready,
        "points": [
            {"number": p.number, "x": p.x, "y": p.y, "found": p.found, "confidence": p.confidence}
            for p in session.points
        ],
        "selected": session.selected,
        "settings": session.settings and asdict(session.settings),
        "heat": heat,
        "message": problem or say(session),
        "problem": bool(problem),
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
