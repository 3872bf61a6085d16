"""DINOv2's patch tokens as a feature map."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from model.backbone.facts import DinoFacts


@torch.no_grad()
def compute_dino_map(
    model: nn.Module,
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
    _, height, width = facts.feature_shape(images.shape[-2:])
    pixels = normalise_pixels(images, facts) if normalise else images
    pixels = pixels.to(device=model.device, dtype=model.dtype)
    if norm and layer in (-1, facts.n_layers - 1):
        tokens = model(pixels).last_hidden_state
    else:  # the states are the embeddings, then each block's output
        states = model(pixels, output_hidden_states=True).hidden_states
        tokens = states[layer + 1 if layer >= 0 else facts.n_layers]
        tokens = model.layernorm(tokens) if norm else tokens
    return tokens[:, 1:].transpose(1, 2).unflatten(2, (height, width))


def normalise_pixels(images: Tensor, facts: DinoFacts) -> Tensor:
    """Images (n, 3, H, W) in [-1, 1] with the mean and deviation that the network was trained on."""
    mean, std = (
        torch.tensor(values, device=images.device)[:, None, None] for values in (facts.image_mean, facts.image_std)
    )
    return ((images + 1) / 2 - mean) / std
