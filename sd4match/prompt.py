"""Learned prompts to keep and pass on: folders and Hugging Face hub repositories with a model card."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData, ModelHubMixin

from model.facts import is_hub_id
from model.prompt.store import find_name, read_prompt, write_prompt
from sd4match.source import find_prompt_folder

PAPER = "https://arxiv.org/abs/2310.17569"
METHODS = {
    "Single": "one prompt for all images",
    "Class": "one prompt for each category",
    "CPM": "a prompt made for each image or image pair from what a vision network sees",
}


class LearnedPrompt(ModelHubMixin):
    """The files of one learned prompt, without any network.

    `from_pretrained(folder or hub id)`, `save_pretrained(folder)` and `push_to_hub(id)` are huggingface_hub's:
    they write prompt.safetensors, prompt.json and, where there is none yet, README.md, the model card. Test
    results that lie beside a prompt go into prompt.json and from there onto the card.
    """

    def __init__(self, folder: str | Path) -> None:
        """Read a prompt's folder, as training writes it, the authors published it, or `save_pretrained` left it.

        Raises PromptNotFoundError or PromptError.
        """
        self.folder = Path(folder)
        stored = read_prompt(self.folder, find_name(self.folder))
        results = [*stored.meta.get("results", ()), *find_results(self.folder)]
        self.stored = replace(stored, meta={**stored.meta, **({"results": results} if results else {})})
        self._hub_mixin_config = None  # prompt.json says everything; no config.json

    @property
    def name(self) -> str:
        """The prompt's name, such as CPM_spair_sd2-1_Pair-DINO-Feat-G25-C50."""
        return str(self.stored.name)

    @classmethod
    def from_pretrained(cls, place: str | Path, **options: Any) -> LearnedPrompt:
        """The prompt in a folder or hub repository; options (revision, token, ...): as huggingface_hub's."""
        return cls(find_prompt_folder(str(place), **options))

    def _save_pretrained(self, save_directory: Path) -> None:
        write_prompt(save_directory, self.stored, "own")

    def generate_model_card(self, **_: Any) -> ModelCard:
        """Backbone, data, PCK and how to use it."""
        name, meta = self.stored.name, self.stored.meta
        network = meta.get("network", "")
        data = ModelCardData(
            library_name="sd4match",
            base_model=network if is_hub_id(network) else None,
            tags=["semantic-correspondence", "keypoint-matching", "prompt-learning", "stable-diffusion"],
        )
        return ModelCard(f"---\n{data.to_yaml()}\n---\n{describe_prompt(name, meta)}")


def find_results(folder: str | Path) -> Iterator[dict[str, Any]]:
    """The test results beside a prompt (utils.report writes them): what was measured, and PCK@alpha over all."""
    for path in sorted(Path(folder).glob("*_result_*.json")):
        content = json.loads(path.read_text(encoding="utf-8"))
        config, summary = content["config"], content["summary"]
        yield {
            "dataset": config["DATASET.NAME"],
            "split": config["TEST.SPLIT"],
            "category": config["DATASET.CATEGORY"],
            "timestep": config["TEST.TIMESTEP"],
            "ensemble": config["TEST.ENSEMBLE"],
            "image_size": config["DATASET.IMAGE_SIZE"],
            "pairs": summary["pairs"],
            "protocol": f"{summary['protocol']} frame, mean over {summary['by']}s, average over {summary['average']}s",
            "pck": {
                localiser: {alpha: row["all"] for alpha, row in rows.items()}
                for localiser, rows in summary["pck"].items()
            },
        }


def describe_prompt(name, meta: Mapping[str, Any]) -> str:
    """The text of a model card, markdown."""
    lines = [
        f"# {name}",
        "",
        f"A learned prompt for semantic correspondence ([SD4Match]({PAPER}), method {name.method}: "
        f"{METHODS[name.method]}). It makes the features of a frozen Stable Diffusion match points between "
        "different objects of a kind. It holds no network.",
        "",
        "```python",
        "from sd4match import Matcher",
        "",
        'matcher = Matcher.from_pretrained("OWNER/THIS_REPOSITORY")  # or this folder',
        'pair = matcher.pair("a.jpg", "b.jpg"' + (', category="dog")' if name.method == "Class" else ")"),
        "found = pair.match([(120, 80)])",
        "```",
        "",
        *_table(("", ""), _facts(name, meta)),
        "",
        "## PCK",
        "",
        *_results(meta),
        "",
    ]
    return "\n".join(lines)


def _facts(name, meta: Mapping[str, Any]) -> list[tuple[str, Any]]:
    rows = [
        ("backbone", f"{name.backbone} (`{meta['network']}`)" if "network" in meta else name.backbone),
        ("fingerprint of its weights", meta.get("network_fingerprint")),
        ("training data", name.dataset),
        ("variant", name.variant),
        ("categories", ", ".join(meta.get("categories", ())) or None),
        ("feature layer", meta.get("layer")),
        ("training timestep", meta.get("train_timestep")),
        ("start", meta.get("init")),
        ("training steps", meta.get("metrics", {}).get("step")),
    ]
    return [(key, value) for key, value in rows if value is not None]


def _results(meta: Mapping[str, Any]) -> list[str]:
    """Tables of the validation during training and of the tests, or a sentence that there is none."""
    lines: list[str] = []
    if validation := meta.get("metrics", {}).get("validation"):
        pck = {name: {alpha: row["all"] for alpha, row in rows.items()} for name, rows in validation["pck"].items()}
        lines += [f"Validation during training, {validation['pairs']} pairs, percent:", "", *_pck_table(pck), ""]
    for result in meta.get("results", ()):
        lines += [
            f"{result['dataset']}, split {result['split']}, categories: {result['category']}; {result['pairs']} pairs, "
            f"timestep {result['timestep']}, ensemble {result['ensemble']}, image size {result['image_size']}, "
            f"{result['protocol']}; percent:",
            "",
            *_pck_table(result["pck"]),
            "",
        ]
    return lines[:-1] or ["Not tested yet."]


def _pck_table(pck: Mapping[str, Mapping[str, float | None]]) -> list[str]:
    alphas = list(next(iter(pck.values())))
    rows = [
        (localiser, *("-" if value is None else f"{100 * value:.2f}" for value in row.values()))
        for localiser, row in pck.items()
    ]
    return _table(("localiser", *(f"@{alpha}" for alpha in alphas)), rows)


def _table(header: tuple, rows: list[tuple]) -> list[str]:
    """A markdown table."""
    return ["| " + " | ".join(map(str, row)) + " |" for row in (header, ("---",) * len(header), *rows)]
