"""What happens when, while the web UI makes pictures, also ones that end in the middle; no web UI."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from controlkit.hosts.webui import controls
from controlkit.hosts.webui.script import Front
from tests.hosts.webui import stand_in
from tests.hosts.webui.test_hooks import Adds, call, failing, hooks, residuals

UNIT = {"model": "a", "image": Image.new("RGB", (8, 8))}


class Picture:
    """The web UI's processing of one picture, with prompts that it keeps from one to the next."""

    cached_c: list[Any] = [None, None]  # noqa: RUF012

    def __init__(self, model: Any) -> None:
        self.sd_model, self.extra_generation_params = model, dict[str, Any]()
        self.cached_c = Picture.cached_c


class WebUI:
    """A front, and a model that it works on.

    Args:
        monkeypatch: Puts a control in the place of a unit's.
        residual: What that control adds.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, residual: Any) -> None:
        self.front, self.model = Front(), stand_in.model()
        monkeypatch.setattr(controls, "of_units", lambda units, p, kept: [Adds(residuals=residual)])

    def make(self, *args: Any) -> Any:
        """One step of one picture; an error leaves out what comes after it, as in the web UI."""
        p = Picture(self.model)
        self.front.next(p)
        self.front.ask(p, args)
        if Picture.cached_c[1] is None:
            Picture.cached_c[:] = ["the prompt", "encoded"]
        self.front.begin(p)
        self.front.denoising(stand_in.params(p=p))
        with torch.no_grad():
            made = self.model.model.diffusion_model(*call())
        self.front.release()
        self.front.done()
        return made


@pytest.fixture(autouse=True)
def prompts() -> None:
    Picture.cached_c[:] = [None, None]


def works(step: Any) -> Any:
    return residuals(2)


def test_a_picture_and_nothing_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    webui = WebUI(monkeypatch, works)
    plain, controlled, again = webui.make(), webui.make(UNIT), webui.make()
    assert torch.equal(plain, again)
    assert not torch.allclose(plain, controlled)
    assert hooks(webui.model) == 0
    assert webui.front.report is not None
    assert webui.front.report.rows[0].applied == 1


def unknown(_: Any, __: Any, ___: Any) -> Any:
    raise KeyError("while the controls are made")


@pytest.mark.parametrize(
    ("args", "residual", "change", "error"),
    [
        ([{**UNIT, "wieght": 1}], works, None, "wieght"),
        ([UNIT], works, ("of_units", unknown), "while the controls are made"),
        ([UNIT], failing, None, "in a control"),
    ],
)
def test_after_an_error_at_any_stage_the_next_picture_is_the_plain_one(
    monkeypatch: pytest.MonkeyPatch, args: Any, residual: Any, change: Any, error: str
) -> None:
    webui = WebUI(monkeypatch, residual)
    if change:
        monkeypatch.setattr(controls, *change)
    plain = webui.make()
    with pytest.raises(Exception, match=error):
        webui.make(*args)
    assert hooks(webui.model) == 0
    Picture.cached_c[1] = "marked by another extension"
    assert torch.equal(webui.make(), plain)
    assert Picture.cached_c[1] == "encoded", "the prompt was encoded anew"


def test_prompts_are_kept_where_nothing_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    webui = WebUI(monkeypatch, works)
    webui.make(UNIT)
    Picture.cached_c[1] = "kept"
    webui.make()
    webui.make(UNIT)
    assert Picture.cached_c[1] == "kept"


def test_an_error_of_the_announcement_is_raised_by_the_unet(monkeypatch: pytest.MonkeyPatch) -> None:
    webui = WebUI(monkeypatch, works)
    p = Picture(webui.model)
    webui.front.ask(p, [UNIT])
    webui.front.begin(p)
    webui.front.denoising(stand_in.params(prompts=4, images=2, p=p))
    with pytest.raises(Exception, match="AND"):
        webui.model.model.diffusion_model(*call())
    assert hooks(webui.model) == 0


def test_another_picture_takes_off_what_one_left_that_ended_untold(monkeypatch: pytest.MonkeyPatch) -> None:
    webui = WebUI(monkeypatch, works)
    p = Picture(webui.model)
    webui.front.ask(p, [UNIT])
    webui.front.begin(p)
    assert hooks(webui.model) > 0
    webui.front.denoising(stand_in.params(p=Picture(webui.model)))
    assert hooks(webui.model) == 0


def test_an_error_is_not_told_to_the_next_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    webui = WebUI(monkeypatch, works)
    plain = webui.make()
    p = Picture(webui.model)
    webui.front.ask(p, [{"model": 3}])
    webui.front.begin(p)
    assert hooks(webui.model) > 0  # then something else fails, before the U-Net is called
    assert torch.equal(webui.make(), plain)
    assert hooks(webui.model) == 0


def test_at_weight_0_there_is_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stand_in.modules(monkeypatch, tmp_path)
    front, model = Front(), stand_in.model()
    p = Picture(model)
    front.ask(p, [{**UNIT, "weight": 0}, {"function": "color", "strength": 0}])
    front.begin(p)
    assert hooks(model) == 0
    assert p.extra_generation_params == {
        "ControlKit 0": "model=a; weight=0",
        "ControlKit guidance": "function=color; strength=0",
    }


def test_a_model_that_is_no_unet_is_told_when_it_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    webui = WebUI(monkeypatch, works)
    webui.model = stand_in.model(torch.nn.Linear(1, 1))
    p = Picture(webui.model)
    webui.front.ask(p, [UNIT])
    webui.front.begin(p)
    net = webui.model.model.diffusion_model
    with pytest.raises(Exception, match="U-Net"):
        net(torch.zeros(1))
    net(torch.zeros(1))
