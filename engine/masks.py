"""Masks of objects: a data set's own segmentation, or PNG files of a folder (script/make_masks.py)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from config import ConfigError, resolve_path
from dataset import Benchmark, ImageRef
from dataset.pair_dataset import load_pil
from utils.cache import hash_images
from utils.frame import Frame, Pad
from utils.store import atomic_path, digest

OWN = "dataset"
ENDS = (".png", "_mask.png")  # of a mask's name; the second is GeoAware-SC's
VOID = 255  # in a segmentation of several classes: of none
CANVAS = 960  # px, side of the square that SAM sees
Segment = Callable[[Image.Image, list[float]], np.ndarray]  # square picture, box x1 y1 x2 y2 -> (H, W) bool


class Masks:
    """By image, as (H', W') bool on a grid over the frame. ConfigError if one is missing, before anything slow."""

    def __init__(self, source: str, benchmark: Benchmark, frame: Frame, grid: tuple[int, int]) -> None:
        self.folder = benchmark.root / "Segmentation" if source == OWN else Path(resolve_path(source))
        self.frame, self.grid = frame, grid
        refs = benchmark.images()
        self._refs = {ref.identifier: ref for ref in refs}
        self._boxes = find_boxes(benchmark) if source == OWN else {}
        missing = [self.folder / f"{name_mask(ref)}.png" for ref in refs if self.find(ref) is None]
        if missing:
            remedy = "its own Segmentation/ lacks them: " if source == OWN else ""
            raise ConfigError(
                f"POSE.MASKS {source}: {len(missing)} of {len(refs)} masks are missing, such as {missing[0]}; {remedy}"
                "`python script/make_masks.py` makes them with SAM, or set POSE.ALIGN mutual_nn, which needs none"
            )
        self.read = cache(self._read)

    def digest(self) -> str:
        """16 hex digits of all files."""
        return digest(hash_images([str(self.find(ref)) for ref in self._refs.values()]))[:16]

    def find(self, ref: ImageRef) -> Path | None:
        """The file of an image's mask."""
        paths = (self.folder / f"{name_mask(ref)}{end}" for end in ENDS)
        return next((path for path in paths if path.is_file()), None)

    def _read(self, identifier: str) -> Tensor:
        ref = self._refs[identifier]
        labels = read_labels(self.find(ref))
        mask = select_object(labels, self._boxes[identifier]) if identifier in self._boxes else labels > 127
        return F.interpolate(fit_mask(mask, ref, self.frame)[None, None].float(), self.grid, mode="nearest")[0, 0] > 0


def fit_mask(mask: np.ndarray, ref: ImageRef, frame: Frame) -> Tensor:
    """A mask (H, W) of an image as (H', W') bool in the frame."""
    return frame.fit(Image.fromarray(unpad(mask, ref)).convert("RGB"))[0] > 0  # 127.5 of 255


def find_labelled(folder: Path, ref: ImageRef, frame: Frame) -> Tensor:
    """(H', W') bool of what a segmentation in a folder mostly shows of an image; all of it without one."""
    path = folder / f"{name_mask(ref)}.png"
    if not path.is_file():
        return torch.ones(frame.image_size, dtype=torch.bool)
    height, width = ref.size
    return fit_mask(select_object(read_labels(path), np.array([0, 0, width, height])), ref, frame)


def name_mask(ref: ImageRef) -> PurePosixPath:
    """Path of an image's mask below the folder of masks, without suffix: that of the image below its folder."""
    parts = PurePosixPath(Path(ref.path).as_posix()).with_suffix("").parts
    place = len(parts) - 1 - parts[::-1].index("JPEGImages") if "JPEGImages" in parts else len(parts) - 3
    return PurePosixPath(*parts[place + 1 :])


def read_labels(path: Path) -> np.ndarray:
    """(H, W) of an image's values; of one with a palette, its indices."""
    try:
        with Image.open(path) as image:
            return np.array(image if image.mode in ("P", "L") else image.convert("L"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: no mask can be read ({error})") from error


def find_boxes(benchmark: Benchmark) -> dict[str, np.ndarray]:
    """Box (4,) of the object in each image."""
    boxes: dict[str, np.ndarray] = {}
    for record in benchmark:
        boxes |= {record.src.identifier: record.src_bbox, record.trg.identifier: record.trg_bbox}
    return boxes


def select_object(labels: np.ndarray, box: np.ndarray) -> np.ndarray:
    """(H, W) bool: the label that most pixels of the object's box have, background (0) and void apart."""
    left, top = np.floor(box[:2]).clip(min=0).astype(int)
    right, bottom = np.ceil(box[2:]).astype(int) + 1
    inside = labels[top:bottom, left:right]
    binary = set(np.unique(labels)) <= {0, 255}
    counts = np.bincount(inside.ravel(), minlength=256)
    counts[0] = 0
    counts[VOID] = counts[VOID] if binary else 0
    return labels == counts.argmax() if counts.any() else np.zeros_like(labels, dtype=bool)


def unpad(mask: np.ndarray, ref: ImageRef) -> np.ndarray:
    """The mask (H, W) uint8 of 0 and 255 at its image's size, of one at that size or on a padded square."""
    height, width = mask.shape
    values = mask.astype(np.uint8) * 255
    if (height, width) == ref.size:
        return values
    if height != width:
        raise ConfigError(
            f"the mask of {ref.identifier} has size (H, W) = {mask.shape}, its image {ref.size}; make it again"
        )
    corners = Pad((height, width)).to_px(torch.tensor([[0.0, 0], [ref.size[1], ref.size[0]]]), ref.size).round().int()
    (left, top), (right, bottom) = corners.tolist()
    inner = Image.fromarray(values[top:bottom, left:right])
    return np.array(inner.resize(ref.size[::-1], Image.Resampling.NEAREST))


def make_masks(refs: Iterable[ImageRef], boxes: dict[str, np.ndarray], folder: Path, segment: Segment) -> int:
    """Write the mask of every image that has none yet; their number.

    As GeoAware-SC does, the image is segmented on its padded square, with its box there.
    """
    made, frame = 0, Pad((CANVAS, CANVAS))
    for ref in refs:
        path = folder / f"{name_mask(ref)}.png"
        if not path.is_file():
            square = frame.fit(load_pil(ref)).add(1).mul(127.5).round().byte()
            box = frame.box_to_px(torch.from_numpy(boxes[ref.identifier]), ref.size)
            mask = segment(Image.fromarray(square.permute(1, 2, 0).numpy()), box.tolist())
            with atomic_path(path) as temporary:
                Image.fromarray(unpad(mask, ref)).save(temporary, format="PNG")
            made += 1
    return made


def load_sam(folder: str, device: torch.device) -> Segment:
    """SAM (a transformers folder or hub id) with a box as its prompt, one mask; ConfigError if it is no SAM."""
    from transformers import SamModel, SamProcessor

    try:
        processor = SamProcessor.from_pretrained(folder)
        model = SamModel.from_pretrained(folder).to(device).eval()
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"--sam {folder}: cannot be loaded as SAM ({' '.join(str(error).split())[:200]})") from error

    @torch.no_grad()
    def segment(picture: Image.Image, box: list[float]) -> np.ndarray:
        inputs = processor(images=picture, input_boxes=[[box]], return_tensors="pt")
        sizes = inputs["original_sizes"], inputs["reshaped_input_sizes"]
        inputs = {
            key: value.to(device).float() if value.is_floating_point() else value for key, value in inputs.items()
        }
        found = model(**inputs, multimask_output=False).pred_masks.cpu()
        return processor.image_processor.post_process_masks(found, *sizes)[0][0, 0].numpy()

    return segment
