"""AP-10K's and ComVG's layouts of the mini world, relations, flip tables: labels agree with the pixels."""

import csv
import json

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import binary_dilation

from mini.render import CATEGORIES, SPECIES, render_scene
from mini.render.ap10k import write_ap10k
from mini.render.categories import keypoint_tables
from mini.render.comvg import CHANGES, Statement, change_statement, draw_statement, render_statements, write_comvg
from mini.render.detail import part_cuts
from mini.render.relation import RELATIONS, find_relation
from mini.render.write import install

SIZES = {"train": 2, "val": 1, "test": 1}


def files_of(root):
    return {path.relative_to(root): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


# ---- species in AP-10K's layout


@pytest.fixture(scope="module")
def ap10k(tmp_path_factory):
    root = tmp_path_factory.mktemp("ap10k")
    assert write_ap10k(root, SIZES) == {"images": 24, "train": 12, "val": 6, "test": 6}
    return root / "ap-10k"


def read(ap10k, split):
    return json.loads((ap10k / "annotations" / f"ap10k-{split}-split1.json").read_text())


def test_two_families_of_several_species(ap10k):
    categories = read(ap10k, "train")["categories"]
    families = [category["supercategory"] for category in categories]
    assert {name: families.count(name) for name in families} == {"Bovidae": 3, "Canidae": 3}
    for category in categories:
        assert len(category["keypoints"]) == 17 and category["keypoints"][:5] == [
            *("left_eye", "right_eye", "nose", "neck", "root_of_tail")
        ]


def test_annotations_agree_with_their_masks_and_images(ap10k):
    seen, facing = np.zeros(17, int), set()
    for split in SIZES:
        content = read(ap10k, split)
        names = {category["id"]: category for category in content["categories"]}
        images = {image["id"]: image for image in content["images"]}
        for annotation in content["annotations"]:
            image, category = images[annotation["image_id"]], names[annotation["category_id"]]
            with Image.open(ap10k / "data" / image["file_name"]) as picture:
                assert picture.size == (image["width"], image["height"])
            folder = ap10k / "Segmentation" / category["supercategory"] / category["name"]
            mask = np.asarray(Image.open(folder / f"{image['id']:012d}.png"))
            assert mask.shape == (image["height"], image["width"]) and set(np.unique(mask)) == {0, 255}
            rows, cols = np.nonzero(mask)
            x, y, w, h = annotation["bbox"]
            assert (x, y, x + w - 1, y + h - 1) == (cols.min(), rows.min(), cols.max(), rows.max())
            points = np.reshape(annotation["keypoints"], (17, 3))
            assert set(points[:, 2]) <= {0, 2} and annotation["num_keypoints"] == (points[:, 2] > 0).sum()
            for px, py, visible in points:
                assert not visible or np.hypot(cols - px, rows - py).min() <= 2
            seen += points[:, 2] > 0
            facing.add(annotation["azimuth_id"])
    assert seen.min() >= 3 and len(facing) >= 3 and facing <= set(range(8))


def test_ids_grow_from_training_to_test_within_a_species(ap10k):
    """So the rule of the correspondence benchmark, the last images of a species are for testing, gives these splits."""
    ids = {split: {} for split in SIZES}
    for split in SIZES:
        for annotation in read(ap10k, split)["annotations"]:
            ids[split].setdefault(annotation["category_id"], []).append(annotation["image_id"])
    for species in ids["train"]:
        assert max(ids["train"][species]) < min(ids["val"][species]) < min(ids["test"][species])


@pytest.mark.parametrize("write", [lambda root: write_ap10k(root, SIZES), lambda root: write_comvg(root, {"test": 1})])
def test_layouts_are_the_same_at_every_call(tmp_path, write):
    write(tmp_path / "a"), write(tmp_path / "b")
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")


@pytest.mark.parametrize("name", SPECIES)
def test_mirrored_species_exchange_left_and_right(name):
    flip = keypoint_tables([SPECIES[name]])[name]["flip"]
    assert flip == [1, 0, 2, 3, 4, 8, 9, 10, 5, 6, 7, 14, 15, 16, 11, 12, 13]
    for seed in range(3):
        plain, mirrored = (render_scene(seed, (name,), (100, 130), mirror=flag).objects[0] for flag in (False, True))
        assert (plain.azimuth + mirrored.azimuth) % 360 == pytest.approx(0, abs=0.02)
        for i, partner in enumerate(flip):
            point, image = plain.kps[str(i)], mirrored.kps[str(partner)]
            assert (point is None) == (image is None)
            assert point is None or np.allclose(image, (129 - point[0], point[1]))


def test_kin_have_the_parts_of_their_kin():
    for species in SPECIES.values():
        assert species.fine_parts == CATEGORIES[species.kin].fine_parts
        np.testing.assert_array_equal(part_cuts(species.name), part_cuts(species.kin))


# ---- flip tables


def test_flip_tables_are_written_and_undo_themselves(tmp_path):
    install(tmp_path, "spair", images={"val": 4}, pairs={"val": 2}, categories=["car", "horse"])
    tables = json.loads((tmp_path / "SPair-71k" / "keypoints.json").read_text())
    assert list(tables) == ["car", "horse"]
    for name, table in tables.items():
        assert table["names"] == list(CATEGORIES[name].keypoints)
        assert [table["flip"][i] for i in table["flip"]] == list(range(len(table["names"])))
        assert table["flip"] != list(range(len(table["names"])))
        members = [i for group in table["groups"] for i in group]
        assert len(members) == len(set(members)) and all(len(group) > 1 for group in table["groups"])
        for group in table["groups"]:
            assert {table["flip"][i] for i in group} == set(group)
    hooves = [i for i, name in enumerate(tables["horse"]["names"]) if "hoof" in name]
    assert hooves in tables["horse"]["groups"]
    assert not any("eye" in tables["horse"]["names"][i] for group in tables["horse"]["groups"] for i in group)


# ---- relations and ComVG's layout


@pytest.mark.parametrize("relation", RELATIONS)
@pytest.mark.parametrize("mirror", [False, True])
def test_two_objects_stand_as_they_are_said_to(relation, mirror):
    for seed, names in enumerate([("dog", "chair"), ("person", "bus"), ("aeroplane", "horse"), ("fox", "boat")]):
        scene = render_scene(seed, names, relation=relation, colours=("red", None), mirror=mirror)
        first, second = (np.argwhere(scene.instance == i) for i in (1, 2))
        down, right = second.mean(0) - first.mean(0)
        assert scene.relation == relation and scene.objects[0].colour == "red"
        signs = {"left of": right, "right of": -right, "above": down, "below": -down, "on": down}
        assert signs[relation] > 0
        gap = second[:, 0].min() - first[:, 0].max()
        assert relation != "on" or abs(gap) <= 5
        assert relation != "above" or gap > 5


@pytest.mark.parametrize(
    ("first", "second", "relation"),
    [
        ((0, 40, 30, 60), (50, 40, 90, 60), "left of"),
        ((50, 40, 90, 60), (0, 40, 30, 60), "right of"),
        ((20, 0, 60, 30), (20, 50, 60, 90), "above"),
        ((20, 50, 60, 90), (20, 0, 60, 30), "below"),
        ((20, 0, 60, 49), (20, 50, 60, 90), "on"),
        ((0, 0, 60, 60), (30, 30, 90, 90), None),
        ((0, 0, 30, 30), (60, 60, 90, 90), None),
    ],
)
def test_relation_of_two_boxes(first, second, relation):
    assert find_relation(first, second, (100, 100)) == relation


def test_one_thing_is_changed_and_makes_the_sentence_false():
    rng = np.random.default_rng(0)
    for number in range(150):
        said, change = draw_statement(rng), CHANGES[number % 3]
        other = change_statement(rng, said, change)
        before, after = (
            [*statement.things[0], statement.relation, *statement.things[1]] for statement in (said, other)
        )
        places = [place for place, (a, b) in enumerate(zip(before, after, strict=True)) if a != b]
        assert len(places) == 1
        assert CHANGES[(0, 0, 1, 2, 2)[places[0]]] == change
        assert {said.relation, other.relation} != {"above", "on"}
        assert len({colour for colour, _ in other.things}) == len({name for _, name in other.things}) == 2


def test_comvg_files(tmp_path):
    assert install(tmp_path, "comvg", items={"trn": 1, "test": 2}) == {"images": 18, "trn": 3, "test": 6}
    base = tmp_path / "comvg"
    for table, folder in (("comvg_train", "VG_100K"), ("compositional_visual_genome", "vg_concept")):
        with open(base / "data" / f"{table}.csv", newline="") as file:
            rows = list(csv.DictReader(file))
        assert [row["neg_value"] for row in rows] == list(CHANGES) * (len(rows) // 3)
        for row in rows:
            pictures = []
            for key in ("pos_image_id", "neg_image_id"):
                with Image.open(base / "Visual_Genome" / folder / f"{row[key]}.jpg") as picture:
                    pictures.append(picture.size)
            assert pictures[0] == pictures[1] and row["pos_triplet"] != row["neg_triplet"]
            assert row["sentence"] == "a {} {} a {}".format(*row["pos_triplet"].split(","))


def test_two_pictures_differ_in_one_thing():
    """Colour: in the object's pixels alone; category: the other object and the ground stay as they are."""
    red, blue = (Statement((("red", "dog"), (colour, "car")), "left of") for colour in ("green", "blue"))
    bus = Statement((("red", "dog"), ("green", "bus")), "left of")
    one, colour, kind = render_statements("test", 3, (red, blue, bus))
    assert np.array_equal(one.instance, colour.instance)
    changed = (one.image != colour.image).any(axis=2)
    near = binary_dilation(one.instance == 2, iterations=2)  # its outline is blended with what is behind
    assert changed[one.instance == 2].any() and not changed[~near].any()
    ground = (one.instance == 0) & (kind.instance == 0)
    same = (one.image == kind.image).all(axis=2)
    assert same[ground].mean() > 0.95 and same[(one.instance == 1) & (kind.instance == 1)].mean() > 0.95


def test_sentence_of_a_statement():
    said = Statement((("red", "dog"), ("", "car")), "left of")
    assert said.sentence == "a red dog left of a car"


def test_labelled_pictures_replace_only_their_own(tmp_path):
    from mini.render.labelled import write_labelled

    write_labelled(tmp_path, images=1)
    write_labelled(tmp_path, images=1)
    (tmp_path / "annotations.json").write_text('{"images": []}')
    with pytest.raises(FileExistsError, match="is not of rendered pictures, and would be lost"):
        write_labelled(tmp_path, images=1)
    assert (tmp_path / "annotations.json").read_text() == '{"images": []}'
