"""Our CONTROL_NET: windows, modes, chains, masks, replays; with a stand-in for ComfyUI."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import controlkit as ck
from tests.hosts.comfy import stand_in

MAP = (torch.rand(1, 3, 128, 128, generator=torch.Generator().manual_seed(0)) > 0.9).float()
SKIPS = [(96, 1), (96, 1), (96, 2), (144, 2)]


@pytest.fixture(scope="module")
def modules() -> dict[str, Any]:
    made = {name: ck.embedded.load(name) for name in ("controlnet-canny", "t2i-depth")}
    return made


@pytest.fixture
def kind(monkeypatch: pytest.MonkeyPatch) -> Any:
    stand_in.install(monkeypatch)
    from controlkit.hosts.comfy import control

    return control.EngineControl


def call(control: Any, sigma: float, *places: int, prompt: Tensor | None = None, **options: Any) -> Any:
    """A call of the U-Net with one picture per place."""
    rows = len(places)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(1, 4, 16, 16, generator=generator).repeat(rows, 1, 1, 1)
    tokens = torch.randn(rows, 5, 128, generator=generator) if prompt is None else prompt
    cond = {"c_crossattn": tokens, **options.pop("cond", {})}
    with torch.no_grad():
        return control.get_control(
            x, torch.full((rows,), sigma), cond, rows, stand_in.options(*places, **options)
        )


def begun(control: Any) -> Any:
    control.pre_run(stand_in.model(), stand_in.percent_to_sigma)
    return control


def bound(kind: Any, modules: dict[str, Any], name: str = "controlnet-canny", **options: Any) -> Any:
    return begun(kind(modules[name]).bind(modules[name].on(MAP, condition="depth", **options)))


def test_it_gives_what_the_network_computes(kind: Any, modules: dict[str, Any]) -> None:
    control = bound(kind, modules, scale=0.5)
    prompt = torch.randn(2, 5, 128, generator=torch.Generator().manual_seed(3))
    lists = call(control, 7.0, 1, 0, prompt=prompt)
    x = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(1)).repeat(2, 1, 1, 1)
    with torch.no_grad():
        alone = modules["controlnet-canny"](
            x / 50**0.5, torch.full((2,), 420.0), prompt, MAP.expand(2, -1, -1, -1)
        )
    assert len(lists["output"]) == 4
    for ours, skip in zip([*lists["output"], *lists["middle"]], [*alone.skips, alone.mid], strict=True):
        torch.testing.assert_close(ours, 0.5 * skip)
    assert lists["input"] == []


@pytest.mark.parametrize(
    ("window", "acting"),
    [
        ({}, [0, 1, 2, 3]),
        ({"end": 0.5}, [0, 1]),
        ({"start": 0.25, "end": 0.75}, [1, 2]),
        ({"scale": [(0.0, 0.0), (0.5, 0.0), (0.5, 1.0)]}, [3]),
    ],
)
def test_windows_and_curves_count_steps(kind, modules, window: dict[str, Any], acting: list[int]) -> None:
    control = bound(kind, modules, **window)
    found = [call(control, float(sigma), 1, 0) is not None for sigma in stand_in.SIGMAS[:-1]]
    assert [step for step, acts in enumerate(found) if acts] == acting
    row = control.record.row()
    assert (row.applied, row.steps) == (len(acting), 4)


def test_the_map_is_encoded_once_and_again_in_the_next_sampling(kind: Any, modules: dict[str, Any]) -> None:
    control = bound(kind, modules)
    for sigma in stand_in.SIGMAS[:-1]:
        call(control, float(sigma), 1, 0)
    assert control.record.row().counts == {"hint": 1, "forward": 4}
    control.cleanup()
    assert call(control, 7.0, 1, 0) is None, "nothing acts between samplings"
    begun(control)
    call(control, 7.0, 1, 0)
    assert control.record.row().steps == 1, "a report is of the last sampling"


@pytest.mark.parametrize(("places", "zero"), [((1, 0), 0), ((0, 1), 1)])
def test_mode_control_leaves_the_unconditional_rows(kind, modules, places: Any, zero: int) -> None:
    lists = call(bound(kind, modules, mode="control"), 7.0, *places)
    for added in (*lists["output"], *lists["middle"]):
        assert not added[zero].any()
        assert added[1 - zero].any()
    assert call(bound(kind, modules, mode="control"), 7.0, 1) is None


def test_a_mask_is_where_it_adds(kind: Any, modules: dict[str, Any]) -> None:
    mask = torch.zeros(1, 1, 128, 128)
    mask[..., :64] = 1
    lists = call(bound(kind, modules, mask=mask), 7.0, 1, 0)
    for added in lists["output"]:
        width = added.shape[-1]
        assert added[..., : width // 2].any()
        assert not added[..., width // 2 :].any()


def test_chains_add_up_in_any_order_and_with_other_peoples(kind: Any, modules: dict[str, Any]) -> None:
    canny, depth = bound(kind, modules), bound(kind, modules, "t2i-depth")
    alone = [call(control, 7.0, 1, 0) for control in (canny, depth)]
    depth.set_previous_controlnet(canny.set_previous_controlnet(stand_in.Constant(0.25, SKIPS)))
    assert len(depth.get_models()) == 2
    both = call(depth, 7.0, 1, 0)
    for index, added in enumerate(both["output"]):
        torch.testing.assert_close(added, alone[0]["output"][index] + 0.25)
    torch.testing.assert_close(both["middle"][0], alone[0]["middle"][0])
    places = [index for index, value in enumerate(both["input"]) if value is not None]
    assert places == [0, 2], "blocks 3 and 1, the first block last"
    torch.testing.assert_close(both["input"][0], alone[1]["input"][0])


def test_calls_do_not_share_lists_or_tensors(kind: Any, modules: dict[str, Any]) -> None:
    control = bound(kind, modules, "t2i-depth")
    first = call(control, 7.0, 0)
    before = [None if value is None else value.clone() for value in first["input"]]
    kept = list(first["input"])
    first["input"].clear()
    second = call(control, 7.0, 0)
    for a, b, c in zip(before, second["input"], kept, strict=True):
        assert (a is None) == (b is None) == (c is None)
        if a is not None:
            assert torch.equal(a, b)


def test_a_replay_adds_what_was_added(kind: Any, modules: dict[str, Any]) -> None:
    control = bound(kind, modules)
    first = call(control, 7.0, 1, 0)
    again = call(control, 7.0, 0, controlkit_replay=True)
    for a, b in zip(first["output"], again["output"], strict=True):
        assert torch.equal(a[1:], b)
    assert control.record.row().steps == 1, "it is no step"


def test_comfyuis_own_apply_node_works_with_its_own_window(kind: Any, modules: dict[str, Any]) -> None:
    stock = kind(modules["controlnet-canny"]).copy().set_cond_hint(MAP, 0.5, (0.0, 0.6))
    begun(stock)
    ours = call(bound(kind, modules, scale=0.5), 7.0, 1, 0)
    for a, b in zip(call(stock, 7.0, 1, 0)["output"], ours["output"], strict=True):
        assert torch.equal(a, b)
    assert call(stock, 5.0, 1, 0) is None, "5 is below the noise level at 0.6"


def test_other_prompts_for_controls_are_read_except_by_those_that_read_all(kind: Any, modules: Any) -> None:
    plain = torch.zeros(2, 5, 128)
    module = modules["controlnet-canny"]
    first = call(bound(kind, modules), 7.0, 1, 0, prompt=plain)
    other = call(bound(kind, modules), 7.0, 1, 0, cond={"crossattn_controlnet": plain})
    assert torch.equal(first["middle"][0], other["middle"][0])
    everything = begun(kind(module).bind(module.on(MAP, condition="depth"), reads_all=True))
    third = call(everything, 7.0, 1, 0, cond={"crossattn_controlnet": plain})
    assert not torch.equal(first["middle"][0], third["middle"][0])


def test_the_wrong_base_model_is_refused_before_the_first_step(kind: Any, modules: Any) -> None:
    control = kind(modules["controlnet-canny"]).bind(modules["controlnet-canny"].on(MAP, condition="depth"))
    net = stand_in.unet((320, 640, 1280, 1280), (True, True, True, False), depth=2, tokens=768)
    with pytest.raises(ck.BaseMismatch, match=r"SD 1\.x U-Net"):
        control.pre_run(stand_in.model(net), stand_in.percent_to_sigma)


def test_sdxls_sizes_may_come_embedded() -> None:
    from controlkit.adapters.blocks.embeddings import sinusoids
    from controlkit.adapters.controlnet import ControlNetConfig

    torch.manual_seed(0)
    net = ck.ControlNet(
        ControlNetConfig(
            block_out_channels=(32, 64),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            cross_attention_dim=16,
            attention_head_dim=4,
            layers_per_block=1,
            conditioning_embedding_out_channels=(8, 8, 8, 8),
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=20 + 6 * 8,
        )
    ).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.normal_(std=0.1)
    pooled, ids = torch.randn(2, 20), torch.tensor([[64.0, 48.0, 0.0, 8.0, 64.0, 48.0]] * 2)
    embedded = torch.cat([pooled, sinusoids(ids.flatten(), 8).reshape(2, -1)], dim=1)
    given = (torch.randn(2, 4, 8, 8), torch.tensor([3, 3]), torch.randn(2, 5, 16), torch.rand(2, 3, 64, 64))
    with torch.no_grad():
        one = net(*given, added={"text_embeds": pooled, "time_ids": ids})
        other = net(*given, added={"embedded": embedded})
        different = net(*given, added={"embedded": embedded + 1})
    assert torch.equal(one.mid, other.mid)
    assert not torch.equal(one.mid, different.mid)


def test_a_module_that_reads_no_map_asks_for_its_node(kind: Any) -> None:
    control = kind(ck.embedded.load("classifier"))
    with pytest.raises(ck.ParameterError, match="node made for its kind"):
        begun(control)


def test_attention_is_the_hosts_while_it_runs(
    kind: Any, modules: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    from controlkit.adapters.blocks.transformer import Attention, torch_attention

    heads: list[int] = []

    def counted(query: Tensor, key: Tensor, value: Tensor, number: int) -> Tensor:
        heads.append(number)
        return torch_attention(query, key, value, number)

    module: Any = sys.modules["comfy.ldm.modules.attention"]
    monkeypatch.setattr(module, "optimized_attention", counted)
    control = kind(modules["controlnet-canny"]).set_cond_hint(MAP)
    control.pre_run(stand_in.model(), stand_in.percent_to_sigma)
    assert call(control, 7.0, 0) is not None
    assert heads == [3, 3, 4, 4, 4, 4], "two attentions in each of the three transformer layers"
    assert Attention.attend is torch_attention
