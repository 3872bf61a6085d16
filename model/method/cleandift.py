"""CleanDIFT: a UNet that was trained to give the features of noised images from the clean image."""

from __future__ import annotations

from torch import Tensor

from model.method.sd4match import SD4Match


class CleanDIFT(SD4Match):
    """The latent goes in as it is, once; `timestep` is the one that the UNet was trained with."""

    def noise(self, z: Tensor, seeds: Tensor, draw: int) -> None:
        return None
