"""Prompts on disk: damage of any kind is noticed, what made a prompt is kept with it, a mismatch is refused."""

import json
import random
import warnings
import zipfile

import pytest
import torch

from model.error import PromptError
from model.prompt import new_prompt as new
from model.prompt.store import load_prompt, read_prompt, save_prompt, write_prompt
from tests import tiny
from tests.test_prompt import build_cpm
from tests.test_store import flips
from utils.store import StoreError

SINGLE, CLASS = "Single_spair_tiny_TokenEmbeds9", "Class_spair_tiny_HiddenState"
MADE_BY = {"METHOD.NAME": "sd4match", "METHOD.LAYER": 1, "METHOD.POSTERIOR": "sample", "networks": "abc"}


@pytest.fixture(params=["CPM", "Single", "Class"])
def prompt(request, text):
    if request.param == "CPM":
        return build_cpm(text)
    return new(SINGLE, text) if request.param == "Single" else new(CLASS, text, categories=["cat", "dog"])


@pytest.mark.parametrize("form", ["release", "own"])
def test_no_damage_to_any_file_of_a_prompt_changes_it_silently(prompt, tmp_path, form):
    """A bit flipped anywhere, a cut anywhere: refused in one line, or read as it was."""
    folder = save_prompt(tmp_path / str(prompt.name), prompt, {"made_by": MADE_BY})
    whole = read_prompt(folder)
    write_prompt(folder, whole, form)
    draw, refused, tried = random.Random(0), 0, 0
    for path in folder.iterdir():
        content = path.read_bytes()
        for damaged in [*flips(content, 60), *(content[: draw.randrange(len(content))] for _ in range(15))]:
            path.write_bytes(damaged)
            tried += 1
            try:
                found = read_prompt(folder)
            except PromptError as error:
                assert str(folder) in str(error)
                refused += 1
            else:
                assert found.tensors.keys() == whole.tensors.keys()
                assert all(torch.equal(found.tensors[key], value) for key, value in whole.tensors.items())
                assert {key: found.meta[key] for key in whole.meta if key != "tensors"}.items() >= {
                    key: value for key, value in whole.meta.items() if key != "tensors"
                }.items()
        path.write_bytes(content)
    assert refused > 0.6 * tried  # the rest hit what nobody reads, such as dates in the archive


def test_a_released_prompt_without_description_is_checked_by_its_checksums(prompt, tmp_path):
    """PyTorch itself reads an archive whose tensors have flipped bits."""
    folder = save_prompt(tmp_path / str(prompt.name), prompt)
    (folder / "prompt.json").unlink()
    (path,) = folder.iterdir()
    with zipfile.ZipFile(path) as archive:
        info = max(archive.infolist(), key=lambda info: info.file_size)
    content = bytearray(path.read_bytes())
    content[info.header_offset + len(info.filename) + 128] ^= 4
    path.write_bytes(content)
    torch.load(path, weights_only=True)
    with pytest.raises(PromptError, match=rf"{path.name} cannot be read \(its checksum of .* differs\); copy or train"):
        read_prompt(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e300])
def test_a_prompt_that_is_not_finite_is_refused(tmp_path, value):
    folder = tmp_path / SINGLE
    folder.mkdir()
    tensors = {"dataset": torch.zeros(1, 77, tiny.TEXT_WIDTH, dtype=torch.float64)}
    tensors["dataset"][0, 5, 5] = value
    torch.save(tensors, folder / "caption.pt")
    with pytest.raises(PromptError, match=r"caption.pt: dataset is not finite \(nan or inf\)"):
        read_prompt(folder)


def test_a_prompt_that_is_not_finite_does_not_replace_a_good_one(text, tmp_path):
    good, bad = new(SINGLE, text, seed=0), new(SINGLE, text, seed=1)
    folder = save_prompt(tmp_path / SINGLE, good)
    next(bad.parameters()).data[...] = float("nan")
    with pytest.raises(StoreError, match="was not written: dataset is not finite"):
        save_prompt(folder, bad)
    assert torch.equal(load_prompt(folder, text, backbone="tiny")({}), good({}))


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"dataset": torch.tensor(1.0)},
        {"dataset": torch.zeros(1, 77, 32, dtype=torch.int64)},
        {"dataset": torch.zeros(1, 77, 32).to_sparse()},
        {"dataset": 3},
        {3: torch.zeros(1)},
        [],
        torch.zeros(3),
        None,
    ],
)
@pytest.mark.parametrize("name", [SINGLE, CLASS, "CPM_spair_tiny_Pair-DINO-Feat-G3-C5"])
def test_files_that_hold_something_else_are_one_line(text, tmp_path, name, content):
    folder = tmp_path / name
    folder.mkdir()
    torch.save(content, folder / ("ckpt.pt" if name.startswith("CPM") else "caption.pt"))
    with pytest.raises(PromptError) as caught:
        load_prompt(folder, text, backbone="tiny", condition_shape=tiny.DINO_SHAPE)
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("meta", ["[]", "{", ""])
def test_descriptions_that_hold_something_else_are_one_line(text, tmp_path, meta):
    folder = save_prompt(tmp_path / SINGLE, new(SINGLE, text))
    (folder / "prompt.json").write_text(meta)
    with pytest.raises(PromptError, match=r"prompt\.json.*delete it, or train the prompt again"):
        read_prompt(folder)


def test_tensors_of_another_prompt_are_noticed(text, tmp_path):
    folder = save_prompt(tmp_path / SINGLE, new(SINGLE, text, seed=0))
    other = save_prompt(tmp_path / "other" / SINGLE, new(SINGLE, text, seed=1))
    (folder / "caption.pt").write_bytes((other / "caption.pt").read_bytes())
    with pytest.raises(PromptError, match="caption.pt is not what prompt.json beside it describes"):
        read_prompt(folder)


@pytest.mark.parametrize(
    ("key", "value"),
    [("METHOD.NAME", "sd_dino"), ("METHOD.LAYER", 2), ("METHOD.POSTERIOR", "mode"), ("networks", "xyz")],
)
def test_a_prompt_is_refused_under_settings_that_it_was_not_trained_for(text, tmp_path, key, value):
    folder = save_prompt(tmp_path / SINGLE, new(SINGLE, text), {"made_by": MADE_BY})
    load_prompt(folder, text, backbone="tiny", setting=MADE_BY)
    with pytest.raises(PromptError, match=rf"other settings: {key} '?{MADE_BY[key]}'?, now '?{value}'?; set them so"):
        load_prompt(folder, text, backbone="tiny", setting={**MADE_BY, key: value})


def test_a_released_prompt_is_taken_and_another_layer_than_its_own_said(text, tmp_path):
    folder = save_prompt(tmp_path / SINGLE, new(SINGLE, text))
    (folder / "prompt.json").unlink()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_prompt(folder, text, backbone="tiny", setting=MADE_BY)
    with pytest.warns(UserWarning, match="the released prompts are for METHOD.LAYER 1, not 2"):
        load_prompt(folder, text, backbone="tiny", setting={**MADE_BY, "METHOD.LAYER": 2})


def test_what_made_a_prompt_is_kept_with_it_in_both_formats(text, tmp_path):
    folder = save_prompt(tmp_path / SINGLE, new(SINGLE, text), {"made_by": MADE_BY})
    for form in ("own", "release"):
        write_prompt(folder, read_prompt(folder), form)
        assert read_prompt(folder).meta["made_by"] == MADE_BY
        assert json.loads((folder / "prompt.json").read_text())["made_by"] == MADE_BY
