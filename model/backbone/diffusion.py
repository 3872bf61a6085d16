"""Stable Diffusion's UNet, cut after the block whose output is the feature map."""

from __future__ import annotations

from typing import Any

from diffusers import UNet2DConditionModel
from torch import nn


def cut_unet(unet: UNet2DConditionModel, layer: int, recompute: bool = False) -> UNet2DConditionModel:
    """Drop what follows `up_blocks[layer]`, in place: the stock forward then returns that block's output.

    recompute: gradient checkpointing (less memory, more time, the same numbers). Latent sides must be
    multiples of 2^downsamplings; the cut UNet refuses others with a ValueError. Raises ValueError if there is
    no such block.
    """
    n_blocks = len(unet.up_blocks)
    if not 0 <= layer < n_blocks:
        raise ValueError(
            f"layer must be one of {list(range(n_blocks))} (the UNet has {n_blocks} up-blocks), got {layer}"
        )
    unet.up_blocks = unet.up_blocks[: layer + 1]
    unet.conv_norm_out = None
    unet.conv_act = None
    unet.conv_out = nn.Identity()
    unet.register_forward_pre_hook(_check_latent_size, with_kwargs=True)
    if recompute:
        unet.enable_gradient_checkpointing()
    return unet


def _check_latent_size(unet: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
    """At other sizes the stock UNet resizes between blocks, which the last block of a cut UNet would not."""
    sample = args[0] if args else kwargs["sample"]
    divisor = 2**unet.num_upsamplers
    if any(side % divisor for side in sample.shape[-2:]):
        raise ValueError(f"latent size {tuple(sample.shape[-2:])} must be a multiple of {divisor} per side")
