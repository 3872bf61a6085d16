"""Peak memory of a training step, predicted from tensors without storage: no weights, no device, seconds.

Counted are tensors: weights, activations kept for the backward pass, gradients and what operators return. What a
device adds (workspace of convolutions, rounding of the allocator, the CUDA context) is not. Attention is PyTorch's
fused kernel.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import CLIPTextConfig, CLIPTextModel

from loss import build_loss
from model.backbone.diffusion import cut_unet
from model.backbone.text import PromptEncoder
from script.speed.flops import StubTokenizer, Work, build_cpm
from script.speed.scaling import gradient_bytes
from utils.localise import FeatureSimilarity

ADAM_COPIES = 4  # of the prompt's parameters in float32: values, gradient, two moments


class MemoryTracker(TorchDispatchMode):
    """Bytes of the tensors made inside the block: `current` and `peak`. Views count once; the dead are taken off."""

    def __init__(self) -> None:
        super().__init__()
        self.current = self.peak = 0
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._note(leaf.untyped_storage())
        return result

    def _note(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._sizes:
            return
        self._sizes[key] = storage.nbytes()
        self.current += storage.nbytes()
        self.peak = max(self.peak, self.current)
        weakref.finalize(storage, self._drop, key)

    def _drop(self, key: int) -> None:
        self.current -= self._sizes.pop(key)


def predict_training_peak(work: Work, dtype: torch.dtype, recompute: bool = False) -> int:
    """Bytes at the peak of a training step of `work.batch_size` pairs, networks and optimiser included."""
    with FakeTensorMode(), MemoryTracker() as tracker:
        unet, text = _build_networks(work, dtype, recompute)
        run_step(work, unet, text)
    return tracker.peak + ADAM_COPIES * gradient_bytes(build_cpm(work))[1]


def run_step(work: Work, unet: UNet2DConditionModel, text: PromptEncoder) -> None:
    """Text transformer, UNet and loss, forward and backward to the tokens."""
    n_pairs, dtype, points = work.batch_size, unet.dtype, (work.batch_size, work.n_points)
    tokens = torch.zeros(n_pairs, text.n_positions, text.width, requires_grad=True)
    latents = torch.zeros(2 * n_pairs, *work.latent_shape, dtype=dtype)
    embeds = text.encode_tokens(tokens).to(dtype).repeat(2, 1, 1)
    features = unet(latents, torch.zeros(2 * n_pairs), embeds, return_dict=False)[0].float()
    kps, mask = torch.zeros(*points, 2), torch.ones(points, dtype=torch.bool)
    loss_fn = build_loss("kernel_smoothed_cross_entropy")
    loss_fn(FeatureSimilarity(*features.chunk(2)), kps, kps, mask, work.image_size).mean().backward()


def _build_networks(work: Work, dtype: torch.dtype, recompute: bool) -> tuple[UNet2DConditionModel, PromptEncoder]:
    with _default_dtype(dtype):
        unet = UNet2DConditionModel.from_config(work.configs["unet"])
        text = CLIPTextModel(CLIPTextConfig.from_dict(work.configs["text_encoder"]))
    cut_unet(unet.requires_grad_(False).eval(), work.layer, recompute)
    return unet, PromptEncoder(text, StubTokenizer)


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
