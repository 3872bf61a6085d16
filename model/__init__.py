"""Frozen backbones, learnable prompts, and the matchers made of them."""
