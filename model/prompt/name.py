"""Prompt names: what a prompt is, which data set and backbone it was trained for. No heavy import."""

from __future__ import annotations

import re
from dataclasses import dataclass

MAX_TOKENS = 75  # learnable slots of a 77-token sequence

# Prompts by kind: the module that makes them, imported when one is built (see docs/extending.md).
KINDS = {"Single": "model.prompt.simple", "Class": "model.prompt.simple", "CPM": "model.prompt.cpm"}  # learned
BASELINES = {"text": "model.prompt.text_prompt", "empty": "model.prompt.text_prompt"}  # in words

_CPM = re.compile(r"(Img|Pair)-(DINO|CLIP)-(Feat|Head)-G(\d+)-C(\d+)(-noN)?")
_SPACE = re.compile(r"(HiddenState)|TokenEmbeds(\d+)")
_EXAMPLES = (
    "CPM_{dataset}_{backbone}_{Img|Pair}-{DINO|CLIP}-{Feat|Head}-G{n}-C{n}[-noN], "
    "{KIND}_{dataset}_{backbone}_TokenEmbeds{n} or {KIND}_{dataset}_{backbone}_HiddenState, "
    "for example CPM_spair_sd2-1_Pair-DINO-Feat-G25-C50"
).replace("KIND", "|".join(kind for kind in KINDS if kind != "CPM"))


@dataclass(frozen=True)
class CPMVariant:
    """{Img|Pair}-{DINO|CLIP}-{Feat|Head}-G{n_global}-C{n_cond}[-noN] of a conditional prompting module."""

    scope: str  # "Img": a prompt per image; "Pair": one for both images
    network: str  # "DINO", "CLIP"
    feature: str  # "Feat": patches; "Head": one global descriptor
    n_global: int
    n_cond: int
    no_linear_n: bool = False  # "-noN": Pair-Feat without the layer across patches (ablation)

    def __post_init__(self) -> None:
        if self.n_cond < 1:
            raise ValueError(f"{self}: C must be at least 1 (without conditional tokens it is a Single prompt)")
        if self.n_tokens > MAX_TOKENS:
            raise ValueError(f"{self}: G + C is {self.n_tokens}, but only {MAX_TOKENS} tokens can be learned")
        if self.no_linear_n and (self.scope, self.feature) != ("Pair", "Feat"):
            raise ValueError(f"{self}: only Pair-...-Feat has a layer across patches to leave out")

    def __str__(self) -> str:
        ending = "-noN" if self.no_linear_n else ""
        return f"{self.scope}-{self.network}-{self.feature}-G{self.n_global}-C{self.n_cond}{ending}"

    @property
    def mixes_patches(self) -> bool:
        """Whether a linear layer across the patches (linear_N) follows the one along the features."""
        return (self.scope, self.feature) == ("Pair", "Feat") and not self.no_linear_n

    @property
    def n_tokens(self) -> int:
        return self.n_global + self.n_cond

    @property
    def condition(self) -> str:
        """Name in model.backbone.facts.CONDITIONS of what the prompt reads from an image."""
        return f"{self.network}-{self.feature}"


@dataclass(frozen=True)
class PromptName:
    """A learned prompt's name, or a baseline, "text" or "empty", which has no data set and no backbone.

    space: "token" (embeddings that enter the text transformer) or "hidden" (its output). n_tokens: learnable
    slots (0 for the baselines, 77 for a hidden state: every position). cpm: the variant of a CPM prompt, else
    None.
    """

    kind: str  # of KINDS or BASELINES
    dataset: str = ""
    backbone: str = ""
    space: str = "token"
    n_tokens: int = 0
    cpm: CPMVariant | None = None

    def __str__(self) -> str:
        if self.kind in BASELINES:
            return self.kind
        return f"{self.kind}_{self.dataset}_{self.backbone}_{self.variant}"

    @property
    def variant(self) -> str:
        """Last part of the name: Pair-DINO-Feat-G25-C50, TokenEmbeds75, HiddenState."""
        if self.cpm is not None:
            return str(self.cpm)
        return "HiddenState" if self.space == "hidden" else f"TokenEmbeds{self.n_tokens}"

    @property
    def condition(self) -> str | None:
        """Name in model.backbone.facts.CONDITIONS of the condition that the prompt needs, or None."""
        return self.cpm.condition if self.cpm else None


def parse_prompt_name(text: str) -> PromptName:
    """The parts of a prompt's name; ValueError says what a name looks like."""
    if text in BASELINES:
        return PromptName(text)
    kind, _, rest = text.partition("_")
    dataset, backbone, variant = (["", "", *rest.rsplit("_", 2)])[-3:]
    if kind not in KINDS or not dataset or not backbone or re.search(r"[^\w.-]", text, re.ASCII):
        raise ValueError(f"{text!r} is no prompt name: text, empty, {_EXAMPLES}")
    return format_prompt(kind, dataset, backbone, variant)


def format_prompt(kind: str, dataset: str, backbone: str, variant: str) -> PromptName:
    """A learned prompt's name from its parts, for example ("Single", "spair", "sd2-1", "TokenEmbeds75")."""
    if kind not in KINDS:
        raise ValueError(f"prompt kind must be one of {', '.join(KINDS)}; got {kind!r}")
    for word, what in ((dataset, "data set"), (backbone, "backbone")):
        if not re.fullmatch(r"[\w.-]+", word, re.ASCII) or (what == "backbone" and "_" in word):
            raise ValueError(f"{word!r} cannot be a {what} in a prompt name (letters, digits, '.', '-')")
    if kind == "CPM":
        cpm = parse_cpm(variant)
        return PromptName(kind, dataset, backbone, "token", cpm.n_tokens, cpm)
    space, n_tokens = parse_space(variant)
    return PromptName(kind, dataset, backbone, space, n_tokens)


def parse_cpm(variant: str) -> CPMVariant:
    """The parts of a CPM variant; ValueError says what it looks like or which number is too large."""
    match = _CPM.fullmatch(variant)
    if match is None:
        raise ValueError(
            f"{variant!r} is no CPM variant: {{Img|Pair}}-{{DINO|CLIP}}-{{Feat|Head}}-G{{n}}-C{{n}}[-noN] with "
            f"G + C <= {MAX_TOKENS}, for example Pair-DINO-Feat-G25-C50"
        )
    scope, network, feature, n_global, n_cond, no_linear_n = match.groups()
    return CPMVariant(scope, network, feature, int(n_global), int(n_cond), bool(no_linear_n))


def parse_space(variant: str) -> tuple[str, int]:
    """(space, learnable slots) of TokenEmbeds{n} or HiddenState."""
    match = _SPACE.fullmatch(variant)
    if match is None:
        raise ValueError(f"{variant!r} is no prompt space: TokenEmbeds{{n}} with n in 1..{MAX_TOKENS}, or HiddenState")
    if match[1]:
        return "hidden", MAX_TOKENS + 2
    if not 1 <= int(match[2]) <= MAX_TOKENS:
        raise ValueError(f"{variant}: the number of learnable tokens must be in 1..{MAX_TOKENS}")
    return "token", int(match[2])
