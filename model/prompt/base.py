"""The contract of a prompt.

The module of a kind also has functions, as model.prompt.simple has them: `build(name, text, **settings)`, an untrained
prompt, of the settings of model.prompt.new_prompt; and, of a kind that is learned, `check(name, tensors)`, ValueError
for tensors that do not fit the name, and `restore(name, tensors, text, categories, condition_shape)`, the prompt that
a file holds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from model.prompt.name import PromptName


class Prompt(nn.Module):
    """Maps a batch to the prompt embeddings of its images; L = 77 positions, D = width of the text model.

    depends_on: what decides the prompt, "nothing", "category", "image" or "pair". All but the last let features be
    computed once per image. space: "token" (to be run through the text transformer) or "hidden" (the UNet's condition
    itself). condition: name in CONDITIONS of the tensor it reads from the batch ("condition"), or None.

    forward(batch) -> (P, L, D): P = 1 for "nothing"; the number of pairs (or images, for an image batch) for
    "category"; the number of pairs for "pair"; for "image" one row per image, which for a pair batch means
    sources then targets.
    """

    depends_on: str
    space: str = "token"
    condition: str | None = None

    def __init__(self, name: PromptName) -> None:
        super().__init__()
        self.name = name

    def forward(self, batch: Mapping[str, Any]) -> Tensor:
        raise NotImplementedError

    def to_tensors(self) -> dict[str, Tensor]:
        """What a file keeps of it, under the release's names."""
        return {key: value.detach().cpu().clone() for key, value in self.state_dict().items()}

    def param_groups(self, lr: float, linear_scale: float = 0.1) -> list[dict[str, Any]]:
        """Parameter groups for the optimiser; linear layers, if there are any, learn at linear_scale * lr."""
        linear, others = [], []
        for name, parameter in self.named_parameters():
            (linear if name.startswith("linear") else others).append(parameter)
        groups = [{"name": "prompt", "params": others, "lr": lr}]
        if linear:
            groups.append({"name": "linear", "params": linear, "lr": lr * linear_scale})
        return groups


def index_categories(batch: Mapping[str, Any], index: Mapping[str, int], what: str) -> list[int]:
    """Row of each of the batch's categories; ValueError names the missing one and those that there are."""
    unknown = sorted(set(batch["category"]) - set(index))
    if unknown:
        raise ValueError(f"{what} has no prompt for {', '.join(unknown)}; it has: {', '.join(index)}")
    return [index[category] for category in batch["category"]]
