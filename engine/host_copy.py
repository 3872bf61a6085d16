"""Results read from a device without stopping it."""

from collections.abc import Mapping

import torch
from torch import Tensor


class HostCopy:
    """Tensors on their way to the host. `get` waits for them alone, not for work given to the device since."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = {name: tensor.detach().to("cpu", non_blocking=True) for name, tensor in tensors.items()}
        self._done = None
        if any(tensor.is_cuda for tensor in tensors.values()):
            self._done = torch.cuda.Event()
            self._done.record()

    def get(self) -> dict[str, Tensor]:
        """The tensors on the CPU."""
        if self._done is not None:
            self._done.synchronize()
        return self._tensors
