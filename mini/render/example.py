"""Write the browser app's example pairs, of instances that no network has seen: python -m mini.render.example"""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from mini.render.categories import CATEGORIES
from mini.render.render import instance_seed, render_scene

FOLDER = Path(__file__).resolve().parents[2] / "app" / "static" / "example"
SHOWN = ("boat", "car", "dog", "chair", "person", "aeroplane")
SIZES = {"source": (240, 320), "target": (320, 280)}  # (H, W)


def main() -> None:
    """One pair of each of some categories as {category}_{source,target}.jpg; pictures of others are removed."""
    FOLDER.mkdir(exist_ok=True)
    for path in FOLDER.glob("*.jpg"):
        path.unlink()
    for category in (name for name in SHOWN if name in CATEGORIES):
        for number, (side, size) in enumerate(SIZES.items()):
            seed = instance_seed("test", category, number)
            scene = render_scene(seed, (category,), size, occlude=0, truncate=0, scale=(0.7, 0.9))
            Image.fromarray(scene.image).save(FOLDER / f"{category}_{side}.jpg", quality=90, optimize=True)


if __name__ == "__main__":
    main()
