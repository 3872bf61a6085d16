"""Where Stable Diffusion looks for each word of a text, or each token of a learned prompt, on an image."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from config import ConfigError
from model.backbone.attention import mean_maps, name_layers, read_noised
from model.backbone.diffusion import draw_latents, encode_posterior
from model.backbone.load import StableDiffusion
from model.backbone.text import PromptEncoder
from model.prompt.build import build_prompt, load_diffusion
from model.source import load_parts
from utils.draw import TokenMaps
from utils.frame import build_frame
from utils.noise import draw_noise


class WordReader:
    """Reads maps, the mean over heads and layers, at TEST.TIMESTEP; layers: by name, () = all."""

    def __init__(
        self, cfg, device: torch.device, layers: Sequence[str] = (), networks: StableDiffusion | None = None
    ) -> None:
        """networks: that are loaded already."""
        self.cfg, self.device, networks = cfg, device, networks or load_diffusion(cfg, device)
        self.unet, self.scheduler = networks.unet, networks.scheduler
        self.text = PromptEncoder(networks.text_encoder, networks.tokenizer)
        self.vae = load_parts(cfg, ("vae",), device).vae
        self.scaling_factor = networks.facts.scaling_factor
        self.frame = build_frame(cfg.DATASET.FRAME, cfg.DATASET.IMAGE_SIZE)
        self.layers = tuple(layers) or tuple(name_layers(self.unet))

    def read_words(self, image: Image.Image, text: str) -> TokenMaps:
        """A map for each word that the text model sees; that of a word of several tokens is their sum."""
        ids = self.text.token_ids([text], truncate=True)
        seen = self._read(image, self.text.encode_ids(ids))[:-1]  # the last is an end or padding
        words, first = {}, 1  # after the token of the beginning
        for number, word in enumerate(text.split()):
            if first < len(seen):
                n_tokens = len(self.text.tokenizer(word).input_ids) - 2
                words[number, word] = seen[first : first + n_tokens].sum(dim=0)
                first += n_tokens
        return self._name(image, [word for _, word in words], torch.stack(list(words.values())))

    def read_prompt(self, image: Image.Image, category: str | None, n_tokens: int) -> TokenMaps:
        """Maps of those tokens of the prompt PROMPT.TYPE whose attention differs most from place to place."""
        prompt = build_prompt(self.cfg, None, training=False).to(self.device)
        if prompt.depends_on in ("image", "pair"):
            raise ConfigError(
                f"--learned {self.cfg.PROMPT.TYPE}: it differs between images; Single and Class can be shown"
            )
        tokens = prompt({"category": [category]})[:1]
        maps = self._read(image, tokens if prompt.space == "hidden" else self.text.encode_tokens(tokens))
        chosen = maps.flatten(1).std(dim=1).topk(n_tokens).indices.sort().values
        return self._name(image, [f"token {number}" for number in chosen.tolist()], maps[chosen])

    @torch.no_grad()
    def _read(self, image: Image.Image, condition: Tensor) -> Tensor:
        """(L, h, w) under a condition (1, L, D)."""
        latents = draw_latents(encode_posterior(self.vae, self.frame.fit(image)[None]), self.scaling_factor)
        noise = draw_noise(torch.tensor([self.cfg.SEED]), latents.shape[1:], latents.device)
        inputs = latents, noise, self.cfg.TEST.TIMESTEP, condition
        try:
            found = read_noised(self.unet, self.scheduler, self.layers, *inputs)
        except ValueError as error:
            raise ConfigError(f"--layers: {error}") from error
        return mean_maps(found)[0].cpu()

    def _name(self, image: Image.Image, names: list[str], maps: Tensor) -> TokenMaps:
        size = self.frame.aspect((image.height, image.width))
        return TokenMaps(self.frame.fit(image), size, names, maps)
