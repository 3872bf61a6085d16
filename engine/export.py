"""A learned prompt's own folder, for keeping and passing on: safetensors, metadata, results, model card."""

import json
from pathlib import Path

from config import ConfigError
from engine.result import write_text
from model.prompt.card import format_card
from model.prompt.store import StoredPrompt, write_prompt
from utils.store import read_json

METRICS_FILE, CARD_FILE = "metrics.json", "README.md"


def write_own(target: Path, stored: StoredPrompt, metrics: dict) -> list[str]:
    """Write the prompt, metrics.json and the model card into a folder; the names of the last two."""
    write_prompt(target, stored, "own")
    write_text(target / METRICS_FILE, json.dumps(metrics, indent=2, allow_nan=False) + "\n")
    write_text(target / CARD_FILE, format_card(stored, metrics))
    return [METRICS_FILE, CARD_FILE]


def read_metrics(source: Path, stored: StoredPrompt) -> dict:
    """{"validation": summary, "tests": {name: summary}}: what chose the prompt, and every test beside it."""
    known = source / METRICS_FILE
    metrics = read_result(known) if known.is_file() else {}
    if validation := stored.meta.get("metrics", {}).get("validation"):
        metrics["validation"] = validation
    tests = {path.stem: read_result(path)["summary"] for path in sorted(source.glob("*_result_*.json"))}
    return {**metrics, "tests": {**metrics.get("tests", {}), **tests}}


def read_result(path: Path) -> dict:
    """A JSON file that test.py or training wrote; ConfigError names one that is corrupt."""
    return read_json(path, ConfigError, "delete it, or write it again")
