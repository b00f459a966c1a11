"""The two networks by themselves, against their formulas and against a ControlNet, and what they refuse."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import controlkit as ck
from controlkit.adapters.uni_controlnet import LocalConfig, TokensConfig, UniControlNet
from controlkit.adapters.uni_controlnet.local import InjectedBlock
from tests import tiny
from tests.adapters.uni_controlnet.builders import LOCAL, TOKENS, WIDTH, inputs, noise, uni


@torch.no_grad()
def test_the_extractor_is_its_convolutions_written_out() -> None:
    module, maps = uni(), inputs()["maps"]
    net: Any = module.local.extractor
    x = maps
    for index, stride in enumerate((1, 2, 1, 2, 1)):
        x = F.silu(F.conv2d(x, net.stem[index].weight, net.stem[index].bias, stride=stride, padding=1))
    for level, feature in enumerate(module.local.features(maps)):
        conv, output = net.levels[level], net.outputs[level]
        x = F.silu(F.conv2d(x, conv.weight, conv.bias, stride=2, padding=1))
        expected = F.conv2d(x, output.weight, output.bias, padding=1)
        assert torch.equal(feature, expected)
        assert feature.shape == (2, LOCAL.inject_channels[level], 8 >> level, 8 >> level)


@torch.no_grad()
def test_a_modulated_block_is_its_formula_written_out() -> None:
    block: Any = tiny.randomize(InjectedBlock(16, 32, 24, groups=8, features=5), 3)
    x, time, feature = noise(2, 16, 6, 6), noise(2, 24, seed=1), noise(2, 5, 6, 6, seed=2)

    def fdn(value: Tensor, norm: Any) -> Tensor:
        grouped = value.reshape(2, 8, -1)
        mean = grouped.mean(-1, keepdim=True)
        variance = grouped.var(-1, unbiased=False, keepdim=True)
        plain = ((grouped - mean) / (variance + 1e-5).sqrt()).reshape(value.shape)
        return plain * (1 + norm.conv_gamma(feature)) + norm.conv_beta(feature)

    hidden = block.conv1(F.silu(fdn(x, block.norm1))) + block.time_emb_proj(time)[:, :, None, None]
    expected = block.conv_shortcut(x) + block.conv2(F.silu(fdn(hidden, block.norm2)))
    found = block(x, time, block.modulation(feature))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


@torch.no_grad()
def test_with_constant_modulation_it_is_a_controlnet_without_a_hint() -> None:
    """Scale and shift that do not depend on the maps are a group norm's own weight and bias."""
    net, module, given = tiny.controlnet("sd1"), uni(), inputs()
    theirs = net.state_dict()
    state = {}
    for name, tensor in module.local.state_dict().items():
        block, _, convolution = name.rpartition("norm")
        if ".conv_gamma." in convolution or ".conv_beta." in convolution:
            norm = f"{block}norm{convolution[0]}"
            is_scale = ".conv_gamma." in convolution
            constant = theirs[f"{norm}.weight"] - 1 if is_scale else theirs[f"{norm}.bias"]
            state[name] = constant if name.endswith("bias") else torch.zeros_like(tensor)
        else:
            state[name] = theirs.get(name, tensor)
    module.local.load_state_dict(state)
    hint = torch.zeros(1, 16, 8, 8)
    arguments = given["latents"], given["timesteps"], given["tokens"]
    expected, found = net(*arguments, hint=hint), module.local(*arguments, given["maps"])
    for ours, other in zip((*found.skips, found.mid), (*expected.skips, expected.mid), strict=True):
        assert ours is not None
        assert other is not None
        torch.testing.assert_close(ours, other, rtol=0, atol=1e-5 * float(other.abs().max()))


@torch.no_grad()
def test_maps_encoded_once_give_the_same() -> None:
    module, given = uni(), inputs()
    arguments = given["latents"], given["timesteps"], given["tokens"]
    expected = module.local(*arguments, given["maps"])
    found = module.local(*arguments, encoded=module.local.encode(given["maps"]))
    assert all(map(torch.equal, found.skips, expected.skips))
    other = module.local(*arguments, torch.zeros_like(given["maps"]))
    assert expected.mid is not None
    assert other.mid is not None
    assert (other.mid - expected.mid).abs().max() > 1e-2
    one = module.local(*arguments, given["maps"][:1])
    assert one.mid is not None
    torch.testing.assert_close(one.mid[:1], expected.mid[:1])


@torch.no_grad()
def test_odd_latents_are_rounded_as_the_unet_does() -> None:
    module, unet = uni(), tiny.unet("sd1")
    latents, tokens, t = noise(1, 4, 9, 7), noise(1, 5, WIDTH, seed=1), torch.tensor([500])
    residuals = module.local(latents, t, tokens, torch.rand(1, 21, 72, 56))
    unet(
        latents,
        t,
        tokens,
        down_block_additional_residuals=residuals.skips,
        mid_block_additional_residual=residuals.mid,
    )


@torch.no_grad()
def test_tokens_are_the_formula_written_out() -> None:
    net, embedding = uni().tokens, noise(3, WIDTH)

    def layer(x: Tensor, norm: Any, ff: Any) -> Tensor:
        x = F.layer_norm(x, x.shape[-1:], norm.weight, norm.bias)
        value, gate = F.linear(x, ff.net[0].proj.weight, ff.net[0].proj.bias).chunk(2, dim=-1)
        return F.linear(value * F.gelu(gate), ff.net[2].weight, ff.net[2].bias)

    flat = layer(layer(embedding, net.norm1, net.ff1), net.norm2, net.ff2)
    expected = torch.stack([flat[:, WIDTH * n : WIDTH * (n + 1)] for n in range(4)], dim=1)
    assert torch.equal(net(embedding), expected)
    assert net(torch.zeros(1, WIDTH)).abs().max() > 0.1
    assert torch.equal(net.train()(embedding), expected)  # no dropout, in whichever mode


REFUSED: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"maps": torch.rand(2, 20, 64, 64)}, ck.HintError, "needed .batch, 21, height, width"),
    ({"maps": torch.rand(2, 21, 32, 64)}, ck.HintError, "64x64"),
    ({"maps": torch.rand(3, 21, 64, 64)}, ck.BatchMismatch, "3 rows"),
    ({"maps": None}, ck.ParameterError, "neither"),
    ({"tokens": noise(2, 9, 64)}, ck.ParameterError, "batch, n, 768"),
    ({"tokens": noise(1, 9, WIDTH)}, ck.BatchMismatch, "tokens; found 1 rows"),
    ({"timesteps": torch.tensor([1, 2, 3])}, ck.BatchMismatch, "timesteps; found 3 rows"),
]


@pytest.mark.parametrize(("changes", "error", "match"), REFUSED)
def test_what_does_not_fit_is_refused(changes: dict[str, Any], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        uni().local(**{**inputs(), **changes})


@pytest.mark.parametrize("shape", [(768,), (1, 767), (1, 2, 768)])
def test_an_embedding_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ck.HintError, match=r"needed \(batch, 768\)"):
        uni().tokens(torch.zeros(shape))


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"local_channels": 20}, "multiple of 3"),
        ({"inject_layers": (1, 2, 5, 7)}, "inject_layers"),
        ({"inject_layers": (1, 3, 5, 7, 9)}, "inject_layers"),
        ({"inject_layers": (1, 5)}, "inject_layers"),
        ({"attends": (True,)}, "attends"),
        ({"stem_channels": (8, 8)}, "stem_channels"),
        ({"conditions": ("canny",)}, "conditions"),
        ({"num_attention_heads": 5}, "heads"),
        ({"norm_num_groups": 7}, "norm_num_groups"),
        ({"block_out_channels": (16, -32, 32, 32)}, "block_out_channels"),
    ],
)
def test_configs_that_cannot_be_built_are_refused(changes: dict[str, Any], match: str) -> None:
    with pytest.raises(ck.ConfigError, match=match):
        replace(LOCAL, **changes)


def test_halves_must_belong_together() -> None:
    with pytest.raises(ck.ConfigError, match="768 and 1024"):
        UniControlNet(LOCAL, replace(TOKENS, dim=1024))
    with pytest.raises(ck.ConfigError, match="neither"):
        UniControlNet()


def test_names_of_other_numbers_of_maps() -> None:
    assert replace(LOCAL, local_channels=9).names == ("canny", "mlsd", "hed")
    assert replace(LOCAL, local_channels=24).names[-2:] == ("seg", "condition 8")
    assert replace(LOCAL, local_channels=6, conditions=("depth", "pose")).names == ("depth", "pose")
    assert LocalConfig().names[:2] == ("canny", "mlsd")
    assert uni(tokens=None, local=replace(LOCAL, inject_layers=(1, 3))).conditions == LocalConfig().names


VARIANTS = {
    "whole": (LOCAL, TOKENS),
    "local": (LOCAL, None),
    "tokens": (None, TOKENS),
    "linear": (
        replace(LOCAL, use_linear_projection=True, num_attention_heads=(1, 2, 4, 4), local_channels=9),
        replace(TOKENS, count=2),
    ),
    "uneven": (
        replace(LOCAL, layers_per_block=2, inject_layers=(2, 4), transformer_layers_per_block=(1, 2, 1, 1)),
        None,
    ),
}


@pytest.mark.parametrize("name", VARIANTS)
@torch.no_grad()
def test_saved_and_loaded_it_is_the_same(name: str, tmp_path: Path) -> None:
    module = uni(3, *VARIANTS[name])
    again = ck.load(module.save(tmp_path / name))
    assert isinstance(again, UniControlNet)
    assert again.config_entries() == module.config_entries()
    if module.has_local:
        given = inputs()
        given["maps"] = given["maps"][:, : module.local.config.local_channels]
        assert all(map(torch.equal, again.local(**given).skips, module.local(**given).skips))
    if module.has_tokens:
        assert torch.equal(again.tokens(noise(1, WIDTH)), module.tokens(noise(1, WIDTH)))


def test_the_original_layout_holds_what_the_original_can_build() -> None:
    module = uni(tokens=None)
    with pytest.raises(ck.Unsupported, match="norms of 8 groups; needed 32"):
        module.original_state()
    shape = {"block_out_channels": (32,) * 4, "layers_per_block": 2, "inject_layers": (1, 4, 7, 10)}
    module = uni(5, replace(LOCAL, norm_num_groups=32, **shape), TOKENS)
    state = module.original_state()
    assert "local_adapter.input_blocks.4.0.norm_out.conv_beta.bias" in state
    again = ck.load(state, config={"num_heads": 2})
    assert again.config_entries() == module.config_entries()
    assert all(torch.equal(again.state_dict()[key], value) for key, value in module.state_dict().items())


@pytest.mark.parametrize(
    ("levels", "blocks", "injected", "lists", "wrong"),
    [
        (3, 2, (1, 4, 7), [[1, 4, 7, 10], [1, 4, 7]], [[1, 4], [4, 7, 1], [1, 4, 7, 8]]),
        (3, 1, (1, 3, 5), [[1, 3, 5, 4, 7], [1, 3, 5]], [[1, 3, 5, 7], [1, 4, 7, 3, 5]]),
        (4, 3, (3,), [[3]], [[2], [3, 1]]),
    ],
)
def test_layers_that_the_original_lists_in_vain_are_no_contradiction(
    levels: int, blocks: int, injected: tuple[int, ...], lists: list[list[int]], wrong: list[list[int]]
) -> None:
    """Its default list for four levels on three; and lists that its fixed count of two blocks asks for."""
    shape = {"block_out_channels": (32,) * levels, "layers_per_block": blocks, "inject_layers": injected}
    attends = (True,) * (levels - 1) + (False,)
    module = uni(5, replace(LOCAL, norm_num_groups=32, attends=attends, **shape), None)
    state = module.original_state()
    for layers in lists:
        config = {"num_heads": 2, "inject_layers": layers, "inject_channels": [8, 12, 16, 20, 99]}
        assert ck.load(state, config=config).config_entries() == module.config_entries()
    for layers in wrong:
        with pytest.raises(ck.ConfigError, match="inject_layers"):
            ck.load(state, config={"num_heads": 2, "inject_layers": layers})


def test_bad_configs_of_files_are_refused(tmp_path: Path) -> None:
    module = uni()
    entries = module.config_entries()
    for config, error in (
        ({"_class_name": "ControlNetModel"}, ck.KindMismatch),
        ({"local": {**entries["local"], "local_channels": 24}}, ck.ShapeMismatch),
        ({"local": {**entries["local"], "stride": 2}}, ck.ConfigError),
        ({"local": 3}, ck.ConfigError),
        ({"tokens": {**entries["tokens"], "count": 8}}, ck.ShapeMismatch),
        ({"extra": {}}, ck.ConfigError),
    ):
        with pytest.raises(error):
            ck.load(module.state_dict(), config={**entries, **config})
    state = {key: value for key, value in module.state_dict().items() if "controlnet_mid" not in key}
    with pytest.raises(ck.Incomplete, match="controlnet_mid_block"):
        ck.load(state, config=entries)


def test_weights_that_do_nothing_are_said_to() -> None:
    module = UniControlNet(LOCAL, TOKENS)
    with pytest.warns(ck.ControlKitWarning, match="all output convolutions of its local half are zero"):
        ck.load(module.state_dict(), config=module.config_entries())
    assert TokensConfig().inner == (3072, 6144)
