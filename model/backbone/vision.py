"""What DINOv2 and CLIP see in an image: the condition of a conditional prompt, and DINOv2's map."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from einops import rearrange
from PIL.Image import Image
from torch import Tensor
from transformers import Dinov2Model

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
