"""How good transferred labels are: PCK of every keypoint, COCO's average precision by object keypoint similarity."""

from __future__ import annotations

import contextlib
import io
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.optimize import linear_sum_assignment
from torchvision.ops import box_iou

from dataset import DatasetError
from dataset.annotation import Category, LabelledObject, Labels, describe_category, describe_image, describe_object
from sd4match.label import measure, reorder
from utils.pck import TOTAL

INSTALL = "OKS AP needs the package pycocotools: pip install pycocotools"
COCO_PERSON = ("nose", "left_eye", "right_eye", "left_ear", "right_ear")  # the first of its 17 points


def score_labels(found: Labels, truth: Labels, alphas: Sequence[float], oks_sigma: float) -> dict[str, Any]:
    """{"pck": table, "oks": table or None without pycocotools, "objects": matched, "missing": without a partner}.

    Images are told by their file names, categories by their names, objects by their ids, else by the overlap of their
    boxes. DatasetError if the two have no image in common.
    """
    images = {image.file_name: key for key, image in truth.images.items()}
    categories = {category.name: category for category in truth.categories.values()}
    aligned = []  # the found objects, with the ids of the truth's images, categories and keypoints
    for thing in found.objects:
        own, image = found.categories[thing.category_id], images.get(found.images[thing.image_id].file_name)
        if image is not None and own.name in categories:
            aligned.append(replace(reorder(show_all(thing), own, categories[own.name]), image_id=image))
    if not aligned:
        raise DatasetError(f"{found.where} and {truth.where} have no labelled image in common (told by file_name)")
    judged = {thing.image_id for thing in aligned}
    truth = replace(truth, objects=[o for o in truth.objects if o.image_id in judged and len(o.labelled_points())])
    pairs = pair_objects(aligned, truth.objects)
    return {
        "pck": tabulate_pck(pairs, truth, alphas),
        "oks": tabulate_oks(aligned, truth, oks_sigma),
        "objects": sum(mine is not None for mine, _ in pairs),
        "missing": sum(mine is None for mine, _ in pairs),
    }


def pair_objects(
    found: Sequence[LabelledObject], truth: Sequence[LabelledObject]
) -> list[tuple[LabelledObject | None, LabelledObject]]:
    """(found, true) for every true object; found is None if nothing belongs to it."""
    groups: dict[tuple, list[LabelledObject]] = defaultdict(list)
    wanted: dict[tuple, list[LabelledObject]] = defaultdict(list)
    for thing in found:
        groups[thing.image_id, thing.category_id].append(thing)
    for thing in truth:
        wanted[thing.image_id, thing.category_id].append(thing)
    pairs = []
    for key, true in wanted.items():
        mine = groups[key]
        by_id = {thing.id: thing for thing in mine}
        if len(mine) == len(true) == 1:
            pairs += zip(mine, true, strict=True)
        elif {thing.id for thing in true} <= by_id.keys():
            pairs += [(by_id[thing.id], thing) for thing in true]
        else:
            boxes = (torch.tensor(np.stack([_box(thing) for thing in things])) for things in (true, mine))
            overlap = box_iou(*boxes).nan_to_num().numpy() if mine else np.zeros((len(true), 0))
            chosen = {i: mine[j] for i, j in zip(*linear_sum_assignment(-overlap), strict=True) if overlap[i, j] > 0}
            pairs += [(chosen.get(i), thing) for i, thing in enumerate(true)]
    return pairs


def tabulate_pck(pairs: Sequence[tuple], truth: Labels, alphas: Sequence[float]) -> pd.DataFrame:
    """A row for each category and keypoint, each category, and all: points, share found at all, PCK at each alpha.

    Of the points that are labelled in the truth; one that was not found is wrong. Sums are over points.
    """
    rows = []
    for mine, true in pairs:
        category = truth.categories[true.category_id]
        known = true.points[:, 2] > 0
        there = np.zeros(len(known), bool) if mine is None else mine.points[:, 2] > 0
        errors = np.full(len(known), np.inf)
        if mine is not None:
            errors[there] = np.linalg.norm(mine.points[there, :2] - true.points[there, :2], axis=1)
        for k in np.flatnonzero(known):
            hits = [errors[k] <= alpha * measure(true) for alpha in alphas]
            rows.append((category.name, category.keypoints[k], there[k], *hits))
    columns = ["category", "keypoint", "found", *[f"@{alpha:g}" for alpha in alphas]]
    table = pd.DataFrame(rows, columns=columns)
    parts = [
        table.groupby(["category", "keypoint"], sort=False),
        table.assign(keypoint=TOTAL).groupby(["category", "keypoint"]),
        table.assign(category=TOTAL, keypoint=TOTAL).groupby(["category", "keypoint"]),
    ]
    found = [part[columns[2:]].mean().assign(points=part.size()) for part in parts]
    return pd.concat(found).reset_index()[["category", "keypoint", "points", *columns[2:]]]


def tabulate_oks(found: Sequence[LabelledObject], truth: Labels, sigma: float) -> pd.DataFrame | None:
    """AP, AP50, AP75 and AR of each category and their mean, by pycocotools; None if that is not installed."""
    try:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    except ImportError:
        return None
    rows = {}
    for category in truth.categories.values():
        true, mine = (
            [{"score": 1.0, **describe_object(thing)} for thing in objects if thing.category_id == category.id]
            for objects in (truth.objects, found)
        )
        if not true:
            continue
        images = [describe_image(truth.images[key]) for key in dict.fromkeys(o["image_id"] for o in [*true, *mine])]
        with contextlib.redirect_stdout(io.StringIO()):  # its tables are of one category each
            known = COCO()
            known.dataset = {"info": {}, "images": images, "annotations": true}
            known.dataset["categories"] = [describe_category(category)]
            known.createIndex()
            judge = COCOeval(known, known.loadRes(mine) if mine else COCO(), "keypoints")
            judge.params.kpt_oks_sigmas = find_sigmas(category, judge.params.kpt_oks_sigmas, sigma)
            judge.evaluate()
            judge.accumulate()
            judge.summarize()
        rows[category.name] = judge.stats[[0, 1, 2, 5]]
    table = pd.DataFrame.from_dict(rows, orient="index", columns=["AP", "AP50", "AP75", "AR"])
    table.loc[TOTAL] = table.mean()
    return table.rename_axis("category").reset_index()


def find_sigmas(category: Category, of_persons: np.ndarray, sigma: float) -> np.ndarray:
    """(K,) the category's own "sigmas", COCO's for the points of its persons, or `sigma` for all."""
    names, own = category.keypoints, category.more.get("sigmas")
    if own is None:
        is_person = names[:5] == COCO_PERSON and len(names) == len(of_persons)
        return of_persons if is_person else np.full(len(names), sigma)
    if len(own) != len(names):
        raise DatasetError(f"category {category.name}: {len(own)} 'sigmas' for {len(names)} keypoints")
    return np.array(own, np.float64)


def format_score(score: Mapping[str, Any]) -> str:
    """Both tables, in percent."""
    parts = [f"{score['objects']} objects" + f", {score['missing']} not found" * bool(score["missing"])]
    for key in ("pck", "oks"):
        table = score[key]
        if table is None:
            parts.append(INSTALL)
            continue
        shares = [name for name in table if table[name].dtype.kind == "f" or name == "found"]
        shown = table.assign(**{name: 100 * table[name].astype(float) for name in shares})
        parts.append(shown.to_string(index=False, float_format="{:.2f}".format))
    return "\n\n".join(parts)


def show_all(thing: LabelledObject) -> LabelledObject:
    """With all points that were found, also those that the visibility threshold hides."""
    if (found := thing.more.get("found")) is None:
        return thing
    points = np.reshape(np.array(found, np.float64), (-1, 3))
    points[:, 2] = np.where(points[:, 2] > 0, 2, 0)
    return replace(thing, points=points)


def _box(thing: LabelledObject) -> np.ndarray:
    box = thing.find_extent()
    return np.zeros(4) if box is None else box
