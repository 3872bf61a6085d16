"""The mini world: determinism, exact mirroring, keypoints on their objects, and the formats it writes."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import loadmat

from config import load_config
from dataset import MissingDataError
from engine.build import build_pairs
from mini.render import CATEGORIES, SPLITS, instance_seed, render_scene
from mini.render.appearance import Draws
from mini.render.detail import part_cuts
from mini.render.geometry import look_at
from mini.render.primitives import WORLD, Builder
from mini.render.raster import aim, rasterise, to_camera
from mini.render.write import (
    PASCAL_CLASSES,
    SPAIR_CLASSES,
    install,
    write_full_size_spair_index,
    write_pfpascal,
    write_pfwillow,
)

REPOSITORY = Path(__file__).resolve().parents[1]
SIZES = {
    "images": {"trn": 5, "val": 4, "test": 5},
    "pairs": {"trn": 3, "val": 2, "test": 3},
    "categories": ["bicycle", "person"],
}


@pytest.fixture(scope="module")
def spair(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("mini")
    counts = install(root, "spair", **SIZES)
    assert counts == {"images": 28, "trn": 6, "val": 4, "test": 6}
    return root / "SPair-71k"


def _load(path: Path) -> dict:
    return json.loads(path.read_text())


# ---- scenes


@pytest.mark.parametrize("name", CATEGORIES)
def test_same_seed_gives_the_same_bytes(name):
    first, again, other = (render_scene(seed, (name,)) for seed in (3, 3, 4))
    assert first.image.tobytes() == again.image.tobytes()
    assert first.part.tobytes() == again.part.tobytes()
    assert first.objects == again.objects
    assert first.image.tobytes() != other.image.tobytes()


@pytest.mark.parametrize("name", CATEGORIES)
def test_mirrored_scene_swaps_left_and_right(name):
    category = CATEGORIES[name]
    table = np.array([0, *(p + 1 for p in category.part_partner)], np.uint8)
    for seed in range(4):
        plain, mirrored = (render_scene(seed, (name,), (100, 130), mirror=m) for m in (False, True))
        np.testing.assert_array_equal(mirrored.image, plain.image[:, ::-1])
        np.testing.assert_array_equal(mirrored.part, table[plain.part[:, ::-1]])
        np.testing.assert_array_equal(mirrored.detail, _mirrored_detail(category, plain.detail)[:, ::-1])
        for i, partner in enumerate(category.keypoint_partner):
            point, image = plain.objects[0].kps[str(i)], mirrored.objects[0].kps[str(partner)]
            assert (point is None) == (image is None)
            if point is not None:
                np.testing.assert_allclose(image, (129 - point[0], point[1]), atol=1e-9)
        assert (plain.objects[0].azimuth + mirrored.objects[0].azimuth) % 360 == pytest.approx(0, abs=0.02)
        assert {plain.objects[0].mirrored, mirrored.objects[0].mirrored} == {False, True}


def _mirrored_detail(category, detail: np.ndarray) -> np.ndarray:
    """What an end of a part is called in the mirrored image: its partner, left and right ends exchanged."""
    table = [0]
    for part, partner in enumerate(category.part_partner):
        swap = sum(1 << i for i, axis in enumerate(part_cuts(category.name)[part]) if axis == 1)
        table += [1 + 4 * partner + (end ^ swap) for end in range(4)]
    return np.array(table, np.uint8)[detail]


def test_ends_of_parts_are_where_they_should_be():
    """Seen from its left side, a car's front is on the left: so are the front ends of its left side."""
    parts = {name: i for i, name in enumerate(CATEGORIES["car"].fine_parts)}
    side, wheel = parts["side left"], parts["wheel front-left"]
    assert part_cuts("car")[side].tolist() == [0, -1] and part_cuts("car")[wheel].tolist() == [0, 2]
    for seed in range(5):
        detail = render_scene(seed, ("car",), mirror=False, occlude=0, truncate=0, azimuth=(90, 90)).detail
        (back, front), (bottom, top) = (
            [np.argwhere(detail == 1 + 4 * part + end).mean(0) for end in ends]
            for part, ends in ((side, (0, 1)), (wheel, (1, 3)))
        )
        assert front[1] < back[1] and top[0] < bottom[0]


def test_partners_exchange_left_and_right_names():
    for category in CATEGORIES.values():
        for names, table in (
            (category.fine_parts, category.part_partner),
            (category.keypoints, category.keypoint_partner),
        ):
            assert [table[i] for i in table] == list(range(len(names)))
            for name, partner in zip(names, table, strict=True):
                one_sided = "left" in name or "right" in name
                assert (names[partner] != name) == one_sided
    assert CATEGORIES["car"].keypoint_partner[:4] == (1, 0, 3, 2)


def test_categories_have_the_promised_sizes():
    assert list(CATEGORIES) == sorted(CATEGORIES) and len(CATEGORIES) == 10
    for category in CATEGORIES.values():
        assert category.name in PASCAL_CLASSES
        assert 8 <= len(category.keypoints) <= 15 and 5 <= len(category.fine_parts) <= 12
        assert 2 <= len(category.coarse_parts) <= 4
        assert set(category.coarse_of) == set(range(len(category.coarse_parts)))
        assert not set(category.keypoints) & set(category.fine_parts)


@pytest.mark.parametrize(
    ("azimuth", "facing", "near", "far"), [(90, "left", "left", "right"), (270, "right", "right", "left")]
)
def test_the_near_side_of_a_car_is_the_side_it_shows(azimuth, facing, near, far):
    options = {"mirror": False, "occlude": 0, "truncate": 0, "azimuth": (azimuth, azimuth)}
    keypoints = CATEGORIES["car"].keypoints
    for seed in range(5):
        scene = render_scene(seed, ("car",), **options)
        thing = scene.objects[0]
        assert (thing.facing, thing.azimuth_id, thing.pose) == (facing, azimuth // 45, facing.capitalize())
        kps = {keypoints[int(k)]: point for k, point in thing.kps.items()}
        front, back = kps[f"front-{near} wheel centre"], kps[f"back-{near} wheel centre"]
        assert kps[f"front-{far} wheel centre"] is None and kps[f"back-{far} wheel centre"] is None
        assert (front[0] < back[0]) == (facing == "left")
        parts = {CATEGORIES["car"].fine_parts[p - 1] for p in np.unique(scene.part) if p}
        assert f"side {near}" in parts and f"side {far}" not in parts


@pytest.mark.parametrize("name", CATEGORIES)
def test_keypoints_lie_in_the_image_on_their_object(name):
    seen = 0
    for index in range(6):
        scene = render_scene(instance_seed("pretrain", name, index), (name,))
        thing = scene.objects[0]
        assert list(thing.kps) == [str(i) for i in range(len(CATEGORIES[name].keypoints))]
        assert scene.image.shape == (96, 96, 3) and scene.image.dtype == scene.part.dtype == np.uint8
        assert scene.part.max() <= len(CATEGORIES[name].fine_parts)
        np.testing.assert_array_equal(scene.part > 0, scene.instance > 0)
        rows, cols = np.nonzero(scene.instance)
        assert thing.bbox == (cols.min(), rows.min(), cols.max(), rows.max())
        for x, y in filter(None, thing.kps.values()):
            assert 0 <= x <= 95 and 0 <= y <= 95
            assert np.hypot(cols - x, rows - y).min() <= 2
            seen += 1
    assert seen >= 24


def test_two_objects_and_bad_arguments():
    scene = render_scene(5, ("horse", "chair"))
    assert [thing.category for thing in scene.objects] == ["horse", "chair"]
    assert set(np.unique(scene.instance)) == {0, 1, 2}
    for bad in ((), ("horse",) * 3, ("unicorn",)):
        with pytest.raises(ValueError, match="categor"):
            render_scene(0, bad)
    with pytest.raises(ValueError, match="split"):
        instance_seed("dev", "horse", 0)


def test_occluders_and_truncation_are_flagged():
    for seed in range(3):
        clear = render_scene(seed, ("dog",), occlude=0, truncate=0).objects[0]
        assert (clear.occluded, clear.truncated) == (0, 0)
    assert all(render_scene(seed, ("dog",), truncate=1).objects[0].truncated for seed in range(3))
    assert any(render_scene(seed, ("dog",), occlude=1).objects[0].occluded for seed in range(6))


def test_splits_share_no_seeds_and_no_images():
    seeds = {}
    for split in SPLITS:
        for name in CATEGORIES:
            for index in range(50):
                seeds[tuple(instance_seed(split, name, index).generate_state(4))] = split
    assert len(seeds) == len(SPLITS) * len(CATEGORIES) * 50
    images = {render_scene(instance_seed(split, "bus", 0), ("bus",)).image.tobytes() for split in SPLITS}
    assert len(images) == len(SPLITS)


def test_rasteriser_agrees_with_ray_sampling():
    """Depth of an ellipsoid and of a frustum against marching along each ray."""
    builder = Builder(Draws(np.random.SeedSequence(0)), ("ball", "cone"), (), (200.0, 40.0, 40.0))
    builder.ellipsoid("ball", WORLD, (0.1, 0.0, 0.2), (0.5, 0.3, 0.2))
    builder.limb("cone", (-0.6, 0.3, -0.3), (0.5, -0.2, 0.4), 0.25, 0.1, round_ends=(False, False))
    camera = look_at(np.zeros(3), 3.0, 70.0, 20.0, 10.0)
    view = to_camera(builder.model, camera)
    camera = aim(camera, view, 24.0, (12.0, 11.0))
    buffers = rasterise(view, camera, (24, 24))
    assert set(np.unique(buffers.primitive)) == {-1, 0, 1}
    depths = np.linspace(2.0, 4.0, 2001)
    rays = np.array(
        [((x - camera.cx) / camera.focal, (y - camera.cy) / camera.focal, 1) for y, x in np.ndindex(24, 24)]
    )
    points = (rays[:, None] * depths[:, None] - camera.shift) @ camera.turn
    inside = (((points - (0.1, 0.0, 0.2)) / (0.5, 0.3, 0.2)) ** 2).sum(-1) <= 1
    axis = np.array([1.1, -0.5, 0.7])
    along = (points - (-0.6, 0.3, -0.3)) @ axis / (axis @ axis)
    distance = np.linalg.norm(points - (-0.6, 0.3, -0.3) - along[..., None] * axis, axis=-1)
    inside |= (along >= 0) & (along <= 1) & (distance <= 0.25 - 0.15 * along)
    expected = np.where(inside.any(1), depths[inside.argmax(1)], np.nan).reshape(24, 24)
    both = ~np.isnan(expected) & (buffers.primitive >= 0)
    assert both.sum() >= 0.9 * max((~np.isnan(expected)).sum(), (buffers.primitive >= 0).sum())
    assert np.median(np.abs(expected - buffers.depth)[both]) < 2e-3
    assert np.mean(np.abs(expected - buffers.depth)[both] < 5e-3) > 0.95


# ---- SPair-71k


def test_spair_layout_and_pair_records(spair):
    for split in ("trn", "val", "test"):
        lines = (spair / "Layout" / "large" / f"{split}.txt").read_text().splitlines()
        assert len(set(lines)) == len(lines)
        for number, line in enumerate(lines, 1):
            pair = _load(spair / "PairAnnotation" / split / f"{line}.json")
            stem, category = line.split(":")
            assert stem.split("-") == [f"{number:06d}", pair["src_imname"][:-4], pair["trg_imname"][:-4]]
            assert (pair["pair_id"], pair["filename"], pair["category"]) == (number, line, category)
            assert len(pair["kps_ids"]) == len(pair["src_kps"]) == len(pair["trg_kps"]) >= 4
            assert all(type(pair[k]) is int for k in ("mirror", "viewpoint_variation", "scale_variation"))
            for side, weight in (("src", 1), ("trg", 2)):
                _check_side(spair, pair, side, weight)


def _check_side(base: Path, pair: dict, side: str, weight: int) -> None:
    """One side of a pair record against its image record and its image."""
    record = _load(base / "ImageAnnotation" / pair["category"] / f"{pair[f'{side}_imname'][:-4]}.json")
    with Image.open(base / "JPEGImages" / pair["category"] / record["filename"]) as image:
        assert image.size == (record["image_width"], record["image_height"])
        assert pair[f"{side}_imsize"] == [*image.size, 3]
    assert pair[f"{side}_bndbox"] == record["bndbox"]
    assert pair[f"{side}_pose"] == record["pose"] in ("Left", "Right", "Frontal", "Rear")
    assert [record["kps"][k] for k in pair["kps_ids"]] == pair[f"{side}_kps"]
    assert bool(pair["truncation"] & weight) == record["truncated"]
    assert bool(pair["occlusion"] & weight) == record["occluded"]


def test_spair_image_records_and_segmentation(spair):
    paths = sorted((spair / "ImageAnnotation").glob("*/*.json"))
    assert len(paths) == 28
    sizes = set()
    for path in paths:
        record = _load(path)
        mask = np.asarray(Image.open(spair / "Segmentation" / record["category"] / f"{path.stem}.png"))
        assert mask.shape == (record["image_height"], record["image_width"])
        assert set(np.unique(mask)) == {0, PASCAL_CLASSES.index(record["category"]) + 1}
        rows, cols = np.nonzero(mask)
        assert record["bndbox"] == [cols.min(), rows.min(), cols.max(), rows.max()]
        assert record["azimuth_id"] in range(8) and record["difficult"] == 0
        points = [point for point in record["kps"].values() if point is not None]
        assert all(type(v) is int for point in points for v in point)
        assert all(np.hypot(cols - x, rows - y).min() <= 2 for x, y in points)
        sizes.add(mask.shape)
    assert len(sizes) > 10 and min(map(min, sizes)) >= 96 and max(map(max, sizes)) <= 160


def test_spair_pairs_stay_in_their_split(spair):
    names = {}
    for split in ("trn", "val", "test"):
        for line in (spair / "Layout" / "large" / f"{split}.txt").read_text().splitlines():
            for name in line.split(":")[0].split("-")[1:]:
                assert names.setdefault(name, split) == split


def test_install_is_idempotent_and_protects_other_folders(spair):
    root = spair.parent
    before = (spair / "mini.json").stat().st_mtime_ns
    partial = root / ".SPair-71k.partial"
    (partial / "rest").mkdir(parents=True)
    assert install(root, "spair", **SIZES) is None
    assert (spair / "mini.json").stat().st_mtime_ns == before
    smaller = {**SIZES, "categories": ["bicycle"], "images": {"val": 4}}
    assert install(root / "other", "spair", **smaller)["images"] == 4
    (root / "real" / "SPair-71k").mkdir(parents=True)
    with pytest.raises(FileExistsError, match="mini.json"):
        install(root / "real", "spair", **smaller)
    (root / "other" / ".SPair-71k.partial" / "SPair-71k" / "Layout").mkdir(parents=True)
    (root / "other" / "SPair-71k" / "mini.json").write_text("{}")
    assert install(root / "other", "spair", **smaller)["images"] == 4
    assert not (root / "other" / ".SPair-71k.partial").exists()


def test_command_says_in_one_line_that_a_folder_is_not_its_own(tmp_path):
    (tmp_path / "SPair-71k").mkdir()
    command = [sys.executable, "-m", "mini.render", "--root", str(tmp_path), "--only", "spair"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY)
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert f"{tmp_path / 'SPair-71k'} exists but mini.json is missing" in done.stderr and "Move it away" in done.stderr


def test_too_many_pairs_are_refused(tmp_path):
    with pytest.raises(ValueError, match="test/person"):
        install(tmp_path, "spair", images={"test": 3}, pairs={"test": 4}, categories=["person"])
    assert not (tmp_path / "SPair-71k").exists()


# ---- PF-Pascal, PF-Willow and the full-size index


def test_pfpascal_files(tmp_path):
    write_pfpascal(tmp_path, {"trn": 8, "test": 8}, {"trn": 2, "test": 2}, ("bicycle", "person"))
    base = tmp_path / "pf-pascal"
    train, test = ([*csv.DictReader((base / f"{s}_pairs.csv").open())] for s in ("trn", "test"))
    assert list(train[0]) == ["source_image", "target_image", "class", "flip"]
    assert [row["flip"] for row in train] == ["0", "1"] * 4 and len(test) == 4
    assert {row["class"] for row in test} == {"2", "15"}
    for row in test:
        category = PASCAL_CLASSES[int(row["class"]) - 1]
        for side, key in (("A", "source_image"), ("B", "target_image")):
            assert (base / row[key]).is_file() and row[key].startswith("PF-dataset-PASCAL/JPEGImages/")
            folder = base / "PF-dataset-PASCAL" / "Annotations" / category
            mat = loadmat(folder / f"{Path(row[key]).stem}.mat")
            assert mat["kps"].shape == (len(CATEGORIES[category].keypoints), 2)
            assert mat["bbox"].shape == (1, 4)
            known = mat["kps"][~np.isnan(mat["kps"]).any(1)]
            for x, y in zip(row[f"X{side}"].split(";"), row[f"Y{side}"].split(";"), strict=True):
                assert np.abs(known - (float(x), float(y))).sum(1).min() < 1e-3


def test_pfwillow_files(tmp_path):
    write_pfwillow(tmp_path, images=4, pairs=3, classes=("car(G)",))
    with (tmp_path / "pf-willow" / "test_pairs.csv").open() as file:
        rows = [*csv.DictReader(file)]
    columns = [f"{axis}{i}" for axis in ("XA", "YA", "XB", "YB") for i in range(1, 11)]
    assert list(rows[0]) == ["imageA", "imageB", *columns] and len(rows) == 3
    for row in rows:
        for side in "AB":
            with Image.open(tmp_path / "pf-willow" / row[f"image{side}"]) as image:
                for i in range(1, 11):
                    assert 0 <= float(row[f"X{side}{i}"]) < image.width
                    assert 0 <= float(row[f"Y{side}{i}"]) < image.height


def test_full_size_index_writes_the_wanted_lines(tmp_path):
    counts = write_full_size_spair_index(tmp_path, {"trn": 40, "test": 20}, images=4)
    assert counts == {"trn": 40, "test": 20}
    base = tmp_path / "SPair-71k"
    lines = (base / "Layout" / "large" / "trn.txt").read_text().splitlines()
    assert len(set(lines)) == 40 and {line.split(":")[1] for line in lines} == set(SPAIR_CLASSES)
    assert len(SPAIR_CLASSES) == 18
    pair = _load(base / "PairAnnotation" / "trn" / f"{lines[-1]}.json")
    assert len(pair["kps_ids"]) >= 4
    assert (base / "ImageAnnotation" / pair["category"] / f"{pair['src_imname'][:-4]}.json").is_file()
    with pytest.raises(ValueError, match="more images"):
        write_full_size_spair_index(tmp_path / "few", {"trn": 400}, images=3)


def test_missing_data_below_the_mini_world_is_rendered(tmp_path):
    config_file = str(REPOSITORY / "config/mini/sd4match_single.yaml")
    cfg = load_config(config_file, ["DATASET.ROOT", str(tmp_path / "no where")])
    with pytest.raises(MissingDataError, match=r"`python -m mini.render --root '.*/no where' --only spair`") as error:
        build_pairs(cfg, "val")
    assert "prepare_data" not in str(error.value)
