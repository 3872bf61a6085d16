"""What DINOv2 or CLIP see in an image: the condition of a conditional prompt."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL.Image import Image
from torch import Tensor

from model.backbone.facts import CONDITIONS, condition_facts, get_condition
from model.backbone.load import VisionNetwork

__all__ = ["CONDITIONS", "compute_condition", "condition_facts", "get_condition"]


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
