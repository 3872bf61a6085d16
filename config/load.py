"""Merging configuration files and command-line values into one frozen config."""

import difflib
import reprlib
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path

from yacs.config import CfgNode as CN

from config.default import get_default_config
from config.path import resolve_path
from config.strict_yaml import format_yaml, parse_yaml


class ConfigError(ValueError):
    """A setting that cannot be used; the message names the key and what to change."""


def iter_keys(node: CN, prefix: str = "") -> Iterator[tuple[str, object]]:
    """(dotted key, value) of every leaf of a config, in the order of definition."""
    for name, value in node.items():
        if isinstance(value, CN):
            yield from iter_keys(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def load_config(config_file: str | None = None, opts: Sequence[str] = (), overrides: dict | None = None) -> CN:
    """The merged, frozen config: default < config_file < overrides < opts.

    config_file: YAML with the keys that differ; `_BASE_: other.yaml` (relative to the file) is read first.
    overrides: {dotted key: value} from a script's own flags; None values are skipped.
    opts: alternating KEY value strings from the command line.
    Raises ConfigError with the key, and what is known, for anything that does not fit.
    """
    cfg = get_default_config()
    if config_file:
        for path in _base_chain(config_file):
            _merge_file(cfg, path)
    for key, value in (overrides or {}).items():
        if value is not None:
            _merge_value(cfg, key, value, "command line")
    if len(opts) % 2:
        raise ConfigError(f"settings come in pairs `KEY value`, got an odd number: {' '.join(opts)}")
    known = dict(iter_keys(cfg))
    for key, text in zip(opts[0::2], opts[1::2], strict=True):
        value = text if isinstance(known.get(key), str) else _parse(text)
        _merge_value(cfg, key, value, "command line")
    cfg.freeze()
    return cfg


def change_config(cfg: CN, values: dict[str, object]) -> CN:
    """A frozen copy of a config with other values, {dotted key: value}. Raises ConfigError as `load_config`."""
    other = cfg.clone()
    other.defrost()
    for key, value in values.items():
        _merge_value(other, key, value, "setting")
    other.freeze()
    return other


def dump_config(cfg: CN) -> str:
    """The whole merged config as YAML text that load_config reads back to the same values."""
    plain: dict = {}
    for key, value in iter_keys(cfg):
        *sections, name = key.split(".")
        node = plain
        for section in sections:
            node = node.setdefault(section, {})
        node[name] = list(value) if isinstance(value, tuple) else value
    return format_yaml(plain)


def _base_chain(config_file: str) -> list[Path]:
    """The file and its bases, the most basic first."""
    path = Path(config_file)
    if not path.is_file():
        path = Path(resolve_path(config_file))
    chain: list[Path] = []
    while True:
        path = path.resolve()
        if path in chain:
            raise ConfigError(f"{path}: its _BASE_ files form a circle")
        chain.insert(0, path)
        content = _read_file(path)
        if "_BASE_" not in content:
            return chain
        if not isinstance(content["_BASE_"], str):
            raise ConfigError(f"{path}: _BASE_ must be the name of a file, got {reprlib.repr(content['_BASE_'])}")
        path = path.parent / content["_BASE_"]


def _read_file(path: Path) -> dict:
    try:
        content = parse_yaml(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ConfigError(f"cannot read the config file {path}: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(content, dict | None):
        raise ConfigError(f"{path} must hold `KEY: value` lines, got a {type(content).__name__}")
    return content or {}


def _merge_file(cfg: CN, path: Path) -> None:
    for key, value in _flatten(_read_file(path), cfg):
        if key != "_BASE_":
            _merge_value(cfg, key, value, str(path))


def _flatten(content: dict, cfg: CN) -> Iterator[tuple[str, object]]:
    """(dotted key, value); a section with nothing below it changes nothing."""
    for name, value in content.items():
        if isinstance(cfg.get(name), CN) and isinstance(value, dict | None):
            yield from ((f"{name}.{key}", inner) for key, inner in (value or {}).items())
        else:
            yield name, value


def _merge_value(cfg: CN, key: str, value: object, source: str) -> None:
    """Set one known key to a value of its default's type."""
    known = dict(iter_keys(cfg))
    if key not in known:
        close = difflib.get_close_matches(key, known, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(close)}?" if close else "config/default.py lists every key"
        raise ConfigError(f"{source}: unknown key {printable(key)}; {hint}")
    *sections, name = key.split(".")
    node = cfg
    for section in sections:
        node = node[section]
    node[name] = _coerce(key, value, known[key], source)


def _coerce(key: str, value: object, default: object, source: str) -> object:
    """The value in the default's type. An int may stand for a float, a list for a tuple; nothing else is converted."""
    if isinstance(default, tuple) and isinstance(value, list | tuple):
        return tuple(_coerce(key, item, (default or value)[0], source) for item in value)
    if isinstance(default, float) and type(value) is int and abs(value) < 2**53:
        return float(value)
    if type(value) is not type(default):
        what = "nothing" if value is None else f"the {type(value).__name__} {printable(reprlib.repr(value))}"
        raise ConfigError(
            f"{source}: {key} takes a value of type {type(default).__name__} such as {default!r}, got {what}"
        )
    if isinstance(value, str) and value != printable(value):
        raise ConfigError(f"{source}: {key} holds a character that is no text: {printable(value)}")
    return value


def printable(text: str) -> str:
    """The text with control characters, and bytes that are no text, written out."""
    return "".join(ascii(c)[1:-1] if unicodedata.category(c) in ("Cc", "Cs") else c for c in text)


def _parse(text: str) -> object:
    """A command-line value: YAML, where `(768, 768)` reads as a list too."""
    stripped = text.strip()
    if stripped.startswith("(") and stripped.endswith(")"):
        stripped = f"[{stripped[1:-1].strip().rstrip(',')}]"
    try:
        value = parse_yaml(stripped)
    except ValueError:
        return text
    return text if value is None else value
