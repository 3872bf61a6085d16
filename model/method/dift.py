"""DIFT: the features of Stable Diffusion under a prompt in words; nothing is learned."""

from __future__ import annotations

from model.method.sd4match import SD4Match


class DIFT(SD4Match):
    """SD4Match's features as they are before any learning. Its paper takes t = 261 and 8 noise draws."""

    trainable = None
