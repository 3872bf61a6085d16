"""Match points between two photos in the browser.

    python demo.py                                     # the embedded mini networks; open http://127.0.0.1:7860
    python demo.py --network sd2-1 --device cuda       # Stable Diffusion 2-1, downloaded on first use
    python demo.py --network /path/to/a/diffusers/folder

Offers the text and the empty prompt, and the learned prompts of this network in OUTPUT_ROOT/prompt. docs/demo.md
explains the page.
"""

import argparse
import importlib.util
import logging
import socket
import sys
from pathlib import Path

from engine.argument import positive
from engine.entry import entry_point, tell
from sd4match.error import build_parser, in_flags

INSTALL = "the app needs the package gradio: pip install gradio"
PATIENCE = 2  # seconds that a page which is still open may hold up the end


def parse_args() -> argparse.Namespace:
    parser = build_parser(__doc__, "demo.py", "sd4match-demo")
    parser.add_argument("--network", default="mini", help='"mini", "sd2-1", a diffusers folder or hub id')
    parser.add_argument("--method", help="the first method offered, such as geoaware; default: sd4match")
    parser.add_argument("--weights", help="its learned weights other than prompts: a folder, or its name")
    parser.add_argument("--prompt", help="the first prompt offered: text, empty or a learned prompt; default: text")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...; default: %(default)s")
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 lets other machines in; default: %(default)s")
    parser.add_argument("--port", type=int, default=7860, help="0 takes a free one; default: %(default)s")
    parser.add_argument("--max_upload_mb", type=positive, default=20, help="largest image file; default: %(default)s")
    parser.add_argument("--max_sessions", type=positive, default=32, help="browsers remembered; default: %(default)s")
    parser.add_argument("--max_pairs", type=positive, default=16, help="pairs kept in memory; default: %(default)s")
    parser.add_argument("--open", action="store_true", help="open the page in a browser")
    args = parser.parse_args()
    if not 0 <= args.port < 65536:
        parser.error(f"--port must be in 0..65535, got {args.port}")
    return args


def find_choices(cfg, network: str, max_upload_mb: int = 20):
    """What the page offers, first what the config of the loaded matcher says."""
    from app.page import Choices
    from config import load_config, resolve_path
    from model.method import METHODS
    from model.prompt.name import BASELINES
    from model.prompt.store import list_prompts
    from sd4match.source import find_settings, is_prompt

    learned = list_prompts(Path(resolve_path(cfg.OUTPUT_ROOT)) / "prompt")
    others = [*BASELINES, *(name for name in learned if f"_{cfg.NETWORK.NAME}_" in name)]
    prompts = {cfg.PROMPT.TYPE: cfg.TEST.TIMESTEP}
    for name in others if not is_prompt(network) else ():
        found = find_settings(network, name)
        prompts.setdefault(name, load_config(found.config_file, overrides=found.settings).TEST.TIMESTEP)
    task = METHODS[cfg.METHOD.NAME].task
    others = [name for name, entry in METHODS.items() if entry.task == task]
    files = {name: resolve_path(find_settings(network, None, name).config_file) for name in others}
    methods = dict.fromkeys([cfg.METHOD.NAME, *(name for name in others if Path(files[name]).is_file())])
    return Choices(Path(network).name, list(methods), prompts, cfg.EVAL.PICTURE_LOCALISER, max_upload_mb)


def build_engine(args: argparse.Namespace, first):
    """What answers the page's questions: with `first`, and with other methods' matchers, loaded when asked for."""
    from app.engine import Engine
    from sd4match import Matcher, Scorer

    loaded = {first.config.METHOD.NAME: first}

    def load(method: str) -> Matcher:
        ready = loaded.pop(method, None)
        return ready or Matcher.from_pretrained(args.network, args.prompt, args.device, method=method)

    def load_scorer() -> Scorer:
        return Scorer.from_pretrained(args.network, None, args.device)

    return Engine(load, max_pairs=args.max_pairs, load_scorer=load_scorer)


def build_app(args: argparse.Namespace):
    """The page and what stands before it, an ASGI application."""
    from fastapi import FastAPI

    from app.guard import Guard
    from app.page import STYLE, build_page, gr
    from sd4match import Matcher
    from sd4match.source import MINI_NOTE

    first = Matcher.from_pretrained(args.network, args.prompt, args.device, method=args.method, weights=args.weights)
    logging.getLogger("sd4match").setLevel(logging.ERROR)  # the page itself says what mini is good for
    choices = find_choices(first.config, args.network, args.max_upload_mb)
    note = "" if first.knows_photos else MINI_NOTE
    page = build_page(build_engine(args, first), choices, note, args.max_sessions)
    plain = {"show_error": False, "ssr_mode": False, "footer_links": [], "run_history": False}
    app = gr.mount_gradio_app(FastAPI(openapi_url=None), page, "/", **plain, **STYLE)
    return Guard(app, args.host, max_body=args.max_upload_mb * 2**20 * 4 // 3 + 2**16)  # base64, and what is around it


def serve(args: argparse.Namespace) -> None:
    """Load the networks, then show the page until Ctrl-C or SIGTERM. Nothing is written to the disk."""
    import uvicorn

    family = socket.AF_INET6 if ":" in args.host else socket.AF_INET
    with socket.create_server((args.host, args.port), family=family) as listener:  # before anything slow
        print(f"loading {args.network} ...", file=sys.stderr)
        app = build_app(args)
        url = f"http://{f'[{args.host}]' if ':' in args.host else args.host}:{listener.getsockname()[1]}"
        print(f"open {url} (Ctrl-C stops)", file=sys.stderr)
        if args.open:
            import webbrowser

            webbrowser.open(url)
        config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=PATIENCE)
        uvicorn.Server(config).run(sockets=[listener])


@entry_point()
def main() -> int:
    args = parse_args()
    if importlib.util.find_spec("gradio") is None:
        tell(INSTALL)
        return 2
    with in_flags(args):
        serve(args)
    return 0
