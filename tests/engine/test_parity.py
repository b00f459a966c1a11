"""`attach` on the plain pipeline gives what diffusers' own control pipelines give.

The tables are the claim: every row is a pipeline that diffusers has for the case. Each is compared twice.
With diffusers as it is: to the bit where each map is encoded in the same batch, within 1e-5 of the largest
value where ours is encoded once for both halves of classifier-free guidance. With diffusers encoding its
maps as we do (`_EncodesOnce`), everything else untouched: always to the bit, so that nothing but that
rounding is different. Zero convolutions have random weights (`tests/tiny.py`), and each test also checks
that the control changed the picture.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor, nn

import controlkit as ck
from tests import tiny

STEPS = 4
PIXELS = 64

SCHEDULERS: dict[str, tuple[type, dict[str, Any]]] = {
    "ddim": (diffusers.DDIMScheduler, {}),
    "euler": (diffusers.EulerDiscreteScheduler, {}),
    "dpm++2m": (diffusers.DPMSolverMultistepScheduler, {}),
    "unipc": (diffusers.UniPCMultistepScheduler, {}),
    "lcm": (diffusers.LCMScheduler, {}),
    "heun": (diffusers.HeunDiscreteScheduler, {}),
}

# task: (plain pipeline, diffusers' ControlNet pipeline, extra inputs)
TASKS: dict[str, tuple[str, str, str]] = {
    "sd1 text": ("StableDiffusionPipeline", "StableDiffusionControlNetPipeline", "text"),
    "sd1 image": ("StableDiffusionImg2ImgPipeline", "StableDiffusionControlNetImg2ImgPipeline", "image"),
    "sd1 inpaint": ("StableDiffusionInpaintPipeline", "StableDiffusionControlNetInpaintPipeline", "inpaint"),
    "sd1 inpaint 9ch": (
        "StableDiffusionInpaintPipeline",
        "StableDiffusionControlNetInpaintPipeline",
        "inpaint",
    ),
    "sdxl text": ("StableDiffusionXLPipeline", "StableDiffusionXLControlNetPipeline", "text"),
    "sdxl image": ("StableDiffusionXLImg2ImgPipeline", "StableDiffusionXLControlNetImg2ImgPipeline", "image"),
    "sdxl inpaint": (
        "StableDiffusionXLInpaintPipeline",
        "StableDiffusionXLControlNetInpaintPipeline",
        "inpaint",
    ),
}

# variant: (per-control binding, diffusers' arguments, arguments of both)
Variant = tuple[list[dict[str, Any]], dict[str, Any], dict[str, Any]]
VARIANTS: dict[str, Variant] = {
    "window": (
        [{"scale": 0.7, "start": 0.25, "end": 0.75}],
        {"controlnet_conditioning_scale": 0.7, "control_guidance_start": 0.25, "control_guidance_end": 0.75},
        {},
    ),
    "two nets": (
        [{"scale": 0.5, "end": 0.5}, {"scale": 1.5, "start": 0.2}],
        {
            "controlnet_conditioning_scale": [0.5, 1.5],
            "control_guidance_start": [0.0, 0.2],
            "control_guidance_end": [0.5, 1.0],
        },
        {},
    ),
    "guess mode": (
        [{"scale": 0.8, "mode": "control"}],
        {"controlnet_conditioning_scale": 0.8, "guess_mode": True},
        {},
    ),
    "without guidance": ([{"scale": 0.9}], {"controlnet_conditioning_scale": 0.9}, {"guidance_scale": 1.0}),
    "batch": (
        [{"scale": 1.0}],
        {"controlnet_conditioning_scale": 1.0},
        {"prompt": ["a red cube", "two cones"], "num_images_per_prompt": 2},
    ),
}


@cache
def _parts(task: str) -> dict[str, Any]:
    family = "sdxl" if task.startswith("sdxl") else "sd1"
    parts = tiny.components(family)
    if "9ch" in task:
        parts["unet"] = tiny.unet(family, in_channels=9)
    return parts


def _build(cls: str, parts: dict[str, Any], scheduler: str, **more: Any) -> Any:
    kind, changes = SCHEDULERS[scheduler]
    parts = {**parts, "scheduler": kind.from_config(parts["scheduler"].config, **changes)}
    if "XL" in cls and "Adapter" not in cls:
        more["add_watermarker"] = False
    pipe = getattr(diffusers, cls)(**parts, **more)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _picture(seed: int, rows: int = 1) -> Tensor:
    return torch.rand(rows, 3, PIXELS, PIXELS, generator=torch.Generator().manual_seed(seed))


def _task_inputs(kind: str) -> dict[str, Any]:
    if kind == "text":
        return {"height": PIXELS, "width": PIXELS}
    inputs: dict[str, Any] = {"image": _picture(11), "strength": 0.75}
    if kind == "inpaint":
        mask = torch.zeros(1, 1, PIXELS, PIXELS)
        mask[..., 16:48, 8:40] = 1
        inputs |= {"mask_image": mask, "height": PIXELS, "width": PIXELS}
    return inputs


def _call(pipe: Any, **arguments: Any) -> Tensor:
    settings = {
        "prompt": "a red cube",
        "negative_prompt": None,
        "guidance_scale": 5.0,
        "num_inference_steps": STEPS,
        "output_type": "latent",
        "generator": torch.Generator().manual_seed(3),
    }
    return pipe(**{**settings, **arguments}).images


class _EncodesOnce(nn.Module):
    """Gives diffusers' hint encoder each distinct map once, in the order that ours gets them."""

    def __init__(self, encoder: nn.Module, maps: Tensor) -> None:
        super().__init__()
        self.encoder, self.maps = encoder, maps

    def forward(self, hint: Tensor) -> Tensor:
        rows = [next(i for i, known in enumerate(self.maps) if torch.equal(known, row)) for row in hint]
        return self.encoder(self.maps)[rows]


def _twin(module: ck.ControlNet, once: Tensor | None = None) -> Any:
    theirs = diffusers.ControlNetModel.from_config(module.config.to_dict())
    theirs.load_state_dict(module.state_dict())
    if once is not None:
        theirs.controlnet_cond_embedding = _EncodesOnce(theirs.controlnet_cond_embedding, once)
    return theirs.eval()


def _compare(task: str, scheduler: str, variant: Variant) -> tuple[Tensor, Tensor, Tensor]:
    """(ours, diffusers', diffusers' with maps encoded once)."""
    plain_cls, control_cls, kind = TASKS[task]
    bindings, theirs, shared = variant
    shared = {"prompt": "a red cube", **shared}
    rows = len(shared["prompt"]) if isinstance(shared["prompt"], list) else 1
    family = "sdxl" if task.startswith("sdxl") else "sd1"
    nets = [tiny.controlnet(family, seed=10 * i) for i, _ in enumerate(bindings)]
    maps = [_picture(20 + i, rows) for i, _ in enumerate(bindings)]
    task_inputs = _task_inputs(kind)

    hints = maps if len(maps) > 1 else maps[0]
    parts = _parts(task)
    key = "image" if kind == "text" else "control_image"
    expected: list[Tensor] = []
    for once in (False, True):
        twins = [_twin(net, map_ if once else None) for net, map_ in zip(nets, maps, strict=True)]
        peer = _build(control_cls, parts, scheduler, controlnet=twins if len(twins) > 1 else twins[0])
        expected.append(_call(peer, **{**task_inputs, **theirs, **shared, key: hints}))

    pipe = _build(plain_cls, parts, scheduler)
    controls = [net.on(map_, **binding) for net, map_, binding in zip(nets, maps, bindings, strict=True)]
    with ck.attach(pipe, *controls) as run:
        ours = _call(pipe, **task_inputs, **shared)
    assert all(row.norm is not None and row.norm > 0.01 for row in run.report().rows)
    return ours, expected[0], expected[1]


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("task", TASKS)
def test_controlnet_equals_diffusers_on_every_task_and_scheduler(task: str, scheduler: str) -> None:
    ours, expected, encoded_once = _compare(task, scheduler, VARIANTS["window"])
    assert torch.equal(ours, encoded_once)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("variant", [name for name in VARIANTS if name != "window"])
@pytest.mark.parametrize("task", TASKS)
def test_controlnet_equals_diffusers_in_every_variant(task: str, variant: str) -> None:
    ours, expected, encoded_once = _compare(task, "euler", VARIANTS[variant])
    assert torch.equal(ours, encoded_once)
    if variant in ("guess mode", "without guidance"):
        assert torch.equal(ours, expected)
    else:
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


def _adapter_twin(module: ck.T2IAdapter) -> Any:
    theirs = diffusers.T2IAdapter.from_config(module.config.to_dict())
    theirs.load_state_dict(module.state_dict())
    return theirs.eval()


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("count", [1, 2])
def test_t2i_adapter_equals_diffusers(scheduler: str, count: int) -> None:
    adapters = [tiny.t2i_adapter("sd1", seed=10 * i) for i in range(count)]
    maps = [_picture(30 + i) for i in range(count)]
    parts = _parts("sd1 text")
    twins = [_adapter_twin(adapter) for adapter in adapters]
    scales = [0.8, 1.3][:count]
    peer = _build(
        "StableDiffusionAdapterPipeline", parts, scheduler, adapter=twins if count > 1 else twins[0]
    )
    size = {"height": PIXELS, "width": PIXELS}
    expected = _call(
        peer,
        image=maps if count > 1 else maps[0],
        adapter_conditioning_scale=scales if count > 1 else scales[0],
        **size,
    )
    pipe = _build("StableDiffusionPipeline", parts, scheduler)
    controls = [a.on(m, scale=s) for a, m, s in zip(adapters, maps, scales, strict=True)]
    with ck.attach(pipe, *controls):
        ours = _call(pipe, **size)
    assert torch.equal(ours, expected)
    assert (ours - _call(pipe, **size)).abs().max() > 1e-3


@pytest.mark.parametrize("fraction", [1.0, 0.5])
def test_t2i_adapter_xl_equals_diffusers(fraction: float) -> None:
    adapter, parts, map_ = tiny.t2i_adapter("sdxl"), _parts("sdxl text"), _picture(30)
    size = {"height": PIXELS, "width": PIXELS}
    peer = _build("StableDiffusionXLAdapterPipeline", parts, "euler", adapter=_adapter_twin(adapter))
    expected = _call(
        peer, image=map_, adapter_conditioning_scale=0.8, adapter_conditioning_factor=fraction, **size
    )
    pipe = _build("StableDiffusionXLPipeline", parts, "euler")
    with ck.attach(pipe, adapter.on(map_, scale=0.8, end=fraction)):
        ours = _call(pipe, **size)
    assert torch.equal(ours, expected)
    assert (ours - _call(pipe, **size)).abs().max() > 1e-3


# --- where diffusers is wrong, the right answer -------------------------------------------------------


def test_adapter_batches_follow_the_prompts() -> None:
    """diffusers repeats features A, B, A, B beside prompts A, A, B, B; each must keep its own."""
    adapter, pipe = tiny.t2i_adapter("sd1"), _build("StableDiffusionPipeline", _parts("sd1 text"), "ddim")
    maps = _picture(40, rows=2)
    prompts = ["a red cube", "two cones"]
    noise = torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    size = {"height": PIXELS, "width": PIXELS}
    with ck.attach(pipe, adapter.on(maps)):
        together = _call(pipe, prompt=prompts, num_images_per_prompt=2, latents=noise, **size)
    for i, prompt in enumerate(prompts):
        with ck.attach(pipe, adapter.on(maps[i : i + 1])):
            rows = slice(2 * i, 2 * i + 2)
            alone = _call(pipe, prompt=prompt, num_images_per_prompt=2, latents=noise[rows], **size)
        torch.testing.assert_close(together[rows], alone, rtol=0, atol=1e-5 * float(alone.abs().max()))


def test_one_adapter_map_serves_two_prompts() -> None:
    """diffusers raises a size error for one map and two prompts."""
    adapter, pipe = tiny.t2i_adapter("sd1"), _build("StableDiffusionPipeline", _parts("sd1 text"), "ddim")
    with ck.attach(pipe, adapter.on(_picture(40))):
        out = _call(pipe, prompt=["a", "b"], height=PIXELS, width=PIXELS)
    assert out.shape[0] == 2


def _residual_calls(pipe: Any, *controls: Any) -> list[tuple[Tensor, ...]]:
    """The residuals that the U-Net was given at each call."""
    seen: list[tuple[Tensor, ...]] = []

    def look(_unet: Any, _args: Any, kwargs: dict[str, Any]) -> None:
        seen.append((*kwargs["down_block_additional_residuals"], kwargs["mid_block_additional_residual"]))

    with ck.attach(pipe, *controls):
        handle = pipe.unet.register_forward_pre_hook(look, with_kwargs=True)
        try:
            _call(pipe, height=PIXELS, width=PIXELS)
        finally:
            handle.remove()
    return seen


def _forward_counts(net: Any, run: Callable[[], object]) -> int:
    calls: list[int] = []
    handle = net.register_forward_pre_hook(lambda *_: calls.append(1))
    try:
        run()
    finally:
        handle.remove()
    return len(calls)


@pytest.mark.parametrize("first", [True, False])
def test_a_pooled_net_works_beside_another_and_on_the_conditional_half_alone(first: bool) -> None:
    """diffusers crashes with a pooled net first, and runs it on both halves when it is second."""
    pipe = _build("StableDiffusionPipeline", _parts("sd1 text"), "ddim")
    pooled = tiny.controlnet("sd1", seed=50, global_pool_conditions=True).on(_picture(50))
    edges = tiny.controlnet("sd1", seed=60).on(_picture(60))
    (both, *_), (only_pooled, *_), (only_edges, *_) = (
        _residual_calls(pipe, *controls)
        for controls in ((pooled, edges) if first else (edges, pooled), (pooled,), (edges,))
    )
    for together, a, b in zip(both, only_pooled, only_edges, strict=True):
        uncond, cond = a.chunk(2)
        assert not uncond.any()
        assert cond.any()
        torch.testing.assert_close(together, a + b)


def test_scale_zero_runs_nothing_and_changes_nothing() -> None:
    """diffusers runs a ControlNet of scale 0 at every step."""
    pipe = _build("StableDiffusionPipeline", _parts("sd1 text"), "ddim")
    net = tiny.controlnet("sd1")
    plain = _call(pipe, height=PIXELS, width=PIXELS)
    pictures: list[Tensor] = []

    def controlled() -> None:
        with ck.attach(pipe, net.on(_picture(20), scale=0)):
            pictures.append(_call(pipe, height=PIXELS, width=PIXELS))

    assert _forward_counts(net, controlled) == 0
    assert torch.equal(pictures[0], plain)


def test_a_window_of_a_fifth_of_ten_steps_runs_the_net_twice_and_encodes_once() -> None:
    """diffusers runs it ten times and encodes ten times."""
    pipe = _build("StableDiffusionPipeline", _parts("sd1 text"), "ddim")
    net = tiny.controlnet("sd1")

    def controlled() -> None:
        with ck.attach(pipe, net.on(_picture(20), end=0.2)) as run:
            _call(pipe, num_inference_steps=10, height=PIXELS, width=PIXELS)
        assert run.report().rows[0].counts == {"hint": 1, "forward": 2}

    encodings: list[int] = []
    assert (
        _forward_counts(
            net,
            lambda: encodings.append(_forward_counts(net.controlnet_cond_embedding, controlled)),
        )
        == 2
    )
    assert encodings == [1]
