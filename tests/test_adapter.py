"""Matchers under the interfaces of other libraries, by the installed transformers itself where it has the code."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import KeypointMatchingPipeline

from sd4match import Matcher
from sd4match.adapter import ImageMatcher, KeypointMatching, KeypointMatchingModel
from tests.fixtures_dataset import draw_image
from tests.test_flow import make_pair, matrix

KEYS = ["H", "all_desc0", "all_desc1", "all_kpts0", "all_kpts1"]
KEYS += ["inlier_kpts0", "inlier_kpts1", "matched_kpts0", "matched_kpts1", "num_inliers"]


@pytest.fixture(scope="module")
def matcher(world):
    return Matcher.from_pretrained(str(world.root / "sd"), "empty", "cpu", image_size=64, ensemble=1)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder, sizes = tmp_path_factory.mktemp("images"), {"a": (96, 128), "b": (120, 80), "c": (64, 64), "d": (64, 64)}
    for name, size in sizes.items():
        draw_image(folder / f"{name}.png", size)
    return {name: str(folder / f"{name}.png") for name in sizes}


def rows(found):
    return [(tuple(m["keypoint_image_0"].values()), tuple(m["keypoint_image_1"].values()), m["score"]) for m in found]


def test_as_the_pipeline_is_called(matcher, images):
    match = KeypointMatching(matcher, count=20)
    found = match([images["a"], images["b"]])
    expected = matcher.pair(images["a"], images["b"]).match_mutual(20)
    assert len(found) == len(expected) > 1
    for (a, b, score), source, target, confidence in zip(
        rows(found), expected.source, expected.points, expected.confidence, strict=True
    ):
        assert np.allclose(a, source) and np.allclose(b, target) and score == pytest.approx(float(confidence))
    scores = [m["score"] for m in found]
    assert scores == sorted(scores, reverse=True)
    assert match([images["a"], images["b"]], threshold=scores[1]) == found[:1]
    pictures = [Image.open(images["a"]), Image.open(images["b"])]
    assert match([pictures, (images["a"], images["b"])]) == [found, found]


def test_as_a_model_of_transformers(matcher, images):
    """Its processor resizes, the model matches, its post-processing gives whole pixels of the originals."""
    model = KeypointMatchingModel(matcher, count=30)
    processor = model.build_processor()
    pictures = [Image.open(images[name]).convert("RGB") for name in "abcd"]
    inputs = processor([pictures[:2], pictures[2:]], return_tensors="pt")
    assert inputs["pixel_values"].shape == (2, 2, 3, 64, 64)
    with torch.no_grad():
        outputs = model(**inputs)
    sizes = [[(p.height, p.width) for p in pair] for pair in (pictures[:2], pictures[2:])]
    first, second = processor.post_process_keypoint_matching(outputs, sizes, threshold=0.0)
    for found, pixels, pair_sizes in (
        (first, inputs["pixel_values"][0], sizes[0]),
        (second, inputs["pixel_values"][1], sizes[1]),
    ):
        expected = matcher.pair(*pixels).match_mutual(30)
        kept = expected.confidence > 0
        assert np.allclose(found["matching_scores"], expected.confidence[kept], atol=1e-6)
        for name, points, (height, width) in zip(
            ("keypoints0", "keypoints1"), (expected.source, expected.points), pair_sizes, strict=True
        ):
            scaled = points[kept] * [width / 64, height / 64]
            assert np.abs(found[name].numpy() - scaled).max() <= 1  # whole pixels


def test_inside_the_pipeline_of_transformers(matcher, images):
    model = KeypointMatchingModel(matcher, count=10)
    pipeline = KeypointMatchingPipeline(model=model, image_processor=model.build_processor())
    found = pipeline([images["c"], images["d"]])
    expected = KeypointMatching(matcher, count=10)([images["c"], images["d"]])
    expected = [m for m in expected if m["score"] > 0]
    assert len(found) == len(expected) > 0
    assert [m["score"] for m in found] == pytest.approx([m["score"] for m in expected], abs=1e-4)
    for (a, b, _), (c, d, _) in zip(rows(found), rows(expected), strict=True):
        assert np.abs(np.subtract(a, c)).max() <= 1 and np.abs(np.subtract(b, d)).max() <= 1


class Moved:
    """In place of a matcher: whatever is given, a pair with a known movement."""

    def pair(self, *images):
        return make_pair(matrix("affine"))


def test_the_homography_of_a_collection():
    match = ImageMatcher(Moved(), count=200)
    found = match(torch.zeros(3, 120, 160), torch.zeros(3, 120, 160))
    assert sorted(found) == KEYS
    assert found["num_inliers"] == len(found["inlier_kpts0"]) == len(found["inlier_kpts1"]) > 20
    assert len(found["matched_kpts0"]) == len(found["all_kpts0"]) >= found["num_inliers"]
    corners = np.array([[30.0, 30, 1], [130, 30, 1], [130, 90, 1], [30, 90, 1]])
    moved = corners @ found["H"].T
    assert np.abs(moved[:, :2] / moved[:, 2:] - matrix("affine")(corners[:, :2])).max() < 3


def test_a_collection_is_given_files_and_tensors(matcher, images):
    match = ImageMatcher(matcher, count=3)  # too few for a homography
    files = match(images["a"], images["b"])
    assert files["H"] is None and files["num_inliers"] == 3 and sorted(files) == KEYS
    tensors = match(match.load_image(images["a"]), match.load_image(images["b"]))
    assert np.allclose(tensors["matched_kpts1"], files["matched_kpts1"])
    assert match.load_image(images["a"], resize=(20, 30)).shape == (3, 20, 30)
