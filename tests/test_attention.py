"""Attention of chosen layers: equal to that of a plain forward pass, which it may cut short."""

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor

from model.backbone.attention import name_layers, read_layers
from tests.tiny import SD_CONFIG

T = 140


@pytest.fixture(scope="module")
def unet():
    torch.manual_seed(0)
    return UNet2DConditionModel(**SD_CONFIG["unet"]).requires_grad_(False).eval()


def inputs(rows=2, size=(8, 16)):
    draw = torch.Generator().manual_seed(1)
    return torch.randn(rows, 4, *size, generator=draw), torch.randn(rows, 77, 32, generator=draw)


class Plain(AttnProcessor):
    """Diffusers' processor without fused attention, which writes down its probabilities."""

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, *args, **kwargs):
        usual, kept = attn.get_attention_scores, []
        attn.get_attention_scores = lambda *values: kept.append(usual(*values)) or kept[-1]
        try:
            return super().__call__(attn, hidden_states, encoder_hidden_states, *args, **kwargs)
        finally:
            del attn.get_attention_scores
            self.probabilities = kept[0]


def test_layers_are_named_in_the_order_in_which_they_run(unet):
    assert list(name_layers(unet)) == ["down0.0", "down1.0", "mid.0", "up1.0", "up1.1", "up2.0", "up2.1"]
    assert name_layers(unet)["up1.0"] is unet.up_blocks[1].attentions[0].transformer_blocks[0].attn2


def test_names_and_map_sizes_of_stable_diffusion_1():
    config = {
        "block_out_channels": (32, 64, 128, 128),
        "attention_head_dim": 8,
        "cross_attention_dim": 32,
        "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    }
    with torch.device("meta"):
        unet = UNet2DConditionModel(**config)
        sample, condition = torch.empty(1, 4, 64, 64), torch.empty(1, 77, 32)
        names = list(name_layers(unet))
        with torch.no_grad(), read_layers(unet, names, (64, 64), stop=False) as found:
            unet(sample, torch.zeros(1), condition)
    assert names == [
        *("down0.0", "down0.1", "down1.0", "down1.1", "down2.0", "down2.1", "mid.0", "up1.0", "up1.1", "up1.2"),
        *("up2.0", "up2.1", "up2.2", "up3.0", "up3.1", "up3.2"),
    ]
    assert [found[name].size[0] for name in names] == [64] * 2 + [32] * 2 + [16] * 2 + [8] + [16] * 3 + [32] * 3 + [
        64
    ] * 3
    assert {found[name].query.shape[1] for name in names} == {8}


def test_maps_are_those_of_a_plain_forward_pass_and_the_output_is_untouched(unet):
    sample, condition = inputs()
    names, modules = list(name_layers(unet)), name_layers(unet)
    output = unet(sample, T, condition).sample
    with read_layers(unet, names, sample.shape[-2:], stop=False) as found:
        assert torch.equal(unet(sample, T, condition).sample, output)
    plain = {name: Plain() for name in names}
    usual = {name: module.processor for name, module in modules.items()}
    for name, module in modules.items():
        module.set_processor(plain[name])
    unet(sample, T, condition)
    for name, module in modules.items():
        module.set_processor(usual[name])
        heads, (h, w) = module.heads, found[name].size
        assert found[name].maps().shape == (2, heads, h, w, 77) and w == 2 * h
        expected = plain[name].probabilities.view(2, heads, h, w, 77)
        torch.testing.assert_close(found[name].maps(), expected, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(found[name].scores().softmax(-1), found[name].maps())


def test_a_pass_that_stops_early_reads_exactly_the_same_with_the_same_gradients(unet):
    sample, condition = inputs()
    layers, results = ("up1.0", "mid.0"), []
    ran = []
    handles = [block.register_forward_hook(lambda *_: ran.append(1)) for block in (unet.up_blocks[2], unet.conv_out)]
    for stop in (False, True):
        embedding = condition.clone().requires_grad_()
        ran.clear()
        with read_layers(unet, layers, sample.shape[-2:], stop=stop) as found:
            unet(sample, T, embedding)
        assert len(ran) == (0 if stop else 2)
        loss = sum(found[name].maps()[..., 1].square().mean() for name in layers)
        loss.backward()
        results.append((loss.detach(), embedding.grad))
    for handle in handles:
        handle.remove()
    assert results[1][1].abs().max() > 0
    assert torch.equal(results[0][0], results[1][0]) and torch.equal(results[0][1], results[1][1])


def test_only_some_heads_are_kept(unet):
    sample, condition = inputs(rows=3)
    found = []
    for heads in (None, (1, 0)):
        with read_layers(unet, ("up1.1",), sample.shape[-2:], heads=heads) as read:
            unet(sample, T, condition)
        found.append(read["up1.1"].maps())
    torch.testing.assert_close(found[1], found[0][:, [1, 0]])


def test_the_network_is_as_it_was_afterwards_even_after_an_error(unet):
    before = dict(unet.attn_processors)
    with pytest.raises(RuntimeError, match="out of patience"), read_layers(unet, ("mid.0",), (8, 8)):
        raise RuntimeError("out of patience")
    assert unet.attn_processors == before


@pytest.mark.parametrize(
    "layers, heads, said",
    [(("up9.0",), None, "no cross-attention layer up9.0; it has down0.0"), (("mid.0",), (9,), "mid.0 has heads 0 to")],
)
def test_unknown_layers_and_heads_are_refused(unet, layers, heads, said):
    with pytest.raises(ValueError, match=said), read_layers(unet, layers, (8, 8), heads=heads):
        pass


# ---- the figure: words and learned tokens on a photo ----------------------------------------------------------


def test_each_word_s_map_is_that_of_its_tokens(world, tmp_path):
    from PIL import Image

    from config import load_config
    from engine.words import WordReader

    reader = WordReader(load_config(None, world.opts(tmp_path)), torch.device("cpu"))
    image = Image.new("RGB", (60, 40), "red")
    whole = reader._read(image, reader.text.encode_text(["a dogs tail"]))
    found = reader.read_words(image, "a dogs tail")
    lengths = [len(reader.text.tokenizer(word).input_ids) - 2 for word in ("a", "dogs", "tail")]
    assert found.names == ["a", "dogs", "tail"] and found.size == (40, 60) and whole.shape[0] == 77
    torch.testing.assert_close(whole.sum(dim=0), torch.ones_like(whole[0]))
    assert torch.equal(found.maps[2], whole[1 + sum(lengths[:2]) : 1 + sum(lengths)].sum(dim=0))
    found, count = reader.read_words(image, "dogs " * 77), -(-75 // lengths[1])  # 75 tokens are seen
    ids = reader.text.token_ids(["dogs " * 77], truncate=True)
    cut = reader._read(image, reader.text.encode_ids(ids))[1 + (count - 1) * lengths[1] : -1].sum(dim=0)
    assert found.names == ["dogs"] * count and torch.equal(found.maps[-1], cut)


@pytest.mark.usefixtures("fresh_accelerator")
def test_the_figure_from_the_command_line(world, tmp_path):
    from PIL import Image

    from tests.command import call

    opts = world.opts(tmp_path, "PROMPT.KIND", "Class", "TRAIN.MAX_STEPS", "1", "PROMPT.LENGTH", "5")
    assert call("train.py", *opts) == 0
    name = "Class_spair_tiny_TokenEmbeds5"
    flags = ["--words", "a photo of a dog", "--learned", name, "--category", "cat", "--tokens", "3"]
    for more, status in (([], 0), (["--layers", "up9.9"], 2)):
        assert call("script/figure.py", "attention", *flags, *more, "--opts", *opts) == status
    with Image.open(tmp_path / "figure" / "attention_spair.png") as image:
        assert min(image.size) > 150
