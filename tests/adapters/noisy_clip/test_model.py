"""The noisy CLIP: what its tensors say, guidance by text and by a reference, saving, and what is refused.

The original's widths are fixed at full size, so a tiny one is compared with its definition written out.
"""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import controlkit as ck
from controlkit.adapters.noisy_clip import NoisyClip, NoisyClipConfig
from controlkit.adapters.noisy_clip.control import ClipLikeness, Wanted, style_likeness
from controlkit.contracts import RunInfo, Step
from controlkit.errors import BaseMismatch, BatchMismatch, HintError, Incomplete, ParameterError
from tests import golden_cases, tiny

TIMES = torch.tensor([10, 700])
SIZES: dict[str, Any] = {"width": 8, "layers": (2, 1, 3, 1), "embed_dim": 6, "image_size": 64}


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def tiny_clip() -> NoisyClip:
    net = tiny.randomize(NoisyClip(NoisyClipConfig(time_channels=10, time_dim=12, **SIZES)), 60)
    assert isinstance(net, NoisyClip)
    for index, (name, part) in enumerate(net.named_buffers()):
        noise = draw(*part.shape, seed=100 + index)
        part.copy_(1 + 0.2 * noise.abs() if name.endswith("var") else 0.2 * noise)
    return net


CLIP = tiny_clip()


def by_hand(state: dict[str, Tensor], x: Tensor, times: Tensor) -> list[Tensor]:
    """The definition, with norms, modulation and attention spelled out, in float64."""
    weights = {name: part.double() for name, part in state.items()}

    def linear(name: str, value: Tensor) -> Tensor:
        return value @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def norm(name: str, value: Tensor) -> Tensor:
        mean, spread, scale, shift = (
            weights[f"{name}.{part}"][:, None, None]
            for part in ("running_mean", "running_var", "weight", "bias")
        )
        return (value - mean) / (spread + 1e-5).sqrt() * scale + shift

    angles = [[float(t) / 10000 ** (k / 5) for k in range(5)] for t in times]
    waves = torch.tensor([[*map(math.cos, row), *map(math.sin, row)] for row in angles]).double()
    time = linear("time_embed.2", linear("time_embed.0", waves).clamp_min(0))
    modulation = linear("emb_layers.1", time.clamp_min(0))
    used = 0

    def modulated(name: str, value: Tensor) -> Tensor:
        nonlocal used
        width = value.shape[1]
        scale, shift = modulation[:, used:][:, :width], modulation[:, used + width :][:, :width]
        used += 2 * width
        return norm(name, value) * (1 + scale[:, :, None, None]) + shift[:, :, None, None]

    mean = torch.tensor((0.48145466, 0.4578275, 0.40821073)).double()[:, None, None]
    std = torch.tensor((0.26862954, 0.26130258, 0.27577711)).double()[:, None, None]
    hidden = ((x.double() + 1) / 2 - mean) / std
    for place, stride in ((0, 2), (3, 1), (6, 1)):
        name = f"visual_frozen.{place}"
        hidden = F.conv2d(hidden, weights[f"{name}.weight"], None, stride, 1)
        hidden = modulated(f"visual_frozen.{place + 1}", hidden).clamp_min(0)
    found = [F.avg_pool2d(hidden, 2)]
    for stage, start in enumerate(("visual_frozen.10", "visual_frozen.11", "visual_frozen.12", "layer4")):
        hidden = found[-1]
        for block in range(SIZES["layers"][stage]):
            name, halves = f"{start}.{block}", block == 0 and stage > 0
            inside = F.conv2d(hidden, weights[f"{name}.conv1.weight"])
            inside = modulated(f"{name}.bn1", inside).clamp_min(0)
            inside = F.conv2d(inside, weights[f"{name}.conv2.weight"], padding=1)
            inside = modulated(f"{name}.bn2", inside).clamp_min(0)
            inside = F.avg_pool2d(inside, 2) if halves else inside
            inside = modulated(f"{name}.bn3", F.conv2d(inside, weights[f"{name}.conv3.weight"]))
            if f"{name}.downsample.0.weight" in weights:
                hidden = F.avg_pool2d(hidden, 2) if halves else hidden
                hidden = F.conv2d(hidden, weights[f"{name}.downsample.0.weight"])
                hidden = norm(f"{name}.downsample.1", hidden)
            hidden = (inside + hidden).clamp_min(0)
        found.append(hidden)
    assert used == modulation.shape[1]
    pixels = found[-1].flatten(2).transpose(1, 2)
    tokens = torch.cat([pixels.mean(1, keepdim=True), pixels], 1) + weights["attn_pool.positional_embedding"]
    parts = [linear(f"attn_pool.{name}_proj", tokens) for name in "qkv"]
    heads = [part.split(64, -1) for part in parts]
    mixed = [(q[:, :1] @ k.transpose(1, 2) / 8).softmax(-1) @ v for q, k, v in zip(*heads, strict=True)]
    return [*found, linear("attn_pool.c_proj", torch.cat(mixed, -1)[:, 0])]


def test_it_computes_what_its_tensors_say() -> None:
    x = draw(2, 3, 64, 64)
    ours, theirs = CLIP(x, TIMES), by_hand(CLIP.state_dict(), x, TIMES)
    assert [part.shape[1] for part in ours] == [8, 32, 64, 128, 256, 6]
    for found, expected in zip(ours, theirs, strict=True):
        golden_cases.assert_equal(found, expected)
    later = CLIP(x, torch.tensor(500))
    assert golden_cases.relative_error(later[-1], ours[-1]) > 0.01


@pytest.mark.parametrize("layout", ["diffusers", "original"])
def test_it_is_saved_and_read_back(layout: Any, tmp_path: Path) -> None:
    place = CLIP.save(tmp_path / ("net" if layout == "diffusers" else "net.safetensors"), layout=layout)
    loaded = ck.load(place)
    assert isinstance(loaded, NoisyClip)
    assert loaded.config == CLIP.config
    assert loaded.notes == ()
    assert all(torch.equal(part, loaded.state_dict()[name]) for name, part in CLIP.state_dict().items())
    info = ck.inspect(place)
    assert (info.kind, info.layout, info.base) == ("noisy-clip", "sdg-original", "other")


def test_counters_of_training_steps_are_left_out_without_a_remark_and_written_again() -> None:
    original = CLIP.original_state()
    counters = [name for name in original if name.endswith("num_batches_tracked")]
    assert len(counters) == 3 + 3 * sum(SIZES["layers"]) + 4
    assert all(original[name].dtype == torch.int64 and original[name].shape == () for name in counters)
    assert ck.load(original).notes == ()
    lacking = {name: part for name, part in original.items() if name != "layer4.0.bn2.running_var"}
    with pytest.raises(Incomplete, match="running_var"):
        ck.load(lacking)


def wanted(text: Tensor | None = None, image: Tensor | None = None, **changes: Any) -> Wanted:
    given: dict[str, Any] = {"text_weight": 3.0, "image_weight": 2.0, "match": "semantic", "seed": 0}
    return Wanted(text, image, **{**given, **changes})


def test_likeness_is_the_weighted_cosine() -> None:
    x, reference, text = draw(2, 3, 64, 64), draw(2, 3, 64, 64, seed=1), draw(1, 6, seed=2)
    found, goal = CLIP(x, TIMES)[-1], CLIP(reference, TIMES)[-1]

    def cosine(a: Tensor, b: Tensor) -> Tensor:
        return (a * b).sum(1) / (a.square().sum(1) * b.square().sum(1)).sqrt()

    value = ClipLikeness(CLIP)(x, wanted(text, reference), TIMES)
    torch.testing.assert_close(value, 3 * cosine(found, text) + 2 * cosine(found, goal))
    styled = ClipLikeness(CLIP)(x, wanted(None, reference, match="style"), TIMES)
    expected = 2 * style_likeness(CLIP(x, TIMES)[:5], CLIP(reference, TIMES)[:5])
    torch.testing.assert_close(styled.sum(), expected)
    assert float(styled.sum()) < 0


def test_the_reference_is_noised_as_the_picture_is_with_fresh_noise_at_each_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    picture = torch.rand(1, 3, 64, 64)
    control = CLIP.on(image=picture, seed=7)
    seen: list[Tensor] = []
    monkeypatch.setattr(
        ClipLikeness, "__call__", lambda self, x, y, t: seen.append(y.image) or x.sum((1, 2, 3))
    )
    run: Any = RunInfo(target=SimpleNamespace(channels=3), images=1, height=64, width=64, steps=2,  # pyright: ignore[reportArgumentType]
                       device=torch.device("cpu"), dtype=torch.float32)  # fmt: skip
    step = Step(0, 2, torch.tensor(5), draw(1, 3, 64, 64), None, None, ("cond",), alpha_bar=0.36)
    for phi in (control.bind_phi(run), control.bind_phi(run)):
        phi(draw(1, 3, 64, 64), TIMES[:1], step)
        phi(draw(1, 3, 64, 64), TIMES[:1], step)
    first, second, again, _ = seen
    noise = (first - 0.6 * (picture * 2 - 1)) / 0.8
    assert abs(float(noise.mean())) < 0.05
    assert abs(float(noise.std()) - 1) < 0.05
    assert not torch.equal(first, second)
    assert torch.equal(first, again)


def test_what_cannot_be_honoured_is_refused() -> None:
    with pytest.raises(ParameterError, match="neither"):
        CLIP.on()
    with pytest.raises(ParameterError, match="text encoder"):
        CLIP.on(text="a cat")  # pyright: ignore[reportArgumentType]
    with pytest.raises(HintError, match=r"\(n, 6\)"):
        CLIP.on(text=draw(1, 7))
    with pytest.raises(ParameterError, match="match"):
        CLIP.on(text=draw(1, 6), match="colour")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ParameterError, match="image_weight"):
        CLIP.on(text=draw(1, 6), image_weight=float("nan"))
    with pytest.raises(HintError, match="64, 64"):
        CLIP(draw(1, 3, 32, 64), TIMES[:1])
    with pytest.raises(BaseMismatch, match="3 channels"):
        ck.attach(tiny.unet("sd1"), CLIP.on(text=draw(1, 6)), scheduler=tiny.scheduler())


def test_texts_that_do_not_fit_the_pictures_are_refused() -> None:
    run: Any = RunInfo(target=None, images=3, height=64, width=64, steps=2,  # pyright: ignore[reportArgumentType]
                       device=torch.device("cpu"), dtype=torch.float32)  # fmt: skip
    with pytest.raises(BatchMismatch, match="2 for 3"):
        CLIP.on(text=draw(2, 6)).prepare(run)
