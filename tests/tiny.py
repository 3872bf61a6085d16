"""Tiny real networks in the ordinary folder formats: diffusers and transformers classes, a few thousand
weights each.

Built in a second and deterministic: what transformers draws for a seed changes with its version and torch's, so
for seed 0 its networks have the weights in tests/golden/network. Sizes: VAE stride 8 with 4 latent channels, a
UNet of 3 levels (image sides must be multiples of 32), text width 32, DINOv2 with 16 patches of width 24, CLIP
with 16 patches of width 16 and image embeddings of 12.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    Dinov2Config,
    Dinov2Model,
)
from transformers.utils import logging

from model.backbone.text import build_byte_tokenizer

SD_CONFIG = {
    "vae": {
        "block_out_channels": [8, 8, 8, 16],
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "latent_channels": 4,
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "sample_size": 64,
        "scaling_factor": 0.18215,
    },
    "unet": {
        "block_out_channels": [16, 24, 32],
        "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
        "attention_head_dim": [2, 3, 4],
        "cross_attention_dim": 32,
        "in_channels": 4,
        "out_channels": 4,
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "sample_size": 8,
        "use_linear_projection": True,
    },
    "text_encoder": {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 77,
        "vocab_size": 514,
        "hidden_act": "gelu",
        "bos_token_id": 0,
        "eos_token_id": 2,
        "pad_token_id": 1,
        "projection_dim": 32,
    },
    "tokenizer": {"pad_token": "!"},
    "scheduler": {
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "num_train_timesteps": 1000,
        "prediction_type": "v_prediction",
        "clip_sample": False,
        "set_alpha_to_one": False,
        "steps_offset": 1,
    },
}
IMAGE_SIZE = (64, 64)
TEXT_WIDTH = 32
DINO_SHAPE = (17, 24)  # (tokens, features) of one image
CLIP_FEAT_SHAPE = (17, 16)
CLIP_HEAD_SHAPE = (1, 12)


def build_tiny_stable_diffusion(folder: str | Path, seed: int = 0) -> Path:
    """Write a tiny v-prediction Stable Diffusion model into `folder`: diffusers layout, safetensors."""
    folder = Path(folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        logging.disable_progress_bar()
        AutoencoderKL(**SD_CONFIG["vae"]).save_pretrained(folder / "vae")
        UNet2DConditionModel(**SD_CONFIG["unet"]).save_pretrained(folder / "unet")
        CLIPTextModel(CLIPTextConfig(**SD_CONFIG["text_encoder"])).save_pretrained(folder / "text_encoder")
    _fix_weights(folder / "text_encoder", "text", seed)
    build_byte_tokenizer(514).save_pretrained(folder / "tokenizer")
    DDIMScheduler(**SD_CONFIG["scheduler"]).save_pretrained(folder / "scheduler")
    index = {
        "_class_name": "StableDiffusionPipeline",
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    (folder / "model_index.json").write_text(json.dumps(index, indent=2))
    return folder


def build_tiny_dinov2(folder: str | Path, seed: int = 0) -> Path:
    """Write a tiny DINOv2 with its preprocessor_config.json: crops of 56 px, 4 x 4 patches, width 24."""
    folder = Path(folder)
    config = Dinov2Config(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=3, mlp_ratio=2, patch_size=14, image_size=56
    )
    _save_vision(folder, lambda: Dinov2Model(config), seed)
    _fix_weights(folder, "dino", seed)
    _write_preprocessor(folder, "BitImageProcessor", short_side=64, crop=56)
    return folder


def build_tiny_clip_vision(folder: str | Path, seed: int = 0) -> Path:
    """Write a tiny CLIP vision tower with its preprocessor_config.json: 56 px, 4 x 4 patches, width 16."""
    folder = Path(folder)
    config = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        patch_size=14,
        image_size=56,
        projection_dim=12,
    )
    _save_vision(folder, lambda: CLIPVisionModelWithProjection(config), seed)
    _fix_weights(folder, "clip", seed)
    _write_preprocessor(folder, "CLIPImageProcessor", short_side=56, crop=56)
    return folder


def _save_vision(folder: Path, build, seed: int) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        logging.disable_progress_bar()
        build().save_pretrained(folder)


def _fix_weights(folder: Path, name: str, seed: int) -> None:
    if seed == 0:
        shutil.copy(Path(__file__).parent / "golden" / "network" / f"{name}.safetensors", folder / "model.safetensors")


def _write_preprocessor(folder: Path, kind: str, short_side: int, crop: int) -> None:
    values = {
        "image_processor_type": kind,
        "crop_size": {"height": crop, "width": crop},
        "do_center_crop": True,
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
        "resample": 3,
        "rescale_factor": 1 / 255,
        "size": {"shortest_edge": short_side},
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(values, indent=2))
