"""What can be cached of an image: the VAE's posterior, CPM's conditions, maps of layers and of DINOv2; and how."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import ImageOps
from PIL.Image import Image
from torch import Tensor

from config import resolve_network, resolve_path
from model.backbone.architecture import HUB_IDS
from model.backbone.captioner import Captioner, read_captioner
from model.backbone.clip import fetch_clip, load_clip
from model.backbone.device import resolve_dtype, resolve_precision
from model.backbone.diffusion import Diffusion, encode_posterior
from model.backbone.facts import (
    condition_facts,
    condition_preprocessor,
    dino_facts,
    find_unet,
    get_condition,
    local_folder,
    network_facts,
    read_config,
)
from model.backbone.fingerprint import network_fingerprint
from model.backbone.layers import LayerExtractor
from model.backbone.load import StableDiffusion, load_stable_diffusion, load_vision
from model.backbone.text import PromptEncoder
from model.backbone.vision import compute_condition, compute_dino_map
from model.prompt.text_prompt import fill_template
from utils.frame import Frame, build_frame
from utils.store import digest

# of n RGB images, and their categories if known -> (n, *shape), or for named shapes n dicts of tensors
Compute = Callable[[Sequence[Image], Sequence[str | None]], Iterable]
MIRRORED = "_mirrored"  # ends the name of what is read of the images' mirror images


@dataclass(frozen=True)
class Source:
    """One kind of cached array: where it goes, what it depends on, and how it is computed."""

    folder: str  # below the folder of caches; "": not kept, made when it is read
    stamp: dict  # with the "fingerprint" of the networks
    shape: tuple[int, ...] | dict[str, tuple[int, ...]]  # of an array, or of several by name
    load: Callable[[torch.device], Compute]  # loads the network
    mirrored: bool = False  # of the mirror images


def find_caches(cfg) -> Path:
    """The folder below which caches are kept."""
    return Path(resolve_path(cfg.CACHE_ROOT or f"{cfg.OUTPUT_ROOT}/asset"))


def find_stable_diffusion(cfg) -> dict:
    """What names the configured Stable Diffusion model to model.backbone.load and model.backbone.facts."""
    section = cfg.NETWORK
    return {"folder": resolve_network(section.FOLDER), "init": section.INIT, "architecture": section.ARCHITECTURE}


def load_parts(
    cfg, parts: Sequence[str], device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> StableDiffusion:
    """Parts of the configured Stable Diffusion model, frozen, with the UNet that is to take the place of its own."""
    where = find_stable_diffusion(cfg) | {"unet": resolve_network(cfg.NETWORK.UNET)}
    return load_stable_diffusion(parts=parts, dtype=dtype, device=device, seed=cfg.SEED, **where)


def fingerprint_stable_diffusion(cfg, parts: Sequence[str]) -> str:
    """Hash of the weights of some parts; a hub id that is not on this machine yet is downloaded."""
    where = find_stable_diffusion(cfg) | {"unet": resolve_network(cfg.NETWORK.UNET)}
    return _fingerprint(partial(load_parts, cfg, parts), parts=parts, seed=cfg.SEED, **where)


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


def posterior_source(cfg) -> Source:
    """The VAE's posterior (mean and log-variance) of the resized image, computed in float32."""
    frame = build_frame(cfg.DATASET.FRAME, cfg.DATASET.IMAGE_SIZE)
    stamp = {
        "what": "posterior of the VAE",
        "fingerprint": fingerprint_stable_diffusion(cfg, ("vae",)),
        "image_size": list(cfg.DATASET.IMAGE_SIZE),
        "preprocessing": f"{frame.resampling}, [-1, 1]",
    }
    facts = network_facts(**find_stable_diffusion(cfg))
    height, width = (side // facts.vae_stride for side in cfg.DATASET.IMAGE_SIZE)

    def load(device: torch.device) -> Compute:
        vae = load_parts(cfg, ("vae",), device).vae
        return lambda images, categories: encode_posterior(vae, _fit(images, frame))

    shape = (2 * facts.latent_channels, height, width)
    return Source(f"VAE-{cfg.NETWORK.NAME}", stamp, shape, load)


def condition_source(cfg, condition: str) -> Source:
    """What the condition's network sees in the image (compute_condition), computed in float32."""
    where, spec = find_condition(cfg, condition), get_condition(condition)
    positions = cfg.CONDITION.DINO_POSITIONS
    load_network = partial(load_vision, spec.network, seed=cfg.SEED, positions=positions, **where)
    stamp = {
        "what": f"{spec.network}: {spec.output}",
        "fingerprint": _fingerprint(load_network, seed=cfg.SEED, **where),
        "preprocessing": condition_preprocessor(condition, **where),
    }
    if spec.network == "DINO":
        stamp["positions"] = positions

    def load(device: torch.device) -> Compute:
        network = load_network(device=device)
        return lambda images, categories: compute_condition(condition, network, images)

    return Source(spec.cache, stamp, condition_facts(condition, **where), load)


def find_dino(cfg) -> dict:
    """What names the matcher's DINOv2 to model.backbone.load and model.backbone.facts."""
    folder = resolve_network(cfg.METHOD.DINO_FOLDER)
    return {"folder": folder, "init": cfg.NETWORK.INIT, "architecture": HUB_IDS.get(folder, "dinov2-base")}


def dino_source(cfg) -> Source:
    """DINOv2's patch tokens as a feature map (model.backbone.vision.compute_dino_map), computed in float32."""
    section, where = cfg.METHOD, find_dino(cfg)
    settings = {"seed": cfg.SEED, "key": "METHOD.DINO_FOLDER", "positions": section.DINO_POSITIONS}
    load_network = partial(load_vision, "DINO", **settings, **where)
    fingerprint = _fingerprint(load_network, seed=cfg.SEED, **where)
    facts, frame = dino_facts(**where), build_frame(cfg.DATASET.FRAME, section.DINO_SIZE)
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
        model, (layer, norm) = load_network(device=device).model, (section.DINO_LAYER, section.DINO_NORM)
        return lambda images, categories: compute_dino_map(
            model, facts, _fit(images, frame), layer=layer, norm=norm, normalise=normalise
        )

    return Source("DINOv2-map", stamp, facts.feature_shape(section.DINO_SIZE), load)


def layers_source(cfg) -> Source:
    """Maps of several layers of Stable Diffusion, by tap (model.backbone.layers.LayerExtractor)."""
    section, frame = cfg.FEATURES, build_frame(cfg.DATASET.FRAME, cfg.FEATURES.SIZE)
    stamp = {
        "what": "maps of layers of Stable Diffusion",
        "fingerprint": fingerprint_stable_diffusion(cfg, ("vae", "unet", "text_encoder", "tokenizer", "scheduler")),
        "precision": resolve_precision(cfg),
        "image_size": list(section.SIZE),
        "preprocessing": frame.resampling,
        **{key.lower(): section[key] for key in ("WINDOW", "STRIDE", "TIMESTEP", "NOISE_SEED", "FREEU", "PROMPT")},
    }
    if "{category}" in section.PROMPT:
        stamp["without_category"] = cfg.PROMPT.WITHOUT_CATEGORY
    if section.CAPTIONER:
        clip = {"folder": resolve_network(section.CLIP_FOLDER), "key": "FEATURES.CLIP_FOLDER"}
        stamp["captioner"] = digest({}, read_captioner(resolve_path(section.CAPTIONER)))
        stamp["clip"] = _fingerprint(partial(load_vision, "CLIP", **clip), folder=clip["folder"])
    facts = network_facts(**find_stable_diffusion(cfg))
    shapes = {tap: facts.tap_shape(section.SIZE, tap) for tap in section.TAPS}

    def load(device: torch.device) -> Compute:
        dtype = resolve_dtype(cfg.PRECISION, device)
        networks = load_parts(cfg, ("unet", "scheduler", "text_encoder", "tokenizer"), device, dtype)
        captioner = None
        if section.CAPTIONER:
            network = load_vision("CLIP", device=device, dtype=dtype, **clip)
            captioner = Captioner(read_captioner(resolve_path(section.CAPTIONER)), network.model).to(device)
        extract = LayerExtractor(
            Diffusion(networks.unet, networks.scheduler, section.TAPS),
            load_parts(cfg, ("vae",), device).vae,
            PromptEncoder(networks.text_encoder, networks.tokenizer),
            scaling_factor=facts.scaling_factor,
            window=section.WINDOW,
            stride=section.STRIDE,
            timestep=section.TIMESTEP,
            seed=section.NOISE_SEED,
            freeu=section.FREEU,
            captioner=captioner,
        )

        def compute(images: Sequence[Image], categories: Sequence[str | None]) -> Iterator[dict[str, Tensor]]:
            say = partial(fill_template, section.PROMPT, without=cfg.PROMPT.WITHOUT_CATEGORY)
            maps = extract(_fit(images, frame), list(map(say, categories)))
            return ({tap: value[i] for tap, value in maps.items()} for i in range(len(images)))

        return compute

    return Source(f"layers-{cfg.NETWORK.NAME}", stamp, shapes, load)


def clip_source(cfg) -> Source:
    """CLIP's embedding of the image, of length 1, computed in float32."""
    folder = resolve_network(cfg.DSD.CLIP_FOLDER)
    root = fetch_clip(folder)
    stamp = {
        "what": "embedding of CLIP",
        "fingerprint": network_fingerprint(str(root)),
        "preprocessing": read_config(root / "preprocessor_config.json"),
    }

    def load(device: torch.device) -> Compute:
        clip = load_clip(folder, device)
        return lambda images, categories: clip.embed_images(images)

    return Source("CLIP-embedding", stamp, (int(read_config(root / "config.json")["projection_dim"]),), load)


def image_source(cfg) -> Source:
    """The resized image itself, in [-1, 1]."""
    frame = build_frame(cfg.DATASET.FRAME, cfg.DATASET.IMAGE_SIZE)
    stamp = {
        "what": "image",
        "image_size": list(cfg.DATASET.IMAGE_SIZE),
        "preprocessing": frame.resampling,
        "fingerprint": "",
    }
    return Source(
        "", stamp, (3, *cfg.DATASET.IMAGE_SIZE), lambda device: lambda images, categories: _fit(images, frame)
    )


# what a method may read of each image
SOURCES = {
    "posterior": posterior_source,
    "dino": dino_source,
    "layers": layers_source,
    "image": image_source,
    "clip": clip_source,
}


def find_sources(cfg, reads: Sequence[str], condition: str | None) -> dict[str, Source]:
    """What a method reads of each image, by its key in a batch; "condition" is that of its prompt."""
    known, found = SOURCES | {"condition": partial(condition_source, condition=condition)}, {}
    for key in reads:
        if (name := key.removesuffix(MIRRORED)) not in known:
            raise ValueError(f"unknown cached array {key!r}; known: {', '.join(SOURCES)} (SOURCES in model/source.py)")
        found[key] = replace(known[name](cfg), mirrored=key != name)
    return found


def load_sources(sources: Mapping[str, Source], device: torch.device) -> dict[str, Compute]:
    """What computes each, of images as they are: an array and that of the mirror image share their networks."""
    plain = {key.removesuffix(MIRRORED): source for key, source in sources.items()}
    loaded = {key: source.load(device) for key, source in plain.items()}
    return {
        key: partial(_mirror_first, loaded[key.removesuffix(MIRRORED)]) if source.mirrored else loaded[key]
        for key, source in sources.items()
    }


def _mirror_first(compute: Compute, images: Sequence[Image], categories: Sequence[str | None]) -> Iterable:
    return compute([ImageOps.mirror(image) for image in images], categories)


def are_here(cfg, reads: Sequence[str], condition: str | None, diffusion: bool) -> bool:
    """Whether the networks of what a method reads, and Stable Diffusion if it runs it, are on this machine."""
    if cfg.NETWORK.INIT == "random":
        return True
    places = [find_stable_diffusion(cfg)] if diffusion or {"posterior", "layers"} & set(reads) else []
    if "layers" in reads and cfg.FEATURES.CAPTIONER:
        places.append({"folder": resolve_network(cfg.FEATURES.CLIP_FOLDER)})
    places += [find_dino(cfg)] if "dino" in reads else []
    places += [{"folder": resolve_network(cfg.DSD.CLIP_FOLDER)}] if "clip" in reads else []
    places += [find_condition(cfg, condition)] if condition else []
    unet = resolve_network(cfg.NETWORK.UNET)
    return all(local_folder(place["folder"]) for place in places) and (not unet or find_unet(unet) is not None)


def _fit(images: Sequence[Image], frame: Frame) -> Tensor:
    with ThreadPoolExecutor() as pool:
        return torch.stack(list(pool.map(frame.fit, images)))
