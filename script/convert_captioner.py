"""Take the implicit captioner out of ODISE's checkpoint: eight tensors, 1 MB of 1 GB, for FEATURES.CAPTIONER.

    python script/convert_captioner.py odise_label_coco_50e-b67d2efc.pth captioner.safetensors

The checkpoint is read as plain tensors, nothing of it is run. ODISE's weights are under NVIDIA's non-commercial source
licence, and so is the file.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from engine.entry import entry_point


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="ODISE's .pth file")
    parser.add_argument("output", help="the .safetensors file to write")
    return parser.parse_args()


@entry_point()
def main() -> None:
    args = parse_args()
    if not args.output.endswith(".safetensors"):
        raise SystemExit("the output must end in .safetensors")
    from model.backbone.captioner import read_captioner
    from utils.store import write_tensors

    tensors = read_captioner(args.checkpoint)
    write_tensors(args.output, tensors, {"made_of": Path(args.checkpoint).name})
    for name, value in tensors.items():
        print(f"{name:<45} {tuple(value.shape)}")
    print(f"written: {args.output}")


if __name__ == "__main__":
    sys.exit(main())
