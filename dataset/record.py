"""What a benchmark consists of: images, pairs with keypoints, and the length that PCK's alpha multiplies.

Points are (x, y) pixels, boxes (x1, y1, x2, y2) pixels, sizes (H, W).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

# difficulty of a pair in SPair
FLAGS = ("mirror", "viewpoint_variation", "scale_variation", "truncation", "occlusion")


@dataclass(frozen=True)
class ImageRef:
    """One image of a benchmark; a mirrored image is another image with another identifier."""

    identifier: str  # the key of this image in every cache
    path: str
    category: str
    size: tuple[int, int] | None  # (H, W) of the upright image; None where the data set does not say
    flip: bool = False  # mirrored left to right after loading
    azimuth: int = -1  # 0..7, the object's view in steps of 45 degrees (SPair's azimuth_id); -1 = unknown


def mirror_ref(ref: ImageRef) -> ImageRef:
    """The mirror image, which is another image."""
    return replace(ref, identifier=mirror_identifier(ref.identifier), flip=not ref.flip)


def mirror_identifier(identifier: str) -> str:
    return f"{identifier}-mirrored"


class Keypoints(NamedTuple):
    """All keypoints that one image shows, whether or not its partner shows them too."""

    ids: tuple[str, ...]
    points: np.ndarray  # (M, 2) float32


@dataclass(frozen=True, eq=False)
class PairRecord:
    """Two images and their N matching keypoints, in px of the original images (mirrored if `flip`)."""

    pair_id: str
    category: str
    src: ImageRef
    trg: ImageRef
    src_kps: np.ndarray  # (N, 2) float32
    trg_kps: np.ndarray  # (N, 2) float32
    kps_ids: tuple[str, ...]  # N names, such as "7"
    src_bbox: np.ndarray  # (4,) float32
    trg_bbox: np.ndarray  # (4,) float32
    flags: dict[str, int]  # names of FLAGS; {} when unknown
    src_seen: Keypoints | None = None  # None where the annotations do not say
    trg_seen: Keypoints | None = None


def mirror_kps(kps: np.ndarray, width: int) -> np.ndarray:
    """Points (N, 2) of an image of `width` pixels after mirroring it: x -> width - 1 - x."""
    return np.stack([width - 1 - kps[:, 0], kps[:, 1]], axis=1)


def mirror_bbox(bbox: np.ndarray, width: int) -> np.ndarray:
    """Box (4,) after mirroring the image: both sides mirrored and swapped, so that x1 < x2 again."""
    x1, y1, x2, y2 = bbox
    return np.array([width - 1 - x2, y1, width - 1 - x1, y2], dtype=bbox.dtype)


# "src_bbox", "bbox_width" are "bbox" of another box: see dataset.pair_dataset.judging_box
RULES = ("bbox", "image", "kps", "padded_kps", "src_bbox", "bbox_width")


def threshold(rule: str, bbox: np.ndarray, kps: np.ndarray, size: tuple[int, int]) -> float:
    """The length that PCK's alpha multiplies, Eq. (9), in pixels of whatever frame the target's arguments are in.

    rule: "bbox" = longer side of the box (4,); "image" = longer side of the image of `size` (H, W);
    "kps" = longer side of the tight box around the keypoints (N, 2); "padded_kps" = greatest coordinate of a keypoint
    plus 1, as if points at -1 were among them (PF-WILLOW in LDM_correspondences and the CATs family). Map into the
    frame before calling: sides scaled per axis may change which one is longer. Keypoints must not be clamped or padded.
    """
    if rule in ("bbox", "src_bbox", "bbox_width"):
        return float(max(bbox[2] - bbox[0], bbox[3] - bbox[1]))
    if rule == "image":
        return float(max(size))
    if rule == "kps":
        return float(np.ptp(kps, axis=0).max())
    if rule == "padded_kps":
        return float(kps.max()) + 1
    raise ValueError(f"unknown threshold rule {rule!r}: known are {', '.join(RULES)}")


def find_flaw(rule: str, bbox: np.ndarray, kps: np.ndarray) -> str:
    """Why there is no threshold for a target with this box (4,) and these keypoints (N, 2); empty if there is one."""
    if rule.count("bbox") and not (bbox[2:] > bbox[:2]).all():
        return f"the {'source' if rule == 'src_bbox' else 'target'}'s box {bbox.tolist()} has no area (x1 y1 x2 y2)"
    if rule.endswith("kps") and not len(kps):
        return "no keypoint is present in both images"
    if rule == "kps" and not np.ptp(kps, axis=0).any():
        return "all keypoints of the target lie in one place"
    return ""
