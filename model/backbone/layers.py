"""Maps of several layers of Stable Diffusion for one large image, put together from overlapping windows."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from model.backbone.captioner import Captioner
from model.backbone.diffusion import Diffusion, draw_latents, encode_posterior
from model.backbone.facts import INPUT
from model.backbone.freeu import FreeU
from model.backbone.text import PromptEncoder


class LayerExtractor:
    """One pass of the UNet for each window, at one timestep, under one noise for all windows and images."""

    def __init__(
        self,
        diffusion: Diffusion,  # gives the taps
        vae: nn.Module,
        text: PromptEncoder,
        *,
        scaling_factor: float = 0.18215,  # of the VAE
        window: int = 512,  # px of its side
        stride: int = 512,  # px from one window to the next; the last is moved back to the border
        timestep: int = 50,
        seed: int = 42,  # of the noise
        freeu: Sequence[float] = (),  # b1, b2, s1, s2 of FreeU; () = without
        captioner: Captioner | None = None,  # makes the condition of a window from the window itself
    ) -> None:
        self.diffusion, self.vae, self.text, self.captioner = diffusion, vae, text, captioner
        self.scaling_factor, self.window, self.stride, self.timestep = scaling_factor, window, stride, timestep
        self.seed = seed
        self.freeu = FreeU(diffusion.unet, freeu) if freeu else None
        if self.freeu:
            self.freeu.attach(diffusion.unet)

    @torch.no_grad()
    def __call__(self, images: Tensor, prompts: Sequence[str]) -> dict[str, Tensor]:
        """Maps (n, C, h, w), float32, of each tap, of images (n, 3, H, W) in [-1, 1].

        prompts: n sentences; "" is the captioner's condition if there is one, else the empty prompt.
        """
        images = images.to(self.diffusion.device)
        tops, lefts = (find_origins(side, self.window, self.stride) for side in images.shape[-2:])
        corners = [(top, left) for top in tops for left in lefts]
        parts = [
            self.extract(images[..., top : top + self.window, left : left + self.window], prompts)
            for top, left in corners
        ]
        return {tap: self.stitch([part[tap] for part in parts], corners, images.shape[-2:]) for tap in parts[0]}

    def stitch(self, parts: Sequence[Tensor], corners: Sequence[tuple[int, int]], size: tuple[int, int]) -> Tensor:
        """One map of an image of `size` (H, W) px from its windows' (n, C, w, w), averaged where they overlap."""
        cells = parts[0].shape[-1]
        whole = parts[0].new_zeros(*parts[0].shape[:2], *(side * cells // self.window for side in size))
        count = torch.zeros_like(whole[0, 0])
        for part, corner in zip(parts, corners, strict=True):
            y, x = (px * cells // self.window for px in corner)
            whole[..., y : y + cells, x : x + cells] += part
            count[y : y + cells, x : x + cells] += 1
        return whole / count

    def extract(self, images: Tensor, prompts: Sequence[str]) -> dict[str, Tensor]:
        """Maps of each tap of images of the window's size."""
        z = draw_latents(encode_posterior(self.vae, images), self.scaling_factor)  # the posterior's mean
        eps = torch.randn(1, *z.shape[1:], generator=torch.Generator().manual_seed(self.seed)).to(z)
        context, offset = self.condition(images, prompts)
        with_offset = self.diffusion.unet.time_embedding.register_forward_hook(
            lambda module, inputs, output: output if offset is None else output + offset.to(output)
        )
        try:
            found = self.diffusion.features(z, self.timestep, context, eps.expand_as(z))
        finally:
            with_offset.remove()
        found = {tap: maps.float() for tap, maps in found.items()}
        if self.freeu:  # the map of a decoder's layer is scaled where it enters the next, and the release keeps it so;
            alone = [tap for tap in found if tap.startswith("up") and not tap.endswith(INPUT)]  # joined, it is a copy
            found |= {tap: self.freeu.scale(found[tap]) for tap in alone}
        return found

    def condition(self, images: Tensor, prompts: Sequence[str]) -> tuple[Tensor, Tensor | None]:
        """What the UNet attends to, (n, L, D), and the offset (n, E) of its timestep embedding, if there is one."""
        words = self.text.encode_text(prompts)
        if self.captioner is None:
            return words, None
        embeddings = self.captioner.embed(images)
        implicit = self.captioner.context(embeddings, self.text.encode_text([""]).float())
        given = torch.tensor([bool(prompt) for prompt in prompts], device=implicit.device)
        return torch.where(given[:, None, None], words.float(), implicit), self.captioner.time_offset(embeddings)


def find_origins(length: int, window: int, stride: int) -> list[int]:
    """Where windows begin on an axis: every `stride` px, the last where it ends at the border."""
    if window > length:
        raise ValueError(f"a window of {window} px does not fit into {length} px")
    count = -(-(length - window) // stride) + 1
    return [min(stride * i, length - window) for i in range(count)]
