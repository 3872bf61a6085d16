"""End-point error of the soft-arg-max: the dense objective of GeoAware-SC."""

import torch
from torch import Tensor, nn

from utils.geometry import Size, at_least_float32, cell_grid, l2_norm, rescale_kps
from utils.localise import Similarity, argmax_cell, keep_near


def patch_of(points: Tensor, image_size: Size, feat_size: Size) -> Tensor:
    """Whole cells (..., 2), (col, row), of the patches of px that points (..., 2) lie in.

    Points on the far border, and those that mirroring moves there, belong to the last patch.
    """
    height, width = feat_size
    last = points.new_tensor([width - 1, height - 1])
    return rescale_kps(points, image_size, feat_size).floor().clamp(min=0).minimum(last)


class SoftArgmaxError(nn.Module):
    """Mean over the keypoints of ||e - floor(p1) - (p2 - p1)||, e the soft-arg-max over the target's patches.

    p1, p2: a keypoint in source and target, in patches (px w / W). The source's map is read at its whole patch
    floor(p1), but the true flow p2 - p1 is continuous: on average e is half a patch before p2, which is what a
    prediction at the centres of patches adds.

    Args:
        beta: softmax temperature.
        window: 0: over the whole map. w > 0: similarities outside (2 w + 1)^2 patches around the arg-max count as 0;
            w < 0: they are damped by a Gaussian of |w| patches around it.
    """

    def __init__(self, beta: float = 0.02, window: float = 0) -> None:
        super().__init__()
        self.beta, self.window = beta, window

    def forward(
        self, similarity: Similarity, src_kps: Tensor, trg_kps: Tensor, kps_mask: Tensor, image_size: Size
    ) -> Tensor:
        """One loss per pair, (B,), in patches; 0 for a pair without valid keypoints.

        Args:
            similarity: gives the maps over the target of the source's keypoints.
            src_kps, trg_kps: (B, N, 2), px of the frame; kps_mask: (B, N) bool, False where padded.
            image_size: (H, W) of the frame.
        """
        src_kps, trg_kps = (torch.where(kps_mask[..., None], at_least_float32(kps), 0.0) for kps in (src_kps, trg_kps))
        src_patch = patch_of(src_kps, image_size, similarity.src_size)
        sim = similarity(src_patch)  # (B, N, h, w)
        sim = keep_near(sim, argmax_cell(sim), self.window)
        feat_size = tuple(sim.shape[-2:])
        p = (sim.flatten(2) / self.beta).softmax(dim=-1)
        flow = p @ cell_grid(feat_size, like=p) - src_patch
        true_flow = rescale_kps(trg_kps, image_size, feat_size) - rescale_kps(src_kps, image_size, similarity.src_size)
        error = l2_norm(flow - true_flow, dim=-1).squeeze(-1)  # (B, N)
        return torch.where(kps_mask, error, 0.0).sum(dim=1) / kps_mask.sum(dim=1).clamp(min=1)
