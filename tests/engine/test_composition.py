"""Kinds together: what diffusers cannot do, against the sum written out by hand."""

from __future__ import annotations

import math
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

import controlkit as ck
from tests import tiny

PIXELS = 64


def picture(seed: int, rows: int = 1) -> Tensor:
    return torch.rand(rows, 3, PIXELS, PIXELS, generator=torch.Generator().manual_seed(seed))


def phi(x: Tensor, y: Tensor, t: Tensor) -> Tensor:
    """A log-probability whose gradient is neither constant nor small."""
    return -0.5 * ((x - y) ** 2).flatten(1).sum(1) * (1.0 + t / 1000.0)


class ByHand:
    """A U-Net call with ControlNet, adapter and guidance written out, in place of the pipeline's own."""

    def __init__(self, pipe: Any, net: ck.ControlNet, adapter: ck.T2IAdapter) -> None:
        self.unet, self.scheduler = pipe.unet, pipe.scheduler
        self.net, self.adapter = net, adapter
        self.edges, self.depth, self.wish = picture(1), picture(2), torch.full((1, 4, 8, 8), 0.5)
        self.original = pipe.unet.forward
        self.entry = -1

    def __call__(self, sample: Tensor, timestep: Tensor, **kwargs: Any) -> Any:
        self.entry += 1
        noisy, tokens = sample[:, :4], kwargs["encoder_hidden_states"]
        residuals = self.net(noisy, timestep, tokens, self.edges.repeat(2, 1, 1, 1))
        features = self.adapter(self.depth.repeat(2, 1, 1, 1))
        kwargs["down_block_additional_residuals"] = tuple(0.7 * skip for skip in residuals.skips)
        kwargs["mid_block_additional_residual"] = 0.7 * residuals.mid
        kwargs["down_intrablock_additional_residuals"] = [0.4 * feature for feature in features]
        (noise, *_) = self.original(sample, timestep, **kwargs)
        alpha_bar = 1 / (1 + float(self.scheduler.sigmas[self.scheduler.step_index]) ** 2)
        with torch.enable_grad():
            x = noisy[:1].detach().clone().requires_grad_()
            (gradient,) = torch.autograd.grad(phi(x, self.wish, timestep.reshape(1)).sum(), x)
        return (noise - math.sqrt(1 - alpha_bar) * 0.05 * gradient,)


TASKS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "text": ("StableDiffusionPipeline", {}, {}),
    "image": ("StableDiffusionImg2ImgPipeline", {"image": picture(9), "strength": 0.75}, {}),
    "inpaint": (
        "StableDiffusionInpaintPipeline",
        {"image": picture(9), "mask_image": torch.ones(1, 1, PIXELS, PIXELS), "strength": 0.75},
        {},
    ),
    "inpaint 9ch": (
        "StableDiffusionInpaintPipeline",
        {"image": picture(9), "mask_image": torch.ones(1, 1, PIXELS, PIXELS), "strength": 0.75},
        {"in_channels": 9},
    ),
}


def call(pipe: Any, **arguments: Any) -> Tensor:
    settings = {
        "prompt": "a red cube",
        "guidance_scale": 5.0,
        "num_inference_steps": 4,
        "output_type": "latent",
        "generator": torch.Generator().manual_seed(3),
    }
    return pipe(**{**settings, **arguments}).images


@pytest.mark.parametrize("task", TASKS)
def test_three_kinds_together_equal_the_sum_by_hand(task: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cls, inputs, unet = TASKS[task]
    parts = {"unet": tiny.unet("sd1", **unet)}
    pipe = tiny.pipeline("sd1", cls=getattr(diffusers, cls), **parts)
    pipe.scheduler = diffusers.EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    net, adapter = tiny.controlnet("sd1"), tiny.t2i_adapter("sd1")
    hand = ByHand(pipe, net, adapter)
    with ck.attach(
        pipe,
        net.on(hand.edges, scale=0.7),
        adapter.on(hand.depth, scale=0.4),
        ck.Guidance(phi, hand.wish, scale=0.05),
    ) as run:
        ours = call(pipe, **inputs)
    assert [row.applied > 0 for row in run.report().rows] == [True] * 3
    with monkeypatch.context() as patch:
        patch.setattr(pipe.unet, "forward", hand)
        expected = call(pipe, **inputs)
    assert hand.entry >= 2
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
    assert (ours - call(pipe, **inputs)).abs().max() > 1e-2


def residuals_of(pipe: Any, *controls: ck.Control) -> dict[str, Any]:
    """What the U-Net was given at the first call."""
    seen: list[dict[str, Any]] = []

    def look(_unet: Any, _args: Any, kwargs: dict[str, Any]) -> None:
        copy = dict(kwargs)
        copy["down_intrablock_additional_residuals"] = tuple(
            kwargs.get("down_intrablock_additional_residuals") or ()
        )
        seen.append(copy)

    with ck.attach(pipe, *controls):
        handle = pipe.unet.register_forward_pre_hook(look, with_kwargs=True)
        try:
            call(pipe, num_inference_steps=1)
        finally:
            handle.remove()
    return seen[0]


def test_region_masks_give_each_region_its_own_control() -> None:
    pipe = tiny.pipeline("sd1")
    left = torch.zeros(1, 1, PIXELS, PIXELS)
    left[..., : PIXELS // 2] = 1
    nets = [tiny.controlnet("sd1", seed=s) for s in (1, 2)]
    maps = [picture(s) for s in (1, 2)]
    a, b = (
        residuals_of(pipe, net.on(map_))["down_block_additional_residuals"]
        for net, map_ in zip(nets, maps, strict=True)
    )
    both = residuals_of(pipe, nets[0].on(maps[0], mask=left), nets[1].on(maps[1], mask=1 - left))
    for mixed, one, other in zip(both["down_block_additional_residuals"], a, b, strict=True):
        half = mixed.shape[-1] // 2
        if half:
            assert torch.equal(mixed[..., :half], one[..., :half])
            assert torch.equal(mixed[..., half:], other[..., half:])
    adapter = tiny.t2i_adapter("sd1")
    masked = residuals_of(pipe, adapter.on(maps[0], mask=left))["down_intrablock_additional_residuals"]
    full = residuals_of(pipe, adapter.on(maps[0]))["down_intrablock_additional_residuals"]
    assert torch.equal(masked[0][..., :4], full[0][..., :4])
    assert not masked[0][..., 4:].any()


def test_a_mask_confines_guidance() -> None:
    pipe = tiny.pipeline("sd1")
    left = torch.zeros(1, 1, PIXELS, PIXELS)
    left[..., : PIXELS // 2] = 1
    wish = torch.ones(1, 4, 8, 8)
    plain = call(pipe, num_inference_steps=1)
    with ck.attach(pipe, ck.Guidance(phi, wish, scale=0.1, mask=left)):
        guided = call(pipe, num_inference_steps=1)
    assert torch.equal(guided[..., 4:], plain[..., 4:])
    assert (guided - plain)[..., :4].abs().min() > 0


@pytest.mark.parametrize("kind", ["controlnet", "t2i"])
def test_block_scales_and_modes_weigh_each_residual(kind: str) -> None:
    pipe = tiny.pipeline("sd1")
    module = tiny.controlnet("sd1") if kind == "controlnet" else tiny.t2i_adapter("sd1")

    def parts(**binding: Any) -> tuple[Tensor, ...]:
        given = residuals_of(pipe, module.on(picture(1), **binding))
        if kind == "t2i":
            return given["down_intrablock_additional_residuals"]
        return (*given["down_block_additional_residuals"], given["mid_block_additional_residual"])

    full = parts()
    factors = [0.0, 0.5, *[1.0] * (len(full) - 3), -2.0]
    for scaled, whole, factor in zip(parts(block_scales=factors), full, factors, strict=True):
        torch.testing.assert_close(scaled, whole * factor)
    depth = 8  # skip connections of the tiny U-Net
    positions = [1, 3, 5, 7] if kind == "t2i" else list(range(depth + 1))
    positions[:1] = [1] if kind == "t2i" else [0]
    for scaled, whole, position in zip(parts(mode="prompt"), full, positions, strict=True):
        torch.testing.assert_close(scaled, whole * 0.825 ** (depth - position))
    ladder = torch.logspace(-1, 0, depth + 1)
    for scaled, whole, position in zip(parts(mode="control"), full, positions, strict=True):
        uncond, cond = scaled.chunk(2)
        assert not uncond.any()
        torch.testing.assert_close(cond, whole[-cond.shape[0] :] * ladder[position])
    with pytest.raises(ck.BatchMismatch, match=f"needed {len(full)}"):
        ck.attach(pipe, module.on(picture(1), block_scales=[1.0] * (len(full) + 1)))


def test_scale_curves_follow_the_fraction_done() -> None:
    pipe, net = tiny.pipeline("sd1"), tiny.controlnet("sd1")
    norms: list[tuple[float, ...]] = []
    for scale in (1.0, lambda done: 1.0 - done, [(0, 1.0), (1, 0.0)]):
        with ck.attach(pipe, net.on(picture(1), scale=scale)) as run:
            call(pipe, num_inference_steps=4, guidance_scale=1.0)
        norms.append(run.report().rows[0].norms)
    assert norms[1] == norms[2]
    first, curved = norms[0], norms[1]
    assert curved[0] == first[0]  # same latents at the first step, so the ratio is exact there only
    assert len(curved) == 4
    with ck.attach(pipe, net.on(picture(1), scale=[(0, 0.0), (0.5, 1.0)])) as run:
        call(pipe, num_inference_steps=4)
    row = run.report().rows[0]
    assert (row.applied, row.skipped, row.scale) == (3, 1, "0.5 .. 1")


def test_nested_attach_equals_attaching_together_in_any_order_of_leaving() -> None:
    pipe = tiny.pipeline("sd1")
    a, b = tiny.controlnet("sd1", seed=1).on(picture(1)), tiny.t2i_adapter("sd1").on(picture(2))
    plain = call(pipe)
    with ck.attach(pipe, a, b):
        together = call(pipe)
    outer = ck.attach(pipe, a)
    inner = ck.attach(pipe, b)
    assert torch.equal(call(pipe), together)
    outer.detach()
    with ck.attach(pipe, b) as another:
        call(pipe)
    assert not another.attached
    only_b = call(pipe)
    inner.detach()
    inner.detach()
    assert not torch.equal(only_b, together)
    assert torch.equal(call(pipe), plain)


def test_controls_add_to_what_a_control_pipeline_already_adds() -> None:
    parts = tiny.components("sd1")
    net, extra = tiny.controlnet("sd1", seed=1), tiny.controlnet("sd1", seed=2)
    theirs = diffusers.ControlNetModel.from_config(net.config.to_dict())
    theirs.load_state_dict(net.state_dict())
    peer = diffusers.StableDiffusionControlNetPipeline(**parts, controlnet=theirs.eval())
    peer.set_progress_bar_config(disable=True)
    with ck.attach(peer, extra.on(picture(2))):
        mixed = call(peer, guidance_scale=1.0, image=picture(1))
    pipe = tiny.pipeline("sd1")
    with ck.attach(pipe, net.on(picture(1)), extra.on(picture(2))):
        ours = call(pipe, guidance_scale=1.0, height=PIXELS, width=PIXELS)
    torch.testing.assert_close(mixed, ours, rtol=0, atol=1e-5 * float(ours.abs().max()))


def test_the_report_says_what_happened() -> None:
    pipe, net = tiny.pipeline("sd1"), tiny.controlnet("sd1")
    with ck.attach(pipe, net.on(picture(1)[..., :32, :], end=0.5)) as run:
        call(pipe, num_inference_steps=4)
        call(pipe, num_inference_steps=4)
    row = run.report().rows[0]
    assert (row.runs, row.steps, row.applied, row.skipped) == (2, 8, 4, 4)
    assert row.counts == {"hint": 2, "forward": 4}
    assert any("32x64" in note and "64x64" in note for note in row.notes)
    text = str(run.report())
    assert "4 of 8" in text
    assert "resized" in text


def test_an_attach_without_controls_changes_nothing() -> None:
    pipe = tiny.pipeline("sd1")
    plain = call(pipe)
    with ck.attach(pipe) as run:
        assert torch.equal(call(pipe), plain)
    assert str(run.report()) == "no controls attached"
    assert not pipe.unet._forward_pre_hooks
