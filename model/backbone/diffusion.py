"""Frozen Stable Diffusion as a feature extractor: images to latents, and latents to maps of any blocks of its UNet."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from model.backbone.facts import INPUT
from utils.geometry import at_least_float32


def encode_posterior(vae, images: Tensor) -> Tensor:
    """Mean and log-variance of the VAE's posterior, stacked: (n, 2c, h, w), in the VAE's dtype.

    images: (n, 3, H, W) in [-1, 1].
    """
    images = images.to(device=vae.device, dtype=vae.dtype)
    return vae.encode(images).latent_dist.parameters


def draw_latents(posterior: Tensor, scaling_factor: float, noise: Tensor | None = None) -> Tensor:
    """z = scaling_factor * (mean + std * noise), (n, c, h, w), at least float32; the posterior's mode if noise is None.

    posterior: (n, 2c, h, w) as from `encode_posterior`; noise: (n, c, h, w) standard normal. The log-variance is
    clamped to [-30, 20] as in the VAE itself.
    """
    mean, logvar = at_least_float32(posterior).chunk(2, dim=1)
    if noise is None:
        return scaling_factor * mean
    std = torch.exp(0.5 * logvar.clamp(-30.0, 20.0))
    return scaling_factor * (mean + std * noise.to(mean))


class Diffusion(nn.Module):
    """(latent, timestep, text condition, noise) -> feature maps (n, C, h, w) of named blocks, as the UNet gives them.

    Blocks are called "down0", "down1", ..., "mid", "up0", "up1", ...; a block's map is its output, after its
    down- or upsampler. Parts are called as in diffusers, "up1.attentions.1"; "up1.resnets.2.input" is what a part
    reads. Gradients reach the latents and the condition, never the frozen weights.
    """

    def __init__(
        self,
        unet: UNet2DConditionModel,  # is frozen, and cut in place after the last of `blocks`
        scheduler: DDIMScheduler,
        blocks: Sequence[str] = ("up1",),
        recompute: bool = False,  # gradient checkpointing: less memory, more time, the same numbers
    ) -> None:
        super().__init__()
        for name in blocks:
            find_tap(unet, name)
        self.blocks = tuple(blocks)
        self.last = max(blocks, key=lambda name: _order(unet, name))
        self.unet = _cut(unet.requires_grad_(False).eval(), self.last)
        self.scheduler = scheduler
        if recompute:
            self.unet.enable_gradient_checkpointing()

    @property
    def dtype(self) -> torch.dtype:
        return self.unet.dtype

    @property
    def device(self) -> torch.device:
        return self.unet.device

    def train(self, mode: bool = True) -> Diffusion:
        """Frozen: stays in evaluation mode."""
        return super().train(False)

    def noised(self, latents: Tensor, noise: Tensor, timestep: int | Tensor) -> Tensor:
        """x_t = sqrt(abar_t) z + sqrt(1 - abar_t) eps, Eq. (1); z, eps (n, c, h', w'), timestep one or (n,)."""
        return self.scheduler.add_noise(latents, noise, _expand(timestep, latents))

    def features(
        self,
        latents: Tensor,  # (n, c, h', w'); sides are multiples of the UNet's downsampling
        timestep: int | Tensor,  # diffusion step, one or (n,)
        condition: Tensor,  # (n, L, D), what the cross-attention layers read
        noise: Tensor | None,  # (n, c, h', w'); None: the clean latents go in
    ) -> dict[str, Tensor]:
        """UNet_{<= block}(x_t, t, c) of Eq. (3): the maps of `blocks`, in the UNet's dtype."""
        divisor = 2**self.unet.num_upsamplers
        if any(side % divisor for side in latents.shape[-2:]):  # the stock UNet would resize between blocks
            raise ValueError(f"latent size {tuple(latents.shape[-2:])} must be a multiple of {divisor} per side")
        timestep = _expand(timestep, latents)
        sample = latents if noise is None else self.noised(latents, noise, timestep)
        found: dict[str, Tensor] = {}
        whole = self.last if "." not in self.last else None  # is the UNet's output
        hooked = [name for name in self.blocks if name != whole]
        handles = [_keep(find_tap(self.unet, name), name, found) for name in hooked]
        try:
            output = self.unet(sample.to(self.dtype), timestep, condition.to(self.dtype), return_dict=False)
        finally:
            for handle in handles:
                handle.remove()
        if whole:
            found[whole] = output[0]
        return {name: found[name] for name in self.blocks}


def name_blocks(unet: UNet2DConditionModel) -> dict[str, nn.Module]:
    """The UNet's blocks by name, in the order in which they run."""
    blocks = {f"down{i}": block for i, block in enumerate(unet.down_blocks)}
    blocks |= {"mid": unet.mid_block} if unet.mid_block is not None else {}
    return blocks | {f"up{i}": block for i, block in enumerate(unet.up_blocks)}


def find_tap(unet: UNet2DConditionModel, tap: str) -> nn.Module:
    """The block, or part of a block, of a name, or that reads what the name says; ValueError if the UNet has none."""
    blocks, (name, _, part) = name_blocks(unet), tap.removesuffix(INPUT).partition(".")
    if name not in blocks:
        raise ValueError(f"the UNet has no block {name}; it has {', '.join(blocks)}")
    try:
        return blocks[name].get_submodule(part)
    except AttributeError:
        raise ValueError(f"the UNet has no {tap}: its {name} consists of {_list_parts(blocks[name])}") from None


def _list_parts(block: nn.Module) -> str:
    parts = [f"{name}.{i}" for name in ("resnets", "attentions") for i in range(len(getattr(block, name, ())))]
    return ", ".join(parts)


def _order(unet: UNet2DConditionModel, tap: str) -> tuple[int, float]:
    """When a tap's map is there: by block, and in a block by the number of its layer, itself after its parts."""
    name, _, part = tap.partition(".")
    number = float(part.split(".")[1]) if part.startswith(("resnets.", "attentions.")) else float("inf")
    return list(name_blocks(unet)).index(name), number


def _cut(unet: UNet2DConditionModel, last: str) -> UNet2DConditionModel:
    """Drop what follows a tap, in place: the stock forward then returns the output of what is left of its block."""
    last, _, part = last.partition(".")
    kept = list(name_blocks(unet))
    kept = kept[: kept.index(last) + 1]
    if last.startswith("up") and part.startswith(("resnets.", "attentions.")):
        block, count = find_tap(unet, last), int(part.split(".")[1]) + 1
        block.resnets, block.upsamplers = block.resnets[:count], None
        if hasattr(block, "attentions"):
            block.attentions = block.attentions[:count]
    unet.down_blocks = unet.down_blocks[: sum(name.startswith("down") for name in kept)]
    unet.mid_block = unet.mid_block if "mid" in kept else None
    unet.up_blocks = unet.up_blocks[: sum(name.startswith("up") for name in kept)]
    unet.conv_norm_out = None
    unet.conv_act = None
    unet.conv_out = nn.Identity()
    return unet


def _expand(timestep: int | Tensor, latents: Tensor) -> Tensor:
    """One timestep per latent, (n,), filled in on the device: copying it there would wait."""
    if isinstance(timestep, Tensor):
        return timestep.to(latents.device).expand(len(latents))
    return torch.full((len(latents),), timestep, device=latents.device)


def _keep(module: nn.Module, name: str, found: dict[str, Tensor]) -> RemovableHandle:
    """Lets a block note its output, a down-block without its skip connections; or its input, as other hooks get it."""

    def keep_output(block: nn.Module, inputs: tuple, output: Tensor | tuple) -> None:
        found[name] = output[0] if isinstance(output, tuple) else output

    def keep_input(block: nn.Module, inputs: tuple) -> None:
        found[name] = inputs[0]

    if name.endswith(INPUT):
        return module.register_forward_pre_hook(keep_input, prepend=True)
    return module.register_forward_hook(keep_output)
