"""Prompts: names, the text encoder, every kind of prompt, and prompts on disk."""

import json
import math
import subprocess
import sys

import pytest
import torch

from model.error import PromptError, PromptNotFoundError
from model.prompt import new_prompt
from model.prompt.name import format_prompt, parse_cpm, parse_prompt_name
from model.prompt.simple import SimplePrompt
from model.prompt.store import list_prompts, load_prompt, save_prompt
from model.prompt.text_prompt import category_word
from tests import tiny

D = tiny.TEXT_WIDTH
N_PATCH, WIDTH = tiny.DINO_SHAPE[0] - 1, tiny.DINO_SHAPE[1]
SHAPES = {"DINO-Feat": tiny.DINO_SHAPE, "DINO-Head": tiny.DINO_SHAPE, "CLIP-Feat": (17, 16), "CLIP-Head": (1, 12)}
CPM_NAMES = [
    f"{scope}-{network}-{feature}-G{n_global}-C5"
    for scope in ("Img", "Pair")
    for network in ("DINO", "CLIP")
    for feature in ("Feat", "Head")
    for n_global in (0, 3)
] + ["Pair-DINO-Feat-G3-C5-noN"]


def build_cpm(text, variant="Pair-DINO-Feat-G3-C5", seed=0):
    name = format_prompt("CPM", "spair", "tiny", variant)
    return new_prompt(name, text, condition_shape=SHAPES[name.condition], seed=seed)


def make_pairs(n, shape=tiny.DINO_SHAPE, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        "src_condition": torch.randn(n, *shape, generator=generator),
        "trg_condition": torch.randn(n, *shape, generator=generator),
    }


# ---- names -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "CPM_spair_sd2-1_Pair-DINO-Feat-G25-C50",
        "CPM_pfpascal_sd1-5_Img-CLIP-Head-G0-C75",
        "CPM_spair_sd2-1_Pair-DINO-Feat-G25-C50-noN",
        "Single_spair_sd2-1_TokenEmbeds75",
        "Single_my_own_set_sd2-1_TokenEmbeds1",
        "Class_spair_sd2-1_HiddenState",
        "text",
        "empty",
    ],
)
def test_names_round_trip(name):
    assert str(parse_prompt_name(name)) == name


def test_the_parts_of_a_name():
    name = parse_prompt_name("CPM_spair_sd2-1_Pair-DINO-Feat-G25-C50")
    assert (name.kind, name.dataset, name.backbone, name.space) == ("CPM", "spair", "sd2-1", "token")
    assert (name.cpm.scope, name.cpm.network, name.cpm.feature) == ("Pair", "DINO", "Feat")
    assert (name.cpm.n_global, name.cpm.n_cond, name.n_tokens, name.condition) == (25, 50, 75, "DINO-Feat")
    name = parse_prompt_name("Single_my_own_set_sd2-1_TokenEmbeds40")
    assert (name.dataset, name.backbone, name.n_tokens, name.condition) == ("my_own_set", "sd2-1", 40, None)
    assert parse_prompt_name("Class_spair_sd2-1_HiddenState").space == "hidden"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("photo", "is no prompt name: text, empty, CPM_"),
        ("CPM_spair_Pair-DINO-Feat-G25-C50", "is no prompt name"),
        ("../CPM_spair_sd2-1_Pair-DINO-Feat-G25-C50", "is no prompt name"),
        ("CPM_../spair_sd2-1_Pair-DINO-Feat-G25-C50", "is no prompt name"),
        ("Single__sd2-1_TokenEmbeds75", "is no prompt name"),
        ("CPM_spair_sd2-1_Pair-DINO-G25-C50", "is no CPM variant"),
        ("CPM_spair_sd2-1_Pair-DINO-Feat-G26-C50", "G [+] C is 76, but only 75"),
        ("CPM_spair_sd2-1_Pair-DINO-Feat-G25-C0", "C must be at least 1"),
        ("CPM_spair_sd2-1_Img-DINO-Feat-G25-C50-noN", "only Pair-...-Feat has a layer across patches"),
        ("Single_spair_sd2-1_TokenEmbeds76", "in 1..75"),
        ("Single_spair_sd2-1_TokenEmbeds0", "in 1..75"),
        ("Single_spair_sd2-1_TokenEmbeds", "is no prompt space"),
    ],
)
def test_wrong_names_are_explained(name, message):
    with pytest.raises(ValueError, match=message):
        parse_prompt_name(name)


def test_backbones_without_underscore_only():
    with pytest.raises(ValueError, match="'sd_2' cannot be a backbone"):
        format_prompt("Single", "spair", "sd_2", "HiddenState")
    with pytest.raises(ValueError, match="one of Single, Class, CPM; got 'Text'"):
        format_prompt("Text", "spair", "sd2-1", "HiddenState")
    assert str(parse_cpm("Img-CLIP-Feat-G0-C1")) == "Img-CLIP-Feat-G0-C1"


def test_names_and_facts_import_no_torch():
    code = "import sys, model.prompt.name, model.prompt, model.method, model.backbone.facts, model.error; "
    code += "sys.exit(any(m in sys.modules for m in ('torch', 'diffusers', 'transformers')))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# ---- text encoder ----------------------------------------------------------------------------------------


def test_encoding_embeddings_equals_encoding_ids(text):
    ids = text.token_ids(["a photo of a cat", ""])
    assert torch.equal(text.encode_tokens(text.embed_ids(ids)), text.encode_ids(ids))
    assert torch.equal(text.encode_text(["a photo of a cat", ""]), text.encode_ids(ids))
    assert torch.equal(text.encode_ids(ids), text.text_model(ids).last_hidden_state)


def test_the_text_transformer_is_causal(text):
    tokens = torch.randn(1, 77, D)
    changed = tokens.clone()
    changed[:, 40] = torch.randn(D)
    before, after = text.encode_tokens(tokens), text.encode_tokens(changed)
    assert torch.equal(before[:, :40], after[:, :40])
    assert (before[:, 40:] != after[:, 40:]).any(dim=-1).all()


def test_gradients_reach_the_tokens_only(text):
    tokens = torch.randn(2, 77, D, requires_grad=True)
    text.train()
    text.encode_tokens(tokens).square().sum().backward()
    assert tokens.grad.abs().sum(dim=(0, 2)).min() > 0
    assert not text.text_model.training
    assert all(p.grad is None and not p.requires_grad for p in text.parameters())


def test_special_embeddings_take_their_places(text):
    embeddings = text.embeddings
    token, position = embeddings.token_embedding.weight, embeddings.position_embedding.weight
    sos, eos, padding = text.special_embeddings(10)
    assert torch.equal(sos[0, 0], token[512] + position[0])
    assert torch.equal(eos[0, 0], token[513] + position[11])
    assert torch.equal(padding[0], token[0] + position[12:])
    assert text.special_embeddings(75)[2].shape == (1, 0, D)
    for n in (0, 76):
        with pytest.raises(ValueError, match=f"in 1..75, got {n}"):
            text.special_embeddings(n)


def test_texts_and_tokens_that_do_not_fit_are_refused(text):
    with pytest.raises(ValueError, match="has 80 tokens; at most 75 fit"):
        text.token_ids(["a" * 80])
    with pytest.raises(ValueError, match=r"tokens must be \(P, 77, 32\), got \(1, 77, 16\)"):
        text.encode_tokens(torch.zeros(1, 77, 16))


# ---- text prompts ----------------------------------------------------------------------------------------


def test_text_prompts(text):
    prompt = new_prompt("text", text, categories=["car(G)", "duck(S)"])
    assert (prompt.depends_on, prompt.space, list(prompt.parameters())) == ("category", "token", [])
    tokens = prompt({"category": ["duck(S)", "car(G)", "duck(S)"]})
    expected = text.encode_text(["a photo of a duck", "a photo of a car", "a photo of a duck"])
    assert torch.equal(text.encode_tokens(tokens), expected)
    with pytest.raises(ValueError, match="no prompt for tree; it has: car"):
        prompt({"category": ["tree"]})
    with pytest.raises(ValueError, match="needs the data set's categories"):
        new_prompt("text", text)


def test_the_empty_prompt_depends_on_nothing(text):
    prompt = new_prompt("empty", text, categories=["cat"])
    assert prompt.depends_on == "nothing"
    assert torch.equal(text.encode_tokens(prompt({"category": ["cat", "cat"]})), text.encode_text([""]))


# ---- Single and Class ------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 20, 75])
def test_single_token_prompt(text, n):
    prompt = new_prompt(f"Single_spair_tiny_TokenEmbeds{n}", text, seed=3)
    tokens = prompt({})
    sos, eos, padding = text.special_embeddings(n)
    assert tokens.shape == (1, 77, D) and prompt.depends_on == "nothing" and prompt.space == "token"
    assert torch.equal(tokens[:, :1], sos) and torch.equal(tokens[:, n + 1 :], torch.cat([eos, padding], dim=1))
    assert {name: p.shape for name, p in prompt.named_parameters()} == {"tokens.0": (n, D)}
    position = text.embeddings.position_embedding.weight[1 : n + 1]
    distance = torch.cdist(prompt.tokens[0].detach() - position, text.embeddings.token_embedding.weight)
    assert distance.min(dim=1).values.max() < 1e-3  # random ids of the vocabulary, at their positions


def test_class_prompts_are_one_per_category(text):
    prompt = new_prompt("Class_spair_tiny_TokenEmbeds6", text, categories=["dog", "cat", "bus"])
    assert prompt.depends_on == "category" and prompt.rows == ("bus", "cat", "dog")
    assert [row.shape for row in prompt.tokens] == [(6, D)] * 3
    tokens = prompt({"category": ["dog", "bus", "dog"]})
    assert torch.equal(tokens[0], tokens[2]) and not torch.equal(tokens[0], tokens[1])
    assert torch.equal(tokens[1], prompt.sequences()[0])
    with pytest.raises(ValueError, match="no prompt for tree; it has: bus, cat, dog"):
        prompt({"category": ["tree", "cat"]})
    with pytest.raises(ValueError, match="needs the data set's categories"):
        new_prompt("Class_spair_tiny_TokenEmbeds6", text)


def test_hidden_state_prompts_start_uniform(text):
    prompt = new_prompt("Single_spair_tiny_HiddenState", text)
    assert prompt.space == "hidden" and prompt.tokens[0].shape == (77, D)
    assert torch.equal(prompt({})[0], prompt.tokens[0])
    assert 0 <= prompt.tokens[0].min() < 0.01 and 0.99 < prompt.tokens[0].max() < 1


def test_prompts_start_from_words(text):
    sentence = "a photo of an object"
    prompt = new_prompt("Single_spair_tiny_TokenEmbeds75", text, init=f"text:{sentence}")
    ids = text.token_ids([sentence])
    assert torch.equal(prompt({})[:, 1:76], text.embed_ids(ids)[:, 1:76])
    empty = new_prompt("Class_spair_tiny_TokenEmbeds9", text, init="empty", categories=["a", "b"])
    expected = text.embed_ids(text.token_ids([""]))[0, 1:10]
    assert all(torch.equal(row, expected) for row in empty.tokens)
    hidden = new_prompt("Single_spair_tiny_HiddenState", text, init=f"text:{sentence}")
    assert torch.equal(hidden({}), text.encode_text([sentence]))
    with pytest.raises(ValueError, match="has 16 tokens, but .* has only 9 learnable"):
        new_prompt("Single_spair_tiny_TokenEmbeds9", text, init=f"text:{sentence}")


def test_a_class_prompt_starts_from_each_categorys_words(text):
    init, words = "text:a photo of a {category}", {"car(G)": "car", "dog": "dog"}
    prompt = new_prompt("Class_spair_tiny_TokenEmbeds75", text, categories=["dog", "car(G)"], init=init)
    for category, word in words.items():
        ids = text.token_ids([f"a photo of a {word}"])
        torch.testing.assert_close(prompt({"category": [category]})[:, :76], text.embed_ids(ids)[:, :76])
    with pytest.raises(ValueError, match="only a Class prompt"):
        new_prompt("Single_spair_tiny_TokenEmbeds75", text, init=init)


@pytest.mark.parametrize(
    "name",
    [
        "Single_spair_tiny_TokenEmbeds9",
        "Single_spair_tiny_HiddenState",
        "Class_spair_tiny_TokenEmbeds9",
        "CPM_spair_tiny_Pair-DINO-Feat-G3-C5",
    ],
)
def test_starts_follow_the_seed_and_leave_the_global_generator_alone(text, name):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    settings = {"categories": ["cat", "dog"], "condition_shape": tiny.DINO_SHAPE}
    first, same, other = (new_prompt(name, text, seed=seed, **settings).state_dict() for seed in (1, 1, 2))
    assert torch.equal(before, torch.get_rng_state())
    for key, value in first.items():
        assert value.dtype == torch.float32
        assert torch.equal(value, same[key]) and not torch.equal(value, other[key])


# ---- CPM -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", CPM_NAMES)
def test_cpm_shapes_and_state_dict(text, variant):
    prompt = build_cpm(text, variant)
    cpm = prompt.name.cpm
    shape = SHAPES[cpm.condition]
    width = shape[1] * (2 if cpm.scope == "Pair" else 1)
    expected = {"positional_embedding": (1, 5, D), "alpha_cond": (1, 5, D)}
    if cpm.n_global:
        expected["global_embeds"] = (1, 3, D)
    if (cpm.scope, cpm.feature) == ("Pair", "Feat") and not variant.endswith("noN"):
        expected |= {"linear_C.weight": (D, width), "linear_C.bias": (D,)}
        expected |= {"linear_N.weight": (N_PATCH, N_PATCH), "linear_N.bias": (N_PATCH,)}
    else:
        expected |= {"linear.weight": (D, width), "linear.bias": (D,)}
    assert {key: tuple(value.shape) for key, value in prompt.state_dict().items()} == expected
    for key in ("positional_embedding", "alpha_cond", "global_embeds"):
        if key in expected:
            assert prompt.state_dict()[key].min() >= 0 and prompt.state_dict()[key].max() < 1

    tokens = prompt(make_pairs(2, shape))
    assert tokens.shape == (2 if cpm.scope == "Pair" else 4, 77, D)
    sos, eos, padding = text.special_embeddings(cpm.n_tokens)
    assert torch.equal(tokens[:1, :1], sos)
    assert torch.equal(tokens[:1, cpm.n_tokens + 1 :], torch.cat([eos, padding], dim=1))
    if cpm.n_global:
        assert torch.equal(tokens[:1, 1:4], prompt.global_embeds)
    tokens.sum().backward()
    assert all(parameter.grad is not None for parameter in prompt.parameters())


def test_cpm_pair_feat_equals_a_plain_loop(text):
    prompt = build_cpm(text)
    batch = make_pairs(2)
    weights = {key: value.double() for key, value in prompt.state_dict().items()}
    expected = torch.zeros(2, 5, D, dtype=torch.float64)
    for b in range(2):
        joined = [
            torch.cat([batch["src_condition"][b, 1 + i], batch["trg_condition"][b, 1 + i]]).double()
            for i in range(N_PATCH)
        ]
        by_patch = [weights["linear_C.weight"] @ row + weights["linear_C.bias"] for row in joined]
        mixed = [
            sum(weights["linear_N.weight"][i, j] * by_patch[j] for j in range(N_PATCH)) + weights["linear_N.bias"][i]
            for i in range(N_PATCH)
        ]
        for c in range(5):
            first, last = math.floor(c * N_PATCH / 5), math.ceil((c + 1) * N_PATCH / 5)
            pooled = torch.stack(mixed[first:last]).max(dim=0).values
            alpha, position = weights["alpha_cond"][0, c], weights["positional_embedding"][0, c]
            expected[b, c] = torch.tanh(alpha) * (pooled + position)
    torch.testing.assert_close(prompt(batch)[:, 4:9].double(), expected, rtol=1e-4, atol=1e-5)


def test_cpm_head_reads_the_class_token_and_broadcasts_it(text):
    prompt = build_cpm(text, "Pair-DINO-Head-G0-C5")
    batch = make_pairs(1)
    joined = torch.cat([batch["src_condition"][:, 0], batch["trg_condition"][:, 0]], dim=1)
    expected = torch.tanh(prompt.alpha_cond) * (prompt.linear(joined)[:, None] + prompt.positional_embedding)
    torch.testing.assert_close(prompt(batch)[:, 1:6], expected)


def test_cpm_per_image_gives_each_image_its_own_prompt(text):
    prompt = build_cpm(text, "Img-DINO-Feat-G3-C5")
    batch = make_pairs(2)
    assert prompt.depends_on == "image"
    tokens = prompt(batch)
    torch.testing.assert_close(tokens[:2], prompt({"condition": batch["src_condition"]}))
    torch.testing.assert_close(tokens[2:], prompt({"condition": batch["trg_condition"]}))


def test_cpm_per_pair_needs_pairs_and_follows_the_partner(text):
    prompt = build_cpm(text)
    batch, other = make_pairs(1), make_pairs(1, seed=1)
    assert prompt.depends_on == "pair"
    assert not torch.allclose(prompt(batch), prompt({**batch, "trg_condition": other["trg_condition"]}))
    with pytest.raises(ValueError, match="depends on the pair"):
        prompt({"condition": batch["src_condition"]})


def test_cpm_computes_in_float32_from_half_precision_caches(text):
    batch = {key: value.half() for key, value in make_pairs(1).items()}
    assert build_cpm(text)(batch).dtype == torch.float32


def test_cpm_refuses_other_conditions(text):
    with pytest.raises(ValueError, match=r"of \(17, 24\), got \(9, 24\)"):
        build_cpm(text)(make_pairs(1, (9, 24)))
    with pytest.raises(ValueError, match="needs patches, but its condition has 1 row"):
        new_prompt("CPM_spair_tiny_Pair-DINO-Feat-G3-C5", text, condition_shape=(1, 24))


def test_linear_layers_learn_slower(text):
    prompt = build_cpm(text)
    groups = {group["name"]: group for group in prompt.param_groups(0.01)}
    assert groups["prompt"]["lr"] == 0.01 and groups["linear"]["lr"] == pytest.approx(0.001)
    assert len(groups["prompt"]["params"]) == 3 and len(groups["linear"]["params"]) == 4
    single = new_prompt("Single_spair_tiny_TokenEmbeds9", text).param_groups(0.01)
    assert [(group["lr"], len(group["params"])) for group in single] == [(0.01, 1)]


# ---- on disk ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("Single_spair_tiny_TokenEmbeds9", "caption.pt"),
        ("Single_spair_tiny_HiddenState", "caption.pt"),
        ("Class_spair_tiny_TokenEmbeds75", "caption.pt"),
        *((f"CPM_spair_tiny_{variant}", "ckpt.pt") for variant in CPM_NAMES),
    ],
)
def test_prompts_round_trip(text, tmp_path, name, file):
    parsed = parse_prompt_name(name)
    shape = SHAPES.get(parsed.condition)
    prompt = new_prompt(name, text, categories=["dog", "cat"], condition_shape=shape)
    folder = save_prompt(tmp_path / name, prompt, {"metrics": {"pck": 0.5}, "made_by": {"networks": "abc"}})
    assert sorted(path.name for path in folder.iterdir()) == sorted([file, "prompt.json"])
    meta = json.loads((folder / "prompt.json").read_text())
    assert (meta["name"], meta["backbone"], meta["width"]) == (name, "tiny", D)
    assert meta["metrics"] == {"pck": 0.5}

    same = {"setting": {"networks": "abc"}}
    loaded = load_prompt(folder, text, backbone="tiny", categories=["cat"], condition_shape=shape, **same)
    assert type(loaded) is type(prompt) and loaded.name == parsed
    batch = {"category": ["cat", "dog"], **(make_pairs(2, shape) if shape else {})}
    assert torch.equal(loaded(batch), prompt(batch))
    assert load_prompt(folder, text, backbone="tiny").state_dict().keys() == prompt.state_dict().keys()

    first = torch.load(folder / file, weights_only=True)
    again = torch.load(save_prompt(tmp_path / "again" / name, loaded) / file, weights_only=True)
    assert first.keys() == again.keys() and all(torch.equal(first[key], again[key]) for key in first)


def test_files_have_the_release_formats(text, tmp_path):
    single = new_prompt("Single_spair_tiny_TokenEmbeds75", text)
    caption = torch.load(save_prompt(tmp_path / str(single.name), single) / "caption.pt", weights_only=True)
    assert {key: tuple(value.shape) for key, value in caption.items()} == {"dataset": (1, 77, D)}
    assert torch.equal(caption["dataset"], single({}))
    by_class = new_prompt("Class_spair_tiny_TokenEmbeds75", text, categories=["dog", "cat"])
    caption = torch.load(save_prompt(tmp_path / str(by_class.name), by_class) / "caption.pt", weights_only=True)
    assert {key: tuple(value.shape) for key, value in caption.items()} == {"cat": (1, 77, D), "dog": (1, 77, D)}
    cpm = build_cpm(text)
    state = torch.load(save_prompt(tmp_path / str(cpm.name), cpm) / "ckpt.pt", weights_only=True)
    assert set(state) == {
        *("global_embeds", "positional_embedding", "alpha_cond"),
        *("linear_C.weight", "linear_C.bias", "linear_N.weight", "linear_N.bias"),
    }


def test_the_authors_files_load_as_they_are(text, tmp_path):
    """No prompt.json, and special embeddings that need not be this text model's."""
    folder = tmp_path / "Class_spair_tiny_TokenEmbeds9"
    folder.mkdir()
    caption = {name: torch.randn(1, 77, D) for name in ("dog", "cat")}
    torch.save(caption, folder / "caption.pt")
    prompt = load_prompt(folder, text, backbone="tiny", categories=["cat", "dog"])
    assert torch.equal(prompt({"category": ["dog", "cat"]}), torch.cat([caption["dog"], caption["cat"]]))
    assert [row.shape for row in prompt.tokens] == [(9, D)] * 2
    save_prompt(folder, prompt)
    again = torch.load(folder / "caption.pt", weights_only=True)
    assert all(torch.equal(again[name], caption[name]) for name in caption)

    folder = tmp_path / "CPM_spair_tiny_Pair-DINO-Feat-G0-C5"
    folder.mkdir()
    state = {**build_cpm(text, "Pair-DINO-Feat-G0-C5", seed=7).state_dict(), "global_embeds": torch.zeros(1, 0, D)}
    torch.save(state, folder / "ckpt.pt")
    assert torch.equal(load_prompt(folder, text, backbone="tiny").alpha_cond, state["alpha_cond"])


def test_missing_prompts_are_answered_with_those_there_are(text, tmp_path):
    with pytest.raises(PromptNotFoundError, match=r"holds no prompts: train one"):
        load_prompt(tmp_path / "Single_spair_tiny_HiddenState", text, backbone="tiny")
    save_prompt(tmp_path / "Single_spair_tiny_TokenEmbeds9", new_prompt("Single_spair_tiny_TokenEmbeds9", text))
    assert list_prompts(tmp_path) == ["Single_spair_tiny_TokenEmbeds9"]
    with pytest.raises(PromptNotFoundError, match="there are: Single_spair_tiny_TokenEmbeds9"):
        load_prompt(tmp_path / "Single_spair_tiny_HiddenState", text, backbone="tiny")
    (tmp_path / "Single_spair_tiny_HiddenState").mkdir()
    with pytest.raises(PromptNotFoundError, match="holds no caption.pt: its training has not saved"):
        load_prompt(tmp_path / "Single_spair_tiny_HiddenState", text, backbone="tiny")


def test_mismatches_are_refused(text, tmp_path):
    name = "Class_spair_tiny_TokenEmbeds9"
    prompt = new_prompt(name, text, categories=["dog", "cat"])
    folder = save_prompt(tmp_path / name, prompt, {"made_by": {"networks": "abc"}})
    with pytest.raises(PromptError, match=r"backbone tiny \(says its name\), but NETWORK.NAME is sd2-1"):
        load_prompt(folder, text, backbone="sd2-1")
    with pytest.raises(PromptError, match="no prompt for bus; it has: cat, dog"):
        load_prompt(folder, text, backbone="tiny", categories=["bus", "cat"])
    with pytest.raises(PromptError, match="trained under other settings: networks 'abc', now 'xyz'"):
        load_prompt(folder, text, backbone="tiny", setting={"networks": "xyz"})

    renamed = tmp_path / "Class_spair_sd2-1_TokenEmbeds9"
    folder.rename(renamed)
    with pytest.raises(PromptError, match="holds the prompt Class_spair_tiny_TokenEmbeds9"):
        load_prompt(renamed, text, backbone="sd2-1")


def test_contents_that_do_not_fit_the_name_are_refused(text, tmp_path):
    def write(name, tensors):
        folder = tmp_path / name
        folder.mkdir()
        torch.save(tensors, folder / ("ckpt.pt" if name.startswith("CPM") else "caption.pt"))
        return folder

    folder = write("Single_spair_tiny_TokenEmbeds75", {"cat": torch.zeros(1, 77, D)})
    with pytest.raises(PromptError, match="named as a Single prompt, but its file holds: cat"):
        load_prompt(folder, text, backbone="tiny")
    folder = write("Class_spair_tiny_TokenEmbeds75", {"dataset": torch.zeros(1, 77, D)})
    with pytest.raises(PromptError, match="named as a Class prompt, but its file holds: dataset"):
        load_prompt(folder, text, backbone="tiny")
    folder = write("Single_spair_tiny_HiddenState", {"dataset": torch.zeros(1, 77, 1024)})
    with pytest.raises(PromptError, match=r"is \(1, 77, 1024\), but this backbone takes \(1, 77, 32\)"):
        load_prompt(folder, text, backbone="tiny")
    folder = write("CPM_spair_tiny_Pair-DINO-Feat-G3-C6", build_cpm(text).state_dict())
    with pytest.raises(PromptError, match=r"alpha_cond is \(1, 5, 32\), expected \(1, 6, 32\)"):
        load_prompt(folder, text, backbone="tiny")
    folder = write("CPM_spair_tiny_Img-DINO-Feat-G3-C5", build_cpm(text).state_dict())
    with pytest.raises(PromptError, match="linear_N.weight is .* expected none"):
        load_prompt(folder, text, backbone="tiny")
    folder = write("CPM_spair_tiny_Pair-DINO-Feat-G3-C5", build_cpm(text).state_dict())
    with pytest.raises(PromptError, match=r"linear_C.weight is \(32, 48\), expected \(32, 60\)"):
        load_prompt(folder, text, backbone="tiny", condition_shape=(17, 30))
    folder = write("CPM_spair_tiny_Pair-DINO-Feat-G0-C5", {"weights": torch.zeros(3)})
    with pytest.raises(PromptError, match="no linear layer, so it is no CPM prompt; keys: weights"):
        load_prompt(folder, text, backbone="tiny")
    folder = write("CPM_spair_tiny_Pair-DINO-Head-G0-C5", [1, 2])
    with pytest.raises(PromptError, match="no table of tensors"):
        load_prompt(folder, text, backbone="tiny")


def test_corrupt_files_are_refused(text, tmp_path):
    name = "Single_spair_tiny_TokenEmbeds9"
    folder = save_prompt(tmp_path / name, new_prompt(name, text))
    whole = (folder / "caption.pt").read_bytes()
    for content in (b"", b"not a tensor file", whole[: len(whole) // 2]):
        (folder / "caption.pt").write_bytes(content)
        with pytest.raises(PromptError, match=r"caption.pt cannot be read"):
            load_prompt(folder, text, backbone="tiny")
    torch.save({"dataset": subprocess.Popen}, folder / "caption.pt")
    with pytest.raises(PromptError, match=r"caption.pt cannot be read"):
        load_prompt(folder, text, backbone="tiny")
    (folder / "caption.pt").write_bytes(whole)
    (folder / "prompt.json").write_text("{")
    with pytest.raises(PromptError, match="prompt.json is corrupt"):
        load_prompt(folder, text, backbone="tiny")


def test_a_crash_while_saving_leaves_the_old_prompt(text, tmp_path, monkeypatch):
    name = "Single_spair_tiny_TokenEmbeds9"
    old = new_prompt(name, text, seed=0)
    folder = save_prompt(tmp_path / name, old)

    def crash(tensors, path):
        path.write_bytes(b"half of a prompt")
        raise OSError("no space left on device")

    monkeypatch.setattr(torch, "save", crash)
    with pytest.raises(OSError, match="no space left"):
        save_prompt(folder, new_prompt(name, text, seed=1))
    assert sorted(path.name for path in folder.iterdir()) == ["caption.pt", "prompt.json"]
    assert torch.equal(load_prompt(folder, text, backbone="tiny")({}), old({}))


def test_saving_does_not_depend_on_training_state(text, tmp_path):
    name = "Single_spair_tiny_TokenEmbeds9"
    prompt = new_prompt(name, text)
    assert isinstance(prompt, SimplePrompt)
    prompt({}).sum().backward()
    save_prompt(tmp_path / name, prompt)
    caption = torch.load(tmp_path / name / "caption.pt", weights_only=True)["dataset"]
    assert not caption.requires_grad


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("car(G)", "car"),
        ("duck(S)", "duck"),
        ("motorbike(M)", "motorbike"),
        ("winebottle(wC)", "winebottle"),
        ("winebottle(woC)", "winebottle"),
        ("winebottle(M)", "winebottle"),
        ("aeroplane", "aeroplane"),
    ],
)
def test_category_word(name, word):
    assert category_word(name) == word
