"""Images to the VAE's posterior, and the posterior to latents."""

from __future__ import annotations

import torch
from torch import Tensor


def encode_posterior(vae, images: Tensor) -> Tensor:
    """Mean and log-variance of the VAE's posterior, stacked: (n, 2c, h, w), in the VAE's dtype.

    images: (n, 3, H, W) in [-1, 1].
    """
    images = images.to(device=vae.device, dtype=vae.dtype)
    return vae.encode(images).latent_dist.parameters


def draw_latents(posterior: Tensor, scaling_factor: float, noise: Tensor | None = None) -> Tensor:
    """z = scaling_factor * (mean + std * noise), float32 (n, c, h, w); the posterior's mode if noise is None.

    posterior: (n, 2c, h, w) as from `encode_posterior`; noise: (n, c, h, w) standard normal. The log-variance is
    clamped to [-30, 20] as in the VAE itself.
    """
    mean, logvar = posterior.float().chunk(2, dim=1)
    if noise is None:
        return scaling_factor * mean
    std = torch.exp(0.5 * logvar.clamp(-30.0, 20.0))
    return scaling_factor * (mean + std * noise.to(mean))
