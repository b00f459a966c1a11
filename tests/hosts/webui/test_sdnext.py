"""SD.Next's order of calls around a tiny pipeline of diffusers: the panel's controls, and nothing left."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import controlkit as ck
from controlkit.hosts.webui import files
from controlkit.hosts.webui.sdnext import Front, Panel
from tests import tiny

CALL: dict[str, Any] = {"num_inference_steps": 3, "width": 64, "height": 64, "output_type": "latent"}


@pytest.fixture
def shared(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """SD.Next's ``modules.shared``, with a control file in its models folder."""
    tiny.controlnet().save(tmp_path / "ControlNet" / "edges")
    made = SimpleNamespace(sd_model=tiny.pipeline(), cmd_opts=SimpleNamespace())
    modules = {
        "modules.shared": vars(made),
        "modules.paths": {"models_path": str(tmp_path)},
        "modules.devices": {"device": torch.device("cpu")},
    }
    for name, entries in modules.items():
        module = ModuleType(name)
        vars(module).update(entries)
        monkeypatch.setitem(sys.modules, name, module)
    yield sys.modules["modules.shared"]
    files._loaded.clear()


@pytest.fixture
def panel() -> Panel:
    made = Panel()
    made.front = Front()
    return made


def unit(**changes: Any) -> dict[str, Any]:
    edges = ck.embedded.scene(5).canny.resize((64, 64))
    return {"model": "edges/diffusion_pytorch_model.safetensors", "image": edges, **changes}


def sample(pipe: Any) -> Tensor:
    generator = torch.Generator().manual_seed(7)
    return pipe("a", generator=generator, **CALL).images


class Processing(SimpleNamespace):
    """SD.Next's ``p``, whose model cannot be set."""

    @property
    def sd_model(self) -> Any:
        return sys.modules["modules.shared"].sd_model


def picture(shared: Any, panel: Panel, *args: Any, run: Callable[[Any], Tensor] = sample, **p: Any) -> Tensor:
    """One picture by SD.Next: scripts in its order, the last call made whatever happens."""
    made = Processing(extra_generation_params={}, width=64, height=64, **p)
    panel.before_process(made, *args)
    try:
        panel.process(made, *args)
        panel.process_batch(made, *args, batch_number=0)
        latents = run(shared.sd_model)
        panel.postprocess_batch(made, *args, images=latents, batch_number=0)
        return latents
    finally:
        panel.front.ended(made)


def hooks(pipe: Any) -> int:
    return sum(len(module._forward_pre_hooks) + len(module._forward_hooks) for module in pipe.unet.modules())


def test_a_unit_gives_what_attach_gives_and_leaves_nothing(shared: Any, panel: Panel) -> None:
    plain = sample(shared.sd_model)
    made = picture(shared, panel, unit(weight=0.8, end=0.7))
    net = tiny.controlnet()
    with ck.attach(shared.sd_model, net.on(unit()["image"], scale=0.8, end=0.7)):
        expected = sample(shared.sd_model)
    assert torch.equal(made, expected)
    assert not torch.equal(made, plain)
    assert panel.front.report is not None
    assert [row.applied for row in panel.front.report.rows] == [2]
    assert hooks(shared.sd_model) == 0
    assert torch.equal(picture(shared, panel), plain), "no unit"


@pytest.mark.parametrize("more", ["enable_hr", "detailer_enabled"])
def test_more_than_one_pass_is_refused_when_the_unet_is_called(shared: Any, panel: Panel, more: str) -> None:
    with pytest.raises(ck.NotApplicable, match=r"needed one pass, in SD\.Next"):
        picture(shared, panel, unit(), **{more: True})
    assert hooks(shared.sd_model) == 0
    assert picture(shared, panel, **{more: True}).shape == (1, 4, 8, 8), "without units it runs"


def test_a_wrong_unit_ends_the_picture_and_the_next_is_as_ever(shared: Any, panel: Panel) -> None:
    plain = sample(shared.sd_model)
    with pytest.raises(ck.ParameterError, match=r"none\.safetensors"):
        picture(shared, panel, unit(model="none.safetensors"))
    assert hooks(shared.sd_model) == 0
    assert torch.equal(sample(shared.sd_model), plain)


def test_an_interrupted_picture_leaves_nothing(shared: Any, panel: Panel) -> None:
    def interrupted(pipe: Any) -> Tensor:
        def stop(*_: Any) -> Any:
            raise AssertionError("Interrupted...")

        return pipe("a", callback_on_step_end=stop, **CALL).images

    with pytest.raises(AssertionError, match="Interrupted"):
        picture(shared, panel, unit(), run=interrupted)
    assert hooks(shared.sd_model) == 0


def test_another_pipeline_on_the_same_unet_is_refused(shared: Any, panel: Panel) -> None:
    other = tiny.pipeline(**shared.sd_model.components)
    with pytest.raises(ck.StateError, match="another pipeline"):
        picture(shared, panel, unit(), run=lambda _: sample(other))
    assert hooks(shared.sd_model) == 0


def test_a_transformer_is_refused_with_its_name(shared: Any, panel: Panel) -> None:
    class FluxTransformer2DModel(torch.nn.Linear):
        pass

    denoiser = FluxTransformer2DModel(1, 1)
    shared.sd_model = SimpleNamespace(transformer=denoiser, components={"transformer": denoiser})
    with pytest.raises(ck.NotApplicable, match="FluxTransformer2DModel"):
        picture(shared, panel, unit(), run=lambda pipe: pipe.transformer(torch.zeros(1, 1)))
    assert denoiser(torch.zeros(1, 1)).shape == (1, 1), "the next is as ever"
