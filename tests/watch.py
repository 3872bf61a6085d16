"""What passes through the networks, the optimiser and the loaders while a command runs, seen from outside."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_pre_hook
from transformers import CLIPVisionModelWithProjection, Dinov2Model, PreTrainedTokenizerBase

from engine.transfer import Loader


@dataclass
class UNetCall:
    """One call of the UNet."""

    rows: int  # images times noise draws
    timesteps: set[int]
    size: tuple[int, int]  # (h, w) of the latent
    dtype: torch.dtype
    channels_last: bool
    learning: bool  # with gradients
    checkpointing: bool


@dataclass
class Step:
    """A step of the optimiser, as it begins."""

    lr: list[float]  # of each parameter group
    gradient: Tensor  # of all parameters, one after the other
    values: Tensor  # theirs


@dataclass
class Seen:
    """Calls in their order."""

    unet: list[UNetCall] = field(default_factory=list)
    vae: list[tuple[int, int]] = field(default_factory=list)  # (H, W) px
    dino: list[tuple[int, int]] = field(default_factory=list)  # (H, W) px
    clip: list[tuple[int, int]] = field(default_factory=list)  # (H, W) px
    texts: list[str] = field(default_factory=list)  # tokenised
    workers: list[int] = field(default_factory=list)  # of each loader
    batches: list[int] = field(default_factory=list)  # images encoded by the VAE at once
    steps: list[Step] = field(default_factory=list)
    resnets: int = 0  # calls of residual blocks

    @property
    def learning(self) -> list[UNetCall]:
        return [call for call in self.unet if call.learning]

    @property
    def judging(self) -> list[UNetCall]:
        return [call for call in self.unet if not call.learning]


@contextmanager
def watching() -> Iterator[Seen]:
    """Note what happens inside the block."""
    seen = Seen()

    def note_unet(module, sample, timestep, **_) -> None:
        weight = next(p for p in module.parameters() if p.ndim == 4 and p.shape[1] > 1 and p.shape[-1] > 1)
        call = UNetCall(
            rows=len(sample),
            timesteps=set(torch.as_tensor(timestep).flatten().tolist()),
            size=tuple(sample.shape[-2:]),
            dtype=sample.dtype,
            channels_last=weight.is_contiguous(memory_format=torch.channels_last),
            learning=torch.is_grad_enabled(),
            checkpointing=module.is_gradient_checkpointing,
        )
        seen.unet.append(call)

    def note_vae(module, x, **_) -> None:
        seen.vae.append(tuple(x.shape[-2:]))
        seen.batches.append(len(x))

    def note_size(sizes, module, pixel_values, **_) -> None:
        sizes.append(tuple(pixel_values.shape[-2:]))

    def note_text(module, text=None, **_) -> None:
        seen.texts.extend([text] if isinstance(text, str) else text or [])

    def note_resnet(module, **_) -> None:
        seen.resnets += 1

    def note_step(optimizer, *_) -> None:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        gradient, values = (torch.cat([part.detach().flatten() for part in all]) for all in (gradients, parameters))
        seen.steps.append(Step([group["lr"] for group in optimizer.param_groups], gradient, values))

    handle = register_optimizer_step_pre_hook(note_step)
    with pytest.MonkeyPatch.context() as patch:
        wrap(patch, UNet2DConditionModel, "forward", note_unet)
        wrap(patch, AutoencoderKL, "_encode", note_vae)
        wrap(
            patch,
            Dinov2Model,
            "forward",
            lambda module, pixel_values, **_: seen.dino.append(tuple(pixel_values.shape[-2:])),
        )
        wrap(
            patch,
            CLIPVisionModelWithProjection,
            "forward",
            lambda module, pixel_values, **_: seen.clip.append(tuple(pixel_values.shape[-2:])),
        )
        wrap(patch, PreTrainedTokenizerBase, "__call__", note_text)
        wrap(patch, ResnetBlock2D, "forward", note_resnet)
        wrap(patch, Loader, "__init__", lambda loader, num_workers=0, **_: seen.workers.append(num_workers))
        try:
            yield seen
        finally:
            handle.remove()


def wrap(patch: pytest.MonkeyPatch, owner: type, name: str, note: Callable[..., None]) -> None:
    """Let `note` have the arguments of a method, by their names, before it runs."""
    original = getattr(owner, name)
    signature = inspect.signature(original)

    def method(self, *args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(self, *args, **kwargs).arguments
        note(self, **{key: value for key, value in bound.items() if key not in ("self", "kwargs")})
        return original(self, *args, **kwargs)

    patch.setattr(owner, name, method)
