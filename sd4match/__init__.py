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

PACKAGES = ("app", "config", "dataset", "engine", "loss", "model", "utils")
HERE = Path(__file__).resolve().parent


def _use_checkout(root: str) -> None:
    """Make the packages beside this one importable. ImportError if another one of the same name hides one of them."""
    if root not in sys.path:
        sys.path.append(root)
    for name in PACKAGES:
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None or str(Path(spec.origin).resolve().parents[1]) != root:
            found = "nothing" if spec is None else spec.origin or list(spec.submodule_search_locations or ())
            raise ImportError(
                f"sd4match needs its own package {name!r} of {root}, but Python finds {found}: rename the other one, "
                "start Python from another folder, or install sd4match without -e"
            )


if not (HERE / "config").is_dir():  # the installed package holds them all
    _use_checkout(str(HERE.parent))

_HOMES = {
    "CategoryError": "sd4match.error",
    "Features": "sd4match.featurizer",
    "Featurizer": "sd4match.featurizer",
    "Flow": "sd4match.flow",
    "ImageError": "sd4match.matcher",
    "ImageFeatures": "sd4match.matcher",
    "LearnedPrompt": "sd4match.prompt",
    "Matcher": "sd4match.matcher",
    "Matches": "sd4match.pair",
    "Pair": "sd4match.pair",
    "PointError": "sd4match.error",
    "Scorer": "sd4match.scorer",
    "Scores": "sd4match.scorer",
    "Transfer": "sd4match.label",
}
__all__ = list(_HOMES)


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
