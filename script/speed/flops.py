"""Floating-point operations, counted by PyTorch on tensors without storage: no weights, no device, a few seconds.

A multiplication with its addition counts as two. Attention counts as its matrix products, once forward and twice
backward, whatever kernel runs it; work done again to save memory is not counted. The counter sees matrix products and
convolutions, which are all but a percent of the arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPTextConfig, CLIPTextModel

from loss import KernelSmoothedCrossEntropy
from model.backbone.diffusion import Diffusion
from model.backbone.facts import NetworkFacts, compute_facts
from model.backbone.load import StableDiffusion
from model.backbone.text import PromptEncoder
from model.method.sd4match import SD4Match
from model.prompt.cpm import ConditionalPrompt
from model.prompt.name import format_prompt
from utils.localise import FeatureSimilarity

META = torch.device("meta")
TERA = 1e12
SEEDS = torch.zeros(1, 2, dtype=torch.int64)
LOSS = {"beta": 0.04, "kernel_size": 7, "sigma": 1.5}


@dataclass(frozen=True)
class Work:
    """What is counted: networks by their configurations, and the sizes that arithmetic depends on."""

    configs: dict[str, dict[str, Any]]  # "vae", "unet", "text_encoder", "scheduler"
    image_size: tuple[int, int]  # (H, W)
    condition_shape: tuple[int, int]  # (tokens, features) of one image
    layer: int = 1
    variant: str = "Pair-DINO-Feat-G25-C50"
    ensemble: int = 1
    n_points: int = 30  # keypoints of a pair, padding included

    @property
    def facts(self) -> NetworkFacts:
        return compute_facts(self.configs)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        return self.facts.latent_channels, *(side // self.facts.vae_stride for side in self.image_size)


def count(run: Callable[[], object]) -> int:
    """Operations of run()."""
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def count_both(run: Callable[[], Tensor]) -> tuple[int, int]:
    """Operations of run() and of its backward pass."""
    kept = []
    forward = count(lambda: kept.append(run()))
    return forward, count(lambda: kept[0].sum().backward()) if kept[0].requires_grad else 0


def count_parts(work: Work) -> dict[str, tuple[int, int]]:
    """(forward, backward) of each part: per image for VAE and UNet, per prompt for text, per pair for the rest."""
    networks, method, facts = _build_networks(work), _build_method(work), work.facts
    image, noise = _empty(1, 3, *work.image_size), _empty(1, *work.latent_shape)
    tokens = _empty(1, facts.n_positions, facts.text_width).requires_grad_()
    embeds = _empty(1, facts.n_positions, facts.cross_attention_dim).requires_grad_()
    (block,) = method.diffusion.blocks
    with torch.no_grad():
        vae = count(lambda: networks.vae.encode(image))
        whole = count(lambda: networks.unet(noise, torch.zeros(1, device=META), embeds))
    return {
        "VAE encoder": (vae, 0),
        "whole UNet": (whole, 0),
        name_cut(work): count_both(lambda: method.diffusion.features(noise, 0, embeds, None)[block]),
        "text transformer": count_both(lambda: method.text.encode_tokens(tokens)),
        "CPM": count_both(lambda: method.prompt(_make_batch(work))),
        "loss": _count_loss(work),
    }


def count_training_pair(work: Work) -> tuple[int, int]:
    """Operations per pair of this repository's training step, forward and backward, and of the plain one."""
    method, parts = _build_method(work), count_parts(work)
    ours = count(lambda: torch.cat(method.pair_features(_make_batch(work), SEEDS)).sum().backward())
    image = parts["VAE encoder"][0] + parts["whole UNet"][0] + parts[name_cut(work)][1] + sum(parts["text transformer"])
    loss = sum(parts["loss"])
    return ours + loss, 2 * image + sum(parts["CPM"]) + loss


@torch.no_grad()
def count_test_pair(work: Work) -> tuple[int, int]:
    """Operations per pair of testing a pair prompt here, and plainly; without localisers, which are next to nothing."""
    method = _build_method(work)
    parts = {name: forward for name, (forward, _) in count_parts(work).items()}
    image = parts["VAE encoder"] + work.ensemble * parts["whole UNet"] + parts["text transformer"]
    return count(lambda: method.pair_features(_make_batch(work), SEEDS)), 2 * image + parts["CPM"]


def name_cut(work: Work) -> str:
    """Of the UNet as far as this repository runs it, among the parts."""
    return f"UNet to up-block {work.layer}"


def _count_loss(work: Work) -> tuple[int, int]:
    """Of real maps, all ones: it is small enough to be run."""
    loss, shape = KernelSmoothedCrossEntropy(**LOSS), work.facts.feature_shape(work.image_size, work.layer)
    similarity = FeatureSimilarity(*(torch.ones(1, *shape, requires_grad=True) for _ in range(2)))
    kps, mask = torch.ones(1, work.n_points, 2), torch.ones(1, work.n_points, dtype=torch.bool)
    return count_both(lambda: loss(similarity, kps, kps, mask, work.image_size))


def _make_batch(work: Work) -> dict[str, Tensor]:
    """What a method reads of a batch of one pair, without storage."""
    channels, *latent_size = work.latent_shape
    shapes = {"posterior": (2 * channels, *latent_size), "condition": work.condition_shape}
    return {f"{side}_{key}": _empty(1, *shape) for side in ("src", "trg") for key, shape in shapes.items()}


def _empty(*shape: int) -> Tensor:
    return torch.empty(shape, device=META)


def _build_networks(work: Work) -> StableDiffusion:
    """Frozen networks without storage; the tokenizer knows two ids only."""
    configs = work.configs
    with META:
        vae = AutoencoderKL.from_config(configs["vae"])
        unet = UNet2DConditionModel.from_config(configs["unet"])
        text = CLIPTextModel(CLIPTextConfig.from_dict(configs["text_encoder"]))
    for network in (vae, unet, text):
        network.requires_grad_(False).eval()
    tokenizer = SimpleNamespace(bos_token_id=0, eos_token_id=0)
    return StableDiffusion(work.facts, vae, unet, text, tokenizer, DDIMScheduler.from_config(configs["scheduler"]))


def _build_prompt(work: Work) -> ConditionalPrompt:
    def blank_embeddings(n_learnable: int) -> tuple[Tensor, ...]:
        sizes = 1, 1, work.facts.n_positions - 2 - n_learnable
        return tuple(torch.zeros(1, size, work.facts.text_width) for size in sizes)

    text = SimpleNamespace(width=work.facts.text_width, special_embeddings=blank_embeddings)
    return ConditionalPrompt(format_prompt("CPM", "spair", "any", work.variant), text, *work.condition_shape).to(META)


def _build_method(work: Work) -> SD4Match:
    networks = _build_networks(work)
    text = PromptEncoder(networks.text_encoder, networks.tokenizer)
    diffusion = Diffusion(networks.unet, networks.scheduler, (f"up{work.layer}",))
    return SD4Match(diffusion, text, _build_prompt(work), image_size=work.image_size, ensemble=work.ensemble)
