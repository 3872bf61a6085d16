"""Cross-attention of a stock diffusers UNet: how much every place of an image asks for every token, by layer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from model.backbone.diffusion import name_blocks
from utils.geometry import Size, at_least_float32


@dataclass(frozen=True, eq=False)
class Attention:
    """Queries and keys of one layer, as the network computed them; nothing is pooled or normalised."""

    query: Tensor  # (B, heads, h * w, d), of the image
    key: Tensor  # (B, heads, L, d), of the text condition
    scale: float  # 1 / sqrt(d)
    size: Size  # (h, w)

    def scores(self) -> Tensor:
        """q k^T / sqrt(d), before the softmax: (B, heads, h, w, L), at least float32, with autocast kept out."""
        kind = self.query.device.type
        with torch.autocast("cpu" if kind == "meta" else kind, enabled=False):
            scores = at_least_float32(self.query) @ at_least_float32(self.key).transpose(-1, -2) * self.scale
        return scores.unflatten(2, self.size)

    def maps(self) -> Tensor:
        """The share of every token at every place, a softmax over the tokens: (B, heads, h, w, L)."""
        return self.scores().softmax(dim=-1)


def mean_maps(found: Mapping[str, Attention]) -> Tensor:
    """`maps` of all layers in one: mean over heads, then over layers in the size of the largest, (B, L, h, w)."""
    layers = [rearrange(attention.maps().mean(dim=1), "b h w l -> b l h w") for attention in found.values()]
    size = max(layer.shape[-2:] for layer in layers)
    resized = [F.interpolate(layer, size, mode="bilinear", align_corners=False) for layer in layers]
    return torch.stack(resized).mean(dim=0)


class _LastLayerRead(Exception):
    """Ends a forward pass of which the rest is not needed."""


def name_layers(unet: UNet2DConditionModel) -> dict[str, nn.Module]:
    """The cross-attention layers by name, in the order in which they run.

    "up1.0" is the first of up_blocks[1]: its attentions[0].transformer_blocks[0].attn2. Where a transformer has
    several blocks, as SDXL's, their number follows: "up1.0.3".
    """
    layers = {}
    for name, block in name_blocks(unet).items():
        for i, transformer in enumerate(getattr(block, "attentions", ())):
            parts = transformer.transformer_blocks
            layers |= {f"{name}.{i}" + f".{j}" * (len(parts) > 1): part.attn2 for j, part in enumerate(parts)}
    return layers


@contextmanager
def read_layers(
    unet: UNet2DConditionModel,
    layers: Sequence[str],
    latent_size: Size,  # (H, W) of the latents that will go in
    *,
    heads: Sequence[int] | None = None,  # only these of every layer; None: all
    stop: bool = True,  # end the forward pass at the last of these layers: it then gives no output
) -> Iterator[dict[str, Attention]]:
    """What forward passes of the UNet within this context read: layer -> `Attention`, of the latest pass.

    The network computes what it always does, and gradients go through; with `stop`, what follows the last layer's
    queries and keys is left out, and with it the rest of the context. ValueError lists the layers that there are.

        with read_layers(unet, ("mid.0", "up1.0"), latents.shape[-2:]) as found:
            unet(latents, timestep, condition)
        found["mid.0"].maps()
    """
    known = name_layers(unet)
    if unknown := [name for name in layers if name not in known]:
        raise ValueError(f"the UNet has no cross-attention layer {', '.join(unknown)}; it has {', '.join(known)}")
    most = {name: known[name].heads for name in layers}
    if wrong := [name for name in layers if heads is not None and not all(0 <= head < most[name] for head in heads)]:
        raise ValueError(f"heads {list(heads)}: layer {wrong[0]} has heads 0 to {most[wrong[0]] - 1}")
    last = max(layers, key=list(known).index)
    found: dict[str, Attention] = {}
    usual = {name: known[name].processor for name in layers}
    for name in layers:
        known[name].set_processor(_Reader(name, found, latent_size, heads, stop and name == last))
    try:
        yield found
    except _LastLayerRead:
        pass
    finally:
        for name, processor in usual.items():
            known[name].set_processor(processor)


def read_noised(
    unet: UNet2DConditionModel,
    scheduler: DDIMScheduler,
    layers: Sequence[str],
    latents: Tensor,  # z (n, c, h', w')
    noise: Tensor,  # eps, as z
    timestep: int,  # diffusion step
    condition: Tensor,  # (n, L, D)
    **options: Any,  # of `read_layers`
) -> dict[str, Attention]:
    """What `layers` read in a pass over x_t."""
    steps = torch.full((len(latents),), timestep, device=latents.device)
    sample = scheduler.add_noise(latents, noise, steps).to(unet.dtype)
    with read_layers(unet, layers, sample.shape[-2:], **options) as found:
        unet(sample, steps, condition.to(sample.dtype))
    return found


@dataclass(frozen=True, eq=False)
class _Reader:
    """An attention processor: the fused one of diffusers that keeps queries and keys, and may stop there."""

    name: str
    found: dict[str, Attention]
    latent_size: Size
    heads: Sequence[int] | None
    stop: bool

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, temb=None) -> Tensor:
        if attention_mask is not None:
            raise ValueError("attention maps of masked tokens are not provided for")
        query, key = _split_heads(attn, attn.to_q(hidden_states)), _split_heads(attn, attn.to_k(encoder_hidden_states))
        height, width = self.latent_size
        stride = round((height * width / query.shape[2]) ** 0.5)
        kept = [x if self.heads is None else x[:, list(self.heads)] for x in (query, key)]
        self.found[self.name] = Attention(*kept, attn.scale, (height // stride, width // stride))
        if self.stop:
            raise _LastLayerRead
        value = _split_heads(attn, attn.to_v(encoder_hidden_states))
        output = F.scaled_dot_product_attention(query, key, value)
        return attn.to_out[1](attn.to_out[0](rearrange(output, "b k n d -> b n (k d)")))


def _split_heads(attn: nn.Module, features: Tensor) -> Tensor:
    return rearrange(features, "b n (k d) -> b k n d", k=attn.heads)
