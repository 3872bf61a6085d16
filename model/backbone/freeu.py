"""FreeU (Si et al., CVPR 2024) as GeoAware-SC's features have it: by the width of a map, not by the block's number.

Its factors are (b1, b2, s1, s2): before a residual layer of the decoder joins a hidden state h of the widest kind (1280
channels in Stable Diffusion) with its skip connection k, the first half of h's channels is multiplied by b1 and the low
frequencies of k by s1; b2 and s2 do it for the next width (640). diffusers' own `enable_freeu` does so in its first two
blocks, whatever the widths.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers import UNet2DConditionModel
from diffusers.utils.torch_utils import fourier_filter
from torch import Tensor, nn


class FreeU:
    """The rule, with its factors for each width of h."""

    def __init__(self, unet: UNet2DConditionModel, factors: Sequence[float]) -> None:
        b1, b2, s1, s2 = factors
        widths = sorted(set(unet.config.block_out_channels), reverse=True)
        self.factors = dict(zip(widths, ((b1, s1), (b2, s2)), strict=False))  # of narrower maps: none

    def attach(self, unet: UNet2DConditionModel) -> None:
        """Let every residual layer of the decoder see its input under the rule."""
        width = unet.mid_block.resnets[-1].out_channels
        for block in unet.up_blocks:
            for resnet in block.resnets:
                resnet.register_forward_pre_hook(self._make_hook(width))
                width = resnet.out_channels

    def scale(self, h: Tensor) -> Tensor:
        """h (n, C, h, w) with the first half of its channels multiplied: what such a map is once it has been joined."""
        if (width := h.shape[1]) not in self.factors:
            return h
        half = width // 2
        return torch.cat([h[:, :half] * self.factors[width][0], h[:, half:]], dim=1)

    def _make_hook(self, width: int):
        """A pre-hook on the joined input (n, width + skip, h, w) of a residual layer."""

        def hook(resnet: nn.Module, inputs: tuple) -> tuple | None:
            if width not in self.factors:
                return None
            joined, *rest = inputs
            h, k = joined[:, :width], joined[:, width:]
            k = fourier_filter(k, threshold=1, scale=self.factors[width][1])
            return (torch.cat([self.scale(h), k], dim=1), *rest)

        return hook
