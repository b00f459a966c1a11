"""ControlNet-Union on pipelines: diffusers' numbers where they are right, the right ones elsewhere."""

from __future__ import annotations

import warnings
from functools import cache
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from torch import Tensor

import controlkit as ck
from controlkit.adapters.controlnet_union.control import UnionControl
from controlkit.residuals import add
from tests import tiny
from tests.adapters.controlnet_union.builders import reference, theirs, union
from tests.golden_cases import assert_equal, relative_error

STEPS = 5


def image(seed: int) -> np.ndarray[Any, Any]:
    values: Tensor = torch.rand(64, 64, 3, generator=torch.Generator().manual_seed(seed))
    return values.mul(255 if seed % 2 else 60).byte().numpy()


CANNY, DEPTH, POSE = image(1), image(2), image(3)


@cache
def pipeline() -> Any:
    """The pipeline that every test attaches to, and finds as it was."""
    return tiny.pipeline("sdxl")


def call(pipe: Any, **changes: Any) -> Tensor:
    """The latents of one picture, or several, in a fixed noise."""
    settings: dict[str, Any] = {
        "prompt": "a house",
        "num_inference_steps": STEPS,
        "guidance_scale": 4.0,
        "height": 64,
        "width": 64,
        "output_type": "latent",
        "generator": torch.Generator().manual_seed(3),
    }
    found: Tensor = pipe(**{**settings, **changes}).images
    return found


def diffusers_call(net: Any, maps: dict[int, Any], **changes: Any) -> Tensor:
    """The same with diffusers' pipeline for such networks."""
    from PIL import Image

    parts = {**pipeline().components, "controlnet": reference(net)}
    parts = {name: part for name, part in parts.items() if name not in ("feature_extractor", "image_encoder")}
    pipe = diffusers.StableDiffusionXLControlNetUnionPipeline(**parts)
    pipe.set_progress_bar_config(disable=True)
    images = [Image.fromarray(each) for each in maps.values()]
    return call(pipe, control_image=images, control_mode=list(maps), **changes)


ALIKE: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "one": ({"canny": CANNY}, {}, {}),
    "one, scaled": ({"canny": CANNY}, {"scale": 0.6}, {"controlnet_conditioning_scale": 0.6}),
    "one, in a window": (
        {"depth": DEPTH},
        {"scale": {"depth": 0.8}, "start": 0.2, "end": {"depth": 0.7}},
        {
            "controlnet_conditioning_scale": 0.8,
            "control_guidance_start": 0.2,
            "control_guidance_end": 0.7,
        },
    ),
    "two": ({"canny": CANNY, "depth": DEPTH}, {}, {}),
    "three, scaled": (
        {"canny": CANNY, "depth": DEPTH, "openpose": POSE},
        {"scale": {"canny": 0.9, "openpose": 1.5}},
        {"controlnet_conditioning_scale": [0.9, 1.0, 1.5]},
    ),
    "two, one scale": (
        {"canny": CANNY, "openpose": POSE},
        {"scale": 0.4},
        {"controlnet_conditioning_scale": 0.4},
    ),
    "batch": ({"canny": CANNY, "depth": DEPTH}, {}, {}),
}
NUMBERS = {"canny": 3, "depth": 1, "openpose": 0}


@pytest.mark.parametrize("case", ALIKE)
def test_equal_to_the_pipeline_of_diffusers(case: str) -> None:
    maps, ours, given = ALIKE[case]
    both: dict[str, Any] = {"num_images_per_prompt": 2} if case == "batch" else {}
    net, pipe = union(), pipeline()
    with ck.attach(pipe, net.on(maps, **ours)) as run:
        found = call(pipe, **both)
    expected = diffusers_call(net, {NUMBERS[name]: each for name, each in maps.items()}, **given, **both)
    assert_equal(found, expected, 1e-5)
    assert relative_error(call(pipe, **both), expected) > 1e-3  # and afterwards it does nothing
    row = run.report().rows[0]
    assert row.control == f"controlnet-union {'+'.join(maps)}"
    assert row.counts["hint"] == len(maps)
    assert row.counts["forward"] == row.applied


def by_hand(net: Any, plan: list[dict[str, float]], maps: dict[str, Any]) -> Tensor:
    """The right answer, with diffusers' network: at each step those types that act, and no others."""
    pipe, model = pipeline(), reference(net)
    tensors = {name: torch.from_numpy(each).permute(2, 0, 1)[None] / 255 for name, each in maps.items()}
    unet, count = pipe.unet.forward, iter(range(STEPS))

    def forward(sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor, **kwargs: Any) -> Any:
        scales = {NUMBERS[name]: scale for name, scale in plan[next(count)].items() if scale}
        if scales:
            inputs = {
                "latents": sample,
                "timesteps": timestep,
                "tokens": encoder_hidden_states,
                "added": kwargs["added_cond_kwargs"],
            }
            rows = {NUMBERS[name]: each.repeat(2, 1, 1, 1) for name, each in tensors.items()}
            chosen = {number: rows[number] for number in scales}
            *skips, mid = theirs(model, inputs, chosen, list(scales.values()))
            kwargs |= {"down_block_additional_residuals": skips, "mid_block_additional_residual": mid}
        return unet(sample, timestep, encoder_hidden_states, **kwargs)

    pipe.unet.forward = forward
    try:
        return call(pipe)
    finally:
        del pipe.unet.forward


def test_windows_and_zeros_take_types_out_which_diffusers_does_not_do() -> None:
    """With several types diffusers leaves those at scale 0 in: they still say that they are there.

    Its scales multiply features and corrections, and nothing multiplies the residuals, so that a type of
    scale 0, or outside its window, still has its mark in the time embedding and its place in the sum.
    """
    net, pipe = union(), pipeline()
    maps = {"canny": CANNY, "depth": DEPTH}
    with ck.attach(pipe, net.on(maps, scale={"canny": 0.9}, start={"canny": 0.4}, end={"depth": 0.6})) as run:
        found = call(pipe)
    plan = [{"depth": 1.0}] * 2 + [{"canny": 0.9, "depth": 1.0}] + [{"canny": 0.9}] * 2
    assert_equal(found, by_hand(net, plan, maps), 1e-5)
    row = run.report().rows[0]
    assert row.counts == {"hint": 2, "forward": 5, "canny": 3, "depth": 3}
    assert "canny acts on 3 of 5 steps, at scale 0.9" in row.notes
    assert "depth acts on 3 of 5 steps, at scale 1" in row.notes
    wrong = diffusers_call(
        net,
        {3: CANNY, 1: DEPTH},
        controlnet_conditioning_scale=[0.9, 1.0],
        control_guidance_start=[0.4, 0.0],
        control_guidance_end=[1.0, 0.6],
    )
    assert relative_error(wrong, found) > 1e-2


def test_all_scales_zero_is_off_which_it_is_not_in_diffusers() -> None:
    net, pipe = union(), pipeline()
    plain = call(pipe)
    with ck.attach(pipe, net.on({"canny": CANNY, "depth": DEPTH}, scale=0.0)) as run:
        assert torch.equal(call(pipe), plain)
    row = run.report().rows[0]
    assert (row.applied, row.skipped, row.counts) == (0, STEPS, {})
    assert "its scale is 0" in row.notes[0]
    wrong = diffusers_call(net, {3: CANNY, 1: DEPTH}, controlnet_conditioning_scale=[0.0, 0.0])
    assert relative_error(wrong, plain) > 1e-2


def test_nothing_runs_between_two_windows() -> None:
    net, pipe = union(), pipeline()
    maps = {"canny": CANNY, "depth": DEPTH}
    control = net.on(
        maps, end={"canny": 0.2}, start={"depth": 0.8}, scale={"depth": [(0.0, 0.0), (1.0, 1.0)]}
    )
    with ck.attach(pipe, control) as run:
        found = call(pipe)
    row = run.report().rows[0]
    assert (row.applied, row.skipped) == (2, 3)
    assert row.counts == {"hint": 2, "forward": 2, "canny": 1, "depth": 1}
    assert_equal(found, by_hand(net, [{"canny": 1.0}, {}, {}, {}, {"depth": 0.8}], maps), 1e-5)


def test_a_type_that_never_acts_is_said() -> None:
    net, pipe = union(), pipeline()
    control = net.on({"canny": CANNY, "depth": DEPTH}, end={"depth": 0.1})
    never = pytest.warns(ck.ControlKitWarning, match="depth acts on 0 of 5 steps")
    with ck.attach(pipe, control) as run, never:
        call(pipe)
    row = run.report().rows[0]
    assert any("depth acts on 0 of 5 steps: no step falls in its window [0, 0.1]" in n for n in row.notes)
    assert row.counts == {"hint": 1, "forward": 5, "canny": 5, "depth": 0}


def test_pictures_of_a_batch_keep_their_own_maps() -> None:
    """One map per prompt gives each picture what it would get alone, which the original's batches do not."""
    net, pipe = union(), pipeline()
    noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(5))
    maps = {"canny": [CANNY, POSE], "depth": DEPTH}
    with ck.attach(pipe, net.on(maps, scale={"depth": 0.7})):
        both = call(pipe, prompt=["a house", "a tree"], latents=noise)
    for row, prompt in enumerate(("a house", "a tree")):
        own = {"canny": maps["canny"][row], "depth": DEPTH}
        with ck.attach(pipe, net.on(own, scale={"depth": 0.7})):
            alone = call(pipe, prompt=prompt, latents=noise[row : row + 1])
        assert_equal(both[row : row + 1], alone)


def test_two_controls_of_one_network_add_up() -> None:
    net, unet = union(), tiny.unet("sdxl")
    inputs = dict(tiny.inputs("sdxl"))
    del inputs["control_map"]
    canny = torch.from_numpy(CANNY).permute(2, 0, 1)[None] / 255
    depth = torch.from_numpy(DEPTH).permute(2, 0, 1)[None] / 255

    def predict(**extra: Any) -> Tensor:
        with torch.no_grad():
            found: Tensor = unet(
                inputs["latents"],
                inputs["timesteps"],
                inputs["tokens"],
                added_cond_kwargs=inputs["added"],
                **extra,
            ).sample
        return found

    with ck.attach(unet, net.on({"canny": CANNY}, scale=0.5), net.on({"depth": DEPTH})):
        found = predict()
    with torch.no_grad():
        first = net(**inputs, maps={"canny": canny}, scales=0.5)
        total = add(first, net(**inputs, maps={"depth": depth}))
    expected = predict(down_block_additional_residuals=total.skips, mid_block_additional_residual=total.mid)
    assert_equal(found, expected)


@pytest.mark.parametrize("maps", [{"canny": CANNY}, {"canny": CANNY, "depth": DEPTH}], ids=["one", "two"])
def test_conditional_half_alone(maps: dict[str, Any]) -> None:
    """diffusers' network in guess mode; its pipeline for it fails with classifier-free guidance (0.42)."""
    net, unet = union(), tiny.unet("sdxl")
    inputs = dict(tiny.inputs("sdxl", rows=2))
    half = {key: value[1:] for key, value in inputs.items() if key != "added"}
    half["added"] = {key: value[1:] for key, value in inputs["added"].items()}
    chosen = {
        NUMBERS[name]: torch.from_numpy(each).permute(2, 0, 1)[None] / 255 for name, each in maps.items()
    }
    with torch.no_grad():
        *skips, mid = theirs(reference(net), half, chosen, [0.8] * len(maps), guess_mode=True)

        def both(part: Tensor) -> Tensor:
            return torch.cat([torch.zeros_like(part), part])

        arguments = (inputs["latents"], inputs["timesteps"], inputs["tokens"])
        added = {"added_cond_kwargs": inputs["added"]}
        expected = unet(
            *arguments,
            down_block_additional_residuals=[both(skip) for skip in skips],
            mid_block_additional_residual=both(mid),
            **added,
        ).sample
        control = net.on(maps, scale=0.8, mode="control")
        with ck.attach(unet, control, branches=("uncond", "cond")):
            found = unet(*arguments, **added).sample
    assert_equal(found, expected)


def test_masks_and_block_scales_act_on_the_whole() -> None:
    net, pipe = union(), pipeline()
    plain, maps = call(pipe), {"canny": CANNY, "depth": DEPTH}
    with ck.attach(pipe, net.on(maps, mask=np.zeros((64, 64), np.float32))):
        assert_equal(call(pipe), plain)
    with ck.attach(pipe, net.on(maps, block_scales=[0.0] * 7)):
        assert_equal(call(pipe), plain)
    with pytest.raises(ck.BatchMismatch), ck.attach(pipe, net.on(maps, block_scales=[1.0] * 5)):
        pass


def test_a_bare_unet_needs_the_steps_for_windows_alone() -> None:
    net, unet = union(), tiny.unet("sdxl")
    maps = {"canny": CANNY, "depth": DEPTH}
    with ck.attach(unet, net.on(maps, scale=0.5)), torch.no_grad():
        inputs = tiny.inputs("sdxl")
        unet(inputs["latents"], 5, inputs["tokens"], added_cond_kwargs=inputs["added"])
    with pytest.raises(ck.ControlKitError), ck.attach(unet, net.on(maps, end={"depth": 0.5})):
        pass


def test_the_wrong_base_is_refused() -> None:
    with pytest.raises(ck.BaseMismatch, match=r"ControlNet-Union for sdxl.*SD 1|U-Net"):
        ck.attach(tiny.pipeline("sd1"), union().on({"canny": CANNY}))
    pipe, net = tiny.pipeline("sd1"), union("sd1")
    with ck.attach(pipe, net.on({"canny": CANNY, "tile": DEPTH})):
        assert torch.isfinite(call(pipe)).all()


def test_detectors_and_their_options_by_type() -> None:
    net = union()
    both = net.on({"canny": CANNY, "scribble": DEPTH}, detect="canny", detect_options={"low_threshold": 50})
    assert isinstance(both, UnionControl)
    assert [part.map.notes for part in both.maps] == [("map detected by canny",)] * 2
    one = net.on({"canny": CANNY, "depth": DEPTH}, detect={"canny": "canny"}, detect_options={"canny": {}})
    assert isinstance(one, UnionControl)
    (detected,), (doubted,) = (part.map.notes for part in one.maps)
    assert detected == "map detected by canny"
    assert doubted.startswith("doubtful map: this looks like a photograph, but depth needs")


@pytest.mark.parametrize(
    ("maps", "options", "words"),
    [
        (CANNY, {}, "a dict from type to map"),
        ({}, {}, "no map"),
        ({"cany": CANNY}, {}, "0: openpose.*7: repaint, inpaint"),
        ({8: CANNY}, {}, "the type 8"),
        ({True: CANNY}, {}, "the type True"),
        ({"canny": CANNY}, {"scale": {"depth": 1.0}}, "an entry for 'depth', which has no map"),
        ({"canny": CANNY}, {"end": {"canny": 0.0}}, "start < end"),
        ({"canny": CANNY}, {"detect_options": {"canny": {"low": 1}}}, "without a detector"),
        ({"canny": CANNY}, {"detect_options": {"canny": {}, "low": 1}}, "an entry for 'low'"),
        ({"canny": CANNY}, {"scale": float("nan")}, "finite"),
    ],
)
def test_arguments_that_cannot_be(maps: Any, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ck.ParameterError, match=words):
        union().on(maps, **options)


def test_one_map_for_two_names_of_a_type_is_remarked() -> None:
    net, pipe = union(), pipeline()
    with warnings.catch_warnings(), ck.attach(pipe, net.on({"canny": CANNY, "lineart": DEPTH})) as run:
        call(pipe)
    assert any("canny and lineart are one type" in note for note in run.report().rows[0].notes)
