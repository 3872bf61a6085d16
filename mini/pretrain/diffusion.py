"""The mini Stable Diffusion: v-prediction plus a text-grounded objective on the features used for matching.

The grounded objective asks the features of `up_blocks[1]` for the part labels that the caption names, through
a throw-away classifier on cosine similarity, the matcher's own metric.
"""

import copy
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import nn
from torch.nn import functional as F
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from mini.pretrain.captions import KINDS_SHARE, CaptionSampler, LabelSpace
from mini.pretrain.loop import Run, Schedule, Scores, change_config, fit, load_as_float32
from mini.pretrain.process import first_process_first
from mini.pretrain.proxy import encode_text, grounding_scores
from mini.pretrain.scenes import SceneStore, to_cells
from mini.pretrain.tokenizer import POSITIONS, VOCABULARY_FILES, tokenize
from mini.pretrain.vae import encode
from utils.store import atomic_path

WIDTH = 96  # of the text condition
FEATURE_BLOCK = 1  # up block whose output is matched
STEPS = 1000
TIMESTEP_SHARES = {150: 0.62, 400: 0.2, STEPS: 0.18}  # share of the timesteps drawn below each limit
KINDS_UNTIL = 0.65  # share of the training in which plain captions may ask for kinds of part
GROUNDING = 1.0  # weight of the grounded objective
ASKING = 2.0  # weight of telling from the text alone which labels it asks for
TAU = 0.08  # temperature of the cosine classifier


def build_unet() -> UNet2DConditionModel:
    """Return an untrained UNet on 24 x 24 latents with levels at 24 x 24 and 12 x 12.

    The second up block works at 24 x 24: about as many cells across an object as Stable Diffusion 2-1
    has. Computed at 12 x 12, its features could not resolve half of the parts. The first level has no
    self attention, which over 576 positions would cost half the training time.
    """
    return UNet2DConditionModel(
        sample_size=24,
        in_channels=4,
        out_channels=4,
        down_block_types=("CrossAttnDownBlock2D",) * 2,
        up_block_types=("CrossAttnUpBlock2D",) * 2,
        block_out_channels=(64, 96),
        layers_per_block=(0, 1),
        norm_num_groups=16,
        cross_attention_dim=WIDTH,
        attention_head_dim=(2, 4),
        only_cross_attention=(True, False),
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


def predict(
    unet: UNet2DConditionModel, x_t: torch.Tensor, timesteps: torch.Tensor, tokens: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the predicted v (n, 4, 24, 24) and the feature maps (n, C, 24, 24) under tokens (n, 77, D)."""
    kept = []
    block = unet.up_blocks[FEATURE_BLOCK]
    handle = block.register_forward_hook(lambda module, inputs, output: kept.append(output))
    try:
        velocity = unet(x_t, timesteps, tokens).sample
    finally:
        handle.remove()
    return velocity, kept[0]


class GroundedDiffusion(nn.Module):
    """UNet and text encoder with the throw-away classifiers they are trained with."""

    def __init__(self, tokenizer: CLIPTokenizer, labels: int):
        super().__init__()
        self.unet = build_unet()
        self.text_encoder = build_text_encoder(tokenizer)
        channels = self.unet.config.block_out_channels[::-1][FEATURE_BLOCK]
        self.prototype = nn.Parameter(torch.randn(labels, channels))
        self.asked = nn.Linear(WIDTH, labels)

    def grounding_loss(self, feat: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return the balanced cross-entropy of feature maps (n, C, h, w) against labels (n, h, w)."""
        prototype = F.normalize(self.prototype, dim=1)
        logits = torch.einsum("nchw,kc->nkhw", F.normalize(feat, dim=1), prototype) / TAU
        weights = balance(labels, len(prototype))
        return (F.cross_entropy(logits, labels, reduction="none") * weights).mean()

    def asking_loss(self, tokens: torch.Tensor, asked: torch.Tensor) -> torch.Tensor:
        """Return how badly text tokens (n, 77, D) tell the labels asked for, multi-hot (n, labels)."""
        return F.binary_cross_entropy_with_logits(self.asked(tokens.mean(1)), asked)


def denoising_loss(velocity: torch.Tensor, target: torch.Tensor, true: torch.Tensor) -> torch.Tensor:
    """Return the mean squared error of v (n, 4, h, w) over the images whose caption is true (n,).

    An untrue one would teach the UNet not to listen.
    """
    errors = F.mse_loss(velocity, target, reduction="none").mean(dim=(1, 2, 3))
    return (errors * true).sum() / true.sum().clamp(min=1)


def balance(labels: torch.Tensor, count: int) -> torch.Tensor:
    """Return weights (n, h, w): one over the root of the label's area in its image, mean 1 per image."""
    flat = labels.flatten(1)
    area = torch.zeros(len(flat), count, device=flat.device)
    area = area.scatter_add_(1, flat, torch.ones_like(flat, dtype=area.dtype))
    weights = area.gather(1, flat).rsqrt()
    return (weights / weights.mean(1, keepdim=True)).view_as(labels)


def draw_timesteps(batch: int, generator: torch.Generator, shares: Mapping[int, float]) -> torch.Tensor:
    """Draw timesteps (batch,), each uniform below one of the limits of `shares`."""
    limits, weights = (torch.tensor(list(values)) for values in (shares, shares.values()))
    limit = limits[torch.multinomial(weights, batch, replacement=True, generator=generator)]
    return (torch.rand(batch, generator=generator) * limit).long()


def draw_latents(moments: torch.Tensor, rows: torch.Tensor, scale: float, generator: torch.Generator) -> torch.Tensor:
    """Draw scaled latents (n, 4, 24, 24) from the posteriors of scenes."""
    mean, logvar = moments[rows].float().chunk(2, dim=1)
    noise = torch.randn(mean.shape, generator=generator)
    return scale * (mean + torch.exp(0.5 * logvar) * noise)


class Captions:
    """Draws captions and label maps of scenes."""

    def __init__(self, store: SceneStore, space: LabelSpace, categories):
        self.store, self.space = store, space
        self.detail, self.instance = to_cells(store.detail, store.instance)
        self.sampler = CaptionSampler(categories)

    def draw(
        self, rows: torch.Tensor, kinds_share: float, generator: torch.Generator
    ) -> tuple[list[str], torch.Tensor, torch.Tensor, torch.Tensor]:
        """Draw captions: texts, which are true (n,), label maps (n, 24, 24), multi-hot labels asked for (n, labels)."""
        rng = np.random.default_rng(torch.randint(2**62, (1,), generator=generator).item())
        texts, true, labels, asked = [], [], [], torch.zeros(len(rows), self.space.size)
        for i, row in enumerate(rows.tolist()):
            caption = self.sampler.draw(rng, self.store.objects[row], self.store.relations[row], kinds_share)
            names = [o["category"] for o in self.store.objects[row]]
            texts.append(caption.text)
            true.append(caption.true)
            asked[i, self.space.asked(caption)] = 1.0
            labels.append(self.space.label_map(caption, self.detail[row], self.instance[row], names))
        return texts, torch.tensor(true), torch.from_numpy(np.stack(labels)), asked


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
    with first_process_first():
        moments = load_moments(vae, store, folder / "moments.pt", device)
    captions = Captions(store, space, categories)
    held_out_latents = scale * encode(vae, held_out.image, device)[:, :4].float().to(device)
    run = Run("diffusion", GroundedDiffusion(tokenizer, space.size).to(device), schedule, folder)

    def compute_loss(networks: nn.Module, generator: torch.Generator) -> tuple[torch.Tensor, Scores]:
        rows = torch.randint(len(store), (schedule.local_batch,), generator=generator)
        kinds_share = KINDS_SHARE if run.step < round(KINDS_UNTIL * schedule.steps) else 0.0
        texts, true, labels, asked = captions.draw(rows, kinds_share, generator)
        z = draw_latents(moments, rows, scale, generator)
        timesteps = draw_timesteps(len(z), generator, TIMESTEP_SHARES)
        noise = torch.randn(z.shape, generator=generator)
        x_t, target = scheduler.add_noise(z, noise, timesteps), scheduler.get_velocity(z, noise, timesteps)
        tokens = networks.text_encoder(tokenize(tokenizer, texts).to(device)).last_hidden_state
        velocity, feat = predict(networks.unet, x_t.to(device), timesteps.to(device), tokens)
        losses = {
            "denoising": denoising_loss(velocity, target.to(device), true.to(device)),
            "grounding": networks.grounding_loss(feat, labels.to(device)),
            "asking": networks.asking_loss(tokens, asked.to(device)),
        }
        loss = losses["denoising"] + GROUNDING * losses["grounding"] + ASKING * losses["asking"]
        return loss, {name: value.item() for name, value in losses.items()}

    def evaluate(networks: nn.Module) -> Scores:
        return grounding_scores(
            lambda *inputs: predict(networks.unet, *inputs)[1],
            lambda texts: encode_text(tokenizer, networks.text_encoder, texts),
            scheduler,
            held_out_latents,
            held_out,
        )

    def export(networks: nn.Module) -> None:
        save_pipeline(vae, networks.unet, networks.text_encoder, scheduler, folder / "tokenizer", out)

    fit(run, compute_loss, evaluate, export)


def load_moments(vae: AutoencoderKL, store: SceneStore, path: Path, device) -> torch.Tensor:
    """Encode every scene once (n, 8, 24, 24), or read what an earlier run encoded with this VAE."""
    if path.exists():
        moments = torch.load(path, weights_only=True)
        probe = encode(vae, store.image[:4], device)
        if len(moments) == len(store) and torch.allclose(moments[:4].float(), probe.float(), atol=0.01):
            return moments
    moments = encode(vae, store.image, device)
    with atomic_path(path) as temporary:
        torch.save(moments, temporary)
    return moments


def save_pipeline(
    vae: AutoencoderKL,
    unet: UNet2DConditionModel,
    text_encoder: CLIPTextModel,
    scheduler,
    tokenizer: Path,
    out: Path,
) -> None:
    """Write an ordinary half-precision diffusers folder, without the classifiers.

    tokenizer: its folder, whose vocabulary is added for versions of transformers that do not read tokenizer.json.
    """
    pipeline = StableDiffusionPipeline(
        vae=copy.deepcopy(vae).half(),
        text_encoder=copy.deepcopy(text_encoder).half(),
        tokenizer=CLIPTokenizer.from_pretrained(tokenizer),
        unet=copy.deepcopy(unet).half(),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(out)
    load_as_float32(out / "text_encoder")
    for part in ("vae", "unet"):
        change_config(out / part, without=("_name_or_path",))  # the folder that it was loaded from
    for name in VOCABULARY_FILES:
        shutil.copyfile(tokenizer / name, out / "tokenizer" / name)
