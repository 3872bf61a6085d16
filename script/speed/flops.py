"""Floating-point operations, counted by PyTorch on tensors without storage: no weights, no device, a few seconds.

A multiplication with its addition counts as two. Attention counts as its matrix products, once forward and twice
backward, whatever kernel runs it; work done again to save memory is not counted. The counter sees matrix products and
convolutions, which are all but a percent of the arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPTextConfig, CLIPTextModel

from loss import build_loss
from model.backbone.diffusion import Diffusion, cut_unet
from model.backbone.facts import compute_facts, find_configs
from model.backbone.load import StableDiffusion
from model.backbone.text import PromptEncoder
from model.error import NetworkNotFoundError
from model.method.sd4match import SD4Match
from model.prompt.cpm import ConditionalPrompt
from model.prompt.name import format_prompt
from script.speed import reference
from utils.localise import FeatureSimilarity, localise

META = torch.device("meta")
TERA = 1e12


@dataclass(frozen=True)
class Work:
    """What is counted: networks by their configurations, and the sizes that arithmetic depends on."""

    configs: dict[str, dict[str, Any]]  # "vae", "unet", "text_encoder", "scheduler"
    image_size: tuple[int, int]  # (H, W)
    condition_shape: tuple[int, int]  # (tokens, features) of one image
    layer: int = 1
    variant: str = "Pair-DINO-Feat-G25-C50"
    batch_size: int = 1
    ensemble: int = 1
    n_points: int = 30  # keypoints per pair, padding included

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        facts = compute_facts(self.configs)
        return facts.latent_channels, *(side // facts.vae_stride for side in self.image_size)


StubTokenizer = SimpleNamespace(bos_token_id=0, eos_token_id=0)  # all that a prompt encoder asks of it here


def require_configs(folder: str, init: str, architecture: str) -> dict[str, dict[str, Any]]:
    """`model.backbone.facts.find_configs`; NetworkNotFoundError if there are none."""
    if (configs := find_configs(folder, init=init, architecture=architecture)) is None:
        raise NetworkNotFoundError(f"no network at {folder!r}: neither a folder nor a known hub id")
    return configs


def build_networks(configs: dict[str, dict[str, Any]]) -> StableDiffusion:
    """Frozen networks without storage; the tokenizer knows two ids only."""
    with META:
        vae = AutoencoderKL.from_config(configs["vae"])
        unet = UNet2DConditionModel.from_config(configs["unet"])
        text = CLIPTextModel(CLIPTextConfig.from_dict(configs["text_encoder"]))
    for network in (vae, unet, text):
        network.requires_grad_(False).eval()
    scheduler = DDIMScheduler.from_config(configs["scheduler"])
    return StableDiffusion(compute_facts(configs), vae, unet, text, StubTokenizer, scheduler)


class BlankText:
    """Stands in for the text model where a prompt is built for its size alone."""

    def __init__(self, width: int, n_positions: int = 77) -> None:
        self.width, self.n_positions = width, n_positions

    def special_embeddings(self, n_learnable: int) -> tuple[Tensor, Tensor, Tensor]:
        sizes = (1, 1, self.n_positions - 2 - n_learnable)
        return tuple(torch.zeros(1, size, self.width) for size in sizes)


def build_cpm(work: Work) -> ConditionalPrompt:
    """A conditional prompt of the right size, on the CPU."""
    name = format_prompt("CPM", "spair", "any", work.variant)
    facts = compute_facts(work.configs)
    return ConditionalPrompt(name, BlankText(facts.text_width, facts.n_positions), *work.condition_shape)


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
    networks, prompt = build_networks(work.configs), build_cpm(work).to(META)
    facts = networks.facts
    image, latent = torch.empty(1, 3, *work.image_size, device=META), torch.empty(1, *work.latent_shape, device=META)
    embeds = torch.empty(1, facts.n_positions, facts.cross_attention_dim, device=META, requires_grad=True)
    tokens = torch.empty(1, facts.n_positions, facts.text_width, device=META, requires_grad=True)
    text = PromptEncoder(networks.text_encoder, networks.tokenizer)

    def run_unet() -> Tensor:
        return networks.unet(latent, torch.zeros(1, device=META), embeds, return_dict=False)[0]

    with torch.no_grad():
        parts = {"VAE encoder": (count(lambda: networks.vae.encode(image)), 0), "whole UNet": (count(run_unet), 0)}
    cut_unet(networks.unet, work.layer)
    return parts | {
        f"UNet to up-block {work.layer}": count_both(run_unet),
        "text transformer": count_both(lambda: text.encode_tokens(tokens)),
        "CPM": count_both(lambda: prompt(make_batch(replace(work, batch_size=1)))),
        "loss": _count_loss(work),
    }


def count_prompt_keys(work: Work) -> int:
    """Operations per image and noise draw that turn the prompt into keys and values of the UNet's cross-attention."""
    unet = cut_unet(build_networks(work.configs).unet, work.layer)
    facts = compute_facts(work.configs)
    latent = torch.empty(1, *work.latent_shape, device=META)
    embeds = torch.empty(1, facts.n_positions, facts.cross_attention_dim, device=META)
    with FlopCounterMode(display=False) as counter:
        unet(latent, torch.zeros(1, device=META), embeds)
    by_module = counter.get_flop_counts()
    return sum(sum(flops.values()) for name, flops in by_module.items() if name.endswith(("attn2.to_k", "attn2.to_v")))


def count_training_pair(work: Work) -> int:
    """Operations per pair of this repository's training step, forward and backward."""
    matcher, batch = _build_method(work), make_batch(work)

    def extract() -> None:
        features = matcher.pair_features(batch, make_seeds(work))
        torch.cat(features).sum().backward()

    return count(extract) // work.batch_size + sum(_count_loss(work))


def count_reference_training_pair(work: Work) -> int:
    """Operations per pair of the plain training step."""
    features, maps, kps = _reference_features(work), _make_features(work), torch.ones(1, work.n_points, 2)
    settings = {"beta": 0.04, "kernel_size": 7, "sigma": 1.5}

    def compute_loss() -> None:
        reference.compute_loss([maps], kps, kps, [work.n_points], work.image_size, **settings).backward()

    return count(lambda: torch.cat(features()).sum().backward()) + count(compute_loss)


@torch.no_grad()
def count_test_pair(work: Work) -> int:
    """Operations per pair of testing a pair prompt here, localisers included."""
    matcher, batch = _build_method(work), make_batch(work)
    maps, kps = _make_features(work), torch.ones(1, work.n_points, 2)
    extraction = count(lambda: matcher.pair_features(batch, make_seeds(work))) // work.batch_size
    return extraction + count(lambda: localise(FeatureSimilarity(*maps), kps, work.image_size))


@torch.no_grad()
def count_reference_test_pair(work: Work) -> int:
    """Operations per pair of testing a pair prompt plainly, localisers included."""
    maps, kps = _make_features(work), torch.ones(work.n_points, 2)
    localisers = count(lambda: reference.localise(*maps, kps, work.image_size, 0.04, 7.0))
    return count(_reference_features(work)) + localisers


@torch.no_grad()
def count_image(work: Work) -> tuple[int, int]:
    """Operations per image under a prompt that is encoded once: here, and plainly (encoded for each image)."""
    networks = build_networks(work.configs)
    facts, draws = networks.facts, work.ensemble
    image, noise = torch.empty(3, *work.image_size, device=META), _reference_noise(work)
    tokens = torch.empty(1, facts.n_positions, facts.text_width, device=META)
    extract = _build_reference(work, networks)
    plainly = count(lambda: extract(image, tokens, noise))
    cut_unet(networks.unet, work.layer)
    embeds = torch.empty(draws, facts.n_positions, facts.cross_attention_dim, device=META)
    here = count(lambda: networks.unet(noise[1:], torch.zeros(draws, device=META), embeds))
    return here, plainly


def make_batch(work: Work) -> dict[str, Tensor]:
    """What matcher and prompt read from a pair batch, without storage."""
    channels, *latent_size = work.latent_shape
    shapes = {"posterior": (2 * channels, *latent_size), "condition": work.condition_shape}
    return {
        f"{side}_{key}": torch.empty(work.batch_size, *shape, device=META)
        for side in ("src", "trg")
        for key, shape in shapes.items()
    }


def make_seeds(work: Work) -> Tensor:
    return torch.zeros(work.batch_size, 2, dtype=torch.int64)


def _make_features(work: Work) -> tuple[Tensor, Tensor]:
    """Real feature maps of a pair, all ones: loss and localisers are small enough to be run."""
    shape = compute_facts(work.configs).feature_shape(work.image_size, work.layer)
    return torch.ones(1, *shape, requires_grad=True), torch.ones(1, *shape, requires_grad=True)


def _count_loss(work: Work) -> tuple[int, int]:
    kps, mask = torch.ones(1, work.n_points, 2), torch.ones(1, work.n_points, dtype=torch.bool)
    maps, loss_fn = _make_features(work), build_loss("kernel_smoothed_cross_entropy")
    return count_both(lambda: loss_fn(FeatureSimilarity(*maps), kps, kps, mask, work.image_size))


def _build_method(work: Work):
    networks = build_networks(work.configs)
    text = PromptEncoder(networks.text_encoder, networks.tokenizer)
    diffusion = Diffusion(networks.unet, networks.scheduler, (f"up{work.layer}",))
    return SD4Match(diffusion, text, build_cpm(work).to(META), image_size=work.image_size, ensemble=work.ensemble)


def _build_reference(work: Work, networks: StableDiffusion) -> reference.ReferenceExtractor:
    settings = {"layer": work.layer, "timestep": 50, "ensemble": work.ensemble, "dtype": torch.float32}
    return reference.ReferenceExtractor(networks, **settings)


def _reference_noise(work: Work) -> Tensor:
    return torch.empty(1 + work.ensemble, *work.latent_shape, device=META)


def _reference_features(work: Work) -> Callable[[], tuple[Tensor, Tensor]]:
    """A function that extracts both images of a pair plainly, prompt included."""
    extract, prompt = _build_reference(work, build_networks(work.configs)), build_cpm(work).to(META)
    image, noise = torch.empty(3, *work.image_size, device=META), _reference_noise(work)
    batch = {key: value[:1] for key, value in make_batch(work).items()}

    def run() -> tuple[Tensor, Tensor]:
        tokens = prompt(batch)
        return extract(image, tokens, noise), extract(image, tokens, noise)

    return run
