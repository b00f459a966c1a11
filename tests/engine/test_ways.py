"""Every way of running: compiled, offloaded, half precision, adapters loaded, loops of one's own."""

from __future__ import annotations

from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

import controlkit as ck
from controlkit.errors import NotApplicable, ParameterError
from tests import tiny
from tests.engine.probe import Probe
from tests.engine.test_composition import call, phi, picture


def _controls(family: str = "sd1") -> list[Any]:
    return [
        tiny.controlnet(family).on(picture(1), end=0.7),  # type: ignore[arg-type]
        tiny.t2i_adapter(family).on(picture(2), scale=0.5),  # type: ignore[arg-type]
        ck.Guidance(phi, torch.zeros(1, 4, 8, 8), scale=0.02),
    ]


def _reference() -> Tensor:
    pipe = tiny.pipeline("sd1")
    with ck.attach(pipe, *_controls()):
        return call(pipe)


@pytest.mark.parametrize("way", ["torch.compile", "unet.compile"])
def test_compiled_unets_are_controlled(way: str) -> None:
    pipe = tiny.pipeline("sd1")
    if way == "torch.compile":
        pipe.unet = torch.compile(pipe.unet, backend="eager")
    else:
        pipe.unet.compile(backend="eager")
    plain = call(pipe)
    with ck.attach(pipe, *_controls()):
        controlled = call(pipe)
    torch.testing.assert_close(controlled, _reference(), rtol=1e-4, atol=1e-4)
    assert torch.equal(call(pipe), plain)


def test_offloaded_unets_are_controlled() -> None:
    accelerate = pytest.importorskip("accelerate")
    pipe = tiny.pipeline("sd1")
    accelerate.cpu_offload(pipe.unet, execution_device=torch.device("cpu"))
    assert next(pipe.unet.parameters()).is_meta
    with ck.attach(pipe, *_controls()):
        assert torch.equal(call(pipe), _reference())


def test_offloaded_modules_are_left_to_their_hooks() -> None:
    accelerate = pytest.importorskip("accelerate")
    pipe, net = tiny.pipeline("sd1"), tiny.controlnet("sd1")
    with ck.attach(pipe, net.on(picture(1))):
        expected = call(pipe)
    accelerate.cpu_offload(net, execution_device=torch.device("cpu"))
    with ck.attach(pipe, net.on(picture(1))):
        assert torch.equal(call(pipe), expected)


def test_lora_and_ip_adapter_stay_in_force() -> None:
    from peft import LoraConfig

    pipe = tiny.pipeline("sd1")
    pipe.unet.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False))
    with_lora = call(pipe)
    _load_ip_adapter(pipe)
    embeds = [torch.ones(2, 1, 16)]
    plain = call(pipe, ip_adapter_image_embeds=embeds)
    assert not torch.equal(plain, with_lora)
    for control in (*_controls(), Probe(frozenset(("tokens",)))):
        with ck.attach(pipe, control):
            assert not torch.equal(call(pipe, ip_adapter_image_embeds=embeds), plain)
    assert torch.equal(call(pipe, ip_adapter_image_embeds=embeds), plain)


def _load_ip_adapter(pipe: Any) -> None:
    """A tiny IP-Adapter of random weights, in the published key layout."""
    from diffusers.models.attention_processor import Attention

    generator = torch.Generator().manual_seed(0)
    attention: list[Any] = [
        module
        for name, module in pipe.unet.named_modules()
        if isinstance(module, Attention) and name.endswith("attn2")
    ]
    weights: dict[str, Tensor] = {}
    for index, module in enumerate(attention):
        for key in ("to_k_ip", "to_v_ip"):
            shape = (module.to_k.weight.shape[0], 768)
            weights[f"{2 * index + 1}.{key}.weight"] = torch.randn(shape, generator=generator) * 0.05
    projection = {
        "proj.weight": torch.randn(768 * 4, 16, generator=generator) * 0.1,
        "proj.bias": torch.zeros(768 * 4),
        "norm.weight": torch.ones(768),
        "norm.bias": torch.zeros(768),
    }
    pipe.unet._load_ip_adapter_weights([{"image_proj": projection, "ip_adapter": weights}])
    pipe.set_ip_adapter_scale(1.0)


@pytest.mark.parametrize("module_dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_half_precision_on_either_side(dtype: torch.dtype, module_dtype: torch.dtype) -> None:
    pipe = tiny.pipeline("sd1").to(dtype)
    net = tiny.controlnet("sd1").to(module_dtype)
    adapter = tiny.t2i_adapter("sd1").to(module_dtype)
    guidance = ck.Guidance(phi, torch.zeros(1, 4, 8, 8), scale=0.02)
    with ck.attach(pipe, net.on(picture(1), end=0.7), adapter.on(picture(2), scale=0.5), guidance) as run:
        out = call(pipe)
    assert out.dtype == dtype
    reference = _reference()
    error = (out.float() - reference).abs().mean() / reference.abs().mean()
    assert error < (0.02 if dtype == torch.float32 else 0.1)
    if dtype != module_dtype:
        assert any("computes in" in note for note in run.report().rows[0].notes)


def test_dynamic_guidance_switched_off_midway() -> None:
    pipe, probe = tiny.pipeline("sd1"), Probe()

    def off(pipe: Any, index: int, _t: Any, values: dict[str, Any]) -> dict[str, Any]:
        if index == 1:
            values["prompt_embeds"] = values["prompt_embeds"].chunk(2)[-1]
            pipe._guidance_scale = 0.0
        return values

    with ck.attach(pipe, probe, *_controls()):
        call(pipe, callback_on_step_end=off, callback_on_step_end_tensor_inputs=["prompt_embeds"])
    assert [step.branches for step in probe.steps] == [("uncond", "cond")] * 2 + [("cond",)] * 2


def test_odd_sizes_and_rectangles() -> None:
    for height, width in ((72, 104), (40, 64)):
        for family in ("sd1", "sdxl"):
            pipe = tiny.pipeline(family)
            for module in (tiny.controlnet(family), tiny.t2i_adapter(family)):
                with ck.attach(pipe, module.on(picture(1))) as run:
                    out = call(pipe, height=height, width=width, num_inference_steps=1)
                assert out.shape[-2:] == (height // 8, width // 8)
                assert any(f"{height}x{width}" in note for note in run.report().rows[0].notes)


# --- a loop of one's own ----------------------------------------------------------------------------------


def _loop(unet: Any, scheduler: Any, way: str, run: Any = None) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(2, 5, 768, generator=generator)
    scheduler.set_timesteps(4)
    x = torch.randn(1, 4, 8, 8, generator=generator) * scheduler.init_noise_sigma
    with torch.no_grad():
        for t in scheduler.timesteps:
            scaled = scheduler.scale_model_input(x, t)
            if way == "batched":
                uncond, cond = unet(torch.cat([scaled] * 2), t, tokens, return_dict=False)[0].chunk(2)
            else:
                halves = []
                for branch, row in zip(("uncond", "cond"), tokens.split(1), strict=True):
                    if run is not None:
                        run.branches = (branch,)
                    halves.append(unet(scaled, t, row).sample)
                uncond, cond = halves
            x = scheduler.step(uncond + 5 * (cond - uncond), t, x).prev_sample
    return x


@pytest.mark.parametrize("mode", ["balanced", "control"])
@pytest.mark.parametrize("scheduler", [diffusers.DDIMScheduler, diffusers.EulerDiscreteScheduler])
def test_a_bare_unet_batched_or_half_by_half(scheduler: Any, mode: str) -> None:
    unet = tiny.unet("sd1")
    clock = scheduler.from_config(tiny.scheduler().config)
    controls = [
        tiny.controlnet("sd1").on(picture(1), end=0.5, mode=mode),  # type: ignore[arg-type]
        tiny.t2i_adapter("sd1").on(picture(2), start=0.25),
        ck.Guidance(phi, torch.zeros(1, 4, 8, 8), scale=0.02),
    ]
    with ck.attach(unet, *controls, scheduler=clock, branches=("uncond", "cond")) as run:
        batched = _loop(unet, clock, "batched")
    assert [row.applied for row in run.report().rows] == [2, 3, 4]
    with ck.attach(unet, *controls, scheduler=clock, branches=("uncond",)) as run:
        sequential = _loop(unet, clock, "half by half", run)
    assert run.report().rows[2].steps == 8
    torch.testing.assert_close(sequential, batched, rtol=0, atol=1e-5 * float(batched.abs().max()))


def test_a_bare_unet_with_a_number_of_steps_only() -> None:
    unet, clock = tiny.unet("sd1"), tiny.scheduler()
    control = tiny.controlnet("sd1").on(picture(1), end=0.5)
    with ck.attach(unet, control, num_steps=4) as run:
        first = _loop(unet, clock, "batched")
        second = _loop(unet, clock, "batched")
    assert torch.equal(first, second)
    row = run.report().rows[0]
    assert (row.runs, row.applied, row.skipped) == (2, 4, 4)
    with ck.attach(unet, control, num_steps=2), pytest.raises(ParameterError, match="at most 2"):
        _loop(unet, clock, "batched")


def test_a_bare_unet_refuses_what_it_cannot_place() -> None:
    unet, net = tiny.unet("sd1"), tiny.controlnet("sd1")
    with pytest.raises(ParameterError, match="scheduler="):
        ck.attach(unet, net.on(picture(1), end=0.5))
    with pytest.raises(ParameterError, match="branches="):
        ck.attach(unet, net.on(picture(1), mode="control"))
    with pytest.raises(NotApplicable, match="noise level"):
        ck.attach(unet, ck.Guidance(phi, 0.0))
    with ck.attach(unet, net.on(picture(1))):
        _loop(unet, tiny.scheduler(), "batched")


def test_extra_tokens_reach_the_unet_but_not_the_controlnets() -> None:
    pipe, net = tiny.pipeline("sd1"), tiny.controlnet("sd1")
    seen: dict[str, int] = {}
    net.register_forward_pre_hook(lambda _m, args: seen.__setitem__("net", args[2].shape[1]))
    probe = Probe(frozenset(("tokens",)))
    with ck.attach(pipe, probe), ck.attach(pipe, net.on(picture(1))):
        pipe.unet.register_forward_pre_hook(
            lambda _m, _a, kwargs: seen.__setitem__("unet", kwargs["encoder_hidden_states"].shape[1]),
            with_kwargs=True,
        )
        call(pipe)
    assert seen == {"net": tiny.TOKENS, "unet": tiny.TOKENS + 4}


def test_guidance_rescale_is_refused_with_guidance() -> None:
    pipe = tiny.pipeline("sd1")
    guidance = ck.Guidance(phi, 0.0)
    with pytest.raises(NotApplicable, match="guidance_rescale"), ck.attach(pipe, guidance):
        call(pipe, guidance_rescale=0.5)
    with ck.attach(pipe, tiny.controlnet("sd1").on(picture(1))):
        call(pipe, guidance_rescale=0.5)
