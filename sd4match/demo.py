"""Match points between two photos in the browser.

    python demo.py                                     # the embedded mini networks; open http://127.0.0.1:7860
    python demo.py --network sd2-1 --device cuda       # Stable Diffusion 2-1, downloaded on first use
    python demo.py --network /path/to/a/diffusers/folder

Offers the text and the empty prompt, and the learned prompts of this network in OUTPUT_ROOT/prompt. docs/demo.md
explains the page.
"""

import argparse
import importlib.util
import sys
import tempfile
from pathlib import Path

from engine.entry import entry_point, tell

INSTALL = "the app needs the package gradio: pip install -r requirements-app.txt"


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="mini", help='"mini", "sd2-1", a diffusers folder or hub id')
    parser.add_argument("--prompt", help="the first prompt offered: text, empty or a learned prompt; default: text")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...; default: %(default)s")
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 lets other machines in; default: %(default)s")
    parser.add_argument("--port", type=int, default=7860, help="default: %(default)s")
    parser.add_argument("--max_upload_mb", type=int, default=20, help="largest image file; default: %(default)s")
    parser.add_argument("--max_sessions", type=int, default=32, help="browsers remembered; default: %(default)s")
    parser.add_argument("--max_pairs", type=int, default=16, help="pairs whose features are kept; default: %(default)s")
    parser.add_argument("--open", action="store_true", help="open the page in a browser")
    args = parser.parse_args()
    for name in ("max_upload_mb", "max_sessions", "max_pairs"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(args, name)}")
    return args


def find_choices(cfg, network: str):
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
    methods = dict.fromkeys([cfg.METHOD.NAME, *METHODS])
    return Choices(network, list(methods), prompts, cfg.EVAL.PICTURE_LOCALISER)


def build_engine(args: argparse.Namespace, first):
    """What answers the page's questions: with `first`, and with other methods' matchers, loaded when asked for."""
    from app.engine import Engine
    from sd4match import Matcher

    loaded = {first.config.METHOD.NAME: first}

    def load(method: str) -> Matcher:
        ready = loaded.pop(method, None)
        return ready or Matcher.from_pretrained(args.network, args.prompt, args.device, method=method)

    return Engine(load, max_pairs=args.max_pairs)


def serve(args: argparse.Namespace) -> None:
    """Load the networks, then show the page until Ctrl-C."""
    from app.example import render_examples
    from app.page import build_page, build_style
    from sd4match import Matcher

    print(f"loading {args.network} ...", file=sys.stderr)
    first = Matcher.from_pretrained(args.network, args.prompt, args.device)
    choices = find_choices(first.config, args.network)
    with tempfile.TemporaryDirectory(prefix="sd4match-") as folder:
        page = build_page(build_engine(args, first), choices, render_examples(Path(folder)), args.max_sessions)
        page.launch(
            quiet=True,
            prevent_thread_lock=True,
            server_name=args.host,
            server_port=args.port,
            share=False,
            inbrowser=args.open,
            **build_style(),
            max_file_size=args.max_upload_mb * 2**20,
            allowed_paths=[folder],
            ssr_mode=False,
            footer_links=[],
        )
        print(f"open http://{args.host}:{args.port} (Ctrl-C stops)", file=sys.stderr)
        page.block_thread()


@entry_point()
def main() -> int:
    args = parse_args()
    if importlib.util.find_spec("gradio") is None:
        tell(INSTALL)
        return 2
    serve(args)
    return 0
