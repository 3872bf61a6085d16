"""Convert a learned prompt between the release's files and this project's own prompt folder.

    python script/convert_prompt.py CPM_spair_sd2-1_Pair-DINO-Feat-G25-C50
    python script/convert_prompt.py FOLDER --to release --output asset/sd4match/prompt

The own format is prompt.safetensors, prompt.json (what the prompt belongs to), metrics.json (validation, and the tests
that were run beside the prompt), config.yaml (of its training, if known) and README.md (a model card). The release's is
ckpt.pt or caption.pt. test.py takes both. Nothing but the prompt's own files is needed, no network.
"""

import argparse
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from config import ConfigError, load_config, resolve_path
from engine.entry import entry_point


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
    from engine.export import read_metrics, write_own
    from model.prompt.store import META_FILE, read_prompt, tensor_file, write_prompt

    stored = read_prompt(source, name)
    target = output / str(stored.name)
    if target.resolve() == source.resolve():
        raise ConfigError(f"{target} is the prompt itself; choose another --output")
    written = [tensor_file(stored.name, form), META_FILE]
    if form == "own":
        written += write_own(target, stored, read_metrics(source, stored))
    else:
        write_prompt(target, stored, form)
    if (source / "config.yaml").is_file():
        shutil.copyfile(source / "config.yaml", target / "config.yaml")
        written.append("config.yaml")
    print(f"{stored.name}: written {', '.join(written)} in {target}")
    return target


@entry_point()
def main() -> None:
    args = parse_args()
    root = Path(resolve_path(load_config(args.config_file).OUTPUT_ROOT))
    source = Path(args.prompt)
    source = source if source.is_dir() else root / "prompt" / args.prompt
    output = Path(args.output) if args.output else root / "export"
    convert(source, output, args.to, args.name)


if __name__ == "__main__":
    sys.exit(main())
