"""Votes and accuracies of global pose against plain loops, and the command on a small data set."""

import json
import shutil

import pytest
import torch
from PIL import ImageOps

from config import ROOT
from engine.orientation import DIRECTIONS, measure_accuracy, project_together, reduce_layers, template_distance, vote
from tests.command import call
from tests.fixtures_dataset import SIZES, draw_image, tiny_spair
from tests.test_align import write_masks


def test_distance_against_a_loop():
    generator = torch.Generator().manual_seed(0)
    photo, template = torch.randn(2, 3, 4, 4, generator=generator)
    mask = torch.zeros(4, 4, dtype=torch.bool)
    mask[1:3, 2] = True
    expected = [
        min((photo[:, i, j] - template[:, k, m]).norm().item() for k in range(4) for m in range(4))
        for i, j in mask.nonzero().tolist()
    ]
    assert template_distance(photo, template, mask, side=4) == pytest.approx(sum(expected) / 2, abs=1e-4)
    whole = template_distance(photo, template, torch.ones_like(mask), side=4)
    assert template_distance(photo, template, torch.zeros_like(mask), side=4) == whole


def test_layers_of_both_images_are_reduced_together():
    """On the directions in which all cells vary most; those of both together, so that a shift of one image remains."""
    generator = torch.Generator().manual_seed(1)
    photo, template = torch.randn(6, 4, 5, generator=generator), torch.randn(6, 3, 3, generator=generator)
    photo[2] *= 20
    photo, template = photo + 100, template + 103
    cells = torch.cat([photo.flatten(1), template.flatten(1)], dim=1).T.double()
    centred = cells - cells.mean(dim=0)
    expected = centred @ torch.linalg.svd(centred, full_matrices=False).Vh[:2].T
    found = project_together([photo, template], 2)
    assert [x.shape for x in found] == [(2, 4, 5), (2, 3, 3)]
    together = torch.cat([x.flatten(1) for x in found], dim=1).T.double()
    torch.testing.assert_close(torch.cdist(together, together), torch.cdist(expected, expected), atol=1e-2, rtol=1e-3)
    assert project_together([photo, template], 256)[0].shape == (6, 4, 5)  # it has no more


def test_descriptors_of_a_photo_and_a_template():
    g = torch.Generator().manual_seed(2)
    pair = [{"layers": {"a": torch.randn(5, 4, 4, generator=g), "b": torch.randn(7, 2, 2, generator=g)}} for _ in "pt"]
    for side in pair:
        side["dino"] = torch.randn(3, 4, 4, generator=g)
    both, alone = (reduce_layers(pair, with_dino, 4) for with_dino in (True, False))
    for joined, layers, side in zip(both, alone, pair, strict=True):
        assert joined.shape == (4 + 4 + 3, 4, 4) and layers.shape == (8, 4, 4)
        torch.testing.assert_close(joined[:8], layers / layers.norm(dim=0))  # each network by itself
        torch.testing.assert_close(joined[8:], side["dino"] / side["dino"].norm(dim=0))
    first = project_together([side["layers"]["a"] for side in pair], 4)  # every layer by itself
    torch.testing.assert_close([layers[:4] for layers in alone], first)


def test_votes():
    def templates(**near):
        return {direction: near.get(direction, 9.0) for direction in DIRECTIONS}

    distances = {"a": templates(left=1, right=2), "b": templates(right=1, left=2), "c": templates(left=1)}
    assert vote(distances) == "left" and vote(distances, ("left", "right")) == "left"
    tied = {"a": templates(right=1), "b": templates(front=1), "c": templates(left=1)}
    assert vote(tied) == "front"  # the first of back, front, left, right that has a vote
    found = {"x": distances, "y": tied, "z": tied}
    labels = {"x": "left", "y": "right", "z": "front"}
    # y: of left and right, a votes for right, c for left, b for neither (equal: the first, left)
    assert measure_accuracy(found, labels) == {"L/R": 0.5, "F/B": 1.0, "L/R or F/B": 2 / 3, "4-way": 2 / 3}
    assert measure_accuracy({"z": tied}, labels)["L/R"] is None


def test_labels_of_the_cats():
    labels = json.loads((ROOT / "script" / "global_pose.json").read_text())
    assert {name: len(set(images)) for name, images in labels.items()} == {"right": 32, "front": 21, "back": 10}
    assert len({image for images in labels.values() for image in images}) == 63


@pytest.mark.usefixtures("fresh_accelerator")
@pytest.mark.parametrize("kind", ["sd", "sd+dino"])
def test_the_command_with_the_paper_s_features(world, tmp_path, capsys, kind):
    from tests.test_geoaware_training import options

    root = tiny_spair(tmp_path / "data")
    for image, direction in enumerate(DIRECTIONS[1:]):  # templates are the photos themselves, and one that is none
        (tmp_path / "templates").mkdir(exist_ok=True)
        shutil.copy(root / f"JPEGImages/cat/2008_{image:06d}.jpg", tmp_path / f"templates/grey_{direction}.jpg")
    draw_image(tmp_path / "templates/grey_back.jpg", (40, 48), count=1)
    labels = {"front": ["2008_000000"], "right": ["2008_000002"], "back": []}
    (tmp_path / "labels.json").write_text(json.dumps(labels))
    taps = ("FEATURES.TAPS", "[up2.resnets.1.input, up1.resnets.1.input]", "DATASET.ROOT", str(tmp_path / "data"))

    def run(*more):
        words = [tmp_path / "templates", "--co_pca", kind, "--labels", tmp_path / "labels.json"]
        words += [*world.opts(tmp_path / "out", *options(world, *taps)), *more]
        return call("script/global_pose.py", *words), capsys.readouterr()

    status, text = run()
    assert status == 0, text.err
    assert "L/R         100.0" in text.out and "4-way       100.0" in text.out
    status, text = run("METHOD.NAME", "dinov2")
    assert status in (1, 2) and "--co_pca is for METHOD.NAME geoaware; dinov2 reads no layers" in text.err


def test_the_command(world, tmp_path, capsys):
    root = tiny_spair(tmp_path / "data")
    write_masks(root / "Segmentation")
    templates = tmp_path / "templates"
    for direction in DIRECTIONS:
        draw_image(templates / f"grey_{direction}.png", (40, 48))

    def run(*more):
        where = ("METHOD.DINO_FOLDER", str(world.root / "dino"), "DATASET.ROOT", str(tmp_path / "data"))
        opts = world.opts(tmp_path / "out", "METHOD.NAME", "dinov2", "METHOD.DINO_SIZE", "[56, 56]", *where)
        return call("script/global_pose.py", templates, *opts, *more), capsys.readouterr()

    photo = root / "JPEGImages/cat/2008_000001.jpg"
    shutil.copy(photo, templates / "grey_left.png")  # so that one photo is told for certain
    from PIL import Image

    ImageOps.mirror(Image.open(photo)).save(templates / "grey_right.png")
    (tmp_path / "labels.json").write_text(json.dumps({"right": ["2008_000000"], "front": ["2008_000002"], "back": []}))
    status, text = run("--labels", str(tmp_path / "labels.json"))
    assert status == 0, text.err
    assert f"{len(SIZES)} photos, 4 templates" in text.out and "(paper: 63.8 / 95.7 / 98.6)" in text.out
    (templates / "grey_back.png").unlink()
    status, text = run()
    assert status in (1, 2) and "the template grey_back is missing" in text.err
