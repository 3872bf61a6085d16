"""A matcher under the interfaces of other libraries: keypoint matching of transformers, and matcher collections."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel, SuperGlueImageProcessorPil
from transformers.models.superglue.modeling_superglue import SuperGlueKeypointMatchingOutput

from sd4match.flow import FlowError, fit_transform
from sd4match.matcher import Matcher
from utils.image import ImageSource, read_image

COUNT = 500  # matches of a pair, at most


class KeypointMatching:
    """What `transformers.pipeline("keypoint-matching")` is called with and returns; px of the images themselves."""

    def __init__(self, matcher: Matcher, count: int = COUNT) -> None:
        self.matcher, self.count = matcher, count

    def __call__(self, inputs: Sequence, threshold: float = 0.0) -> list[dict] | list[list[dict]]:
        """Of a pair of images, or a list of pairs: {"keypoint_image_0": {"x", "y"}, "keypoint_image_1", "score"}.

        The most confident come first; those not above `threshold`, a confidence, are left out.
        """
        if len(inputs) == 2 and not any(isinstance(image, list | tuple) for image in inputs):
            return self._match(*inputs, threshold)
        return [self._match(source, target, threshold) for source, target in inputs]

    def _match(self, source: ImageSource, target: ImageSource, threshold: float) -> list[dict]:
        found = self.matcher.pair(source, target).match_mutual(self.count)
        rows = zip(found.source.tolist(), found.points.tolist(), found.confidence.tolist(), strict=True)
        return [
            {"keypoint_image_0": _as_dict(a), "keypoint_image_1": _as_dict(b), "score": score}
            for a, b, score in rows
            if score > threshold
        ]


class KeypointMatchingModel(PreTrainedModel):
    """A model for keypoint matching of transformers, made of a matcher; `build_processor` gives its images.

    model(pixel_values (B, 2, 3, H, W) in [0, 1]) -> matches, scores and relative keypoints, which the processor's
    `post_process_keypoint_matching` turns into whole pixels of the originals.
    """

    config_class = PreTrainedConfig

    def __init__(self, matcher: Matcher, count: int = COUNT) -> None:
        super().__init__(PreTrainedConfig())
        self.matcher, self.count = matcher, count
        self.register_buffer("place", torch.zeros(1, device=matcher.device), persistent=False)

    @property
    def device(self) -> torch.device:
        return self.place.device

    @property
    def dtype(self) -> torch.dtype:
        return self.place.dtype

    def build_processor(self) -> SuperGlueImageProcessorPil:
        """Resizes each image, in colour, to the networks' input; the aspect is not kept, whatever the frame."""
        height, width = self.matcher.config.DATASET.IMAGE_SIZE
        return SuperGlueImageProcessorPil(do_grayscale=False, size={"height": height, "width": width})

    def forward(self, pixel_values: Tensor, **_: Any) -> SuperGlueKeypointMatchingOutput:
        pairs = [self.matcher.pair(*pair.clamp(0, 1)).match_mutual(self.count) for pair in pixel_values]
        most = max(1, *map(len, pairs))
        shape, side = (len(pairs), 2, most), torch.tensor(pixel_values.shape[:-3:-1])
        keypoints, scores, mask = torch.zeros(*shape, 2), torch.zeros(shape), torch.zeros(shape, dtype=torch.int)
        for row, found in enumerate(pairs):
            n = len(found)
            keypoints[row, :, :n] = torch.from_numpy(np.stack([found.source, found.points])) / side
            scores[row, :, :n], mask[row, :, :n] = torch.from_numpy(found.confidence), 1
        matches = torch.where(mask > 0, torch.arange(most), -1)
        values = {"matches": matches, "matching_scores": scores, "keypoints": keypoints, "mask": mask}
        return SuperGlueKeypointMatchingOutput(**{key: value.to(pixel_values.device) for key, value in values.items()})


class ImageMatcher(nn.Module):
    """The common interface of public collections of image matchers: two images -> a dict of arrays.

    Keys: matched_kpts0, matched_kpts1 (N, 2), px; all_kpts0, all_kpts1 (the same, for nothing is detected); all_desc0,
    all_desc1 (None); H (3, 3), the homography from image 0 to image 1, or None; inlier_kpts0, inlier_kpts1 and their
    number num_inliers.
    """

    def __init__(self, matcher: Matcher, count: int = COUNT, tolerance: float = 3.0) -> None:
        super().__init__()
        self.matcher, self.count = matcher, count
        self.tolerance = tolerance  # px of image 1 within which a match agrees with H

    @staticmethod
    def load_image(path: str | Path, resize: int | tuple[int, int] | None = None) -> Tensor:
        """(3, H, W) in [0, 1]; resize: (H, W), or a square's side."""
        image = read_image(path).image
        if resize is not None:
            height, width = (resize, resize) if isinstance(resize, int) else resize
            image = image.resize((width, height))
        return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255

    def forward(self, img0: Tensor | str | Path, img1: Tensor | str | Path) -> dict[str, Any]:
        found = self.matcher.pair(img0, img1).match_mutual(self.count)
        homography, inliers = None, np.ones(len(found), bool)
        try:
            fitted = fit_transform(found.source, found.points, "homography", self.tolerance)
            homography, inliers = fitted.matrix, fitted.inliers
        except FlowError:  # too few, or none: all matches count
            pass
        kpts = {"matched": (found.source, found.points), "all": (found.source, found.points)}
        kpts["inlier"] = (found.source[inliers], found.points[inliers])
        result = {f"{name}_kpts{i}": both[i] for name, both in kpts.items() for i in (0, 1)}
        return {"num_inliers": int(inliers.sum()), "H": homography, "all_desc0": None, "all_desc1": None, **result}


def _as_dict(point: Sequence[float]) -> dict[str, float]:
    return {"x": point[0], "y": point[1]}
