"""Every example runs, on tiny models in place of the embedded ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from controlkit import embedded
from tests import tiny

EXAMPLES = sorted((Path(__file__).resolve().parent.parent / "examples").glob("*.py"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_run(
    path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    modules: dict[str, Any] = {"controlnet-canny": tiny.controlnet, "t2i-depth": tiny.t2i_adapter}
    unet = tiny.unet(sample_size=16)  # of the embedded latents, which the embedded networks read
    monkeypatch.setattr(embedded, "pipeline", lambda *_a, **_k: tiny.pipeline(unet=unet))
    real = embedded.load
    monkeypatch.setattr(embedded, "load", lambda name: modules[name]() if name in modules else real(name))
    monkeypatch.chdir(tmp_path)
    source = path.read_text().replace("STEPS = 20", "STEPS = 4")
    exec(compile(source, str(path), "exec"), {"__name__": "__main__"})
    assert list(tmp_path.glob("*.png"))
    printed = capsys.readouterr().out
    assert printed
    assert "False" not in printed


def test_every_example_is_listed() -> None:
    listed = (EXAMPLES[0].parent / "README.md").read_text()
    assert all(f"({path.name})" in listed for path in EXAMPLES)
