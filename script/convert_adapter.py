"""Bring an adapter that others made into a folder of ours, from which test.py and score_text.py run it.

    python script/convert_adapter.py pytorch_model.bin asset/sd4match/prompt/dsd_release
    python test.py --config_file config/refcocog/dsd.yaml METHOD.WEIGHTS dsd_release

Reads DSD's pytorch_model.bin, and pytorch_lora_weights.safetensors or adapter_model.safetensors of diffusers or peft.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from engine.entry import entry_point


@entry_point()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="the file, or its folder")
    parser.add_argument("folder", type=Path, help="that receives it, below OUTPUT_ROOT/prompt")
    args = parser.parse_args()

    from model.adapter import export_adapter, read_published
    from model.method.base import WEIGHTS_FILE
    from utils.store import write_tensors

    tensors = read_published(args.source)
    write_tensors(args.folder / WEIGHTS_FILE, tensors, {"imported": args.source.name})
    export_adapter(args.folder, tensors, "")
    print(f"{len(tensors)} matrices, {sum(value.numel() for value in tensors.values()):,} numbers: {args.folder}")


if __name__ == "__main__":
    sys.exit(main())
