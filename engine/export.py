"""A learned prompt's own folder, for keeping and passing on: safetensors, metadata, results, model card."""

from pathlib import Path

from config import ConfigError
from engine.result import read_summary
from model.prompt.card import format_card
from model.prompt.store import StoredPrompt, write_prompt
from utils.store import digest, read_json, write_json, write_text

METRICS_FILE, CARD_FILE = "metrics.json", "README.md"


def write_own(target: Path, stored: StoredPrompt, metrics: dict) -> list[str]:
    """Write the prompt, metrics.json and the model card into a folder; the names of the last two."""
    write_prompt(target, stored, "own")
    write_json(target / METRICS_FILE, metrics)
    write_text(target / CARD_FILE, format_card(stored, metrics))
    return [METRICS_FILE, CARD_FILE]


def read_metrics(source: Path, stored: StoredPrompt) -> dict:
    """{"validation": summary, "tests": {name: summary}}: what chose the prompt, and every test beside it."""
    known = source / METRICS_FILE
    metrics = read_json(known, ConfigError, "delete it, or write it again") if known.is_file() else {}
    if validation := stored.meta.get("metrics", {}).get("validation"):
        metrics["validation"] = validation
    now = digest({}, stored.tensors)
    results = {path.stem: read_summary(path) for path in sorted(source.glob("*_result_*.json"))}
    tests = {
        name: result["summary"]
        for name, result in results.items()
        if result.get("made_by", {}).get("weights", now) == now  # not of the prompt before it was trained again
    }
    return {**metrics, "tests": {**metrics.get("tests", {}), **tests}}
