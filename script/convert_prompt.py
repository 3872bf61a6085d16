"""Convert a learned prompt between the release's files and this project's own prompt folder.

    python script/convert_prompt.py CPM_spair_sd2-1_Pair-DINO-Feat-G25-C50
    python script/convert_prompt.py FOLDER --to release --output asset/sd4match/prompt

The own format is prompt.safetensors, prompt.json (what the prompt belongs to), metrics.json (validation, and the tests
that were run beside the prompt), config.yaml (of its training, if known) and README.md (a model card). The release's is
ckpt.pt or caption.pt. test.py takes both. Nothing but the prompt's own files is needed, no network.
"""

import argparse
import json
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from config import ConfigError, load_config, resolve_path  # noqa: E402


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prompt", help="a prompt's folder, or its name in OUTPUT_ROOT/prompt")
    parser.add_argument("--to", choices=("own", "release"), default="own", help="default: %(default)s")
    parser.add_argument(
        "--output", help="folder that receives a folder of the prompt's name; default: OUTPUT_ROOT/export"
    )
    parser.add_argument("--name", help="the prompt's name, if its folder is not called so")
    parser.add_argument("--config_file", help="YAML file that gives OUTPUT_ROOT; default: config/default.py as it is")
    return parser.parse_args()


def convert(source: Path, output: Path, form: str, name: str | None) -> Path:
    """Write the prompt in `source` to output/NAME in the format; returns that folder."""
    from model.prompt.store import META_FILE, read_prompt, tensor_file, write_prompt

    stored = read_prompt(source, name)
    target = output / str(stored.name)
    if target.resolve() == source.resolve():
        raise ConfigError(f"{target} is the prompt itself; choose another --output")
    write_prompt(target, stored, form)
    written = [tensor_file(stored.name, form), META_FILE]
    if (source / "config.yaml").is_file():
        shutil.copyfile(source / "config.yaml", target / "config.yaml")
        written.append("config.yaml")
    if form == "own":
        written += write_description(source, target, stored)
    print(f"{stored.name}: written {', '.join(written)} in {target}")
    return target


def write_description(source: Path, target: Path, stored) -> list[str]:
    """metrics.json and the model card; their names."""
    from model.prompt.card import format_card
    from utils.result import write_text

    metrics = read_metrics(source, stored)
    write_text(target / "metrics.json", json.dumps(metrics, indent=2, allow_nan=False) + "\n")
    write_text(target / "README.md", format_card(stored, metrics))
    return ["metrics.json", "README.md"]


def read_metrics(source: Path, stored) -> dict:
    """The validation that chose the prompt, and the summary of every test beside it."""
    known = source / "metrics.json"
    metrics = read_json(known) if known.is_file() else {}
    if validation := stored.meta.get("metrics", {}).get("validation"):
        metrics["validation"] = validation
    tests = {path.stem: read_json(path)["summary"] for path in sorted(source.glob("*_result_*.json"))}
    return {**metrics, "tests": {**metrics.get("tests", {}), **tests}}


def read_json(path: Path) -> dict:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{path} is corrupt ({error}); delete it, or write it again") from error


def main() -> int:
    args = parse_args()
    from utils.errors import USER_ERRORS, explain

    try:
        root = Path(resolve_path(load_config(args.config_file).OUTPUT_ROOT))
        source = Path(args.prompt)
        source = source if source.is_dir() else root / "prompt" / args.prompt
        output = Path(args.output) if args.output else root / "export"
        convert(source, output, args.to, args.name)
    except USER_ERRORS as error:
        print(f"convert_prompt.py: {explain(error)}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
