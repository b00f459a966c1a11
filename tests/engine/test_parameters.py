"""Call parameters that cannot be meant: refused by name, before the first step (the P rows of the faults)."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import controlkit as ck
from controlkit.errors import ControlKitWarning
from tests import tiny
from tests.engine.test_composition import call, phi, picture

NAN = float("nan")

# what on() is given, the error, its code, and what its text must say
AT_BIND: dict[str, tuple[dict[str, Any], type[Exception], str, str]] = {
    "P3 NaN scale": ({"scale": NAN}, ck.ParameterError, "CK-P3", "nan"),
    "P3 infinite scale": ({"scale": float("inf")}, ck.ParameterError, "CK-P3", "inf"),
    "P3 text scale": ({"scale": "1"}, ck.ParameterError, "CK-P3", "'1'"),
    "P3 None scale": ({"scale": None}, ck.ParameterError, "CK-P3", "None"),
    "P3 huge scale": ({"scale": 1e6}, ck.ParameterError, "CK-P3", "between -100 and 100"),
    "P3 huge point": ({"scale": [(0, 1), (1, 1e6)]}, ck.ParameterError, "CK-P3", "1e\\+06"),
    "P5 start after end": ({"start": 0.8, "end": 0.2}, ck.ParameterError, "CK-P5", "start=0.8, end=0.2"),
    "P5 start is end": ({"start": 0.5, "end": 0.5}, ck.ParameterError, "CK-P5", "start < end"),
    "P5 end beyond": ({"end": 1.5}, ck.ParameterError, "CK-P5", "end=1.5"),
    "P5 start below": ({"start": -0.1}, ck.ParameterError, "CK-P5", "start=-0.1"),
    "P5 NaN start": ({"start": NAN}, ck.ParameterError, "CK-P3", "start"),
    "P5 NaN end": ({"end": NAN}, ck.ParameterError, "CK-P3", "end"),
    "P5 text end": ({"end": "1"}, ck.ParameterError, "CK-P3", "end"),
    "P7 scales as a list": ({"scale": [1.0, 0.5]}, ck.ParameterError, "CK-P7", "each control its own"),
    "P7 points unsorted": ({"scale": [(1, 1.0), (0, 0.0)]}, ck.ParameterError, "CK-P", "rising"),
    "P7 no points": ({"scale": []}, ck.ParameterError, "CK-P", "at least one point"),
    "mode": ({"mode": "guess"}, ck.ParameterError, "CK-P", "guess_mode=True is mode='control'"),
    "resize": ({"resize": "fill"}, ck.ParameterError, "CK-P", "'stretch', 'crop' or 'pad'"),
    "options alone": ({"detect_options": {"low": 1}}, ck.ParameterError, "CK-P", "Name the detector"),
    "unknown detector": ({"detect": "cany"}, ck.ParameterError, "CK-P", "canny"),
    "channel order": ({"channel_order": "grb"}, ck.ParameterError, "CK-H18", "channel_order"),
    "block scale NaN": ({"block_scales": [NAN]}, ck.ParameterError, "CK-P3", r"block_scales\[0\]"),
    "mask NaN": ({"mask": np.full((8, 8), NAN)}, ck.HintError, "CK-H13", "mask"),
    "mask beyond 1": ({"mask": np.full((8, 8), 7.0)}, ck.HintError, "CK-H14", "mask"),
}


@pytest.mark.parametrize("kind", ["controlnet", "t2i_adapter"])
@pytest.mark.parametrize("case", AT_BIND)
def test_refused_when_bound(case: str, kind: str) -> None:
    binding, error, code, says = AT_BIND[case]
    module = getattr(tiny, kind)("sd1")
    with pytest.raises(error, match=says) as info:
        module.on(picture(1), **binding)
    assert getattr(info.value, "code", "") == code
    assert len(str(info.value)) <= 600


@pytest.mark.parametrize("scale", [1, np.float32(0.5), torch.tensor(0.5), -0.5])
def test_every_number_is_a_scale(scale: Any) -> None:
    """P3: a whole 1 is fine (diffusers refuses it); P4: negative scales push away."""
    pipe = tiny.pipeline("sd1")
    with ck.attach(pipe, tiny.controlnet("sd1").on(picture(1), scale=scale)) as run:
        call(pipe, num_inference_steps=1)
    assert run.report().rows[0].scale == f"{float(scale):g}"


def test_unusual_scales_are_noted() -> None:
    pipe = tiny.pipeline("sd1")
    with ck.attach(pipe, tiny.controlnet("sd1").on(picture(1), scale=-3)) as run:
        call(pipe, num_inference_steps=1)
    assert "scale -3 is outside the usual -2 .. 2" in run.report().rows[0].notes


def test_a_window_between_two_steps_is_said_before_the_first() -> None:
    """P6."""
    pipe = tiny.pipeline("sd1")
    net = tiny.controlnet("sd1")
    with (
        ck.attach(pipe, net.on(picture(1), start=0.3, end=0.45)) as run,
        pytest.warns(ControlKitWarning, match="acts on 0 of 4 steps"),
    ):
        call(pipe)
    row = run.report().rows[0]
    assert (row.applied, row.skipped) == (0, 4)
    assert any("active on 0 of 4 steps" in note for note in row.notes)


def _nan_embeds() -> dict[str, Any]:
    embeds = torch.zeros(1, tiny.TOKENS, 768)
    return {"prompt": None, "prompt_embeds": embeds * NAN, "negative_prompt_embeds": embeds}


def _narrow_embeds() -> dict[str, Any]:
    embeds = torch.zeros(1, tiny.TOKENS, 64)
    return {"prompt": None, "prompt_embeds": embeds, "negative_prompt_embeds": embeds}


# what the pipeline is called with, controls, error, code, text
AT_CALL: dict[
    str, tuple[Callable[[], dict[str, Any]], Callable[[], list[Any]], type[Exception], str, str]
] = {
    "P7 two maps, three prompts": (
        lambda: {"prompt": ["a", "b", "c"]},
        lambda: [tiny.controlnet("sd1").on(picture(1, 2))],
        ck.BatchMismatch,
        "CK-H20",
        "2 maps for 3 pictures",
    ),
    "P7 three maps, one prompt": (
        dict,
        lambda: [tiny.t2i_adapter("sd1").on([picture(i)[0] for i in range(3)])],
        ck.BatchMismatch,
        "CK-H20",
        "3 maps for 1 pictures",
    ),
    "P7 two masks, three prompts": (
        lambda: {"prompt": ["a", "b", "c"]},
        lambda: [tiny.controlnet("sd1").on(picture(1), mask=torch.ones(2, 1, 8, 8))],
        ck.BatchMismatch,
        "CK-P7",
        "2 masks for 3 pictures",
    ),
    "P9 guidance NaN": (
        lambda: {"guidance_scale": NAN},
        lambda: [tiny.controlnet("sd1").on(picture(1))],
        ck.ParameterError,
        "CK-P9",
        "guidance_scale",
    ),
    "P9 embeddings NaN": (
        _nan_embeds,
        lambda: [tiny.controlnet("sd1").on(picture(1))],
        ck.ParameterError,
        "CK-P9",
        "prompt embeddings",
    ),
    "P9 embeddings too narrow": (
        _narrow_embeds,
        lambda: [tiny.t2i_adapter("sd1").on(picture(1))],
        ck.ParameterError,
        "CK-P9",
        "768",
    ),
    "scale function gives NaN": (
        dict,
        lambda: [tiny.controlnet("sd1").on(picture(1), scale=lambda _: NAN)],
        ck.ParameterError,
        "CK-P3",
        r"scale\(0\)",
    ),
    "phi of the wrong shape": (
        dict,
        lambda: [ck.Guidance(lambda x, y, t: (x**2).sum())],
        ck.ParameterError,
        "CK-P",
        "one log-probability per picture",
    ),
    "phi without a gradient": (
        dict,
        lambda: [ck.Guidance(lambda x, y, t: x.detach().flatten(1).sum(1))],
        ck.ParameterError,
        "CK-P",
        "differentiable",
    ),
}


@pytest.mark.parametrize("case", AT_CALL)
def test_refused_before_the_unet_runs(case: str) -> None:
    arguments, controls, error, code, says = AT_CALL[case]
    pipe = tiny.pipeline("sd1")
    ran: list[int] = []
    pipe.unet.conv_in.register_forward_hook(lambda *_: ran.append(1))
    bound = controls()
    with pytest.raises(error, match=says) as info, ck.attach(pipe, *bound):
        call(pipe, **arguments())
    assert getattr(info.value, "code", "") == code
    assert not ran or case.startswith("phi")  # phi is asked after the first call of the U-Net


FAMILIES = ("sd1", "sd2", "sdxl")


@pytest.mark.parametrize("base", FAMILIES)
@pytest.mark.parametrize("control", FAMILIES)
def test_a_controlnet_fits_its_own_base_alone(base: Any, control: Any) -> None:
    """L21: named on both sides, before any step."""
    unet, module = tiny.unet(base), tiny.controlnet(control)
    if base == control:
        ck.attach(unet, module.on(picture(1)), scheduler=tiny.scheduler()).__exit__(ValueError, None, None)
        return
    with pytest.raises(ck.BaseMismatch) as info:
        ck.attach(unet, module.on(picture(1)))
    for width in (module.config.cross_attention_dim, unet.config.cross_attention_dim):
        assert str(width) in str(info.value)


def test_an_adapter_for_another_encoder_is_refused() -> None:
    with pytest.raises(ck.BaseMismatch, match="features of"):
        ck.attach(tiny.unet("sd1"), tiny.t2i_adapter("sdxl").on(picture(1)))
    with pytest.raises(ck.BaseMismatch, match="features of"):
        ck.attach(tiny.unet("sdxl"), tiny.t2i_adapter("sd1").on(picture(1)))


def test_weights_on_the_meta_device_are_refused_by_name() -> None:
    """P14: convolutions over meta weights return arbitrary memory on CPUs."""
    module = copy.deepcopy(tiny.controlnet("sd1")).to("meta")
    with pytest.raises(ck.DeviceMismatch, match="meta"):
        ck.attach(tiny.unet("sd1"), module.on(picture(1)))
    with pytest.raises(ck.DeviceMismatch, match="meta"):
        ck.attach(tiny.unet("sd1").to("meta"), tiny.controlnet("sd1").on(picture(1)))


def test_an_untrained_controlnet_is_noted() -> None:
    """L26: every output convolution zero."""
    pipe, module = tiny.pipeline("sd1"), ck.ControlNet(tiny.controlnet_config("sd1")).eval()
    with ck.attach(pipe, module.on(picture(1))) as run:
        out = call(pipe)
    assert torch.equal(out, call(pipe))
    assert any("no effect" in note for note in run.report().rows[0].notes)


BAD_GUIDANCE: dict[str, tuple[dict[str, Any], str]] = {
    "phi": ({"phi": 3}, "function phi"),
    "sees": ({"sees": "pixels"}, "'noisy', 'clean' or 'image'"),
    "max_norm": ({"max_norm": 0}, "positive"),
    "every": ({"every": 0}, "whole number"),
    "scale": ({"scale": NAN}, "nan"),
    "through_unet": ({"through_unet": True}, "sees='clean'"),
    "inner_steps": ({"inner_steps": 0}, "whole number"),
    "recurrence": ({"recurrence": 1.5}, "whole number"),
}


@pytest.mark.parametrize("case", BAD_GUIDANCE)
def test_guidance_refuses_by_name(case: str) -> None:
    changes, says = BAD_GUIDANCE[case]
    with pytest.raises(ck.ControlKitError, match=says):
        ck.Guidance(**{"phi": phi, **changes})


def test_maps_enter_by_the_one_door() -> None:
    """A few H rows through on(); all of them are in tests/images."""
    net = tiny.controlnet("sd1")
    for image, code in (
        (Image.new("RGB", (0, 4)), "CK-H1"),
        (np.full((8, 8, 3), NAN), "CK-H13"),
        (np.full((8, 8, 3), 255.0), "CK-H14"),
        (torch.zeros(1, 4, 8, 8), "CK-H17"),
        ([], "CK-H20"),
        ("map.png", "CK-H20"),
    ):
        with pytest.raises(ck.HintError) as info:
            net.on(image)
        assert info.value.code == code
    hidden = picture(1)
    hidden[..., :8, :8] = -1  # an inpainting ControlNet's mark
    assert torch.equal(net.on(hidden).map.rows, hidden)  # type: ignore[attr-defined]
    pipe = tiny.pipeline("sd1")
    exact = (picture(1)[0].permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()
    outputs = []
    for same in (exact, Image.fromarray(exact), torch.from_numpy(exact).permute(2, 0, 1)[None] / 255):
        with ck.attach(pipe, net.on(same)):
            outputs.append(call(pipe, num_inference_steps=1))
    assert torch.equal(outputs[0], outputs[1])
    assert torch.equal(outputs[0], outputs[2])
