"""CleanDIFT: a UNet that was trained to give the features of noised images from the clean image."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import DDIMScheduler

from model.method.sd4match import SD4Match


class CleanDIFT(SD4Match):
    """The latent goes into the UNet without noise; `timestep` is the one that the checkpoint was trained with.

    One pass per image: draws of no noise are all alike.
    """

    def __init__(self, unet: Any, scheduler: DDIMScheduler, *args: Any, **settings: Any) -> None:
        super().__init__(unet, without_noise(scheduler), *args, **settings)
        self._refuse_ensemble(self.ensemble)

    def at(self, timestep: int, ensemble: int) -> CleanDIFT:
        self._refuse_ensemble(ensemble)
        return super().at(timestep, ensemble)

    @staticmethod
    def _refuse_ensemble(ensemble: int) -> None:
        if ensemble != 1:
            raise ValueError(f"CleanDIFT adds no noise, so ensemble must be 1, got {ensemble}")


def without_noise(scheduler: DDIMScheduler) -> DDIMScheduler:
    """A copy of the schedule with abar_t = 1 at every t, so that x_t = z exactly."""
    clean = DDIMScheduler.from_config(scheduler.config)
    clean.alphas_cumprod = torch.ones_like(clean.alphas_cumprod)
    return clean
