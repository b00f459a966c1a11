"""Every published kind at once, from the files that people have: it equals the sum written out by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import controlkit as ck
from tests import tiny
from tests.adapters.ip_adapter import peers
from tests.adapters.uni_controlnet.builders import LOCAL, TOKENS, noise, picture, stacked, uni

WIDTHS = (32, 64, 64, 64)
SIZES: dict[str, Any] = {"block_out_channels": WIDTHS, "norm_num_groups": 32}
MAPS = {"hed": picture(1), "seg": picture(2)}
EDGES, DEPTH = picture(3), picture(4)
CONTENT, REFERENCE = noise(1, TOKENS.dim, seed=5), noise(1, peers.PROJECTED, seed=6)
SCALES = {"controlnet": 0.7, "t2i": 0.4, "local": 0.6, "content": 1.3, "ip": 0.8}


def controls(folder: Path, pipe: Any) -> tuple[Any, Any, Any, Any]:
    """The four modules, each through a file in its original layout and `ck.load`."""
    net = tiny.controlnet("sd1", **SIZES)
    torch.save(net.original_state(), folder / "control_canny.pth")
    adapter = tiny.t2i_adapter("sd1", channels=WIDTHS)
    adapter.save(folder / "t2iadapter_depth.safetensors", layout="original")
    local = replace(LOCAL, block_out_channels=WIDTHS, norm_num_groups=32)
    torch.save(uni(local=local).original_state(), folder / "uni.ckpt")
    torch.save(peers.nested(peers.state(pipe.unet, "plain")), folder / "ip-adapter.bin")
    return (
        ck.load(folder / "control_canny.pth", config={"num_heads": 2}),
        ck.load(folder / "t2iadapter_depth.safetensors"),
        ck.load(folder / "uni.ckpt", config={"num_heads": 2}),
        ck.load(folder / "ip-adapter.bin"),
    )


class ByHand:
    """One call of the U-Net with everything added, but the IP-Adapter, which diffusers itself has loaded."""

    def __init__(self, unet: Any, net: Any, adapter: Any, both: Any) -> None:
        self.forward, self.net, self.adapter, self.both = unet.forward, net, adapter, both

    def __call__(self, sample: Tensor, timestep: Tensor, **kwargs: Any) -> Any:
        prompt = kwargs["encoder_hidden_states"]
        halves = torch.cat([torch.zeros_like(CONTENT), CONTENT])
        context = torch.cat([prompt, SCALES["content"] * self.both.tokens(halves)], dim=1)
        edges = self.net(sample, timestep, prompt, EDGES.repeat(2, 1, 1, 1))
        maps = self.both.local(sample, timestep, context, stacked(self.both, MAPS).repeat(2, 1, 1, 1))
        kwargs["encoder_hidden_states"] = context
        kwargs["down_block_additional_residuals"] = tuple(
            SCALES["controlnet"] * a + SCALES["local"] * b
            for a, b in zip(edges.skips, maps.skips, strict=True)
        )
        kwargs["mid_block_additional_residual"] = (
            SCALES["controlnet"] * edges.mid + SCALES["local"] * maps.mid
        )
        features = self.adapter(DEPTH.repeat(2, 1, 1, 1))
        kwargs["down_intrablock_additional_residuals"] = [SCALES["t2i"] * feature for feature in features]
        return self.forward(sample, timestep, **kwargs)


def test_four_kinds_from_their_files_equal_the_sum_by_hand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe, reference = (tiny.pipeline("sd1", unet=tiny.unet("sd1", **SIZES)) for _ in range(2))
    net, adapter, both, ip = controls(tmp_path, pipe)
    bound = {
        "controlnet": net.on(EDGES, scale=SCALES["controlnet"]),
        "t2i-adapter": adapter.on(DEPTH, scale=SCALES["t2i"]),
        "uni-controlnet": both.on(
            MAPS, content=CONTENT, local_scale=SCALES["local"], global_scale=SCALES["content"]
        ),
        "ip-adapter": ip.on(REFERENCE, scale=SCALES["ip"]),
    }
    plain = peers.call(pipe)
    with ck.attach(pipe, *bound.values()) as run:
        found = peers.call(pipe)
    without: dict[str, Tensor] = {}
    for name in bound:  # each matters: leaving any one out gives another picture
        with ck.attach(pipe, *(control for other, control in bound.items() if other != name)):
            without[name] = peers.call(pipe)

    peers.with_adapters(reference, [peers.state(reference.unet, "plain")], [SCALES["ip"]])
    monkeypatch.setattr(reference.unet, "forward", ByHand(reference.unet, net, adapter, both))
    embeds = torch.stack([torch.zeros_like(REFERENCE), REFERENCE])
    expected = peers.call(reference, ip_adapter_image_embeds=[embeds])

    largest = float(expected.abs().max())
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * largest)
    for name, picture_without in without.items():
        assert (picture_without - expected).abs().max() > 1e-3 * largest, name
    rows = run.report().rows
    assert all(row.applied == row.steps == 3 and row.norm for row in rows)
    names = ["controlnet canny", "t2i-adapter depth", "uni-controlnet uni.ckpt", "ip-adapter ip-adapter.bin"]
    assert [row.control for row in rows] == names
    assert all(name in str(run.report()) for name in names)
    assert torch.equal(peers.call(pipe), plain)
