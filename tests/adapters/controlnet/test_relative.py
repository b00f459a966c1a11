"""Control-LoRAs and differences: completed from a U-Net they are ControlNets, diffusers' and ours."""

from __future__ import annotations

import copy
import gc
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

import controlkit as ck
from controlkit.adapters.controlnet import (
    ControlLora,
    ControlNet,
    ControlNetConfig,
    ControlNetDifference,
)
from controlkit.checkpoints.formats import recognise
from tests import tiny
from tests.adapters.controlnet.relative_cases import (
    HEADS,
    IMAGE,
    KINDS,
    PREFIX,
    WIDTHS,
    base_weights,
    by_hand,
    call,
    complete,
    difference_file,
    load,
    lora_file,
    made,
    pipeline,
    unet,
)
from tests.golden_cases import assert_equal, relative_error


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
@pytest.mark.parametrize("kind", KINDS)
def test_with_base_is_the_formula(kind: str, family: tiny.Family) -> None:
    file, expected, base = made(kind, family)
    before = copy.deepcopy(base.state_dict())
    module = load(file, family)
    assert isinstance(module, ControlLora if kind == "control-lora" else ControlNetDifference)
    assert (module.kind, module.base, module.notes) == (kind, family, ())
    found = module.with_base(base)
    assert isinstance(found, ControlNet)
    assert found.config == expected.config
    for name, tensor in expected.state_dict().items():
        assert_equal(found.state_dict()[name], tensor, 1e-6)
    inputs = tiny.inputs(family)
    with torch.no_grad():
        assert_equal(found(**inputs).mid, expected(**inputs).mid)
        plain = ControlNet.from_unet(base, hint_channels=found.config.conditioning_embedding_out_channels)
        plain.load_state_dict(
            {k: v for k, v in found.state_dict().items() if "controlnet_" in k}, strict=False
        )
        assert relative_error(plain(**inputs).mid, expected(**inputs).mid) > 0.05  # it differs from its base
    assert all(torch.equal(tensor, base.state_dict()[name]) for name, tensor in before.items())
    with torch.no_grad():
        next(found.parameters()).add_(1.0)  # its weights are its own
    assert all(torch.equal(tensor, base.state_dict()[name]) for name, tensor in before.items())


@pytest.mark.filterwarnings("ignore:While injecting the PEFT adapters:RuntimeWarning")
def test_control_lora_equals_that_of_diffusers_but_for_the_biases_it_drops() -> None:
    """diffusers 0.42 with peft 0.21 does not read the biases of layers that have factors.

    Under peft the bias of ``X`` is ``X.base_layer.bias``, and the file's ``X.bias`` finds no place and is
    dropped without a word, so that the U-Net's stays. ComfyUI, for which the files were made, reads them, and
    so do we. With these biases put in by hand diffusers answers what we do.
    """
    pytest.importorskip("peft")
    deep = {**WIDTHS["sdxl"], "layers_per_block": 2}  # diffusers expects no other number
    base, net = tiny.unet("sdxl", **deep), tiny.controlnet("sdxl", seed=50, **deep)
    file, inputs = lora_file(net, base), tiny.inputs("sdxl")
    hint = net.config.conditioning_embedding_out_channels
    theirs = import_module("diffusers").ControlNetModel.from_unet(
        base, conditioning_embedding_out_channels=hint
    )
    theirs.load_lora_adapter(dict(file), prefix=None)
    theirs.eval()
    ours = load(file, "sdxl").with_base(base)
    with torch.no_grad():
        found = ours(**inputs)
        assert found.mid is not None
        assert relative_error(outputs(theirs, inputs)[-1], found.mid) > 0.05
        for name, layer in theirs.named_modules():
            if hasattr(layer, "base_layer") and layer.base_layer.bias is not None:
                layer.base_layer.bias.copy_(ours.state_dict()[f"{name}.bias"])
        for mine, other in zip((*found.skips, found.mid), outputs(theirs, inputs), strict=True):
            assert_equal(mine, other)


def outputs(model: Any, inputs: Mapping[str, Any]) -> list[Tensor]:
    """What diffusers' network answers, the middle last."""
    skips, mid = model(
        inputs["latents"],
        inputs["timesteps"],
        inputs["tokens"],
        inputs["control_map"],
        added_cond_kwargs=inputs["added"],
        return_dict=False,
    )
    return [*skips, mid]


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
@pytest.mark.parametrize("kind", KINDS)
def test_attached_it_is_completed_from_the_pipeline(kind: str, family: tiny.Family) -> None:
    file, net, base = made(kind, family)
    pipe = pipeline(family, unet=base)
    before, plain = copy.deepcopy(base.state_dict()), call(pipe)
    module = load(file, family)
    with ck.attach(pipe, module.on(IMAGE, scale=0.8, end=0.7)) as run:
        found = call(pipe)
        again = call(pipe)
    assert torch.equal(found, again)
    name = "StableDiffusionXLControlNetPipeline" if family == "sdxl" else "StableDiffusionControlNetPipeline"
    model = import_module("diffusers").ControlNetModel(
        **{key: value for key, value in net.config_entries().items() if not key.startswith("_")}
    )
    model.load_state_dict(net.state_dict())
    whole = pipeline(family, cls=getattr(diffusers, name), controlnet=model.eval())
    scale = {"controlnet_conditioning_scale": 0.8, "control_guidance_end": 0.7}
    from PIL import Image

    assert_equal(found, call(whole, image=Image.fromarray(IMAGE), **scale))
    assert relative_error(plain, found) > 1e-3
    assert torch.equal(call(pipe), plain)
    assert all(torch.equal(tensor, base.state_dict()[key]) for key, tensor in before.items())
    (row,) = run.report().rows
    assert row.control.startswith(kind)
    assert row.counts == {"hint": 2, "forward": 4}
    assert any("completed from the pipeline's U-Net" in note for note in row.notes)


def test_it_follows_the_weights_in_force() -> None:
    """Not a cache of what the U-Net once was: each run is completed from what it is."""
    file, _, base = made("control-lora")
    module, pipe = load(file), pipeline(unet=base)
    with ck.attach(pipe, module.on(IMAGE)):
        call(pipe)
        base.load_state_dict(unet(seed=8).state_dict())
        found = call(pipe)
    with ck.attach(pipe, module.with_base(pipe).on(IMAGE)):
        assert_equal(found, call(pipe), 1e-6)


def test_nothing_is_held_when_the_controls_are_off() -> None:
    module, pipe = load(made("controlnet-difference")[0]), pipeline()
    module.source = "only here"

    def held() -> int:
        gc.collect()
        return sum(type(item) is ControlNet and item.source == "only here" for item in gc.get_objects())

    with ck.attach(pipe, module.on(IMAGE)):
        call(pipe)
        assert held() == 1
        call(pipe)
        assert held() == 1
    assert held() == 0


@pytest.mark.parametrize("kind", KINDS)
def test_names_of_the_base_in_either_layout(kind: str) -> None:
    file, expected, base = made(kind)
    module = load(file)
    original = {f"model.diffusion_model.{name}": part for name, part in base_weights(base).items()}
    bare = {name: part for name, part in base_weights(base).items()}
    for given in (base.state_dict(), original, bare, pipeline(unet=base)):
        found = module.with_base(given)
        for name, tensor in expected.state_dict().items():
            assert_equal(found.state_dict()[name], tensor, 1e-6)


def test_variants_of_the_files() -> None:
    net, base = complete(), unet()
    expected = by_hand(difference_file(net, base), net, base).state_dict()
    without = load(difference_file(net, base, prefix="")).with_base(base).state_dict()
    assert all(torch.equal(without[name], tensor) for name, tensor in expected.items())
    same = difference_file(net, base)
    gone = [PREFIX + "input_blocks.1.0.in_layers.0.weight", PREFIX + "middle_block.0.out_layers.3.weight"]
    for name in gone:  # equal to the base's, so that the tool leaves it out
        del same[name]
    found = load(same).with_base(base).state_dict()
    assert torch.equal(found["mid_block.resnets.0.conv2.weight"], base.mid_block.resnets[0].conv2.weight)
    assert torch.equal(
        found["down_blocks.0.resnets.0.norm1.weight"], base.down_blocks[0].resnets[0].norm1.weight
    )
    net, base = complete("sdxl"), unet("sdxl")  # whose projections are linear, so that flat factors suffice
    flat, deep = (
        load(lora_file(net, base, flat=f), "sdxl").with_base(base).state_dict() for f in (True, False)
    )
    assert all(torch.equal(flat[name], tensor) for name, tensor in deep.items())


def test_half_precision_files_and_unets() -> None:
    file, expected, base = made("control-lora")
    half = {name: tensor.half() for name, tensor in file.items()}
    module = load(half)
    assert {parameter.dtype for parameter in module.parameters()} == {torch.float16}
    found = module.with_base(base)
    assert {parameter.dtype for parameter in found.parameters()} == {torch.float32}
    for name, tensor in expected.state_dict().items():
        assert_equal(found.state_dict()[name], tensor, 2e-3)
    assert {p.dtype for p in module.with_base(base, dtype=torch.bfloat16).parameters()} == {torch.bfloat16}
    pipe = tiny.pipeline("sd1", unet=base).to(torch.bfloat16)
    with ck.attach(pipe, module.on(IMAGE)):
        assert torch.isfinite(call(pipe)).all()


@pytest.mark.parametrize("kind", KINDS)
def test_saving(kind: str, tmp_path: Path) -> None:
    file, expected, base = made(kind)
    module = load(file)
    with pytest.raises(ck.Unsupported, match="with_base"):
        module.save(tmp_path / "folder")
    assert not (tmp_path / "folder" / "config.json").exists()
    module.save(tmp_path / "again.safetensors", layout="original")
    again = ck.load(tmp_path / "again.safetensors", config=HEADS["sd1"])
    assert again.kind == kind
    assert {key: value.tolist() for key, value in again.original_state().items()} == {
        key: value.tolist() for key, value in file.items()
    }
    module.with_base(base).save(tmp_path / "folder")
    model = import_module("diffusers").ControlNetModel.from_pretrained(tmp_path / "folder")
    for name, tensor in expected.state_dict().items():
        assert_equal(model.state_dict()[name], tensor, 1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_the_wrong_base_is_refused_before_the_first_step(kind: str) -> None:
    module = load(made(kind)[0])
    with pytest.raises(ck.BaseMismatch, match=r"for sd1 \(tokens 768 wide.*tokens 2048 wide"):
        ck.attach(tiny.pipeline("sdxl"), module.on(IMAGE))
    with pytest.raises(ck.BaseMismatch, match=r"conv_in.weight of shape.*sd1 \(tokens 768 wide"):
        module.with_base(tiny.unet("sd1"))
    with pytest.raises(ck.BaseMismatch, match="no conv_in"):
        module.with_base(tiny.vae())
    deeper = tiny.unet("sd1", **WIDTHS["sd1"], use_linear_projection=True)  # as wide, but of another build
    pipe = pipeline(unet=deeper)
    plain = call(pipe)
    with (
        pytest.raises(ck.BaseMismatch, match=r"proj_in.weight of shape"),
        ck.attach(pipe, module.on(IMAGE)) as run,
    ):
        call(pipe)
    assert run.report().rows[0].steps == 0
    assert torch.equal(call(pipe), plain)
    with pytest.raises(ck.ParameterError):
        module.with_base("a path")
    with torch.device("meta"), pytest.raises(ck.DeviceMismatch, match="not in memory"):
        module.with_base(diffusers.UNet2DConditionModel(**dict(unet().config)))


@pytest.mark.filterwarnings("ignore::UserWarning:peft")
def test_a_lora_in_the_unet_is_left_out_of_the_control() -> None:
    """The control is relative to the base alone; peft puts the base's weights one level deeper."""
    peft = pytest.importorskip("peft")
    file, expected, base = made("control-lora")
    base.add_adapter(peft.LoraConfig(r=2, target_modules=["to_q", "to_k"], init_lora_weights=False))
    found = load(file).with_base(base)
    for name, tensor in expected.state_dict().items():
        assert_equal(found.state_dict()[name], tensor, 1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_a_call_without_a_base_says_so(kind: str) -> None:
    module = load(made(kind)[0])
    with pytest.raises(ck.StateError, match="with_base"):
        module(**tiny.inputs("sd1"))
    bare_host = import_module("controlkit.contracts").RunInfo
    info = bare_host(
        target=None, images=1, height=8, width=8, steps=2, device=torch.device("cpu"), dtype=torch.float32
    )
    with pytest.raises(ck.NotApplicable, match="with_base"):
        module.on(IMAGE).prepare(info)


@pytest.mark.parametrize(
    ("kind", "name", "error"),
    [
        ("control-lora", "input_blocks.1.0.in_layers.2.up", ck.Incomplete),
        ("control-lora", "middle_block.1.proj_in.down", ck.Incomplete),
        ("control-lora", "input_blocks.1.0.in_layers.0.weight", ck.Incomplete),
        ("control-lora", "time_embed.0.bias", ck.Incomplete),
        ("control-lora", "zero_convs.3.0.weight", ck.Incomplete),
        ("control-lora", "input_hint_block.2.bias", ck.Incomplete),
        ("controlnet-difference", PREFIX + "zero_convs.3.0.weight", ck.Incomplete),
        ("controlnet-difference", PREFIX + "middle_block_out.0.bias", ck.Incomplete),
        ("controlnet-difference", PREFIX + "input_hint_block.14.weight", ck.Incomplete),
    ],
)
def test_missing_tensors_are_refused(kind: str, name: str, error: type[Exception]) -> None:
    file = made(kind)[0]
    with pytest.raises(error):
        load({key: tensor for key, tensor in file.items() if key != name})


def test_both_factors_missing_is_a_missing_weight() -> None:
    file = made("control-lora")[0]
    stem = "input_blocks.3.1.transformer_blocks.0.attn2.to_k"
    with pytest.raises(ck.Incomplete, match=r"no down_blocks.1.attentions.0.*attn2.to_k.weight"):
        load({key: tensor for key, tensor in file.items() if not key.startswith(stem)})


def test_factors_that_do_not_fit_are_refused() -> None:
    file = made("control-lora")[0]
    with pytest.raises(ck.ShapeMismatch, match="factors"):
        load({**file, "middle_block.1.proj_in.up": torch.ones(64, 2, 1, 1)})
    with pytest.raises(ck.ShapeMismatch):
        load({**file, "middle_block.1.proj_in.down": torch.ones(3, 60, 1, 1)})
    with pytest.raises(ck.NonFinite):
        load({**file, "middle_block.1.proj_in.down": torch.full((3, 64, 1, 1), float("nan"))})


@pytest.mark.parametrize("kind", KINDS)
def test_inspected(kind: str) -> None:
    info = ck.inspect(made(kind, "sdxl")[0])
    layout = "control-lora" if kind == "control-lora" else "ldm"
    assert (info.kind, info.layout, info.base, info.loadable) == (kind, layout, "sdxl", True)
    assert info.config["block_out_channels"] == [32, 64, 64]
    assert info.config.get("rank") == (3 if kind == "control-lora" else None)


PUBLISHED: dict[str, dict[str, Any]] = {
    "sd1": {"cross_attention_dim": 768},
    "sdxl": {
        "block_out_channels": (320, 640, 1280),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "cross_attention_dim": 2048,
        "attention_head_dim": (5, 10, 20),
        "use_linear_projection": True,
        "transformer_layers_per_block": (1, 2, 10),
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
}


@pytest.mark.parametrize("family", PUBLISHED)
@pytest.mark.parametrize("kind", KINDS)
def test_published_sizes_need_no_config(kind: str, family: str) -> None:
    with torch.device("meta"):
        net = ControlNet(ControlNetConfig(**PUBLISHED[family]))
    shapes: dict[str, tuple[int, ...]] = {}
    for name, tensor in net.original_state().items():
        bare, shape = name.removeprefix(PREFIX), tuple(tensor.shape)
        shared = not bare.startswith(("zero_convs.", "middle_block_out.", "input_hint_block."))
        if kind == "control-lora" and shared and len(shape) > 1:
            rank = min(128, shape[0], tensor[0].numel())  # as the tool that writes them clips it
            stem = bare.removesuffix(".weight")
            shapes[f"{stem}.up"] = (shape[0], rank, *(1,) * (len(shape) - 2))
            shapes[f"{stem}.down"] = (rank, *shape[1:])
        else:
            shapes[bare if kind == "control-lora" else name] = shape
    mark = "lora_controlnet" if kind == "control-lora" else "difference"
    layout = recognise({**shapes, mark: ()}, "file")
    assert layout.kind == kind
    planned = layout.load_reader().plan(layout.layout, {**shapes, mark: ()}, None, "file")
    with torch.device("meta"):
        module = planned.build()
    assert module.base == family
    assert module.config.heads == net.config.heads
    assert set(planned.names.values()) == set(shapes)
    assert {name: shapes[planned.names[name]] for name in module.state_dict()} == {
        name: tuple(tensor.shape) for name, tensor in module.state_dict().items()
    }


def test_untrained_ones_are_remarked() -> None:
    file = made("controlnet-difference")[0]
    for name in file:
        if "zero_convs" in name or "middle_block_out" in name:
            file[name] = torch.zeros_like(file[name])
    with pytest.warns(ck.ControlKitWarning, match="no effect"):
        load(file)
