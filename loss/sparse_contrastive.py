"""CLIP's objective between the keypoints of two images: the sparse objective of GeoAware-SC."""

import torch
from torch import Tensor
from torch.nn import functional as F


def sparse_contrastive(src: Tensor, trg: Tensor, kps_mask: Tensor, scale: Tensor | float) -> Tensor:
    """0.5 [CE(tau D1 D2^T, I) + CE(tau D2 D1^T, I)], one per pair, (B,); 0 for a pair without valid keypoints.

    Args:
        src, trg: D1 and D2, (B, N, C), L2-normalised descriptors of the keypoints; two in one patch are alike.
        kps_mask: (B, N) bool, False where padded.
        scale: tau.
    """
    logits = scale * torch.einsum("bnc,bmc->bnm", src, trg)
    truth = torch.arange(logits.shape[1], device=logits.device).expand(len(logits), -1)
    total = 0.0
    for side in (logits, logits.transpose(1, 2)):
        side = side.masked_fill(~kps_mask[:, None], torch.finfo(side.dtype).min)
        ce = F.cross_entropy(side.transpose(1, 2), truth, reduction="none")  # (B, N)
        total = total + torch.where(kps_mask, ce, 0.0).sum(dim=1)
    return 0.5 * total / kps_mask.sum(dim=1).clamp(min=1)
