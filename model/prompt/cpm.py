"""SD4Match-CPM, the conditional prompting module: a prompt made from what DINOv2 or CLIP see."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.backbone.text import PromptEncoder
from model.prompt.base import Prompt
from model.prompt.name import PromptName
from utils.noise import seeded


class ConditionalPrompt(Prompt):
    """Tokens [global; cond] between SOS and EOS, cond = tanh(alpha) * (pool(linear(condition)) + E_pos).

    Pair: the two images' conditions are joined along features, and the prompt serves both images. Feat:
    patches, pooled by adaptive max pooling to C rows; Pair-Feat mixes the patches with linear_N first, unless
    the variant ends in noN. Head: one descriptor, broadcast over C. Parameters and their names are the
    release's: global_embeds, positional_embedding, alpha_cond, and linear_C with linear_N (Pair-Feat) or
    linear. All start uniform in [0, 1), linear layers as PyTorch does.
    """

    def __init__(self, name: PromptName, text: PromptEncoder, n_tokens: int, feature_width: int) -> None:
        """n_tokens, feature_width: rows (class token included) and width of one image's condition."""
        super().__init__(name)
        variant = name.cpm
        if variant.feature == "Feat" and n_tokens < 2:
            raise ValueError(f"{name} needs patches, but its condition has {n_tokens} row")
        self.variant, self.mixes_patches = variant, variant.mixes_patches
        self.depends_on = "pair" if variant.scope == "Pair" else "image"
        self.condition = variant.condition
        self.condition_shape = (n_tokens, feature_width)
        width, joined = text.width, feature_width * (2 if variant.scope == "Pair" else 1)
        if variant.n_global:
            self.global_embeds = nn.Parameter(torch.rand(1, variant.n_global, width))
        self.positional_embedding = nn.Parameter(torch.rand(1, variant.n_cond, width))
        self.alpha_cond = nn.Parameter(torch.rand(1, variant.n_cond, width))
        if self.mixes_patches:
            self.linear_C = nn.Linear(joined, width)
            self.linear_N = nn.Linear(n_tokens - 1, n_tokens - 1)
        else:
            self.linear = nn.Linear(joined, width)
        for key, value in zip(("sos", "eos", "padding"), text.special_embeddings(variant.n_tokens), strict=True):
            self.register_buffer(key, value.float().cpu(), persistent=False)

    def forward(self, batch: Mapping[str, Any]) -> Tensor:
        cond = self._conditional_tokens(self._gather(batch))
        n_rows = len(cond)
        learned = [self.global_embeds.expand(n_rows, -1, -1), cond] if self.variant.n_global else [cond]
        sos, eos, padding = (part.expand(n_rows, -1, -1) for part in (self.sos, self.eos, self.padding))
        return torch.cat([sos, *learned, eos, padding], dim=1)

    def _gather(self, batch: Mapping[str, Any]) -> Tensor:
        """Features (P, T, F) of the batch's images or (P, T, 2F) of its pairs; T patches, or 1 (Head)."""
        if "src_condition" not in batch:
            if self.depends_on == "pair":
                raise ValueError(
                    f"{self.name} depends on the pair: it needs src_condition and trg_condition, not images"
                )
            return self._select(batch["condition"])
        src, trg = self._select(batch["src_condition"]), self._select(batch["trg_condition"])
        return torch.cat([src, trg], dim=2 if self.depends_on == "pair" else 0)

    def _select(self, condition: Tensor) -> Tensor:
        """Patches (n, N, F) or descriptor (n, 1, F) of conditions (n, 1 + N, F), class token first."""
        if tuple(condition.shape[1:]) != self.condition_shape:
            raise ValueError(
                f"{self.name} was built for conditions (tokens, features) of {self.condition_shape}, "
                f"got {tuple(condition.shape[1:])}"
            )
        selected = condition[:, 1:] if self.variant.feature == "Feat" else condition[:, :1]
        return selected.to(self.alpha_cond.dtype)

    def _conditional_tokens(self, features: Tensor) -> Tensor:
        """(P, C, D) from the features (P, T, F or 2F)."""
        if self.mixes_patches:
            by_patch = self.linear_N(self.linear_C(features).transpose(1, 2))  # (P, D, N)
        else:
            by_patch = self.linear(features).transpose(1, 2)
        pooled = F.adaptive_max_pool1d(by_patch, self.variant.n_cond).transpose(1, 2)  # (P, C, D)
        return torch.tanh(self.alpha_cond) * (pooled + self.positional_embedding)  # Eq. (7)


def build(name: PromptName, text: PromptEncoder, *, condition_shape, seed, **_: Any) -> ConditionalPrompt:
    """See model.prompt.new_prompt."""
    with seeded(seed):
        return ConditionalPrompt(name, text, *condition_shape)


def parameter_shapes(name: PromptName, width: int, n_tokens: int, feature_width: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a ConditionalPrompt's parameters, for a text model of `width`."""
    nothing = torch.empty(0)
    text = SimpleNamespace(width=width, special_embeddings=lambda n_learnable: (nothing,) * 3)
    with torch.device("meta"):  # memory is not asked for
        prompt = ConditionalPrompt(name, text, n_tokens, feature_width)
    return {key: tuple(value.shape) for key, value in prompt.state_dict().items()}


def check(name: PromptName, tensors: Mapping[str, Tensor]) -> None:
    """ValueError for tensors of a file that are not those of the name's variant, whatever networks it was made for."""
    width = next(iter(tensors["alpha_cond"].shape[-1:]), 1) if "alpha_cond" in tensors else 1
    _check(name, tensors, width, _infer_condition_shape(name, tensors))


def restore(
    name: PromptName,
    tensors: Mapping[str, Tensor],
    text: PromptEncoder,
    _: Any,
    condition_shape: tuple[int, int] | None,  # of the configured network; None: as the tensors say
) -> ConditionalPrompt:
    """The prompt of a file's tensors; ValueError if the text model or the condition's network is another."""
    condition_shape = condition_shape or _infer_condition_shape(name, tensors)
    _check(name, tensors, text.width, condition_shape)
    prompt = ConditionalPrompt(name, text, *condition_shape)
    prompt.load_state_dict(tensors)
    return prompt


def _check(name: PromptName, tensors: Mapping[str, Tensor], width: int, condition_shape: tuple[int, int]) -> None:
    expected = parameter_shapes(name, width, *condition_shape)
    found = {key: tuple(value.shape) for key, value in tensors.items()}
    if wrong := [key for key in sorted(expected | found) if expected.get(key) != found.get(key)]:
        shapes = "; ".join(
            f"{key} is {found.get(key, 'missing')}, expected {expected.get(key, 'none')}" for key in wrong
        )
        made_for = f"text width {width} and conditions {condition_shape} (tokens, features)"
        raise ValueError(f"the file does not fit {name} with {made_for}: {shapes}")


def _infer_condition_shape(name: PromptName, tensors: Mapping[str, Tensor]) -> tuple[int, int]:
    """(tokens, features) by the linear layers' shapes; the number of tokens shows in Pair-Feat only."""
    weight = tensors.get("linear_C.weight", tensors.get("linear.weight"))
    if weight is None or weight.ndim != 2:
        raise ValueError(f"the file has no linear layer, so it is no CPM prompt; keys: {', '.join(tensors)}")
    n_patches = tensors["linear_N.bias"].numel() if "linear_N.bias" in tensors else 256
    n_tokens = 1 if name.cpm.condition == "CLIP-Head" else 1 + n_patches
    return n_tokens, weight.shape[1] // (2 if name.cpm.scope == "Pair" else 1)
