"""The mini Stable Diffusion: v-prediction plus a text-grounded objective on the features used for matching.

The grounded objective asks the features of `up_blocks[1]` for the part labels that the caption names, through
a throw-away classifier on cosine similarity, the matcher's own metric.
"""

import copy
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import nn
from torch.nn import functional as F
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from script.mini.captions import BACKGROUND, CaptionSampler, LabelSpace
from script.mini.loop import Run, Schedule, Scores, fit
from script.mini.proxy import encode_text, grounding_scores
from script.mini.scenes import SceneStore, to_cells
from script.mini.tokenizer import POSITIONS, tokenize
from script.mini.vae import encode

WIDTH = 96  # of the text condition
FEATURE_BLOCK = 1  # up block whose output is matched
STEPS = 1000
EARLY, EARLY_SHARE = 400, 0.75  # this share of the timesteps is drawn below EARLY
DENOISE_SHARE = 1 / 3  # share of the steps that also predict v: the rest ends at the feature block
GROUNDING = 0.5  # weight of the grounded objective
TAU = 0.08  # temperature of the cosine classifier
BLUR_CELLS, BLUR_SHARE = 2.0, 0.5  # how far and how much the labels of neighbouring cells count


def build_unet() -> UNet2DConditionModel:
    """Return an untrained UNet: 3 levels on 24 x 24 latents, cross attention at each.

    The first level has no self attention: over 576 positions it would cost half the training time.
    """
    return UNet2DConditionModel(
        sample_size=24,
        in_channels=4,
        out_channels=4,
        down_block_types=("CrossAttnDownBlock2D",) * 3,
        up_block_types=("CrossAttnUpBlock2D",) * 3,
        block_out_channels=(48, 64, 96),
        layers_per_block=1,
        norm_num_groups=16,
        cross_attention_dim=WIDTH,
        attention_head_dim=(2, 4, 4),
        only_cross_attention=(True, False, False),
        use_linear_projection=True,
    )


def build_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """Return an untrained CLIP text transformer for a tokenizer."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=3 * WIDTH,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=POSITIONS,
            hidden_act="gelu",
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def build_scheduler() -> DDIMScheduler:
    """Return Stable Diffusion 2-1's noise schedule."""
    return DDIMScheduler(
        num_train_timesteps=STEPS,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="v_prediction",
    )


def cut_unet(unet: UNet2DConditionModel) -> UNet2DConditionModel:
    """Return a view of the UNet (same weights) whose sample is the feature map."""
    cut = copy.copy(unet)
    cut._modules = dict(unet._modules)
    cut.up_blocks = unet.up_blocks[: FEATURE_BLOCK + 1]
    cut.conv_norm_out = None
    cut.conv_out = nn.Identity()
    return cut


def extract_features(
    unet: UNet2DConditionModel, x_t: torch.Tensor, timesteps: torch.Tensor, tokens: torch.Tensor
) -> torch.Tensor:
    """Return the feature maps (n, C, 24, 24) of noisy latents under a text condition (n, 77, D)."""
    return cut_unet(unet)(x_t, timesteps, tokens).sample


def predict(
    unet: UNet2DConditionModel, x_t: torch.Tensor, timesteps: torch.Tensor, tokens: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the predicted v (n, 4, 24, 24) and the feature maps (n, C, 24, 24)."""
    kept = []
    handle = unet.up_blocks[FEATURE_BLOCK].register_forward_hook(
        lambda module, inputs, output: kept.append(output)
    )
    try:
        velocity = unet(x_t, timesteps, tokens).sample
    finally:
        handle.remove()
    return velocity, kept[0]


class GroundedDiffusion(nn.Module):
    """UNet and text encoder with the classifier of the grounded objective."""

    def __init__(self, tokenizer: CLIPTokenizer, labels: int):
        super().__init__()
        self.unet = build_unet()
        self.text_encoder = build_text_encoder(tokenizer)
        channels = self.unet.config.block_out_channels[::-1][FEATURE_BLOCK]
        self.prototype = nn.Parameter(torch.randn(labels, channels))

    def grounding_loss(self, feat: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return the balanced cross-entropy of feature maps (n, C, h, w) against labels (n, h, w)."""
        prototype = F.normalize(self.prototype, dim=1)
        logits = torch.einsum("nchw,kc->nkhw", F.normalize(feat, dim=1), prototype) / TAU
        weights = balance(labels, len(prototype))
        return (F.cross_entropy(logits, soften(labels, len(prototype)), reduction="none") * weights).mean()


def balance(labels: torch.Tensor, count: int) -> torch.Tensor:
    """Return weights (n, h, w): one over the root of the label's area in its image, mean 1 per image."""
    flat = labels.flatten(1)
    area = torch.zeros(len(flat), count, device=flat.device)
    area = area.scatter_add_(1, flat, torch.ones_like(flat, dtype=area.dtype))
    weights = area.gather(1, flat).rsqrt()
    return (weights / weights.mean(1, keepdim=True)).view_as(labels)


def soften(labels: torch.Tensor, count: int) -> torch.Tensor:
    """Return target shares (n, count, h, w) of labels (n, h, w).

    Inside objects, BLUR_SHARE of the target is what the neighbourhood shows (Gaussian over object cells), so
    that features also tell which end of a part they are on; background stays background.
    """
    hard = F.one_hot(labels, count).permute(0, 3, 1, 2).float()
    inside = (labels != BACKGROUND).unsqueeze(1).float()
    offset = torch.arange(labels.shape[-1], device=labels.device).float()
    kernel = torch.exp(-((offset - offset[:, None]) ** 2) / (2 * BLUR_CELLS**2))
    around, weight = (kernel @ value @ kernel for value in (hard * inside, inside))
    around = around / weight.clamp_min(1e-6)
    return torch.where(inside > 0, (1 - BLUR_SHARE) * hard + BLUR_SHARE * around, hard)


def draw_timesteps(batch: int, generator: torch.Generator) -> torch.Tensor:
    """Draw timesteps (batch,): EARLY_SHARE of them in [0, EARLY), the others in [0, STEPS)."""
    early = torch.rand(batch, generator=generator) < EARLY_SHARE
    uniform = torch.rand(batch, generator=generator)
    return (uniform * torch.where(early, EARLY, STEPS)).long()


class Batches:
    """Draws noisy latents, captions and label maps from the pre-encoded scenes."""

    def __init__(self, store: SceneStore, moments: torch.Tensor, scale: float, space: LabelSpace, categories):
        self.objects, self.space = store.objects, space
        self.part, self.instance = to_cells(store.part, store.instance)
        self.moments, self.scale = moments, scale
        self.sampler = CaptionSampler(categories)

    def latents(self, rows: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Draw scaled latents (n, 4, 24, 24) from the posteriors of scenes."""
        mean, logvar = self.moments[rows].float().chunk(2, dim=1)
        noise = torch.randn(mean.shape, generator=generator)
        return self.scale * (mean + torch.exp(0.5 * logvar) * noise)

    def captions(self, rows: torch.Tensor, generator: torch.Generator) -> tuple[list[str], torch.Tensor]:
        """Draw a caption for each scene and the labels (n, 24, 24) it asks for."""
        rng = np.random.default_rng(torch.randint(2**62, (1,), generator=generator).item())
        texts, labels = [], []
        for row in rows.tolist():
            caption = self.sampler.draw(rng, self.objects[row])
            names = [o["category"] for o in self.objects[row]]
            texts.append(caption.text)
            labels.append(self.space.label_map(caption, self.part[row], self.instance[row], names))
        return texts, torch.from_numpy(np.stack(labels))


def train_diffusion(
    store: SceneStore,
    held_out: SceneStore,
    categories,
    tokenizer: CLIPTokenizer,
    vae: AutoencoderKL,
    schedule: Schedule,
    folder: Path,
    out: Path,
    device,
) -> None:
    """Train UNet and text encoder together and save the whole pipeline to `out`."""
    space, scheduler, scale = LabelSpace(categories), build_scheduler(), vae.config.scaling_factor
    batches = Batches(
        store, load_moments(vae, store, folder / "moments.pt", device), scale, space, categories
    )
    held_out_latents = scale * encode(vae, held_out.image, device)[:, :4].float().to(device)
    networks = GroundedDiffusion(tokenizer, space.size).to(device)

    def compute_loss(networks: nn.Module, generator: torch.Generator) -> tuple[torch.Tensor, Scores]:
        rows = torch.randint(len(store), (schedule.batch,), generator=generator)
        texts, labels = batches.captions(rows, generator)
        z, timesteps = batches.latents(rows, generator), draw_timesteps(schedule.batch, generator)
        noise = torch.randn(z.shape, generator=generator)
        x_t, target = scheduler.add_noise(z, noise, timesteps), scheduler.get_velocity(z, noise, timesteps)
        tokens = networks.text_encoder(tokenize(tokenizer, texts).to(device)).last_hidden_state
        inputs = x_t.to(device), timesteps.to(device), tokens
        if torch.rand(1, generator=generator).item() >= DENOISE_SHARE:
            grounding = networks.grounding_loss(extract_features(networks.unet, *inputs), labels.to(device))
            return GROUNDING * grounding, {"grounding": grounding.item()}
        velocity, feat = predict(networks.unet, *inputs)
        denoising = F.mse_loss(velocity, target.to(device))
        grounding = networks.grounding_loss(feat, labels.to(device))
        return denoising + GROUNDING * grounding, {
            "grounding": grounding.item(),
            "denoising": denoising.item(),
        }

    def evaluate(networks: nn.Module) -> Scores:
        return grounding_scores(
            lambda *inputs: extract_features(networks.unet, *inputs),
            lambda texts: encode_text(tokenizer, networks.text_encoder, texts),
            scheduler,
            held_out_latents,
            held_out,
        )

    def export(networks: nn.Module) -> None:
        save_pipeline(vae, networks, tokenizer, scheduler, out)

    fit(Run("diffusion", networks, schedule, folder), compute_loss, evaluate, export)


def load_moments(vae: AutoencoderKL, store: SceneStore, path: Path, device) -> torch.Tensor:
    """Encode every scene once (n, 8, 24, 24), or read what an earlier run encoded."""
    if path.exists():
        moments = torch.load(path, weights_only=True)
        if len(moments) == len(store):
            return moments
    moments = encode(vae, store.image, device)
    torch.save(moments, path)
    return moments


def save_pipeline(vae, networks: GroundedDiffusion, tokenizer: CLIPTokenizer, scheduler, out: Path) -> None:
    """Write an ordinary half-precision diffusers folder without the classifier."""
    text_encoder = copy.deepcopy(networks.text_encoder).half()
    text_encoder.config.dtype = "float32"  # what to load it as: half precision is slow on CPUs
    pipeline = StableDiffusionPipeline(
        vae=copy.deepcopy(vae).half(),
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=copy.deepcopy(networks.unet).half(),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(out)
