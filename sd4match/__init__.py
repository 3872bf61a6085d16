"""Semantic correspondence between two photos, with a frozen Stable Diffusion UNet and learnable prompts.

    from sd4match import Matcher

    matcher = Matcher.from_pretrained("mini")
    pair = matcher.pair("a.jpg", "b.jpg", category="dog")
    found = pair.match([(120, 80), (300, 200)])
    found.points, found.confidence

Nothing heavy is imported before a name is used. docs/api.md explains all of it.
"""

import importlib
import importlib.util
import sys
from pathlib import Path

ROOT = str(Path(__file__).resolve().parents[1])
if ROOT not in sys.path:
    sys.path.append(ROOT)


def _refuse_namesakes() -> None:
    """Raise ImportError if a top-level package of this checkout is hidden by another one of its name."""
    for name in ("app", "config", "dataset", "loss", "model", "utils"):
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None or str(Path(spec.origin).resolve().parents[1]) != ROOT:
            found = "nothing" if spec is None else spec.origin or list(spec.submodule_search_locations or ())
            raise ImportError(
                f"sd4match needs its own package {name!r} of {ROOT}, but Python finds {found}: rename the other one, "
                "or start Python from another folder"
            )


_refuse_namesakes()

_HOMES = {
    "ImageError": "utils.image",
    "ImageFeatures": "sd4match.matcher",
    "LearnedPrompt": "sd4match.prompt",
    "Matcher": "sd4match.matcher",
    "Matches": "sd4match.pair",
    "Pair": "sd4match.pair",
    "PointError": "sd4match.error",
}
__all__ = list(_HOMES)


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
