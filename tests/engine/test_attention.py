"""What controls add inside cross-attention, however the U-Net computes it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers.models import attention_processor as processors
from torch import Tensor
from torch.nn import functional

import controlkit as ck
from controlkit.contracts import ExtraAttention
from controlkit.errors import NotApplicable
from controlkit.strength import Strength
from tests import tiny
from tests.adapters.ip_adapter import peers
from tests.engine.attending import Stranger, bound, draw
from tests.engine.test_composition import call
from tests.engine.test_undo import unchanged
from tests.golden_cases import assert_equal, relative_error

# --- what it computes ---------------------------------------------------------------------------------


def test_it_is_the_formula_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against a processor that writes the second attention out, with another formula for each layer."""
    pipe = tiny.pipeline("sd1")
    layers = [m for n, m in pipe.unet.named_modules() if n.endswith("attn2")]
    layers = sorted(layers, key=lambda m: _order(pipe.unet, m))
    keys = tuple(draw(1, 3, layer.inner_dim, seed=i) for i, layer in enumerate(layers))
    values = tuple(draw(1, 3, layer.inner_dim, seed=50 + i) for i, layer in enumerate(layers))
    with ck.attach(pipe, Stranger(ExtraAttention(keys, values), Strength(scale=0.6))) as run:
        ours = call(pipe)

    class ByHand(processors.AttnProcessor):
        def __init__(self, index: int) -> None:
            self.index = index

        def __call__(
            self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Any = None, **_: Any
        ) -> Any:
            def heads(part: Tensor) -> Tensor:
                return part.unflatten(-1, (attn.heads, -1)).transpose(1, 2).double()

            def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
                weights = torch.softmax(heads(q) @ heads(k).mT / heads(q).shape[-1] ** 0.5, dim=-1)
                return (weights @ heads(v)).transpose(1, 2).flatten(2)

            query = attn.to_q(hidden_states)
            found = attend(query, attn.to_k(encoder_hidden_states), attn.to_v(encoder_hidden_states))
            found = found + 0.6 * attend(query, keys[self.index], values[self.index])
            return attn.to_out[0](found.to(query))

    for index, layer in enumerate(layers):
        layer.set_processor(ByHand(index))
    assert_equal(ours, call(pipe))
    row = run.report().rows[0]
    assert row.applied == 4
    assert row.norm is not None
    assert 0.05 < row.norm < 0.6


def _order(unet: Any, module: Any) -> int:
    name = next(name for name, found in unet.named_modules() if found is module)
    return ["down_blocks", "up_blocks", "mid_block"].index(name.split(".")[0])


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_the_target_lists_the_layers_in_the_order_of_the_files(family: tiny.Family) -> None:
    from controlkit.hosts.diffusers import DiffusersHost

    unet = tiny.unet(family)
    names = [name for name in unet.attn_processors if name.endswith("attn2.processor")]
    expected = [unet.get_submodule(name.removesuffix(".processor")).inner_dim for name in names]
    target = DiffusersHost(unet).target()
    assert [layer.width for layer in target.attention] == expected
    seen: list[tuple[int, int]] = []
    for name in names:
        unet.get_submodule(name.removesuffix(".processor")).register_forward_pre_hook(
            lambda _m, args, kwargs, name=name: seen.append((names.index(name), args[0].shape[1])),
            with_kwargs=True,
        )
    inputs = tiny.inputs(family, size=(24, 20))
    extra = {} if inputs["added"] is None else {"added_cond_kwargs": inputs["added"]}
    unet(inputs["latents"], inputs["timesteps"], inputs["tokens"], **extra)
    for index, pixels in seen:
        stride = target.attention[index].stride
        assert pixels == -(-24 // stride) * -(-20 // stride)
    assert len(seen) == len(names)


def test_control_mode_leaves_the_unconditional_half_alone() -> None:
    unet, inputs = tiny.unet("sd1"), tiny.inputs("sd1")
    module = peers.load(unet, "plain")

    def run(*controls: Any) -> Tensor:
        with ck.attach(unet, *controls, branches=("uncond", "cond")):
            return unet(inputs["latents"], inputs["timesteps"], inputs["tokens"]).sample

    embedding = draw(1, peers.PROJECTED)
    balanced, control = (run(module.on(embedding, mode=mode)) for mode in ("balanced", "control"))
    plain = unet(inputs["latents"], inputs["timesteps"], inputs["tokens"]).sample
    assert torch.equal(control[:1], plain[:1])
    assert_equal(control[1:], balanced[1:])
    assert relative_error(balanced[:1], plain[:1]) > 0.01
    assert relative_error(balanced[1:], plain[1:]) > 0.01


def test_scale_zero_and_a_mask_of_zeros_change_nothing() -> None:
    pipe = tiny.pipeline("sd1")
    plain = call(pipe)
    for options in ({"scale": 0.0}, {"mask": torch.zeros(1, 1, 64, 64)}, {"block_scales": [0.0] * 10}):
        with ck.attach(pipe, bound(pipe, **options)):
            assert torch.equal(call(pipe), plain)


# --- however attention is computed --------------------------------------------------------------------


def _sliced(unet: Any) -> None:
    unet.set_attention_slice(1)


def _old(unet: Any) -> None:
    unet.set_attn_processor(processors.AttnProcessor())


def _fused(unet: Any) -> None:
    unet.fuse_qkv_projections()


@pytest.mark.parametrize("change", [_old, _sliced, _fused])
def test_attention_processors(change: Any) -> None:
    pipe = tiny.pipeline("sd1")
    control = bound(pipe)
    with ck.attach(pipe, control):
        expected = call(pipe)
    change(pipe.unet)
    with ck.attach(pipe, control):
        assert_equal(call(pipe), expected)


class ByWeights(processors.AttnProcessor2_0):
    """A processor that uses the weights of some projections in place of the modules."""

    def __init__(self, *bypassed: str) -> None:
        super().__init__()
        self.bypassed = bypassed

    def __call__(self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Any = None, **_: Any) -> Any:
        def linear(module: Any, x: Tensor, name: str) -> Tensor:
            if name in self.bypassed:
                return functional.linear(x, module.weight, module.bias)
            return module(x)

        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query, key, value = (
            part.unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            for part in (
                linear(attn.to_q, hidden_states, "to_q"),
                attn.to_k(context),
                attn.to_v(context),
            )
        )
        found = functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        return linear(attn.to_out[0], found, "to_out")


@pytest.mark.parametrize("where", ["everywhere", "one layer"])
@pytest.mark.parametrize(
    ("bypassed", "named"), [(("to_q",), "to_q"), (("to_out",), "to_out"), (("to_q", "to_out"), "to_q")]
)
def test_a_processor_that_passes_the_modules_by_is_an_error(
    bypassed: tuple[str, ...], named: str, where: str
) -> None:
    pipe = tiny.pipeline("sd1")
    if where == "everywhere":
        pipe.unet.set_attn_processor(ByWeights(*bypassed))
    else:
        pipe.unet.mid_block.attentions[0].transformer_blocks[0].attn2.set_processor(ByWeights(*bypassed))
    with (
        unchanged(pipe),
        pytest.raises(NotApplicable, match=f"ByWeights, which did not call {named}"),
        ck.attach(pipe, bound(pipe)),
    ):
        call(pipe)
    pipe.unet.set_attn_processor(ByWeights())
    with ck.attach(pipe, bound(pipe)):
        call(pipe)


def test_layers_that_are_left_out_of_later_steps_are_no_error() -> None:
    """As by DeepCache, which computes the inner blocks at some steps only."""
    pipe = tiny.pipeline("sd1")
    with ck.attach(pipe, bound(pipe)) as run:
        layer = pipe.unet.mid_block.attentions[0].transformer_blocks[0].attn2

        def skip(_pipe: Any, _i: int, _t: Any, values: dict[str, Any]) -> dict[str, Any]:
            layer.set_processor(lambda _attn, x, **_: x)
            return values

        call(pipe, callback_on_step_end=skip)
    assert run.report().rows[0].applied == 4


@pytest.mark.parametrize("way", ["torch.compile", "unet.compile", "repeated blocks"])
def test_compiled_unets_are_refused_with_the_reason(way: str) -> None:
    pipe = tiny.pipeline("sd1")
    control = bound(pipe)
    if way == "torch.compile":
        pipe.unet = torch.compile(pipe.unet, backend="eager")
    elif way == "unet.compile":
        pipe.unet.compile(backend="eager")
    else:
        pipe.unet.compile_repeated_blocks(backend="eager")
    with pytest.raises(NotApplicable, match="compiled"):
        ck.attach(pipe, control)


def test_loras_loaded_inside_the_block_are_seen() -> None:
    from peft import LoraConfig

    pipes = [tiny.pipeline("sd1") for _ in range(2)]
    config = LoraConfig(r=2, target_modules=["to_q", "to_out.0"], init_lora_weights=False)
    outcomes = []
    for pipe, first in zip(pipes, (True, False), strict=True):
        control = bound(pipe)
        if first:
            with tiny.seeded(1):
                pipe.unet.add_adapter(config)
        with ck.attach(pipe, control):
            if not first:
                call(pipe)
                with tiny.seeded(1):
                    pipe.unet.add_adapter(config)
            outcomes.append(call(pipe))
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in pipe.unet.modules())
    assert torch.equal(*outcomes)


def test_offloaded_unets() -> None:
    accelerate = pytest.importorskip("accelerate")
    pipe = tiny.pipeline("sd1")
    control = bound(pipe)
    with ck.attach(pipe, control):
        expected = call(pipe)
    accelerate.cpu_offload(pipe.unet, execution_device=torch.device("cpu"))
    accelerate.cpu_offload(control.module, execution_device=torch.device("cpu"))
    with ck.attach(pipe, control):
        assert torch.equal(call(pipe), expected)
