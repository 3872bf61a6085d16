"""What makes learned weights, and what makes a result: settings, networks and data, by content.

The same networks, data and settings give the same description wherever they lie. It is kept with everything that is
written, so that nothing goes on from, or takes the place of, what was made of something else.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from glob import escape
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from config import WITHOUT_EFFECT, ConfigError, get_default_config, iter_keys, resolve_path
from engine.result import ResultError, read_summary
from engine.task import find_task
from model.backbone.device import resolve_precision
from model.method import METHODS, find_method
from model.method.base import WEIGHTS_FILE, Method
from model.prompt.build import name_trained
from model.prompt.name import BASELINES, parse_prompt_name
from model.prompt.store import read_prompt
from model.source import are_here, find_sources
from utils.cache import hash_images
from utils.store import digest, read_tensors

MadeBy = dict[str, Any]  # JSON values

BY_CONTENT = (
    "PRECISION",
    "NETWORK.FOLDER",
    "NETWORK.UNET",
    "CONDITION.",
    "METHOD.DINO_FOLDER",
    "DSD.CLIP_FOLDER",
    "FEATURES.CAPTIONER",
    "FEATURES.CLIP_FOLDER",
    "METHOD.WEIGHTS",
    "PROMPT.",
    "POSE.MASKS",
)
OF_TRAINING = ("TRAIN.", "VAL.", "LOSS.", "GEOAWARE.")  # which weights say
OF_SCORES = (
    *("DATASET.NAME", "DATASET.CATEGORY", "DATASET.THRESHOLD", "DATASET.PAIRS", "TEST.SPLIT"),
    *("EVAL.ALPHAS", "EVAL.LOCALISERS", "EVAL.PROTOCOL", "EVAL.BY", "EVAL.AVERAGE"),
    *("EVAL.INEQUALITY", "EVAL.KAP", "POSE."),
)
LENGTH = ("TRAIN.EPOCHS", "TRAIN.MAX_STEPS")  # a run may be made longer, unless its schedule depends on the length


def what_makes_weights(cfg, trn: Dataset, val: Dataset) -> MadeBy:
    """All that decides what a training learns and keeps."""
    content = {"training pairs": digest_pairs(trn), "validation pairs": digest_pairs(val)}
    content["TRAIN.START"] = digest_weights(cfg, cfg.TRAIN.START)
    prompt, condition = _describe_prompt(cfg, training=True)
    return _describe(cfg, (*BY_CONTENT, "TEST.", "POSE."), condition) | content | prompt


def what_makes_result(cfg, pairs: Dataset, download: bool = True) -> MadeBy:
    """All that decides the numbers of a test; not download: without networks if one is not on this machine."""
    prompted = METHODS[cfg.METHOD.NAME].takes_prompt and not cfg.METHOD.WEIGHTS
    weights = _digest_prompt(cfg) if prompted else digest_weights(cfg, cfg.METHOD.WEIGHTS)
    content = {"test pairs": digest_pairs(pairs), "weights": weights}
    if masks := getattr(getattr(pairs, "alignment", None), "masks", None):
        content["masks"] = masks.digest()
    prompt, condition = _describe_prompt(cfg, training=False)
    return _describe(cfg, (*BY_CONTENT, *OF_TRAINING), condition, download) | content | prompt


def what_makes_matches(cfg, method: Method) -> MadeBy:
    """All that decides the features of an image, and where a point is found by them."""
    content = _describe(cfg, (*BY_CONTENT, *OF_TRAINING, *OF_SCORES), method.condition)
    content["weights"] = digest({}, method.trainable.state_dict()) if method.trainable is not None else ""
    content["EVAL.PICTURE_LOCALISER"] = cfg.EVAL.PICTURE_LOCALISER
    if METHODS[cfg.METHOD.NAME].takes_prompt:
        content |= {f"PROMPT.{name}": cfg.PROMPT[name] for name in ("TYPE", "TEMPLATE", "WITHOUT_CATEGORY")}
    if METHODS[cfg.METHOD.NAME].takes_taps:  # beside the prompt it may have other weights
        content["weights of the prompt"] = digest({}, method.prompt.state_dict())
    return content


def _digest_prompt(cfg) -> str:
    """Of the learned prompt PROMPT.TYPE, "" of words."""
    if cfg.PROMPT.TYPE in BASELINES:
        return ""
    return digest({}, read_prompt(Path(resolve_path(cfg.OUTPUT_ROOT)) / "prompt" / cfg.PROMPT.TYPE).tensors)


def _describe_prompt(cfg, training: bool) -> tuple[MadeBy, str | None]:
    """The prompt that a method runs under, its weights if they are not among those of the method, and its condition."""
    if not METHODS[cfg.METHOD.NAME].takes_prompt:
        return {}, None
    if not find_method(cfg.METHOD.NAME).takes_given_prompt(cfg, training):
        name = name_trained(cfg)
        return {"prompt": str(name)} | ({"PROMPT.INIT": cfg.PROMPT.INIT} if training else {}), name.condition
    content = {"prompt": cfg.PROMPT.TYPE}
    content |= {"PROMPT.TEMPLATE": cfg.PROMPT.TEMPLATE} if cfg.PROMPT.TYPE == "text" else {}
    if training or cfg.METHOD.WEIGHTS:
        content["weights of the prompt"] = _digest_prompt(cfg)
    return content, parse_prompt_name(cfg.PROMPT.TYPE).condition


def digest_weights(cfg, name: str) -> str:
    """Of the learned weights of this name, "" of none."""
    folder = Path(resolve_path(cfg.OUTPUT_ROOT)) / "prompt" / name
    return digest({}, read_tensors(folder / WEIGHTS_FILE)[0]) if name else ""


def differences(old: Mapping[str, Any], new: Mapping[str, Any], may_differ: Sequence[str] = ()) -> list[str]:
    """`entry: old -> new` for all that is not the same.

    A setting that `old` does not know, since its key is younger, was what is now its default.
    """
    defaults = json.loads(json.dumps(dict(iter_keys(get_default_config()))))
    before, now = dict(_flatten(old)), dict(_flatten(new))
    before = {key: value for key, value in defaults.items() if key in now} | before
    return [
        f"{key}: {before.get(key)!r} -> {value!r}"
        for key, value in now.items()
        if before.get(key) != value and key not in may_differ
    ]


def require_training(cfg, folder: Path, made_by: MadeBy) -> None:
    """ConfigError if the weights in a folder were learned with another method, settings of it, or networks."""
    now = _describe(cfg, BY_CONTENT, None)
    kept = {key: value for key, value in now.items() if key.startswith(("METHOD.", "FEATURES.")) or key == "networks"}
    kept |= {key: {"fingerprint": now[key]["fingerprint"]} for key in METHODS[cfg.METHOD.NAME].reads}
    if METHODS[cfg.METHOD.NAME].takes_taps:
        kept |= _describe_prompt(cfg, training=False)[0]
    if made_by and (changed := differences(made_by, kept)):
        raise ConfigError(
            f"{folder} was trained under other settings: {'; '.join(changed)}; set them so, or choose other weights"
        )


def place_result(stem: Path, made_by: MadeBy) -> Path:
    """The stem for a result's files: `stem`, or a name of its own if a result that something else made is there."""
    if _result_made_by(stem) in (None, made_by):
        return stem
    return stem.with_name(f"{stem.name}-{digest(made_by)[:8]}")


def find_result(stem: Path, made_by: MadeBy) -> Path | None:
    """The stem of the result that all of this made; None if there is none."""
    for path in sorted(stem.parent.glob(f"{escape(stem.name)}*.json")):
        found = _result_made_by(path.with_suffix(""))
        if found and all(found.get(key) == value for key, value in made_by.items()):
            return path.with_suffix("")
    return None


def _result_made_by(stem: Path) -> MadeBy | None:
    """What made the result there; {} if it does not say, None if there is none that can be read."""
    try:
        return read_summary(f"{stem}.json").get("made_by", {})
    except (OSError, ResultError):
        return None


def may_go_on(cfg) -> tuple[str, ...]:
    """The entries in which a run may differ from the checkpoint that it goes on from."""
    return () if cfg.TRAIN.SCHEDULER in ("linear", "one_cycle") else LENGTH


@functools.lru_cache(maxsize=8)
def digest_pairs(data: Dataset) -> dict[str, Any]:
    """Number of pairs or items, and hashes of all that their records say, in order, and of their images' files."""
    benchmark = data.benchmark
    annotations, refs = find_task(benchmark.task).digest_records(benchmark), benchmark.images()
    images = dict(zip((ref.identifier for ref in refs), hash_images([ref.path for ref in refs]), strict=True))
    return {"number": len(benchmark), "annotations": annotations, "images": digest(images)[:16]}


def _describe(cfg, left_out: tuple[str, ...], condition: str | None, download: bool = True) -> MadeBy:
    """Settings, networks, and what is computed once per image."""
    entry = METHODS[cfg.METHOD.NAME]
    left_out = (*WITHOUT_EFFECT, *left_out, *(() if "dino" in entry.reads else ("METHOD.SD_WEIGHT", "METHOD.DINO_")))
    left_out += tuple(f"{other.section}." for other in METHODS.values() if other.section not in ("", entry.section))
    if "layers" not in entry.reads:
        left_out += tuple(f"FEATURES.{key}" for key in cfg.FEATURES if not (entry.takes_taps and key == "TAPS"))
    content = {key: value for key, value in iter_keys(cfg) if not key.startswith(left_out)}
    content["PRECISION"] = resolve_precision(cfg)
    reads = (*entry.reads, "condition") if condition else entry.reads
    if download or are_here(cfg, reads, condition, entry.takes_prompt or entry.runs_diffusion):
        content["networks"] = find_method(cfg.METHOD.NAME).fingerprint(cfg)
        content |= {key: source.stamp for key, source in find_sources(cfg, reads, condition).items()}
    return json.loads(json.dumps(content))


def _flatten(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in node.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{name}: ")
        else:
            yield f"{prefix}{name}", value
