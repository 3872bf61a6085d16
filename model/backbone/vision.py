"""What DINOv2 and CLIP see in an image: the condition of a conditional prompt, DINOv2's map, maps of any layers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from einops import rearrange
from PIL.Image import Image
from torch import Tensor, nn
from transformers import Dinov2Model, PreTrainedModel

from model.backbone.facts import DinoFacts, get_condition
from model.backbone.load import VisionNetwork


@torch.no_grad()
def compute_condition(condition: str, network: VisionNetwork, images: Sequence[Image]) -> Tensor:
    """The condition's tensor (n, T, F) of n RGB images, in the network's dtype and on its device.

    Resizing, cropping and normalisation are the network's own processor's. "DINO-Feat" and "DINO-Head" are
    one tensor: the last hidden state after the final norm, class token first, (n, 1 + N, F); its class token
    is the pooler output. "CLIP-Feat" is the vision tower's last hidden state (n, 1 + N, F), "CLIP-Head" the
    projected image embedding (n, 1, F).
    """
    model = network.model
    pixels = network.processor(images=list(images), return_tensors="pt").pixel_values
    output = model(pixel_values=pixels.to(device=model.device, dtype=model.dtype))
    if get_condition(condition).output == "embedding":
        return output.image_embeds[:, None]
    return output.last_hidden_state


@torch.no_grad()
def compute_dino_map(
    model: Dinov2Model,
    facts: DinoFacts,
    images: Tensor,
    *,
    layer: int = -1,  # transformer block, 0..n_layers - 1; -1 is the last
    norm: bool = True,  # the network's final layer norm follows
    normalise: bool = True,  # False: the network sees [-1, 1] as it is
) -> Tensor:
    """Feature maps (n, C, h, w), one cell per patch, of images (n, 3, H, W) in [-1, 1].

    H and W must be multiples of the patch. The result has the model's dtype and device.
    """
    if not -1 <= layer < facts.n_layers:
        raise ValueError(f"layer must be in -1..{facts.n_layers - 1}, got {layer}")
    _, height, _ = facts.feature_shape(images.shape[-2:])
    pixels = normalise_pixels(images, facts) if normalise else images
    pixels = pixels.to(device=model.device, dtype=model.dtype)
    if norm and layer in (-1, facts.n_layers - 1):
        tokens = model(pixels).last_hidden_state
    else:  # the states are the embeddings, then each block's output
        states = model(pixels, output_hidden_states=True).hidden_states
        tokens = states[layer + 1 if layer >= 0 else facts.n_layers]
        tokens = model.layernorm(tokens) if norm else tokens
    return rearrange(tokens[:, 1:], "n (h w) c -> n c h w", h=height)


def normalise_pixels(images: Tensor, facts: DinoFacts) -> Tensor:
    """Images (n, 3, H, W) in [-1, 1] with the mean and deviation that the network was trained on."""
    mean, std = (
        torch.tensor(values, device=images.device)[:, None, None] for values in (facts.image_mean, facts.image_std)
    )
    return ((images + 1) / 2 - mean) / std


def name_layers(model: PreTrainedModel) -> dict[str, nn.Module]:
    """Layers of a vision transformer of transformers, in their order: "block0", "block0.query", "block0.key", ...

    A block's map is its output; "last" is that of the final layer norm.
    """
    stacks = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == model.config.num_hidden_layers]
    found: dict[str, nn.Module] = {}
    for i, block in enumerate(stacks[0]):
        found[f"block{i}"] = block
        parts = {name.rpartition(".")[2]: part for name, part in block.named_modules()}
        found |= {f"block{i}.{kind}": parts.get(kind) or parts[f"{kind[0]}_proj"] for kind in ("query", "key", "value")}
    return found | {"last": model}


def compute_layer_maps(model: PreTrainedModel, pixels: Tensor, layers: Sequence[str]) -> dict[str, Tensor]:
    """Maps (n, C, h, w) of `name_layers`, one cell per patch, for normalised pixels (n, 3, H, W); the model's dtype.

    H and W must be multiples of the patch. Class and register tokens are left out.
    """
    patch = model.config.patch_size
    height, width = (side // patch for side in pixels.shape[-2:])
    found: dict[str, Tensor] = {}
    known = name_layers(model)

    def keep(name: str):
        def hook(module: nn.Module, inputs: tuple, output) -> None:
            tokens = getattr(output, "last_hidden_state", output)
            tokens = tokens[0] if isinstance(tokens, tuple) else tokens
            found[name] = rearrange(tokens[:, -height * width :], "n (h w) c -> n c h w", h=height)

        return hook

    handles = [known[name].register_forward_hook(keep(name)) for name in layers]
    try:
        model(pixels.to(device=model.device, dtype=model.dtype))
    finally:
        for handle in handles:
            handle.remove()
    return {name: found[name] for name in layers}
