"""The mini image autoencoder: 96 x 96 images to 4 x 24 x 24 latents of unit deviation."""

import copy
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import nn
from torch.nn import functional as F

from mini.pretrain.loop import Run, Schedule, Scores, fit
from mini.pretrain.scenes import SceneStore

CROP = 48  # training crop, px: the network is convolutional
KL_WEIGHT = 1e-5
ENCODE_BATCH = 50


def build_vae() -> AutoencoderKL:
    """Return an untrained autoencoder of stride 4."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 32, 48),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=96,
        scaling_factor=1.0,
        force_upcast=False,
        mid_block_add_attention=False,
    )


def to_tensor(images: np.ndarray, device: torch.device) -> torch.Tensor:
    """Turn uint8 images (n, H, W, 3) into float (n, 3, H, W) in [-1, 1]."""
    return torch.tensor(images, device=device).permute(0, 3, 1, 2).float() / 127.5 - 1


def draw_crops(images: np.ndarray, batch: int, generator: torch.Generator) -> np.ndarray:
    """Draw `batch` random CROP x CROP windows (batch, CROP, CROP, 3)."""
    n, height, width, _ = images.shape
    rows = torch.randint(n, (batch,), generator=generator).tolist()
    tops = torch.randint(height - CROP + 1, (batch,), generator=generator).tolist()
    lefts = torch.randint(width - CROP + 1, (batch,), generator=generator).tolist()
    return np.stack([images[r, y : y + CROP, x : x + CROP] for r, y, x in zip(rows, tops, lefts, strict=True)])


def train_vae(store: SceneStore, held_out: SceneStore, schedule: Schedule, folder: Path, out: Path, device) -> None:
    """Train the autoencoder on crops of the scenes and save it to `out`."""

    def compute_loss(vae: nn.Module, generator: torch.Generator) -> tuple[torch.Tensor, Scores]:
        x = to_tensor(draw_crops(store.image, schedule.local_batch, generator), device)
        posterior = vae.encode(x).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=generator).to(device)
        y = vae.decode(posterior.mean + posterior.std * noise).sample
        l1, l2, kl = F.l1_loss(y, x), F.mse_loss(y, x), posterior.kl().mean() / x[0].numel()
        return l1 + l2 + KL_WEIGHT * kl, {"l1": l1.item(), "kl": kl.item()}

    def evaluate(vae: nn.Module) -> Scores:
        x = to_tensor(held_out.image[:: max(1, len(held_out) // 100)], device)
        with torch.no_grad():
            y = vae.decode(vae.encode(x).latent_dist.mode()).sample
        return {"psnr": (10 * torch.log10(4 / (y - x).square().mean())).item()}

    def export(vae: nn.Module) -> None:
        whiten(copy.deepcopy(vae), store.image[:500], device).save_pretrained(out)

    fit(Run("vae", build_vae().to(device), schedule, folder), compute_loss, evaluate, export)


@torch.no_grad()
def whiten(vae: AutoencoderKL, images: np.ndarray, device: torch.device) -> AutoencoderKL:
    """Change the basis of the latents so that they are white (mean 0, covariance 1) on `images`.

    Every latent channel then stands out equally from the noise of diffusion. The change is folded into
    the two 1 x 1 convolutions around the latent, so the reconstruction stays as it is. The deviation of
    the posterior is tiny and becomes a constant.
    """
    mean, logvar = encode(vae, images, device).double().transpose(0, 1).flatten(1).split(4)
    centre = mean.mean(1)
    values, vectors = torch.linalg.eigh(torch.cov(mean))
    forward = vectors.T / values.sqrt()[:, None]  # new = forward (old - centre)
    backward = vectors * values.sqrt()
    variance = forward**2 @ logvar.exp().mean(1)
    into, back = vae.quant_conv, vae.post_quant_conv
    weight, bias = into.weight.double().cpu()[:, :, 0, 0], into.bias.double().cpu()
    weight = torch.cat([forward @ weight[:4], torch.zeros_like(weight[4:])])
    into.weight.copy_(weight[:, :, None, None])
    into.bias.copy_(torch.cat([forward @ (bias[:4] - centre), variance.log()]))
    back_weight = back.weight.double().cpu()[:, :, 0, 0]
    back.bias.copy_(back.bias.double().cpu() + back_weight @ centre)
    back.weight.copy_((back_weight @ backward)[:, :, None, None])
    return vae


@torch.no_grad()
def encode(vae: nn.Module, images: np.ndarray, device: torch.device) -> torch.Tensor:
    """Return the posterior's mean and log variance of images (n, H, W, 3), half precision (n, 8, h, w)."""
    chunks = [
        vae.encode(to_tensor(images[i : i + ENCODE_BATCH], device)).latent_dist.parameters.half().cpu()
        for i in range(0, len(images), ENCODE_BATCH)
    ]
    return torch.cat(chunks)
