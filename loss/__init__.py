"""Training objectives. To add one, write its module and give it a line in LOSSES."""

from torch import nn

from loss.kernel_smoothed_cross_entropy import KernelSmoothedCrossEntropy
from loss.soft_argmax_error import SoftArgmaxError

LOSSES: dict[str, type[nn.Module]] = {
    "kernel_smoothed_cross_entropy": KernelSmoothedCrossEntropy,
    "soft_argmax_error": SoftArgmaxError,
}
