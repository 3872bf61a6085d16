"""Dense matching in pixels: known movements come back, files are read back, transforms are recovered."""

import struct
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from sd4match.flow import Flow, FlowError, Transform, fit_transform, read_flo
from sd4match.pair import Pair, Setting
from utils.frame import Pad, Stretch
from utils.geometry import cell_grid, cell_to_px
from utils.image import Picture

CELLS, FREQUENCIES = (24, 24), torch.randn(2, 96, generator=torch.Generator().manual_seed(0)) / 30


def scene(points):
    """Features (..., 192) of places (..., 2) of a scene, px: nearby places are alike, others are not."""
    phase = points.float() @ FREQUENCIES
    return torch.cat([phase.cos(), phase.sin()], dim=-1)


def make_map(picture, frame, to_scene):
    px = cell_to_px(cell_grid(CELLS, torch.zeros(0)), CELLS, frame.image_size)
    places = to_scene(frame.to_orig(px, picture.size).numpy().astype(float))
    return scene(torch.from_numpy(np.asarray(places))).T.unflatten(1, CELLS)


def make_pair(to_target, src_size=(120, 160), trg_size=(120, 160), frame=None):
    """A pair whose source px lie at to_target(px) of the target: its inverse places the target in the scene."""
    frame = frame or Stretch((96, 96))
    src, trg = (
        Picture(Image.new("RGB", size[::-1], "grey"), size, name)
        for size, name in ((src_size, "src"), (trg_size, "trg"))
    )
    inverse = to_target.inverse if hasattr(to_target, "inverse") else to_target
    setting = Setting("softmax", 0.01, 2.0, frame)
    return Pair(src, trg, make_map(src, frame, lambda p: p), make_map(trg, frame, inverse), setting)


def matrix(kind):
    from skimage import transform

    return {
        "rigid": transform.EuclideanTransform(rotation=0.1, translation=(14, -9)),
        "similarity": transform.SimilarityTransform(scale=1.15, rotation=-0.12, translation=(10, 4)),
        "affine": transform.AffineTransform([[1.1, 0.1, 3], [-0.05, 0.9, 8], [0, 0, 1]]),
        "homography": transform.ProjectiveTransform([[1, 0.1, 2], [0.02, 0.95, 5], [0.0004, -0.0003, 1]]),
    }[kind]


def errors(flow, to_target):
    """Distance of each found place from the true one, px; where the true one is well inside the target."""
    y, x = np.indices(flow.size)
    source = np.stack([x, y], axis=-1)
    true = to_target(source.reshape(-1, 2).astype(float)).reshape(source.shape)
    well = ((true > 8) & (true < np.array(flow.size[::-1]) - 9)).all(axis=-1)
    return np.linalg.norm(flow.points - true, axis=-1), well


def test_an_image_and_itself():
    flow = make_pair(lambda p: p).flow()
    assert flow.flow.shape == (120, 160, 2) and flow.flow.dtype == np.float32
    assert np.abs(flow.flow[8:-8, 8:-8]).max() < 1 and flow.mask[8:-8, 8:-8].all()
    assert flow.confidence.shape == flow.mask.shape and flow.confidence.max() <= 1


@pytest.mark.parametrize("frame", [Stretch((96, 96)), Pad((96, 96))])
def test_an_image_and_its_shifted_copy(frame):
    """To a fraction of a cell (6.7 x 5 px), whatever the frame."""
    move = matrix("rigid").__class__(translation=(17.3, -8.6))
    flow = make_pair(move, frame=frame).flow()
    distance, well = errors(flow, move)
    assert flow.mask[well].mean() > 0.95 and np.median(distance[flow.mask & well]) < 0.6
    assert np.median(flow.flow[flow.mask & well], axis=0) == pytest.approx([17.3, -8.6], abs=0.4)


@pytest.mark.parametrize("kind", ["rigid", "similarity", "affine", "homography"])
def test_the_movement_of_a_pair_is_fitted(kind):
    true = matrix(kind)
    flow = make_pair(true).flow()
    found = flow.fit(kind, tolerance=4)
    corners = np.array([[30.0, 30], [130, 30], [130, 90], [30, 90]])
    assert np.abs(found(corners) - true(corners)).max() < 2 and found.inliers.mean() > 0.7


def test_every_pixel_is_its_match():
    pair = make_pair(matrix("similarity"), (40, 30), (50, 44))
    flow = pair.flow(step=1)
    points = np.array([[0, 0], [3, 7], [29, 39], [12, 20]])
    found = pair.match(points)
    x, y = points.T
    assert np.allclose(flow.points[y, x], found.points, atol=1e-3)
    assert np.allclose(flow.confidence[y, x], found.confidence, atol=1e-4)
    assert (flow.mask[y, x] == (found.cycle <= 1.5 * pair.cell_sizes()[0].max())).all()


def test_memory_is_bounded_and_changes_nothing():
    pair = make_pair(matrix("affine"))
    seen = []
    ask = pair._ask

    def watch(*args):
        for query in ask(*args):
            seen.append(query.query_cell.shape[1])
            yield query

    object.__setattr__(pair, "_ask", watch)
    small = pair.flow(budget_mib=1)
    object.__delattr__(pair, "_ask")
    assert max(seen) * 10 * 24 * 24 * 4 < 2**20 and len(seen) > 20
    assert np.allclose(small.flow, pair.flow().flow, atol=1e-4)


def test_tolerance_of_the_way_back():
    pair = make_pair(matrix("similarity"))
    strict, usual, loose = (pair.flow(tolerance=t).mask for t in (0.2, None, 1e6))
    assert strict.sum() < usual.sum() < loose.sum() and not (strict & ~usual).any()


def test_masks_of_both_sides():
    move = matrix("rigid").__class__(translation=(20, 0))
    pair = make_pair(move)
    src_mask, trg_mask = np.zeros((2, 120, 160), bool)
    src_mask[20:100, 20:90], trg_mask[:60] = True, True
    flow = pair.flow(src_mask=src_mask, trg_mask=trg_mask)
    assert not flow.mask[~src_mask].any() and not flow.confidence[~src_mask].any()
    y, x = np.nonzero(flow.mask)
    assert flow.mask[30:50, 30:80].all() and flow.points[y, x, 1].max() < 60
    for mask, reason in (
        (np.ones((3, 3)), r"has shape \(3, 3\), not \(120, 160\)"),
        (np.zeros((120, 160)), "is empty"),
    ):
        with pytest.raises(ValueError, match=f"the mask of trg {reason}"):
            pair.flow(trg_mask=mask)
    with pytest.raises(ValueError, match="the mask of src has shape"):
        pair.match((3, 3), src_mask=np.ones((160, 120)))


def test_nothing_is_interpolated_across_a_jump():
    """The left half stays, the right half goes far down; between them no pixel has a place."""

    class Halves:
        @staticmethod
        def inverse(p):  # of the target: where in the scene a place lies
            moved = p - [0, 45]
            return np.where(p[:, :1] < 80, p, moved)

    flow = make_pair(Halves).flow(tolerance=1e6, localiser="nn")
    down = flow.flow[5:60, :, 1]
    between = (down > 8) & (down < 37)
    assert between.any() and not (between & flow.mask[5:60]).any()
    assert flow.mask[5:60, :70].mean() > 0.9 and flow.mask[5:60, 95:150].mean() > 0.9


# ---- files and pictures -----------------------------------------------------------------------------------------


@pytest.fixture
def flow():
    generator = np.random.default_rng(0)
    mask = generator.random((5, 7)) > 0.3
    return Flow(generator.normal(size=(5, 7, 2)).astype(np.float32), np.ones((5, 7), np.float32), mask)


def test_flo_is_read_back(flow, tmp_path):
    flow.save(tmp_path / "a.flo")
    content = (tmp_path / "a.flo").read_bytes()
    assert content[:4] == b"PIEH" and struct.unpack("<ii", content[4:12]) == (7, 5) and len(content) == 12 + 5 * 7 * 8
    assert struct.unpack("<2f", content[12:20]) == pytest.approx(
        tuple(flow.flow[0, 0]) if flow.mask[0, 0] else (1e10, 1e10)
    )
    back = read_flo(tmp_path / "a.flo")
    assert (np.isnan(back).all(axis=-1) == ~flow.mask).all() and (back[flow.mask] == flow.flow[flow.mask]).all()
    flow.save(tmp_path / "whole.flo", masked=False)
    assert (read_flo(tmp_path / "whole.flo") == flow.flow).all()
    assert not list(tmp_path.glob(".*"))


def test_npy_and_picture(flow, tmp_path):
    flow.save(tmp_path / "a.npy")
    back = np.load(tmp_path / "a.npy", allow_pickle=False)
    assert back.dtype == np.float32 and (np.isnan(back[..., 0]) == ~flow.mask).all()
    flow.save(tmp_path / "a.png")
    picture = np.asarray(Image.open(tmp_path / "a.png"))
    assert picture.shape == (5, 7, 3) and (picture[~flow.mask] == 255).all()
    right = replace(flow, flow=np.full((5, 7, 2), [9, 0], np.float32), mask=np.ones((5, 7), bool)).draw()
    left = replace(flow, flow=np.full((5, 7, 2), [-9, 0], np.float32), mask=np.ones((5, 7), bool)).draw()
    assert right[0, 0, 0] > 200 > right[0, 0, 1] and left[0, 0, 0] < 100 < left[0, 0, 2]  # red, cyan


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"PIEX" + bytes(20), "no .flo file"),
        (b"", "no .flo file"),
        (struct.pack("<fii", 202021.25, 3, 2), "12 bytes are not those of 3 x 2 px"),
    ],
)
def test_other_files_are_refused(tmp_path, flow, content, message):
    (tmp_path / "a.flo").write_bytes(content)
    with pytest.raises(FlowError, match=f"a.flo: {message}"):
        read_flo(tmp_path / "a.flo")
    with pytest.raises(FlowError, match="a.txt: a flow is written as .npy, .flo"):
        flow.save(tmp_path / "a.txt")


def test_warps_bring_the_target_to_the_source():
    """An image that holds its own coordinates."""
    x, y = np.meshgrid(np.arange(160.0), np.arange(120.0))
    image = np.stack([x, y], axis=-1).astype(np.float32)
    true = matrix("affine")
    flow = make_pair(true).flow()
    inside = ((flow.points >= 0) & (flow.points <= [159, 119])).all(axis=-1)
    assert np.allclose(flow.warp(image)[inside], flow.points[inside], atol=1e-2)
    fitted = Transform("affine", true.params, np.ones(0, bool))
    warped, (_, well) = fitted.warp(image, (120, 160)), errors(flow, true)
    places = true(np.stack([x, y], axis=-1).reshape(-1, 2)).reshape(image.shape)
    assert np.allclose(warped[well], places[well], atol=1e-2) and (warped[(places < -1).any(axis=-1)] == 0).all()
    assert flow.warp(image.astype(np.uint8)).dtype == np.uint8


# ---- transforms -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["rigid", "similarity", "affine", "homography"])
def test_a_transform_is_recovered_from_many_outliers(kind):
    generator = np.random.default_rng(0)
    source = generator.uniform(0, 200, (60, 2))
    target = matrix(kind)(source)
    target[:20] += generator.uniform(20, 90, (20, 2))
    found = fit_transform(source, target, kind, tolerance=1)
    assert np.allclose(found.matrix / found.matrix[2, 2], matrix(kind).params / matrix(kind).params[2, 2], atol=1e-4)
    assert found.inliers.tolist() == [False] * 20 + [True] * 40 and np.allclose(found(source[20:]), target[20:])
    if kind == "rigid":
        assert np.linalg.det(found.matrix[:2, :2]) == pytest.approx(1)
    assert (fit_transform(source, target, kind, tolerance=1).matrix == found.matrix).all()  # the same every time


def test_the_usual_tolerance_is_two_percent_of_the_longer_side():
    flow, mask = np.zeros((50, 200, 2), np.float32), np.ones((50, 200), bool)
    flow[:20, :, 1] = 3.5  # px, less than 4
    flow[20:24, :, 1] = 30
    found = Flow(flow, mask.astype(np.float32), mask).fit("rigid", count=10_000)
    assert found.inliers.reshape(50, 200)[24:].all() and not found.inliers.reshape(50, 200)[20:24].any()
    assert Flow(flow, mask.astype(np.float32), mask).fit("rigid", tolerance=0.1, count=10_000).inliers.mean() < 0.6


def test_what_cannot_be_fitted():
    points = np.random.default_rng(0).uniform(0, 100, (30, 2))
    with pytest.raises(FlowError, match="unknown transform 'spline'; known: rigid, similarity, affine, homography"):
        fit_transform(points, points, "spline", 1)
    with pytest.raises(FlowError, match="4 matches are too few for a transform of kind homography; it needs 5"):
        fit_transform(points[:4], points[:4], "homography", 1)


@pytest.mark.slow
def test_a_rendered_picture_and_its_shifted_copy():
    from mini.render.render import instance_seed, render_scene
    from sd4match import Matcher

    whole = render_scene(instance_seed("test", "dog", 7), ("dog",), (144, 160)).image
    pair = Matcher.from_pretrained("mini", device="cpu").pair(whole[:, :128], whole[:, 32:], category="dog")
    flow = pair.flow()
    moved = flow.flow[:, 40:][flow.mask[:, 40:]]
    assert flow.mask[:, 40:].mean() > 0.3 and np.abs(np.median(moved, axis=0) - [-32, 0]).max() < 5
