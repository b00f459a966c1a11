"""Every published checkpoint by its tensors' names and shapes: told, planned, and loaded at full size."""

from __future__ import annotations

import gc
import json
import resource
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import controlkit as ck
from controlkit.checkpoints.formats import recognise, unwrap
from controlkit.checkpoints.safetensors import DTYPES
from tests.golden_cases import HERE, manifests

KINDS: dict[str, tuple[str, str, str]] = {
    "coadapter_fuser": ("coadapter-fuser", "t2i-original", "sd1"),
    "controlnet_control_only_noprefix": ("controlnet", "ldm", "sd1"),
    "controlnet_sd15_full": ("controlnet", "ldm", "sd1"),
    "controlnet_sd21_control_only": ("controlnet", "ldm", "sd2"),
    "controlnet_v11_single_file": ("controlnet", "ldm", "sd1"),
    "guided_diffusion_classifier_64": ("classifier", "guided-diffusion", "other"),
    "guided_diffusion_classifier_128": ("classifier", "guided-diffusion", "other"),
    "guided_diffusion_classifier_256": ("classifier", "guided-diffusion", "other"),
    "guided_diffusion_unet_64": ("unet", "guided-diffusion", "other"),
    "guided_diffusion_unet_128": ("unet", "guided-diffusion", "other"),
    "guided_diffusion_unet_256": ("unet", "guided-diffusion", "other"),
    "guided_diffusion_unet_256_uncond": ("unet", "guided-diffusion", "other"),
    "guided_diffusion_unet_512": ("unet", "guided-diffusion", "other"),
    "sdg_clip_gd": ("noisy-clip", "sdg-original", "other"),
    "t2i_adapter_light_color": ("t2i-adapter", "t2i-original", "sd1"),
    "t2i_adapter_sd14_cin64": ("t2i-adapter", "t2i-original", "sd1"),
    "t2i_adapter_sd14_cin192": ("t2i-adapter", "t2i-original", "sd1"),
    "t2i_adapter_style": ("style-adapter", "t2i-original", "sd1"),
    "t2i_adapter_variant_default_args": ("t2i-adapter", "t2i-original", "sd1"),
    "t2i_adapter_xl_cin256": ("t2i-adapter", "t2i-original", "sdxl"),
    "uni_controlnet_full": ("uni-controlnet", "uni-original", "sd1"),
    "uni_controlnet_global_adapter": ("uni-controlnet", "uni-original", "sd1"),
    "uni_controlnet_local_adapter": ("uni-controlnet", "uni-original", "sd1"),
}
"""What each is: kind, layout, base."""

CONTROLS = sorted(name for name, (kind, _, _) in KINDS.items() if kind != "unet")
DENOISERS = sorted({*KINDS} - {*CONTROLS} | {"controlnet_sd15_full", "uni_controlnet_full"})
NAMES = {dtype: name for name, dtype in DTYPES.items()}
MOST = 20 << 20
"""Kilobytes of memory that loading may take."""


def tensors(name: str) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Shape and dtype of every tensor, by name."""
    manifest = json.loads(manifests()[name].read_text())
    odd, usual = manifest["dtypes"]["exceptions"], manifest["dtypes"]["default"]
    return {
        key: (tuple(shape), getattr(torch, odd.get(key, usual))) for key, shape in manifest["keys"].items()
    }


def header_only(name: str, file: Path) -> Path:
    """A safetensors file of the published size that holds its header and a hole."""
    entries: dict[str, Any] = {}
    offset = 0
    for key, (shape, dtype) in tensors(name).items():
        size = torch.Size(shape).numel() * dtype.itemsize
        entries[key] = {"dtype": NAMES[dtype], "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(entries).encode()
    with file.open("wb") as opened:
        opened.write(struct.pack("<Q", len(text)) + text)
        opened.truncate(8 + len(text) + offset)
    return file


def test_every_manifest_is_here_and_in_the_table() -> None:
    assert manifests().keys() == KINDS.keys()
    assert {path.stem for path in (HERE / "manifests").glob("*.json")} == KINDS.keys()


@pytest.mark.parametrize("name", KINDS)
def test_what_it_is_is_told(name: str, tmp_path: Path) -> None:
    info = ck.inspect(header_only(name, tmp_path / "weights.safetensors"))
    assert (info.kind, info.layout, info.base) == KINDS[name]
    assert info.loadable == (name in CONTROLS)
    assert info.keys == len(tensors(name))
    assert info.parameters == sum(torch.Size(shape).numel() for shape, _ in tensors(name).values())


def bytes_read() -> int:
    """What this process has asked the system to read so far."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(next(line.partition(":")[2] for line in lines if line.startswith("rchar")))


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="needs Linux's account of what was read")
def test_of_a_large_file_the_header_alone_is_read(tmp_path: Path) -> None:
    file = header_only("controlnet_control_only_noprefix", tmp_path / "control_canny.safetensors")
    assert file.stat().st_size > 1_400_000_000
    with file.open("rb") as opened:
        header = 8 + int.from_bytes(opened.read(8), "little")
    ck.inspect(file)  # whatever is imported is now
    before = bytes_read()
    assert ck.inspect(file).condition == "canny"
    assert header <= bytes_read() - before < header + (1 << 16)


def planned(name: str) -> tuple[Any, str]:
    """The plan for a manifest, and what was removed from the beginning of its names."""
    shapes = {key: shape for key, (shape, _) in tensors(name).items()}
    prefix, _ = unwrap(shapes)
    shapes = {key[len(prefix) :]: shape for key, shape in shapes.items()}
    layout = recognise(shapes, name)
    return layout.load_reader().plan(layout.layout, shapes, None, name), prefix


@pytest.mark.parametrize("name", CONTROLS)
def test_the_plan_takes_every_tensor_and_lacks_none(name: str) -> None:
    plan, prefix = planned(name)
    with torch.device("meta"):
        targets = plan.build().state_dict()
    stored = {key[len(prefix) :]: shape for key, (shape, _) in tensors(name).items()}
    used = {target: plan.names.get(target) for target in targets}
    assert {target: stored.get(source) for target, source in used.items()} == {
        target: tuple(part.shape) for target, part in targets.items()
    }
    left = stored.keys() - set(used.values())
    assert not [key for key in left if not key.startswith(tuple(plan.beside) or "?")]


def random_weights(name: str) -> dict[str, Tensor]:
    """Weights of the published size: floats within ±0.05, whole numbers zero."""
    generator = torch.Generator().manual_seed(0)
    state: dict[str, Tensor] = {}
    for key, (shape, dtype) in tensors(name).items():
        part = torch.zeros(shape, dtype=dtype)
        state[key] = part.uniform_(-0.05, 0.05, generator=generator) if part.is_floating_point() else part
    return state


def refuse_waste() -> None:
    gc.collect()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < MOST


@pytest.mark.slow
@pytest.mark.parametrize("name", CONTROLS)
def test_it_loads_at_its_published_size(name: str) -> None:
    plan, prefix = planned(name)
    state = random_weights(name)
    module = ck.load(state)
    assert module.notes == ()
    assert module.kind == KINDS[name][0]
    for target, part in module.state_dict().items():
        assert torch.equal(part, state[prefix + plan.names[target]]), target
    del state, module
    refuse_waste()


@pytest.mark.slow
@pytest.mark.parametrize("name", DENOISERS)
def test_its_denoiser_loads_at_its_published_size(name: str) -> None:
    state = random_weights(name)
    prefix = "model.diffusion_model." if name not in KINDS or KINDS[name][0] != "unet" else ""
    own = {key: part for key, part in state.items() if key.startswith(prefix)}
    unet: Any = ck.unet(state)
    assert sum(part.numel() for part in unet.parameters()) == sum(part.numel() for part in own.values())
    first = own[f"{prefix}input_blocks.0.0.weight"]
    assert any(torch.equal(part, first) for part in unet.parameters())
    del state, own, unet
    refuse_waste()
