"""Learned prompts to keep and pass on: folders and Hugging Face hub repositories with a model card."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelHubMixin

from engine.export import read_metrics, write_own
from model.prompt.card import format_card
from model.prompt.store import find_name, read_prompt
from sd4match.source import find_prompt_folder


class LearnedPrompt(ModelHubMixin):
    """The files of one learned prompt, without any network.

    `save_pretrained(folder)` and `push_to_hub(id)` are huggingface_hub's; they write what
    script/convert_prompt.py writes: prompt.safetensors, prompt.json, metrics.json and README.md, the model card.
    """

    def __init__(self, folder: str | Path) -> None:
        """Read a prompt's folder, as training writes it, the authors published it, or `save_pretrained` left it.

        Raises PromptNotFoundError or PromptError.
        """
        self.folder = Path(folder)
        self.stored = read_prompt(self.folder, find_name(self.folder))
        self.metrics = read_metrics(self.folder, self.stored)
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
        write_own(save_directory, self.stored, self.metrics)

    def generate_model_card(self, **_: Any) -> ModelCard:
        """Backbone, data, PCK and how to use it."""
        return ModelCard(format_card(self.stored, self.metrics))
