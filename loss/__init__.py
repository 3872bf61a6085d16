"""Training objectives. To add one, write its module and give it a line in LOSSES."""

from torch import nn

from loss.kernel_smoothed_cross_entropy import KernelSmoothedCrossEntropy
from loss.soft_argmax_error import SoftArgmaxError

LOSSES: dict[str, type[nn.Module]] = {
    "kernel_smoothed_cross_entropy": KernelSmoothedCrossEntropy,
    "soft_argmax_error": SoftArgmaxError,
}


def build_loss(name: str, **kwargs) -> nn.Module:
    """The loss `name` of LOSSES, with its arguments; ValueError, listing the known names, if unknown."""
    if name not in LOSSES:
        raise ValueError(f"unknown loss {name!r}; known losses: {list(LOSSES)}")
    return LOSSES[name](**kwargs)
