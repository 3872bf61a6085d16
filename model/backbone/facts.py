"""Sizes of the frozen networks, from their JSON files alone (no torch): for checks before anything slow."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.backbone.architecture import HUB_IDS, STABLE_DIFFUSION, VISION, get_architecture
from model.error import NetworkError
from utils.store import read_json

_LARGEST, _MOST_LAYERS, _LONGEST_SIDE = 2**20, 100, 2**13  # in any configuration; vocabularies have 49,408 entries
_SIDES = ("size", "crop_size", "height", "width", "shortest_edge", "image_size", "sample_size")  # px
INPUT = ".input"  # ends the name of what a residual layer of an up-block reads: hidden state joined with a skip
TAP = rf"mid|up(\d+)(\.attentions\.\d+|\.resnets\.(\d+)({re.escape(INPUT)})?)?"  # what gives a feature map
_HUB_ID = r"[A-Za-z0-9][\w.-]*/[\w.-]+"


@dataclass(frozen=True)
class NetworkFacts:
    """Sizes of a Stable Diffusion model.

    up_channels[i] is the channel count of `up_blocks[i]`'s output, up_layers[i] its number of residual layers.
    """

    vae_stride: int
    latent_channels: int
    scaling_factor: float
    up_channels: tuple[int, ...]
    up_layers: tuple[int, ...]
    cross_attention_dim: int
    text_width: int
    n_positions: int
    prediction_type: str

    @property
    def n_up_blocks(self) -> int:
        return len(self.up_channels)

    @property
    def image_divisor(self) -> int:
        """Image sides must be multiples of this: VAE stride times the UNet's total downsampling."""
        return self.vae_stride * 2 ** (self.n_up_blocks - 1)

    def feature_shape(self, image_size: tuple[int, int], layer: int) -> tuple[int, int, int]:
        """(C, h, w) of `up_blocks[layer]`'s output, after its upsampler, for images of `image_size` (H, W) pixels.

        Raises ValueError for a layer that does not exist or a size that is no multiple of `image_divisor`.
        """
        if not 0 <= layer < self.n_up_blocks:
            raise ValueError(f"layer must be one of {list(range(self.n_up_blocks))}, got {layer}")
        _check_multiples(image_size, self.image_divisor)
        stride = self.image_divisor // 2 ** min(layer + 1, self.n_up_blocks - 1)  # the last block has no upsampler
        return (self.up_channels[layer], image_size[0] // stride, image_size[1] // stride)

    def tap_shape(self, image_size: tuple[int, int], tap: str) -> tuple[int, int, int]:
        """(C, h, w) of "mid", a whole up-block such as "up1", or a part before its upsampler, "up1.attentions.1".

        "up1.resnets.2.input" is what that part reads, with the skip connection.
        Raises ValueError as `feature_shape`, and for other names.
        """
        if not (match := re.fullmatch(TAP, tap)):
            raise ValueError('a tap is "mid", "up1", "up1.resnets.0", "up1.resnets.0.input", "up1.attentions.0"')
        layer, inner = int(match[1] or 0), match[2]
        channels, *size = self.feature_shape(image_size, layer)
        if match[4]:
            channels = self._count_joined(layer, int(match[3]))
        if (tap == "mid" or inner) and layer < self.n_up_blocks - 1:
            size = [side // 2 for side in size]
        return (channels, *size)

    def _count_joined(self, layer: int, number: int) -> int:
        """Channels of the hidden state and the skip connection that a residual layer of an up-block joins."""
        own, before, after = (self.up_channels[min(max(layer + step, 0), self.n_up_blocks - 1)] for step in (0, -1, 1))
        return (own if number else before) + (own if number < self.up_layers[layer] - 1 else after)


@dataclass(frozen=True)
class DinoFacts:
    """Sizes of a DINOv2 model, and the mean and deviation of the RGB values in [0, 1] that it was trained on."""

    patch_size: int
    width: int
    n_layers: int
    image_mean: tuple[float, ...]
    image_std: tuple[float, ...]

    def feature_shape(self, image_size: tuple[int, int]) -> tuple[int, int, int]:
        """(C, h, w) of the patch tokens of images of (H, W) pixels; ValueError unless multiples of the patch."""
        _check_multiples(image_size, self.patch_size)
        return (self.width, *(side // self.patch_size for side in image_size))


def _check_multiples(image_size: tuple[int, int], divisor: int) -> None:
    if any(side <= 0 or side % divisor for side in image_size):
        raise ValueError(f"image size {tuple(image_size)} must be a multiple of {divisor} px per side")


@dataclass(frozen=True)
class Condition:
    """One condition of a conditional prompt: which network, which of its outputs, which cache holds it."""

    network: str  # "DINO" or "CLIP"
    output: str  # "tokens": last hidden state, class token first; "embedding": one projected image embedding
    cache: str  # folder name of the cache


CONDITIONS: dict[str, Condition] = {
    "DINO-Feat": Condition("DINO", "tokens", "DINOv2"),
    "DINO-Head": Condition("DINO", "tokens", "DINOv2"),
    "CLIP-Feat": Condition("CLIP", "tokens", "CLIP-Feat"),
    "CLIP-Head": Condition("CLIP", "embedding", "CLIP-Head"),
}
CONDITION_ARCHITECTURE = {"DINO": "dinov2-base", "CLIP": "clip-vit-h"}


def network_facts(folder: str, *, init: str = "pretrained", architecture: str = "sd2-1") -> NetworkFacts | None:
    """Sizes of the Stable Diffusion model in `folder`, a local folder or hub id, from its JSON files.

    With init="random", and for the default hub ids, nothing need be on this machine. None for another hub id
    that has not been downloaded, and for a folder that lacks a file (loading then says what is missing).
    """
    configs = find_configs(folder, init=init, architecture=architecture)
    return None if configs is None else compute_facts(configs)


def find_configs(
    folder: str, *, init: str = "pretrained", architecture: str = "sd2-1"
) -> dict[str, dict[str, Any]] | None:
    """The configurations of "vae", "unet", "text_encoder" and "scheduler"; None as `network_facts`."""
    if init == "random":
        return get_architecture(STABLE_DIFFUSION, architecture)
    if root := local_folder(folder):
        paths = {name: root / name / "config.json" for name in ("vae", "unet", "text_encoder")}
        paths["scheduler"] = root / "scheduler" / "scheduler_config.json"
        if all(path.is_file() for path in paths.values()):
            return {name: read_config(path) for name, path in paths.items()}
    return STABLE_DIFFUSION.get(HUB_IDS.get(folder, ""))


def compute_facts(configs: dict[str, dict[str, Any]]) -> NetworkFacts:
    """Sizes from the configurations of "vae", "unet", "text_encoder" and "scheduler"."""
    vae, unet, text, scheduler = (configs[name] for name in ("vae", "unet", "text_encoder", "scheduler"))
    with _told("the Stable Diffusion model"):
        return NetworkFacts(
            vae_stride=2 ** (len(vae["block_out_channels"]) - 1),
            latent_channels=int(vae.get("latent_channels", 4)),
            scaling_factor=float(vae.get("scaling_factor", 0.18215)),
            up_channels=tuple(int(channels) for channels in reversed(unet["block_out_channels"])),
            up_layers=_count_up_layers(unet),
            cross_attention_dim=int(unet["cross_attention_dim"]),
            text_width=int(text["hidden_size"]),
            n_positions=int(text.get("max_position_embeddings", 77)),
            prediction_type=scheduler.get("prediction_type", "epsilon"),
        )


def dino_facts(folder: str, *, init: str = "pretrained", architecture: str = "") -> DinoFacts | None:
    """Facts of the DINOv2 model in `folder`, as `network_facts`; NetworkError for a network of another kind."""
    config, preprocessor = _vision_configs(CONDITIONS["DINO-Feat"], folder, init, architecture)
    if config is None:
        return None
    if (kind := config.get("model_type")) != "dinov2":
        raise NetworkError(f"{folder} holds a model of type {kind!r}, not 'dinov2'")
    with _told(folder):
        return DinoFacts(
            patch_size=int(config.get("patch_size", 14)),
            width=int(config.get("hidden_size", 768)),
            n_layers=int(config.get("num_hidden_layers", 12)),
            image_mean=tuple(map(float, preprocessor["image_mean"])),
            image_std=tuple(map(float, preprocessor["image_std"])),
        )


def condition_facts(condition: str, folder: str, *, init: str = "pretrained") -> tuple[int, int] | None:
    """(tokens, feature width) of a condition's tensor per image, class token included; None if not known yet.

    DINO-Feat and DINO-Head: (257, 768) for the released network; CLIP-Feat (257, 1280); CLIP-Head (1, 1024).
    """
    spec = get_condition(condition)
    config, preprocessor = _vision_configs(spec, folder, init)
    if config is None:
        return None
    with _told(folder):
        if spec.output == "embedding":
            return 1, int(config.get("projection_dim", 512))
        patch = int(config.get("patch_size", 14 if spec.network == "DINO" else 32))
        crop = preprocessor.get("crop_size", 224)
        height, width = (crop["height"], crop["width"]) if isinstance(crop, dict) else (crop, crop)
        return 1 + (height // patch) * (width // patch), int(config.get("hidden_size", 768))


def condition_preprocessor(condition: str, folder: str, *, init: str = "pretrained") -> dict[str, Any]:
    """What the image processor of a condition's network does, as its JSON file says; {} if it is not known yet."""
    return _vision_configs(get_condition(condition), folder, init)[1]


def get_condition(condition: str) -> Condition:
    """The entry of CONDITIONS; ValueError lists the known names."""
    if condition not in CONDITIONS:
        raise ValueError(f"unknown condition {condition!r}; known: {', '.join(sorted(CONDITIONS))}")
    return CONDITIONS[condition]


def _vision_configs(spec: Condition, folder: str, init: str, architecture: str = "") -> tuple[dict | None, dict]:
    if init == "random":
        entry = get_architecture(VISION, architecture or CONDITION_ARCHITECTURE[spec.network])
        return entry["config"], entry["preprocessor"]
    root = local_folder(folder)
    files = [root / name for name in ("config.json", "preprocessor_config.json")] if root else []
    if not files or not all(path.is_file() for path in files):
        entry = VISION.get(HUB_IDS.get(folder, ""), {"config": None, "preprocessor": {}})
        return entry["config"], entry["preprocessor"]
    config, preprocessor = (read_config(path) for path in files)
    if isinstance(whole := config.get("vision_config"), dict):  # of a CLIP model with both towers
        config = {**whole, "projection_dim": config.get("projection_dim", 512)}
    return config, preprocessor


def read_config(path: Path) -> dict[str, Any]:
    """A network's JSON file; NetworkError names one that is corrupt, or whose numbers would fill the memory."""
    content = read_json(path, NetworkError, "fetch the network again")
    for key, number in _iter_numbers(content):
        most = _MOST_LAYERS if "layers" in key else _LONGEST_SIDE if key in _SIDES else _LARGEST
        if number > most:
            raise NetworkError(f"{path} is corrupt ({key} {number:g}); fetch the network again")
    return content


def _iter_numbers(content: Any, key: str = "") -> Iterator[tuple[str, float]]:
    if isinstance(content, dict | list):
        items = content.items() if isinstance(content, dict) else [(key, value) for value in content]
        for name, value in items:
            yield from _iter_numbers(value, name)
    elif isinstance(content, int | float):
        yield key, content


@contextlib.contextmanager
def _told(who: str) -> Iterator[None]:
    """Entries that are missing or of another type end in a NetworkError."""
    try:
        yield
    except KeyError as error:
        raise NetworkError(f"a configuration of {who} lacks the entry {error}") from error
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise NetworkError(f"a configuration of {who} holds an entry of the wrong kind ({error})") from error


def _count_up_layers(unet: dict[str, Any]) -> tuple[int, ...]:
    """Residual layers of each up-block: one more than the down-block at its height has."""
    blocks, layers = len(unet["block_out_channels"]), unet.get("layers_per_block", 2)
    by_block = [layers] * blocks if isinstance(layers, int) else list(layers)
    return tuple(int(count) + 1 for count in reversed(by_block))


def differing_unet_entries(config: dict[str, Any], facts: NetworkFacts) -> list[str]:
    """What keeps a UNet of this configuration from taking the place of that in `facts`: one text per entry."""
    found = {
        "in_channels": (config.get("in_channels", 4), facts.latent_channels),
        "cross_attention_dim": (config.get("cross_attention_dim", 1280), facts.cross_attention_dim),
        "block_out_channels": (tuple(config.get("block_out_channels", ())), tuple(reversed(facts.up_channels))),
    }
    return [f"{name} {have}, not {want}" for name, (have, want) in found.items() if have != want]


def is_hub_id(folder: str) -> bool:
    """Whether `folder` has the form owner/name of a hub id (and is no existing folder)."""
    return bool(re.fullmatch(_HUB_ID, folder)) and not os.path.exists(folder)


def split_hub_file(text: str) -> tuple[str, str] | None:
    """(hub id, file) of owner/name/file.safetensors, or None."""
    match = re.fullmatch(rf"({_HUB_ID})/([\w.-]+\.safetensors)", text)
    return None if match is None or os.path.exists(text) else (match[1], match[2])


def local_folder(folder: str) -> Path | None:
    """The folder itself, or where the hub's cache keeps an id owner/name; None if not on this machine."""
    if os.path.isdir(path := os.path.expanduser(folder)):
        return Path(path)
    if not is_hub_id(folder):
        return None
    from huggingface_hub import snapshot_download  # half a second, which only hub ids need

    with contextlib.suppress(OSError, ValueError):
        return Path(snapshot_download(folder, local_files_only=True))
    return None


def find_unet(unet: str) -> Path | None:
    """The UNet folder or weight file itself, or where the hub's cache keeps it; None if not on this machine."""
    if os.path.exists(path := os.path.expanduser(unet)):
        return Path(path)
    repository, name = split_hub_file(unet) or (unet, "")
    folder = local_folder(repository)
    return folder / name if folder and (folder / name).exists() else None
