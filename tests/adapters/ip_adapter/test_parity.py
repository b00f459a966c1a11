"""A bound IP-Adapter on a plain pipeline gives what diffusers' own ``load_ip_adapter`` gives, to the bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

import controlkit as ck
from tests import tiny
from tests.adapters.ip_adapter import peers
from tests.adapters.ip_adapter.peers import call, photo, pipeline, state, with_adapters
from tests.golden_cases import assert_equal, relative_error

FAMILIES: tuple[tiny.Family, ...] = ("sd1", "sd2", "sdxl")


def both(
    pipe: Any,
    states: list[dict[str, Tensor]],
    bind: Callable[[list[ck.IPAdapter]], list[Any]],
    scales: list[Any],
    theirs: dict[str, Any],
    **shared: Any,
) -> tuple[Tensor, Tensor]:
    """(ours, diffusers'), after checking that the adapters changed the picture."""
    plain = call(pipe, **shared)
    modules = [ck.load(weights) for weights in states]
    with ck.attach(pipe, *bind(modules)) as run:
        ours = call(pipe, **shared)
    assert all(row.norm is not None and row.norm > 0.01 for row in run.report().rows)
    assert torch.equal(call(pipe, **shared), plain)
    expected = call(with_adapters(pipe, states, scales), **theirs, **shared)
    assert relative_error(plain, expected) > 0.01
    return ours, expected


@pytest.mark.parametrize("kind", peers.KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_projection_on_every_base(family: tiny.Family, kind: peers.Kind) -> None:
    pipe, picture = pipeline(family), photo(1, (40, 64))
    ours, expected = both(
        pipe,
        [state(pipe.unet, kind)],
        lambda modules: [modules[0].on(picture, encoder=pipe.image_encoder, scale=0.7)],
        [0.7],
        {"ip_adapter_image": picture},
    )
    assert torch.equal(ours, expected)


SHARED: dict[str, dict[str, Any]] = {
    "without guidance": {"guidance_scale": 1.0},
    "batch": {"prompt": ["a red cube", "two cones"], "num_images_per_prompt": 2},
    "another size": {"height": 72, "width": 104},
}


@pytest.mark.parametrize("shared", SHARED)
@pytest.mark.parametrize("kind", ["plain", "plus"])
def test_batches_guidance_and_sizes(kind: peers.Kind, shared: str) -> None:
    pipe = pipeline()
    ours, expected = both(
        pipe,
        [state(pipe.unet, kind)],
        lambda modules: [modules[0].on(photo(1), encoder=pipe.image_encoder)],
        [1.0],
        {"ip_adapter_image": photo(1)},
        **SHARED[shared],
    )
    assert_equal(ours, expected)


@pytest.mark.parametrize("kind", peers.KINDS)
def test_embeddings_in_place_of_pictures(kind: peers.Kind) -> None:
    pipe = pipeline(image_encoder=None)
    generator = torch.Generator().manual_seed(5)
    shape = (peers.PROJECTED,) if kind == "plain" else (9, peers.HIDDEN)
    given, nothing = torch.randn(2, 1, *shape, generator=generator)
    ours, expected = both(
        pipe,
        [state(pipe.unet, kind)],
        lambda modules: [modules[0].on((given, nothing), scale=0.8)],
        [0.8],
        {"ip_adapter_image_embeds": [torch.stack([nothing, given])]},
    )
    assert torch.equal(ours, expected)


@pytest.mark.parametrize("kind", peers.KINDS)
def test_several_pictures_for_one_prompt(kind: peers.Kind) -> None:
    pipe = pipeline()
    pictures = [photo(1), photo(2), photo(3)]
    ours, expected = both(
        pipe,
        [state(pipe.unet, kind)],
        lambda modules: [modules[0].on([pictures], encoder=pipe.image_encoder, scale=0.8)],
        [0.8],
        {"ip_adapter_image": [pictures]},
    )
    assert torch.equal(ours, expected)


def test_a_picture_for_each_prompt() -> None:
    pipe = pipeline()
    module = peers.load(pipe.unet, "plus")
    prompts, pictures = ["a red cube", "two cones"], [photo(1), photo(2)]
    noise = torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with ck.attach(pipe, module.on(pictures, encoder=pipe.image_encoder)):
        together = call(pipe, prompt=prompts, num_images_per_prompt=2, latents=noise)
    for i, prompt in enumerate(prompts):
        rows = slice(2 * i, 2 * i + 2)
        with ck.attach(pipe, module.on(pictures[i], encoder=pipe.image_encoder)):
            alone = call(pipe, prompt=prompt, num_images_per_prompt=2, latents=noise[rows])
        assert_equal(together[rows], alone)
    control = module.on(pictures, encoder=pipe.image_encoder)
    with pytest.raises(ck.BatchMismatch, match="2 prompts"), ck.attach(pipe, control):
        call(pipe, num_images_per_prompt=3)


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_several_adapters_at_once(family: tiny.Family) -> None:
    pipe = pipeline(family)
    states = [state(pipe.unet, kind, seed) for seed, kind in enumerate(peers.KINDS)]
    scales, pictures = [0.3, 0.5, 0.4], [photo(seed) for seed in range(3)]
    ours, expected = both(
        pipe,
        states,
        lambda modules: [
            module.on(picture, encoder=pipe.image_encoder, scale=scale)
            for module, picture, scale in zip(modules, pictures, scales, strict=True)
        ],
        scales,
        {"ip_adapter_image": pictures},
    )
    assert torch.equal(ours, expected)


@pytest.mark.parametrize("kind", peers.KINDS)
def test_regions(kind: peers.Kind) -> None:
    """Of halves, which diffusers' bicubic reduction and ours by area leave sharp."""
    pipe = pipeline()
    left = torch.zeros(1, 1, 64, 64)
    left[..., :32] = 1
    masks = [left, 1 - left]
    ours, expected = both(
        pipe,
        [state(pipe.unet, kind, seed) for seed in range(2)],
        lambda modules: [
            module.on(photo(seed), encoder=pipe.image_encoder, mask=masks[seed], scale=0.9)
            for seed, module in enumerate(modules)
        ],
        [0.9, 0.9],
        {"ip_adapter_image": [photo(0), photo(1)], "cross_attention_kwargs": {"ip_adapter_masks": masks}},
    )
    assert_equal(ours, expected)


def test_one_region_for_each_picture() -> None:
    pipe = pipeline()
    module = peers.load(pipe.unet, "plain")
    masks = torch.zeros(2, 1, 64, 64)
    masks[0, :, :32], masks[1, ..., 32:] = 1, 1
    noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with ck.attach(pipe, module.on(photo(1), encoder=pipe.image_encoder, mask=masks)):
        together = call(pipe, num_images_per_prompt=2, latents=noise)
    for i in range(2):
        with ck.attach(pipe, module.on(photo(1), encoder=pipe.image_encoder, mask=masks[i : i + 1])):
            assert_equal(together[i : i + 1], call(pipe, latents=noise[i : i + 1]))


def test_one_factor_per_layer() -> None:
    pipe = pipeline()
    factors = [float(i % 4) / 2 for i in range(10)]
    module = peers.load(pipe.unet, "plain")
    with ck.attach(pipe, module.on(photo(1), encoder=pipe.image_encoder, scale=0.5, block_scales=factors)):
        ours = call(pipe)
    with_adapters(pipe, [state(pipe.unet, "plain")], [1.0])
    processors = [p for name, p in pipe.unet.attn_processors.items() if name.endswith("attn2.processor")]
    for factor, processor in zip(factors, processors, strict=True):
        processor.scale = [0.5 * factor]
    assert torch.equal(ours, call(pipe, ip_adapter_image=photo(1)))
    with pytest.raises(ck.BatchMismatch, match="10"):
        ck.attach(pipe, module.on(photo(1), encoder=pipe.image_encoder, block_scales=[1.0] * 13))


def test_window_and_curve() -> None:
    pipe = pipeline()
    module = peers.load(pipe.unet, "plus")
    control = module.on(
        photo(1), encoder=pipe.image_encoder, scale=lambda done: 0.4 + done, start=0.2, end=0.8
    )
    with ck.attach(pipe, control) as run:
        ours = call(pipe, num_inference_steps=5)
    row = run.report().rows[0]
    assert (row.applied, row.skipped) == (3, 2)
    assert row.counts == {"forward": 1}
    assert len(row.norms) == 3
    scales = [0.0, 0.6, 0.8, 1.0, 0.0]
    with_adapters(pipe, [state(pipe.unet, "plus")], [scales[0]])

    def follow(pipe: Any, index: int, _t: Any, values: dict[str, Any]) -> dict[str, Any]:
        pipe.set_ip_adapter_scale([scales[min(index + 1, 4)]])
        return values

    expected = call(pipe, num_inference_steps=5, ip_adapter_image=photo(1), callback_on_step_end=follow)
    assert_equal(ours, expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", ["plain", "plus"])
def test_half_precision(kind: peers.Kind, dtype: torch.dtype) -> None:
    pipe = pipeline().to(dtype)
    weights = {name: tensor.to(dtype) for name, tensor in state(pipe.unet, kind).items()}
    ours, expected = both(
        pipe,
        [weights],
        lambda modules: [modules[0].on(photo(1), encoder=pipe.image_encoder, scale=0.5)],
        [0.5],
        {"ip_adapter_image": photo(1)},
    )
    assert ours.dtype == dtype
    assert torch.equal(ours, expected)


def test_a_float32_module_beside_a_half_unet() -> None:
    pipe = pipeline()
    module = peers.load(pipe.unet, "plain")
    control = module.on(photo(1), encoder=pipe.image_encoder, scale=0.5)
    with ck.attach(pipe, control):
        expected = call(pipe)
    with ck.attach(pipe.to(torch.bfloat16), control) as run:
        assert relative_error(call(pipe).float(), expected) < 0.1
    assert "computes in float32 beside a bfloat16 U-Net" in run.report().rows[0].notes


TASKS: dict[str, tuple[str, dict[str, Any]]] = {
    "image": ("StableDiffusionImg2ImgPipeline", {"image": torch.full((1, 3, 64, 64), 0.3), "strength": 0.7}),
    "inpaint": (
        "StableDiffusionInpaintPipeline",
        {"image": torch.full((1, 3, 64, 64), 0.3), "mask_image": torch.ones(1, 1, 64, 64)},
    ),
    "perturbed attention": ("StableDiffusionPAGPipeline", {"pag_scale": 2.0}),
    "instructions": (
        "StableDiffusionInstructPix2PixPipeline",
        {"image": torch.full((1, 3, 64, 64), 0.3), "image_guidance_scale": 1.5},
    ),
}


@pytest.mark.parametrize("kind", ["plain", "plus"])
@pytest.mark.parametrize("task", TASKS)
def test_other_pipelines(task: str, kind: peers.Kind) -> None:
    name, inputs = TASKS[task]
    parts = {"unet": tiny.unet("sd1", in_channels=8)} if task == "instructions" else {}
    pipe = pipeline(cls=getattr(diffusers, name), **parts)
    ours, expected = both(
        pipe,
        [state(pipe.unet, kind)],
        lambda modules: [modules[0].on(photo(1), encoder=pipe.image_encoder, scale=0.8)],
        [0.8],
        {"ip_adapter_image": photo(1)},
        **inputs,
    )
    assert_equal(ours, expected)


def test_beside_an_adapter_that_diffusers_loaded() -> None:
    pipe = pipeline()
    states = [state(pipe.unet, "plus", 0), state(pipe.unet, "plain", 1)]
    with_adapters(pipe, states[:1], [0.6])
    ours_module = ck.load(states[1])
    with ck.attach(pipe, ours_module.on(photo(2), encoder=pipe.image_encoder, scale=0.4)):
        ours = call(pipe, ip_adapter_image=photo(1))
    with_adapters(pipe, states, [0.6, 0.4])
    assert torch.equal(ours, call(pipe, ip_adapter_image=[photo(1), photo(2)]))


def test_with_controlnet_and_t2i_adapter() -> None:
    """All three kinds of ours, against two of ours beside diffusers' own IP-Adapter."""
    pipe = pipeline()
    weights = state(pipe.unet, "plus")
    edges, depth = (torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(i)) for i in range(2))
    two = [
        tiny.controlnet("sd1").on(edges, scale=0.7, end=0.7),
        tiny.t2i_adapter("sd1").on(depth, scale=0.4),
    ]
    picture = ck.load(weights).on(photo(1), encoder=pipe.image_encoder, scale=0.6)
    outcomes = []
    for order in ([*two, picture], [picture, *two]):
        with ck.attach(pipe, *order) as run:
            outcomes.append(call(pipe))
        assert all(row.applied for row in run.report().rows)
    with ck.attach(pipe, *two):
        without = call(pipe)
    with_adapters(pipe, [weights], [0.6])
    with ck.attach(pipe, *two):
        expected = call(pipe, ip_adapter_image=photo(1))
    assert relative_error(without, expected) > 0.01
    assert torch.equal(outcomes[0], expected)
    assert torch.equal(outcomes[1], expected)
