"""Semantic correspondence between two photos, with a frozen Stable Diffusion UNet and learnable prompts.

    from sd4match import Matcher

    matcher = Matcher.from_pretrained("mini")
    pair = matcher.pair("a.jpg", "b.jpg", category="dog")
    found = pair.match([(120, 80), (300, 200)])
    found.points, found.confidence

Nothing heavy is imported before a name is used. docs/api.md explains all of it.
"""

import importlib
import sys
from pathlib import Path

ROOT = str(Path(__file__).resolve().parents[1])
if ROOT not in sys.path:
    sys.path.append(ROOT)

_HOMES = {
    "ImageError": "utils.image",
    "ImageFeatures": "sd4match.matcher",
    "LearnedPrompt": "sd4match.prompt",
    "Matcher": "sd4match.matcher",
    "Matches": "sd4match.pair",
    "Pair": "sd4match.pair",
    "PointError": "sd4match.pair",
}
__all__ = list(_HOMES)


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
