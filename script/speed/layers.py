"""Layers of Stable Diffusion in windows, against the plain way: whole networks, a window of an image at a time."""

from __future__ import annotations

import argparse

import torch
from torch import Tensor, nn

from dataset.pair_dataset import load_pil
from engine.build import build_accelerator
from engine.precompute import unique_images
from model.backbone.device import resolve_dtype
from model.backbone.freeu import FreeU
from model.backbone.load import load_stable_diffusion
from model.source import find_sources, find_stable_diffusion
from script.speed.sides import FEATURES, Comparison, Side, relative, render_pairs
from utils.frame import build_frame


class PlainLayers:
    """In float32, decoder and all: what a tap gives is read where the next layer reads it, skip connection cut off."""

    def __init__(self, cfg, device: torch.device) -> None:
        self.section, self.device = cfg.FEATURES, device
        self.networks = load_stable_diffusion(device=device, seed=cfg.SEED, **find_stable_diffusion(cfg))
        if self.section.FREEU:
            FreeU(self.networks.unet, self.section.FREEU).attach(self.networks.unet)

    @torch.no_grad()
    def __call__(self, image: Tensor) -> dict[str, Tensor]:
        """Maps (C, h, w) of an image (3, H, W) in [-1, 1]."""
        window, total, count = self.section.WINDOW, {}, {}
        origins = [
            [min(i * self.section.STRIDE, side - window) for i in range(-(-(side - window) // self.section.STRIDE) + 1)]
            for side in image.shape[-2:]
        ]
        for top in origins[0]:
            for left in origins[1]:
                part = image[None, :, top : top + window, left : left + window]
                for tap, (value, stride) in self.run(part.to(self.device)).items():
                    size = (len(value), *(side // stride for side in image.shape[-2:]))
                    place = (..., *(slice(px // stride, px // stride + value.shape[-1]) for px in (top, left)))
                    total.setdefault(tap, torch.zeros(size, device=self.device))[place] += value
                    count.setdefault(tap, torch.zeros(size, device=self.device))[place] += 1
        return {tap: total[tap] / count[tap] for tap in total}

    def run(self, part: Tensor) -> dict[str, tuple[Tensor, int]]:
        """The map (C, w, w) of each tap for one window, and its stride in pixels."""
        networks, section, found = self.networks, self.section, {}
        z = networks.vae.encode(part).latent_dist.mean * networks.facts.scaling_factor
        eps = torch.randn(z.shape, generator=torch.Generator().manual_seed(section.NOISE_SEED)).to(z)
        t = torch.tensor([section.TIMESTEP], device=self.device)
        ids = networks.tokenizer(section.PROMPT, padding="max_length", max_length=77, return_tensors="pt").input_ids
        handles = []
        for tap in section.TAPS:
            block, _, inner = tap.partition(".")
            module = networks.unet.up_blocks[int(block[2:])].get_submodule(inner)
            handles.append(module.register_forward_hook(lambda module, inputs, out, tap=tap: found.update({tap: out})))
        networks.unet(
            networks.scheduler.add_noise(z, eps, t), t, networks.text_encoder(ids.to(self.device)).last_hidden_state
        )
        networks.vae.decode(z / networks.facts.scaling_factor)
        for handle in handles:
            handle.remove()
        maps = {tap: (out[0] if isinstance(out, tuple) else out)[0].clone() for tap, out in found.items()}
        for value in maps.values():
            self.scale(value)
        return {tap: (value, part.shape[-1] // value.shape[-1]) for tap, value in maps.items()}

    def scale(self, value: Tensor) -> None:
        """FreeU's factor of the layer that the map enters, in place."""
        widths = sorted(set(self.networks.unet.config.block_out_channels), reverse=True)[:2]
        if self.section.FREEU and len(value) in widths:
            value[: len(value) // 2] *= self.section.FREEU[widths.index(len(value))]


def compare_layers(cfg, args: argparse.Namespace) -> Comparison:
    device = build_accelerator(cfg).device
    refs = unique_images([render_pairs(cfg, args.pairs)])
    images, frame = [load_pil(ref) for ref in refs], build_frame(cfg.DATASET.FRAME, cfg.FEATURES.SIZE)
    before = count_held(device)
    compute = find_sources(cfg, ("layers",), None)["layers"].load(device)
    networks = nn.Module()  # stands for those of `compute`
    networks.register_buffer("held", torch.empty(count_held(device) - before, dtype=torch.uint8, device="meta"))
    plain = PlainLayers(cfg, device)
    size = cfg.EVAL.BATCH_SIZE

    def extract() -> None:
        for first in range(0, len(images), size):
            part = images[first : first + size]
            list(compute(part, [None] * len(part)))

    def extract_plainly() -> None:
        for image in images:
            plain(frame.fit(image))

    (ours,), theirs = compute(images[:1], [None]), plain(frame.fit(images[0]))
    dtype = resolve_dtype(cfg.PRECISION, device)
    differences = {f"{tap}, relative": (relative(ours[tap], theirs[tap]), FEATURES[dtype]) for tap in cfg.FEATURES.TAPS}
    parts = [part for part in vars(plain.networks).values() if isinstance(part, nn.Module)]
    sides = Side(extract, len(images), [networks]), Side(extract_plainly, len(images), parts)
    return Comparison("images", *sides, differences)


def count_held(device: torch.device) -> int:
    """Bytes of a GPU that are in use."""
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
