"""The model card of a learned prompt: what it is, what it belongs to, how well it did."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from model.backbone.architecture import STABLE_DIFFUSION, default_hub_id
from model.backbone.facts import get_condition, is_hub_id
from model.prompt.store import StoredPrompt

_KINDS = {
    "Single": "one prompt for every image",
    "Class": "one prompt per category",
    "CPM": "a prompt made for each image or pair by the conditional prompting module",
}


def format_card(stored: StoredPrompt, metrics: Mapping[str, Any]) -> str:
    """README.md of a prompt's folder, with the front matter that the Hugging Face hub reads.

    metrics: {"validation": summary, "tests": {result name: summary}}, summaries as utils.pck.summarise gives
    them; either may be missing.
    """
    name, network = stored.name, str(stored.meta.get("network", ""))
    base = f"base_model: {network}\n" if is_hub_id(network) else ""
    facts = "\n".join(f"| {what} | {value} |" for what, value in _list_facts(stored).items() if value is not None)
    category = ', category="dog"' if name.kind == "Class" else ""
    return f"""---
library_name: sd4match
tags: [semantic-correspondence, sd4match, stable-diffusion]
{base}---

# {name}

A learned prompt for semantic correspondence with a frozen Stable Diffusion UNet \
([SD4Match](https://arxiv.org/abs/2310.17569)). It only means something to the backbone named here.

| | |
|---|---|
{facts}

{_format_metrics(metrics)}
## Use

```python
from sd4match import Matcher

matcher = Matcher.from_pretrained("this folder, or its id on the hub")
pair = matcher.pair("a.jpg", "b.jpg"{category})
found = pair.match([(120, 80)])
```

Put this folder, under its name, into `asset/sd4match/prompt/` (or `prompt/` of another `OUTPUT_ROOT`); then

```sh
python test.py --dataset {name.dataset} --prompt_type {name} {shlex.join(_list_settings(stored))}
```
"""


def _list_facts(stored: StoredPrompt) -> dict[str, Any]:
    """Rows of the card's table; None: not known, or of no meaning for this prompt."""
    name, made_by = stored.name, stored.made_by
    network = stored.meta.get("network", "")
    return {
        "method": f"SD4Match-{name.kind}: {_KINDS.get(name.kind, 'a learned prompt')}",
        "variant": name.variant,
        "trained on": name.dataset,
        "backbone": f"{name.backbone}" + (f" ({network})" if network else ""),
        "backbone's fingerprint": made_by.get("networks"),
        "condition": name.condition,
        "features": made_by.get("METHOD.NAME"),
        "layer": made_by.get("METHOD.LAYER"),
        "training timestep": made_by.get("TRAIN.TIMESTEP"),
        "start": made_by.get("PROMPT.INIT"),
        "categories": ", ".join(sorted(stored.tensors)) if name.kind == "Class" else None,
        "parameters": f"{sum(value.numel() for value in stored.tensors.values()):,}",
    }


def _list_settings(stored: StoredPrompt) -> list[str]:
    """KEY VALUE words that give test.py the networks and the method of the training, as far as they are known."""
    name, meta = stored.name, stored.meta
    released = default_hub_id(name.backbone) if name.backbone in STABLE_DIFFUSION else None
    settings = {"NETWORK.NAME": name.backbone, "NETWORK.FOLDER": meta.get("network", released)}
    if name.condition:
        settings[f"CONDITION.{get_condition(name.condition).network}_FOLDER"] = meta.get("condition_network")
    settings |= {key: stored.made_by.get(key) for key in ("METHOD.NAME", "METHOD.LAYER", "METHOD.POSTERIOR")}
    return [word for key, value in settings.items() if value is not None for word in (key, str(value))]


def _format_metrics(metrics: Mapping[str, Any]) -> str:
    summaries = {"validation": metrics["validation"]} if metrics.get("validation") else {}
    summaries |= metrics.get("tests", {})
    if not summaries:
        return "No result is known to this folder.\n"
    lines = ["## Results", "", "PCK in percent.", ""]
    for title, summary in summaries.items():
        alphas = list(next(iter(summary["pck"].values())))
        over = {"pair": "pairs", "category": "categories"}[summary["average"]]
        lines += [
            f"{title}: {summary['pairs']} pairs, {summary['protocol']} frame, per {summary['by']}, mean over {over}",
            "",
            "| localiser | " + " | ".join(f"@{alpha}" for alpha in alphas) + " |",
            "|---" * (len(alphas) + 1) + "|",
            *(
                f"| {localiser} | " + " | ".join(_percent(row[alpha]["all"]) for alpha in alphas) + " |"
                for localiser, row in summary["pck"].items()
            ),
            "",
        ]
    return "\n".join(lines)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f}"
