"""What can be cached of an image: the VAE's posterior, the conditions of CPM, DINOv2's map; and what makes each."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor

from config import resolve_network
from model.backbone.architecture import HUB_IDS
from model.backbone.facts import (
    DinoFacts,
    condition_facts,
    condition_preprocessor,
    dino_facts,
    get_condition,
    local_folder,
    network_facts,
)
from model.backbone.facts import find_unet as locate_unet
from model.backbone.fingerprint import network_fingerprint
from model.backbone.load import load_stable_diffusion, load_vision
from model.backbone.vae import encode_posterior
from model.backbone.vision import compute_condition, compute_dino_map
from utils.frame import Frame, build_frame

Compute = Callable[[Sequence[Image]], Tensor]  # of n RGB images -> (n, *shape)


@dataclass(frozen=True)
class Source:
    """One kind of cached array: where it goes, what it depends on, and how it is computed."""

    folder: str  # below the folder of caches
    stamp: dict
    shape: tuple[int, ...]
    load: Callable[[torch.device], Compute]  # loads the network


def find_stable_diffusion(cfg) -> dict:
    """What names the configured Stable Diffusion model to model.backbone.load and model.backbone.facts."""
    section = cfg.NETWORK
    return {
        "folder": resolve_network(section.FOLDER),
        "init": section.INIT,
        "architecture": section.ARCHITECTURE,
    }


def find_unet(cfg) -> dict:
    """What names the UNet that takes the place of the model's own, if there is one."""
    return {"unet": resolve_network(cfg.NETWORK.UNET)} if cfg.NETWORK.UNET else {}


def fingerprint_stable_diffusion(cfg, parts: Sequence[str]) -> str:
    """Hash of the weights of some parts; a hub id that is not on this machine yet is downloaded."""
    where = find_stable_diffusion(cfg) | find_unet(cfg)
    return _fingerprint(partial(load_stable_diffusion, parts=parts, **where), parts=parts, seed=cfg.SEED, **where)


def _fingerprint(download: Callable[[], object], **where: Any) -> str:
    """model.backbone.fingerprint.network_fingerprint, if need be after a download."""
    try:
        return network_fingerprint(**where)
    except FileNotFoundError:
        download()
        return network_fingerprint(**where)


def find_condition(cfg, condition: str) -> dict:
    """What names the network of a condition to model.backbone.load and model.backbone.facts."""
    section = cfg.CONDITION
    folder = {"DINO": section.DINO_FOLDER, "CLIP": section.CLIP_FOLDER}[get_condition(condition).network]
    return {"folder": resolve_network(folder), "init": cfg.NETWORK.INIT}


def fingerprint_condition(cfg, condition: str) -> str:
    """Hash of the weights of a condition's network; a hub id that is not on this machine yet is downloaded."""
    where = find_condition(cfg, condition)
    return _fingerprint(partial(load_vision, get_condition(condition).network, **where), seed=cfg.SEED, **where)


def condition_shape(cfg, condition: str) -> tuple[int, int]:
    """(tokens, features) of a condition's array of one image; downloads the network if need be."""
    where = find_condition(cfg, condition)
    shape = condition_facts(condition, **where)
    if shape is None:
        load_vision(get_condition(condition).network, **where)
        shape = condition_facts(condition, **where)
    return shape


def posterior_source(cfg) -> Source:
    """The VAE's posterior (mean and log-variance) of the resized image, computed in float32."""
    where, frame = find_stable_diffusion(cfg), build_frame(cfg.DATASET.FRAME, cfg.DATASET.IMAGE_SIZE)
    stamp = {
        "what": "posterior of the VAE",
        "fingerprint": fingerprint_stable_diffusion(cfg, ("vae",)),
        "image_size": list(cfg.DATASET.IMAGE_SIZE),
        "preprocessing": f"{frame.resampling}, [-1, 1]",
    }
    facts = network_facts(**where)
    height, width = (side // facts.vae_stride for side in cfg.DATASET.IMAGE_SIZE)

    def load(device: torch.device) -> Compute:
        vae = load_stable_diffusion(parts=("vae",), device=device, seed=cfg.SEED, **where).vae

        @torch.no_grad()
        def compute(images: Sequence[Image]) -> Tensor:
            return encode_posterior(vae, _fit(images, frame))

        return compute

    shape = (2 * facts.latent_channels, height, width)
    return Source(f"VAE-{cfg.NETWORK.NAME}", stamp, shape, load)


def condition_source(cfg, condition: str) -> Source:
    """What the condition's network sees in the image (compute_condition), computed in float32."""
    where, spec = find_condition(cfg, condition), get_condition(condition)
    shape = condition_shape(cfg, condition)
    stamp = {
        "what": f"{spec.network}: {spec.output}",
        "fingerprint": fingerprint_condition(cfg, condition),
        "preprocessing": condition_preprocessor(condition, **where),
    }
    if spec.network == "DINO":
        stamp["positions"] = cfg.CONDITION.DINO_POSITIONS

    def load(device: torch.device) -> Compute:
        positions = cfg.CONDITION.DINO_POSITIONS
        network = load_vision(spec.network, device=device, seed=cfg.SEED, positions=positions, **where)
        return partial(compute_condition, condition, network)

    return Source(spec.cache, stamp, shape, load)


def find_dino(cfg) -> dict:
    """What names the matcher's DINOv2 to model.backbone.load and model.backbone.facts."""
    folder = resolve_network(cfg.METHOD.DINO_FOLDER)
    return {"folder": folder, "init": cfg.NETWORK.INIT, "architecture": HUB_IDS.get(folder, "dinov2-base")}


def load_dino(cfg, device: torch.device | str = "cpu") -> tuple[torch.nn.Module, DinoFacts]:
    """The matcher's DINOv2 in float32, and its facts; a hub id that is not on this machine yet is downloaded."""
    where = find_dino(cfg)
    settings = {"seed": cfg.SEED, "key": "METHOD.DINO_FOLDER", "positions": cfg.METHOD.DINO_POSITIONS}
    network = load_vision("DINO", device=device, **settings, **where)
    return network.model, dino_facts(**where)


def fingerprint_dino(cfg) -> str:
    """Hash of the weights of the matcher's DINOv2; a hub id that is not on this machine yet is downloaded."""
    return _fingerprint(partial(load_dino, cfg), seed=cfg.SEED, **find_dino(cfg))


def dino_source(cfg) -> Source:
    """DINOv2's patch tokens as a feature map (model.backbone.vision.compute_dino_map), computed in float32."""
    fingerprint = fingerprint_dino(cfg)
    section, facts = cfg.METHOD, dino_facts(**find_dino(cfg))
    frame = build_frame(cfg.DATASET.FRAME, section.DINO_SIZE)
    normalise = section.DINO_INPUT == "normalised"
    stamp = {
        "what": "patch tokens of DINOv2",
        "fingerprint": fingerprint,
        "image_size": list(section.DINO_SIZE),
        "layer": section.DINO_LAYER,
        "norm": section.DINO_NORM,
        "positions": section.DINO_POSITIONS,
        "preprocessing": frame.resampling,
        "mean, std": [facts.image_mean, facts.image_std] if normalise else "[-1, 1]",
    }

    def load(device: torch.device) -> Compute:
        model, _ = load_dino(cfg, device)

        def compute(images: Sequence[Image]) -> Tensor:
            return compute_dino_map(
                model,
                facts,
                _fit(images, frame),
                layer=section.DINO_LAYER,
                norm=section.DINO_NORM,
                normalise=normalise,
            )

        return compute

    return Source("DINOv2-map", stamp, facts.feature_shape(section.DINO_SIZE), load)


SOURCES = {"posterior": posterior_source, "dino": dino_source}  # what a method may read of each image


def find_sources(cfg, reads: Sequence[str], condition: str | None) -> dict[str, Source]:
    """What a method reads of each image, by its key in a batch; "condition" is that of its prompt."""
    return {key: condition_source(cfg, condition) if key == "condition" else SOURCES[key](cfg) for key in reads}


def are_here(cfg, reads: Sequence[str], condition: str | None, diffusion: bool) -> bool:
    """Whether the networks of what a method reads, and Stable Diffusion if it runs it, are on this machine."""
    if cfg.NETWORK.INIT == "random":
        return True
    places = [find_stable_diffusion(cfg)] if diffusion or "posterior" in reads else []
    places += [find_dino(cfg)] if "dino" in reads else []
    places += [find_condition(cfg, condition)] if condition else []
    unet = find_unet(cfg).get("unet")
    return all(local_folder(place["folder"]) for place in places) and (not unet or locate_unet(unet) is not None)


def _fit(images: Sequence[Image], frame: Frame) -> Tensor:
    return torch.stack(_map(frame.fit, images))


def _map(function: Callable, values: Sequence) -> list:
    with ThreadPoolExecutor() as pool:
        return list(pool.map(function, values))
