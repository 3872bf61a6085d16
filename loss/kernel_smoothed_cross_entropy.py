"""Kernel-smoothed cross-entropy between a correlation map and a true target point, as in SD4Match."""

import math

import torch
from torch import Tensor, nn

from utils.geometry import Size, at_least_float32, bilinear_corners, px_to_cell
from utils.localise import Similarity


def gaussian_kernel(kernel_size: int, sigma: float, like: Tensor) -> tuple[Tensor, Tensor]:
    """Offsets (K, 2), (dx, dy) in whole cells, and their weights (K,); K = kernel_size^2.

    k(dx, dy) = exp(-(dx^2 + dy^2) / (2 sigma^2)) / (2 pi sigma^2). A kernel of size 1 is the single weight 1:
    plain cross-entropy.
    """
    reach = torch.arange(kernel_size, device=like.device, dtype=like.dtype) - kernel_size // 2
    offsets = torch.cartesian_prod(reach, reach).flip(-1)
    if kernel_size == 1:
        return offsets, like.new_ones(1)
    return offsets, torch.exp(-offsets.square().sum(-1) / (2 * sigma**2)) / (2 * math.pi * sigma**2)  # Eq. (5)


def sample_log_bilinear(log_p: Tensor, points_cell: Tensor, feat_size: Size) -> Tensor:
    """log of the bilinear sample of p = exp(log_p), without ever forming p; border padding.

    A bilinear sample is p(x) = sum_j w_j p_j over the four cells around x, hence exactly
    log p(x) = logsumexp_j(log w_j + log p_j). Cells of weight 0 enter as log 0 = -inf, i.e. as nothing, and
    since the weights sum to 1 at least one term is finite: the value is finite wherever log_p is, even where
    p underflows, and its gradient to log_p_j, w_j p_j / p(x), lies in [0, 1].

    Args:
        log_p: (B, N, h*w) log-probabilities.
        points_cell: (B, N, K, 2), (x, y) in cells.
    Returns:
        (B, N, K).
    """
    index, weight = bilinear_corners(points_cell, feat_size)  # (B, N, K, 4)
    corner_log_p = log_p.gather(2, index.flatten(2)).view_as(weight)
    return torch.logsumexp(corner_log_p + weight.log(), dim=-1)


class KernelSmoothedCrossEntropy(nn.Module):
    """- sum_d k(d) log p(truth + d) per keypoint, p = softmax(cosine / beta): SD4Match's loss.

    Args:
        beta: softmax temperature.
        kernel_size: odd number of offsets per axis, in cells.
        sigma: width of the Gaussian in cells.
    """

    def __init__(self, beta: float = 0.04, kernel_size: int = 7, sigma: float = 1.5) -> None:
        super().__init__()
        self.beta, self.kernel_size, self.sigma = beta, kernel_size, sigma

    def forward(
        self, similarity: Similarity, src_kps: Tensor, trg_kps: Tensor, kps_mask: Tensor, image_size: Size
    ) -> Tensor:
        """One loss per pair, (B,), at least float32; 0 for a pair without valid keypoints.

        Args:
            similarity: gives the maps over the target of the source's keypoints.
            src_kps, trg_kps: (B, N, 2), px of the resized frame.
            kps_mask: (B, N) bool, False where padded; what padded keypoints hold is ignored.
            image_size: (H, W) of the resized frame.
        """
        src_kps, trg_kps = (torch.where(kps_mask[..., None], at_least_float32(kps), 0.0) for kps in (src_kps, trg_kps))
        sim = similarity(px_to_cell(src_kps, image_size, similarity.src_size))  # (B, N, h, w)
        feat_size = tuple(sim.shape[-2:])
        log_p = torch.log_softmax(sim.flatten(2) / self.beta, dim=-1)  # Eq. (4)
        cross_entropy = self._cross_entropy(log_p, px_to_cell(trg_kps, image_size, feat_size), feat_size)  # (B, N)
        n_points = kps_mask.sum(dim=1).clamp(min=1)
        return torch.where(kps_mask, cross_entropy, 0.0).sum(dim=1) / n_points  # Eq. (6)

    def _cross_entropy(self, log_p: Tensor, trg_cell: Tensor, feat_size: Size) -> Tensor:
        """Sum over d of Eq. (6): (B, N), of log_p (B, N, h*w) with the truth trg_cell (B, N, 2)."""
        h, w = feat_size
        offsets, kernel = gaussian_kernel(self.kernel_size, self.sigma, like=log_p)
        position = trg_cell[:, :, None] + offsets  # (B, N, K, 2)
        x, y = position.unbind(-1)
        inside = (x > 0) & (x < w - 1) & (y > 0) & (y < h - 1)
        log_p_at = sample_log_bilinear(log_p, position, feat_size)
        return -(kernel * torch.where(inside, log_p_at, 0.0)).sum(dim=-1)
