"""Convert a post-processor of GeoAware-SC: the authors' .PTH to this project's folder, or back.

    python script/convert_geoaware.py best_856.PTH --name geoaware_spair
    python test.py --config_file config/spair/geoaware.yaml METHOD.WEIGHTS geoaware_spair
    python script/convert_geoaware.py geoaware_spair --output best_856.PTH

The first writes OUTPUT_ROOT/prompt/{name}/ (weights.safetensors, README.md), the last a state dict that the authors'
code loads. A file is read as plain tensors, nothing of it is run, and must hold the 48 tensors of the network (20.6 MB)
and nothing else.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from config import ConfigError, load_config, resolve_path
from engine.argument import file_name
from engine.entry import entry_point


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", help="the authors' file, or the folder of a post-processor or its name")
    parser.add_argument("--name", type=file_name, help="of the folder; default: geoaware_{the file's name}")
    parser.add_argument("--output", help="the .PTH file to write instead")
    parser.add_argument("--config_file", help="YAML file that gives OUTPUT_ROOT; default: config/default.py as it is")
    return parser.parse_args()


def read_head(path: Path) -> dict:
    """The 48 tensors of the authors' file; StoreError in one line if they are others."""
    from torch import Tensor

    from model.head import AggregationNetwork
    from utils.store import StoreError, read_released, require_finite

    content = read_released(path)
    is_state = isinstance(content, dict) and all(isinstance(value, Tensor) for value in content.values())
    found = {name: value.float() for name, value in content.items()} if is_state else {}
    wanted = AggregationNetwork().state_dict()
    wrong = [f"it lacks {name}" for name in wanted if name not in found]
    wrong += [f"{name} is unknown" for name in found if name not in wanted]
    wrong += [
        f"{name} is {tuple(value.shape)}, not {tuple(wanted[name].shape)}"
        for name, value in found.items()
        if name in wanted and value.shape != wanted[name].shape
    ]
    if wrong:
        more = f" and {len(wrong) - 3} more" * (len(wrong) > 3)
        raise StoreError(
            f"{path} is no post-processor of GeoAware-SC for s3, s4, s5 and ViT-B ({'; '.join(wrong[:3])}{more}); "
            "take the authors' best_856.PTH or last.PTH"
        )
    require_finite(found)
    return found


def to_folder(path: Path, folder: Path) -> None:
    from model.method.base import WEIGHTS_FILE
    from utils.store import file_digest, write_tensors, write_text

    tensors, made_of = read_head(path), {"file": path.name, "sha256": file_digest(path)}
    write_tensors(folder / WEIGHTS_FILE, tensors, {"made_of": made_of}, durable=True)
    write_text(folder / "README.md", format_card(folder.name, made_of))
    print(f"written: {folder}/{WEIGHTS_FILE}, README.md; test it with METHOD.WEIGHTS {folder.name}")


def format_card(name: str, made_of: dict[str, str]) -> str:
    return (
        "---\ntags: [semantic-correspondence, geoaware]\n---\n\n"
        f"# {name}\n\n"
        "The post-processor of GeoAware-SC ([CVPR 2024](https://arxiv.org/abs/2311.17034)): maps of Stable Diffusion\n"
        "1-5 (s3, s4, s5) and of DINOv2 ViT-B/14 in, 768 channels of descriptors out. The authors' weights, converted\n"
        f"from `{made_of['file']}` (sha256 {made_of['sha256']}); they published no licence for them.\n\n"
        f"```sh\npython test.py --config_file config/spair/geoaware.yaml METHOD.WEIGHTS {name}\n```\n"
    )


def to_release(folder: Path, output: Path) -> None:
    import torch

    from model.method.base import WEIGHTS_FILE
    from utils.store import atomic_path, read_tensors

    if not (folder / WEIGHTS_FILE).is_file():
        raise ConfigError(f"{folder} holds no {WEIGHTS_FILE}: name the folder of a post-processor")
    tensors, _ = read_tensors(folder / WEIGHTS_FILE)
    with atomic_path(output) as temporary:
        torch.save(tensors, temporary)
    print(f"written: {output}")


@entry_point()
def main() -> None:
    args = parse_args()
    root = Path(resolve_path(load_config(args.config_file).OUTPUT_ROOT)) / "prompt"
    source = Path(args.weights)
    if args.output:
        to_release(source if source.is_dir() else root / args.weights, Path(args.output))
    elif source.is_file():
        to_folder(source, root / (args.name or f"geoaware_{source.stem}"))
    else:
        raise ConfigError(f"{source}: no such file; --output FILE.PTH goes from a folder to a file")


if __name__ == "__main__":
    sys.exit(main())
