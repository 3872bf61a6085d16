"""The implicit captioner of ODISE: from CLIP's embedding of an image to the UNet's condition, instead of words."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPVisionModelWithProjection

from model.backbone.architecture import CLIP_PIXELS
from model.error import NetworkError, NetworkNotFoundError
from utils.store import read_released, read_tensors

PREFIX = "backbone.feature_extractor."  # of the tensors in ODISE's checkpoint
TENSORS = (
    "alpha_cond",
    "clip_project.linear.weight",
    "clip_project.linear.bias",
    "clip_project.positional_embedding",
    "alpha_cond_time_embed",
    "time_embed_project.linear.weight",
    "time_embed_project.linear.bias",
    "time_embed_project.positional_embedding",
)
_REMEDY = "make the file again with script/convert_captioner.py"


class Captioner(nn.Module):
    """L tokens of width D for the cross-attention, and an offset of the timestep's embedding (E numbers)."""

    def __init__(self, tensors: dict[str, Tensor], clip: CLIPVisionModelWithProjection) -> None:
        super().__init__()
        self.clip = clip
        for name in TENSORS:
            self.register_buffer(name.replace(".", "_"), tensors[name].float())

    @torch.no_grad()
    def embed(self, images: Tensor) -> Tensor:
        """CLIP's projected embeddings (n, P), not normalised, of images (n, 3, H, W) in [-1, 1]."""
        size = self.clip.config.image_size
        pixels = F.interpolate((images + 1) / 2, (size, size), mode="bicubic", align_corners=False)
        # whatever the image processor says
        mean, std = (pixels.new_tensor(CLIP_PIXELS[f"image_{what}"])[:, None, None] for what in ("mean", "std"))
        return self.clip(pixel_values=((pixels - mean) / std).to(self.clip.dtype)).image_embeds.float()

    def context(self, embeddings: Tensor, empty: Tensor) -> Tensor:
        """(n, L, D): E("") + tanh(alpha_cond) (W_c p + b_c + pos_c), of p (n, P) and E("") (1, L, D)."""
        return empty + self._project(embeddings, "clip_project", self.alpha_cond)

    def time_offset(self, embeddings: Tensor) -> Tensor:
        """(n, E): tanh(alpha_t) (W_t p + b_t + pos_t), which is added to the output of the timestep's MLP."""
        return self._project(embeddings, "time_embed_project", self.alpha_cond_time_embed).flatten(1)

    def _project(self, embeddings: Tensor, name: str, alpha: Tensor) -> Tensor:
        weight, bias, position = (
            getattr(self, f"{name}_{part}") for part in ("linear_weight", "linear_bias", "positional_embedding")
        )
        return alpha.tanh() * (F.linear(embeddings, weight, bias)[:, None] + position)


@lru_cache(maxsize=1)  # ODISE's checkpoint is large
def read_captioner(path: str | Path) -> dict[str, Tensor]:
    """The eight tensors of ODISE's checkpoint, or of the safetensors file that script/convert_captioner.py writes.

    Raises NetworkNotFoundError or NetworkError, which name the file and what to do.
    """
    path = Path(path)
    if not path.is_file():
        raise NetworkNotFoundError(
            f"FEATURES.CAPTIONER {path}: no such file; it is ODISE's odise_label_coco_50e-b67d2efc.pth, or what "
            'script/convert_captioner.py makes of it. FEATURES.CAPTIONER "" takes the prompt FEATURES.PROMPT instead'
        )
    if path.suffix == ".safetensors":
        found = read_tensors(path, NetworkError, _REMEDY)[0]
    else:
        found = _pick(read_released(path, NetworkError))
    if missing := [name for name in TENSORS if name not in found]:
        raise NetworkError(f"{path} is no captioner of ODISE: it lacks {', '.join(missing)}; take another file")
    return {name: found[name] for name in TENSORS}


def _pick(content: object) -> dict[str, Tensor]:
    """The tensors below PREFIX of a checkpoint, without it."""
    content = content.get("model", content) if isinstance(content, dict) else {}
    return {
        name.removeprefix(PREFIX): value
        for name, value in content.items()
        if str(name).startswith(PREFIX) and isinstance(value, Tensor)
    }
