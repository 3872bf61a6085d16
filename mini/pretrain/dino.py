"""The mini DINOv2: an ordinary `Dinov2Model` taught categories and kinds of part of the scenes."""

from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from transformers import BitImageProcessor, Dinov2Config, Dinov2Model

from mini.pretrain.captions import Caption, LabelSpace
from mini.pretrain.loop import Run, Schedule, Scores, fit, load_as_float32
from mini.pretrain.scenes import SceneStore

CROP, PATCH = 84, 7
GRID = CROP // PATCH
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
NEIGHBOURS = 5


class DinoTeacher(nn.Module):
    """The network with the throw-away heads it is trained with."""

    def __init__(self, categories: int, colours: int, facings: int, labels: int):
        super().__init__()
        self.network = Dinov2Model(
            Dinov2Config(
                hidden_size=96,
                num_hidden_layers=5,
                num_attention_heads=4,
                mlp_ratio=3,
                image_size=CROP,
                patch_size=PATCH,
                layerscale_value=1.0,
            )
        )
        self.category = nn.Linear(96, categories)
        self.colour = nn.Linear(96, colours)
        self.facing = nn.Linear(96, facings)
        self.part = nn.Linear(96, labels)


def build_processor() -> BitImageProcessor:
    """Return the preprocessing of DINOv2 at 84 px: short side 96, centre crop 84, ImageNet statistics."""
    return BitImageProcessor(
        size={"shortest_edge": 96},
        crop_size={"height": CROP, "width": CROP},
        resample=3,
        image_mean=list(MEAN),
        image_std=list(STD),
    )


def _normalise(crops: np.ndarray, device: torch.device) -> torch.Tensor:
    x = torch.tensor(crops, device=device).permute(0, 3, 1, 2).float() / 255
    mean, std = (x.new_tensor(value).view(1, 3, 1, 1) for value in (MEAN, STD))
    return (x - mean) / std


class DinoTargets:
    """What each scene teaches: its categories, and of one-object scenes the colour and the facing."""

    def __init__(self, store: SceneStore, space: LabelSpace):
        self.store, self.space = store, space
        objects = [o for scene in store.objects for o in scene]
        self.names = sorted(space.whole)
        self.colours = sorted({o["colour"] for o in objects})
        self.facings = sorted({o["facing"] for o in objects})

    def presence(self, rows: list[int]) -> torch.Tensor:
        """Return which categories the scenes show, (n, categories) float."""
        target = torch.zeros(len(rows), len(self.names))
        for i, row in enumerate(rows):
            for o in self.store.objects[row]:
                target[i, self.names.index(o["category"])] = 1.0
        return target

    def only_object(self, rows: list[int], key: str, words: list[str]) -> torch.Tensor:
        """Return the index of the only object's word, -100 (ignored) for scenes with two."""
        scenes = [self.store.objects[row] for row in rows]
        return torch.tensor([words.index(scene[0][key]) if len(scene) == 1 else -100 for scene in scenes])

    def patches(self, row: int, top: int, left: int) -> np.ndarray:
        """Return the kinds of part at the patch centres of a crop, (GRID, GRID)."""
        names = [o["category"] for o in self.store.objects[row]]
        centres = np.s_[top + PATCH // 2 : top + CROP : PATCH, left + PATCH // 2 : left + CROP : PATCH]
        caption = Caption("", frozenset(names), kinds=True)
        return self.space.label_map(caption, self.store.detail[row][centres], self.store.instance[row][centres], names)


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
    teacher = DinoTeacher(len(targets.names), len(targets.colours), len(targets.facings), space.size).to(device)

    def compute_loss(teacher: nn.Module, generator: torch.Generator) -> tuple[torch.Tensor, Scores]:
        rows = torch.randint(len(store), (schedule.local_batch,), generator=generator).tolist()
        tops, lefts = torch.randint(
            store.image.shape[1] - CROP + 1, (2, schedule.local_batch), generator=generator
        ).tolist()
        boxes = list(zip(rows, tops, lefts, strict=True))
        crops = np.stack([store.image[r, y : y + CROP, x : x + CROP] for r, y, x in boxes])
        tokens = teacher.network(_normalise(crops, device)).last_hidden_state
        patches = torch.from_numpy(np.stack([targets.patches(*box) for box in boxes])).flatten(1).to(device)
        losses = {
            "category": F.binary_cross_entropy_with_logits(
                teacher.category(tokens[:, 0]), targets.presence(rows).to(device)
            ),
            "colour": _cross_entropy(
                teacher.colour(tokens[:, 0]), targets.only_object(rows, "colour", targets.colours)
            ),
            "facing": _cross_entropy(
                teacher.facing(tokens[:, 0]), targets.only_object(rows, "facing", targets.facings)
            ),
            "part": F.cross_entropy(teacher.part(tokens[:, 1:]).transpose(1, 2), patches),
        }
        weights = {"category": 4.0, "colour": 0.2, "facing": 0.4, "part": 1.0}
        return sum(weights[k] * v for k, v in losses.items()), {k: v.item() for k, v in losses.items()}

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


def _cross_entropy(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(logits, target.to(logits.device), reduction="sum") / len(target)


@torch.no_grad()
def class_tokens(network: nn.Module, images: np.ndarray, device: torch.device) -> torch.Tensor:
    """Return the class tokens (n, D) of the centre crops of 96-px images (n, H, W, 3)."""
    top, left = (images.shape[1] - CROP) // 2, (images.shape[2] - CROP) // 2
    crops = images[:, top : top + CROP, left : left + CROP]
    outputs = [network(_normalise(crops[i : i + 64], device)) for i in range(0, len(crops), 64)]
    return torch.cat([output.last_hidden_state[:, 0].float().cpu() for output in outputs])


def knn_accuracy(tokens: torch.Tensor, names: list[str]) -> float:
    """Return the share of tokens (n, D) whose nearest others (cosine) mostly bear the same name."""
    tokens = F.normalize(tokens, dim=1)
    similarity = (tokens @ tokens.T).fill_diagonal_(-2.0)
    ids = torch.tensor([sorted(set(names)).index(name) for name in names])
    votes = F.one_hot(ids)[similarity.topk(NEIGHBOURS, dim=1).indices].sum(1)
    return (votes.argmax(1) == ids).float().mean().item()
