"""What the engine drives: a method, its learnable part, its objective, and the similarities that it gives."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from utils.localise import FeatureSimilarity, Similarity
from utils.store import StoreError, read_tensors, write_tensors

Batch = Mapping[str, Any]
WEIGHTS_FILE = "weights.safetensors"
_REMEDY = "copy or train the weights again"


class Method(nn.Module):
    """A way to get similarities: frozen networks, and what is learned on top of them.

    Batches are those of dataset.pair_dataset, with the cached arrays that the method reads. All randomness of an image
    comes from its seed: int64, (n,) for images, (B, 2) for the sources and targets of pairs.
    """

    FILES = (WEIGHTS_FILE,)  # of its learned weights, in a folder of their own
    reads: tuple[str, ...] = ()  # arrays of each image that batches must carry, "src_..." and "trg_..." in pairs
    condition: str | None = None  # which condition "condition" among them is
    block, precision = "the feature map", "fp32"  # what gives the features, and in which precision: for messages
    joint = 1  # items that `rank` must be given together
    per_image = False  # whether an image's features do not depend on its partner (see FeatureMethod)
    keeps_pairs = False  # so slow that a test keeps the predictions for every pair as they come
    image_size: tuple[int, int]  # (H, W) of the frame
    objective: nn.Module | None  # a loss of loss/, set for training

    def __init__(self) -> None:
        super().__init__()
        self.objective = None

    @classmethod
    def build(
        cls,
        cfg,
        device: torch.device,
        categories: Sequence[str] | None,  # of the data set; None: images of no data set
        training: bool,  # at the settings of TRAIN, with a new learnable part; else of TEST, with the configured one
        folder: str | Path | None = None,  # of the learned weights, if not where the config says
    ) -> Method:
        """The method of a checked config."""
        raise NotImplementedError

    @classmethod
    def name_learned(cls, cfg) -> str:
        """Name of what training learns: of its log and its folder of weights."""
        start = Path(cfg.TRAIN.START).name
        return f"{cfg.METHOD.NAME}_{cfg.DATASET.NAME}_{cfg.NETWORK.NAME}{start and f'_from_{start}'}"

    @classmethod
    def name_tested(cls, cfg) -> str:
        """Name of what a test is of: of the folder of its results."""
        return Path(cfg.METHOD.WEIGHTS).name or cfg.METHOD.NAME

    @classmethod
    def takes_given_prompt(cls, cfg, training: bool) -> bool:
        """Of a method that runs under a prompt: whether that is PROMPT.TYPE, and not what it learns, PROMPT.KIND."""
        return False

    @classmethod
    def fingerprint(cls, cfg) -> str:
        """Hash of the weights of the frozen networks that it runs, besides those of the arrays that it reads."""
        return ""

    @classmethod
    def describe(cls, cfg) -> dict[str, Any]:
        """What its weights are kept with, besides what made them: JSON values."""
        return {}

    @property
    def trainable(self) -> nn.Module | None:
        """The module that learns: it alone is optimised, kept in checkpoints, saved and loaded. None: nothing does."""
        return None

    def build_optimizer(self, lr: float, linear_lr_scale: float) -> torch.optim.Optimizer:
        """The optimiser of `trainable`. linear_lr_scale: for parts that learn at another rate."""
        return torch.optim.Adam(self.trainable.parameters(), lr=lr)

    def loss(self, batch: Batch, seeds: Tensor) -> Tensor:
        """The training objective, one loss per pair, (B,)."""
        points = batch["src_kps"], batch["trg_kps"], batch["kps_mask"]
        return self.objective(self.similarity(batch, seeds), *points, self.image_size)

    def similarity(self, batch: Batch, seeds: Tensor) -> Similarity:
        """What gives a map over the target, (B, N, h, w), for points of the source; localisers read nothing else."""
        raise NotImplementedError

    def rank(self, batch: Batch, seeds: Tensor) -> dict[str, Tensor]:
        """Of a batch of dataset.item_dataset: "score" (B, T * I) of every text with every image, number `text * I +
        image`, larger is better; and by other names what it is made of. seeds: (B, I) of the images."""
        raise NotImplementedError

    def at(self, timestep: int, ensemble: int) -> Method:
        """The same networks and learnable part, shared, at another diffusion step and number of noise draws."""
        other = copy.copy(self)
        other.timestep, other.ensemble = timestep, ensemble
        return other

    def save(self, folder: Path, about: Mapping[str, Any]) -> None:
        """Write the learnable part into a folder of its own, with JSON values `about` it: "made_by", ..."""
        write_tensors(folder / WEIGHTS_FILE, self.trainable.state_dict(), about, durable=True)

    def load(self, folder: Path) -> None:
        """The inverse of `save`, strict. StoreError for a damaged file."""
        tensors, _ = read_tensors(folder / WEIGHTS_FILE, remedy=_REMEDY)
        try:
            self.trainable.load_state_dict(tensors)
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            raise StoreError(f"{folder / WEIGHTS_FILE} does not fit the method ({reason}); {_REMEDY}") from error

    @classmethod
    def made_by(cls, folder: Path) -> dict[str, Any] | None:
        """What made the weights in a folder; {} if they do not say, None if there are none."""
        path = folder / WEIGHTS_FILE
        return read_tensors(path, remedy=_REMEDY)[1].get("made_by", {}) if path.is_file() else None


class FeatureMethod(Method):
    """A method with a feature map (n, C, h, w) per image, float32, not normalised; cosines of them are similarities."""

    per_image = True

    def features(self, batch: Batch, seeds: Tensor) -> Tensor:
        """Feature maps (n, C, h, w) of an image batch; only if `per_image`."""
        raise NotImplementedError

    def pair_features(self, batch: Batch, seeds: Tensor) -> tuple[Tensor, Tensor]:
        """Source and target maps, each (B, C, h, w), of a pair batch."""
        sides = zip(("src_", "trg_"), seeds.unbind(dim=1), strict=True)
        src_feat, trg_feat = (self.features(select_side(batch, side), side_seeds) for side, side_seeds in sides)
        return src_feat, trg_feat

    def similarity(self, batch: Batch, seeds: Tensor) -> FeatureSimilarity:
        return FeatureSimilarity(*self.pair_features(batch, seeds))


def select_side(batch: Batch, prefix: str) -> dict[str, Any]:
    """One side of a pair batch as an image batch, of the pairs' category where the images have none of their own."""
    images = {key.removeprefix(prefix): value for key, value in batch.items() if key.startswith(prefix)}
    return {"category": batch["category"]} | images


def join_sides(batch: Batch, key: str) -> Tensor:
    """An array of both sides, (2B, ...), sources first."""
    return torch.cat([batch[f"src_{key}"], batch[f"trg_{key}"]])
