"""How strongly a picture answers words, in one frozen UNet: cross-attention logits, and the gain in noise prediction.

A row is a noised latent under a text. Each gives its error E = |eps - eps_hat| and its attention, the mean over layers
of A_l = mean over heads and places of (1 / lambda) log sum over tokens of exp(lambda q k / sqrt(d)). With u the empty
text and c the candidate:  attention a = (a_u + a_c) / 2,  noise term b = E_u - E_c,  score = a + b.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from model.backbone.attention import name_layers, read_layers
from model.backbone.text import PromptEncoder

TERMS = ("both", "attention", "noise")
UNCONDITIONAL = ("mean", "none", "subtract")
TOKENS = ("all", "words")
KEPT = 512  # texts whose conditions are kept


@dataclass(frozen=True, eq=False)
class Rows:
    """What the UNet says of R rows, float32; what was not asked for is NaN."""

    error: Tensor  # (R,) |eps - eps_hat|, L2 over all values of the latent
    layers: Tensor  # (R, layers) A_l

    def __getitem__(self, chosen) -> Rows:
        return Rows(self.error[chosen], self.layers[chosen])

    @classmethod
    def cat(cls, parts: Sequence[Rows]) -> Rows:
        return cls(torch.cat([part.error for part in parts]), torch.cat([part.layers for part in parts]))

    @classmethod
    def mean(cls, parts: Sequence[Rows]) -> Rows:
        """Of the same rows at several timesteps; float64, for errors are far larger than what they differ by."""
        errors, layers = zip(*((part.error, part.layers) for part in parts), strict=True)
        return cls(*(torch.stack(values).cpu().double().mean(dim=0) for values in (errors, layers)))

    def split(self, size: int) -> list[Rows]:
        return [Rows(*values) for values in zip(self.error.split(size), self.layers.split(size), strict=True)]


@dataclass(frozen=True, eq=False)
class Terms:
    """The score of each candidate and what it is made of; shapes as of the rows it was made of."""

    total: Tensor
    attention: Tensor
    noise: Tensor
    layers: Tensor  # (..., layers)


class ImageTextScore(nn.Module):
    """Scores of latents (clean, scaled) and texts at a diffusion step. The UNet is run whole, and never changed."""

    def __init__(
        self,
        unet: UNet2DConditionModel,
        scheduler: DDIMScheduler,
        text: PromptEncoder,
        *,
        terms: str = "both",  # or "attention", "noise" alone
        unconditional: str = "mean",  # of the attention: (a_u + a_c) / 2; "none": a_c; "subtract": a_c - a_u
        temperature: float = 1.0,  # lambda
        tokens: str = "all",  # that are summed over; "words": without begin and padding
        weights: Sequence[float] = (1.0, 1.0, 1.0),  # of the layers in down-blocks, the middle, up-blocks
        rows: int = 0,  # most rows of one UNet call; 0 = all at once
        recompute: bool = False,  # activations in the backward pass: less memory, more time, same numbers
    ) -> None:
        super().__init__()
        self.unet, self.scheduler, self.text = unet.requires_grad_(False).eval(), scheduler, text
        self.terms, self.unconditional, self.temperature, self.tokens = terms, unconditional, temperature, tokens
        self.rows, self.recompute = rows, recompute
        self.layers = find_layers(unet)
        by_group = dict(zip(("down", "mid", "up"), weights, strict=True))
        self.weights = [by_group[find_group(name)] for name in self.layers]
        self._conditions: dict[tuple[str, bool], tuple[Tensor, Tensor]] = {}

    def train(self, mode: bool = True) -> ImageTextScore:
        """Frozen: stays in evaluation mode."""
        return super().train(False)

    def encode(self, texts: Sequence[str], masked: bool = False) -> tuple[Tensor, Tensor]:
        """Conditions (n, L, D) of texts, cut at L tokens, and which tokens are summed over, (n, L); kept by text.

        masked: the text model does not see the padding of a text that is not empty.
        """
        found = []
        for entry in ((text, masked and bool(text)) for text in texts):
            if entry not in self._conditions:
                if len(self._conditions) == KEPT:
                    self.forget()
                self._conditions[entry] = self._encode(*entry)
            found.append(self._conditions[entry])
        return torch.stack([embeds for embeds, _ in found]), torch.stack([summed for _, summed in found])

    @torch.no_grad()
    def _encode(self, text: str, masked: bool) -> tuple[Tensor, Tensor]:
        """Condition (L, D) of a text, and which tokens are summed over, (L,)."""
        ids = self.text.token_ids([text], truncate=True)
        ends = (ids == self.text.tokenizer.eos_token_id).cumsum(dim=1)
        seen = ends.cumsum(dim=1) <= 1  # begin, words, and the first end token
        (embeds,) = self.text.encode_ids(ids, seen if masked else None)
        spoken = seen[0].clone()
        spoken[0] = False
        return embeds, spoken if self.tokens == "words" else torch.ones_like(spoken)

    def forget(self) -> None:
        """The kept conditions."""
        self._conditions.clear()

    def measure(self, latents: Tensor, timestep: Tensor, condition: tuple[Tensor, Tensor], noise: Tensor) -> Rows:
        """Rows of latents and noise (R, c, h, w), timesteps (R,) and conditions of `encode`."""
        run = partial(checkpoint, self._measure, use_reentrant=False) if self.recompute else self._measure
        parts = [part.split(self.rows or len(latents)) for part in (latents, timestep, *condition, noise)]
        return Rows.cat([Rows(*run(*part)) for part in zip(*parts, strict=True)])

    def _measure(
        self, latents: Tensor, timestep: Tensor, embeds: Tensor, summed: Tensor, noise: Tensor
    ) -> tuple[Tensor, Tensor]:
        timestep = timestep.to(latents.device)
        x_t = self.scheduler.add_noise(latents, noise, timestep)  # sqrt(abar_t) z + sqrt(1 - abar_t) eps
        dtype, error = self.unet.dtype, torch.full((len(latents),), torch.nan, device=latents.device)
        reading = read_layers(self.unet, self.layers, latents.shape[-2:], stop=self.terms == "attention")
        with nullcontext({}) if self.terms == "noise" else reading as found:
            output = self.unet(x_t.to(dtype), timestep, embeds.to(dtype), return_dict=False)[0]
            error = (noise - self._find_noise(output.float(), x_t, timestep)).flatten(1).norm(dim=1)
        if self.terms == "noise":
            return error, error.new_full((len(error), len(self.layers)), torch.nan)
        return error, torch.stack([self._pool(found[name].scores(), summed) for name in self.layers], dim=1)

    def _pool(self, scores: Tensor, summed: Tensor) -> Tensor:
        """A_l (R,) of logits (R, heads, h, w, L), of which the tokens (R, L) are summed over."""
        scores = (scores * self.temperature).masked_fill(~summed[:, None, None, None], -torch.inf)
        return scores.logsumexp(dim=-1).mean(dim=(1, 2, 3)) / self.temperature

    def _find_noise(self, output: Tensor, x_t: Tensor, timestep: Tensor) -> Tensor:
        """eps_hat of what the UNet predicts: eps itself, v = sqrt(abar) eps - sqrt(1 - abar) z, or z."""
        kind = self.scheduler.config.prediction_type
        if kind == "epsilon":
            return output
        abar = self.scheduler.alphas_cumprod.to(x_t)[timestep][:, None, None, None]
        if kind == "v_prediction":
            return abar.sqrt() * output + (1 - abar).sqrt() * x_t
        return (x_t - abar.sqrt() * output) / (1 - abar).sqrt()

    def combine(self, empty: Rows, text: Rows) -> Terms:
        """The terms of candidates from the rows of the empty text and of their own, of shapes that broadcast."""
        weights = text.layers.new_tensor(self.weights)
        a_u, a_c = ((rows.layers * weights).sum(dim=-1) / weights.sum() for rows in (empty, text))
        attention = {"mean": (a_u + a_c) / 2, "none": a_c, "subtract": a_c - a_u}[self.unconditional]
        noise = empty.error - text.error
        total = {"both": attention + noise, "attention": attention, "noise": noise}[self.terms]
        return Terms(total, attention, noise, text.layers)

    def score(self, latents: Tensor, texts: Sequence[str], timestep: Tensor, noise: Tensor) -> Terms:
        """Terms (B,) of B latents, each with a text, a timestep and its noise: two rows for each."""
        count, twice = len(latents), (lambda values: torch.cat([values, values]))
        condition = self.encode([*[""] * count, *texts])
        rows = self.measure(twice(latents), twice(timestep), condition, twice(noise))
        return self.combine(rows[:count], rows[count:])


def find_layers(unet: UNet2DConditionModel) -> list[str]:
    """Of each of down, middle and up, the cross-attention layers of the last block that has any; of each transformer
    the last layer."""
    last = {}  # of each transformer
    for name in name_layers(unet):
        block, number, *_ = name.split(".")
        last[block, number] = name
    blocks = {find_group(block): block for block, _ in last}  # the last of each group
    return [name for (block, _), name in last.items() if block in blocks.values()]


def find_group(layer: str) -> str:
    """ "down", "mid" or "up"."""
    return layer.split(".")[0].rstrip("0123456789")


def list_timesteps(steps: int) -> list[int]:
    """The diffusion steps that a score is the mean over, ascending: every (1000 // steps)-th of 989 ... 10."""
    return [999 - place for place in range(10, 990, 1000 // steps)][::-1]
