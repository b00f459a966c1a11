"""What cannot be added inside cross-attention is refused, and whatever happens, nothing stays there."""

from __future__ import annotations

import signal
import time
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

import controlkit as ck
from controlkit.contracts import ExtraAttention
from controlkit.errors import ControlFailed, NonFiniteAtStep, NotApplicable
from tests import tiny
from tests.adapters.ip_adapter import peers
from tests.engine.attending import Stranger, adapter, bound, draw
from tests.engine.test_composition import call, picture
from tests.engine.test_undo import Failing, fingerprint, unchanged

# --- what is refused ----------------------------------------------------------------------------------


def test_unets_without_such_layers_are_refused() -> None:
    kinds = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    simple = {
        "down_block_types": ("DownBlock2D", "SimpleCrossAttnDownBlock2D"),
        "up_block_types": ("SimpleCrossAttnUpBlock2D", "UpBlock2D"),
        "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
    }
    common = {"block_out_channels": (16, 32), "norm_num_groups": 8, "layers_per_block": 1, "sample_size": 8}
    control = bound(tiny.pipeline("sd1"))
    none = diffusers.UNet2DConditionModel(**common, **kinds, mid_block_type=None)
    with pytest.raises(NotApplicable, match="has no cross-attention layers"):
        ck.attach(none, control)
    added = diffusers.UNet2DConditionModel(**common, **simple, attention_head_dim=8, cross_attention_dim=16)
    with pytest.raises(NotApplicable, match="pixels and tokens in one layer"):
        ck.attach(added, control)


@pytest.mark.parametrize("family", ["sd2", "sdxl"])
def test_another_base_is_refused(family: tiny.Family) -> None:
    """SD 2's layers are as wide as SD 1's: only the width of the tokens differs."""
    pipe = tiny.pipeline("sd1")
    other = tiny.pipeline(family)
    with unchanged(pipe), pytest.raises(ck.BaseMismatch, match=r"tokens (1024|2048) wide"):
        ck.attach(pipe, bound(other))


def test_soft_weights_are_refused() -> None:
    pipe = tiny.pipeline("sd1")
    with pytest.raises(NotApplicable, match="mode='prompt'"):
        ck.attach(pipe, bound(pipe, mode="prompt"))


@pytest.mark.parametrize("fault", ["number", "width", "rows", "values", "none"])
def test_keys_that_do_not_fit_are_refused_before_the_unet_runs(fault: str) -> None:
    pipe = tiny.pipeline("sd1")
    shapes = [(2, 3, m.inner_dim) for n, m in pipe.unet.named_modules() if n.endswith("attn2")]
    changed = {
        "number": shapes[:-1],
        "width": [(rows, n, width + 8) for rows, n, width in shapes],
        "rows": [(3, n, width) for _, n, width in shapes],
        "values": shapes,
        "none": [(2, 0, width) for _, _, width in shapes],
    }[fault]
    keys = tuple(draw(*shape) for shape in changed)
    values = tuple(key[:, :2] for key in keys) if fault == "values" else keys
    ran = Failing(0, ValueError())
    handle = pipe.unet.conv_in.register_forward_pre_hook(ran)
    control = Stranger(ExtraAttention(keys, values))
    with pytest.raises(ck.BaseMismatch, match="stranger"), ck.attach(pipe, control):
        call(pipe)
    handle.remove()
    assert ran.calls == 0


def test_a_region_where_pixels_are_merged_is_an_error() -> None:
    """As token merging does."""
    pipe = tiny.pipeline("sd1")
    block = pipe.unet.mid_block.attentions[0].transformer_blocks[0]
    whole = block.attn2.forward

    def merged(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return whole(x[:, ::2], *args, **kwargs).repeat_interleave(2, dim=1)[:, : x.shape[1]]

    block.attn2.forward = merged
    size = {"height": 128, "width": 128}
    with ck.attach(pipe, bound(pipe)):
        call(pipe, **size)
    mask = torch.ones(1, 1, 64, 64)
    with pytest.raises(NotApplicable, match="queries"), ck.attach(pipe, bound(pipe, mask=mask)):
        call(pipe, **size)


def test_not_finite_numbers_name_the_control_and_the_step() -> None:
    pipe = tiny.pipeline("sd1")
    module = adapter(pipe)
    with torch.no_grad():
        module.get_parameter("ip_adapter.9.to_v_ip.weight")[0] = float("nan")
    control = module.on(draw(1, peers.PROJECTED), start=0.5)
    with pytest.raises(NonFiniteAtStep, match=r"ip-adapter.* step 3 of 4"), ck.attach(pipe, control):
        call(pipe)


# --- what stays ---------------------------------------------------------------------------------------


def hooked(pipe: Any) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in pipe.unet.modules())


def test_hooks_are_there_only_while_such_a_control_is_attached() -> None:
    pipe = tiny.pipeline("sd1")
    before = fingerprint(pipe)
    with ck.attach(pipe, tiny.controlnet("sd1").on(picture(1))) as outer:
        call(pipe)
        assert hooked(pipe) == 2
        first = ck.attach(pipe, bound(pipe))
        second = ck.attach(pipe, bound(pipe, 1))
        call(pipe)
        assert hooked(pipe) == 22
        first.detach()
        assert hooked(pipe) == 22
        call(pipe)
        second.detach()
        assert hooked(pipe) == 2
        call(pipe)
    assert outer.report().rows[0].applied == 16
    assert fingerprint(pipe) == before


def _fail_in(place: str, pipe: Any, control: Any, failing: Failing) -> list[Any]:
    layers = [m for n, m in pipe.unet.named_modules() if n.endswith("attn2")]
    if place == "network":
        return [control.module.image_proj.register_forward_pre_hook(failing)]
    if place == "query":
        return [layer.to_q.register_forward_pre_hook(failing) for layer in layers]
    if place == "output":
        return [layer.to_out[1].register_forward_pre_hook(failing) for layer in layers]
    return [layer.to_out[0].register_forward_pre_hook(failing) for layer in layers]


@pytest.mark.parametrize("error", [ValueError("boom"), KeyboardInterrupt()], ids=repr)
@pytest.mark.parametrize(
    ("place", "at"),
    [("network", 1), ("query", 12), ("output", 12), ("addition", 1), ("addition", 12), ("addition", 40)],
)
def test_every_fault_point_leaves_the_pipeline_as_it_was(place: str, at: int, error: BaseException) -> None:
    pipe = tiny.pipeline("sd1")
    control = bound(pipe)
    failing = Failing(at, error)
    ours = place == "network" and isinstance(error, Exception)
    with unchanged(pipe):
        run = ck.attach(pipe, control, tiny.controlnet("sd1").on(picture(1)))
        handles = _fail_in(place, pipe, control, failing)
        with pytest.raises(ControlFailed if ours else type(error)), run:
            call(pipe)
        for handle in handles:
            handle.remove()
        assert failing.calls == at


def test_a_failed_run_does_not_disturb_the_next_one_in_the_same_block() -> None:
    pipe = tiny.pipeline("sd1")
    control = bound(pipe)
    with ck.attach(pipe, control):
        expected = call(pipe)
    failing = Failing(15, ValueError("once"))
    with ck.attach(pipe, control):
        handles = _fail_in("addition", pipe, control, failing)
        with pytest.raises(ValueError, match="once"):
            call(pipe)
        assert torch.equal(call(pipe), expected)
        for handle in handles:
            handle.remove()


def test_ctrl_c_at_any_moment() -> None:
    pipe = tiny.pipeline("sd1")
    controls = [bound(pipe), bound(pipe, 1, mask=torch.ones(1, 1, 64, 64))]
    started = time.perf_counter()
    with ck.attach(pipe, *controls):
        call(pipe, num_inference_steps=2)
    duration = time.perf_counter() - started
    interrupted = 0
    previous = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        with unchanged(pipe):
            for k in range(40):
                try:
                    signal.setitimer(signal.ITIMER_REAL, 1e-6 + duration * (k / 40) ** 2)
                    with ck.attach(pipe, *controls):
                        call(pipe, num_inference_steps=2)
                    signal.setitimer(signal.ITIMER_REAL, 0)
                except KeyboardInterrupt:
                    interrupted += 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    assert interrupted >= 20


def test_a_dropped_run_is_detached() -> None:
    pipe = tiny.pipeline("sd1")
    control = bound(pipe)
    with unchanged(pipe), pytest.warns(ck.ControlKitWarning, match="dropped"):
        ck.attach(pipe, control)
