"""DSD: a frozen Stable Diffusion UNet tells which text fits which image, with LoRA of a few examples or without."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from einops import rearrange, repeat
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from model.adapter import DIFFUSERS_FILE, PEFT_FILES, add_adapter, export_adapter, read_published
from model.backbone.diffusion import draw_latents
from model.backbone.image_text import ImageTextScore, Rows, Terms, list_timesteps
from model.backbone.text import PromptEncoder
from model.method.base import WEIGHTS_FILE, Batch, Method
from model.prompt.build import fingerprint_diffusion, load_diffusion
from utils.noise import derive_seeds, draw_noise
from utils.store import StoreError

_POSTERIOR, _NOISE, _TIMESTEP = range(3)  # uses of a seed
KEPT = 100_000  # images under a text whose rows are kept


class DSD(Method):
    """The score of model.backbone.image_text, mean over fixed timesteps with noise that all candidates share."""

    FILES = (WEIGHTS_FILE, *PEFT_FILES, DIFFUSERS_FILE)
    reads = ("posterior",)

    def __init__(
        self,
        score: ImageTextScore,
        adapter: nn.Module | None = None,  # of the score's UNet
        *,
        steps: int = 30,  # of model.backbone.image_text.list_timesteps
        seed: int = 0,  # of the noise that all images and texts share
        posterior: str = "sample",  # latent = a sample of the VAE's posterior, or its "mode"
        scaling_factor: float = 0.18215,  # of the VAE
        resample: bool = False,  # another sample for every timestep and candidate, as the release
        pool: int = 1,  # so many items have the mean of their attention in common, as the release's batches
        margin: float = 0.1,  # of the loss
        share_draws: bool = False,  # in training, the candidates of an item have timestep and noise in common
        mask_text: bool = False,  # in training, the text model does not see the padding, as the release
        weight_decay: float = 0.01,
        max_grad_norm: float = 1.0,  # larger gradients are scaled down to it
    ) -> None:
        super().__init__()
        self.score, self.adapter = score, adapter
        self.timesteps, self.seed = list_timesteps(steps), seed
        self.posterior, self.scaling_factor, self.resample, self.joint = posterior, scaling_factor, resample, pool
        self.margin, self.share_draws, self.mask_text = margin, share_draws, mask_text
        self.weight_decay, self.max_grad_norm = weight_decay, max_grad_norm
        self._known: OrderedDict[tuple[str, str], Rows] = OrderedDict()  # (image, text) -> mean over the timesteps

    # Scores.

    @torch.no_grad()
    def rank(self, batch: Batch, seeds: Tensor) -> dict[str, Tensor]:
        """ "score" (B, T * I), and the terms that it is the sum of; seeds: (B, I) int64, of the images' posteriors.

        An image goes under a text, the empty one included, once in this batch and in later ones.
        """
        posterior, seeds, names, image_of = self._lay_out(batch, seeds)
        texts = [text for row in batch["texts"] for text in row for _ in batch["identifiers"][0]]
        asked = [(names[image], text) for image, text in zip(image_of, texts, strict=True)]
        empty = [(name, "") for name, _ in asked]
        known = {} if self.resample else self._known
        if new := [pair for pair in dict.fromkeys([*empty, *asked]) if pair not in known]:
            known.update(zip(new, self._measure(new, posterior, seeds, names).split(1), strict=True))
        terms = self.score.combine(*(Rows.cat([known[pair] for pair in pairs]) for pairs in (empty, asked)))
        while len(self._known) > KEPT:
            self._known.popitem(last=False)
        return self._list_terms(terms, len(batch["texts"]))

    def _lay_out(self, batch: Batch, seeds: Tensor) -> tuple[Tensor, Tensor, list[str], list[int]]:
        """Posteriors, seeds and names of N images, and the image of each candidate (B * T * I).

        To resample is to give every candidate an image of its own.
        """
        n_items, n_texts = len(batch["texts"]), len(batch["texts"][0])
        places = rearrange(torch.arange(seeds.numel()), "(b i) -> b i", b=n_items)
        image_of = repeat(places, "b i -> (b t i)", t=n_texts)
        posterior, seeds = batch["posterior"].flatten(0, 1), seeds.flatten()
        if not self.resample:
            return posterior, seeds, [name for row in batch["identifiers"] for name in row], image_of.tolist()
        of_item = len(image_of) // n_items
        own = [derive_seeds(seed, number % of_item) for number, seed in enumerate(seeds[image_of].split(1))]
        return posterior[image_of], torch.cat(own), [str(n) for n in range(len(own))], list(range(len(own)))

    def _measure(
        self, pairs: Sequence[tuple[str, str]], posterior: Tensor, seeds: Tensor, names: Sequence[str]
    ) -> Rows:
        """Of pairs (image, text) the means over the timesteps; posterior, seeds: of the images of these names."""
        place = {name: number for number, name in enumerate(names)}
        rows, condition = [place[name] for name, _ in pairs], self.score.encode([text for _, text in pairs])
        found, z = [], self._draw_latents(posterior, seeds)
        for k, t in enumerate(self.timesteps):
            if self.resample:
                z = self._draw_latents(posterior, derive_seeds(seeds, k))
            noise = draw_noise(derive_seeds(torch.tensor([self.seed]), k), z.shape[1:], z.device)
            timestep = torch.full((len(rows),), t, device=z.device)
            found.append(self.score.measure(z[rows], timestep, condition, noise.expand(len(rows), -1, -1, -1)))
        return Rows.mean(found)

    def _list_terms(self, terms: Terms, n_items: int) -> dict[str, Tensor]:
        """What `rank` gives, each (B, T * I)."""
        attention, noise = (values.float().unflatten(0, (n_items, -1)) for values in (terms.attention, terms.noise))
        if self.joint > 1:
            attention = attention.mean(dim=0, keepdim=True).expand(n_items, -1)
        if self.score.terms == "both":
            return {"score": attention + noise, "attention": attention, "noise": noise}
        return {"score": attention if self.score.terms == "attention" else noise}

    def _draw_latents(self, posterior: Tensor, seeds: Tensor) -> Tensor:
        """z (n, c, h, w) of posteriors (n, 2c, h, w)."""
        shape = (posterior.shape[1] // 2, *posterior.shape[2:])
        eps = draw_noise(derive_seeds(seeds, _POSTERIOR), shape, posterior.device)
        return draw_latents(posterior, self.scaling_factor, eps if self.posterior == "sample" else None)

    # What is learned, and how it is kept.

    def loss(self, batch: Batch, seeds: Tensor) -> Tensor:
        """max(0, max over c of s_c - s_0 + margin), one per item, (B,); candidate 0 is the true one.

        Every candidate has a timestep and noise of its own, or all of an item share theirs.
        """
        n_items, n_texts, n_images = len(seeds), len(batch["texts"][0]), len(batch["identifiers"][0])
        draws = 1 if self.share_draws else n_texts
        posterior = repeat(batch["posterior"], "b i ... -> (b d i) ...", d=draws)
        own = [derive_seeds(seeds[:, 0], number) for number in range(draws * n_images)]
        own = torch.stack(own, dim=1)  # (b, d i)
        shared = own[:, :1].expand_as(own) if self.share_draws else own
        own, shared = own.flatten(), shared.flatten()
        z, timestep = self._draw_latents(posterior, own), self._draw_timesteps(shared).to(posterior.device)
        noise = draw_noise(derive_seeds(shared, _NOISE), z.shape[1:], z.device)
        spread = partial(repeat, pattern="(b d i) ... -> (b d t i) ...", b=n_items, d=draws, t=n_texts // draws)
        texts = [text for row in batch["texts"] for text in row for _ in range(n_images)]
        condition = self.score.encode([*[""] * len(z), *texts], masked=self.mask_text)
        z, timestep, noise = (torch.cat([values, spread(values)]) for values in (z, timestep, noise))
        found = self.score.measure(z, timestep, condition, noise)
        empty, text = found[: len(own)], found[len(own) :]
        terms = self.score.combine(Rows(spread(empty.error), spread(empty.layers)), text)
        return margin_loss(terms.total.unflatten(0, (n_items, -1)), self.margin)

    def _draw_timesteps(self, seeds: Tensor) -> Tensor:
        """(n,) uniform in 0..999."""
        generator = torch.Generator()
        seeds = derive_seeds(seeds, _TIMESTEP).tolist()
        return torch.cat([torch.randint(1000, (1,), generator=generator.manual_seed(seed)) for seed in seeds])

    @property
    def trainable(self) -> nn.Module | None:
        return self.adapter

    def build_optimizer(self, lr: float, linear_lr_scale: float) -> torch.optim.Optimizer:
        parameters = list(self.adapter.parameters())
        optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=self.weight_decay)

        def clip(*_) -> None:
            clip_grad_norm_(parameters, self.max_grad_norm)

        optimizer.register_step_pre_hook(clip)
        return optimizer

    def at(self, timestep: int, ensemble: int) -> DSD:
        """The same networks and adapter as it is now."""
        other = copy.copy(self)
        other._known = OrderedDict()
        return other

    def save(self, folder: Path, about: Mapping[str, Any]) -> None:
        super().save(folder, about)
        export_adapter(folder, self.adapter.state_dict(), about.get("network", ""))

    def load(self, folder: Path) -> None:
        """Also the files of others (model.adapter.read_published)."""
        if (Path(folder) / WEIGHTS_FILE).is_file():
            super().load(folder)
            return
        try:
            self.adapter.load_state_dict(read_published(folder))
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:200]
            raise StoreError(f"{folder} does not fit this network, or DSD.RANK ({reason})") from error

    @classmethod
    def made_by(cls, folder: Path) -> dict | None:
        """Files of others do not say."""
        found = super().made_by(folder)
        return {} if found is None and folder.exists() else found

    @classmethod
    def build(cls, cfg, device: torch.device, categories: Sequence[str] | None, training: bool, folder=None) -> DSD:
        section, networks = cfg.DSD, load_diffusion(cfg, device)
        score = ImageTextScore(
            networks.unet,
            networks.scheduler,
            PromptEncoder(networks.text_encoder, networks.tokenizer),
            terms=section.TERMS,
            unconditional=section.UNCONDITIONAL,
            temperature=section.TEMPERATURE,
            tokens=section.TOKENS,
            weights=section.LAYER_WEIGHTS,
            rows=section.ROWS,
            recompute=cfg.NETWORK.RECOMPUTE and training,
        )
        learned = training or cfg.METHOD.WEIGHTS
        return cls(
            score,
            add_adapter(networks.unet, section.RANK, cfg.SEED) if learned else None,
            steps=section.TIMESTEPS,
            seed=cfg.SEED,
            posterior=cfg.METHOD.POSTERIOR,
            scaling_factor=networks.facts.scaling_factor,
            resample=section.RESAMPLE,
            pool=section.POOL,
            margin=section.MARGIN,
            share_draws=section.SHARE_DRAWS,
            mask_text=section.MASK_TEXT,
            weight_decay=section.WEIGHT_DECAY,
            max_grad_norm=section.MAX_GRAD_NORM,
        )

    @classmethod
    def fingerprint(cls, cfg) -> str:
        return fingerprint_diffusion(cfg)

    @classmethod
    def describe(cls, cfg) -> dict[str, Any]:
        return {"network": cfg.NETWORK.FOLDER}


def margin_loss(scores: Tensor, margin: float) -> Tensor:
    """The hinge of the hardest wrong candidate: (B,) of scores (B, n), of which the first is the true one's."""
    return (scores[:, 1:].max(dim=1).values - scores[:, 0] + margin).clamp(min=0)
