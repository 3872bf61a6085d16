"""The mini DINOv2: an ordinary `Dinov2Model` taught categories, facing and kinds of part of the scenes.

Most steps see a third of the patches: three times as many scenes in the same time, and nothing can be told from one
spot alone.
"""

from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from transformers import BitImageProcessor, Dinov2Config, Dinov2Model

from mini.pretrain.captions import LabelSpace
from mini.pretrain.loop import Run, Schedule, Scores, fit, load_as_float32
from mini.pretrain.scenes import SceneStore

CROP, PATCH = 84, 7
GRID = CROP // PATCH
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
WIDTH = 96
WHOLE_SHARE = 0.25  # of the steps that see every patch
KEPT = GRID * GRID // 3  # patches that the other steps see
CROP_SIDES = (0.7, 1.0)  # of a training crop, relative to the scene
GAIN = 0.3  # largest change of a colour channel, relative
TAU = 0.1  # temperature of the cosine classifier of categories
WEIGHTS = {"category": 2.0, "pooled": 1.0, "facing": 0.2, "part": 1.0}
MIRRORED = {"left": "right", "right": "left"}
NEIGHBOURS = 5


class DinoTeacher(nn.Module):
    """The network with the throw-away heads it is trained with."""

    def __init__(self, categories: int, facings: int, labels: int):
        super().__init__()
        self.network = Dinov2Model(
            Dinov2Config(
                hidden_size=WIDTH,
                num_hidden_layers=5,
                num_attention_heads=4,
                mlp_ratio=3,
                image_size=CROP,
                patch_size=PATCH,
                layerscale_value=1.0,
                initializer_range=0.08,  # as in a wide network: the default starts a narrow one too small
            )
        )
        self.category = nn.Parameter(torch.randn(categories, WIDTH))
        self.facing = nn.Linear(WIDTH, facings)
        self.part = nn.Linear(WIDTH, labels)

    def tokens(self, pixels: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
        """Return the class token and the tokens of the patches `kept` (n, k), computed from these alone."""
        embedded = self.network.embeddings(pixels)
        patches = embedded[:, 1:].gather(1, kept[..., None].expand(-1, -1, WIDTH))
        encoded = self.network.encoder(torch.cat([embedded[:, :1], patches], 1)).last_hidden_state
        return self.network.layernorm(encoded)

    def category_logits(self, class_token: torch.Tensor) -> torch.Tensor:
        return F.normalize(class_token, dim=1) @ F.normalize(self.category, dim=1).T / TAU


def build_processor() -> BitImageProcessor:
    """Return the preprocessing of DINOv2 at 84 px: short side 96, centre crop 84, ImageNet statistics."""
    return BitImageProcessor(
        size={"shortest_edge": 96},
        crop_size={"height": CROP, "width": CROP},
        resample=3,
        image_mean=list(MEAN),
        image_std=list(STD),
    )


def _normalise(pixels: torch.Tensor) -> torch.Tensor:
    mean, std = (pixels.new_tensor(value).view(1, 3, 1, 1) for value in (MEAN, STD))
    return (pixels - mean) / std


def _to_pixels(images: np.ndarray, device: torch.device) -> torch.Tensor:
    return torch.tensor(images, device=device).permute(0, 3, 1, 2).float() / 255


def draw_crops(
    pixels: torch.Tensor, maps: torch.Tensor, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Cut a random crop of each scene and change its colours.

    pixels (n, 3, H, W) in [0, 1], maps (n, C, H, W) of labels. Returns the crops (n, 3, CROP, CROP), the labels at
    their patch centres (n, C, GRID, GRID), and which were mirrored (n,) bool.
    """
    n = len(pixels)
    side = CROP_SIDES[0] + (CROP_SIDES[1] - CROP_SIDES[0]) * torch.rand(n, generator=generator)
    shift = (1 - side) * (2 * torch.rand(2, n, generator=generator) - 1)
    mirrored = torch.rand(n, generator=generator) < 0.5
    theta = torch.zeros(n, 2, 3)
    theta[:, 0, 0], theta[:, 1, 1] = torch.where(mirrored, -side, side), side
    theta[:, :, 2] = shift.T
    theta = theta.to(pixels)
    grids = [F.affine_grid(theta, [n, 1, length, length], align_corners=False) for length in (CROP, GRID)]
    crops = F.grid_sample(pixels, grids[0], padding_mode="reflection", align_corners=False)
    labels = F.grid_sample(maps, grids[1], mode="nearest", align_corners=False)
    gain = 1 + GAIN * (2 * torch.rand(n, 3, 1, 1, generator=generator) - 1)
    return (crops * gain.to(crops)).clamp(0, 1), labels, mirrored


class DinoTargets:
    """What each scene teaches: its categories and kinds of part, and of one-object scenes the facing."""

    def __init__(self, store: SceneStore, space: LabelSpace):
        self.store = store
        self.names = sorted({o["category"] for scene in store.objects for o in scene})
        self.facings = sorted({o["facing"] for scene in store.objects for o in scene})
        longest = max(len(space.kind[name]) for name in self.names)
        self.kind = np.zeros((1 + len(self.names), longest), np.int64)  # label of each detail value, row 0: no object
        for i, name in enumerate(self.names, 1):
            self.kind[i, : len(space.kind[name])] = space.kind[name]

    def maps(self, rows: list[int]) -> torch.Tensor:
        """Return the kinds of part of scenes, (n, 1, H, W) float."""
        objects = np.zeros((len(rows), 256), np.int64)  # row of `kind` for each object number
        for i, row in enumerate(rows):
            for number, o in enumerate(self.store.objects[row], 1):
                objects[i, number] = 1 + self.names.index(o["category"])
        owner = objects[np.arange(len(rows))[:, None, None], self.store.instance[rows]]
        return torch.from_numpy(self.kind[owner, self.store.detail[rows]].astype(np.float32))[:, None]

    def categories(self, rows: list[int]) -> torch.Tensor:
        """Return the share of each category among the objects of scenes, (n, categories)."""
        shares = torch.zeros(len(rows), len(self.names))
        for i, row in enumerate(rows):
            for o in self.store.objects[row]:
                shares[i, self.names.index(o["category"])] += 1 / len(self.store.objects[row])
        return shares

    def facing(self, rows: list[int], mirrored: torch.Tensor) -> torch.Tensor:
        """Return the index of the only object's facing, -100 (ignored) for scenes with more."""
        words = []
        for row, flip in zip(rows, mirrored.tolist(), strict=True):
            word = self.store.objects[row][0]["facing"]
            words.append(MIRRORED.get(word, word) if flip else word)
        alone = [len(self.store.objects[row]) == 1 for row in rows]
        return torch.tensor([self.facings.index(w) if one else -100 for w, one in zip(words, alone, strict=True)])


def train_dino(
    store: SceneStore,
    held_out: SceneStore,
    space: LabelSpace,
    schedule: Schedule,
    folder: Path,
    out: Path,
    device,
) -> None:
    """Train the network on crops of the scenes and save it with its image processor to `out`."""
    targets = DinoTargets(store, space)
    teacher = DinoTeacher(len(targets.names), len(targets.facings), space.size).to(device)

    def compute_loss(teacher: nn.Module, generator: torch.Generator) -> tuple[torch.Tensor, Scores]:
        rows = torch.randint(len(store), (schedule.local_batch,), generator=generator).tolist()
        pixels, maps = _to_pixels(store.image[rows], device), targets.maps(rows).to(device)
        crops, labels, mirrored = draw_crops(pixels, maps, generator)
        count = GRID * GRID if torch.rand((), generator=generator) < WHOLE_SHARE else KEPT
        kept = torch.rand(len(rows), GRID * GRID, generator=generator).argsort(1)[:, :count].to(device)
        tokens = teacher.tokens(_normalise(crops), kept)
        patches = labels.flatten(1).long().gather(1, kept)
        shares, facing = targets.categories(rows).to(device), targets.facing(rows, mirrored).to(device)
        losses = {
            "category": F.cross_entropy(teacher.category_logits(tokens[:, 0]), shares),
            "pooled": F.cross_entropy(teacher.category_logits(tokens[:, 1:].mean(1)), shares),
            "facing": F.cross_entropy(teacher.facing(tokens[:, 0]), facing, reduction="sum") / len(rows),
            "part": F.cross_entropy(teacher.part(tokens[:, 1:]).transpose(1, 2), patches),
        }
        return sum(WEIGHTS[k] * v for k, v in losses.items()), {k: v.item() for k, v in losses.items()}

    def evaluate(teacher: nn.Module) -> Scores:
        names = [scene[0]["category"] for scene in held_out.objects]
        return {"knn": knn_accuracy(class_tokens(teacher.network, held_out.image, device), names)}

    def export(teacher: nn.Module) -> None:
        network = Dinov2Model(teacher.network.config)
        network.load_state_dict(teacher.network.state_dict())
        network.half().save_pretrained(out)
        load_as_float32(out)
        build_processor().save_pretrained(out)

    fit(Run("dino", teacher, schedule, folder), compute_loss, evaluate, export)


@torch.no_grad()
def class_tokens(network: nn.Module, images: np.ndarray, device: torch.device) -> torch.Tensor:
    """Return the class tokens (n, D) of the centre crops of 96-px images (n, H, W, 3)."""
    top, left = (images.shape[1] - CROP) // 2, (images.shape[2] - CROP) // 2
    crops = images[:, top : top + CROP, left : left + CROP]
    chunks = [_normalise(_to_pixels(crops[i : i + 64], device)) for i in range(0, len(crops), 64)]
    return torch.cat([network(chunk).last_hidden_state[:, 0].float().cpu() for chunk in chunks])


def knn_accuracy(tokens: torch.Tensor, names: list[str]) -> float:
    """Return the share of tokens (n, D) whose nearest others (cosine) mostly bear the same name."""
    tokens = F.normalize(tokens, dim=1)
    similarity = (tokens @ tokens.T).fill_diagonal_(-2.0)
    ids = torch.tensor([sorted(set(names)).index(name) for name in names])
    votes = F.one_hot(ids)[similarity.topk(NEIGHBOURS, dim=1).indices].sum(1)
    return (votes.argmax(1) == ids).float().mean().item()
